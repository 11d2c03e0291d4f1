"""Whether a learned word says more than a caption: the pictures of both, looked for among the true ones.

For a few pictures that a model's training held out: five views of each teach the model a new word (textual inversion),
pictures are made from the caption and from the same caption with the word in place of its text, at the same seeds, and
each is looked for among all the held-out pictures. Places count from 1; 1 is the right one, and by chance it is half of
their number.

The views are the picture moved to four sides and made smaller: what is looked for is never itself trained on, but it is
the same drawing. So this measures that a word can be learned and found again, not how it carries over.

    rows = learned_words("emoji", [noto, blob], "{text}, {folder} style", features, Path("words"), count=5)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.media.image import Image
from genkit.metrics.features import Features
from genkit.runtime import Runtime
from genkit.training import loading
from genkit.training.task import Setup
from genkit.training.trainer import Trainer
from pipelines.stable_diffusion.measuring.retrieval import likeness, opened, ranks
from pipelines.stable_diffusion.pipeline import StableDiffusion
from pipelines.stable_diffusion.train.captioned import CaptionedConfig, Pair, find_pairs, held_pairs

__all__ = ["Learned", "learn", "learned_words", "views"]

WORD = "<new-word>"
SIZE = 128  # px, of pictures that are compared


@dataclass(frozen=True)
class Learned:
    """What became of one picture: places of the pictures made from its caption and with the learned word, from 1."""

    pair: Pair
    by_caption: list[int]
    by_word: list[int]
    made: tuple[Tensor, Tensor]
    """The pictures themselves, [B, 3, S, S] in 0..1 each."""

    def row(self) -> dict[str, Any]:
        """For a table: mean places, and shares among the first five."""
        found: dict[str, Any] = {"caption": self.pair.caption}
        for name, places in (("caption", self.by_caption), ("word", self.by_word)):
            found[f"place by {name}"] = sum(places) / len(places)
            found[f"top-5 by {name}"] = sum(place <= 5 for place in places) / len(places)
        return found


def views(picture: Path, folder: Path) -> Path:
    """Writes five views of a picture into a folder: moved by a sixteenth to each side, and at nine tenths of its size;
    what comes in at the borders continues them."""
    folder.mkdir(parents=True, exist_ok=True)
    x = Image.open(picture).tensor()[None, :3]  # [1, 3, H, W]
    h, w = x.shape[2:]
    dy, dx = h // 16, w // 16
    wide = F.pad(x, (dx, dx, dy, dy), mode="replicate")
    found = [wide[..., top : top + h, left : left + w] for top, left in ((dy, 0), (dy, 2 * dx), (0, dx), (2 * dy, dx))]
    small = F.interpolate(x, (h * 9 // 10, w * 9 // 10), mode="bicubic", antialias=True)
    gap_y, gap_x = h - small.shape[2], w - small.shape[3]
    sides = (gap_x // 2, gap_x - gap_x // 2, gap_y // 2, gap_y - gap_y // 2)
    found.append(F.pad(small, sides, mode="replicate").clamp(0, 1))
    for number, view in enumerate(found, 1):
        Image.from_tensor(view[0]).save(folder / f"{number}.png")
    return folder


def learn(model: str, pictures: Path, out: Path, caption: str, begin: str, *settings: str) -> Path:
    """Trains a word by the shipped recipe, going on where a run was stopped; settings: more of it, as `steps=500`.

    caption: a template with {token}. Returns the file of the word."""
    stated = {"model": model, "data": str(pictures), "token": WORD, "caption": caption, "begin": begin}
    overrides = [f"{name}={json.dumps(value)}" for name, value in stated.items()]
    loaded = loading.load("stable_diffusion/textual_inversion", overrides=[*overrides, "sample_every=null", *settings])
    run = Trainer(loaded.task, loaded.recipe, out, config=loaded.config, say=lambda text: None)
    run.train(resume=True)
    return out / "export" / "learned_embeds.safetensors"


def learned_words(
    model: str,
    data: Sequence[Path],
    template: str,
    features: Features,
    out: Path,
    *,
    count: int = 5,
    held_out: int = 100,
    pictures: int = 8,
    vectors: int = 4,
    settings: Sequence[str] = ("steps=400",),
) -> list[Learned]:
    """Learns a word for each of the first `count` held-out pictures, and makes so many `pictures` of each.

    template: of the model's captions, with {text} and {folder}; features: what pictures are compared by; out: a folder
    for views and runs. Nothing is chosen: the first by the hash that holds them out are taken. A word of so many
    `vectors` begins as the last word of its caption that has no more tokens than that.
    """
    config = CaptionedConfig(data=list(data), caption=template)
    held = held_pairs(find_pairs(config, Setup(torch.device("cpu"))), held_out)
    asked = held[:count]
    pipeline = StableDiffusion.load(model, Runtime.pick())
    known, new = [], []
    for number, pair in enumerate(asked):
        home = out / f"{number}"
        caption = template.replace("{text}", "{token}").replace("{folder}", pair.folder)
        begin = _begin(pipeline.painter.model.pipe.tokenizer, pair.text, vectors)
        more = (f"vectors={vectors}", *settings)
        word = learn(model, views(pair.path, home / "views"), home / "run", caption, begin, *more)
        known.append(_made(pipeline, pair.caption, pictures))
        new.append(_made(pipeline, caption.replace("{token}", WORD), pictures, word))
    gallery = features.of(opened([pair.path for pair in held], SIZE))
    before, after = (_places(features, made, gallery) for made in (known, new))
    return [Learned(*found) for found in zip(asked, before, after, zip(known, new, strict=True), strict=True)]


def _begin(tokenizer: Any, text: str, most: int) -> str:
    """The last word of a caption that is no more than so many tokens, or "a"."""
    short = [word for word in text.split() if 0 < len(tokenizer(word, add_special_tokens=False).input_ids) <= most]
    return short[-1] if short else "a"


def _made(pipeline: StableDiffusion, prompt: str, count: int, word: Path | None = None) -> Tensor:
    """So many pictures [B, 3, S, S] in 0..1 from one prompt, at seeds 0, 1, ..."""
    more = {"embedding": [str(word)]} if word else {}
    (output,) = pipeline.generate([pipeline.Params(prompt=prompt, seed=0, num_images_per_prompt=count, **more)])
    return torch.stack([image.tensor()[:3] for image in output.images])


def _places(features: Features, made: Sequence[Tensor], gallery: Tensor) -> list[list[int]]:
    """Of pictures of the first things of a gallery, [B, 3, S, S] each, the places of the right ones, from 1."""
    pictures = torch.cat(list(made))
    if pictures.shape[2:] != (SIZE, SIZE):
        pictures = F.interpolate(pictures, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)
    right = torch.cat([torch.full((len(part),), number) for number, part in enumerate(made)])
    places = ranks(likeness(features.of(pictures), gallery), right) + 1
    return [part.tolist() for part in places.split([len(part) for part in made])]
