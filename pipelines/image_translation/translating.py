"""Where pictures are translated: read, padded, through the generator in one piece or in tiles, cropped, written.

Choices made here:
- A picture keeps its size. It is padded by reflection, evenly at both sides, to what the network can halve, as often
  back and forth as a tiny one needs, and the padding is cut off again.
- Transparency is laid on a colour for the network and carried to the result as it was. A 16-bit TIFF comes out at 16
  bits, and every result keeps its floats; only a transparent picture goes on at 8 bits (`Image` has no other).
- Networks run as their authors tested them, each picture with its own statistics and dropout from its own seed, so that
  it does not depend on its batch (`networks.modes`); `eval_norm` is eval mode.
- The memory that a picture takes in one piece is worked out before any is taken; if it is not there the picture goes in
  tiles, which make no difference (`tiling`).
- On a CPU pictures run one by one, as batches gain nothing there; on a GPU those of one size run together.

Legend: B pictures, C channels, H, W px. Tensors are 0..1 outside the network, -1..1 inside.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genkit.errors import GenkitError, InputError, ModelError, OutOfMemory
from genkit.media.image import Image
from genkit.pipeline import Output, Progress
from genkit.runtime import Runtime
from pipelines.image_translation import tiling
from pipelines.image_translation.framing import cropped, padded, resized
from pipelines.image_translation.loading import load_generator
from pipelines.image_translation.networks.modes import as_published
from pipelines.image_translation.networks.quick import quicken
from pipelines.image_translation.program import Program

if TYPE_CHECKING:
    from pipelines.image_translation.pipeline import Params

__all__ = ["Translator"]

OVERHEAD = 1.8
"""Memory taken in one piece over the layers that are there at once: what a convolution needs to work. Measured on a CPU
for CycleGAN's nine blocks and the shipped network, 1.72 both."""
SHARE = 0.6
"""Of the free memory, what may be taken."""
TILES = (2048, 1024, 512, 256, 128)  # px, the sides that are chosen from
TOGETHER = 32  # the largest batch on a GPU
LUMINANCE = (0.299, 0.587, 0.114)  # Rec. 601, as Pillow's "L" has it


@dataclass(frozen=True)
class Scene:
    """A picture on its way in."""

    params: Params
    picture: Tensor
    """[C, H, W] in -1..1, padded."""
    labels: Tensor | None
    """[L], StarGAN's."""
    size: tuple[int, int]
    """H, W before padding."""
    deep: bool
    """Whether it was read from 16 bits."""
    alpha: PIL.Image.Image | None
    notes: tuple[str, ...] = ()


