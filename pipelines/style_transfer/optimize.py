"""`method: optimize`: the picture itself is optimised (Gatys, Ecker & Bethge 2016), from a small scale to the full one.

After crowsonkb/style-transfer-pytorch: scales a factor of sqrt(2) apart, the first with twice the steps; the moments of
Adam are carried from scale to scale, resized with the picture; what comes out is a bias-corrected moving average of the
iterates, which rids it of the noise of single steps.

Shapes: pictures [1, 3, H, W], sRGB in 0..1; masks [1, 1, H, W].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.style_transfer.losses import STYLE_LOSSES, Moments, blend
from pipelines.style_transfer.networks.features import FeatureNetwork
from pipelines.style_transfer.objective import Losses, Objective, Region, style_moments

__all__ = ["Plan", "resize", "scales", "transfer"]

AVERAGE = 0.99  # decay of the iterates' moving average
BETAS = (0.9, 0.99)
FACTOR = math.sqrt(2)
NARROWEST = 16  # shorter side at the smallest scale, px


@dataclass(frozen=True)
class Plan:
    """What to optimise for, and how. size: longer side of the result, px; see the pipeline's Params for the rest."""

    size: int
    steps: int
    smallest: int = 128
    content_weight: float = 0.02
    style_weight: float = 1.0
    tv_weight: float = 1.0
    style_scale: float = 1.0
    style_loss: str = "wasserstein"
    optimizer: str = "adam"
    learning_rate: float = 0.02
    init: str = "content"
    style_weights: Sequence[float] = ()
    tile: Callable[[int, int], int | None] = field(default=lambda height, width: None)
    """The side of a tile for a picture of this height and width; None for the whole at once."""


Step = Callable[[int, int, Losses, Callable[[], Tensor], str], None]
"""Called after each step with: steps done, steps in all, losses, what makes the picture so far, a note."""


def scales(size: int, smallest: int) -> list[int]:
    """The longer side at each scale, px, rising by sqrt(2) to `size`; none below `smallest` but for size itself."""
    found = [size]
    while found[-1] / FACTOR >= smallest:
        found.append(round(found[-1] / FACTOR))
    return found[::-1]


def resize(picture: Tensor, size: int) -> Tensor:
    """The picture with its longer side `size`, antialiased when it shrinks; no side below 1 px."""
    h, w = picture.shape[-2:]
    shape = [max(1, round(n * size / max(h, w))) for n in (h, w)]
    return picture if [h, w] == shape else _resample(picture, shape)


