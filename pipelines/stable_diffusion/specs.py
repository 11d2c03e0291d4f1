"""What goes beside a model: LoRA, textual inversion, ControlNet, IP-Adapter, as a recipe or a command line states them.

Each is an object, `{model: detail.safetensors, weight: 0.8}`, or where the model alone says it all a text:
`detail.safetensors` or `detail.safetensors:0.8`. Imports no torch.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from genkit.fields import Hint, ImageFile, Number
from genkit.pipeline import Closed

if TYPE_CHECKING:
    from pipelines.stable_diffusion.pipeline import Params

__all__ = ["Control", "ImagePrompt", "LoRA", "refs"]

Ref = Annotated[str, Field(min_length=1, max_length=1000), Hint(kind="model")]


class LoRA(Closed):
    """Low-rank changes to a model's weights (Hu et al. 2021), and how strongly they are added."""

    model: Ref = Field(description="A file, a folder or a hub id.")
    weight: Annotated[float, Number(-10, 10)] = Field(1.0, description="How strongly it is added; 0 is not at all.")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"(.+):(-?\d+(?:\.\d*)?|-?\.\d+)", value)
        return {"model": found[1], "weight": float(found[2])} if found else {"model": value}


class Control(Closed):
    """A ControlNet (Zhang et al. 2023) and the picture that it follows, already of its kind: edges, depth, pose."""

    model: Ref = Field(description="A folder, a file or a hub id.")
    image: ImageFile = Field(description="The conditioning picture; brought to the size of the result.")
    weight: Annotated[float, Number(0, 10)] = Field(1.0, description="How closely it is followed.")
    start: Annotated[float, Number(0, 1)] = Field(0.0, description="Share of the steps after which it begins.")
    end: Annotated[float, Number(0, 1)] = Field(1.0, description="Share of the steps after which it ends.")


class ImagePrompt(Closed):
    """An IP-Adapter (Ye et al. 2023) and the picture that it takes as a prompt."""

    model: Ref = Field(description="A file, a folder or a hub id.")
    image: ImageFile = Field(description="The picture that says what is wanted.")
    weight: Annotated[float, Number(0, 10)] = Field(1.0, description="How strongly, beside the text.")


def refs(params: Params) -> dict[str, str]:
    """The models that a request names beside its own, by role: {"lora[0]": ..., "control[0]": ...}.

    What its pictures depend on, for a job's identity; what has no effect (a weight of 0) is among it.
    """
    lists: dict[str, list[str]] = {
        "lora": [one.model for one in params.lora],
        "embedding": params.embedding,
        "control": [one.model for one in params.control],
    }
    found = {f"{role}[{i}]": ref for role, named in lists.items() for i, ref in enumerate(named)}
    single = {"image_prompt": params.image_prompt and params.image_prompt.model, "clip": params.clip}
    return found | {role: ref for role, ref in single.items() if ref}
