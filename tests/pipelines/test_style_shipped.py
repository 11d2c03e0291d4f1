"""What ships: weights within bounds and worth their place, pictures that can be drawn again, recipes that plan."""

from __future__ import annotations

import io
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from genkit import shipped, weights
from genkit.media.image import Image
from pipelines.style_transfer.loading import feature_network, style_model
from pipelines.style_transfer.losses import Wasserstein, moments
from pipelines.style_transfer.models import MODELS
from pipelines.style_transfer.optimize import resize
from pipelines.style_transfer.train.features import agreement

QUICKSTART = Path(shipped.folder() or ".") / "quickstart"


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.ref.startswith("shipped:")])
def test_a_shipped_model_is_small_half_precision_and_finite(name):
    path = weights.locate(name, MODELS)
    tensors = weights.read(path)
    assert path.stat().st_size <= 3_000_000
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_the_small_network_sees_what_its_teacher_sees(shared):
    """On pictures that it was not trained on; the card has the figures."""
    teacher = shared / "data" / "weights" / "squeezenet1_0.safetensors"
    eyes = feature_network("squeezenet1_0", MODELS, path=teacher, pooling="max", dense=False)
    names = ("content/coffee.jpg", "content/astronaut.jpg", "style/starry_night.jpg")
    pictures = [resize(Image.open(shared / "data" / "images" / name).tensor()[None], 256) for name in names]
    found = agreement(feature_network("small", MODELS), eyes, pictures, torch.device("cpu"))
    assert found["conv1"]["feature_error"] < 0.15
    assert found["fire2"]["gram_error"] < 0.05
    assert found["fire5"]["feature_error"] < 0.75
    assert found["fire5"]["gram_error"] < 0.25


def test_the_starry_night_network_brings_a_photo_nearer_to_its_painting(shared):
    network = style_model(weights.locate("starry-night", MODELS)).eval()
    eyes = feature_network("small", MODELS)
    taps = list(eyes.defaults.style)
    painting = resize(Image.open(shared / "data" / "images" / "style" / "starry_night.jpg").tensor()[None], 320)
    photo = resize(Image.open(QUICKSTART / "astronaut.jpg").tensor()[None], 256)
    with torch.no_grad():
        losses = {name: Wasserstein(moments(features)) for name, features in eyes(painting, taps).items()}
        before, after = (
            sum(float(losses[name](moments(features))) for name, features in eyes(picture, taps).items())
            for picture in (photo, network(photo))
        )
    assert after < 0.4 * before


@pytest.mark.parametrize("name", ["figure.png", "mosaic.jpg", "etching.jpg"])
def test_the_style_pictures_can_be_drawn_again(name):
    drawn = runpy.run_path(str(QUICKSTART / "draw_style.py"))[Path(name).stem]()
    file = io.BytesIO()
    drawn.save(file, PILImage.EXTENSION[Path(name).suffix], quality=85)
    pixels, kept = (np.asarray(PILImage.open(source), float) for source in (file, QUICKSTART / name))
    assert np.abs(pixels - kept).mean() < 1  # of 255: another libjpeg may round otherwise


@pytest.mark.parametrize("name", [name for name in shipped.recipes() if not name.startswith("train/")])
def test_a_shipped_recipe_plans(name):
    from genkit.batch import plan, recipe

    made = plan.make(recipe.load(shipped.recipes()[name]))
    assert made.jobs
    assert len({job.output for job in made.jobs}) == len(made.jobs)
