"""Where requests become pictures: asked, encoded, sampled together, decoded, put back into what they were begun from.

Choices made here:
- Everything goes through diffusers' own pipelines, one of each mode over the same weights. A picture has a CPU
  generator of its own, seeded with seed + i, so that it is the same alone or among others, to the rounding of the
  device's arithmetic.
- Requests of one shape run together, as many pictures at once as make up PIXELS, fewer where memory does not suffice.
- A scheduler is made for each call: those of diffusers remember what they have been through.
- Progress counts sampling steps, of a high-resolution fix those of both passes; it is told within the loop, so that a
  `Cancelled` raised from it ends the work between two evaluations of the network, and nothing is handed over.

B: pictures at once.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from genkit.pipeline import Output, Progress
from genkit.runtime import Runtime
from pipelines.stable_diffusion import canvas, memory, schedulers
from pipelines.stable_diffusion.additions.applying import Additions, Use
from pipelines.stable_diffusion.asking import Mode, Request, ask
from pipelines.stable_diffusion.choosing import Judge, best
from pipelines.stable_diffusion.decoding import decode
from pipelines.stable_diffusion.loading import load_model
from pipelines.stable_diffusion.meter import Meter
from pipelines.stable_diffusion.prompts import Encoded, Prompts

if TYPE_CHECKING:
    from genkit.media.image import Image
    from pipelines.stable_diffusion.pipeline import Params
    from pipelines.stable_diffusion.preview import Preview

__all__ = ["Painter"]

Thing = TypeVar("Thing")

PIXELS = {"cpu": 2**18}
"""Of pictures that are sampled at once, by device: more gains nothing."""
PIXELS_ELSEWHERE = 2**22


@dataclass(frozen=True)
class Item:
    """One picture on its way. embeds: its prompt as a pipe's call takes it, a batch of one."""

    request: Request
    seed: int
    embeds: Mapping[str, Tensor]

    @property
    def form(self) -> Hashable:
        """What is equal in pictures that are sampled together: a long prompt may not lengthen its neighbours'."""
        shapes = tuple((name, tuple(value.shape)) for name, value in sorted(self.embeds.items()))
        return self.request.size, self.request.steps, shapes


@dataclass(frozen=True)
class Pass:
    """One way through the model. start, end: the share of a picture's work that it is; begun: the call's arguments of
    what it begins from."""

    mode: Mode
    size: tuple[int, int]
    steps: int
    start: float
    end: float
    begun: Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """What requests of one shape are made with. tiles: what there is to say about tiles, each thing once."""

    use: Use
    meter: Meter
    tiles: dict[str, None] = field(default_factory=dict)


