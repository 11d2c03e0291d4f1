"""`textual-inversion`: a new word for what a few pictures show (Gal et al. 2022).

The word is one token or several, each with a vector of its own in the table that the text encoder reads; only these are
trained, by the loss of the diffusion model as it stands (equation 2). What comes out:

    learned_embeds.safetensors    {word: [V, D]}, as diffusers' `load_textual_inversion` reads it
    WORD.safetensors              {"emb_params": [V, D]}, as A1111 and ComfyUI read it: the file's name is the word

For SDXL's two encoders there is one file, WORD.safetensors, of {"clip_l": [V, D], "clip_g": [V, D']}: A1111 reads it as
it is, diffusers' `load_textual_inversion` takes its tensors one by one, each with its encoder.

Choices made here:
- The vectors lie beside the encoder's own table, which is not touched: all other words stay as they are, to the bit.
- They begin as those of `begin`, a word the model knows; if there are more of them, its tokens are repeated.
- CLIP of old configurations finds a prompt's end as the largest number in it, which new tokens are above: here it looks
  for the end token itself, as it does where the word is used.
- Several vectors are tokens WORD, WORD_1, WORD_2, ...: diffusers writes them all where a prompt says WORD.

V: vectors; D: their width.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from genkit import weights
from genkit.errors import InputError
from genkit.training.task import Setup, TaskConfig
from pipelines.stable_diffusion.train.tuning import Latents, Templates, Text, Tuning, TuningConfig, read_pictures

__all__ = ["TextualInversion", "TextualInversionConfig"]


class TextualInversionConfig(TuningConfig):
    token: Annotated[str, Field(min_length=2, max_length=100)] = Field(
        description="The new word, one that means nothing yet: <red-hat>."
    )
    begin: Text = Field(description="A word that the model knows and that comes near: hat.")
    vectors: int = Field(1, ge=1, le=64, description="Vectors of the word: more say more, and are harder to combine.")
    caption: Templates = Field(
        ["a picture of {token}", "a good picture of {token}", "{token}", "one {token}"],
        min_length=1,
        max_length=100,
        description="Templates of captions: {token}, and {folder} and {text} as in `lora`.",
    )
    rate: float = Field(5e-3, gt=0, le=1, description="Highest learning rate of AdamW.")


class TextualInversion(Tuning):
    """See the module's docstring."""

    Config: ClassVar[type[TaskConfig]] = TextualInversionConfig

    def __init__(self, config: TextualInversionConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        without = [template for template in config.caption if "{token}" not in template]
        if without:
            raise InputError(f"caption: {without[0][:60]!r} does not say {{token}}; every template must")
        names = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
        self.words = {
            name: _Word(encoder, getattr(self.pipe, names[name]), config) for name, encoder in self.encoders.items()
        }
        self._optimise("word", nn.ParameterDict({name: word.vectors for name, word in self.words.items()}))
        templates = [template.replace("{token}", config.token) for template in config.caption]
        self.seen, self.held = read_pictures(self, config.data, templates)

    def dataset(self) -> Latents:
        return self.seen

    def step(self, batch: dict[str, Tensor], trainer: Any) -> dict[str, Tensor]:
        loss = self._loss(batch, self.seen.said(batch["text"]), kept=False)
        trainer.backward(loss)
        trainer.update()
        return {"loss": loss}

    def validate(self) -> dict[str, float]:
        """The loss on the pictures under their first caption."""
        return {"loss": self._measured(self.seen, kept=False)}

    def export(self, folder: Path) -> None:
        token, found = self.config.token, [word.vectors for word in self.words.values()]
        tensors = {"emb_params": found[0]} if len(found) == 1 else dict(zip(("clip_l", "clip_g"), found, strict=True))
        weights.write(folder / f"{_file_name(token)}.safetensors", tensors, {"token": token})
        if len(found) == 1:
            weights.write(folder / "learned_embeds.safetensors", {token: found[0]}, {"token": token})


class _Word(nn.Module):
    """Stands where an encoder's table stood: its own rows by their numbers, those of the new tokens from `vectors`."""

    def __init__(self, encoder: Any, tokenizer: Any, config: TextualInversionConfig) -> None:
        super().__init__()
        self.table = encoder.get_input_embeddings()
        ids = _tokens_of(tokenizer, config.begin, config.vectors)
        self.first = _add(tokenizer, config.token, config.vectors)
        begin = self.table.weight[[ids[i % len(ids)] for i in range(config.vectors)]]
        self.vectors = nn.Parameter(begin.detach().float().clone())  # [V, D]
        encoder.set_input_embeddings(self)
        for part in encoder.modules():
            if getattr(part, "eos_token_id", None) == 2:
                part.eos_token_id = tokenizer.eos_token_id

    @property
    def weight(self) -> Tensor:
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T] -> [B, T, D]"""
        known = self.table(ids.clamp(max=self.first - 1))
        new = self.vectors[(ids - self.first).clamp(0, len(self.vectors) - 1)].to(known.dtype)
        return torch.where((ids >= self.first)[..., None], new, known)


def _tokens_of(tokenizer: Any, word: str, most: int) -> list[int]:
    """The tokens that a word consists of. Raises InputError where they are none, unknown or too many."""
    ids = tokenizer(word, add_special_tokens=False).input_ids
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id != tokenizer.eos_token_id else None
    if not ids or unknown in ids:
        raise InputError(f"begin: {word[:60]!r} is no word that this model knows; give a common one")
    if len(ids) > most:
        raise InputError(f"begin: {word[:60]!r} is {len(ids)} tokens; give a shorter word, or `vectors: {len(ids)}`")
    return ids


def _add(tokenizer: Any, token: str, count: int) -> int:
    """Adds the tokens of a new word. Returns the number of the first. Raises InputError."""
    if token.split() != [token]:
        raise InputError(
            f"token: {token!r} is several words; write it as one: <{'-'.join(token.strip('<> ').split())}>"
        )
    if not _file_name(token):
        raise InputError(f"token: {token!r} has no letter or digit; give a word such as <red-hat>")
    tokens = [token, *(f"{token}_{i}" for i in range(1, count))]
    vocabulary = tokenizer.get_vocab()
    there = next((one for one in tokens if one in vocabulary or f"{one.lower()}</w>" in vocabulary), None)
    if there:
        raise InputError(
            f"token: this model knows {there!r} already; give a word that means nothing yet: <{token.strip('<>')}-1>"
        )
    tokenizer.add_tokens(tokens)
    return tokenizer.convert_tokens_to_ids(token)


def _file_name(token: str) -> str:
    return re.sub(r"[^\w.-]+", "", token).strip(".")
