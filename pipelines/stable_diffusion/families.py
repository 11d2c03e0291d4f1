"""The families of diffusion models: what each is made of, and which of diffusers' classes does what with it.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.stable_diffusion.models import Defaults

__all__ = ["FAMILIES", "PARTS", "Family"]

PARTS = (
    "unet",
    "transformer",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "tokenizer",
    "tokenizer_2",
    "tokenizer_3",
    "scheduler",
    "image_encoder",
    "feature_extractor",
)
"""What genkit reads of a model's folder. A safety checker is not among it."""


@dataclass(frozen=True)
class Family:
    """One architecture.

    stem: how the names of its classes in diffusers begin; denoiser: the part that takes the noise away; parts: what a
    model has to have; patch: latent pixels on a side that the denoiser takes at once; defaults: where a model states
    none, with the size in latent pixels.
    """

    words: str
    stem: str
    denoiser: str
    parts: tuple[str, ...]
    patch: int
    defaults: Defaults

    def pipelines(self, *, control: bool = False) -> Mapping[str, str]:
        """diffusers' classes by mode: "text", "image", "inpaint"; control: those that take a ControlNet beside."""
        stem = self.stem + ("ControlNet" if control else "")
        inpaint = "Inpainting" if control and self.stem == "StableDiffusion3" else "Inpaint"
        found = {"text": f"{stem}Pipeline", "image": f"{stem}Img2ImgPipeline", "inpaint": f"{stem}{inpaint}Pipeline"}
        if control and self.stem == "StableDiffusion3":
            del found["image"]  # diffusers has none
        return found


_CLIP = ("text_encoder", "tokenizer")
_COMMON = ("vae", "scheduler")

FAMILIES: Mapping[str, Family] = {
    "sd1": Family(
        "Stable Diffusion 1", "StableDiffusion", "unet", ("unet", *_CLIP, *_COMMON), 1, Defaults(64, 64, 30, 7.5)
    ),
    "sd2": Family(
        "Stable Diffusion 2", "StableDiffusion", "unet", ("unet", *_CLIP, *_COMMON), 1, Defaults(96, 96, 30, 7.5)
    ),
    "sdxl": Family(
        "Stable Diffusion XL",
        "StableDiffusionXL",
        "unet",
        ("unet", "text_encoder_2", "tokenizer_2", *_COMMON),
        1,
        Defaults(128, 128, 30, 5.0),
    ),
    "sd3": Family(
        "Stable Diffusion 3",
        "StableDiffusion3",
        "transformer",
        ("transformer", *_CLIP, "text_encoder_2", "tokenizer_2", *_COMMON),
        2,
        Defaults(128, 128, 28, 5.0),
    ),
    "flux": Family(
        "Flux",
        "Flux",
        "transformer",
        ("transformer", *_CLIP, "text_encoder_2", "tokenizer_2", *_COMMON),
        2,
        Defaults(128, 128, 28, 3.5),
    ),
}
