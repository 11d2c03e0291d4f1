"""Where and how the arithmetic happens: the one place that picks a device or a dtype, and holds the speed defaults.

Choices made here:
- Accelerate finds the device, unless `device` or GENKIT_DEVICE names one; a device that is not there is an error,
  never a silent fall-back to the CPU.
- float32 on the CPU, where networks that tolerate it may run in bfloat16 (see `relaxed`); on CUDA bfloat16 from compute
  capability 8.0 on, float16 before; bfloat16 on XPU, float16 on MPS.
- Noise is drawn on the CPU, item by item, each from a generator of its own: an item is the same on any device and in
  any batch.
- Speed: inference mode, TF32 and cuDNN's search for the best kernel on CUDA, channels-last where a pipeline asks for
  it. The number of threads is left alone. These are torch's global switches: set while work runs, then put back.
- Deterministic: none of the above, and torch refuses every operation that has no repeatable form.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from genkit._version import __version__
from genkit.errors import DeviceError, InputError, OutOfMemory
from genkit.shortage import Shortage, attempt, is_out_of_memory, is_sticky

__all__ = ["DTYPES", "Runtime", "devices", "is_out_of_memory", "is_sticky"]

Item = TypeVar("Item")
Result = TypeVar("Result")

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

LEAST = 0.25
"""Of free memory that is counted on at least, however often it ran out."""


@dataclass
class Runtime:
    """A device, a dtype, and whether the same bits must come out on every run. Make one with `Runtime.pick`."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    deterministic: bool = False
    relaxed: torch.dtype = field(default=None, compare=False)  # type: ignore[assignment]
    """The dtype for networks whose own values nobody sees, such as the features inside a loss. Picked on a CPU that
    computes in bfloat16, it is that; benchmarks/results.md has what it gains. By default `dtype`."""
    _fits: int | None = field(default=None, repr=False, compare=False)
    """The largest batch that fitted after memory had run out; None while it never has."""
    shortage: Shortage = field(default_factory=Shortage, repr=False, compare=False)
    """What was given up for want of memory."""
    _counted: float = field(default=1.0, repr=False, compare=False)
    """The share of free memory that is counted on."""

    @classmethod
    def pick(
        cls,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        deterministic: bool = False,
    ) -> Runtime:
        """The runtime for these wishes; None takes GENKIT_DEVICE and GENKIT_DTYPE, else the best there is.

        Raises DeviceError for a device that is not there, InputError for a dtype that is none.
        """
        found = _device(device or os.environ.get("GENKIT_DEVICE") or None)
        kind, relaxed = _dtypes(dtype or os.environ.get("GENKIT_DTYPE") or None, found)
        if deterministic:
            # Read when cuBLAS makes its first handle, so it is set before anything runs; it does nothing by itself.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        return cls(found, kind, deterministic, relaxed)

    def __post_init__(self) -> None:
        self.relaxed = self.relaxed or self.dtype

    def generator(self, seed: int) -> torch.Generator:
        """A CPU generator, whatever the device: its numbers are the same everywhere."""
        return torch.Generator("cpu").manual_seed(seed)

    def noise(
        self, seeds: Sequence[int | torch.Generator], shape: Sequence[int], *, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Standard normal noise [B, *shape], one item per seed, on the device and in the runtime's dtype (or `dtype`).

        Each item is drawn in float32 on the CPU from its own generator. Give generators instead of seeds to draw on.
        """
        generators = [self.generator(seed) if isinstance(seed, int) else seed for seed in seeds]
        items = [torch.randn(tuple(shape), generator=generator) for generator in generators]
        drawn = torch.stack(items) if items else torch.empty(0, *shape)
        return drawn.to(self.device, dtype or self.dtype)

    def place(self, module: nn.Module, *, dtype: torch.dtype | None = None, channels_last: bool = False) -> nn.Module:
        """A module for inference: on the device, in the dtype, frozen. One larger than the free memory stays on the CPU
        and is moved layer by layer as it runs.

        channels_last: lays 4-d weights out as NHWC, which convolutions on tensor cores want.
        """
        module = module.eval().requires_grad_(False).to(dtype or self.dtype)
        if channels_last and self.device.type != "mps":
            module = module.to(memory_format=torch.channels_last)
        size = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
        if self.device.type != "cpu" and size > 0.9 * self.free_memory():
            from accelerate import cpu_offload

            return cpu_offload(module, self.device)
        return module.to(self.device)

    def relieve(self) -> str | None:
        """After memory ran out for a single item: half as much of what is free is counted on from now on, by which
        pipelines that can work in tiles choose them. Says so; None when it is little enough."""
        if self._counted <= LEAST:
            return None
        self._counted /= 2
        return f"counts on {self._counted:.0%} of the free memory"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Torch's global switches (TF32, kernel search, determinism) as this runtime wants them, and back afterwards.

        Raises DeviceError where `deterministic` meets an operation that cannot be repeated.
        """
        before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
            torch.get_float32_matmul_precision(),
        )
        fast = self.device.type == "cuda" and not self.deterministic
        _be_deterministic(self.deterministic)
        torch.backends.cudnn.benchmark = fast
        torch.set_float32_matmul_precision("high" if fast else "highest")
        try:
            yield
        except RuntimeError as error:
            if "deterministic implementation" not in str(error):
                raise
            what = str(error).split(" ")[0]
            raise DeviceError(
                f"{what} has no repeatable form on {self.device}: run without deterministic, or on the CPU"
            ) from error
        finally:
            _be_deterministic(before[0], warn_only=before[1])
            torch.backends.cudnn.benchmark = before[2]
            torch.set_float32_matmul_precision(before[3])

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """`active()` without gradients: what a pipeline wraps its loop in."""
        with self.active(), torch.inference_mode():
            yield

    def halving(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        batch: Sequence[Item],
        relieve: Callable[[], str | None] = lambda: None,
    ) -> list[Result]:
        """`work` on the batch, in parts where memory does not suffice. Results in the order of the batch.

        When memory runs out the part is halved and tried again; the size that fitted is where later calls begin. Where
        a single item does not fit, `relieve` makes the work need less and says how, or None where there is no way: then
        OutOfMemory is raised. What came of it is kept in `shortage`.
        """
        results: list[Result] = []
        while len(results) < len(batch):
            part = batch[len(results) :][: self._fits]
            done, said = attempt(work, part)
            if done is None:
                self._after_out_of_memory(len(part), relieve, said)
                continue
            if len(done) != len(part):
                raise ValueError(f"{len(done)} results for a batch of {len(part)}")
            if len(results) + len(part) < len(batch):
                self.shortage.halved(len(part))
            results.extend(done)
        return results

    def _after_out_of_memory(self, tried: int, relieve: Callable[[], str | None], said: str) -> None:
        self.release()
        if tried > 1:
            self._fits = (tried + 1) // 2
        elif words := relieve():
            self.shortage.given.append(words)
            self._fits = None  # with so much given up more may fit again
        else:
            raise OutOfMemory(
                said
                or f"{self.device} has no memory for a single item ({self._free() / 2**30:.1f} GB free): "
                "make it smaller, use a half-precision dtype, or another device"
            )

    def free_memory(self) -> int:
        """Bytes that can still be taken on the device, torch's own cache included; fewer where that proved too much."""
        return int(self._counted * self._free())

    def _free(self) -> int:
        if self.device.type in ("cuda", "xpu"):
            backend: Any = getattr(torch, self.device.type)
            free, _ = backend.mem_get_info(self.device)
            return int(free + backend.memory_reserved(self.device) - backend.memory_allocated(self.device))
        if self.device.type == "mps":
            return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
        import psutil  # type: ignore[import-untyped]  # comes with Accelerate

        return int(psutil.virtual_memory().available)

    def release(self) -> None:
        """Gives memory that nobody holds any more back to the device."""
        gc.collect()
        backend: Any = getattr(torch, self.device.type, None)
        if hasattr(backend, "empty_cache"):
            backend.empty_cache()

    def describe(self) -> dict[str, str]:
        """What a result's bits may depend on beside its parameters, as words for the provenance."""
        return {
            "device": self.device.type,  # which of several makes no difference
            "hardware": _hardware(self.device),
            "dtype": "/".join(str(kind).removeprefix("torch.") for kind in dict.fromkeys((self.dtype, self.relaxed))),
            "deterministic": str(self.deterministic).lower(),
            "torch": torch.__version__,
            "genkit": __version__,
        }


