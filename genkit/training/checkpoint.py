"""Checkpoints: a folder `step-00000123` each, whole or not there at all, and no code in any file.

    modules/NAME.safetensors   weights and buffers
    ema.safetensors            their averages
    optimizers.pt              optimisers, schedules, gradient scaler
    process-0.pt ...           random states and the task's own state, for each process
    checkpoint.json            step, data position, best so far, recipe, versions; size and SHA-256 of every file above

`.pt` files are read with `weights_only=True`, and read back so before the checkpoint counts. A checkpoint is written
under a temporary name, synced and renamed; one that lacks a file or whose digest differs is no checkpoint.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit.errors import DiskFull, GenkitError, ModelError

__all__ = ["Checkpoint", "examine", "newest", "prune", "steps", "write", "write_state", "write_tensors"]

MANIFEST = "checkpoint.json"
SCHEMA = 1
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder and its manifest."""

    path: Path
    info: dict[str, Any]

    @property
    def step(self) -> int:
        return self.info["step"]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """A safetensors file of the checkpoint, on the CPU."""
        return read_tensors(self.path / name)

    def state(self, name: str) -> dict[str, Any]:
        """A `.pt` file of the checkpoint, on the CPU, read without running code from it. Raises ModelError."""
        try:
            return torch.load(self.path / name, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise ModelError(f"{self.path / name} cannot be read: {str(error).splitlines()[0][:200]}") from None

    def has(self, name: str) -> bool:
        return name in self.info["files"]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises ModelError for a file that is no safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(exist_ok=True)
    # Cloned, because tied weights share memory, which the format forbids; both names are saved and both load.
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, path)


def write_state(path: Path, state: Any) -> None:
    """Saves plain values and tensors; raises GenkitError for what would not load again without running code."""
    torch.save(state, path)
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise GenkitError(
            f"{path.name}: a state_dict holds {found[1] if found else 'an object'}; give tensors, numbers, strings, "
            "lists and dicts"
        ) from None


def write(
    folder: Path,
    info: Mapping[str, Any],
    fill: Callable[[Path], None],
    *,
    main: bool = True,
    barrier: Callable[[], None],
) -> Path:
    """Writes a checkpoint atomically. `fill(path)` writes this process's files; only the main one seals and renames.

    Every process calls this; `barrier` waits for all of them. Raises DiskFull.
    """
    final = folder / f"step-{info['step']:08d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        barrier()
        fill(temporary)
        barrier()
        if main:
            _seal(temporary, info)
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            _sync(folder)
        barrier()
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space for checkpoint {final}; free some and go on with --resume") from None
        raise GenkitError(f"checkpoint {final} cannot be written: {error.strerror or error}") from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def _seal(folder: Path, info: Mapping[str, Any]) -> None:
    """Adds the manifest last, everything synced."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _digest(path)}
        _sync(path)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({**info, "schema": SCHEMA, "files": files}, indent=1) + "\n", "utf-8")
    for path in (manifest, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def steps(folder: Path) -> dict[int, Path]:
    """Every folder that looks like a checkpoint, by step, oldest first."""
    if not folder.is_dir():
        return {}
    found = {
        int(match[1]): path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir()
    }
    return dict(sorted(found.items()))


def newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest complete checkpoint; torn ones are passed over with a note."""
    for path in reversed(steps(folder).values()):
        checkpoint, reason = examine(path)
        if checkpoint:
            return checkpoint
        say(f"{path} is left aside: {reason}")
    return None


def examine(path: Path) -> tuple[Checkpoint | None, str]:
    """A checkpoint, or None and why it is none."""
    try:
        info = json.loads((path / MANIFEST).read_text("utf-8"))
        if info["schema"] != SCHEMA:
            return None, f"its format is {info['schema']!r}, this genkit writes {SCHEMA}"
        for name, expected in info["files"].items():
            file = path / name
            if not file.is_file() or file.stat().st_size != expected["size"]:
                return None, f"{name} is missing or cut short"
            if _digest(file) != expected["sha256"]:
                return None, f"{name} has been damaged (its digest differs)"
        return Checkpoint(path, info), ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, f"{MANIFEST} is missing or unreadable"


def prune(folder: Path, *, keep_last: int, keep_every: int | None, best: int | None) -> list[Path]:
    """Removes all checkpoints but the newest `keep_last`, multiples of `keep_every`, and the best. Returns those."""
    found = steps(folder)
    kept = {*list(found)[-keep_last:], best, *(step for step in found if keep_every and step % keep_every == 0)}
    gone = [path for step, path in found.items() if step not in kept]
    for path in gone:
        # Out of sight first, so that a removal cut off in the middle leaves no torn checkpoint.
        hidden = path.rename(path.with_name(f".{path.name}.old"))
        shutil.rmtree(hidden, ignore_errors=True)
    return gone
