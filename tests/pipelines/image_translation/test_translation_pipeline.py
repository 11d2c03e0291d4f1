"""Pictures through the pipeline: any size, transparency and depth kept, as their authors tested, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile
import torch
import torch.nn.functional as F
import translating_kit
from torch import Tensor

import genkit
from genkit.errors import Cancelled, DeviceError, GenkitError, InputError
from genkit.media import provenance
from genkit.media.image import Image
from pipelines.image_translation.framing import padded


@pytest.fixture(scope="module")
def translators(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """translators("cyclegan") -> the pipeline on a tiny model of that kind, loaded once."""
    home = tmp_path_factory.mktemp("models")
    loaded: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in loaded:
            write = translating_kit.own_file if name == "residual" else translating_kit.old_file
            file = write(home / f"{name.replace(' ', '-')}.{'safetensors' if name == 'residual' else 'pth'}", name)
            loaded[name] = genkit.load("image-translation", model=file, device="cpu", dtype="float32")
        return loaded[name]

    return load


def pixels(output: Any) -> Tensor:
    return output.images[0].tensor()


def directly(name: str, picture: Image) -> Tensor:
    """What the network makes of a picture that needs no padding."""
    with torch.inference_mode():
        made = translating_kit.network(name)(picture.tensor()[None] * 2 - 1)
    return ((made + 1) / 2).clamp(0, 1)[0]


# -------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name", ["cyclegan", "cut", "residual"])
def test_it_is_the_network_and_nothing_else(translators: Any, name: str) -> None:
    picture = Image.open(translating_kit.pixels(64, 80))
    assert torch.allclose(pixels(translators(name)(image=picture)), directly(name, picture), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["cyclegan", "residual", "unet", "stargan"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 5), (37, 53), (64, 130)])
def test_every_size_comes_out_as_it_went_in(translators: Any, name: str, size: tuple[int, int]) -> None:
    more = {"domain": 0} if name == "stargan" else {}
    output = translators(name)(image=translating_kit.pixels(*size), **more)
    assert output.images[0].size == size[::-1]
    assert pixels(output).isfinite().all()


def test_padding_reflects_half_before_and_half_behind() -> None:
    picture = translating_kit.picture(10, 13)
    wide = padded(picture, 8, 8)
    assert wide.shape == (3, 16, 16)
    assert torch.equal(wide, F.pad(picture, (1, 2, 3, 3), mode="reflect"))
    assert torch.equal(padded(picture, 1, 1), picture)
    assert torch.equal(padded(picture[:, :1, :1], 4, 12), picture[:, :1, :1].expand(3, 12, 12))


def test_an_odd_size_is_what_the_network_makes_of_it_padded(translators: Any) -> None:
    picture = translating_kit.picture(61, 66)
    expected = directly("residual", Image.from_tensor(padded(picture, 8, 8)))[:, 1:62, 3:69]
    assert (pixels(translators("residual")(image=Image.from_tensor(picture))) - expected).abs().max() < 1e-5


def test_size_brings_the_picture_to_it_first_and_says_so(translators: Any) -> None:
    picture = translating_kit.pixels(50, 100)
    output = translators("cyclegan")(image=picture, size=48)
    assert output.images[0].size == (48, 24)
    assert output.notes == ["resized from 100x50 to 48x24 px, as size asks"]
    assert translators("cyclegan")(image=picture, size=100).notes == []
    with pytest.raises(InputError, match="size 16384 makes 16384x8192 px, over 100 megapixels; ask for less"):
        translators("cyclegan")(image=picture, size=16384)


# --------------------------------------------------------------------------------------------- transparency and depth


def test_transparency_is_kept_and_the_network_sees_the_background(translators: Any, tmp_path: Path) -> None:
    alpha = np.linspace(0, 255, 40 * 48).reshape(40, 48).astype(np.uint8)
    picture = translating_kit.pixels(40, 48)
    picture.putalpha(PIL.Image.fromarray(alpha))
    for background in ("white", "#204080"):
        output = translators("cyclegan")(image=picture, background=background)
        output.save(tmp_path / "out.png")
        with PIL.Image.open(tmp_path / "out.png") as saved:
            assert saved.mode == "RGBA"
            assert np.array_equal(np.asarray(saved.getchannel("A")), alpha)
            colours = np.asarray(saved.convert("RGB"))
        laid = Image.open(picture, background=background)
        flat = translators("cyclegan")(image=laid.pil).images[0]
        assert np.array_equal(colours, np.asarray(flat.pil))


def test_transparency_follows_the_size_asked_for(translators: Any) -> None:
    picture = translating_kit.pixels(40, 60)
    picture.putalpha(128)
    made = translators("cyclegan")(image=picture, size=30).images[0]
    assert made.pil.mode == "RGBA"
    assert made.size == (30, 20)
    assert set(np.asarray(made.alpha).ravel()) == {128}


def test_sixteen_bits_go_in_and_come_out(translators: Any, tmp_path: Path) -> None:
    deep = (translating_kit.picture(44, 48).permute(1, 2, 0).numpy() * 65535).astype(np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    translators("residual")(image=tmp_path / "deep.tif").save(tmp_path / "out.tif")
    made = tifffile.imread(tmp_path / "out.tif")
    assert made.dtype == np.uint16
    with torch.inference_mode():
        ready = padded(torch.from_numpy(deep.astype(np.float32) / 65535).permute(2, 0, 1), 8, 8)
        expected = (translating_kit.network("residual")(ready[None] * 2 - 1)[0] + 1) / 2
    expected = expected[:, 2:46].clamp(0, 1).permute(1, 2, 0).numpy() * 65535
    assert np.abs(made - expected).max() < 1
    assert len(np.unique(made)) > 1000  # more than 8 bits can hold


def test_a_result_keeps_its_floats(translators: Any, tmp_path: Path) -> None:
    picture = Image.open(translating_kit.pixels(40, 48))
    made = translators("cyclegan")(image=picture).images[0]
    made.save(tmp_path / "out.tif", bits=16)
    expected = directly("cyclegan", picture).permute(1, 2, 0).numpy() * 65535
    assert np.abs(tifffile.imread(tmp_path / "out.tif") - expected).max() < 1


def test_a_grey_network_takes_the_luminance(translators: Any) -> None:
    made = pixels(translators("grey")(image=translating_kit.pixels(40, 48)))
    assert torch.equal(made[0], made[1])
    grey = translating_kit.pixels(40, 48).convert("L")
    torch.testing.assert_close(pixels(translators("grey")(image=grey)), made, rtol=0, atol=0.03)
    assert made.std() > 0.01


# --------------------------------------------------------------------------------------------- as their authors tested


@pytest.mark.parametrize("name", ["unet", "batch norm and dropout"])
def test_pix2pix_runs_as_its_authors_test_did(translators: Any, name: str) -> None:
    """Train mode, one picture, torch's own random numbers: the same up to rounding."""
    picture = Image.open(translating_kit.pixels(128, 128))
    network = translating_kit.network(name).train()
    torch.manual_seed(11)
    with torch.no_grad():
        theirs = (network(picture.tensor()[None] * 2 - 1)[0] + 1) / 2
    made = pixels(translators(name)(image=picture, seed=11))
    torch.testing.assert_close(made, theirs.clamp(0, 1), rtol=0, atol=2e-5)
    evaluated = pixels(translators(name)(image=picture, seed=11, eval_norm=True))
    assert torch.allclose(evaluated, directly(name, picture), rtol=0, atol=1e-5)
    assert (evaluated - made).abs().max() > 0.01


