"""What ships: `emoji`, within its bounds, in diffusers' own format, and worth its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

import genkit
from genkit import weights
from genkit.media.image import Image
from pipelines.stable_diffusion.models import MODELS

PARTS = ("image_encoder", "text_encoder", "unet", "vae")


@pytest.fixture(scope="module")
def folder() -> Path:
    return weights.locate("emoji", MODELS)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    """The folder in diffusers alone, as its documentation has people load one."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_small_half_precision_and_says_nothing_of_where_it_was_made(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 32_000_000
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for part in PARTS:
        (path,) = (folder / part).glob("*.safetensors")
        assert {tensor.dtype for tensor in weights.read(path).values()} == {torch.float16}
    texts = "".join(path.read_text("utf-8") for path in files if path.suffix == ".json")
    assert "_name_or_path" not in texts
    assert json.loads((folder / "genkit.json").read_text("utf-8"))["training"]["held_out"] == 100
    assert '"/' not in texts.replace('"/"', "").replace('"/</w>"', "")


def test_all_files_may_be_read_by_everybody(folder: Path) -> None:
    assert [path.name for path in folder.rglob("*") if not path.stat().st_mode & 0o004] == []


def test_plain_diffusers_makes_the_same_picture(plain: Any, folder: Path) -> None:
    """In float32, from the same noise, with what the folder states."""
    stated = json.loads((folder / "genkit.json").read_text("utf-8"))
    painter = genkit.load("stable-diffusion", dtype="float32")
    made = painter(prompt="red apple, noto style", seed=7, num_inference_steps=4).images[0]
    wanted = plain(
        "red apple, noto style",
        num_inference_steps=4,
        guidance_scale=stated["guidance_scale"],
        generator=[torch.Generator().manual_seed(7)],
        output_type="np",
    ).images[0]
    assert np.abs(made.tensor().permute(1, 2, 0).numpy() - wanted).max() < 1.01 / 255
    assert np.abs(made.deep - wanted).max() < 1e-5


def test_four_apples_from_the_command_line(run: Callable[..., Any], tmp_path: Path) -> None:
    done = run(
        "stable-diffusion", "--prompt", "red apple, noto style", "--seed", 7, "-N", 4, "-o", tmp_path / "apple.png"
    )
    assert done.status == 0, done.err
    pictures = [np.asarray(PILImage.open(tmp_path / f"apple-{i}.png"), float) for i in range(1, 5)]
    assert {picture.shape for picture in pictures} == {(128, 128, 3)}
    for i, one in enumerate(pictures):
        assert all(np.abs(one - other).mean() > 1 for other in pictures[:i])  # four, not one four times
        red, green = one[..., 0].mean(), one[..., 1].mean()
        assert red > green + 10  # whatever it is, it is red


def test_words_say_what_is_drawn() -> None:
    """Colours, the least that a prompt should decide: a mean over seeds."""
    painter = genkit.load("stable-diffusion")

    def mean(prompt: str) -> np.ndarray:
        made = painter(prompt=prompt, seed=0, num_images_per_prompt=4, num_inference_steps=10)
        return np.mean([np.asarray(image.pil, float).mean((0, 1)) for image in made.images], 0)

    red, green, blue = (mean(f"{colour} square, noto style") for colour in ("red", "green", "blue"))
    assert red[0] - red[2] > 30
    assert blue[2] - blue[0] > 30
    assert green[1] > green[0]
    assert green[1] > green[2]


def test_its_image_encoder_tells_its_pictures_apart(plain: Any, shared: Path) -> None:
    """Captions of pictures that are trained on are found again among twenty; `best_of` lives on that."""
    names = [json.loads(line) for line in (shared / "data/emoji/noto/metadata.jsonl").read_text().splitlines()][::69][
        :20
    ]
    pictures = [Image.open(shared / "data/emoji/noto" / line["file_name"]).pil for line in names]
    with torch.no_grad():
        seen = plain.feature_extractor(pictures, return_tensors="pt").pixel_values
        images = plain.image_encoder(seen).image_embeds
        ids = plain.tokenizer(
            [f"{line['text']}, noto style" for line in names],
            padding="max_length", max_length=32, truncation=True, return_tensors="pt",
        ).input_ids  # fmt: skip
        texts = plain.text_encoder(ids).pooler_output
    similar = torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T
    assert (similar.argmax(1) == torch.arange(20)).float().mean() >= 0.8