def _resample(picture: Tensor, shape: Sequence[int]) -> Tensor:
    return F.interpolate(picture, list(shape), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def transfer(
    network: FeatureNetwork,
    content: Tensor,
    styles: Sequence[Tensor],
    plan: Plan,
    *,
    masks: Sequence[Tensor] = (),
    generator: torch.Generator | None = None,
    step: Step | None = None,
) -> tuple[Tensor, Losses]:
    """Restyles content. Returns the picture, on the network's device, and the losses of the last step.

    styles: pictures of any size; masks: none, or one per style, where in the result it applies; generator: a CPU
    generator for the random inits.
    """
    device = next(network.parameters()).device
    # A panorama's smallest scale is the one at which its shorter side can still be seen.
    narrow = math.ceil(NARROWEST * max(content.shape[-2:]) / min(content.shape[-2:]))
    sizes = scales(plan.size, max(plan.smallest, narrow))
    total = plan.steps * (len(sizes) + 1)
    canvas: Canvas | None = None
    done = 0
    for number, size in enumerate(sizes, 1):
        photo = resize(content, size).to(device)
        shape = photo.shape[-2:]
        tile = plan.tile(*shape)
        pictures = [_style_at(style, size, plan.style_scale).to(device) for style in styles]
        objective = Objective(
            network,
            content=photo,
            content_taps=network.defaults.content,
            style_taps=network.defaults.style,
            regions=_regions(network, pictures, [_mask_at(mask, shape).to(device) for mask in masks], plan),
            content_weight=plan.content_weight,
            style_weight=plan.style_weight,
            tv_weight=plan.tv_weight,
            tile=tile,
        )
        if canvas is None:
            canvas = CANVASES[plan.optimizer](_initial(photo, pictures, plan, generator), plan.learning_rate)
        else:
            canvas.rescale(shape)
        for _ in range(plan.steps * (2 if number == 1 else 1)):
            losses = canvas.step(objective)
            done += 1
            if step:
                step(done, total, losses, canvas.picture, f"{shape[1]}x{shape[0]}, scale {number} of {len(sizes)}")
    assert canvas is not None
    return canvas.picture(), losses


def _style_at(style: Tensor, size: int, scale: float) -> Tensor:
    """A style at the working scale; never enlarged, which would teach its blur, unless it has next to no pixels."""
    longer, shorter = max(style.shape[-2:]), min(style.shape[-2:])
    return resize(style, max(32, min(round(size * scale), longer), math.ceil(8 * longer / shorter)))


def _mask_at(mask: Tensor, shape: Sequence[int]) -> Tensor:
    return F.interpolate(mask, list(shape), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


@torch.no_grad()
def _regions(network: FeatureNetwork, styles: Sequence[Tensor], masks: Sequence[Tensor], plan: Plan) -> list[Region]:
    """One region a style where masks say so, else one region with the styles blended."""
    names = list(network.defaults.style)
    seen = [style_moments(network, style, names, plan.tile(*style.shape[-2:])) for style in styles]
    loss = STYLE_LOSSES[plan.style_loss]
    if masks:
        return [
            Region(mask, {name: loss(by_tap[name]) for name in names}) for mask, by_tap in zip(masks, seen, strict=True)
        ]
    weights = plan.style_weights or [1.0] * len(styles)
    mixed: dict[str, Moments] = {name: blend([by_tap[name] for by_tap in seen], weights) for name in names}
    return [Region(None, {name: loss(value) for name, value in mixed.items()})]


def _initial(photo: Tensor, styles: Sequence[Tensor], plan: Plan, generator: torch.Generator | None) -> Tensor:
    """Where the optimisation begins. Random numbers are drawn on the CPU, whatever the device."""
    if plan.init == "content":
        return photo.clone()
    if plan.init == "gray":
        return torch.full_like(photo, 0.5)
    if plan.init == "uniform":
        return torch.rand(photo.shape, generator=generator).to(photo)
    noise = torch.randn(photo.shape, generator=generator).to(photo)
    if plan.init == "normal":
        return (0.5 + noise / 4).clamp(0, 1)
    # "style": noise with the mean and standard deviation of the styles' pixels, per channel
    pixels = torch.cat([style.flatten(2) for style in styles], 2)
    return (pixels.mean(2)[..., None, None] + noise * pixels.std(2)[..., None, None]).clamp(0, 1)


class Adam:
    """Adam on a picture (Kingma & Ba 2015, algorithm 1), clamped to 0..1 after each step; averages the iterates.

    Written out because its state is resized with the picture, which torch's own keeps to itself.
    """

    def __init__(self, picture: Tensor, learning_rate: float) -> None:
        self.x, self.learning_rate = picture, learning_rate
        self.first, self.second = torch.zeros_like(picture), torch.zeros_like(picture)
        self.steps = 0
        self._restart_average()

    def _restart_average(self) -> None:
        self.average, self.weight = torch.zeros_like(self.x), 0.0

    @torch.no_grad()
    def step(self, objective: Objective) -> Losses:
        with torch.enable_grad():
            gradient, losses = objective.gradient(self.x)
        self.steps += 1
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        rate = self.learning_rate / (1 - BETAS[0] ** self.steps)
        scale = (self.second / (1 - BETAS[1] ** self.steps)).sqrt_().add_(1e-8)
        self.x.addcdiv_(self.first, scale, value=-rate).clamp_(0, 1)
        self.average.lerp_(self.x, 1 - AVERAGE)
        self.weight = 1 - (1 - self.weight) * AVERAGE
        return losses

    def picture(self) -> Tensor:
        """The average of the iterates of this scale, without its bias towards zero."""
        return (self.average / self.weight).clamp(0, 1) if self.weight else self.x.clone()

    @torch.no_grad()
    def rescale(self, shape: Sequence[int]) -> None:
        """On to another size: the picture from the average; the moments bicubic and (kept positive) bilinear."""
        self.x = _resample(self.picture(), shape)
        self.first = F.interpolate(self.first, list(shape), mode="bicubic", align_corners=False)
        self.second = F.interpolate(self.second, list(shape), mode="bilinear", align_corners=False).relu_()
        self._restart_average()


class Lbfgs:
    """L-BFGS, one iteration a step, history 10 (neural-style's choice of optimiser). Not clamped on the way, which
    would contradict its model of the curvature."""

    def __init__(self, picture: Tensor, learning_rate: float) -> None:
        del learning_rate  # a quasi-Newton step has its own length
        self._begin(picture)

    def _begin(self, picture: Tensor) -> None:
        self.x = picture.clone().requires_grad_()
        self.optimizer = torch.optim.LBFGS([self.x], max_iter=1, history_size=10, tolerance_grad=0)
        # The loss is a mean over pixels: times their number, or its gradients fall below what LBFGS takes for nothing.
        self.scale = picture.numel()

    def step(self, objective: Objective) -> Losses:
        found: list[Losses] = []

        def closure() -> float:
            gradient, losses = objective.gradient(self.x)
            self.x.grad = gradient * self.scale
            found.append(losses)
            return losses.total * self.scale

        with torch.enable_grad():
            self.optimizer.step(closure)
        return found[0]

    def picture(self) -> Tensor:
        return self.x.detach().clamp(0, 1)

    def rescale(self, shape: Sequence[int]) -> None:
        self._begin(_resample(self.picture(), shape))


Canvas = Adam | Lbfgs
CANVASES: dict[str, type[Adam] | type[Lbfgs]] = {"adam": Adam, "lbfgs": Lbfgs}