def test_only_dropout_depends_on_the_seed(translators: Any) -> None:
    picture = translating_kit.pixels(128, 128)
    for name, more, alike in [
        ("unet", {}, False),
        ("unet", {"tile": 64}, False),
        ("unet", {"eval_norm": True}, True),
        ("cyclegan", {}, True),
        ("stargan", {"domain": 1}, True),
    ]:
        one, two = (pixels(translators(name)(image=picture, seed=seed, **more)) for seed in (1, 2))
        assert torch.equal(one, two) == alike, name


def test_stargan_takes_a_place_or_a_number_for_each_label(translators: Any) -> None:
    translator, picture = translators("stargan"), translating_kit.pixels(32, 48)
    with torch.inference_mode():
        x = Image.open(picture).tensor()[None] * 2 - 1
        expected = (translating_kit.network("stargan")(x, torch.tensor([[0.0, 0.0, 1.0]]))[0] + 1) / 2
    place = pixels(translator(image=picture, domain=2, eval_norm=True))
    torch.testing.assert_close(place, expected.clamp(0, 1), rtol=0, atol=1e-5)
    assert torch.equal(pixels(translator(image=picture, domain=[0, 0, 1], eval_norm=True)), place)
    assert not torch.equal(pixels(translator(image=picture, domain=[1, 0, 1], eval_norm=True)), place)
    tiled = pixels(translator(image=translating_kit.pixels(96, 96), domain=2, tile=64))
    assert (tiled - pixels(translator(image=translating_kit.pixels(96, 96), domain=2))).abs().max() < 1e-5


