"""`stable-diffusion` beside diffusers used plainly: `from_pretrained(...)` and a call, with the same weights and seeds.

    python benchmarks/stable_diffusion.py [--what emoji sd15 jobs cold] [--rounds 3] [--steps 20] [--busy] [--json]
    python benchmarks/stable_diffusion.py --what gpu --device cuda

- plain: diffusers' pipeline as it loads (on a GPU in bfloat16), called with a generator for each picture.
- float32: genkit in its exact mode, `dtype="float32"`.
- default: genkit as it comes: on a CPU that computes in bfloat16 the denoiser runs in that.

emoji: the model that ships (`--model` for another), 128 px, 1 and 16 pictures. sd15: networks of Stable Diffusion 1.5's
size, random weights, 512 px, a picture of `--few` steps. gpu: SDXL's size, random weights, 1024 px, 30 steps. jobs: 16
requests with a prompt each, as a recipe's jobs run together, beside 16 calls one after another. cold: processes from
their start to the file, four pictures of emoji, `genkit stable-diffusion` beside a script of a few lines, and the most
memory that they take.

Times are medians of rounds that alternate between the sides, in one process (cold: in a process each). Differences are
between the pictures, in 0..1: the greatest, and decibels of the worst picture. On a busy machine `--busy` counts the
processor's time of one thread instead of the clock's of all, which favours nobody but tells nothing of two threads.

To reach: float32 never slower than plain and within 1e-5 of it; default 1.9 times plain on a CPU, twice on an H200,
over 40 dB; 16 jobs 1.5 times the pictures a second of 16 calls; emoji, four pictures, cold under 15 s.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import genkit
from genkit.runtime import Runtime
from pipelines.stable_diffusion.pipeline import StableDiffusion

SIDES: Mapping[str, str | None] = {"plain": None, "float32": "float32", "default": None}
PROMPTS = ("red apple", "green apple", "fox face", "owl", "snowman", "rocket", "cat with tears of joy", "sun")
SCRIPT = """
import sys, torch
from diffusers import StableDiffusionPipeline
folder, prompt, steps, guidance, name = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
generators = [torch.Generator("cpu").manual_seed(7 + i) for i in range(4)]
made = pipe(prompt, num_images_per_prompt=4, num_inference_steps=int(steps), guidance_scale=float(guidance),
            generator=generators).images
for i, picture in enumerate(made, 1):
    picture.save(f"{name}-{i}.png")
"""

# ------------------------------------------------------------------------------------------------ models made at random

EMOJI: dict[str, Any] = {
    "unet": {
        "sample_size": 16,
        "block_out_channels": (96, 128, 176),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 192,
        "attention_head_dim": 4,
        "norm_num_groups": 16,
    },
    "vae": {"sample_size": 128, "block_out_channels": (16, 32, 64, 128), "norm_num_groups": 8},
    "text": {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 3},
}
SD15: dict[str, Any] = {
    "unet": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "vae": {"sample_size": 512, "block_out_channels": (128, 256, 512, 512)},
    "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
}
SDXL: dict[str, Any] = {
    "unet": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae": {"sample_size": 1024, "block_out_channels": (128, 256, 512, 512)},
    "text": SD15["text"],
    "text_2": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
    },
}


def tokenizer(length: int) -> Any:
    """CLIP's kind, of letters alone."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=length)


