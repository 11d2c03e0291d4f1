"""Models in diffusers' folder format: what a folder holds, which files of it are needed, and reading its parts.

model_index.json      the class of each part
unet/ or transformer/, vae/, text_encoder/, ...    config.json and *.safetensors; `.fp16.` files are in 16 bits
tokenizer/, scheduler/                             their own small files
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from genkit import weights
from genkit.errors import ModelError
from pipelines.stable_diffusion.families import FAMILIES, PARTS

__all__ = [
    "INDEX",
    "count",
    "index_of",
    "json_of",
    "only_file",
    "part",
    "quiet",
    "read",
    "stated",
    "values",
    "wanted",
    "weight_files",
    "weights_of",
]

INDEX = "model_index.json"
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
STEMS = ("diffusion_pytorch_model", "model")
"""How weight files begin: diffusers' networks, transformers' networks."""
RUNS = ", ".join(family.words for family in FAMILIES.values())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the bars, hints and warnings that diffusers and transformers print while they load."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    levels = [(log, log.get_verbosity()) for log in (diffusers_logging, transformers_logging)]
    bars = transformers_logging.is_progress_bar_enabled()
    for log, _ in levels:
        log.set_verbosity(log.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in levels:
            log.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def only_file(path: Path) -> Path | None:
    """The single file that a path means: itself, or the one model in a folder; None for a folder of diffusers'.

    Raises ModelError for a folder that is neither.
    """
    if not path.is_dir():
        return path
    if (path / INDEX).is_file():
        return None
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1 and not (path / "config.json").is_file():
        return found[0]
    raise ModelError(f"{path} is no diffusion model: it has no {INDEX}{_instead(path, found)}")


def _instead(path: Path, found: Sequence[Path]) -> str:
    config = json_of(path / "config.json", "configuration") if (path / "config.json").is_file() else {}
    kind = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
    if kind:
        return f"; it is one part of a model ({kind}): name the folder around it"
    if (path / "adapter_config.json").is_file() or any("lora" in file.name for file in found):
        return "; it is a LoRA, which goes beside a model: --lora"
    if found:
        return f" and {len(found)} model files ({', '.join(file.name for file in found[:3])}): name one"
    if any(file.suffix in PICKLED for file in path.iterdir()):
        return ", only pickled files, which are not opened; name a model in safetensors"
    return " and no .safetensors; name a folder of diffusers' or a file"


def index_of(folder: Path) -> dict[str, Any]:
    """A folder's model_index.json. Raises ModelError: damaged, or of a kind that genkit does not run."""
    index = json_of(folder / INDEX, "index")
    kind = index.get("_class_name")
    stems = ("StableDiffusion", "Flux", "LatentConsistency")
    if not isinstance(kind, str):
        raise ModelError(f"{folder / INDEX} does not name a pipeline of diffusers'; genkit runs {RUNS}")
    if not kind.startswith(stems):
        raise ModelError(f"{folder} is a model of {kind[:60]}, which genkit does not run; it runs {RUNS}")
    return index


def stated(folder: Path) -> dict[str, list[Any]]:
    """The parts that a folder's model_index.json names, each with its library and class. Raises ModelError."""
    entries = {name: entry for name, entry in index_of(folder).items() if name in PARTS and isinstance(entry, list)}
    found = {name: entry for name, entry in entries.items() if len(entry) == 2 and all(entry)}
    if "image_encoder" not in found:
        found.pop("feature_extractor", None)  # it would serve the safety checker
    return found


def read(folder: Path, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts of a folder by name, networks in a dtype, and the pipeline's settings. Raises ModelError."""
    index, entries = index_of(folder), stated(folder)
    family = FAMILIES[_family(folder, entries, index["_class_name"])]
    for name in family.parts:
        if name not in entries:
            raise ModelError(f"{folder} has no {name} in its {INDEX}; a {family.words} model needs one")
    parts = {name: part(folder, name, entry, dtype) for name, entry in entries.items()}
    settings = {n: value for n, value in index.items() if not n.startswith("_") and not isinstance(value, list)}
    return parts, settings


def _family(folder: Path, parts: Mapping[str, Any], kind: str) -> str:
    if "transformer" in parts:
        return "flux" if kind.startswith("Flux") else "sd3"
    if "unet" not in parts:
        raise ModelError(f"{folder} has neither a unet nor a transformer in its {INDEX}: it makes no pictures")
    return "sdxl" if "text_encoder_2" in parts else "sd1"


def part(folder: Path, name: str, entry: Sequence[Any], dtype: torch.dtype) -> Any:
    """One part, by its library and class."""
    import importlib

    library, kind = map(str, entry[:2])
    known = importlib.import_module(library) if library in ("diffusers", "transformers") else None
    if known is None or not hasattr(known, kind):
        raise ModelError(
            f"{folder}: its {name} is a {library[:40]}.{kind[:60]}, which is neither diffusers' nor transformers': "
            "code that comes with a model is not run"
        )
    if not (folder / name).is_dir():
        raise ModelError(f"{folder} has no {name}/; it is incomplete: get it again")
    loader, options = getattr(known, kind), {"subfolder": name, "local_files_only": True}
    try:
        if not issubclass(loader, torch.nn.Module):
            return loader.from_pretrained(folder, **options)
        variant = _variant(folder, name, dtype)
        model, told = loader.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, variant=variant, output_loading_info=True, **options
        )
    except ModelError:
        raise
    except Exception as error:  # each library, and each of their parts, has its own
        raise ModelError(f"{folder / name} cannot be read: {_first(error)}; get it again") from error
    lacking = sorted(told["missing_keys"])
    if lacking:
        raise ModelError(f"{folder / name} lacks {len(lacking)} weights ({', '.join(lacking[:2])}); get it again")
    return model.eval()


