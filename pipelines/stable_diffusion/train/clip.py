"""`clip`: two encoders that give a caption and its picture the same direction (Radford et al. 2021).

Transformers' own modules; what comes out are folders that a diffusion pipeline of diffusers' loads: `tokenizer`,
`text_encoder`, `image_encoder`, `feature_extractor`. The loss is symmetric over a batch of B pairs,

    (CE(s P T', 1..B) + CE(s T P', 1..B)) / 2

with P and T the embeddings brought to unit length and s a learned scale of at most 100.

Choices made here:
- There is no text projection: the hidden state at the first `<|endoftext|>` (`pooler_output`) is the text's embedding,
  so a pipeline that holds a `CLIPTextModel` alone has all of it. The image encoder projects to that width.
- The tokenizer is learned from the captions that are trained on (see `tokenizer.py`) and kept in the checkpoints.
- Texts are cut to the longest of the batch: attention looks backwards only, so what follows the end changes nothing.
- Pictures are shifted, scaled and coloured at random, never mirrored: an arrow to the left is not one to the right.
- The image encoder sees a random part of the patches while training (Li et al. 2023, FLIP), `seen`: it is quicker, and
  few pictures are not learned by heart so soon.
- A share of captions, `bare`, is given without the template: people do not always write it.
- Negatives are those of the same process and batch: `accumulate` and more processes do not make a batch harder.

B: pairs; S: side of pictures in pixels; L: tokens; D: width of the embeddings.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genkit.errors import InputError
from genkit.training.schedules import scheduled
from genkit.training.task import Setup, Task, TaskConfig
from pipelines.stable_diffusion.folders import quiet
from pipelines.stable_diffusion.measuring.retrieval import ranks
from pipelines.stable_diffusion.train import tokenizer as tokens
from pipelines.stable_diffusion.train.captioned import Captioned, CaptionedConfig, Pair

__all__ = ["CLIP", "CLIPConfig", "contrastive", "vary"]

LARGEST = math.log(100)
BATCH = 50
GREY = [0.5, 0.5, 0.5]  # pictures are -1..1, as those of the training


class CLIPConfig(CaptionedConfig):
    load_size: int | None = Field(None, ge=16, le=4096, description="Side brought to before a random crop; null: none.")
    scale: float = Field(0.15, ge=0, lt=1, description="Pictures are made larger or smaller by up to this share.")
    colour: float = Field(0.1, ge=0, lt=1, description="Each colour is made stronger or weaker by up to this share.")
    seen: float = Field(0.5, gt=0, le=1, description="Share of a picture's patches that is looked at while training.")
    bare: float = Field(0.1, ge=0, le=1, description="Share of captions given without the template.")
    vocabulary: int = Field(2000, ge=tokens.SMALLEST, le=50_000, description="Tokens at most.")
    length: int = Field(32, ge=4, le=512, description="Tokens of a text, with its beginning and end.")
    width: int = Field(192, ge=8, le=2048, description="Width of the text encoder, and of the embeddings.")
    text_layers: int = Field(3, ge=1, le=48, description="Layers of the text encoder.")
    text_inner: int = Field(576, ge=8, le=8192, description="Width inside its layers.")
    text_heads: int = Field(6, ge=1, le=64, description="Its heads; divides `width`.")
    patch: int = Field(16, ge=2, le=128, description="Side of the image encoder's patches, px; divides `size`.")
    image_width: int = Field(128, ge=8, le=2048, description="Width of the image encoder.")
    image_layers: int = Field(4, ge=1, le=48, description="Layers of the image encoder.")
    image_inner: int = Field(384, ge=8, le=8192, description="Width inside its layers.")
    image_heads: int = Field(4, ge=1, le=64, description="Its heads; divides `image_width`.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of attention left out at random while training.")
    rate: float = Field(1e-3, gt=0, le=1, description="Highest learning rate of AdamW.")
    decay: float = Field(0.1, ge=0, le=10, description="Weight decay of matrices.")
    warmup: float = Field(0.05, ge=0, le=1, description="Share of the run in which the rate rises.")


class Scale(nn.Module):
    """The learned scale s, begun at 1 / 0.07; it is kept as its logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self) -> Tensor:
        return self.log.exp()