def text_encoder(words: Any, length: int, shape: Mapping[str, Any], *, projection: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    config = CLIPTextConfig(vocab_size=len(words), max_position_embeddings=length, **ends, **shape)
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def write(folder: Path, shape: Mapping[str, Any]) -> Path:
    """A model of this shape in diffusers' format, float16, with random weights from a seed."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(0)
    length = 32 if shape is EMOJI else 77
    words = tokenizer(length)
    levels = len(shape["vae"]["block_out_channels"])
    blocks = {
        f"{way}_block_types": (f"{name}Block2D",) * levels
        for way, name in (("down", "DownEncoder"), ("up", "UpDecoder"))
    }
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(**shape["unet"]),
        "vae": AutoencoderKL(**{"layers_per_block": 2, "latent_channels": 4, **blocks, **shape["vae"]}),
        "tokenizer": words,
        "text_encoder": text_encoder(words, length, shape["text"]),
        "scheduler": DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
    }
    if "text_2" in shape:
        second = text_encoder(words, length, shape["text_2"], projection=True)
        parts |= {"tokenizer_2": words, "text_encoder_2": second}
        pipe: Any = StableDiffusionXLPipeline(**parts)
    else:
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.half()
    pipe.save_pretrained(folder)
    return folder


def emoji(arguments: argparse.Namespace, folder: Path) -> Path:
    """The model that was named, the one that ships, or until there is one a random one of its shape."""
    from pipelines.stable_diffusion import pipeline

    shipped = Path(pipeline.__file__).parent / "weights" / "emoji"
    for found in (arguments.model, shipped):
        if found and (found / "model_index.json").is_file() and any((found / "unet").glob("*.safetensors")):
            return found
    return folder / "emoji" if (folder / "emoji").is_dir() else write(folder / "emoji", EMOJI)


# --------------------------------------------------------------------------------------------------------- both at work


class Work:
    """What is asked for: the same of every side."""

    def __init__(self, model: Path, count: int, steps: int, guidance: float) -> None:
        self.model, self.count = model, count
        self.settings: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}


@functools.cache
def plain_pipe(model: Path, device: str) -> Any:
    import diffusers

    kind = json.loads((model / "model_index.json").read_text())["_class_name"]
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    pipe = getattr(diffusers, kind).from_pretrained(model, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def ours(model: Path, device: str, dtype: str | None) -> StableDiffusion:
    found = genkit.load("stable-diffusion", model=model, device=device, dtype=dtype)
    assert isinstance(found, StableDiffusion)
    return found


def make(side: str, work: Work, device: str, prompt: str = PROMPTS[0], seed: int = 7) -> Tensor:
    """Pictures [B, 3, H, W] in 0..1 of one request."""
    if side == "plain":
        generators = [torch.Generator("cpu").manual_seed(seed + i) for i in range(work.count)]
        given: dict[str, Any] = {"num_images_per_prompt": work.count, "generator": generators, "output_type": "pt"}
        return plain_pipe(work.model, device)(prompt, **given, **work.settings).images.float().cpu()
    pipeline = ours(work.model, device, SIDES[side])
    output = pipeline(prompt=prompt, seed=seed, num_images_per_prompt=work.count, **work.settings)
    return torch.stack([image.tensor() for image in output.images])


def together(side: str, work: Work, device: str) -> int:
    """16 requests at once, as the jobs of a recipe are."""
    pipeline = ours(work.model, device, SIDES[side])
    requests = [
        StableDiffusion.Params.parse({"prompt": PROMPTS[i % len(PROMPTS)], "seed": i, **work.settings})
        for i in range(16)
    ]
    return len(pipeline.run(requests, lambda *_, **__: None))


def one_by_one(side: str, work: Work, device: str) -> None:
    for i in range(16):
        make(side, work, device, PROMPTS[i % len(PROMPTS)], i)


# ---------------------------------------------------------------------------------------------------------- the figures


def clock(arguments: argparse.Namespace) -> float:
    """Seconds, once the device has done what it was given."""
    if arguments.device != "cpu":
        torch.cuda.synchronize()
    return time.process_time() if arguments.busy else time.perf_counter()


def interleaved(sides: Mapping[str, Callable[[], Any]], arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds that each takes, the median."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, work in sides.items():
            start = clock(arguments)
            work()
            times[name].append(clock(arguments) - start)
    return {name: statistics.median(found) for name, found in times.items()}


def apart(made: Tensor, right: Tensor) -> tuple[float, float]:
    """The greatest difference, and the decibels of the picture that is furthest off."""
    worst = float((made - right).double().square().mean((1, 2, 3)).max())
    return float((made - right).abs().max()), 10 * math.log10(1 / max(worst, 1e-30))


def warm(what: str, works: Sequence[Work], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each number of pictures: the sides' times, and how far they are from plain."""
    sides = [side for side in SIDES if arguments.device == "cpu" or side != "float32"]
    for work in works:
        made = {side: make(side, work, arguments.device) for side in sides}  # loads, and warms up
        times = interleaved({side: functools.partial(make, side, work, arguments.device) for side in sides}, arguments)
        row: dict[str, Any] = {"what": f"{what}, {work.count} at once" if work.count > 1 else f"{what}, 1 picture"}
        for side in sides:
            row[side] = times[side]
            if side != "plain":
                row[f"{side} / plain"] = times["plain"] / times[side]
                row[f"{side} difference"], row[f"{side} dB"] = apart(made[side], made["plain"])
        yield row


def jobs(work: Work, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    one_by_one("plain", Work(work.model, 1, 1, 1), arguments.device)
    for side in ("float32", "default"):
        for run in (together, one_by_one):
            run(side, Work(work.model, 1, 1, 1), arguments.device)
        ways: dict[str, Callable[[], Any]] = {
            "plain calls": functools.partial(one_by_one, "plain", work, arguments.device),
            "calls": functools.partial(one_by_one, side, work, arguments.device),
            "jobs": functools.partial(together, side, work, arguments.device),
        }
        times = interleaved(ways, arguments)
        row: dict[str, Any] = {"what": f"16 pictures, {side}"} | times
        yield row | {f"jobs / {name}": times[name] / times["jobs"] for name in ("calls", "plain calls")}


def cold(model: Path, arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each side: seconds from a process's start to its end, and its greatest resident size."""
    steps, guidance = str(arguments.steps), str(arguments.guidance)
    script = [sys.executable, "-c", SCRIPT, str(model), PROMPTS[0], steps, guidance, str(folder / "plain")]
    command = [sys.executable, "-m", "genkit", "stable-diffusion", "--prompt", PROMPTS[0], "--seed", "7"]
    command += ["--num-images-per-prompt", "4", "--model", str(model), "--num-inference-steps", steps]
    command += ["--guidance-scale", guidance]
    commands = {"plain": script, "float32": [*command, "--dtype", "float32", "-o", str(folder / "float32.png")]}
    commands["default"] = [*command, "-o", str(folder / "default.png")]
    found: dict[str, list[tuple[float, int]]] = {side: [] for side in commands}
    for _ in range(arguments.rounds):
        for side, words in commands.items():
            found[side].append(process(words, arguments))
    for side, measured in found.items():
        seconds, most = (statistics.median(column) for column in zip(*measured, strict=True))
        yield {"what": f"4 pictures, {side}", "seconds": seconds, "bytes": most}


def process(command: Sequence[str], arguments: argparse.Namespace) -> tuple[float, int]:
    """(seconds, bytes) of a process of its own; on a busy machine the processor's seconds."""
    environment = dict(os.environ, HF_HUB_OFFLINE="1")
    start = time.perf_counter()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = child.stdout.read() if child.stdout else ""
    _, status, usage = os.wait4(child.pid, 0)
    taken = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ... failed:\n{said}")
    return (usage.ru_utime + usage.ru_stime if arguments.busy else taken), 1024 * usage.ru_maxrss


# --------------------------------------------------------------------------------------------------------- what is said


def cell(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if name == "bytes":
        return f"{value / 2**20:.0f} MB"
    if name.endswith("dB"):
        return f"{min(value, 200):.1f}"
    if name.endswith("difference"):
        return f"{value:.1e}"
    return f"{value:.2f}"


def table(title: str, rows: Iterator[dict[str, Any]], as_json: bool) -> None:
    for number, row in enumerate(rows):
        if as_json:
            print(json.dumps({"table": title, **row}), flush=True)
            continue
        if not number:
            print(f"\n{title}\n\n| {' | '.join(row)} |\n|{' --- |' * len(row)}")
        print(f"| {' | '.join(cell(name, value) for name, value in row.items())} |", flush=True)


def machine(arguments: argparse.Namespace) -> str:
    if arguments.device != "cpu":
        name = torch.cuda.get_device_name(arguments.device)
    else:
        how = ", processor time" if arguments.busy else ""
        name = f"{platform.machine()}, threads: {torch.get_num_threads()}{how}"
    runtime = Runtime.pick(device=arguments.device)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    dtypes = runtime.describe()["dtype"]
    return f"{name}, default {dtypes}, torch {torch.__version__}{load}; median of {arguments.rounds} rounds"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", nargs="+", choices=["emoji", "sd15", "jobs", "cold", "gpu"])
    parser.add_argument("--model", type=Path, help="a folder of diffusers', for emoji, jobs and cold")
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 16], help="pictures asked for at once")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--few", type=int, default=2, help="steps of sd15")
    parser.add_argument("--size", type=int, default=512, help="px, of sd15; a multiple of 64")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", action="store_true", help="one thread, and processor time instead of the clock's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each row instead of the tables")
    arguments = parser.parse_args()
    arguments.what = arguments.what or (["emoji", "jobs", "cold"] if arguments.device == "cpu" else ["gpu"])
    return arguments


def main() -> None:
    arguments = parsed()
    if arguments.busy:
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"
    if not arguments.json:
        print(machine(arguments))
    guidance, say = arguments.guidance, arguments.json
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = emoji(arguments, folder) if {"emoji", "jobs", "cold"} & set(arguments.what) else folder
        if "emoji" in arguments.what:
            works = [Work(small, count, arguments.steps, guidance) for count in arguments.counts]
            table(f"emoji ({small.name}), seconds", warm("emoji", works, arguments), say)
        if "jobs" in arguments.what:
            table("jobs, seconds", jobs(Work(small, 1, arguments.steps, guidance), arguments), say)
        if "cold" in arguments.what:
            table("cold", cold(small, arguments, folder), say)
        if "sd15" in arguments.what:
            shape = {**SD15, "unet": {**SD15["unet"], "sample_size": arguments.size // 8}}
            works = [Work(write(folder / "sd15", shape), 1, arguments.few, guidance)]
            table("Stable Diffusion 1.5's size, seconds", warm(f"{arguments.size} px", works, arguments), say)
        if "gpu" in arguments.what:
            works = [Work(write(folder / "sdxl", SDXL), count, 30, guidance) for count in (1, 4)]
            table("SDXL's size, seconds", warm("1024 px", works, arguments), say)


if __name__ == "__main__":
    main()