class Translator:
    """A loaded generator. model: as `ImageTranslation.load` takes it. Raises ModelError."""

    def __init__(self, model: str | Path, runtime: Runtime) -> None:
        self.runtime = runtime
        self.generator = load_generator(model)
        for way, channels in (("takes", self.generator.channels_in), ("makes", self.generator.channels_out)):
            if channels not in (1, 3):
                raise ModelError(
                    f"{self.generator.path} {way} {channels} channels, and pictures have 1 (grey) or 3 (RGB): "
                    "use another model"
                )
        self.network = runtime.place(self.generator.network, channels_last=runtime.device.type == "cuda")
        self.whole = quicken(self.network) if runtime.device.type == "cpu" else self.network
        """The network for pictures in one piece."""
        self.together = 1 if runtime.device.type == "cpu" else TOGETHER
        """The largest batch."""
        self._needs: dict[tuple[int, int], int] = {}

    def make(self, batch: Sequence[Params], progress: Progress) -> list[Output]:
        """One picture for each item, in order."""
        outputs: list[Output] = []
        for group in self._together(batch):
            tile, step = self._tile(group[0]), _telling(progress, len(outputs), len(batch))
            if tile is None:
                made = self._whole(group, step)
                if len(batch) > 1:
                    progress(len(outputs) + len(group), len(batch))
            else:
                made = self._tiled(group[0], tile, step)
            info = {} if tile is None else {"tile": tile}
            for scene, picture in zip(group, made, strict=True):
                outputs.append(self._output(scene, picture, info))
        return outputs

    def _together(self, batch: Sequence[Params]) -> Iterator[list[Scene]]:
        """The pictures in groups that run at once: one by one, or neighbours of one size as far as memory allows."""
        if self.together == 1:
            yield from ([self._read(params)] for params in batch)
            return
        scenes = map(self._read, batch)
        for (_, h, w), group in itertools.groupby(scenes, key=lambda scene: tuple(scene.picture.shape)):
            waiting = []
            room = 1 if batch[0].tile else int(SHARE * self.runtime.free_memory() / self._need(h, w))
            for scene in group:
                waiting.append(scene)
                if len(waiting) >= min(room, self.together):
                    yield waiting
                    waiting = []
            if waiting:
                yield waiting

    def _read(self, params: Params) -> Scene:
        """Raises MediaError, InputError."""
        labels = _labels(params.domain, self.generator.labels, self.generator.path)
        source = Image.open(params.image, background=params.background)
        picture, alpha = source.tensor(), source.alpha
        h, w = picture.shape[1:]
        notes: tuple[str, ...] = ()
        if params.size and params.size != max(h, w):
            picture = resized(picture, params.size)
            notes = (f"resized from {w}x{h} to {picture.shape[2]}x{picture.shape[1]} px, as size asks",)
            h, w = picture.shape[1:]
            alpha = alpha and alpha.resize((w, h), PIL.Image.Resampling.BICUBIC)
        if self.generator.channels_in == 1:
            picture = (picture * picture.new_tensor(LUMINANCE)[:, None, None]).sum(0, keepdim=True)
        deep = source.deep is not None and source.deep.dtype == np.uint16
        ready = padded(picture, self.generator.multiple, self.generator.smallest) * 2 - 1
        return Scene(params, ready, labels, (h, w), deep, alpha, notes)

    def _tile(self, scene: Scene) -> int | None:
        """The tile's side for a picture, px; None where it goes in one piece. Raises OutOfMemory."""
        h, w = scene.picture.shape[1:]
        if scene.params.tile is not None:
            return scene.params.tile if scene.params.tile < max(h, w) else None
        free = SHARE * self.runtime.free_memory()
        if self._need(h, w) <= free:
            return None
        for side in TILES:
            if OVERHEAD * tiling.Plan(self._program(scene), h, w, side).work(self._element) <= free / 4:
                return side
        raise OutOfMemory(
            f"{w}x{h} px does not fit {self.runtime.device} even in tiles ({free / 1e9:.1f} GB free): make it smaller"
        )

    def _need(self, height: int, width: int) -> int:
        """Bytes for a picture in one piece."""
        if (height, width) not in self._needs:
            core, channels = self._core()
            bytes_ = tiling.peak(Program(core, channels), height, width, self._element)
            self._needs[height, width] = int(OVERHEAD * bytes_)
        return self._needs[height, width]

    @property
    def _element(self) -> int:
        return torch.empty((), dtype=self.runtime.dtype).element_size()

    def _core(self) -> tuple[nn.Module, int]:
        """The network as tiles go through it, and its channels: StarGAN's has the labels as planes of the picture."""
        generator = self.generator
        core = self.network.get_submodule("main") if generator.labels else self.network
        return core, generator.channels_in + generator.labels

    def _program(self, scene: Scene) -> Program:
        """The steps of the network in the state that the item asks for."""
        with self._mode([scene], self.network):
            return Program(*self._core())

    def _mode(self, scenes: Sequence[Scene], network: nn.Module) -> contextlib.AbstractContextManager[None]:
        if scenes[0].params.eval_norm:
            return contextlib.nullcontext()
        generators = [self.runtime.generator(scene.params.seed or 0) for scene in scenes]
        return as_published(network, generators)

    def _whole(self, scenes: Sequence[Scene], step: tiling.Step) -> list[Tensor]:
        """Pictures of one size at once -> [C, H, W] each, in -1..1."""
        place: dict[str, Any] = {"device": self.runtime.device, "dtype": self.runtime.dtype}
        inputs = [torch.stack([scene.picture for scene in scenes]).to(**place)]
        labels = [scene.labels for scene in scenes if scene.labels is not None]
        if labels:
            inputs.append(torch.stack(labels).to(**place))
        with self.runtime.inference(), self._mode(scenes, self.whole), _layers_told(self.whole, step):
            return list(self.whole(*inputs).float().cpu())

    def _tiled(self, scene: Scene, tile: int, step: tiling.Step) -> list[Tensor]:
        """One picture in tiles -> [C, H, W] in -1..1."""
        picture = scene.picture[None]
        h, w = picture.shape[2:]
        if scene.labels is not None:
            picture = torch.cat([picture, scene.labels[None, :, None, None].expand(1, -1, h, w)], 1)
        plan = tiling.Plan(self._program(scene), h, w, tile)
        with self.runtime.inference():
            made = tiling.tiled(
                plan,
                picture,
                device=self.runtime.device,
                dtype=self.runtime.dtype,
                free=Runtime(torch.device("cpu")).free_memory(),
                step=step,
            )
        return [made[0]]

    def _output(self, scene: Scene, picture: Tensor, info: dict[str, int]) -> Output:
        """picture: [C, H, W] in -1..1, with the padding. Raises GenkitError where it is none."""
        if not picture.isfinite().all():
            raise GenkitError("the result is not a picture (NaN): the model is damaged, or needs --dtype float32")
        cut = (cropped(picture, *scene.size) + 1) / 2
        image = Image.from_tensor(cut)
        if scene.alpha is not None:
            image.pil.putalpha(scene.alpha)
            image = Image(image.pil)
        elif scene.deep:
            image = Image.open(_sixteen_bits(image))
        notes = list(scene.notes)
        if "tile" in info and scene.params.tile is None:
            h, w = scene.picture.shape[1:]
            notes.append(f"worked in tiles of {info['tile']} px: in one piece it takes {self._need(h, w) / 1e9:.1f} GB")
        return Output(images=[image], info=dict(info), found={"model": self.generator.words}, notes=notes)


