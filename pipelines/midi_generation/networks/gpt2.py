"""A GPT-2 of the same shape, for comparison: Hugging Face's, with the Transformer-XL's calling convention.

It has learned positions and no memory: what lies before the segment is not seen. Needs transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from genkit.errors import InputError
from pipelines.midi_generation.networks.transformer_xl import Config

__all__ = ["GPT2"]


class GPT2(nn.Module):
    """context: positions, tokens."""

    def __init__(self, config: Config, context: int) -> None:
        super().__init__()
        try:
            from transformers import GPT2Config, GPT2LMHeadModel
        except ImportError:
            raise InputError("architecture gpt2 needs transformers: pip install transformers") from None
        self.config, self.context = config, context
        self.model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config.vocabulary,
                n_positions=context,
                n_embd=config.width,
                n_layer=config.layers,
                n_head=config.heads,
                n_inner=config.feedforward,
                resid_pdrop=config.dropout,
                embd_pdrop=config.dropout,
                attn_pdrop=config.dropout,
                bos_token_id=1,
                eos_token_id=2,
            )
        )

    def forward(
        self, tokens: Tensor, memory: Sequence[Tensor] | None = None, **ignored: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits [B, T, V] of tokens [B, T], T at most `context`; the memory is always empty."""
        return self.model(input_ids=tokens, use_cache=False).logits, [
            self.model.transformer.wte.weight.new_zeros(0, 0, 0)
        ]