def values(folder: Path, dtype: torch.dtype) -> int:
    """Bytes of a folder's weights in a dtype, by the headers of its files. Raises ModelError."""
    names = [f"{name}/{file}" for name in PARTS for file in weights_of(folder, name, dtype)]
    return sum(count(folder / name) for name in names if name.endswith(".safetensors")) * dtype.itemsize


def weights_of(folder: Path, name: str, dtype: torch.dtype) -> list[str]:
    """The names of the files that hold one part's weights."""
    place = folder / name
    return weight_files([file.name for file in place.iterdir()], dtype) if place.is_dir() else []


def count(file: Path) -> int:
    """How many numbers a safetensors file holds, by its header. Raises ModelError."""
    from safetensors import safe_open

    weights.metadata(file)  # which checks it
    with safe_open(file, "pt") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def _first(error: Exception) -> str:
    """The first line of what a library says."""
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(" .:") if lines else type(error).__name__


def _variant(folder: Path, name: str, dtype: torch.dtype) -> str | None:
    """None or "fp16": which of a part's files are read. Raises ModelError where there are none, or a damaged one."""
    chosen = weights_of(folder, name, dtype)
    if not chosen:
        raise ModelError(_no_weights(folder, name))
    for file in chosen:
        if file.endswith(".safetensors"):
            weights.metadata(folder / name / file)
            continue
        listed = json_of(folder / name / file, "index").get("weight_map")
        for shard in sorted(set(listed.values())) if isinstance(listed, dict) else ():
            if not (folder / name / str(shard)).is_file():
                raise ModelError(f"{folder / name} has no {str(shard)[:80]}; it is incomplete: get it again")
    return "fp16" if ".fp16." in chosen[0] else None


def _no_weights(folder: Path, name: str) -> str:
    if any(file.suffix in PICKLED for file in (folder / name).iterdir()):
        return (
            f"{folder / name} has its weights only pickled, which could run any code, so they are not opened; where "
            "you trust them, convert the folder in a sandbox: diffusers.DiffusionPipeline.from_pretrained(FOLDER, "
            "use_safetensors=False).save_pretrained(NEW)"
        )
    return f"{folder / name} has no weights (.safetensors); it is incomplete: get it again"


def weight_files(names: Sequence[str], dtype: torch.dtype) -> list[str]:
    """Of one part's files those that hold its weights: in 16 bits where that is wanted, or there are no others."""
    plain = _weight_files(names, "")
    half = _weight_files(names, ".fp16")
    return (half or plain) if dtype.itemsize == 2 else (plain or half)


def _weight_files(names: Sequence[str], variant: str) -> list[str]:
    stem, sign = f"({'|'.join(STEMS)})", re.escape(variant)
    whole = re.compile(rf"{stem}{sign}\.safetensors")
    shard = re.compile(rf"{stem}{sign}-\d+-of-\d+(?:\.safetensors)|{stem}-\d+-of-\d+{sign}\.safetensors")
    listing = re.compile(rf"{stem}\.safetensors\.index{sign}\.json|{stem}{sign}\.safetensors\.index\.json")
    found = sorted(name for name in names if whole.fullmatch(name))
    if found:
        return found[:1]
    return sorted(name for name in names if shard.fullmatch(name) or listing.fullmatch(name))


def wanted(files: Sequence[str], dtype: torch.dtype, name: str) -> list[str]:
    """Of a hub repository's files those that a run in this dtype reads: no second precision, no other format, no safety
    checker. name: the model's, for the ModelError where there is none in it."""
    if INDEX not in files:
        single = [name for name in files if "/" not in name and name.endswith(".safetensors")]
        if len(single) == 1:
            return single
        some = f": name one of its files, as {name}:{single[0]}" if single else " and no .safetensors; name another"
        raise ModelError(f"hub model {name!r} has no {INDEX}{some}")
    found = [INDEX]
    for part in PARTS:
        own = [name.removeprefix(f"{part}/") for name in files if name.startswith(f"{part}/") and name.count("/") == 1]
        small = [name for name in own if name.endswith((".json", ".txt", ".model")) and ".index" not in name]
        found += [f"{part}/{name}" for name in (*small, *weight_files(own, dtype))]
    return found


def json_of(path: Path, what: str = "configuration") -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError; what: what the file is."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no JSON"
        raise ModelError(f"{path} cannot be read ({reason}): a damaged {what}; get it again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} is damaged: its JSON is no object; get it again")
    return found
