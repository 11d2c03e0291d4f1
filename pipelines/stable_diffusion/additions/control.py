"""ControlNets: networks beside a model's own that follow a picture of edges, depth or a pose (Zhang et al. 2023).

Loaded once and kept; a network is read into the layout of the model's own U-Net, or into the one that its folder
states, and must be of the model's family. The pictures are brought to the size of the result.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from genkit import weights
from genkit.errors import InputError, ModelError
from pipelines.stable_diffusion.additions.kinds import made_for, own, stamp
from pipelines.stable_diffusion.folders import quiet
from pipelines.stable_diffusion.loading import relax

if TYPE_CHECKING:
    from pipelines.stable_diffusion.loading import Model
    from pipelines.stable_diffusion.specs import Control

__all__ = ["Controls", "load"]

KEPT = 4  # networks that stay loaded
OTHERS = {
    "ControlNetUnionModel": "a ControlNet of several kinds in one (Union)",
    "FluxControlNetModel": "a ControlNet for Flux",
    "SD3ControlNetModel": "a ControlNet for SD 3",
    "T2IAdapter": "a T2I-Adapter",
    "UNet2DConditionModel": "a U-Net",
}


class Controls:
    """The ControlNets of one model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.networks: OrderedDict[str, Any] = OrderedDict()

    def check(self, wanted: Sequence[Control]) -> None:
        """Raises InputError, ModelError: before anything is computed."""
        if wanted and getattr(self.model.pipe, "unet", None) is None:
            raise InputError(
                f"control works with Stable Diffusion 1, 2 and XL, not with {own(self.model)}: leave it out, or name "
                "another model"
            )
        for one in wanted:
            if one.start >= one.end:
                raise InputError(f"control starts at {one.start:g} and ends at {one.end:g}: start must be below end")
        self._forget(keep=len(wanted))
        self.wanted(wanted)

    def pipe(self, mode: str, wanted: Sequence[Control]) -> Any:
        """The diffusers pipeline of a mode that holds these networks beside the model's own parts."""
        networks = self.wanted(wanted)
        return self.model.variant(mode, controlnet=networks[0] if len(networks) == 1 else networks)

    def wanted(self, wanted: Sequence[Control]) -> list[Any]:
        """The networks themselves."""
        return [self._network(one.model) for one in wanted]

    def arguments(self, mode: str, width: int, height: int, wanted: Sequence[Control]) -> dict[str, Any]:
        """What a call of that pipeline takes beside: pictures [1, 3, height, width] in 0..1, weights, beginnings."""
        pictures = [_picture(one.image, width, height) for one in wanted]
        many = len(wanted) > 1
        given: dict[str, list[Any]] = {
            "image" if mode == "text" else "control_image": pictures,
            "controlnet_conditioning_scale": [one.weight for one in wanted],
            "control_guidance_start": [one.start for one in wanted],
            "control_guidance_end": [one.end for one in wanted],
        }
        return {name: values if many else values[0] for name, values in given.items()}

    def _network(self, ref: str) -> Any:
        path = weights.locate(ref)
        file, _ = _files(path)
        key = stamp(file)
        if key not in self.networks:
            runtime = self.model.runtime
            with quiet():
                self.networks[key] = runtime.place(load(path, self.model))
            relax(self.networks[key], runtime)
        self.networks.move_to_end(key)
        return self.networks[key]

    def _forget(self, keep: int) -> None:
        while len(self.networks) > max(KEPT, keep):
            self.networks.popitem(last=False)


def _picture(source: Any, width: int, height: int) -> Tensor:
    """[1, 3, height, width] in 0..1."""
    from torch.nn import functional as F

    from genkit.media.image import Image

    picture = Image.open(source, background="black").tensor()[None]
    if picture.shape[2:] == (height, width):
        return picture
    resized = F.interpolate(picture, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def load(path: Path, model: Model) -> Any:
    """A ControlNet for the model from a folder of diffusers' or a file (diffusers' names, or the original ones).

    On the CPU. Raises ModelError.
    """
    from diffusers import ControlNetModel

    file, config = _files(path)
    unet = model.pipe.unet
    if config is not None:
        _check_config(file, config, model)
    tensors = weights.read(file)
    _check_tensors(file, tensors, model)
    try:
        if config is not None:
            network = ControlNetModel.from_config(config)
        else:
            network = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
            tensors = _diffusers_names(tensors, dict(network.config))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ModelError(f"ControlNet {file} cannot be read ({' '.join(str(error).split())[:120]})") from None
    weights.load_into(network, tensors, name=str(file))
    return network


def _files(path: Path) -> tuple[Path, dict[str, Any] | None]:
    """The file of tensors, and the configuration beside it where there is one."""
    if not path.is_dir():
        return path, None
    names = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
    files = [path / name for name in names if (path / name).is_file()] or sorted(path.glob("*.safetensors"))[:2]
    if not files or (len(files) > 1 and files[0].name not in names):
        raise ModelError(f"folder {path} holds no ControlNet: it needs config.json and {names[0]}")
    try:
        config = json.loads((path / "config.json").read_bytes())
        assert isinstance(config, dict)
    except (OSError, ValueError, AssertionError, RecursionError):
        raise ModelError(f"ControlNet folder {path} has no readable config.json; get it again") from None
    return files[0], config


def _diffusers_names(tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Of a single file: the names of the original repository translated by diffusers."""
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    if any(name.startswith("controlnet_cond_embedding.") for name in tensors):
        return tensors
    return convert_controlnet_checkpoint(dict(tensors), config)


def _check_config(file: Path, config: Mapping[str, Any], model: Model) -> None:
    kind = config.get("_class_name", "ControlNetModel")
    if kind != "ControlNetModel":
        raise ModelError(f"{file} is {OTHERS.get(kind, f'a {str(kind)[:60]}')}, not a ControlNet that fits this model")
    if config.get("block_out_channels") != list(model.pipe.unet.config.block_out_channels):
        _refuse(file, config.get("cross_attention_dim"), model)


def _check_tensors(file: Path, tensors: Mapping[str, Tensor], model: Model) -> None:
    signs = ("controlnet_cond_embedding.", "control_model.", "input_hint_block.")
    if not any(name.startswith(signs) for name in tensors):
        seen = weights.looks_like(tensors)
        raise ModelError(f"{file} is no ControlNet" + (f": it looks like {seen}" if seen else ""))
    width = next(
        (t.shape[1] for name, t in tensors.items() if name.endswith("attn2.to_k.weight") and t.ndim == 2), None
    )
    if width != model.pipe.unet.config.cross_attention_dim:
        _refuse(file, width, model)


def _refuse(file: Path, width: Any, model: Model) -> None:
    raise ModelError(
        f"ControlNet {file} is for {made_for(width)}, and this model is {own(model)}, whose text is "
        f"{model.pipe.unet.config.cross_attention_dim} wide: name one made for it"
    )
