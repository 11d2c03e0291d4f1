"""`best_of`: of many pictures those that CLIP finds nearest to the prompt (Radford et al. 2021).

A picture's score is the cosine between its embedding and the prompt's. The model's own encoders are used where it
brings an image encoder in the space of its text encoder, as `emoji` does; else a CLIP that is named by `clip`, a folder
or a hub id of transformers' format.

B: pictures; D: width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genkit import weights
from genkit.errors import InputError, ModelError
from pipelines.stable_diffusion.weighting import plain

if TYPE_CHECKING:
    from genkit.media.image import Image
    from genkit.runtime import Runtime
    from pipelines.stable_diffusion.loading import Model

__all__ = ["Judge", "best"]

FILES = ["*.safetensors", "*.json", "*.txt"]
REMEDY = "clip: openai/clip-vit-large-patch14 (1.7 GB, fetched once), or a folder"
AT_ONCE = 16  # pictures looked at together


@dataclass(frozen=True)
class Judge:
    """Two encoders that give a text and its picture the same direction."""

    text: Any
    """CLIPTextModel, or CLIPTextModelWithProjection."""
    image: Any
    """CLIPVisionModelWithProjection."""
    tokenizer: Any
    processor: Any

    @classmethod
    def of(cls, model: Model, clip: str | None) -> Judge:
        """The one named, else the model's own. Raises InputError where there is neither, ModelError."""
        if clip is not None:
            return _read(weights.locate(clip, patterns=FILES), model.runtime)
        pipe = model.pipe
        text, image = getattr(pipe, "text_encoder", None), getattr(pipe, "image_encoder", None)
        if text is None or image is None or not _share_a_space(text.config, image.config):
            raise InputError(f"best_of needs CLIP to judge by, and {model.path} brings none of its own: give {REMEDY}")
        return cls(text, image, pipe.tokenizer, pipe.feature_extractor)

    @torch.no_grad()
    def scores(self, pictures: Sequence[Image], text: str) -> list[float]:
        """For each picture the cosine with a prompt, -1..1; its weights and brackets do not count."""
        with_text = F.normalize(self.embedded(plain(text)), dim=-1)
        parts = (pictures[i : i + AT_ONCE] for i in range(0, len(pictures), AT_ONCE))
        with_pictures = F.normalize(torch.cat([self.seen(part) for part in parts]), dim=-1)
        return (with_pictures @ with_text[0]).tolist()

    def embedded(self, text: str) -> Tensor:
        """[1, D], float32 on the CPU; what is longer than the encoder's places is cut."""
        given = self.tokenizer(text, truncation=True, max_length=self.tokenizer.model_max_length, return_tensors="pt")
        made: Any = self.text(given.input_ids.to(self.text.device))
        embeds = getattr(made, "text_embeds", None)  # where there is a projection
        return (made.pooler_output if embeds is None else embeds).float().cpu()

    def seen(self, pictures: Sequence[Image]) -> Tensor:
        """[B, D], float32 on the CPU."""
        pixels = self.processor([picture.pil for picture in pictures], return_tensors="pt").pixel_values
        return self.image(pixels.to(self.image.device, self.image.dtype)).image_embeds.float().cpu()


def best(scores: Sequence[float], keep: int) -> list[int]:
    """The places of the highest scores, the best first; of equal ones the earlier."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:keep]


def _share_a_space(text: Any, image: Any) -> bool:
    """Whether a text encoder without a projection ends in the space that an image encoder projects to."""
    return text.hidden_size == text.projection_dim == image.projection_dim


def _read(path: Path, runtime: Runtime) -> Judge:
    """A CLIP of transformers' format. Raises ModelError."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor
    from transformers import CLIPTextModelWithProjection as TextModel
    from transformers import CLIPVisionModelWithProjection as ImageModel

    try:
        config: Any = CLIPConfig.from_pretrained(path, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        processor = CLIPImageProcessor.from_pretrained(path, local_files_only=True)
        if config.model_type != "clip":
            raise ValueError(f"it is a {config.model_type}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} is no CLIP model ({' '.join(str(error).split())[:100]}); give {REMEDY}") from None
    config.text_config.projection_dim = config.vision_config.projection_dim = config.projection_dim
    tensors = {name: t for name, t in weights.read(path).items() if not name.endswith("position_ids")}
    text, image = TextModel(config.text_config), ImageModel(config.vision_config)
    for module, own in ((text, ("text_model.", "text_projection.")), (image, ("vision_model.", "visual_projection."))):
        weights.load_into(module, {name: t for name, t in tensors.items() if name.startswith(own)}, name=str(path))
    return Judge(runtime.place(text), runtime.place(image), tokenizer, processor)
