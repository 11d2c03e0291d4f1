"""All that a request asks for beside the model, for as long as its pictures are made.

    additions = Additions(model)                             # once for a model
    with additions.applied(params) as use:                   # around encoding, sampling and decoding
        embeds = encode(..., use.text(params.prompt), ...)   # names of embeddings become their tokens
        pipe = use.pipe(mode)                                # with ControlNets another class than the model's own
        pipe(**embeds, **use.arguments(mode, width, height, count, guided), ...)

Requests that share it differ in nothing but prompt and seed (`Params.shape`). With nothing asked for, nothing is
loaded, and the pictures are those of the model to the bit; also after requests that did ask.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pipelines.stable_diffusion import seamless
from pipelines.stable_diffusion.additions import embedding, image_prompt
from pipelines.stable_diffusion.additions.control import Controls
from pipelines.stable_diffusion.additions.embedding import Embeddings
from pipelines.stable_diffusion.additions.image_prompt import ImagePrompts
from pipelines.stable_diffusion.additions.lora import Stack

if TYPE_CHECKING:
    from pipelines.stable_diffusion.loading import Model
    from pipelines.stable_diffusion.pipeline import Params

__all__ = ["Additions", "Use"]


class Additions:
    """The additions of one model, kept loaded from request to request."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.loras = Stack(model)
        self.embeddings = Embeddings(model)
        self.controls = Controls(model)
        self.image_prompts = ImagePrompts(model)

    @contextlib.contextmanager
    def applied(self, params: Params) -> Iterator[Use]:
        """The model with what the request asks for; as it was afterwards, whatever happens. Raises ModelError,
        InputError, MediaError."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.loras.set, {})
            texts = self.loras.switch(params.lora)
            spelling = undo.enter_context(self.embeddings.inserted(params.embedding))
            self.controls.check(params.control)
            seen = undo.enter_context(self.image_prompts.inserted(params.image_prompt))
            undo.enter_context(seamless.circular(self.model, params.seamless, self.controls.wanted(params.control)))
            yield Use(self, params, spelling, seen, (texts, self.embeddings.stamps(params.embedding)))


@dataclass(frozen=True)
class Use:
    """The model as one request uses it; only inside `Additions.applied`."""

    additions: Additions
    params: Params
    spelling: Mapping[str, str]
    seen: Tensor | None
    key: Hashable
    """What a prompt's encoding depends on beside its text: part of a cache's key."""

    def text(self, prompt: str) -> str:
        """A prompt, also a negative one, as it is to be encoded: names of embeddings replaced by their tokens."""
        return embedding.spelled(prompt, self.spelling)

    def pipe(self, mode: str) -> Any:
        """The diffusers pipeline for "text", "image" or "inpaint"."""
        if self.params.control:
            return self.additions.controls.pipe(mode, self.params.control)
        return self.additions.model.variant(mode)

    def arguments(self, mode: str, width: int, height: int, count: int, guided: bool) -> dict[str, Any]:
        """What a call of `pipe(mode)` takes beside the usual for `count` pictures of width x height px; guided: whether
        the network runs with and without the prompt."""
        given: dict[str, Any] = {}
        if self.params.control:
            given |= self.additions.controls.arguments(mode, width, height, self.params.control)
        if self.seen is not None:
            given |= image_prompt.arguments(self.seen, count, guided)
        return given
