"""How a machine is shared out among several processes: a device and a number of threads for each.

Imports no torch by itself, so that a process which only hands out work stays light: torch is asked for its devices only
where the machine shows a sign of any beside the CPU.

- One lane for each GPU; more lanes than GPUs take them in turn.
- On a CPU one for every four cores, at least one: a network is no faster on many more, and each lane holds the model.
- Cores are physical ones, of those that this process may use, within what its control group grants: a container that
  is given two of 64 cores has two. OMP_NUM_THREADS bounds the threads of a lane, as it bounds those of one process.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from genkit.errors import InputError

__all__ = ["Lane", "cores", "lanes"]

MOST = 256
"""Lanes of one machine; more is a slip of the finger."""
CORES_A_LANE = 4
SIGNS = ("dev/nvidiactl", "dev/nvhost-gpu", "dev/dxg", "dev/kfd", "dev/dri")
"""One of these is there on every Linux that has a GPU: CUDA, Jetson, WSL, ROCm, Intel."""


class Lane(NamedTuple):
    """device: as `genkit.load` takes it, None for what it picks by itself; threads: of torch's arithmetic."""

    device: str | None
    threads: int


def lanes(workers: int | None = None, device: str | None = None) -> list[Lane]:
    """A lane for each of several workers on this machine.

    workers: how many, None for as many as fit it; device: the one to use (default: GENKIT_DEVICE, else every GPU), such
    as "cpu", "cuda" for every CUDA device, "cuda:1". Raises InputError for less than one worker or a great many.
    """
    if workers is not None and not 1 <= workers <= MOST:
        raise InputError(f"workers {workers} is out of range: it must be 1 to {MOST}")
    places = _places(device or os.environ.get("GENKIT_DEVICE") or None)
    on_cpu = places[0] in (None, "cpu")
    count = workers or (max(1, cores() // CORES_A_LANE) if on_cpu else len(places))
    threads = max(1, min(cores() // count, _wanted() or sys.maxsize))
    return [Lane(places[i % len(places)], threads) for i in range(count)]


def cores(root: Path = Path("/")) -> int:
    """Physical cores that this process may use. root: where the machine's /proc and /sys are."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = {_siblings(root, cpu) for cpu in mine}
    return max(1, min([len(siblings), *map(math.floor, _quotas(root))]))


def _places(device: str | None) -> Sequence[str | None]:
    """The devices that lanes are spread over: every one of the kind that was named, or of the best there is."""
    if ":" in (device or "") or device == "cpu" or not _may_have_gpus():
        return [device]
    from genkit.runtime import devices

    found = [name for name in devices() if name != "cpu"]
    kind = device or (found[0].split(":")[0] if found else None)
    return [name for name in found if name.split(":")[0] == kind] or [device]


def _may_have_gpus(root: Path = Path("/")) -> bool:
    return not sys.platform.startswith("linux") or any((root / sign).exists() for sign in SIGNS)


def _wanted() -> int:
    words = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(words) if words.isascii() and words.isdigit() else 0


def _siblings(root: Path, cpu: int) -> str:
    """What all threads of one core have in common; the thread's own number where the machine does not tell."""
    return _text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def _quotas(root: Path) -> Iterator[float]:
    """CPUs that the control groups around this process grant it, version 2 ("200000 100000", "max ...") or 1."""
    groups = [line.split(":", 2) for line in _text(root / "proc/self/cgroup").splitlines()]
    for _, kinds, path in (group for group in groups if len(group) == 3):
        if kinds and "cpu" not in kinds.split(","):
            continue
        for folder in _upwards(root / "sys/fs/cgroup" / ("cpu" if kinds else ""), path):
            if kinds:
                words = [_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")]
            else:
                words = _text(folder / "cpu.max").split()
            if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
                yield int(words[0]) / int(words[1])


def _upwards(top: Path, path: str) -> Iterator[Path]:
    """A group's folder and those around it. Within a container the path may be the host's, and not be there."""
    folder = top / path.strip("/")
    yield from (folder, *(parent for parent in folder.parents if parent.is_relative_to(top)))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
