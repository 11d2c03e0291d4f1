"""`midi-generation`: tokens a second of the cached network beside the reference and beside a GPT-2 of the same shape.

    python benchmarks/midi_generation.py [--shape lieder large] [--batch 1 8 32] [--context 0 512 4096] [--rounds 3]
                                         [--quick] [--busy] [--device cpu] [--dtype float32] [--json]

Three sides generate greedily after the same number of tokens, one token at a time, with random weights (speed does not
depend on them):

- genkit: `Cached`, a ring of 512 tokens.
- reference: the training forward with a memory of 512 hidden states, keys, values and projected distances computed anew
  for each token, as the published code generates. Its tokens must be genkit's; if one is not, this script fails.
- GPT-2: Hugging Face `generate` with its dynamic cache, which keeps all that came before. Needs transformers.

Rounds alternate between the sides and each carries on where the last one stopped. A side's figure is the median over
rounds of the median time between two tokens, so that what `generate` does before the first token is not counted. The
context is read once for a batch of one and repeated for every row.

On a busy machine `--busy` counts the processor's time of one thread instead of the clock's of all.

To reach on two cores at batch 1: 9 times the reference, 1.5 times GPT-2; on an H200: 5 times GPT-2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pipelines.midi_generation.networks.cached import Cached
from pipelines.midi_generation.networks.transformer_xl import Config, TransformerXL

MEMORY = 512
SHAPES = {
    "lieder": Config(659, layers=8, width=256, heads=4, feedforward=1024),
    "large": Config(659, layers=16, width=512, heads=8, feedforward=2048),
}
SEGMENT = 256  # tokens of the context that the reference reads at once


class Side:
    """Generates; `times` are the moments at which tokens were ready, `made` the tokens of the first row."""

    clock = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.times: list[float] = []
        self.made: list[int] = []

    def tick(self, token: Tensor) -> None:
        self.made.append(int(token[0]))  # waits for the device
        self.times.append(self.clock())

    def generate(self, tokens: int) -> None:
        raise NotImplementedError

    def seconds(self, tokens: int) -> float:
        """The median time between two tokens of the next few."""
        self.times.clear()
        self.generate(tokens)
        return statistics.median(b - a for a, b in itertools.pairwise(self.times))


def beat(position: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Some place in the bar and bar number for tokens [B, T] that begin at `position`."""
    index = (position + torch.arange(tokens.shape[1], device=tokens.device)).expand_as(tokens)
    return index % 48, index // 48


