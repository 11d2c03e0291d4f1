"""`style-transfer`, `method: optimize`, beside a plain eager float32 implementation of the same method.

    python benchmarks/style_transfer.py [--size 512] [--steps 10] [--rounds 3] [--features small] [--device cpu]

Both sides see the same pictures through the same feature network and take the same number of Adam steps from the photo
at one scale, with the same losses and weights. Each run is a process of its own; rounds alternate. Printed for each
side: seconds a step (median over the steps after the first, median over rounds), the most memory tensors take,
and the loss of the picture at the end, which is always taken in float32 by the plain code.

To reach: at least 1.5 times the steps a second, at most 0.7 of the memory, the loss within 2 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from genkit.media.image import Image
from genkit.runtime import Runtime
from pipelines.style_transfer.loading import feature_network
from pipelines.style_transfer.models import MODELS
from pipelines.style_transfer.networks import features
from pipelines.style_transfer.networks.features import Vgg
from pipelines.style_transfer.optimize import Plan, resize, transfer

SHIPPED = Path(__file__).parent.parent / "recipes" / "quickstart"
WEIGHTS = {"content": 0.02, "tv": 1.0}


def pictures(size: int):
    """The shipped photo and style as [1, 3, H, W] in 0..1, their longer sides `size`."""
    return [resize(Image.open(SHIPPED / name).tensor()[None], size) for name in ("astronaut.jpg", "swirls.jpg")]


def network(name: str):
    if name.startswith("vgg"):  # random weights do for speed and memory, and need no download
        torch.manual_seed(0)
        return Vgg(int(name[3:])).freeze()
    return feature_network(name, MODELS)


class LyapunovRoot(torch.autograd.Function):
    """Square root forward, Lyapunov equation backward, twelve Newton-Schulz iterations each (Lin & Maji 2017)."""

    @staticmethod
    def forward(ctx, a):
        norm = a.square().sum((1, 2), keepdim=True).sqrt()
        eye = torch.eye(a.shape[-1], device=a.device)
        y, z = a / norm, eye.expand_as(a)
        for _ in range(12):
            t = (3 * eye - z @ y) / 2
            y, z = y @ t, t @ z
        root = y * norm.sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx, grad):
        (root,) = ctx.saved_tensors
        norm = root.square().sum((1, 2), keepdim=True).sqrt()
        eye = torch.eye(root.shape[-1], device=root.device)
        a, q = root / norm, grad / norm
        for _ in range(12):
            square = a @ a
            q = (q @ (3 * eye - square) - a.transpose(1, 2) @ (a.transpose(1, 2) @ q - q @ a)) / 2
            a = a @ (3 * eye - square) / 2
        return q / 2


class Plain:
    """The method as it is usually written: NCHW, float32, autograd for everything, one matrix root after another."""

    def __init__(self, net, content, style) -> None:
        self.net = net
        self.style_taps = list(net.defaults.style)
        self.content_taps = list(net.defaults.content)
        with torch.no_grad():
            self.content = net(content, self.content_taps)
            self.style = {k: self.statistics(v) for k, v in net(style, self.style_taps).items()}
        total = sum(net.defaults.style.values())
        self.style_weights = {k: v / total for k, v in net.defaults.style.items()}

    @staticmethod
    def statistics(features):
        flat = features.flatten(2)
        return flat.mean(2), flat @ flat.transpose(1, 2) / flat.shape[2]

    def loss(self, x):
        features = self.net(x, [*self.style_taps, *(k for k in self.content_taps if k not in self.style_taps)])
        style = 0.0
        for name, weight in self.style_weights.items():
            mean, second = self.statistics(features[name])
            mean_t, second_t = self.style[name]
            eye = 1e-4 * torch.eye(mean.shape[1], device=x.device)
            cov = second - mean[:, :, None] * mean[:, None, :] + eye
            cov_t = second_t - mean_t[:, :, None] * mean_t[:, None, :] + eye
            root_t = LyapunovRoot.apply(cov_t)
            cross = LyapunovRoot.apply(root_t @ cov @ root_t)
            trace = torch.diagonal(cov + cov_t - 2 * cross, dim1=1, dim2=2).sum(1)
            size = torch.diagonal(second_t, dim1=1, dim2=2).sum(1)
            style = style + weight * (((mean - mean_t) ** 2).sum(1) + trace).mean() / size.mean()
        kept = [((features[k] - v) ** 2).mean() / (v**2).mean() for k, v in self.content.items()]
        across = ((x[..., :, 1:] - x[..., :, :-1]) ** 2).mean()
        down = ((x[..., 1:, :] - x[..., :-1, :]) ** 2).mean()
        slope = ((x[..., 1:, 1:] - x[..., :-1, :-1]) ** 2).mean() + ((x[..., 1:, :-1] - x[..., :-1, 1:]) ** 2).mean()
        tv = (across + down + slope / 2) / 3
        return style + WEIGHTS["content"] * sum(kept) / len(kept) + WEIGHTS["tv"] * tv


def ordinary_operations() -> None:
    """Puts torch's own convolution, ReLU and pooling in the place of the frozen ones, for the plain side."""

    features.conv_relu = lambda x, conv: F.relu(conv(x))
    features.average_pool = lambda x, kernel, stride: F.avg_pool2d(x, kernel, stride, ceil_mode=True)


