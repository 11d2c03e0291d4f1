"""The shipped fast network beside optimisation and the untouched photo: the figures of its card.

    python benchmarks/style_fast.py --style starry_night.jpg PICTURE ...

All are judged by the same losses on the feature network `small` in float32 at 384 px: the Wasserstein style loss to
the painting (0: its statistics, 1: as far as nothing at all) and the content loss against the photo (0: the photo
itself). Mean over the pictures; seconds are those of a whole call on this machine, the model loaded.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import genkit
from genkit.media.image import Image
from pipelines.style_transfer.loading import feature_network
from pipelines.style_transfer.losses import Wasserstein, moments, mse
from pipelines.style_transfer.models import MODELS
from pipelines.style_transfer.objective import normalised
from pipelines.style_transfer.optimize import resize

SIZE = 384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--style", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100, help="steps a scale of the optimisation")
    arguments = parser.parse_args()
    eyes = feature_network("small", MODELS)
    weights, kept = normalised(eyes.defaults.style), list(eyes.defaults.content)
    painting = resize(Image.open(arguments.style).tensor()[None], SIZE)
    with torch.no_grad():
        targets = {name: Wasserstein(moments(f)) for name, f in eyes(painting, list(weights)).items()}

    def judge(made: torch.Tensor, photo: torch.Tensor) -> tuple[float, float]:
        with torch.no_grad():
            found, wanted = eyes(made, [*weights, *kept]), eyes(photo, kept)
            style = sum(w * float(targets[name](moments(found[name]))) for name, w in weights.items())
            return style, sum(float(mse(found[name], wanted[name])) for name in kept) / len(kept)

    optimise = genkit.load("style-transfer")
    fast = genkit.load("style-transfer", model="starry-night")
    settings = {"style": arguments.style, "num_inference_steps": arguments.steps}
    ways = {
        "the photo": lambda path: Image.from_tensor(resize(Image.open(path).tensor()[None], SIZE)[0]),
        "fast": lambda path: fast(content=path, size=SIZE, seed=1).images[0],
        "optimize": lambda path: optimise(content=path, size=SIZE, seed=1, **settings).images[0],
    }
    print("| | style loss | content loss | seconds |")
    print("| --- | --- | --- | --- |")
    for name, way in ways.items():
        rows = []
        for path in arguments.pictures:
            start = time.perf_counter()
            made = way(path).tensor()[None]
            seconds = time.perf_counter() - start
            photo = resize(Image.open(path).tensor()[None], SIZE)
            rows.append((*judge(made, photo), seconds))
        style, content, seconds = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        print(f"| {name} | {style:.3f} | {content:.3f} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
