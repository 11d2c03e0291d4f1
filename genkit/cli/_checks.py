"""The checks of `genkit doctor`: each looks at the machine itself, and says in plain words what it found."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from genkit import registry
from genkit._version import __version__

__all__ = ["SIGNS", "Check", "examine", "fit", "owners"]

SIGNS = {"good": "ok  ", "note": "note", "bad": "BAD "}
EXTRAS = {
    "gradio": ("ui", "the page"),
    "ray": ("ray", "several machines"),
    "tensorboard": ("train", "training logs"),
    "onnxruntime": ("onnx", "`genkit export`"),
}
DISTRIBUTION = "genkit-media"

# torchvision's minor version for torch's, as their releases pair up: torch 2.11 with torchvision 0.26, and so on.
TORCHVISION_OFFSET = 15
TORCH_RANGE = ((2, 11), (2, 14))
TORCHAUDIO = (2, 11)  # its last release


@dataclass(frozen=True)
class Check:
    """state: "good", "note" (works, but worth knowing) or "bad" (must be mended; `says` tells how)."""

    name: str
    state: str
    says: str


def examine() -> list[Check]:
    """Every check, in the order in which they are printed."""
    parts: tuple[Callable[[], Iterator[Check]], ...] = (
        _versions,
        _torch_family,
        _devices,
        _soundfont,
        _extras,
        _pipelines,
        _rivals,
        _places,
    )
    return [check for part in parts for check in part()]


def _versions() -> Iterator[Check]:
    yield Check("genkit", "good", f"{__version__} at {Path(__file__).parents[1]}")
    state = "good" if sys.version_info >= (3, 11) else "bad"
    yield Check("python", state, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in ("accelerate", "pydantic", "safetensors", "huggingface-hub", "pillow", "soundfile", "symusic"):
        found = _version(name)
        yield Check(name, "good" if found else "bad", found or f"is missing: pip install {DISTRIBUTION}")


def _torch_family() -> Iterator[Check]:
    names = ("torch", "torchaudio", "torchvision")
    versions = {name: found for name in names if (found := _version(name))}
    for name in names:
        yield _imports(name, versions.get(name))
    for problem in fit(versions):
        yield Check("torch family", "bad", problem)


def _imports(name: str, version: str | None) -> Check:
    """Whether a package really imports: a build for another CUDA is installed all right, and fails here."""
    if version is None:
        return Check(name, "bad", f"is missing: pip install {DISTRIBUTION}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)
    except Exception as error:  # a broken binary raises OSError, RuntimeError, ImportError and others
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        says = f"{version} does not import ({reason}); it was built for another torch: {_reinstall()}"
        return Check(name, "bad", says)
    return Check(name, "good", version)


def fit(versions: Mapping[str, str]) -> list[str]:
    """What does not fit between torch, torchaudio and torchvision of these versions, a sentence each."""
    problems = []
    torch = _minor(versions.get("torch", ""))
    if torch is None:
        return []
    low, high = TORCH_RANGE
    if not low <= torch <= high:
        problems.append(
            f"torch {versions['torch']} is outside {low[0]}.{low[1]} to {high[0]}.{high[1]}, "
            f"the releases that torchaudio 2.11 imports beside: {_reinstall()}"
        )
    vision = _minor(versions.get("torchvision", ""))
    if vision is not None and vision != (0, torch[1] + TORCHVISION_OFFSET):
        wanted = f"0.{torch[1] + TORCHVISION_OFFSET}"
        problems.append(
            f"torchvision {versions['torchvision']} was built for another torch than {versions['torch']}: "
            f"pip install 'torchvision=={wanted}.*'"
        )
    audio = _minor(versions.get("torchaudio", ""))
    if audio is not None and audio != TORCHAUDIO:
        problems.append(f"torchaudio {versions['torchaudio']} is not 2.11: pip install 'torchaudio==2.11.*'")
    builds = {name: _build(text) for name, text in versions.items()}
    if len(set(builds.values())) > 1:
        listing = ", ".join(f"{name} for {build or 'the default build'}" for name, build in builds.items())
        problems.append(f"the builds differ ({listing}); all three must come from the same index: {_reinstall()}")
    return problems


def _minor(version: str) -> tuple[int, int] | None:
    numbers = version.split("+")[0].split(".")
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 and "".join(numbers[:2]).isdecimal() else None


def _build(version: str) -> str:
    """The local part of a version: "cpu", "cu130"; empty for the index's own build."""
    return version.partition("+")[2]