# -------------------------------------------------------------------------------------------------- batches and tiles


@pytest.mark.parametrize("name", ["residual", "unet", "stargan"])
def test_a_picture_does_not_depend_on_its_batch(translators: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    translator = translators(name)
    more = {"domain": 1} if name == "stargan" else {}
    sizes = [(40, 48), (40, 48), (40, 48), (72, 40), (40, 48)]
    items = [
        translator.Params.parse({"image": translating_kit.pixels(*size, seed), "seed": seed, **more})
        for seed, size in enumerate(sizes)
    ]
    monkeypatch.setattr(translator.translator, "together", 2)  # as on a GPU: neighbours of one size at once
    calls: list[tuple[int, int]] = []
    groups = [len(group) for group in translator.translator._together(items)]
    together = translator.generate(items, lambda step, total, **_: calls.append((step, total)))
    monkeypatch.setattr(translator.translator, "together", 1)
    assert groups == ([2, 2, 1] if name == "unet" else [2, 1, 1, 1])  # the U-Net pads them all to one size
    assert calls[-1] == (5, 5)
    for item, output, size in zip(items, together, sizes, strict=True):
        alone = translator.generate([item])[0]
        assert output.images[0].size == size[::-1]
        assert (pixels(output) - pixels(alone)).abs().max() < 2e-5


def test_tiles_asked_for_make_the_same_picture(translators: Any) -> None:
    picture = translating_kit.pixels(150, 201)
    whole, tiled = (translators("cyclegan")(image=picture, tile=tile) for tile in (None, 64))
    assert (pixels(whole) - pixels(tiled)).abs().max() < 1e-5
    assert (whole.info, tiled.info) == ({}, {"tile": 64})
    assert tiled.notes == []
    assert translators("cyclegan")(image=picture, tile=4096).info == {}  # in one piece after all


def test_tiles_are_taken_where_memory_is_short(translators: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    translator, picture = translators("cyclegan"), translating_kit.pixels(300, 500)
    whole = translator(image=picture)
    monkeypatch.setattr(type(translator.runtime), "free_memory", lambda _: 20_000_000)
    tiled = translator(image=picture)
    assert tiled.info == {"tile": 128}
    assert tiled.notes == ["worked in tiles of 128 px: in one piece it takes 0.0 GB"]
    assert (pixels(whole) - pixels(tiled)).abs().max() < 1e-5
    monkeypatch.setattr(type(translator.runtime), "free_memory", lambda _: 100_000)
    with pytest.raises(DeviceError, match=r"^500x300 px does not fit cpu even in tiles \(0\.0 GB free\): make it smal"):
        translator(image=picture)


def test_a_picture_that_runs_out_of_memory_against_all_reckoning_goes_in_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = translating_kit.old_file(tmp_path / "model.pth", "cyclegan")
    translator = genkit.load("image-translation", model=file, device="cpu", dtype="float32")
    picture = translating_kit.pixels(300, 500)
    whole = translator(image=picture)
    monkeypatch.setattr(type(translator.runtime), "_free", lambda _: 70_000_000)  # enough, by what it reckons
    assert translator(image=picture).info == {}
    ran_out: list[int] = []

    def short(network: Any, given: Any) -> None:
        if given[0].numel() > 3 * 256 * 256:
            ran_out.append(given[0].numel())
            torch.empty(2**60)

    translator.translator.whole.register_forward_pre_hook(short)
    tiled = translator(image=picture)
    assert tiled.degraded.startswith("counts on 50% of the free memory")
    assert tiled.info["tile"]
    assert (pixels(whole) - pixels(tiled)).abs().max() < 1e-5
    tries = len(ran_out)
    assert translator(image=picture).info == tiled.info
    assert len(ran_out) == tries


def test_in_one_piece_every_layer_is_a_step_and_it_stops_at_one(translators: Any) -> None:
    translator, picture = translators("cyclegan"), translating_kit.pixels(40, 48)
    calls: list[tuple[int, int]] = []
    translator(image=picture, progress=lambda step, total, **_: calls.append((step, total)))
    steps, total = [step for step, _ in calls], calls[0][1]
    assert {of for _, of in calls} == {total}
    assert steps == sorted(set(steps))
    assert steps[0] == 1
    assert steps[-1] == total > 30
    calls.clear()

    def stop(step: int, total: int, **_: Any) -> None:
        calls.append((step, total))
        if step == 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        translator(image=picture, progress=stop)
    assert len(calls) == 5
    assert (pixels(translator(image=picture)) - directly("cyclegan", Image.open(picture))).abs().max() < 1e-5
    assert len(calls) == 5  # nobody listens any more


def test_progress_goes_tile_by_tile_and_stops_at_one(translators: Any) -> None:
    calls: list[tuple[int, int, str]] = []
    picture = translating_kit.pixels(120, 120)
    translator = translators("residual")
    translator(image=picture, tile=64, progress=lambda step, total, note="", **_: calls.append((step, total, note)))
    assert [step for step, _, _ in calls] == list(range(1, calls[0][1] + 1))
    assert calls[0][2].startswith("pass 1 of ")

    def stop(step: int, total: int, **_: Any) -> None:
        if step == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        translator(image=picture, tile=64, progress=stop)
    items = [translator.Params.parse({"image": picture, "tile": 64, "seed": 1})] * 2
    calls.clear()
    translator.generate(items, lambda step, total, note="", **_: calls.append((step, total, note)))
    assert {total for _, total, _ in calls} == {2}
    assert [step for step, _, _ in calls] == sorted(step for step, _, _ in calls)
    assert calls[-1][0] == 2
    assert calls[0][2].startswith("picture 1, tile 1 of ")


# ------------------------------------------------------------------------------------------------------------- record


def test_the_record_says_what_the_model_is(translators: Any, tmp_path: Path) -> None:
    translators("unet")(image=translating_kit.pixels(40, 40), seed=3).save(tmp_path / "out.png")
    record = provenance.read(tmp_path / "out.png")
    assert record is not None
    assert record.params["seed"] == 3
    assert "U-Net generator" in str(record.found["model"])
    assert record.models["model"].digest.startswith("sha256:")


def test_a_result_that_is_none_is_one_line(tmp_path: Path) -> None:
    network = translating_kit.network("cyclegan")
    state = {key: tensor * 1e30 for key, tensor in network.state_dict().items()}  # finite, and too much for float32
    torch.save(state, tmp_path / "hot.pth")
    translator = genkit.load("image-translation", model=tmp_path / "hot.pth", device="cpu", dtype="float32")
    with pytest.raises(GenkitError, match=r"the result is not a picture \(NaN\): the model is damaged"):
        translator(image=translating_kit.pixels(40, 40))