class Painter:
    """A loaded model. model: as `StableDiffusion.load` takes it. Raises ModelError."""

    def __init__(self, model: str | Path, runtime: Runtime) -> None:
        self.runtime = runtime
        self.model = load_model(model, runtime)
        self.additions = Additions(self.model)
        self.prompts = Prompts(self.model)
        self._shown: Preview | None = None
        self._judges: dict[str | None, Judge] = {}
        self._size: tuple[int, int] | None = None  # of the pictures in the model now, or when memory ran out
        self._tiles_from = sys.maxsize  # pixels of the smallest picture that memory ran out for

    def paint(self, batch: Sequence[Params], progress: Progress) -> list[Output]:
        """One Output for each request, in order. Raises InputError, GenkitError, Cancelled."""
        requests = [ask(params, self.model) for params in batch]
        for request in requests:  # before anything is painted that nobody could judge
            if request.params.best_of:
                self._judge(request.params.clip)
        groups = _grouped(requests, lambda request: request.params.shape())
        meter = Meter(progress, sum(map(self._steps, groups)))
        outputs: dict[int, Output] = {}
        with torch.no_grad():
            for group in groups:
                meter.begin(self._steps(group), sum(request.count for request in group))
                outputs |= zip(map(id, group), self._group(group, meter), strict=True)
        return [outputs[id(request)] for request in requests]

    def at_once(self, params: Params) -> int:
        """Requests of this one's shape that gain by one call: as many as are sampled together.

        One in float32 and where results must repeat: a picture among others may differ from the same one alone in the
        last bits, and then in a level of its pixels. With bfloat16 none differed on a CPU."""
        if self.runtime.deterministic or self.runtime.relaxed == torch.float32:
            return 1
        request = ask(params, self.model)
        return max(1, self._at_once([request]) // request.count)

    def _at_once(self, requests: Sequence[Request]) -> int:
        """Pictures that are sampled together."""
        pixels = PIXELS.get(self.runtime.device.type, PIXELS_ELSEWHERE)
        return max(1, pixels // max(math.prod(request.upscaled or request.size) for request in requests))

    def _steps(self, group: Sequence[Request]) -> int:
        """Steps that progress counts for requests of one shape."""
        pictures = sum(request.count for request in group)
        return math.ceil(pictures / self._at_once(group)) * max(request.work for request in group)

    def _group(self, group: Sequence[Request], meter: Meter) -> list[Output]:
        """Requests of one shape, which share whatever is added to the model."""
        made: dict[int, Image] = {}
        with self.additions.applied(group[0].params) as use:
            work = Work(use, meter)
            encoded = [self._encoded(request, use) for request in group]
            items = [
                Item(request, seed, one.embeds)
                for request, one in zip(group, encoded, strict=True)
                for seed in request.seeds
            ]
            for alike in _grouped(items, lambda item: item.form):
                size = self._at_once([item.request for item in alike])
                for part in (alike[i : i + size] for i in range(0, len(alike), size)):
                    made |= zip(map(id, part), self._made(part, work), strict=True)
        ready = iter([made[id(item)] for item in items])
        return [
            self._output(request, [next(ready) for _ in request.seeds], one.notes, [*work.tiles])
            for request, one in zip(group, encoded, strict=True)
        ]

    def _made(self, items: Sequence[Item], work: Work) -> list[Image]:
        """Pictures of one form, fewer at once where memory does not suffice."""
        return self.runtime.halving(lambda some: self._make(some, work), items, self.relieve)

    def relieve(self) -> str | None:
        """After memory ran out for a single picture: see `memory`."""
        size, self._size = self._size, None
        if size and math.prod(size) < self._tiles_from and memory.tile_side(self.model.pipe.vae, *size):
            self._tiles_from = math.prod(size)
            return f"decodes pictures from {size[0]}x{size[1]} px on in tiles"
        return self.model.step_down()

    def _encoded(self, request: Request, use: Use) -> Encoded:
        params = request.params
        negative = params.negative_prompt or self.model.defaults.negative_prompt
        return self.prompts.encode(
            use.text(params.prompt),
            use.text(negative),
            clip_skip=params.clip_skip,
            guided=request.guided,
            key=use.key,
        )

    def _make(self, items: Sequence[Item], work: Work) -> list[Image]:
        """Pictures of one form, together."""
        request = items[0].request
        # Made here, so that they begin anew where memory did not suffice for so many at once.
        generators = [self.runtime.generator(item.seed) for item in items]
        first = Pass(request.mode, request.size, request.steps, 0, request.first / request.work, _begun(items))
        pictures = self._pass(first, items, generators, work)
        if request.upscaled:
            larger = {"image": canvas.enlarged(pictures, request.upscaled), "strength": request.params.upscale_strength}
            second = Pass("image", request.upscaled, request.steps_again, first.end, 1, larger)
            pictures = self._pass(second, items, generators, work)
        work.meter.finished(len(items))
        return [canvas.finish(picture, item.request.scene) for picture, item in zip(pictures, items, strict=True)]

    def _pass(self, this: Pass, items: Sequence[Item], generators: list[torch.Generator], work: Work) -> list[Tensor]:
        """From noise, or a picture with noise on it, to pictures [3, H, W] in 0..1."""
        model, request = self.model, items[0].request
        pipe = work.use.pipe(this.mode)
        seeds = [item.seed for item in items]
        scheduler = schedulers.make(request.scheduler, model.scheduler_config, family=model.family, seeds=seeds)
        schedulers.fits(scheduler, this.steps)
        if "generator" in inspect.signature(scheduler.step).parameters:  # which SD 3's and Flux's pipelines do not pass
            scheduler.step = functools.partial(scheduler.step, generator=generators)
        width, height = this.size
        given = {
            **{name: torch.cat([item.embeds[name] for item in items]) for name in items[0].embeds},
            "width": width,
            "height": height,
            **this.begun,
            **work.use.arguments(this.mode, width, height, len(items), request.guided),
        }
        # diffusers takes any name, and loses those that it has no use for.
        known = inspect.signature(pipe.__call__).parameters

        def step(pipe: Any, i: int, t: Any, state: dict[str, Any]) -> dict[str, Any]:
            share = this.start + (this.end - this.start) * (i + 1) / pipe.num_timesteps
            work.meter.tell(len(items), share, lambda: self._preview(state["latents"], this.size))
            return {}

        before, pipe.scheduler = pipe.scheduler, scheduler
        try:
            with self._fitted(width, height, work):
                latents = pipe(
                    **{name: value for name, value in given.items() if name in known},
                    num_inference_steps=this.steps,
                    guidance_scale=request.guidance,
                    generator=generators,
                    output_type="latent",
                    callback_on_step_end=step,
                ).images
                return decode(model, latents, width, height)
        finally:
            pipe.scheduler = before
            pipe.maybe_free_model_hooks()

    def _preview(self, latents: Tensor, size: tuple[int, int]) -> Image:
        """What pictures look like so far, side by side."""
        if self._shown is None:
            from pipelines.stable_diffusion.preview import Preview

            self._shown = Preview(self.model)
        return self._shown.picture(latents, *size)

    @contextlib.contextmanager
    def _fitted(self, width: int, height: int, work: Work) -> Iterator[None]:
        """The autoencoder in tiles where a picture of this size is beyond memory."""
        if work.use.params.seamless:  # has no borders, and tiles have
            yield
            return
        self._size = width, height
        ran_out = width * height >= self._tiles_from
        with memory.tiled(self.model.pipe.vae, self.runtime, width, height, ran_out) as words:
            work.tiles.update({words: None} if words else {})
            yield
        self._size = None

    def _judge(self, clip: str | None) -> Judge:
        if clip not in self._judges:
            self._judges[clip] = Judge.of(self.model, clip)
        return self._judges[clip]

    def _output(self, request: Request, images: list[Image], notes: Sequence[str], tiles: Sequence[str]) -> Output:
        params, seeds, info = request.params, request.seeds, {}
        found = {**request.found, "scheduler": request.scheduler or self.model.scheduler_config["_class_name"]}
        if params.best_of:
            scores = self._judge(params.clip).scores(images, params.prompt)
            kept = best(scores, params.num_images_per_prompt)
            images, seeds = [images[i] for i in kept], [seeds[i] for i in kept]
            info, found = {"scores": [round(scores[i], 4) for i in kept]}, {**found, "seeds": seeds}
        notes = [*self.model.notes, *request.notes, *notes, *tiles]
        return Output(images, seeds=seeds, info=info, found=found, notes=notes, degraded="; ".join(tiles))


def _grouped(things: Iterable[Thing], key: Callable[[Thing], Hashable]) -> list[list[Thing]]:
    """In order of their first."""
    groups: dict[Hashable, list[Thing]] = defaultdict(list)
    for thing in things:
        groups[key(thing)].append(thing)
    return list(groups.values())


def _begun(items: Sequence[Item]) -> dict[str, Any]:
    """What the first pass begins from: nothing, pictures [B, 3, H, W], or these with masks [B, 1, H, W]."""
    scenes = [item.request.scene for item in items if item.request.scene is not None]
    masks = [scene.mask for scene in scenes if scene.mask is not None]
    begun: dict[str, Any] = {"mask_image": torch.stack(masks)} if masks else {}
    if scenes:
        begun |= {"image": torch.stack([scene.picture for scene in scenes]), "strength": items[0].request.strength}
    return begun
