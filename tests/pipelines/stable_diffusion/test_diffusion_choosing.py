"""`best_of`: the pictures that are kept are those of the highest cosine, computed here once more by hand."""

from __future__ import annotations

from pathlib import Path

import additions_kit as kit
import diffusion_kit
import numpy as np
import pytest
import torch

from genkit.errors import InputError, ModelError
from genkit.media.image import Image
from pipelines.stable_diffusion.choosing import Judge, best
from pipelines.stable_diffusion.loading import Model

PROMPT = "a red apple in the snow"


@pytest.fixture(scope="module")
def model(seeing: Path) -> Model:
    return kit.load(seeing)


@pytest.fixture(scope="module")
def pictures() -> list[Image]:
    generator = torch.Generator().manual_seed(0)
    shades = torch.rand(20, 3, 1, 1, generator=generator)
    return [Image.from_tensor((shade + torch.rand(3, 64, 64, generator=generator)) / 2) for shade in shades]


def cosines(model: Model, pictures: list[Image]) -> np.ndarray:
    """By transformers alone, one picture at a time."""
    pipe = model.pipe
    with torch.no_grad():
        tokens = pipe.tokenizer(PROMPT, padding="max_length", return_tensors="pt")
        text = pipe.text_encoder(**tokens).pooler_output[0].numpy()
        found = []
        for picture in pictures:
            pixels = pipe.feature_extractor(picture.pil, return_tensors="pt")
            seen = pipe.image_encoder(**pixels).image_embeds[0].numpy()
            found.append(seen @ text / np.linalg.norm(seen) / np.linalg.norm(text))
    return np.array(found)


def test_scores_are_cosines(model: Model, pictures: list[Image]) -> None:
    scores = Judge.of(model, None).scores(pictures, PROMPT)
    assert np.allclose(scores, cosines(model, pictures), atol=1e-5)
    assert max(scores) - min(scores) > 1e-3


def test_the_best_are_kept_in_order(model: Model, pictures: list[Image]) -> None:
    kept = best(Judge.of(model, None).scores(pictures, PROMPT), 5)
    assert kept == list(np.argsort(-cosines(model, pictures), kind="stable")[:5])


def test_weights_in_a_prompt_do_not_count(model: Model, pictures: list[Image]) -> None:
    judge = Judge.of(model, None)
    assert judge.scores(pictures, "a (red:1.3) apple [in] the snow") == judge.scores(pictures, PROMPT)


def test_the_pipeline_keeps_the_best_with_their_seeds(model: Model, seeing: Path) -> None:
    import genkit

    pipe = genkit.load("stable-diffusion", model=seeing, device="cpu", dtype="float32")
    shared = {"prompt": PROMPT, "seed": 7, "num_inference_steps": 2}
    every = pipe(**shared, num_images_per_prompt=6)
    order = np.argsort(-cosines(model, every.images), kind="stable")[:2]
    chosen = pipe(**shared, num_images_per_prompt=2, best_of=6)
    assert chosen.seeds == [7 + int(i) for i in order]
    for place, image in zip(order, chosen.images, strict=True):
        assert np.array_equal(np.asarray(image.pil), np.asarray(every.images[place].pil))
    assert len(chosen.info["scores"]) == 2
    assert chosen.info["scores"] == sorted(chosen.info["scores"], reverse=True)


def test_equal_ones_keep_their_order() -> None:
    assert best([0.1, 0.3, 0.1, 0.3], 3) == [1, 3, 0]


def test_a_long_prompt_is_cut(model: Model, pictures: list[Image]) -> None:
    assert len(Judge.of(model, None).scores(pictures[:2], "a red apple " * 200)) == 2


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of transformers' format, its two halves of different widths."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tokenizer = diffusion_kit.clip_tokenizer()
    text = diffusion_kit.clip_text(tokenizer).config
    eye, processor = diffusion_kit.image_encoder()
    eye.config.hidden_size = 24
    folder = tmp_path_factory.mktemp("clip")
    config = CLIPConfig(text_config=text.to_dict(), vision_config=eye.config.to_dict(), projection_dim=20)
    for part in (CLIPModel(config), tokenizer, processor):
        part.save_pretrained(folder)
    return folder


def test_a_clip_that_is_named(model: Model, clip: Path, pictures: list[Image]) -> None:
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    network = CLIPModel.from_pretrained(clip).eval()
    with torch.no_grad():
        tokens = AutoTokenizer.from_pretrained(clip)(PROMPT, return_tensors="pt")
        pixels = CLIPImageProcessor.from_pretrained(clip)([p.pil for p in pictures], return_tensors="pt")
        expected = network(**tokens, **pixels).logits_per_text[0] / network.logit_scale.exp()
    assert np.allclose(Judge.of(model, str(clip)).scores(pictures, PROMPT), expected.numpy(), atol=1e-5)


def test_without_a_clip(sd: Path, sdxl: Path) -> None:
    for folder in (sd, sdxl):
        with pytest.raises(InputError, match="brings none of its own: give clip"):
            Judge.of(kit.load(folder), None)


def test_a_clip_that_is_none(model: Model, sd: Path, clip: Path, tmp_path: Path) -> None:
    for path in (sd, tmp_path):
        with pytest.raises(ModelError, match="is no CLIP model"):
            Judge.of(model, str(path))
    for file in clip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes((clip / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(ModelError, match="damaged"):
        Judge.of(model, str(tmp_path))
