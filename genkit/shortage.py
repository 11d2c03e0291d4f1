"""What a device says when it cannot go on: that memory has run out, or that nothing works in this process any more; and
what a pipeline gave up for want of memory.

Read off the messages, which is how torch and the libraries under it tell: one exception class has both in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from genkit.errors import OutOfMemory

__all__ = ["Shortage", "attempt", "is_out_of_memory", "is_sticky"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|CUFFT)_STATUS_ALLOC_FAILED"
    r"|CUFFT_ALLOC_FAILED|OUT_OF_(DEVICE|HOST|RESOURCES|MEMORY)|hipErrorOutOfMemory|Invalid buffer size",
    re.IGNORECASE,
)
_STICKY = re.compile(
    r"\b(CUDA|HIP|MPS)( driver)? error\b|device-side assert|(illegal|unspecified|misaligned) .*(access|launch|address)"
    r"|\b(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|CUFFT|MIOPEN|HIPBLAS)_(STATUS_)?(INTERNAL_ERROR|EXECUTION_FAILED|EXEC_FAILED"
    r"|MAPPING_ERROR|INTERNAL|NOT_INITIALIZED)|NCCL (error|Error)|UR_RESULT_ERROR_DEVICE_LOST",
)
_HARMLESS = re.compile(
    r"invalid device ordinal|invalid argument|no kernel image|no CUDA-capable device|not supported|driver version is"
    r"|PTX|invalid configuration argument|invalid resource handle|peer access|busy or unavailable"
)
"""Errors of a call that leave the device as it was."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device, or the machine, had no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemory):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def is_sticky(error: BaseException) -> bool:
    """Whether an exception, or one that it came from, says that the device answers nothing more in this process (an
    assertion in a kernel, an illegal access): only another process helps. Memory that ran out never does."""
    chain = list(_chain(error))
    if any(map(is_out_of_memory, chain)):
        return False
    return any(_is_broken(one) for one in chain)


def _is_broken(error: BaseException) -> bool:
    if not isinstance(error, RuntimeError) or _HARMLESS.search(str(error)):
        return False
    return isinstance(error, torch.AcceleratorError) or bool(_STICKY.search(str(error)))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


@dataclass
class Shortage:
    """What one pipeline gave up because memory ran out. given: for good, as `Pipeline.relieve` put it, in order;
    at_once: the fewest things made at once since `begin`, where there were more to make."""

    given: list[str] = field(default_factory=list)
    at_once: int | None = None

    def begin(self) -> None:
        """Another request: how many are made at once begins anew, what was given up stays so."""
        self.at_once = None

    def halved(self, count: int) -> None:
        self.at_once = min(count, self.at_once or count)

    @property
    def words(self) -> list[str]:
        """A few words for each: "ran 2 at a time"."""
        return [*dict.fromkeys(self.given), *([f"ran {self.at_once} at a time"] if self.at_once else [])]


def attempt(
    work: Callable[[Sequence[Item]], Sequence[Result]], part: Sequence[Item]
) -> tuple[Sequence[Result] | None, str]:
    """The work's results; None when memory ran out, with what the work said of it itself.

    The exception ends with this frame: its traceback holds the frames of the work, and they hold tensors.
    """
    try:
        return list(work(part)), ""
    except (MemoryError, RuntimeError, OutOfMemory) as error:
        if not is_out_of_memory(error):
            raise
        return None, str(error) if isinstance(error, OutOfMemory) else ""
