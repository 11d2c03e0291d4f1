"""What `inspect` says of a model: its file, its tensors, and what the pipelines make of it, each of which is asked."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit import registry
from genkit.errors import GenkitError, ModelError

if TYPE_CHECKING:
    from genkit.weights import Model

__all__ = ["describe", "find", "rows"]

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def find(name: Path) -> Path | None:
    """The model that is meant: a folder, a file by its suffix, or an alias; None for anything else.

    Raises ModelError for an alias whose model is not on this machine, and for one that is nearly spelt.
    """
    if name.exists():
        return name if name.is_dir() or name.suffix.lower() in SUFFIXES else None
    from genkit import weights

    aliases = {alias: model for pipeline in registry.pipelines() for alias, model in _models(pipeline).items()}
    close = difflib.get_close_matches(str(name), aliases, 1, cutoff=0.8)
    if not close:
        return None
    if close[0] != str(name):
        raise ModelError(f"no file or model is called {str(name)!r}: did you mean {close[0]!r}?")
    remote = not aliases[close[0]].ref.startswith("shipped:")
    if remote and not weights.here(str(name), aliases):
        raise ModelError(f"model {str(name)!r} is not on this machine yet; the first run with it fetches it")
    return weights.locate(str(name), aliases)


def _models(pipeline: str) -> Mapping[str, Model]:
    try:
        return registry.get(pipeline).models
    except GenkitError:  # one broken pipeline does not hide the others
        return {}


def describe(path: Path) -> dict[str, Any]:
    """What is known of a model, as JSON values. Raises ModelError for what is none or is damaged."""
    from genkit import weights

    facts: dict[str, Any] = {"file": str(path), "kind": "model"}
    if path.is_dir():
        files = (*path.glob("*"), *path.glob("*/*"))  # a model of several parts has a folder for each
        if not any(file.suffix.lower() in SUFFIXES for file in files):
            raise ModelError(f"folder {str(path)!r} holds no model; name a picture, a sound, a MIDI file or a model")
    else:
        tensors = weights.read(path)
        facts |= {
            "bytes": path.stat().st_size,
            "tensors": len(tensors),
            "values": sum(tensor.numel() for tensor in tensors.values()),
            "types": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
            "looks_like": weights.looks_like(tensors),
        }
    facts["pipelines"], facts["asked"] = _ask(path)
    if facts["pipelines"] or not path.is_dir():  # a folder that nobody knows may hold anything, and a lot of it
        facts["content"] = weights.digest(path)
    return facts


def _ask(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What the pipelines that know the model say of it, and what each of the others answered."""
    known, others = {}, {}
    for name in registry.pipelines():
        try:
            said = registry.get(name).describe_model(path)
        except GenkitError as error:
            others[name] = str(error)
            continue
        if said is None:
            others[name] = "not one of its models"
        else:
            known[name] = said
    return known, others


def rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The same in words, a row each."""
    found = [("file", facts["file"])]
    if "tensors" in facts:
        size = f"{facts['tensors']} tensors, {facts['values']:,} values ({', '.join(facts['types'])})"
        found.append(("is", f"model, {size}, {facts['bytes']:,} bytes"))
    if "content" in facts:
        found.append(("content", facts["content"].replace(":", " ", 1)))
    for name, said in facts["pipelines"].items():
        found.append(("model of", name))
        found += [(f"  {key}", _words(value)) for key, value in said.items()]
    if not facts["pipelines"]:
        seen = f" (it looks like {facts['looks_like']})" if facts.get("looks_like") else ""
        found.append(("model of", f"no pipeline installed{seen}; these were asked:"))
        found += [(f"  {name}", answer) for name, answer in facts["asked"].items()]
    return found


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(one)}" for name, one in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
