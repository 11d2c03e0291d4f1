"""What a model reference means, where it lies, and its digest.

    alias                             an entry of the pipeline's `models`
    shipped:PACKAGE/FILE              a file inside an installed package
    torchvision:NAME[@WEIGHTS]        a checkpoint of torchvision's, the default one or a named one
    [hub:]ORG/NAME[@REVISION][:FILE]  a repository of the Hugging Face hub, or one file of it
    anything else                     a file or a folder

A file or folder that exists wins over a hub id of the same spelling.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from genkit.errors import ModelError
from genkit.fields import expanded
from genkit.weights import remote

__all__ = ["Model", "digest", "here", "locate"]

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".t7", ".onnx", ".gguf", ".pkl", ".npz", ".h5")


@dataclass(frozen=True)
class Model:
    """An alias's entry, as `genkit models` lists it.

    ref: see the module's docstring; size: as printed ("1.7 MB"); licence: its SPDX name, or the licence's own;
    needs: what a machine must have ("a GPU with 8 GB"), empty for nothing.
    """

    ref: str
    summary: str
    size: str
    licence: str
    needs: str = ""


def locate(
    ref: str | Path,
    models: Mapping[str, Model] | None = None,
    *,
    patterns: Sequence[str] | remote.Choice | None = None,
) -> Path:
    """The file or folder of a model on this machine; a remote one is fetched first.

    patterns: the files of a hub repository that are wanted, as globs, or a function that picks them from their list
    (default: safetensors, configuration, tokeniser). Raises ModelError.
    """
    kind, name = _resolve(ref, models or {})
    if kind == "hub":
        return remote.hub(name, patterns)
    if kind == "torchvision":
        path = remote.torchvision(name)
        _verify(path)
        return path
    return _shipped(name) if kind == "shipped" else Path(name)


def here(ref: str | Path, models: Mapping[str, Model] | None = None) -> bool:
    """Whether a model is on this machine already. Raises ModelError for a reference that means nothing."""
    kind, name = _resolve(ref, models or {})
    if kind == "hub":
        return remote.cached_hub(name) is not None
    if kind == "torchvision":
        return remote.torchvision_file(name).is_file()
    return _exists(_shipped_path(name)) if kind == "shipped" else True


def digest(ref: str | Path, models: Mapping[str, Model] | None = None) -> str:
    """What a model's content is known by: "sha256:..." of a file or folder, "hub:ORG/NAME@COMMIT" for a hub model.

    Nothing is fetched. The hub is asked for the commit of a model that was never fetched, unless offline; so the digest
    is the same before and after fetching. Raises ModelError.
    """
    kind, name = _resolve(ref, models or {})
    if kind == "hub":
        return remote.hub_digest(name)
    if kind == "torchvision":
        return f"torchvision:{remote.torchvision_file(name).name}"  # the name ends in the content's hash
    return _content(_shipped(name) if kind == "shipped" else Path(name))


def _resolve(ref: str | Path, models: Mapping[str, Model]) -> tuple[str, str]:
    """(kind, name): kind is "shipped", "torchvision", "hub" or "path"; a path exists."""
    text = str(ref)
    if text in models:
        text = models[text].ref
    if not text or "\x00" in text:
        raise ModelError(f"{text!r} is no model: give an alias, a hub id, a folder or a file")
    kind, _, rest = text.partition(":")
    if kind in ("shipped", "torchvision", "hub"):
        return kind, rest
    path = expanded(text)
    if _exists(path):
        return "path", str(path)
    if _is_path(text):
        raise ModelError(f"model {text!r} does not exist; check the path")
    if re.fullmatch(remote.HUB_ID, text) and "/" in text:
        folder = text.split("/")[0]
        if Path(folder).is_dir():
            raise ModelError(f"model {text!r} is not in the folder {folder!r}; write hub:{text} if the hub is meant")
        return "hub", text
    close = difflib.get_close_matches(text, models, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"the aliases here are {', '.join(models) or 'none'};"
    raise ModelError(
        f"no model is called {text[:80]!r}: {hint} a hub id has the form org/name, a file ends in .safetensors"
    )


def _exists(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ModelError(f"model {str(path)!r} is no ordinary file (a pipe or a device); save it as a file first")
    return True


def _is_path(text: str) -> bool:
    head = re.split("[@:]", text)[0]  # org/name@refs/pr/1:unet/model.safetensors is no path
    return text.startswith(("/", "./", "../", "~")) or head.lower().endswith(SUFFIXES) or head.count("/") > 1


def _shipped_path(name: str) -> Path:
    package, _, file = name.partition("/")
    top, *below = package.split(".")
    try:  # a reference may be a stranger's word: nothing that it names is imported
        spec = importlib.util.find_spec(top) if package.replace(".", "").isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    home = next(iter(spec.submodule_search_locations or ()), None) if spec else None
    if home is None or not (folder := Path(home, *below)).is_dir():
        raise ModelError(f"model 'shipped:{name}' is in package {package!r}, which is not installed")
    if ".." in Path(file).parts or Path(file).is_absolute():
        raise ModelError(f"model 'shipped:{name}' points out of its package")
    return folder / file


def _shipped(name: str) -> Path:
    path = _shipped_path(name)
    if not _exists(path):
        raise ModelError(f"the shipped model {path} is missing; install genkit-media again")
    return path


def _verify(path: Path) -> None:
    """A torchvision file's name ends in the first signs of its sha256 (`vgg19-dcbb9e9d.pth`)."""
    stated = path.stem.rpartition("-")[2]
    if not _content(path).startswith(f"sha256:{stated}"):
        raise ModelError(
            f"{path} is damaged: its content is not what its name says; delete it, and it is fetched again"
        )


def _content(path: Path) -> str:
    """The sha256 of a file; of a folder, that of the names and digests of its files."""
    try:
        if not path.is_dir():
            state = path.stat()
            return "sha256:" + _sha256(path.resolve(), state.st_size, state.st_mtime_ns)
        files = sorted(
            p for p in path.rglob("*") if p.is_file() and not any(n.startswith(".") for n in p.parts[len(path.parts) :])
        )
        listing = "".join(f"{file.relative_to(path).as_posix()}\0{_content(file)}\n" for file in files)
    except OSError as error:
        raise ModelError(f"model {str(path)!r} cannot be read ({error.strerror}); check its permissions") from None
    return "sha256:" + hashlib.sha256(listing.encode()).hexdigest()


@lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, modified: int) -> str:
    """Size and time are there to make the cache forget a file that was changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
