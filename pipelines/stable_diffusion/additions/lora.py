"""LoRA stacks: loaded once, kept, and switched on with the weights that a request states (Hu et al. 2021).

The pairs of matrices stand beside the model's own, which are never touched: with none switched on, peft calls the
original layer and the picture is the original one to the bit. Several add up: W + sum of weight_i * B_i A_i.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from genkit.errors import ModelError
from pipelines.stable_diffusion.additions import lora_files
from pipelines.stable_diffusion.additions.kinds import stamp
from pipelines.stable_diffusion.folders import quiet

if TYPE_CHECKING:
    from pipelines.stable_diffusion.loading import Model
    from pipelines.stable_diffusion.specs import LoRA

__all__ = ["Stack"]

KEPT = 8  # adapters that stay loaded though the request at hand does not ask for them


class Loaded(NamedTuple):
    name: str
    """As peft knows it."""
    networks: tuple[str, ...]


class Stack:
    """The LoRA of one model. Nothing is loaded until it is asked for."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.loaded: OrderedDict[str, Loaded] = OrderedDict()
        self.count = 0

    def switch(self, wanted: Sequence[LoRA]) -> tuple[tuple[str, float], ...]:
        """Switches on what is wanted and everything else off; a weight of 0 is none at all.

        Returns what changes the text encoders, for a cache of prompts. Raises ModelError.
        """
        totals: dict[str, float] = {}
        for one in wanted:
            path = lora_files.file_of(one.model)
            if one.weight:
                name = self._load(path).name
                totals[name] = totals.get(name, 0.0) + one.weight
        self.set(totals)
        self._forget(keep=totals)
        texts = {one.name for one in self.loaded.values() if any("text" in network for network in one.networks)}
        return tuple((name, weight) for name, weight in sorted(totals.items()) if name in texts)

    def set(self, totals: dict[str, float]) -> None:
        """Weights by adapter name; none, or an empty dictionary, is the model as it was. Raises ModelError."""
        from diffusers.utils.peft_utils import set_adapter_layers, set_weights_and_activate_adapters

        known = {one.name for one in self.loaded.values()}
        unknown = totals.keys() - known
        if unknown:
            raise ModelError(f"no LoRA is loaded as {min(unknown)!r}; loaded are {', '.join(sorted(known)) or 'none'}")
        for network in self._changed():
            set_adapter_layers(network, enabled=bool(totals))
            if totals:
                set_weights_and_activate_adapters(network, list(totals), list(totals.values()))

    def _changed(self) -> list[Any]:
        """The networks that hold any LoRA."""
        names = {network for one in self.loaded.values() for network in one.networks}
        return [getattr(self.model.pipe, name) for name in sorted(names)]

    def _load(self, path: Path) -> Loaded:
        key = stamp(path)
        if key not in self.loaded:
            pipe = self.model.pipe
            parts = lora_files.read(path, pipe, self.model.family)
            self.count += 1
            name = f"lora-{self.count}"
            # Inference tensors could never be trained or saved again; what is loaded here outlives the request.
            with quiet(), torch.inference_mode(False), torch.no_grad():
                for network, tensors in parts.items():
                    _insert(pipe, network, tensors, name)
            self.loaded[key] = Loaded(name, tuple(parts))
        self.loaded.move_to_end(key)
        return self.loaded[key]

    def _forget(self, keep: dict[str, float]) -> None:
        """Lets go of what was not asked for longest, beyond KEPT."""
        from diffusers.utils.peft_utils import delete_adapter_layers

        idle = [key for key, one in self.loaded.items() if one.name not in keep]
        for key in idle[: max(0, len(idle) - KEPT)]:
            name, networks = self.loaded.pop(key)
            for network in networks:
                delete_adapter_layers(getattr(self.model.pipe, network), name)


def _insert(pipe: Any, network: str, tensors: dict[str, torch.Tensor], name: str) -> None:
    """Through diffusers, which takes offloading hooks off and puts them back."""
    module = getattr(pipe, network)
    tensors = {key: tensor.to(module.dtype) for key, tensor in tensors.items()}
    if not network.startswith("text_encoder"):
        module.load_lora_adapter(tensors, prefix=None, adapter_name=name, _pipeline=pipe, low_cpu_mem_usage=True)
        return
    pipe.load_lora_into_text_encoder(
        {f"{network}.{key}": tensor for key, tensor in tensors.items()},
        network_alphas=None,
        text_encoder=module,
        prefix=network,
        adapter_name=name,
        _pipeline=pipe,
        low_cpu_mem_usage=True,
    )