def _sixteen_bits(image: Image) -> np.ndarray:
    """[H, W, 3], for a picture that is saved at 16 bits without being asked to."""
    assert image.deep is not None
    return np.rint(image.deep * np.float32(65535)).astype(np.uint16)


def _labels(domain: Sequence[float] | None, count: int, path: Path) -> Tensor | None:
    """The labels [count] that a domain means. Raises InputError."""
    if not count:
        if domain is not None:
            raise InputError(f"domain is for StarGAN's generators; {path} makes one look only: leave domain out")
        return None
    how = f"give domain as {'one number' if count == 1 else f'a place from 0 to {count - 1}, or as {count} numbers'}"
    if domain is None:
        raise InputError(f"{path} takes {count} label{'s' * (count > 1)}, and domain is missing: {how}")
    if len(domain) == count:
        return torch.tensor(domain)
    if len(domain) != 1:
        raise InputError(f"domain has {len(domain)} numbers, and {path} takes {count} labels: {how}")
    if domain[0] not in range(count):
        raise InputError(f"domain {domain[0]:g} is none of the {count} that {path} knows: {how}")
    return F.one_hot(torch.tensor(int(domain[0])), count).float()


@contextlib.contextmanager
def _layers_told(network: nn.Module, step: tiling.Step) -> Iterator[None]:
    """Inside, every layer is a step: a large picture takes minutes on a CPU, and can be stopped."""
    layers = [layer for layer in network.modules() if layer is not network and not isinstance(layer, nn.Sequential)]
    count, total = itertools.count(1), len(layers) + 1
    hooks = [layer.register_forward_hook(lambda *_: step(next(count), total, "")) for layer in layers]
    try:
        yield
        step(total, total, "")
    finally:
        for hook in hooks:
            hook.remove()


def _telling(progress: Progress, before: int, pictures: int) -> tiling.Step:
    """Progress by tile or layer for a picture alone; within a batch by picture, with the tile in words."""

    def step(done: int, total: int, words: str) -> None:
        if pictures == 1:
            progress(done, total, note=words)
        else:
            at = before + (done == total)
            progress(max(1, at), pictures, note=f"picture {before + 1}, tile {done} of {total}" if words else "")

    return step
