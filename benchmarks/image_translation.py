"""`image-translation` and `genkit train` of a CycleGAN beside the published method, written out plainly.

    python benchmarks/image_translation.py [--what pictures training] [--size 256] [--blocks 9] [--width 64]
                                           [--rounds 3] [--batches 1 16] [--steps 3] [--busy] [--device cpu] [--json]

- plain: generator and PatchGAN from PyTorch's own layers and the training step as the paper has it (Zhu et al. 2017):
  eager float32, batch 1, one picture after another, in inference mode where nothing is learned.
- float32: genkit in its exact mode, with the same weights. Pictures go through what the pipeline's loaded model has
  (`Translator`), one by one on a CPU and at once on a GPU; training is `genkit train` itself, with its data, pools and
  log.
- bfloat16: genkit where `dtype: bfloat16` or `precision: bf16` asks for it.

Weights are N(0, 0.02), as training begins with, pictures are made from a seed. Times are medians of rounds that
alternate between the sides, in one process. Memory is the most that a fresh process takes more than it had with the
weights loaded and a small picture made, of training in all: of its resident size, on a GPU of torch's own count.
Differences are between the results, in -1..1, of four pictures.

On a busy machine `--busy` counts the processor's time of one thread instead of the clock's of all.

To reach: float32 within 1e-5 of plain; on a CPU 1.3 times its pictures in float32, twice in bfloat16; on a GPU four
times its pictures at once and 2.5 times its steps.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genkit import weights
from genkit.media.image import Image
from genkit.runtime import Runtime
from genkit.training.recipe import TrainRecipe
from genkit.training.trainer import Trainer
from pipelines.image_translation.train.cyclegan import CycleGAN
from pipelines.image_translation.translating import Translator

SIDES = ("plain", "float32", "bfloat16")
PRECISIONS = {"float32": "no", "bfloat16": "bf16"}
PICTURES_HEAD = (
    "| pictures | plain, a second | float32 | bfloat16 | float32 / plain | bfloat16 / plain "
    "| plain, MB | float32, MB | bfloat16, MB |"
)
TRAINING_HEAD = PICTURES_HEAD.replace("pictures", "training").replace("plain, a second", "plain, steps a second")

# ----------------------------------------------------------------------------------------------- the published method


class PlainBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            nn.InstanceNorm2d(width),
            nn.ReLU(True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Plain(nn.Module):
    """A network whose layers lie in a row, under the published names."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(layer.weight, 0, 0.02)
                nn.init.constant_(layer.bias, 0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def plain_generator(width: int, blocks: int) -> Plain:
    def finished(convolution: nn.Module, to: int) -> list[nn.Module]:
        return [convolution, nn.InstanceNorm2d(to), nn.ReLU(True)]

    w = width
    return Plain(
        nn.ReflectionPad2d(3),
        *finished(nn.Conv2d(3, w, 7), w),
        *finished(nn.Conv2d(w, 2 * w, 3, stride=2, padding=1), 2 * w),
        *finished(nn.Conv2d(2 * w, 4 * w, 3, stride=2, padding=1), 4 * w),
        *(PlainBlock(4 * w) for _ in range(blocks)),
        *finished(nn.ConvTranspose2d(4 * w, 2 * w, 3, stride=2, padding=1, output_padding=1), 2 * w),
        *finished(nn.ConvTranspose2d(2 * w, w, 3, stride=2, padding=1, output_padding=1), w),
        nn.ReflectionPad2d(3),
        nn.Conv2d(w, 3, 7),
        nn.Tanh(),
    )


def plain_discriminator() -> Plain:
    def finished(c: int, to: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(c, to, 4, stride, padding=1), nn.InstanceNorm2d(to), nn.LeakyReLU(0.2, True)]

    return Plain(
        nn.Conv2d(3, 64, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2, True),
        *finished(64, 128, 2),
        *finished(128, 256, 2),
        *finished(256, 512, 1),
        nn.Conv2d(512, 1, 4, padding=1),
    )


class PlainPool:
    """Of 50 pictures made before; half of the time one of them is shown."""

    def __init__(self) -> None:
        self.pictures: list[Tensor] = []

    def swap(self, made: Tensor) -> Tensor:
        made = made.detach()
        if len(self.pictures) < 50:
            self.pictures.append(made)
            return made
        if random.random() > 0.5:
            return made
        place = random.randrange(50)
        old, self.pictures[place] = self.pictures[place], made
        return old


class PlainCycleGAN:
    """The published step: least squares, cycle 10, identity 5, generators before discriminators."""

    def __init__(self, width: int, blocks: int, device: str) -> None:
        self.to_b, self.to_a = (plain_generator(width, blocks).to(device) for _ in range(2))
        self.of_b, self.of_a = (plain_discriminator().to(device) for _ in range(2))
        self.generators, self.discriminators = (
            torch.optim.Adam([*one.parameters(), *other.parameters()], 2e-4, betas=(0.5, 0.999))
            for one, other in ((self.to_b, self.to_a), (self.of_b, self.of_a))
        )
        self.pools = PlainPool(), PlainPool()

    def step(self, a: Tensor, b: Tensor) -> None:
        made_b, made_a = self.to_b(a), self.to_a(b)
        self._learn(False)
        loss = self.judged(self.of_b, made_b, 1) + self.judged(self.of_a, made_a, 1)
        loss = loss + 10 * (F.l1_loss(self.to_a(made_b), a) + F.l1_loss(self.to_b(made_a), b))
        loss = loss + 5 * (F.l1_loss(self.to_b(b), b) + F.l1_loss(self.to_a(a), a))
        self.generators.zero_grad()
        loss.backward()
        self.generators.step()
        self._learn(True)
        self.discriminators.zero_grad()
        for judge, real, made, pool in (
            (self.of_b, b, made_b, self.pools[0]),
            (self.of_a, a, made_a, self.pools[1]),
        ):
            ((self.judged(judge, real, 1) + self.judged(judge, pool.swap(made), 0)) / 2).backward()
        self.discriminators.step()

    def _learn(self, whether: bool) -> None:
        for judge in (self.of_a, self.of_b):
            judge.requires_grad_(whether)

    @staticmethod
    def judged(judge: nn.Module, x: Tensor, wanted: float) -> Tensor:
        scores = judge(x)
        return F.mse_loss(scores, torch.full_like(scores, wanted))


# ------------------------------------------------------------------------------------------------------- both at work


def scene(size: int, seed: int) -> Tensor:
    """A picture [3, H, W] in -1..1: soft shapes and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    soft = torch.randn(1, 3, 6, 6, generator=generator)
    wide = F.interpolate(soft, (size, size), mode="bicubic", align_corners=False)[0]
    return (wide / 2 + 0.05 * torch.randn(3, size, size, generator=generator)).clamp(-1, 1)


def model_file(arguments: argparse.Namespace, folder: Path) -> Path:
    """Weights to begin with, under the published names."""
    torch.manual_seed(0)
    path = folder / "latest_net_G.safetensors"
    weights.write(path, plain_generator(arguments.width, arguments.blocks).state_dict(), {})
    return path


def maker(side: str, model: Path, arguments: argparse.Namespace) -> Callable[[Tensor], Tensor]:
    """Pictures [B, 3, H, W] -> the same, float32."""
    if side == "plain":
        network = plain_generator(arguments.width, arguments.blocks)
        network.load_state_dict(weights.read(model))
        network = network.eval().to(arguments.device)

        @torch.inference_mode()
        def plainly(x: Tensor) -> Tensor:
            return torch.cat([network(one.to(arguments.device)) for one in x.split(1)])

        return plainly
    runtime = Runtime.pick(device=arguments.device, dtype=side)
    translator = Translator(model, runtime)

    def ours(x: Tensor) -> Tensor:
        with runtime.inference():
            parts = (part.to(runtime.device, runtime.dtype) for part in x.split(translator.together))
            return torch.cat([translator.whole(part).float() for part in parts])

    return ours


def trained(side: str, folder: Path, arguments: argparse.Namespace) -> list[float]:
    """Seconds of each step but the first."""
    ends: list[float] = []
    if side == "plain":
        training = PlainCycleGAN(arguments.width, arguments.blocks, arguments.device)
        for step in range(arguments.steps):
            a, b = (scene(arguments.size, 2 * step + i)[None].to(arguments.device) for i in range(2))
            training.step(a, b)
            ends.append(arguments.clock())
    else:
        recipe = TrainRecipe.parse(
            {
                "train": "cyclegan",
                "name": "benchmark",
                "steps": arguments.steps,
                "batch_size": 1,
                "precision": PRECISIONS[side],
                "checkpoint": {"every": 10**6},
                "task": {
                    "data": {"a": str(folder / "a"), "b": str(folder / "b")},
                    "size": arguments.size,
                    "load_size": round(arguments.size * 286 / 256),
                    "width": arguments.width,
                    "blocks": arguments.blocks,
                },
            }
        )
        trainer = Trainer(
            CycleGAN,
            recipe,
            folder / "run",
            device=arguments.device,
            progress=lambda *_, **__: ends.append(arguments.clock()),
            say=lambda _: None,
        )
        trainer.train(restart=True)
    return [end - start for start, end in itertools.pairwise(ends)]


def pictures_on_disk(arguments: argparse.Namespace, folder: Path) -> None:
    for number, look in itertools.product(range(4), "ab"):
        (folder / look).mkdir(exist_ok=True)
        picture = (scene(round(arguments.size * 286 / 256), 100 + number + 10 * (look == "b")) + 1) / 2
        Image.from_tensor(picture).pil.save(folder / look / f"{number}.png")


# -------------------------------------------------------------------------------------------------------- the figures


def clock(arguments: argparse.Namespace) -> Callable[[], float]:
    """Seconds, once the device has done what it was given."""

    def after_the_device() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    if arguments.device != "cpu":
        return after_the_device
    return time.process_time if arguments.busy else time.perf_counter


def interleaved(sides: Mapping[str, Callable[[], Any]], arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds that each takes, the median."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _, (name, work) in itertools.product(range(arguments.rounds), sides.items()):
        start = arguments.clock()
        work()
        times[name].append(arguments.clock() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def resident(name: str) -> int:
    """A line of /proc/self/status, bytes: VmRSS, what is resident now; VmHWM, the most since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def own_memory(arguments: argparse.Namespace, folder: Path) -> int:
    """Bytes, of one side in this process: of a batch, or of two training steps with networks and optimisers."""
    if arguments.batch:
        make = maker(arguments.side, model_file(arguments, folder), arguments)
        make(scene(64, 0)[None])
        batch = torch.stack([scene(arguments.size, seed) for seed in range(arguments.batch)])
        work: Callable[[], Any] = functools.partial(make, batch)
    else:
        pictures_on_disk(arguments, folder)
        arguments.steps = 2
        work = functools.partial(trained, arguments.side, folder, arguments)
    if arguments.device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    work()
    return resident("VmHWM") - before


def memory(side: str, batch: int) -> int:
    """Bytes, of one side in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--batch", str(batch)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(printed.stdout.splitlines()[-1])


def pictures(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each number of pictures that are asked for at once."""
    model = model_file(arguments, folder)
    making = {side: maker(side, model, arguments) for side in SIDES}
    for make in making.values():
        make(scene(arguments.size, 0)[None])  # what is loaded on first use
    for count in arguments.batches:
        batch = torch.stack([scene(arguments.size, seed) for seed in range(count)])
        times = interleaved({side: functools.partial(make, batch) for side, make in making.items()}, arguments)
        row: dict[str, Any] = {"what": f"{count} at once" if count > 1 else "1"}
        row |= {side: count / taken for side, taken in times.items()}
        yield row | {f"{side} bytes": memory(side, count) for side in SIDES}


def differences(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """How far the sides are from plain: the greatest difference over four pictures, and decibels."""
    torch.backends.cudnn.allow_tf32 = False
    model = model_file(arguments, folder)
    batch = torch.stack([scene(arguments.size, seed) for seed in range(4)])
    right = maker("plain", model, arguments)(batch)
    for side in SIDES[1:]:
        apart = (maker(side, model, arguments)(batch) - right).double()
        psnr = 10 * math.log10(4 / max(float(apart.square().mean()), 1e-30))
        yield {"what": side, "difference": float(apart.abs().max()), "psnr": psnr}


def training(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    pictures_on_disk(arguments, folder)
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _, side in itertools.product(range(arguments.rounds), SIDES):
        times[side] += trained(side, folder, arguments)
    row: dict[str, Any] = {"what": "CycleGAN, batch 1"}
    row |= {side: 1 / statistics.median(found) for side, found in times.items()}
    yield row | {f"{side} bytes": memory(side, 0) for side in SIDES}


# -------------------------------------------------------------------------------------------------------- what is said


def line(row: dict[str, Any]) -> str:
    cells = [row["what"], *(f"{row[side]:.3g}" for side in SIDES)]
    cells += [f"{row[side] / row['plain']:.2f}" for side in SIDES[1:]]
    cells += [f"{row[f'{side} bytes'] / 2**20:.0f}" for side in SIDES]
    return f"| {' | '.join(cells)} |"


def difference_line(row: dict[str, Any]) -> str:
    return f"| {row['what']} | {row['difference']:.1e} | {row['psnr']:.1f} |"


def table(rows: Iterator[dict[str, Any]], as_json: bool, head: str, line: Callable[[dict[str, Any]], str]) -> None:
    if not as_json:
        print(f"\n{head}\n|{' --- |' * (head.count('|') - 1)}", flush=True)
    for row in rows:
        print(json.dumps(row) if as_json else line(row), flush=True)


def machine(arguments: argparse.Namespace) -> str:
    if arguments.device != "cpu":
        name = torch.cuda.get_device_name(arguments.device)
    else:
        how = ", processor time" if arguments.busy else ""
        name = f"{platform.machine()}, threads: {torch.get_num_threads()}{how}"
    size = f"{arguments.blocks} blocks, {arguments.width} channels, {arguments.size} px"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{name}, torch {torch.__version__}{load}; {size}, median of {arguments.rounds} rounds"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", nargs="+", choices=["pictures", "training"], default=["pictures", "training"])
    parser.add_argument("--size", type=int, default=256, help="side of the pictures, px; a multiple of 4")
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--width", type=int, default=64, help="channels of the first layer")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16], help="pictures asked for at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="training steps of a round; the first is not counted")
    parser.add_argument("--busy", action="store_true", help="one thread, and processor time instead of the clock's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each row instead of the tables")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps must be at least 2: the first is not counted")
    arguments.clock = clock(arguments)
    return arguments


def main() -> None:
    arguments = parsed()
    if arguments.busy:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.side:
            print(json.dumps(own_memory(arguments, folder)))
            return
        if not arguments.json:
            print(machine(arguments))
        if "pictures" in arguments.what:
            difference_head = "| | greatest difference from plain | PSNR, dB |"
            table(differences(arguments, folder), arguments.json, difference_head, difference_line)
            table(pictures(arguments, folder), arguments.json, PICTURES_HEAD, line)
        if "training" in arguments.what:
            table(training(arguments, folder), arguments.json, TRAINING_HEAD, line)


if __name__ == "__main__":
    main()