def run_plain(arguments, content, style, tick):
    ordinary_operations()
    net = network(arguments.features).to(arguments.device)
    content, style = content.to(arguments.device), style.to(arguments.device)
    plain = Plain(net, content, style)
    x = content.clone().requires_grad_()
    adam = torch.optim.Adam([x], 0.02, (0.9, 0.99))
    average = torch.zeros_like(x)
    tick()
    for _ in range(arguments.steps):
        adam.zero_grad()
        plain.loss(x).backward()
        adam.step()
        with torch.no_grad():
            x.clamp_(0, 1)
            average.mul_(0.99).add_(x, alpha=0.01)
        tick()
    return average / (1 - 0.99**arguments.steps)


def run_genkit(arguments, content, style, tick):

    runtime = Runtime.pick(device=arguments.device, dtype=arguments.dtype)
    net = runtime.place(network(arguments.features), dtype=runtime.relaxed, channels_last=True)
    # One scale, and the plan's "twice as many at the first" taken off.
    plan = Plan(
        size=arguments.size,
        steps=arguments.steps // 2,
        smallest=arguments.size,
        content_weight=WEIGHTS["content"],
        tv_weight=WEIGHTS["tv"],
    )
    tick()
    with runtime.active():
        return transfer(net, content, [style], plan, step=lambda *_: tick())[0]


def peak_memory(arguments, run, content, style) -> int:
    """The most memory that torch holds in tensors at once during two steps, bytes.

    On a GPU torch counts itself; on the CPU the profiler records every allocation. (A process's resident size also
    holds libraries, and what the C library keeps back.)
    """
    short = argparse.Namespace(**{**vars(arguments), "steps": 2})
    if arguments.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        run(short, content, style, lambda: None)
        return torch.cuda.max_memory_allocated()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run(short, content, style, lambda: None)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def measure(arguments) -> None:
    """One side, in this process: prints seconds a step, bytes, and the final loss as JSON."""
    run = run_plain if arguments.side == "plain" else run_genkit
    # What torch loads and compiles on first use is no part of a step: a few steps at 96 px bring it in.
    small = argparse.Namespace(**{**vars(arguments), "size": 96, "steps": 2})
    run(small, *pictures(96), lambda: None)
    content, style = pictures(arguments.size)
    times: list[float] = []

    def tick() -> None:
        if arguments.device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    made = run(arguments, content, style, tick)
    with torch.no_grad():
        judge = Plain(network(arguments.features), content, style)
        loss = float(judge.loss(made.float().cpu()))
    steps = [b - a for a, b in itertools.pairwise(times)][2:]
    print(
        json.dumps(
            {"seconds": statistics.median(steps), "bytes": peak_memory(arguments, run, content, style), "loss": loss}
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="longer side, px")
    parser.add_argument("--steps", type=int, default=20, help="even number of steps in each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--features", default="small", choices=["small", "vgg16", "vgg19"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None, help="genkit's dtype (default: what it picks)")
    parser.add_argument("--side", choices=["plain", "genkit"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measure(arguments)
        return
    rows: dict[str, list[dict[str, float]]] = {"plain": [], "genkit": []}
    for _ in range(arguments.rounds):
        for side, found in rows.items():
            printed = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--side", side], check=True, stdout=subprocess.PIPE, text=True
            )
            found.append(json.loads(printed.stdout.splitlines()[-1]))
    middle = {
        side: {key: statistics.median(row[key] for row in found) for key in found[0]} for side, found in rows.items()
    }
    plain, ours = middle["plain"], middle["genkit"]
    about = f"{arguments.features}, {arguments.size} px, {arguments.steps} steps, {arguments.device}"
    print(f"{about}, torch {torch.__version__}, median of {arguments.rounds} rounds\n")
    print("| | steps a second | memory, MB | final loss |")
    print("| --- | --- | --- | --- |")
    for side, row in middle.items():
        print(f"| {side} | {1 / row['seconds']:.2f} | {row['bytes'] / 2**20:.0f} | {row['loss']:.5f} |")
    faster, smaller = plain["seconds"] / ours["seconds"], ours["bytes"] / plain["bytes"]
    print(f"| ratio | {faster:.2f} | {smaller:.2f} | {ours['loss'] / plain['loss']:.4f} |")


if __name__ == "__main__":
    main()
