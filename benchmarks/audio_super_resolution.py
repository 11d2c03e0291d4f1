"""`audio-super-resolution` beside a plain whole-file run of the same network, and beside sinc resampling, the floor.

    python benchmarks/audio_super_resolution.py [--lengths 10 60 600] [--channels 1 2] [--rounds 3] [--quick] [--busy]
                                                [--model FILE ... | --random] [--device cpu] [--dtype float32] [--json]

Every side goes from a file to a file:

- sinc: reads all of it, resamples, writes it.
- plain: the same, with the network over the whole in one call (a row for each channel) before it is written: what one
  would write by hand. Float32, eager, inference mode, the layers as PyTorch has them (genkit's are `networks.quick`).
- genkit: the pipeline, loaded already. It also finds the cutoff, passes what was recorded through, links the channels
  and notes in the file how it was made; that time counts.

The input is made here from a seed: partials and noise up to half of its rate, which is half the model's. By default the
models that ship restore it, both presets; `--random` takes networks of their sizes with random weights (speed does not
depend on them), `--model` other files.

Times are medians of rounds that alternate between the sides, in one process; a factor is seconds of sound, however many
channels, by seconds of work. Memory is the most that a fresh process takes more than it had after loading and a second
of sound: of its resident size, on a GPU of torch's own count. The difference is the greatest between genkit's samples
and the network's over the whole with the same bands (`bands.link`, `bands.keep_band`), up to --compare seconds.

Then 16 clips of 3 s, from memory to memory: genkit's batch beside the plain side one by one.

On a busy machine `--busy` counts the processor's time of one thread instead of the clock's of all.

To reach: never slower than plain; memory flat in length; the difference within 1e-5 in float32; on a GPU the batch at
least 3 times the plain loop.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

import genkit
from genkit import weights
from genkit.errors import ModelError
from genkit.media.audio import Audio
from genkit.media.recording import Recording
from genkit.media.sampling import resample
from genkit.pipeline import Pipeline
from pipelines.audio_super_resolution import bands, streams
from pipelines.audio_super_resolution.loading import Model, header, load
from pipelines.audio_super_resolution.models import MODELS, RATES, shipped
from pipelines.audio_super_resolution.networks import spectral, unet

PRESETS = ("faithful", "bright")
SIZES: dict[tuple[str, str], unet.Config | spectral.Config] = {  # of the models that ship
    ("speech-16k", "faithful"): unet.Config(width=16),
    ("speech-16k", "bright"): spectral.Config(192, 6, 512, 128, 512),
    ("piano-44k", "faithful"): unet.Config(width=16),
    ("piano-44k", "bright"): spectral.Config(176, 6, 1024, 256, 1024),
}
CLIPS, CLIP = 16, 3  # how many, of how many seconds
SIDES = ("sinc", "plain", "genkit")
HEAD = (
    "| model | channels | seconds | sinc | plain | genkit | genkit / plain | sinc, MB | plain, MB | genkit, MB "
    "| difference |"
)
CLIPS_HEAD = (
    f"| {CLIPS} clips of {CLIP} s each, clips a second | plain, one by one | genkit, at once | genkit / plain |"
)
SECONDS = 10  # of sound that are made at once


@dataclass
class Case:
    """A model, and where its file is."""

    name: str
    path: Path

    @property
    def model(self) -> Model:
        return load(self.path)


# ------------------------------------------------------------------------------------------------------- what is read


def random_file(alias: str, preset: str, folder: Path) -> Path:
    config, rate = SIZES[alias, preset], RATES[alias]
    torch.manual_seed(0)
    network = unet.UNet(config) if isinstance(config, unet.Config) else spectral.Spectral(config)
    path = folder / f"{alias}-{preset}.safetensors"
    weights.write(path, network.state_dict(), header(network, rate=rate, from_rates=[rate // 2], preset=preset))
    return path


def cases(arguments: argparse.Namespace, folder: Path) -> Iterator[Case]:
    for file in arguments.model:
        yield Case(file.stem, file)
    for alias, preset in () if arguments.model else itertools.product(MODELS, PRESETS):
        name = f"{alias} {preset}"
        if arguments.random:
            yield Case(f"{name}, random", random_file(alias, preset, folder))
            continue
        try:
            yield Case(name, weights.locate(shipped(alias, preset), MODELS))
        except ModelError as error:
            print(f"{name} is left out ({error}); --random has its speed", file=sys.stderr)


def music(rate: int, channels: int, seed: int) -> Tensor:
    """SECONDS of a chord a second and noise, float32 [C, T], with sound up to half the rate."""
    generator = torch.Generator().manual_seed(seed)
    second = torch.arange(rate) / rate
    sounds = []
    for _ in range(channels):
        roots = 55 * 2 ** (torch.randint(0, 48, (SECONDS, 3, 1, 1), generator=generator) / 12)
        partials = torch.arange(1, 9)[:, None]
        pitch = roots * partials
        wave = torch.sin(2 * torch.pi * pitch * second) * torch.exp(-3 * partials * second) / partials
        chords = (wave * (pitch < rate / 2)).sum((1, 2)).flatten()
        sounds.append(0.05 * chords + 0.01 * torch.randn(SECONDS * rate, generator=generator))
    return torch.stack(sounds)


def recording(path: Path, rate: int, seconds: int, channels: int, seed: int = 0) -> Path:
    """A WAV of 24 bits."""
    with soundfile.SoundFile(path, "w", rate, channels, "PCM_24") as file:
        for start in range(0, seconds, SECONDS):
            block = music(rate, channels, seed + start)
            file.write(block[:, : (seconds - start) * rate].T.numpy())
    return path


# ---------------------------------------------------------------------------------------------------------- the sides


def sinc(source: Path, target: Path, rate: int) -> None:
    samples, old = soundfile.read(source, dtype="float32", always_2d=True)
    soundfile.write(target, resample(torch.from_numpy(samples.T.copy()), old, rate).T.numpy(), rate, "PCM_24")


class Plain:
    def __init__(self, case: Case, device: str) -> None:
        model = case.model
        self.network, self.rate, self.device = model.network.to(device), model.rate, device

    def __call__(self, source: Path, target: Path) -> None:
        samples, old = soundfile.read(source, dtype="float32", always_2d=True)
        soundfile.write(target, self.restored(torch.from_numpy(samples.T.copy()), old).T.numpy(), self.rate, "PCM_24")

    @torch.inference_mode()
    def restored(self, samples: Tensor, old: int) -> Tensor:
        """[C, T] -> [C, T]"""
        return self.network.restore(resample(samples, old, self.rate).to(self.device)).cpu()


class Ours:
    def __init__(self, case: Case, device: str, dtype: str | None) -> None:
        self.pipeline: Pipeline = genkit.load("audio-super-resolution", model=case.path, device=device, dtype=dtype)

    def __call__(self, source: Path, target: Path) -> None:
        self.pipeline(audio=source).save(target)


def sides(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """By name; each is called with two files."""
    rate = case.model.rate
    return {
        "sinc": lambda source, target: sinc(source, target, rate),
        "plain": Plain(case, arguments.device),
        "genkit": Ours(case, arguments.device, arguments.dtype),
    }


# -------------------------------------------------------------------------------------------------------- the figures


def interleaved(sides: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds that each takes, the median. Every side ends on the CPU: no device is left to be waited for."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _, (name, work) in itertools.product(range(rounds), sides.items()):
        start = clock()
        work()
        times[name].append(clock() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def difference(case: Case, pipeline: Pipeline, source: Path) -> float:
    """The greatest between genkit's samples and the network over the whole, with the same bands.

    Both hear the samples that `streams.resampled` makes: a network that hears phases tells them from `resample`'s of
    the whole, which differ by rounding.
    """
    model, ours = case.model, pipeline(audio=source).audio
    assert ours is not None
    found = Recording.open(source)
    top = bands.KEPT * found.sample_rate / 2
    low = torch.cat(list(streams.resampled(found.blocks(), found.sample_rate, model.rate)), 1)
    with torch.inference_mode():
        made = model.network.restore(low)
    whole = bands.keep_band(low, bands.link(low, made, top, model.rate), top, model.rate)
    return float((ours.samples - whole).abs().max())


def resident(name: str) -> int:
    """A line of /proc/self/status, bytes: VmRSS, what is resident now; VmHWM, the most since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def own_memory(case: Case, arguments: argparse.Namespace) -> int:
    """Bytes, of one side in this process."""
    work = sides(case, arguments)[arguments.side]
    work(arguments.warm, arguments.target)
    if arguments.device != "cpu":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work(arguments.source, arguments.target)
        return torch.cuda.max_memory_allocated() - before
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    work(arguments.source, arguments.target)
    return resident("VmHWM") - before


