"""Text to pictures, pictures to pictures, inpainting and outpainting, by Stable Diffusion and its kin.

What is given says what is done: a prompt alone makes a picture; with `image` that picture is changed; with `mask_image`
only its white part; with `expand` it is continued beyond its edges. No torch is imported here; `run` opens the painter.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

import genkit.pipeline
from genkit.fields import Hint, ImageFile, ModelRef, Number, Pixels, Prompt, Slider, Steps
from genkit.pipeline import Output, Progress
from pipelines.stable_diffusion.models import DEFAULT, MODELS
from pipelines.stable_diffusion.schedulers import SCHEDULERS, SPACINGS, check_name
from pipelines.stable_diffusion.specs import Control, ImagePrompt, LoRAText, refs

if TYPE_CHECKING:
    from genkit.runtime import Runtime

__all__ = ["StableDiffusion"]


def _listed(value: Any) -> Any:
    return value if value is None or isinstance(value, list | tuple) else [value]


class Params(genkit.pipeline.Params):
    """What one request is made from. What is left out is the model's own default (`genkit models` lists them)."""

    aliases: ClassVar[Mapping[str, str]] = {  # A1111's names
        "steps": "num_inference_steps",
        "cfg_scale": "guidance_scale",
        "sampler": "scheduler",
        "denoising_strength": "strength",
        "n_iter": "num_images_per_prompt",
        "batch_size": "num_images_per_prompt",
    }

    prompt: Annotated[Prompt, Hint(section="main", short="p")] = Field(
        description="What to make. (word:1.3) counts for more, (word:0.7) for less; of any length."
    )
    negative_prompt: Annotated[Prompt, Hint(section="main", short="n")] = Field(
        "", description="What to keep away from; needs guidance_scale over 1."
    )
    image: Annotated[ImageFile | None, Hint(section="main", short="i")] = Field(
        None, description="A picture to begin from."
    )
    mask_image: Annotated[ImageFile | None, Hint(section="main")] = Field(
        None, description="Where the picture is to be made anew: white is made, black is kept."
    )
    expand: Annotated[list[Annotated[int, Pixels(0, 4096)]] | None, BeforeValidator(_listed), Hint(section="main")] = (
        Field(None, max_length=4, description="Outpainting: margins to add, for all sides or left, top, right, bottom.")
    )
    strength: Annotated[float | None, Slider(0, 1), Hint(section="main")] = Field(
        None, description="How much of the picture is given up; 1 keeps nothing. [0.8; with a mask 1]"
    )
    width: Annotated[int | None, Pixels(8, 8192), Hint(section="main", short="W")] = Field(
        None, description="Of the result (before upscale). By default the model's own, or the picture's."
    )
    height: Annotated[int | None, Pixels(8, 8192), Hint(section="main", short="H")] = Field(
        None, description="Of the result (before upscale). By default the model's own, or the picture's."
    )
    num_images_per_prompt: Annotated[int, Number(1, 64), Hint(section="main", short="N")] = Field(
        1, description="Pictures to make; picture i has seed + i."
    )
    num_inference_steps: Annotated[int | None, Steps(1, 1000), Hint(section="main")] = Field(
        None, description="Steps from noise to picture. By default the model's own."
    )
    guidance_scale: Annotated[float | None, Slider(0, 50), Hint(section="main")] = Field(
        None,
        description="How closely the prompt is followed; up to 1 there is no guidance. By default the model's own.",
    )
    scheduler: Annotated[
        Annotated[str, Field(max_length=60), AfterValidator(check_name)] | None, Hint(section="sampling")
    ] = Field(
        None,
        description="The sampler, as in A1111 or by the name of diffusers' class: "
        f"{', '.join(SCHEDULERS)}; after it how its steps are spaced: {', '.join(SPACINGS)}. "
        'For example "dpm++ 2m karras".',
    )
    clip_skip: Annotated[int, Number(0, 12), Hint(section="sampling")] = Field(
        0,
        description="Layers left out at the end of the text encoder, as diffusers counts them (A1111's number less 1).",
    )
    best_of: Annotated[int | None, Number(2, 64), Hint(section="sampling")] = Field(
        None, description="Make this many and keep the num_images_per_prompt that CLIP finds nearest to the prompt."
    )
    clip: Annotated[ModelRef | None, Hint(section="sampling")] = Field(
        None, description="The CLIP model that best_of judges by: a folder or a hub id. By default the model's own."
    )
    seamless: Annotated[Literal["x", "y", "both"] | None, Hint(section="sampling")] = Field(
        None, description="Make a picture that continues itself when it is laid side by side."
    )
    upscale: Annotated[float | None, Number(1, 4), Hint(section="upscaling")] = Field(
        None, description="High-resolution fix: make it small, enlarge it by this factor, refine."
    )
    upscale_strength: Annotated[float, Slider(0.05, 1), Hint(section="upscaling")] = Field(
        0.5, description="How much the refining may change."
    )
    lora: Annotated[list[LoRAText], BeforeValidator(_listed), Hint(section="additions", kind="model")] = Field(
        default=[], max_length=16, description="LoRA files or hub ids, as FILE or FILE:WEIGHT."
    )
    embedding: Annotated[
        list[ModelRef],
        BeforeValidator(_listed),
        Hint(section="additions", kind="model"),
    ] = Field(
        default=[], max_length=64, description="Textual-inversion files; their name is the word to write in the prompt."
    )
    control: Annotated[list[Control], BeforeValidator(_listed), Hint(section="additions")] = Field(
        default=[], max_length=8, description='ControlNets: {"model": ..., "image": ..., "weight": 1}.'
    )
    image_prompt: Annotated[ImagePrompt | None, Hint(section="additions")] = Field(
        None, description='An IP-Adapter: {"model": ..., "image": ..., "weight": 1}.'
    )

    @model_validator(mode="after")
    def _together(self) -> Params:
        if self.image is None:
            for name in ("mask_image", "expand", "strength"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} is for changing a picture, and image is missing: give one, or leave it out"
                    )
        if self.expand is not None:
            self._check_margins(self.expand)
        if self.upscale is not None and self.masked:
            raise ValueError("upscale would change what a mask keeps: leave it out, or enlarge the result afterwards")
        if self.best_of is not None and self.best_of < self.num_images_per_prompt:
            raise ValueError(
                f"best_of {self.best_of} is less than num_images_per_prompt {self.num_images_per_prompt}: "
                "make at least as many as are kept"
            )
        return self

    def _check_margins(self, margins: Sequence[int]) -> None:
        if len(margins) not in (1, 4):
            raise ValueError(
                f"expand has {len(margins)} margins: give one for all sides, or four: left, top, right and bottom"
            )
        if not any(margins):
            raise ValueError("expand adds nothing: give a margin over 0 px")
        if self.width is not None or self.height is not None:
            raise ValueError("width and height follow from image and expand: leave them out")

    @property
    def masked(self) -> bool:
        """Whether only a part of the picture is made."""
        return self.mask_image is not None or self.expand is not None

    @property
    def margins(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, px."""
        left, top, right, bottom = [*(self.expand or [0])] * (1 if len(self.expand or []) == 4 else 4)
        return left, top, right, bottom

    def shape(self) -> str:
        """The same for requests that may go through a model together: all but prompts, seeds and pictures."""
        mode = {"image": self.image is not None, "masked": self.masked}
        own = {"seed", "prompt", "negative_prompt", "image", "mask_image", "num_images_per_prompt", "best_of"}
        return f"{mode} {self.model_dump_json(exclude=own)}"


Item: TypeAlias = Params  # what `Params` means inside the class, where the name is its own


class StableDiffusion(genkit.pipeline.Pipeline):
    """Latent diffusion. See `Params` for what a call takes."""

    name = "stable-diffusion"
    Params = Params
    produces = "image"
    models = MODELS
    default_model = DEFAULT
    together = 64
    examples: ClassVar[Sequence[str]] = (
        'genkit stable-diffusion --prompt "red apple, noto style" --seed 7 -N 4 -o apple.png',
        'genkit stable-diffusion -p "a fox in the snow" --model sdxl-turbo -o fox.png',
        'genkit stable-diffusion -p "an oil painting" -i photo.jpg --strength 0.6 --model sd-1.5 -o painting.png',
        'genkit stable-diffusion -p "a hat" -i photo.jpg --mask-image mask.png --model sd-inpainting -o hat.png',
    )
    trainings: ClassVar[Mapping[str, str]] = {
        "clip": "pipelines.stable_diffusion.train.clip:CLIP",
        "diffusion-unet": "pipelines.stable_diffusion.train.unet:UNet",
        "diffusion-vae": "pipelines.stable_diffusion.train.vae:VAE",
        "lora": "pipelines.stable_diffusion.train.lora:LoRA",
        "textual-inversion": "pipelines.stable_diffusion.train.inversion:TextualInversion",
    }
    evaluations: ClassVar[Mapping[str, str]] = {
        "text-to-image": "pipelines.stable_diffusion.evaluate:TextToImageEvaluation"
    }

    def __init__(self, model: str | Path | None, runtime: Runtime) -> None:
        super().__init__(model, runtime)
        from pipelines.stable_diffusion.painting import Painter

        self.painter = Painter(model or DEFAULT, runtime)

    @classmethod
    def load(cls, model: str | Path | None, runtime: Runtime) -> StableDiffusion:
        """model: an alias, a hub id, a folder of diffusers' or a single .safetensors file; None for `emoji`.

        Raises ModelError."""
        return cls(model, runtime)

    @classmethod
    def batch_key(cls, params: Any) -> Hashable:
        """Requests of one shape go together, whatever their prompts, seeds and pictures."""
        assert isinstance(params, Params)
        return params.shape()

    def at_once(self, params: Any) -> int:
        """As many as are sampled together. One in float32, which is for who wants every bit."""
        return self.painter.at_once(params)

    def relieve(self) -> str | None:
        """Tiles, then the parts of the model in turns on the device, then its layers."""
        return self.painter.relieve()

    @classmethod
    def model_refs(cls, model: str | None, params: genkit.pipeline.Params) -> dict[str, str]:
        """The model, and what is added to it, each by its place in the parameters: "lora[0].model"."""
        assert isinstance(params, Params)
        return {"model": str(model or cls.default_model), **refs(params)}

    @classmethod
    def describe_model(cls, path: Path) -> dict[str, Any] | None:
        from pipelines.stable_diffusion.describing import describe

        return describe(path)

    def run(self, batch: Sequence[Item], progress: Progress) -> list[Output]:
        """One Output for each request, with its pictures. Progress counts sampling steps."""
        return self.painter.paint(batch, progress)
