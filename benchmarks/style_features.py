"""The shipped feature network beside its teacher, on pictures it was not trained on: the figures of its card.

    python benchmarks/style_features.py --teacher squeezenet1_0.safetensors --style painting.jpg PICTURE ...

For each tap, the mean over the pictures (shorter side 256 px) of
- R^2: the share of the teacher's variance over positions that the student predicts (1: a copy, 0: as the mean does);
- Gram cosine: the cosine between the two Gram matrices (1: the same up to scale);
- Gram error: their squared distance, relative to the teacher's (0: a copy, 1: as far as nothing at all).
A student of the same design before training stands beside it. With --style, the first picture is restyled on both
networks; --sheet (default sheet.jpg) shows photo, teacher's and student's result side by side.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image as PILImage

import genkit
from genkit.media.image import Image
from pipelines.style_transfer.loading import feature_network
from pipelines.style_transfer.losses import moments
from pipelines.style_transfer.models import MODELS
from pipelines.style_transfer.networks.features import Small
from pipelines.style_transfer.optimize import resize
from pipelines.style_transfer.train.features import TAPS, agreement, initialised


def gram_cosine(student, teacher, pictures) -> dict[str, float]:
    found = dict.fromkeys(TAPS, 0.0)
    with torch.no_grad():
        for picture in pictures:
            a, b = student(picture, TAPS), teacher(picture, TAPS)
            for name in TAPS:
                grams = [moments(f[name]).second.flatten() for f in (a, b)]
                found[name] += float(F.cosine_similarity(*grams, dim=0)) / len(pictures)
    return found


def transfer(photo: Path, style: Path, sheet: Path, teacher: Path) -> None:
    """Restyles the photo on both networks with the same settings and lays the results side by side."""
    painter = genkit.load("style-transfer", dtype="float32")
    common = {"content": photo, "style": style, "size": 384, "num_inference_steps": 60, "seed": 7}
    by_teacher = painter(features="squeezenet1_0", features_weights=teacher, **common)
    by_student = painter(features="small", **common)
    for name, made in (("teacher", by_teacher), ("student", by_student)):
        print(f"{name}: losses {made.info['losses']}")
    first = by_teacher.images[0].pil
    original = Image.from_tensor(resize(Image.open(photo).tensor()[None], 384)[0]).pil
    row = [original, first, by_student.images[0].pil]
    joined = PILImage.new("RGB", (first.width * 3 + 16, first.height), "white")
    for place, picture in enumerate(row):
        joined.paste(picture, (place * (first.width + 8), 0))
    joined.save(sheet, quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--teacher", type=Path, help="SqueezeNet 1.0 weights (default: torchvision's, fetched)")
    parser.add_argument("--style", type=Path)
    parser.add_argument("--sheet", type=Path, default=Path("sheet.jpg"))
    arguments = parser.parse_args()
    teacher = feature_network("squeezenet1_0", MODELS, path=arguments.teacher, pooling="max", dense=False)
    torch.manual_seed(0)
    students = {"small": feature_network("small", MODELS), "untrained": initialised(Small()).freeze()}
    seen = [Image.open(path).tensor()[None] for path in arguments.pictures]
    pictures = [resize(picture, round(256 * max(picture.shape[2:]) / min(picture.shape[2:]))) for picture in seen]
    print("| tap | R^2 | Gram cosine | Gram error | untrained: R^2 | Gram cosine | Gram error |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    columns = []
    for student in students.values():
        errors, cosines = (
            agreement(student, teacher, pictures, torch.device("cpu")),
            gram_cosine(student, teacher, pictures),
        )
        columns.append(
            {name: (1 - errors[name]["feature_error"], cosines[name], errors[name]["gram_error"]) for name in TAPS}
        )
    for name in TAPS:
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for column in columns for value in column[name]) + " |")
    if arguments.style:
        transfer(arguments.pictures[0], arguments.style, arguments.sheet, arguments.teacher)


if __name__ == "__main__":
    main()
