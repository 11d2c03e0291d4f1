"""What goes beside a model: LoRA, textual inversion, ControlNet, IP-Adapter, as a recipe or a command line states them.

Each is an object, `{model: detail.safetensors, weight: 0.8}`, or where the model alone says it all a text:
`detail.safetensors` or `detail.safetensors:0.8`. On a command line an object is written as JSON. Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from genkit.fields import ImageFile, ModelRef, Number
from genkit.pipeline import Closed

if TYPE_CHECKING:
    from pipelines.stable_diffusion.pipeline import Params

__all__ = ["Control", "ImagePrompt", "LoRA", "LoRAText", "refs"]


def _object(value: Any) -> Any:
    """What a text of JSON states; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError('give an object: {"model": ..., "image": ...}') from None


class LoRA(Closed):
    """Low-rank changes to a model's weights (Hu et al. 2021), and how strongly they are added."""

    model: ModelRef = Field(description="A file, a folder or a hub id.")
    weight: Annotated[float, Number(-10, 10)] = Field(1.0, description="How strongly it is added; 0 is not at all.")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str) or value.lstrip().startswith("{"):
            return _object(value)
        found = re.fullmatch(r"(.+):(-?\d+(?:\.\d*)?|-?\.\d+)", value)
        return {"model": found[1], "weight": float(found[2])} if found else {"model": value}


LoRAText: TypeAlias = Annotated[LoRA, BeforeValidator(lambda value: value, json_schema_input_type=LoRA | str)]
"""The same, whose schema tells editors that a text will do."""


class Control(Closed):
    """A ControlNet (Zhang et al. 2023) and the picture that it follows, already of its kind: edges, depth, pose."""

    model: ModelRef = Field(description="A folder, a file or a hub id.")
    image: ImageFile = Field(description="The conditioning picture; brought to the size of the result.")
    weight: Annotated[float, Number(0, 10)] = Field(1.0, description="How closely it is followed.")
    start: Annotated[float, Number(0, 1)] = Field(0.0, description="Share of the steps after which it begins.")
    end: Annotated[float, Number(0, 1)] = Field(1.0, description="Share of the steps after which it ends.")

    _from_text = model_validator(mode="before")(_object)


class ImagePrompt(Closed):
    """An IP-Adapter (Ye et al. 2023) and the picture that it takes as a prompt."""

    model: ModelRef = Field(description="A file, a folder or a hub id.")
    image: ImageFile = Field(description="The picture that says what is wanted.")
    weight: Annotated[float, Number(0, 10)] = Field(1.0, description="How strongly, beside the text.")

    _from_text = model_validator(mode="before")(_object)


def refs(params: Params) -> dict[str, str]:
    """The models that a request names beside its own, by their place: {"lora[0].model": ..., "embedding[0]": ...}.

    What its pictures depend on, for a job's identity; what has no effect (a weight of 0) is among it.
    """
    lists: dict[str, Sequence[LoRA | Control]] = {"lora": params.lora, "control": params.control}
    found = {f"{name}[{i}].model": one.model for name, named in lists.items() for i, one in enumerate(named)}
    found |= {f"embedding[{i}]": ref for i, ref in enumerate(params.embedding)}
    found |= {"image_prompt.model": params.image_prompt.model} if params.image_prompt else {}
    return found | ({"clip": params.clip} if params.clip and params.best_of else {})
