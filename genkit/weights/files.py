"""Files of tensors: safetensors and pickled checkpoints, in and out.

A safetensors header is checked here before its tensors are touched: it must fit the file, and its tensors must tile the
rest of it without gap or overlap. A pickle is read by torch with `weights_only=True`; what that refuses is refused.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["metadata", "read", "write"]

MAX_HEADER = 32 * 2**20  # the largest in circulation are a few MB
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "params_ema",
    "params",
    "model",
    "generator",
    "netG",
    "net",
    "ema",
    "weights",
    "string_to_param",  # a textual inversion of A1111's
)
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


def read(path: str | Path, *, allow_nan: bool = False) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU; of a folder, those of its one model (shards joined).

    Common wrappings are taken off: {"state_dict": ...} and the like, and the "module." of DataParallel.
    Raises ModelError: no model file, damaged, a pickle with code in it, or (unless allow_nan) not-a-number in it.
    """
    path = Path(path)
    if path.is_dir():
        tensors = {name: t for file in _members(path) for name, t in read(file, allow_nan=True).items()}
    elif _kind(path) == "safetensors":
        tensors = _read_safetensors(path)
    else:
        tensors = _read_pickle(path)
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): t for name, t in tensors.items()}
    if not allow_nan:
        _refuse_nan(path, tensors)
    return tensors


def metadata(path: str | Path) -> dict[str, str]:
    """What a safetensors file says about itself; empty for another model file. Raises ModelError for a damaged one."""
    path = Path(path)
    return _header(path)[1] if _kind(path) == "safetensors" else {}


