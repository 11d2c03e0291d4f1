"""IP-Adapters: a picture as a prompt, by attention layers of its own beside those of the text (Ye et al. 2023).

Choices made here:
- The layers are exchanged while a request runs and the originals put back after it, the very same objects; what was
  loaded is kept for the next.
- The picture is seen by the image encoder that the adapter was trained with. It is looked for in the model itself,
  beside the adapter's file (`image_encoder`) and where the hub's collection keeps it (`models/image_encoder`); which
  one fits is read off the adapter's tensors.

B: pictures that are made at once; D: width of the image encoder's output; T: its tokens.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from genkit import weights
from genkit.errors import InputError, ModelError
from pipelines.stable_diffusion.additions.kinds import made_for, own, stamp
from pipelines.stable_diffusion.folders import quiet

if TYPE_CHECKING:
    from pipelines.stable_diffusion.loading import Model
    from pipelines.stable_diffusion.specs import ImagePrompt

__all__ = ["ImagePrompts"]

ENCODER = ("config.json", "model.safetensors")


class Adapter(NamedTuple):
    """What stands in a U-Net while the adapter works."""

    processors: dict[str, Any]
    projection: Any
    see: Any
    """The image encoder."""
    processor: Any
    """Brings a picture to what the encoder takes."""
    hidden: bool
    """Whether the adapter reads the encoder's last layer but one, [B, T, D], rather than its result, [B, D]."""


class ImagePrompts:
    """The IP-Adapters of one model; the last one is kept."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.kept: tuple[str, Adapter] | None = None

    @contextlib.contextmanager
    def inserted(self, wanted: ImagePrompt | None) -> Iterator[Tensor | None]:
        """While it lasts the model follows the picture too. Gives what the adapter sees, [2, 1, D] or [2, 1, T, D]:
        first of nothing, then of the picture. Raises InputError, ModelError."""
        if wanted is None or not wanted.weight:
            yield None
            return
        if getattr(self.model.pipe, "unet", None) is None:
            raise InputError(
                f"image_prompt works with Stable Diffusion 1, 2 and XL, not with {own(self.model)}: leave it out, or "
                "name another model"
            )
        unet = self.model.pipe.unet
        before = dict(unet.attn_processors), unet.encoder_hid_proj, unet.config.encoder_hid_dim_type
        try:
            adapter = self._adapter(wanted.model)
            self.model.pipe.set_ip_adapter_scale(wanted.weight)
            yield self._seen(adapter, wanted.image)
        finally:
            _exchange(unet, *before)

    def _adapter(self, ref: str) -> Adapter:
        """Standing in the U-Net."""
        unet = self.model.pipe.unet
        path = _file_of(ref)
        key = stamp(path)
        if self.kept is not None and self.kept[0] == key:
            adapter = self.kept[1]
            _exchange(unet, adapter.processors, adapter.projection, "ip_image_proj")
            return adapter
        self.kept = None
        parts = _read(path, self.model)
        kind, width = _looks_at(path, parts["image_proj"])
        see, processor = self._encoder(ref, path, kind, width)
        with quiet(), torch.inference_mode(False), torch.no_grad():
            unet._load_ip_adapter_weights([parts])
        adapter = Adapter(dict(unet.attn_processors), unet.encoder_hid_proj, see, processor, kind == "hidden_size")
        self.kept = key, adapter
        return adapter

    def _encoder(self, ref: str, path: Path, kind: str, width: int) -> tuple[Any, Any]:
        """The image encoder whose `kind` ("projection_dim" or "hidden_size") is `width`, and its processor."""
        from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

        own = getattr(self.model.pipe, "image_encoder", None)
        if own is not None and getattr(own.config, kind) == width:
            return own, self.model.pipe.feature_extractor
        near = [path.parent / "image_encoder", path.parent.parent / "models" / "image_encoder"]
        for folder in [*near, *_on_hub(ref)]:
            if not all((folder / name).is_file() for name in ENCODER):
                continue
            config = CLIPVisionConfig.from_pretrained(folder)
            if getattr(config, kind) == width:
                network = CLIPVisionModelWithProjection(config)
                weights.load_into(network, _without_positions(weights.read(folder / ENCODER[1])), name=str(folder))
                side: Any = config.image_size
                return self.model.runtime.place(network), CLIPImageProcessor(
                    size={"shortest_edge": side}, crop_size={"height": side, "width": side}
                )
        raise ModelError(
            f"IP-Adapter {path} needs an image encoder with {kind} {width}, which neither the model has nor a folder "
            f"beside the file: put it there as {path.parent / 'image_encoder'} (config.json and model.safetensors)"
        )

    def _seen(self, adapter: Adapter, source: Any) -> Tensor:
        """[2, 1, D] or [2, 1, T, D]: of nothing, and of the picture."""
        from genkit.media.image import Image

        parameter = next(adapter.see.parameters())
        pixels = adapter.processor(Image.open(source).pil, return_tensors="pt").pixel_values.to(parameter)
        with torch.no_grad():
            if adapter.hidden:
                states = [adapter.see(p, output_hidden_states=True).hidden_states[-2] for p in (0 * pixels, pixels)]
            else:
                embeds = adapter.see(pixels).image_embeds
                states = [torch.zeros_like(embeds), embeds]
        return torch.stack(states).to(self.model.runtime.dtype)


def arguments(seen: Tensor, count: int, guided: bool) -> dict[str, Any]:
    """What a pipeline's call takes: for B = count pictures, those without the picture before those with it."""
    without, with_it = (part.expand(count, *part.shape[1:])[:, None] for part in seen)
    return {"ip_adapter_image_embeds": [torch.cat([without, with_it] if guided else [with_it])]}