class CLIP(Task):
    """See the module's docstring."""

    Config: ClassVar[type[TaskConfig]] = CLIPConfig
    best = ("reciprocal", "max")

    def __init__(self, config: CLIPConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        _check(config)
        self.data = Captioned(config, setup, load_size=config.load_size, flip=False, crop="random")
        self._take(tokens.learn((pair.caption for pair in self.data.pairs), config.vocabulary, config.length))
        self.text = _text_encoder(config, self.tokenizer)
        self.image = _image_encoder(config)
        self.image.vision_model.embeddings.register_forward_hook(self._fewer)
        self.scale = Scale()
        self.modules = {"text": self.text, "image": self.image, "scale": self.scale}
        parameters = [p for module in self.modules.values() for p in module.parameters()]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, config.rate, betas=(0.9, 0.98), eps=1e-6)
        self.optimizers = {"clip": optimizer}
        self.schedules = {"clip": scheduled(optimizer, "cosine", setup.steps, config.warmup)}

    def _take(self, tokenizer: Any) -> None:
        """Makes this the tokenizer, and reads all captions by it: with the template and without, [N, L] each."""
        self.tokenizer = tokenizer
        self.captions = self._ids([pair.caption for pair in self.data.pairs])
        self.names = self._ids([pair.text for pair in self.data.pairs])

    def _ids(self, texts: list[str]) -> Tensor:
        found = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.config.length, return_tensors="pt"
        )
        return found.input_ids

    def dataset(self) -> Captioned:
        return self.data

    def state_dict(self) -> dict[str, Any]:
        return {"merges": [list(pair) for pair in tokens.merges(self.tokenizer)]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._take(tokens.build([(a, b) for a, b in state["merges"]], self.config.length))

    def step(self, batch: dict[str, Tensor], trainer: Any) -> dict[str, Tensor]:
        x = vary(batch["picture"], self.config.scale, self.config.colour)
        which = batch["index"].cpu()
        bare = torch.rand(len(which), 1) < self.config.bare
        ids = torch.where(bare, self.names[which], self.captions[which])
        pictures, texts = self._pictures(x), self._texts(ids)
        scale = self.scale()
        loss = contrastive(pictures, texts, scale)
        trainer.backward(loss)
        trainer.update()
        with torch.no_grad():
            self.scale.log.clamp_(max=LARGEST)
            right = (pictures @ texts.T).argmax(1) == torch.arange(len(which), device=x.device)
        return {"loss": loss, "top1": right.float().mean(), "scale": scale.detach()}

    def _fewer(self, module: nn.Module, args: Any, found: Tensor) -> Tensor:
        """While training: [B, 1 + N, C], the picture's own token and its patches -> as many patches as are seen."""
        b, n, c = found.shape
        kept = max(1, round(self.config.seen * (n - 1)))
        if not module.training or kept == n - 1:
            return found
        which = 1 + torch.rand(b, n - 1).argsort(1)[:, :kept].to(found.device)
        return torch.cat([found[:, :1], found.gather(1, which[:, :, None].expand(b, kept, c))], 1)

    def _pictures(self, x: Tensor) -> Tensor:
        """[B, 3, S, S] in -1..1 -> [B, D], float32, of unit length."""
        return F.normalize(self.image(pixel_values=x).image_embeds.float(), dim=1)

    def _texts(self, ids: Tensor) -> Tensor:
        """[B, L] -> [B, D], float32, of unit length."""
        longest = int((ids != self.tokenizer.eos_token_id).sum(1).max()) + 1
        found = self.text(input_ids=ids[:, :longest].to(self.setup.device)).pooler_output
        return F.normalize(found.float(), dim=1)

    def validate(self) -> dict[str, float]:
        """Finding a held-out picture's caption among those of all held-out pictures (of the first trained on, where
        none is held out): share at the first place and among five, mean reciprocal rank, and the loss over all of them.
        """
        pairs = self.data.held or self.data.pairs[:100]
        pictures, texts = self.embed(pairs)
        place = ranks(pictures @ texts.T)
        return {
            "top1": float((place < 1).float().mean()),
            "top5": float((place < 5).float().mean()),
            "reciprocal": float((1 / (1 + place)).mean()),
            "loss": float(contrastive(pictures, texts, self.scale())),
        }

    def embed(self, pairs: list[Pair]) -> tuple[Tensor, Tensor]:
        """Whole pictures and full captions of some pairs -> [B, D], [B, D] of unit length."""
        pictures, texts = [], []
        for start in range(0, len(pairs), BATCH):
            part = pairs[start : start + BATCH]
            pictures.append(self._pictures(self.data.show(part).to(self.setup.device)))
            texts.append(self._texts(self._ids([pair.caption for pair in part])))
        return torch.cat(pictures), torch.cat(texts)

    def export(self, folder: Path) -> None:
        import copy

        tokens.save(self.tokenizer, folder / "tokenizer")
        with quiet():
            for name, module in (("text_encoder", self.text), ("image_encoder", self.image)):
                copy.deepcopy(module).cpu().half().save_pretrained(folder / name)
        _processor(self.config.size).save_pretrained(folder / "feature_extractor")


def contrastive(pictures: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The loss of the module's docstring. pictures, texts: [B, D] of unit length, row for row."""
    logits = scale * pictures @ texts.T  # [B, B]
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def vary(pictures: Tensor, scale: float, colour: float) -> Tensor:
    """Pictures [B, 3, S, S] in -1..1 at random sizes, on white where they became smaller, with random gains."""
    b = len(pictures)
    zoom = 1 + scale * (2 * torch.rand(b) - 1)
    gains = 1 + colour * (2 * torch.rand(b, 3, 1, 1) - 1)
    places = torch.zeros(b, 2, 3)
    places[:, 0, 0] = places[:, 1, 1] = 1 / zoom
    grid = F.affine_grid(places.to(pictures), list(pictures.shape), align_corners=False)
    ink = F.grid_sample(pictures - 1, grid, align_corners=False) + 1  # what lies outside is 0: white
    return ((ink + 1) * gains.to(ink) - 1).clamp(-1, 1)


def _check(config: CLIPConfig) -> None:
    """Raises InputError for what does not divide."""
    for whole, part in (("size", "patch"), ("width", "text_heads"), ("image_width", "image_heads")):
        if getattr(config, whole) % getattr(config, part):
            raise InputError(
                f"{part} {getattr(config, part)} does not divide {whole} {getattr(config, whole)}; choose others"
            )


def _text_encoder(config: CLIPConfig, tokenizer: Any) -> Any:
    """With the tokenizer's own ids: an `eos_token_id` of 2, the default of old, would pool at the highest id."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=config.text_inner,
            hidden_act="gelu",
            projection_dim=config.width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            max_position_embeddings=config.length,
            attention_dropout=config.dropout,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _image_encoder(config: CLIPConfig) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=config.image_width,
            intermediate_size=config.image_inner,
            hidden_act="gelu",
            projection_dim=config.width,
            num_hidden_layers=config.image_layers,
            num_attention_heads=config.image_heads,
            attention_dropout=config.dropout,
            image_size=config.size,
            patch_size=config.patch,
        )
    )


def _processor(size: int) -> Any:
    """What makes of any picture what the image encoder was trained on."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, image_mean=GREY, image_std=GREY
    )
