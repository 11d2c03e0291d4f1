"""The pipeline from end to end: method from model, one line for what does not fit, the same picture however it is
made."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import PIL.Image
import pytest
import style_kit
import torch
from safetensors.torch import save_file
from torch import Tensor

import genkit
from genkit.errors import Cancelled, GenkitError, InputError, ModelError
from genkit.media import provenance
from genkit.media.image import Image
from pipelines.style_transfer import color
from pipelines.style_transfer.loading import style_model
from pipelines.style_transfer.networks.adain import adain
from pipelines.style_transfer.pipeline import StyleTransfer

QUICK = {"size": 36, "num_inference_steps": 2, "min_scale": 36}


def load(model: Any = None, **options: Any) -> Any:
    return genkit.load("style-transfer", model=model, **{"device": "cpu", "dtype": "float32", **options})


@pytest.fixture(scope="module")
def painter() -> Any:
    return load()


@pytest.fixture
def scene(files) -> dict[str, Any]:
    """The parameters of a quick run by optimisation."""
    return {"content": files.content, "style": files.style, "features_weights": files.small, "seed": 5, **QUICK}


def pixels(output: Any) -> Tensor:
    return output.images[0].tensor()


# -------------------------------------------------------------------------------------------------- method and model


def test_the_method_follows_from_the_model(painter, scene, files):
    assert painter(**scene).info["method"] == "optimize"
    assert load(files.fast)(content=files.content).info["method"] == "fast"
    assert load(files.adain)(content=files.content, style=files.style).info["method"] == "adain"
    assert load("small").method(StyleTransfer.Params(content=files.content, style=[files.style])) == "optimize"


def test_no_weights_are_read_before_they_are_needed():
    workshop = load().workshop
    assert workshop._features == {}
    assert workshop._one_pass is None


@pytest.mark.parametrize(
    ("model", "more", "says"),
    [
        (
            "fast",
            {"method": "optimize", "style": "style"},
            "method 'optimize' does not fit model .*, which is for 'fast'",
        ),
        ("fast", {"method": "adain", "style": "style"}, "method 'adain' does not fit model .*, which is for 'fast'"),
        ("adain", {"method": "optimize", "style": "style"}, "which is for 'adain'; leave one out"),
        ("adain", {"method": "fast"}, "which is for 'adain'; leave one out"),
        ("adain", {}, "style is missing: method 'adain' needs a painting"),
        ("adain", {"style": "style", "mask": "style"}, "mask is for method 'optimize'; 'adain' has no regions"),
        ("fast", {"style": "style"}, "a 'fast' network has learned its own"),
        ("fast", {"preserve_color": "coral"}, "'coral' recolours the painting, and method 'fast' has none"),
        (None, {}, "style is missing: method 'optimize' needs a painting"),
        (None, {"method": "adain", "style": "style"}, "method 'adain' needs a model: --model FOLDER"),
        ("small", {"style": "style", "features": "vgg19"}, "both name the feature network; leave one out"),
        ("small", {"method": "fast"}, "method 'fast' does not fit model 'small', which is for 'optimize'"),
    ],
)
def test_what_does_not_fit_together_is_one_line(files, model, more, says):
    named = getattr(files, model) if model in ("fast", "adain") else model
    values = {key: getattr(files, value) if key in ("style", "mask") else value for key, value in more.items()}
    with pytest.raises(InputError, match=says) as raised:
        load(named)(content=files.content, **values)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"style_weights": [1, 2]}, "style_weights has 2 numbers for 1 styles; give one for each"),
        ({"style_weights": [0]}, "style_weights are all zero"),
        ({"style_weights": [-1]}, r"style_weights\[0\] -1 is out of range: it must be 0 to"),
        ({"mask": ["content", "content"]}, "mask has 2 pictures for 1 styles; give one for each"),
        ({"method": "fast"}, "a 'fast' network has learned its own"),
        ({"method": "gram"}, "method 'gram' is not known"),
        ({"style": []}, "style is missing"),
        ({"style": ["style"] * 17}, "style holds 17 values: it must hold at most 16"),
        ({"size": 31}, "size 31 is out of range: it must be 32 to 16384 px"),
        ({"alpha": float("nan")}, "alpha nan is not a finite number"),
        ({"num_inference_step": 3}, "did you mean 'num_inference_steps'"),
    ],
)
def test_parameters_are_checked_before_anything_is_loaded(files, values, says):
    given = {"content": files.content, "style": files.style}
    for key, value in values.items():
        given[key] = [getattr(files, str(v), v) for v in value] if isinstance(value, list) else value
    with pytest.raises(InputError, match=says) as raised:
        load()(**given)
    assert "\n" not in str(raised.value)


def test_the_models_of_a_run_are_named_by_role(files):
    params = StyleTransfer.Params(content=files.content, style=[files.style])
    refs = StyleTransfer.model_refs
    assert refs(None, params) == {"features": "small"}
    assert refs("vgg19", params) == {"features": "vgg19"}
    assert refs(None, params.model_copy(update={"features": "vgg16"})) == {"features": "vgg16"}
    assert refs(None, params.model_copy(update={"features_weights": files.small})) == {"features": str(files.small)}
    assert refs(str(files.adain), params) == {"model": str(files.adain)}
    assert refs(None, StyleTransfer.Params(content=files.content, method="fast")) == {"model": "starry-night"}


# --------------------------------------------------------------------------------------------------------- optimising


def test_the_same_call_makes_the_same_picture(painter, scene):
    one, two = painter(**scene), painter(**scene)
    assert torch.equal(pixels(one), pixels(two))
    assert torch.equal(pixels(one), pixels(load()(**scene)))


def test_a_seed_is_drawn_noted_and_makes_it_again(painter, scene):
    scene = {**scene, "seed": None, "init": "uniform"}
    one = painter(**scene)
    again = painter(**{**scene, "seed": one.seeds[0]})
    assert torch.equal(pixels(one), pixels(again))
    assert not torch.equal(pixels(one), pixels(painter(**{**scene, "seed": one.seeds[0] + 1})))


def test_an_item_alone_is_the_item_in_a_batch_of_three(painter, scene):
    params = [StyleTransfer.Params.parse({**scene, "init": "normal", "seed": seed}) for seed in (5, 6, 7)]
    together = painter.generate(params)
    assert [output.seeds for output in together] == [[5], [6], [7]]
    for item, output in zip(params, together, strict=True):
        assert torch.equal(pixels(painter.generate([item])[0]), pixels(output))


def test_inputs_are_paths_pictures_or_arrays(painter, scene, files):
    opened = Image.open(files.content)
    expected = pixels(painter(**scene))
    for content in (str(files.content), opened, opened.pil, np.asarray(opened.pil)):
        assert torch.equal(pixels(painter(**{**scene, "content": content})), expected)


def test_every_choice_of_optimisation_makes_a_picture(painter, scene, files):
    expected = pixels(painter(**scene))
    choices: list[dict[str, Any]] = [
        {"style_loss": "gram"},
        {"optimizer": "lbfgs"},
        {"init": "gray"},
        {"content_weight": 0},
        {"tv_weight": 0},
        {"style_scale": 0.5},
        {"learning_rate": 0.05},
        {"style": [files.style, files.other], "style_weights": [1, 3]},
        {"preserve_color": "luminance"},
        {"preserve_color": "coral"},
        {"min_scale": 32, "size": 52},
        {"features": "small", "pooling": "max"},
    ]
    for choice in choices:
        made = pixels(painter(**{**scene, **choice}))
        assert made.isfinite().all()
        assert max(made.shape) == choice.get("size", 36)
        if choice.keys() - {"pooling", "features"}:
            assert made.shape != expected.shape or not torch.equal(made, expected), choice


def test_luminance_keeps_the_photos_colour_differences(painter, scene, files):
    made = pixels(painter(**scene, preserve_color="luminance"))[None]
    photo = torch.nn.functional.interpolate(
        Image.open(files.content).tensor()[None], made.shape[2:], mode="bicubic", antialias=True
    ).clamp(0, 1)
    inside = ((made > 0) & (made < 1)).all(1)
    difference = (made - color.luminance(made)) - (photo - color.luminance(photo))
    assert difference.abs().amax(1)[inside].max() < 1e-3


def test_masks_hold_each_style_to_its_part(painter, scene, files, tmp_path):
    half = np.zeros((40, 52), np.uint8)
    half[:, :26] = 255
    left, right = tmp_path / "left.png", tmp_path / "right.png"
    PIL.Image.fromarray(half).save(left)
    PIL.Image.fromarray(255 - half).save(right)
    both = {
        **scene,
        "style": [files.style, files.other],
        "size": 96,
        "min_scale": 96,
        "content_weight": 0,
        "tv_weight": 0,
    }
    one = pixels(painter(**both, mask=[left, right]))
    two = pixels(painter(**{**both, "style": [files.style, files.style]}, mask=[left, right]))
    edge = (one - two).abs().amax((0, 1))
    assert edge[:10].mean() < 0.2 * edge[60:].mean()  # far from the other's region next to nothing of it is seen


@pytest.mark.parametrize(
    ("size", "says"), [((52, 52), "give masks of the photo's proportions"), ((52, 40), "is black all over")]
)
def test_a_mask_that_cannot_be_meant_is_one_line(painter, scene, tmp_path, size, says):
    PIL.Image.new("L", size, 255 if size == (52, 52) else 0).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=says) as raised:
        painter(**scene, mask=tmp_path / "mask.png")
    assert "mask.png" in str(raised.value)


def test_a_smaller_mask_of_the_same_proportions_will_do(painter, scene, tmp_path):
    PIL.Image.new("L", (26, 20), 255).save(tmp_path / "mask.png")
    masked, plain = painter(**scene, mask=tmp_path / "mask.png"), painter(**scene)
    torch.testing.assert_close(pixels(masked), pixels(plain), rtol=0, atol=0.02)


def test_tiles_are_used_where_memory_is_short_and_change_nothing_to_see(files, monkeypatch):
    from pipelines.style_transfer import workshop

    scene: dict[str, Any] = {"content": files.content, "style": files.style, "features_weights": files.small, "seed": 5}
    scene |= {"size": 640, "num_inference_steps": 1, "min_scale": 640}
    sides: list[int | None] = []
    ask = workshop.memory.tile_side

    def asked(*arguments: Any) -> int | None:
        sides.append(ask(*arguments))
        return sides[-1]

    monkeypatch.setattr(workshop.memory, "tile_side", asked)
    painter = load()
    tiled, whole = pixels(painter(**scene, max_memory=110)), pixels(painter(**scene))
    assert any(sides)
    assert sides[-1] is None
    assert (tiled - whole).abs().mean() < 2e-3


def test_a_bound_that_cannot_be_kept_is_one_line_before_any_work(painter, scene):
    def progress(*_: Any, **__: Any) -> None:
        raise AssertionError("it began to work")

    with pytest.raises(InputError, match=r"^\d+x\d+ px needs \d+ MB even in the smallest tiles, more than 64 MB: "):
        painter(**{**scene, "size": 2048, "min_scale": 2048}, max_memory=64, progress=progress)


@pytest.mark.parametrize(
    ("content", "style", "size", "says"),
    [
        ((600, 6), (40, 40), 512, "the shorter side needs 8"),
        ((40, 40), (3, 40), 64, "style 1 is 3x40 px, too small to work on: both sides need 8 px"),
        ((40, 40), (40, 40), 16384, "over 100 megapixels; ask for less"),
    ],
)
def test_pictures_too_thin_or_results_too_large_are_one_line(painter, files, tmp_path, content, style, size, says):
    PIL.Image.new("RGB", content).save(tmp_path / "content.png")
    PIL.Image.new("RGB", style).save(tmp_path / "style.png")
    with pytest.raises(InputError, match=says):
        painter(content=tmp_path / "content.png", style=tmp_path / "style.png", size=size, features_weights=files.small)


# --------------------------------------------------------------------------------------------- progress and stopping


def test_progress_sees_every_step_and_previews_are_pictures(painter, scene):
    calls: list[tuple[int, int, bool, str]] = []
    shown: list[Any] = []

    def progress(step: int, total: int, *, preview: Any = None, note: str = "") -> None:
        calls.append((step, total, preview is not None, note))
        if preview:
            shown.append(preview())

    made = painter(**scene, preview_every=2, progress=progress)
    assert [call[:3] for call in calls] == [(1, 4, False), (2, 4, True), (3, 4, False), (4, 4, True)]
    assert all("36x28, scale 1 of 1, loss " in note for *_, note in calls)
    assert [type(picture).__genkit_media__ for picture in shown] == ["image", "image"]
    assert all(picture.size == (36, 28) for picture in shown)
    assert torch.equal(shown[-1].tensor(), pixels(made))


def test_a_preview_changes_nothing(painter, scene):
    looked = painter(**scene, preview_every=1, progress=lambda *_, preview=None, **__: preview and preview())
    assert torch.equal(pixels(looked), pixels(painter(**scene)))


def test_it_stops_within_a_step_when_told_to(painter, scene):
    calls: list[int] = []

    def progress(step: int, total: int, **_: Any) -> None:
        calls.append(step)
        if step == 2:
            raise Cancelled("stopped")

    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    with pytest.raises(Cancelled):
        painter(**scene, progress=progress)
    assert calls == [1, 2]
    assert (torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()) == before
    assert painter(**scene).images  # the pipeline goes on


def test_one_pass_reports_once(files):
    calls: list[tuple[int, int]] = []
    load(files.fast)(content=files.content, progress=lambda step, total, **_: calls.append((step, total)))
    assert calls == [(1, 1)]


# --------------------------------------------------------------------------------------------------------- provenance


def test_the_record_tells_how_it_was_made(painter, scene, files, tmp_path):
    output = painter(**scene)
    output.save(tmp_path / "out.png")
    record = provenance.read(tmp_path / "out.png")
    assert record is not None
    assert record.pipeline == "style-transfer"
    assert record.params["seed"] == 5
    assert record.params["num_inference_steps"] == 2
    assert record.inputs["content"].path == str(files.content)
    assert record.inputs["content"].sha256 == provenance.digest_file(files.content)
    assert record.inputs["style[0]"].sha256 == provenance.digest_file(files.style)
    assert record.models["features"].digest.startswith("sha256:")
    assert set(output.info["losses"]) == {"style", "content", "variation", "total"}
    json.dumps(output.info, allow_nan=False)
    painter(**scene).save(tmp_path / "again.png")
    assert (tmp_path / "out.png").read_bytes() == (tmp_path / "again.png").read_bytes()


# ---------------------------------------------------------------------------------------------------- fast and adain


@pytest.mark.parametrize("size", [(33, 47), (100, 41), (52, 40)])
@pytest.mark.parametrize("model", ["fast", "adain"])
def test_one_pass_gives_back_the_size_of_the_photo(files, tmp_path, model, size):
    photo = style_kit.save(tmp_path / "photo.png", *size)
    more = {"style": files.style} if model == "adain" else {}
    assert load(getattr(files, model))(content=photo, **more).images[0].size == size[::-1]
    assert max(load(getattr(files, model))(content=photo, size=90, **more).images[0].size) == 90


@pytest.mark.parametrize("model", ["fast", "adain"])
def test_a_photo_too_small_for_one_pass_is_one_line(files, tmp_path, model):
    photo = style_kit.save(tmp_path / "photo.png", 12, 60)
    more = {"style": files.style} if model == "adain" else {}
    with pytest.raises(InputError, match=r"the result is 60x12 px, too small to work on: both sides need \d+ px"):
        load(getattr(files, model))(content=photo, **more)


def test_fast_is_its_network(files):
    network = style_model(files.fast).eval()
    with torch.no_grad():
        expected = network(Image.open(files.content).tensor()[None])
    torch.testing.assert_close(pixels(load(files.fast)(content=files.content)), expected[0], rtol=1e-4, atol=1e-4)


def test_adain_with_alpha_0_is_the_photo_through_encoder_and_decoder(files):
    encoder, decoder = style_model(files.adain)
    with torch.no_grad():
        expected = decoder(encoder(Image.open(files.content).tensor()[None])[-1])[..., :40, :52].clamp(0, 1)
    made = load(files.adain)(content=files.content, style=files.style, alpha=0)
    torch.testing.assert_close(pixels(made), expected[0], rtol=1e-4, atol=1e-4)


def test_adain_blends_styles_by_their_weights(files):
    encoder, decoder = style_model(files.adain)
    photo, *styles = (Image.open(path).tensor()[None] for path in (files.content, files.style, files.other))
    with torch.no_grad():
        seen = [(encoder(style)[-1], share) for style, share in zip(styles, (1.0, 3.0), strict=True)]
        expected = decoder(adain(encoder(photo)[-1], seen, 0.8))[..., :40, :52].clamp(0, 1)
    made = load(files.adain)(content=files.content, style=[files.style, files.other], style_weights=[1, 3], alpha=0.8)
    torch.testing.assert_close(pixels(made), expected[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("keep", ["luminance", "coral"])
def test_adain_keeps_the_colours(files, keep):
    plain, kept = (
        load(files.adain)(content=files.content, style=files.style, preserve_color=how) for how in ("none", keep)
    )
    assert not torch.equal(pixels(plain), pixels(kept))


def test_the_export_of_the_adain_training_loads(files, tmp_path):
    encoder, decoder = style_kit.adain_tensors()
    tensors = {f"encoder.{k}": t.half() for k, t in encoder.items()}
    tensors |= {f"decoder.{k}": t.half() for k, t in decoder.items()}
    save_file(tensors, tmp_path / "adain.safetensors")
    one, two = (
        pixels(load(model)(content=files.content, style=files.style))
        for model in (tmp_path / "adain.safetensors", files.adain)
    )
    torch.testing.assert_close(one, two, rtol=0, atol=0.02)


def test_a_network_that_makes_no_picture_is_told_apart_from_black(files, tmp_path):
    """Weights that overflow: half the outputs are infinite, their normalised difference is no number."""
    from genkit import weights

    tensors = {key: t.clone() for key, t in weights.read(files.fast).items()}
    tensors["res3.conv1.conv2d.weight"].fill_(1e38)
    torch.save(tensors, tmp_path / "wild.pth")
    with pytest.raises(GenkitError, match="the result is not a picture"):
        load(tmp_path / "wild.pth")(content=files.content)


def test_a_model_that_is_none_is_one_line(files, tmp_path):
    with pytest.raises(ModelError, match="no model is called 'stary-night': did you mean 'starry-night'"):
        load("stary-night")
    with pytest.raises(ModelError, match=r"is no style model .*"):
        load(files.small)
