"""Whether continuations stay in the key: the share of notes that belong to a scale, over several seeds.

    python benchmarks/midi_scale.py canon.mid --key "D major" --bars 16 --seeds 10
    python benchmarks/midi_scale.py canon.mid --key "D major" --temperature 1.0 --top-p 1.0

Counts the notes that were written, not the prompt's. Prints each seed's share and the mean; the figures are in the card
of the model. Options not named here are the pipeline's defaults.
"""

from __future__ import annotations

import argparse
import statistics
import time

import genkit
from genkit.media.midi import Midi
from pipelines.midi_generation.pipeline import Params, key_number
from pipelines.midi_generation.tokens import keys


def share(prompt: Midi, made: Midi, scale: set[int]) -> tuple[float, int]:
    """The share of the notes behind the prompt's that are in the scale, and how many notes those are."""
    old = prompt.notes
    notes = [(n.time / made.score.ticks_per_quarter, n.pitch) for track in made.score.tracks for n in track.notes]
    given = {(n.time / prompt.score.ticks_per_quarter, n.pitch) for track in prompt.score.tracks for n in track.notes}
    new = [pitch for time_, pitch in notes if (time_, pitch) not in given]
    assert len(new) == len(notes) - old, "the prompt has not survived"
    return sum(pitch % 12 in scale for pitch in new) / max(len(new), 1), len(new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("prompt")
    parser.add_argument("--key", required=True, help="as 'D major'")
    parser.add_argument("--model", default=None)
    parser.add_argument("--bars", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-p", type=float)
    options = parser.parse_args()
    scale = set(keys.scale(key_number(options.key)))
    prompt = Midi.open(options.prompt)
    asked = {name: getattr(options, name) for name in ("temperature", "top_p") if getattr(options, name) is not None}
    pipeline = genkit.load("midi-generation", model=options.model)
    orders = [Params(prompt=options.prompt, bars=options.bars, seed=seed, **asked) for seed in range(options.seeds)]
    before = time.perf_counter()
    outputs = pipeline.generate(orders)
    seconds = time.perf_counter() - before
    shares = []
    for order, output in zip(orders, outputs, strict=True):
        found, notes = share(prompt, output.midi, scale)
        shares.append(found)
        print(f"seed {order.seed}: {found:.3f} of {notes} notes")
    print(f"mean {statistics.mean(shares):.3f}, least {min(shares):.3f}; {seconds:.0f} s for {len(outputs)} pieces")


if __name__ == "__main__":
    main()
