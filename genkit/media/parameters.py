"""The text of parameters in the form that AUTOMATIC1111's web UI began and many tools read.

    a fox in the snow
    Negative prompt: blurry
    Steps: 20, CFG scale: 7, Seed: 42, Size: 512x512, Model: emoji, Version: genkit 0.1.0

The last line holds names and values; a value with a comma, a colon or a line break is quoted as JSON is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["SETTLED", "parse", "text"]

MAX_CHARS = 1 << 20

# our name -> theirs; the order is theirs too
_THEIRS = {
    "num_inference_steps": "Steps",
    "steps": "Steps",
    "scheduler": "Sampler",
    "sampler": "Sampler",
    "guidance_scale": "CFG scale",
    "seed": "Seed",
    "strength": "Denoising strength",
    "clip_skip": "Clip skip",
    "upscale": "Hires upscale",
}
_OURS = {theirs: ours for ours, theirs in reversed(_THEIRS.items())}
SETTLED = ("num_inference_steps", "scheduler", "guidance_scale", "strength")
"""What other tools look for, stated or not."""
_LAYER = 1  # theirs counts the last layer too: 1 skips none
_FIRST = ("Steps", "Sampler", "CFG scale", "Seed", "Size", "Model")
_NEGATIVE = "Negative prompt:"
# A name has an end, and nothing stands open before it: a text of any length is read in one go.
_PAIR = re.compile(r'(\w[\w \-/.]{0,99}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


def text(params: Mapping[str, Any], *, size: tuple[int, int] | None, model: str | None, version: str) -> str:
    """params: as recorded; size: width and height of the picture, if it is one; version: "genkit 0.1.0"."""
    values: dict[str, Any] = {_THEIRS.get(name, name): value for name, value in params.items()}
    if isinstance(values.get("Clip skip"), int):
        values["Clip skip"] += _LAYER
    lines = [str(values.pop("prompt"))] if values.get("prompt") else []
    if values.get("negative_prompt"):
        lines.append(f"{_NEGATIVE} {values['negative_prompt']}")
    values.pop("negative_prompt", None)
    if size:
        values["Size"] = f"{size[0]}x{size[1]}"
        values = {name: value for name, value in values.items() if name not in ("width", "height")}
    if model:
        values["Model"] = model
    ordered = {name: values.pop(name) for name in _FIRST if name in values} | values | {"Version": version}
    return "\n".join([*lines, ", ".join(f"{name}: {_value(value)}" for name, value in ordered.items())])


def _value(value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    quoted = isinstance(value, list | dict) or re.search(r'[,:\n"]', shown)
    return json.dumps(shown, ensure_ascii=False) if quoted else shown


def parse(text: str) -> dict[str, Any]:
    """A text by any tool, as a dict: `prompt`, `negative_prompt`, the names that genkit has too as genkit spells them
    (`seed`, `num_inference_steps`, `scheduler`, `guidance_scale`, `strength`, `clip_skip`, `upscale`, `width`,
    `height`), and the others as they stand.

    Numbers become numbers. Never raises; what is not of that form becomes the prompt.
    """
    lines = text[:MAX_CHARS].strip().split("\n")
    pairs = _PAIR.findall(lines[-1])
    # Three pairs, as the original parser asks: a prompt may well end in a line with a colon in it.
    if len(pairs) >= 3 or (len(lines) == 1 and re.match(r"(Steps|Seed): ", lines[0])):
        lines.pop()
    else:
        pairs = []
    result: dict[str, Any] = {}
    prompt, _, negative = "\n".join(lines).partition(_NEGATIVE)
    if prompt.strip():
        result["prompt"] = prompt.strip()
    if negative.strip():
        result["negative_prompt"] = negative.strip()
    for name, value in pairs:
        size = re.fullmatch(r"(\d{1,7})x(\d{1,7})", value.strip())
        if name == "Size" and size:
            result |= {"width": int(size[1]), "height": int(size[2])}
        else:
            result[_OURS.get(name, name)] = _parsed(value.strip())
    if isinstance(result.get("clip_skip"), int):
        result["clip_skip"] -= _LAYER
    return result


def _parsed(value: str) -> Any:
    """A quoted text, a number that JSON knows, or the words themselves."""
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    if isinstance(parsed, str):  # what was quoted may be a list or an object of its own
        try:
            inner = json.loads(parsed)
        except (ValueError, RecursionError):
            return parsed
        return inner if isinstance(inner, list | dict) else parsed
    return parsed if isinstance(parsed, int | float | bool) else value
