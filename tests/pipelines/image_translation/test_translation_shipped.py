"""What ships: two models within bounds and worth their place, and icons that can be drawn again."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import Tensor

from genkit import shipped, weights
from genkit.training.data import open_image
from pipelines.image_translation.loading import load_generator
from pipelines.image_translation.models import MODELS
from pipelines.image_translation.train.pictures import held_names

QUICKSTART = Path(shipped.folder() or ".") / "quickstart"


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_model_is_small_half_precision_and_says_what_it_is(name: str) -> None:
    path = weights.locate(name, MODELS)
    tensors, about = weights.read(path), weights.metadata(path)
    assert path.stat().st_size <= 7_000_000
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert about["architecture"] == "genkit.image-translation"
    assert json.loads(about["layout"])["kind"] == "resnet"
    assert json.loads(about["training"])["held_out"] == 100
    assert "/" not in about["training"]  # no path of the machine that it was trained on


@pytest.mark.parametrize("name", ["face", "apple", "button"])
def test_the_icons_can_be_drawn_again(name: str) -> None:
    drawn = np.asarray(runpy.run_path(str(QUICKSTART / "draw_icons.py"))[name](), float)
    assert np.abs(drawn - np.asarray(PILImage.open(QUICKSTART / f"{name}.png"), float)).mean() < 1  # of 255


def held(folder: Path, count: int) -> Tensor:
    """Some of the pictures that the models were not trained on, [B, 3, 128, 128] in -1..1."""
    names = sorted(held_names((path.stem for path in folder.glob("*.png")), 100))[:count]
    return torch.stack([open_image(folder / f"{name}.png").float() / 127.5 - 1 for name in names])


def test_there_is_another_look_and_back_is_nearly_the_same(shared: Path) -> None:
    """On pictures held out; the card has the figures. L1 in 0..1."""
    to_blob, to_noto = (load_generator(name, MODELS).network for name in ("noto-to-blob", "blob-to-noto"))
    for look, there, back in (("noto", to_blob, to_noto), ("blob", to_noto, to_blob)):
        pictures = held(shared / "data" / "emoji" / look, 12)
        with torch.inference_mode():
            made = there(pictures)
            returned = back(made)
        assert float((made - pictures).abs().mean()) / 2 > 0.005
        assert float((returned - pictures).abs().mean()) / 2 < 0.05