def _exchange(unet: Any, processors: Mapping[str, Any], projection: Any, kind: str | None) -> None:
    unet.encoder_hid_proj = None  # some projections have processors of their own, which are none of these
    unet.set_attn_processor(dict(processors))
    unet.encoder_hid_proj = projection
    unet.config.encoder_hid_dim_type = kind


def _file_of(ref: str) -> Path:
    if re.fullmatch(r"(hub:)?[\w.-]+/[\w.-]+(@[^:]+)?", ref) and not Path(ref).exists():
        raise ModelError(
            f"{ref!r} may hold many IP-Adapters: name one, such as {ref}:models/ip-adapter_sd15.safetensors"
        )
    path = weights.locate(ref)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            held = (
                f"{len(files)} files ({', '.join(f.name for f in files[:5])}); name one" if files else "no IP-Adapter"
            )
            raise ModelError(f"folder {path} holds {held}")
        path = files[0]
    if path.suffix.lower() != ".safetensors":
        raise ModelError(f"IP-Adapter {path} is no .safetensors file; get it as one (the hub has both)")
    return path


def _read(path: Path, model: Model) -> dict[str, dict[str, Tensor]]:
    """{"image_proj": ..., "ip_adapter": ...}, fitting the U-Net. Raises ModelError."""
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    tensors = weights.read(path)
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.get(part, {})[rest] = tensor
    if not all(parts.values()):
        seen = weights.looks_like(tensors)
        raise ModelError(f"{path} is no IP-Adapter" + (f": it looks like {seen}" if seen else ""))
    if any("_lora." in name for name in parts["ip_adapter"]):
        raise ModelError(f"{path} is an IP-Adapter FaceID, which needs a recogniser of faces; genkit reads the others")
    unet = model.pipe.unet
    layers = [name.removesuffix(".processor") for name in unet.attn_processors if ".attn2." in name]
    for number, layer in zip(range(1, 2 * len(layers), 2), layers, strict=True):
        to_k = unet.get_submodule(layer).to_k
        shape = getattr(to_k, "base_layer", to_k).weight.shape
        for part in ("to_k_ip", "to_v_ip"):
            theirs = parts["ip_adapter"].get(f"{number}.{part}.weight")
            if theirs is None or theirs.shape != shape:
                width = theirs.shape[1] if theirs is not None and theirs.ndim == 2 else None
                whom = made_for(width) if width != shape[1] else "another model"
                raise ModelError(
                    f"IP-Adapter {path} is for {whom}, and this model is {own(model)}: name one made for it"
                )
    if len(parts["ip_adapter"]) != 2 * len(layers):
        raise ModelError(f"IP-Adapter {path} is for another model, of other layers than this one ({own(model)})")
    return parts


def _looks_at(path: Path, tensors: Mapping[str, Tensor]) -> tuple[str, int]:
    """Which of an image encoder's widths must be how large."""
    for name, kind in (
        ("proj.weight", "projection_dim"),
        ("proj_in.weight", "hidden_size"),
        ("proj.0.weight", "hidden_size"),
    ):
        if name in tensors and tensors[name].ndim == 2:
            return kind, tensors[name].shape[1]
    raise ModelError(f"{path} is an IP-Adapter of a kind that genkit does not know")


def _on_hub(ref: str) -> Iterator[Path]:
    """The folders of the hub's collection that an adapter came from; fetched where they are not here."""
    match = re.fullmatch(r"(?P<repo>(?:hub:)?[\w.-]+/[\w.-]+(?:@[^:]+)?):(?P<file>[^:]+)", ref)
    if match is None or Path(ref).exists():
        return
    for folder in dict.fromkeys((str(Path(match["file"]).parent / "image_encoder"), "models/image_encoder")):
        yield weights.locate(match["repo"], patterns=[f"{folder}/{name}" for name in ENCODER]) / folder


def _without_positions(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Old files hold the places' numbers too, which are no weights any more."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