def devices() -> list[str]:
    """The devices of this machine that torch can use, as `device` takes them; the CPU is the last."""
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    found += [f"xpu:{i}" for i in range(torch.xpu.device_count())] if torch.xpu.is_available() else []
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def _be_deterministic(mode: bool, *, warn_only: bool = False) -> None:
    """Torch's switch, where it stands otherwise: touched for the first time it imports the compiler, for a second."""
    stands = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if stands != (mode, warn_only):
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)


def _device(name: str | torch.device | None) -> torch.device:
    if name is None:
        from accelerate import PartialState

        return PartialState().device
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"no device is called {str(name)[:80]!r}; this machine has {', '.join(devices())}") from None
    here = devices()
    if str(device) not in here and not (device.index is None and any(d.split(":")[0] == device.type for d in here)):
        raise DeviceError(f"device {str(device)!r} is not there; this machine has {', '.join(here)}")
    return device


def _dtypes(name: str | torch.dtype | None, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """The dtype and the relaxed one: from a word ("float32"), or both as a record has them ("float32/bfloat16")."""
    if isinstance(name, torch.dtype):
        return name, name
    if name is not None:
        words = name.split("/", 1)
        if not set(words) <= DTYPES.keys():
            raise InputError(f"no dtype is called {name[:80]!r}; known are float32, bfloat16 and float16")
        return DTYPES[words[0]], DTYPES[words[-1]]
    if device.type == "cuda":
        kind = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    else:
        kind = {"xpu": torch.bfloat16, "mps": torch.float16}.get(device.type, torch.float32)
    return kind, torch.bfloat16 if device.type == "cpu" and _native_bfloat16() else kind


def _native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; emulated, it is slower than float32."""
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check)


def _hardware(device: torch.device) -> str:
    if device.type in ("cuda", "xpu"):
        return str(getattr(torch, device.type).get_device_name(device))
    return platform.machine()