def write(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes safetensors atomically: the file is there complete, or not at all. Raises DiskFull, MediaError."""
    from genkit.media.files import atomic_write

    # A copy each: safetensors refuses tensors that share memory, and takes no gaps.
    own = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    atomic_write(Path(path), lambda temporary: _save(own, temporary, dict(metadata or {})))


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        path.touch()
        mode = path.stat().st_mode
        save_file(tensors, path, metadata)  # in a file of its own, which nobody else may read
        path.chmod(mode)
        if len(metadata) > 1:
            _sort_metadata(path)
    except SafetensorError as error:  # an error of the disk comes with its number in the text only
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def _sort_metadata(path: Path) -> None:
    """Metadata in the order of its names: safetensors writes another order each time, and digests would differ."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # never longer: it is the same text in another order
            file.seek(8)
            file.write(text.ljust(length))


def _kind(path: Path) -> str:
    """ "safetensors" or "pickle", by the first bytes. Raises ModelError for what is neither."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode) or not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "no ordinary file (a pipe or a device)"
            raise ModelError(f"model {str(path)!r} is {what}; name a file")
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise ModelError(f"model {str(path)!r} {reason}; check the path") from None
    if path.suffix.lower() == ".safetensors" and not start.startswith(b"version https://git-lfs"):
        return "safetensors"
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return "pickle"
    if start[8:9] == b"{":
        return "safetensors"
    raise ModelError(f"{path} is no model file: it is {_guess(start)}; genkit reads safetensors and torch checkpoints")


def _guess(start: bytes) -> str:
    signs = {
        b"version https://git-lfs": "a Git LFS pointer (`git lfs pull` gets the file itself)",
        b"GGUF": "GGUF",
        b"<": "a web page (a download that failed)",
        b"\x89HDF": "a Keras or HDF5 file",
        b"\x08": "ONNX or another protocol buffer",
        b"\x04\x00\x00\x00": "a Lua Torch file",
    }
    return next(
        (name for sign, name in signs.items() if start.startswith(sign)), "empty" if not start else "something else"
    )


def _header(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The entries and the metadata of a safetensors header, both checked."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, MAX_HEADER):
            raise ModelError(f"{path} is damaged: its header claims {length} bytes of a file of {size}; get it again")
        text = file.read(length)
    try:
        header = json.loads(text)
        about = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        _check_tiling(header, size - 8 - length)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {_reason(error)}; get it again") from None
    return header, about


def _reason(error: Exception) -> str:
    return str(error) if type(error) is ValueError else "its header is malformed"


def _check_tiling(header: dict[str, Any], size: int) -> None:
    """Tensors lie end to end, each as long as its shape says, and fill the file."""
    at = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        shape = entry["shape"]
        if entry["dtype"] not in BITS or not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            raise ValueError(f"tensor {name[:80]!r} has no valid type or shape")
        if begin != at:
            raise ValueError(f"tensor {name[:80]!r} {'overlaps another' if begin < at else 'leaves a gap before it'}")
        if (end - begin) * 8 != math.prod(shape) * BITS[entry["dtype"]]:
            raise ValueError(f"tensor {name[:80]!r} is not as long as its shape")
        at = end
    if at != size:
        raise ValueError(f"it has {size} bytes of tensors where its header states {at} (cut short?)")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _header(path)
    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{path} is damaged ({error}); get it again") from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    import pickle

    import torch

    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sparse tensors' unchecked invariants: they are refused below
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        raise ModelError(_refusal(path, str(error))) from None
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise ModelError(f"{path} is damaged ({type(error).__name__}); get it again") from None
    return {name: _checked(path, name, t) for name, t in _unwrapped(path, loaded).items()}


def _refusal(path: Path, reason: str) -> str:
    found = re.search(r"GLOBAL (\S+)|(?:class|global|function) [`']?([\w.]+\.\w+)", reason)
    what = f" ({found[1] or found[2]})" if found else ""
    target = path.with_suffix(".safetensors").name
    return (
        f"{path} is a pickle that holds more than tensors{what} and could run any code, so it is not opened; where you "
        f"trust it, convert it in a sandbox: x = torch.load({path.name!r}, weights_only=False), then "
        f"safetensors.torch.save_file(x['state_dict'] if 'state_dict' in x else x, {target!r})"
    )


def _unwrapped(path: Path, loaded: Any, depth: int = 3) -> dict[str, Tensor]:
    """The dictionary of tensors inside a checkpoint: itself, or what is under one of the usual names."""
    import torch

    if isinstance(loaded, Mapping):
        tensors = {str(name): t for name, t in loaded.items() if isinstance(t, torch.Tensor)}
        if tensors:
            return tensors
        inner = [loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), Mapping)]
        if inner and depth:
            return _unwrapped(path, inner[0], depth - 1)
    keys = ", ".join(map(str, list(loaded)[:5])) if isinstance(loaded, Mapping) else type(loaded).__name__
    raise ModelError(f"{path} holds no named tensors (found: {keys}); save a state_dict, that of one network")


def _checked(path: Path, name: str, tensor: Tensor) -> Tensor:
    import torch

    tensor = tensor.detach()
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ModelError(f"{path}: tensor {name[:80]!r} is sparse, quantised or empty; save it dense")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ModelError(f"{path}: tensor {name[:80]!r} claims more than the file holds; it is damaged or made to harm")
    return tensor


def _members(folder: Path) -> list[Path]:
    """The files that make up the one model in a folder: shards by their index, or the only file there is."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) == 1:
        try:
            names = sorted(set(json.loads(indices[0].read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise ModelError(f"{indices[0]} is damaged; get it again") from None
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ModelError(f"{indices[0]} names files outside its folder")
        return [folder / name for name in names]
    for pattern in ("*.safetensors", "*.pth", "*.pt", "*.bin", "*.ckpt"):
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return files
        if files:
            raise ModelError(f"folder {folder} holds several models ({', '.join(f.name for f in files[:5])}); name one")
    raise ModelError(f"folder {folder} holds no model; name one with a .safetensors file in it")


def _refuse_nan(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            wide = tensor if tensor.element_size() > 1 else tensor.float()  # eight-bit floats have no minimum
            if wide.amin().isnan():
                raise ModelError(
                    f"{path}: tensor {name[:80]!r} holds NaN; the model is broken (its training diverged?)"
                )