def memory(case: Case, side: str, source: Path, warm: Path, target: Path, arguments: argparse.Namespace) -> int:
    """Bytes, of one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--model", case.path, "--device", arguments.device]
    command += ["--source", source, "--warm", warm, "--target", target]
    command += ["--dtype", arguments.dtype] if arguments.dtype else []
    printed = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(printed.stdout.splitlines()[-1])


def measure(case: Case, arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each number of channels and length."""
    rate = case.model.rate
    running = sides(case, arguments)
    target = folder / "made.wav"
    for channels, length in itertools.product(arguments.channels, arguments.lengths):
        source = recording(folder / "dull.wav", rate // 2, length, channels)
        warm = recording(folder / "warm.wav", rate // 2, 1, channels)
        for side in running.values():
            side(warm, target)  # what is loaded on first use
        work = {name: functools.partial(side, source, target) for name, side in running.items()}
        times = interleaved(work, arguments.rounds, arguments.clock)
        row: dict[str, Any] = {"model": case.name, "channels": channels, "seconds": length}
        row |= {name: length / taken for name, taken in times.items()}
        row |= {f"{name} bytes": memory(case, name, source, warm, target, arguments) for name in running}
        row["difference"] = (
            difference(case, running["genkit"].pipeline, source) if length <= arguments.compare else None
        )
        yield row


def clips(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """Clips a second: the plain side one by one, genkit at once."""
    plain, ours = Plain(case, arguments.device), Ours(case, arguments.device, arguments.dtype)
    rate = case.model.rate // 2
    sounds = [music(rate, 1, seed)[:, : CLIP * rate] for seed in range(CLIPS)]
    batch = [ours.pipeline.Params.parse({"audio": Audio(sound, rate)}) for sound in sounds]
    both: dict[str, Callable[[], Any]] = {
        "plain": lambda: [plain.restored(sound, rate) for sound in sounds],
        "genkit": lambda: ours.pipeline.generate(batch),
    }
    for work in both.values():
        work()
    times = interleaved(both, arguments.rounds, arguments.clock)
    return {"model": case.name} | {name: CLIPS / taken for name, taken in times.items()}


# -------------------------------------------------------------------------------------------------------- what is said


def machine(arguments: argparse.Namespace) -> str:
    if arguments.device != "cpu":
        name = torch.cuda.get_device_name(arguments.device)
    else:
        name = f"{platform.machine()}, {torch.get_num_threads()} threads" + (
            ", processor time" if arguments.busy else ""
        )
    load_average = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{name}, {arguments.dtype or 'default dtype'}, torch {torch.__version__}{load_average}"


def line(row: dict[str, Any]) -> str:
    cells = [row["model"], row["channels"], row["seconds"], *(f"{row[name]:.1f}" for name in SIDES)]
    cells += [f"{row['genkit'] / row['plain']:.2f}", *(f"{row[f'{name} bytes'] / 2**20:.0f}" for name in SIDES)]
    cells += ["-" if row["difference"] is None else f"{row['difference']:.1e}"]
    return f"| {' | '.join(map(str, cells))} |"


def clips_line(row: dict[str, Any]) -> str:
    return f"| {row['model']} | {row['plain']:.1f} | {row['genkit']:.1f} | {row['genkit'] / row['plain']:.2f} |"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", type=Path, default=[], help="files (default: the models that ship)")
    parser.add_argument("--random", action="store_true", help="random weights in networks of the sizes that ship")
    parser.add_argument("--lengths", nargs="+", type=int, default=[10, 60, 600], help="seconds")
    parser.add_argument("--channels", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compare", type=int, default=60, help="seconds up to which the samples are compared")
    parser.add_argument("--quick", action="store_true", help="10 and 30 s of two channels, two rounds")
    parser.add_argument("--busy", action="store_true", help="one thread, and processor time instead of the clock's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None, help="genkit's (default: what it picks); plain is float32")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each row instead of the tables")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    for name in ("--source", "--warm", "--target"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.lengths, arguments.channels, arguments.rounds = [10, 30], [2], 2
    arguments.clock = time.process_time if arguments.busy else time.perf_counter
    return arguments


def table(rows: Iterator[dict[str, Any]], arguments: argparse.Namespace, head: str, line: Callable[..., str]) -> None:
    if not arguments.json:
        print(f"\n{head}\n|{' --- |' * (head.count('|') - 1)}", flush=True)
    for row in rows:
        print(json.dumps(row) if arguments.json else line(row), flush=True)


def main() -> None:
    arguments = parsed()
    if arguments.side:
        print(json.dumps(own_memory(Case("", arguments.model[0]), arguments)))
        return
    if arguments.busy:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = list(cases(arguments, folder))
        if not arguments.json:
            print(f"{machine(arguments)}, median of {arguments.rounds} rounds; times real time, and MB")
        rows = (row for case in found for row in measure(case, arguments, folder))
        table(rows, arguments, HEAD, line)
        table((clips(case, arguments) for case in found), arguments, CLIPS_HEAD, clips_line)


if __name__ == "__main__":
    main()