def _reinstall() -> str:
    return f"pip install --force-reinstall {DISTRIBUTION}"


def _devices() -> Iterator[Check]:
    try:
        from genkit.runtime import Runtime, devices

        runtime = Runtime.pick()
        free = runtime.free_memory() / 2**30
        found = runtime.describe()
    except Exception as error:
        yield Check("device", "bad", f"{type(error).__name__}: {error}")
        return
    words = f"{found['device']} ({found['hardware']}, {free:.1f} GB free) in {found['dtype']}"
    yield Check("device", "good", f"{words}; there are {', '.join(devices())}")


def _soundfont() -> Iterator[Check]:
    spec = importlib.util.find_spec("pretty_midi")
    files = sorted(Path(spec.origin).parent.glob("*.sf2")) if spec and spec.origin else []
    if files:
        yield Check("soundfont", "good", f"{files[0].name}, {files[0].stat().st_size / 1e6:.1f} MB")
    else:
        yield Check(
            "soundfont", "bad", "pretty_midi's TimGM6mb.sf2 is missing: pip install --force-reinstall pretty_midi"
        )


def _extras() -> Iterator[Check]:
    for package, (extra, use) in EXTRAS.items():
        found = _version(package)
        remedy = f"not installed; for {use}: pip install '{DISTRIBUTION}[{extra}]'"
        yield Check(package, "good" if found else "note", found or remedy)


def _pipelines() -> Iterator[Check]:
    from genkit.errors import GenkitError

    if not registry.pipelines():
        yield Check("pipelines", "bad", f"none is installed: pip install --force-reinstall {DISTRIBUTION}")
    for name in registry.pipelines():
        try:
            registry.get(name)
        except GenkitError as error:
            yield Check(
                name, "bad", " ".join(str(error).split()).removesuffix("; `genkit doctor` shows what is missing")
            )
        else:
            yield Check(name, "good", f"pipeline of {registry.origin(name)}")


def _rivals() -> Iterator[Check]:
    for package in ("genkit", "pipelines"):
        others = owners(package) - {DISTRIBUTION}
        if others:
            names = ", ".join(sorted(others))
            yield Check(
                package,
                "bad",
                f"the package {package!r} also belongs to {names}; the two cannot share an environment: "
                f"pip uninstall {names}, then pip install --force-reinstall {DISTRIBUTION}",
            )


def owners(package: str) -> set[str]:
    """The distributions that have files in a top-level package."""
    found = set()
    for distribution in metadata.distributions():
        tops = (distribution.read_text("top_level.txt") or "").split()
        if package in tops or any(file.parts[0] == package for file in distribution.files or ()):
            found.add(str(distribution.metadata["Name"]))
    return found


def _places() -> Iterator[Check]:
    try:
        from huggingface_hub import constants, is_offline_mode
    except ImportError:
        return
    cache = Path(constants.HF_HUB_CACHE)
    above = next((folder for folder in (cache, *cache.parents) if folder.exists()), cache)
    writable = os.access(above, os.W_OK)
    says = str(cache) if writable else f"{cache} cannot be written; set HF_HOME to a folder that can"
    yield Check("model cache", "good" if writable else "bad", says)
    offline = (
        "on (HF_HUB_OFFLINE): only models that are here"
        if is_offline_mode()
        else "off: models named by hub id are fetched"
    )
    yield Check("offline mode", "note" if is_offline_mode() else "good", offline)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