class Genkit(Side):
    def __init__(self, network: TransformerXL, context: Tensor, batch: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.cached = Cached(network, batch=batch, memory=MEMORY, dtype=dtype)
        self.cached.select([0])
        self.position = context.shape[1]
        token = self.cached.read(context, *beat(0, context)).argmax(-1)
        self.cached.select([0] * batch)
        self.token = token.expand(batch)
        self.made.append(int(token))

    def generate(self, tokens: int) -> None:
        for _ in range(tokens):
            place, bar = beat(self.position, self.token[:, None])
            self.token = self.cached.step(self.token, place[:, 0], bar[:, 0]).argmax(-1)
            self.position += 1
            self.tick(self.token)


class Reference(Side):
    @torch.inference_mode()
    def __init__(self, network: TransformerXL, context: Tensor, batch: int) -> None:
        super().__init__()
        self.network, self.position, self.memory = network, 0, None
        for segment in context.split(SEGMENT, 1):
            logits = self.read(segment)
        self.token = logits[:, -1].argmax(-1).expand(batch)
        self.memory = [memory.repeat(batch, 1, 1) for memory in self.memory]
        self.made.append(int(self.token[0]))

    def read(self, tokens: Tensor) -> Tensor:
        place, bar = beat(self.position, tokens)
        logits, self.memory = self.network(tokens, self.memory, place=place, bar=bar, memory_len=MEMORY)
        self.position += tokens.shape[1]
        return logits

    @torch.inference_mode()
    def generate(self, tokens: int) -> None:
        for _ in range(tokens):
            self.token = self.read(self.token[:, None])[:, -1].argmax(-1)
            self.tick(self.token)


class HuggingFace(Side):
    @torch.inference_mode()
    def __init__(self, config: Config, context: Tensor, batch: int, dtype: torch.dtype) -> None:
        super().__init__()
        try:
            from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel
        except ImportError:
            sys.exit("the GPT-2 that this is measured against needs transformers: pip install transformers")
        shape = GPT2Config(
            vocab_size=config.vocabulary,
            n_positions=8192,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            n_inner=config.feedforward,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.model = GPT2LMHeadModel(shape).eval().to(context.device, dtype)
        self.cache = DynamicCache(config=self.model.config)
        self.model(context, past_key_values=self.cache, use_cache=True)
        self.cache.batch_repeat_interleave(batch)
        self.tokens = torch.cat([context, context[:, :1]], 1).repeat(batch, 1)

    def generate(self, tokens: int) -> None:
        def ready(found: Tensor, scores: Tensor) -> Tensor:
            self.tick(scores.argmax(-1))
            return scores

        self.tokens = self.model.generate(
            self.tokens,
            attention_mask=torch.ones_like(self.tokens),
            past_key_values=self.cache,
            max_new_tokens=tokens,
            do_sample=False,
            logits_processor=[ready],
            pad_token_id=0,
        )


def measure(arguments: argparse.Namespace, shape: str, batch: int, context: int) -> dict[str, object]:
    """One row of the table. The context is one token longer than its name: something must be read to begin."""
    config = Config(**{**vars(SHAPES[shape]), "same_length": True, "activation": "relu2", "places": 180, "bars": 16})
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    torch.manual_seed(0)
    network = TransformerXL(config).eval().to(device)
    tokens = torch.randint(0, config.vocabulary, (1, context + 1)).to(device)
    makers: dict[str, Callable[[], Side]] = {
        "genkit": lambda: Genkit(network, tokens, batch, dtype),
        "reference": lambda: Reference(network, tokens, batch),
        "gpt2": lambda: HuggingFace(config, tokens, batch, dtype),
    }
    sides = {name: maker() for name, maker in makers.items()}
    # The reference takes its time: on a processor a few tokens of it must do, and more rows need fewer still.
    slow = max(3, min(arguments.tokens, 16 // batch)) if device.type == "cpu" else arguments.tokens
    wanted = {"genkit": arguments.tokens, "reference": slow, "gpt2": arguments.tokens}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side.generate(3)  # what is loaded and captured on first use
    for _ in range(arguments.rounds):
        for name, side in sides.items():
            times[name].append(side.seconds(wanted[name]))
    expected = sides["reference"].made
    same = sides["genkit"].made[: len(expected)] == expected
    if not same and dtype == torch.float32:
        sys.exit(f"{shape}, batch {batch}, context {context}: genkit's tokens are not the reference's")
    speed = {name: batch / statistics.median(found) for name, found in times.items()}
    return {"shape": shape, "batch": batch, "context": context, "compared": len(expected), "same": same, **speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--context", nargs="+", type=int, default=[0, 512, 4096])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32, help="of each side in each round; of the reference fewer")
    parser.add_argument("--quick", action="store_true", help="batch 1 after 512 tokens, two short rounds")
    parser.add_argument("--busy", action="store_true", help="one thread, and processor time instead of the clock's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="genkit's and GPT-2's; the reference is float32")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each row instead of the table")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batch, arguments.context, arguments.rounds, arguments.tokens = [1], [512], 2, 12
    if arguments.busy:
        torch.set_num_threads(1)
        Side.clock = staticmethod(time.process_time)
    if not arguments.json:
        threads = f", {torch.get_num_threads()} threads" if arguments.device == "cpu" else ""
        threads += ", processor time" if arguments.busy else ""
        print(f"{arguments.device}{threads}, {arguments.dtype}, torch {torch.__version__}, tokens a second\n")
        print("| shape | batch | context | genkit | reference | GPT-2 | / reference | / GPT-2 | same tokens |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for shape, batch, context in itertools.product(arguments.shape, arguments.batch, arguments.context):
        row = measure(arguments, shape, batch, context)
        if arguments.json:
            print(json.dumps(row), flush=True)
            continue
        ours, reference, gpt2 = row["genkit"], row["reference"], row["gpt2"]
        cells = [shape, batch, context, f"{ours:.1f}", f"{reference:.2f}", f"{gpt2:.1f}"]
        same = f"{row['compared']} of {row['compared']}" if row["same"] else "no"
        print(f"| {' | '.join(map(str, cells))} | {ours / reference:.1f} | {ours / gpt2:.2f} | {same} |", flush=True)


if __name__ == "__main__":
    main()
