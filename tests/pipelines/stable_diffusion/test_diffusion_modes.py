"""From pictures to pictures: image to image, inpainting, outpainting, the high-resolution fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import painting_kit as kit
import PIL.Image
import pytest
import tifffile
import torch

from genkit.media.image import Image
from pipelines.stable_diffusion import canvas

CLOSE = 1e-5
ALONE = 1.6e-5
BOX = (16, 16, 48, 48)


@pytest.fixture
def painter(sd: Path) -> Any:
    return kit.loaded(sd)


def eight_bits(output: Any) -> np.ndarray:
    return np.asarray(output.images[0].pil)


@pytest.mark.parametrize(
    ("name", "pipe"),
    [
        ("sd", "StableDiffusionImg2ImgPipeline"),
        ("sdxl", "StableDiffusionXLImg2ImgPipeline"),
        ("sd3", "StableDiffusion3Img2ImgPipeline"),
        ("flux", "FluxImg2ImgPipeline"),
    ],
)
def test_an_image_is_changed_as_diffusers_does(name: str, pipe: str, request: pytest.FixtureRequest) -> None:
    folder, photo = request.getfixturevalue(name), kit.photo()
    own = kit.loaded(folder)
    size = {"width": 64, "height": 64} if name in ("sd3", "flux") else {}
    ours = own(prompt=kit.PROMPT, image=photo, strength=0.7, seed=3, num_images_per_prompt=2, num_inference_steps=4)
    theirs = kit.plain(folder, pipe)(
        [kit.PROMPT] * 2,
        image=[photo] * 2,
        strength=0.7,
        num_inference_steps=4,
        guidance_scale=own.painter.model.defaults.guidance_scale,
        generator=kit.generators(3, 4),
        output_type="np",
        **size,
    )
    assert kit.apart(kit.floats(ours), theirs.images) <= CLOSE


@pytest.mark.parametrize("name", ["sd", "inpainting", "sdxl"])
def test_white_is_made_as_diffusers_does_and_black_stays_to_the_bit(name: str, request: pytest.FixtureRequest) -> None:
    folder, photo, mask = request.getfixturevalue(name), kit.photo(), kit.mask(box=BOX)
    ours = kit.loaded(folder)(prompt=kit.PROMPT, image=photo, mask_image=mask, seed=3, num_inference_steps=3)
    pipe = "StableDiffusionXLInpaintPipeline" if name == "sdxl" else "StableDiffusionInpaintPipeline"
    guidance = kit.loaded(folder).painter.model.defaults.guidance_scale
    theirs = kit.plain(folder, pipe)(
        kit.PROMPT,
        image=photo,
        mask_image=mask,
        num_inference_steps=3,
        strength=1.0,
        guidance_scale=guidance,
        generator=kit.generators(3),
        output_type="np",
    )
    inside = np.s_[:, 20:44, 20:44]
    assert kit.apart(kit.floats(ours)[inside], theirs.images[inside]) <= CLOSE
    kept = np.asarray(mask) == 0
    assert np.array_equal(eight_bits(ours)[kept], np.asarray(photo)[kept])
    assert not np.array_equal(eight_bits(ours)[~kept], np.asarray(photo)[~kept])


@pytest.mark.parametrize("more", [{}, {"mask_image": kit.mask(61, 45, (9, 9, 40, 40))}])
def test_a_picture_of_any_size_keeps_it(painter: Any, more: dict[str, Any]) -> None:
    photo = kit.photo(61, 45)
    output = painter(prompt=kit.PROMPT, image=photo, seed=3, num_inference_steps=2, **more)
    assert output.images[0].size == (61, 45)
    assert (output.found["width"], output.found["height"]) == (64, 48)
    if more:
        kept = np.asarray(more["mask_image"]) == 0
        assert np.array_equal(eight_bits(output)[kept], np.asarray(photo)[kept])


def test_pictures_of_one_request_are_their_single_runs(painter: Any) -> None:
    params = {"prompt": kit.PROMPT, "image": kit.photo(), "mask_image": kit.mask(), "num_inference_steps": 3}
    several = painter(**params, seed=5, num_images_per_prompt=3, scheduler="euler a")
    for i in range(3):
        alone = painter(**params, seed=5 + i, scheduler="euler a")
        assert kit.apart(kit.floats(several)[i : i + 1], kit.floats(alone)) <= ALONE


def test_pictures_of_one_size_go_through_together(painter: Any) -> None:
    params = {"prompt": kit.PROMPT, "num_inference_steps": 2, "strength": 0.9}
    photos = [kit.photo(seed=seed) for seed in range(2)] + [kit.photo(40, 64)]
    parsed = [painter.Params.parse({**params, "image": photo, "seed": 1}) for photo in photos]
    outputs = painter.generate(parsed)
    for photo, output in zip(photos, outputs, strict=True):
        assert output.images[0].size == photo.size
        assert kit.apart(kit.floats(output), kit.floats(painter(**params, image=photo, seed=1))) <= ALONE


def test_expanding_keeps_the_picture_and_adds_what_was_asked_for(painter: Any) -> None:
    photo = kit.photo(44, 36)
    output = painter(prompt=kit.PROMPT, image=photo, expand=[8, 16, 0, 5], seed=3, num_inference_steps=2)
    assert output.images[0].size == (44 + 8, 36 + 16 + 5)
    assert np.array_equal(eight_bits(output)[16:52, 8:], np.asarray(photo))
    assert painter(prompt="a", image=photo, expand=8, seed=3, num_inference_steps=1).images[0].size == (60, 52)


def test_expanding_with_a_mask_makes_both(painter: Any) -> None:
    photo, mask = kit.photo(48, 48), kit.mask(48, 48, (0, 0, 24, 24))
    output = painter(prompt=kit.PROMPT, image=photo, mask_image=mask, expand=8, seed=3, num_inference_steps=2)
    inner, kept = eight_bits(output)[8:56, 8:56], np.asarray(mask) == 0
    assert np.array_equal(inner[kept], np.asarray(photo)[kept])
    assert not np.array_equal(inner[~kept], np.asarray(photo)[~kept])


def test_sixteen_bits_stay_where_nothing_is_made(painter: Any, tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(1, 65535, (64, 64, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    mask = kit.mask()
    output = painter(prompt="a", image=tmp_path / "deep.tif", mask_image=mask, seed=3, num_inference_steps=2)
    output.save(tmp_path / "out.tif")
    again = Image.open(tmp_path / "out.tif").deep
    kept = np.asarray(mask) == 0
    assert again.dtype == np.uint16
    assert np.array_equal(again[kept], deep[kept])


def test_transparency_is_laid_on_white_and_told(painter: Any) -> None:
    clear = kit.photo().convert("RGBA")
    clear.putalpha(kit.mask())
    output = painter(prompt="a", image=clear, mask_image=kit.mask(box=(0, 0, 8, 8)), seed=3, num_inference_steps=2)
    assert output.notes == ["the transparent parts of image were laid on white"]
    assert eight_bits(output)[60, 60].tolist() == [255, 255, 255]


def test_transparent_parts_of_a_mask_are_kept(painter: Any) -> None:
    photo = kit.photo()
    painted = PIL.Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    painted.paste((255, 255, 255, 255), BOX)
    output = painter(prompt="a", image=photo, mask_image=painted, seed=3, num_inference_steps=2)
    kept = np.asarray(kit.mask(box=BOX)) == 0
    assert np.array_equal(eight_bits(output)[kept], np.asarray(photo)[kept])


@pytest.mark.parametrize(
    ("stated", "size"), [({"width": 32, "height": 32}, (32, 32)), ({"width": 32}, (32, 48)), ({"height": 96}, (64, 96))]
)
def test_a_stated_size_resizes_the_picture_and_says_so(
    painter: Any, stated: dict[str, int], size: tuple[int, int]
) -> None:
    output = painter(prompt="a", image=kit.photo(64, 96), seed=3, num_inference_steps=2, **stated)
    assert output.images[0].size == size
    told = [note for note in output.notes if "resized" in note]
    assert told == ([] if size == (64, 96) else [f"image was resized from 64x96 to {size[0]}x{size[1]} px"])


def test_the_high_resolution_fix_enlarges_and_refines(painter: Any) -> None:
    params = {"prompt": kit.PROMPT, "num_inference_steps": 4, "upscale": 1.5, "scheduler": "ddim"}
    told: list[tuple[int, int]] = []
    progress = lambda step, total, **_: told.append((step, total))  # noqa: E731
    both = painter(**params, seed=3, num_images_per_prompt=2, progress=progress)
    assert [image.size for image in both.images] == [(96, 96)] * 2
    assert (both.found["upscaled_width"], both.found["width"]) == (96, 64)
    assert told == [(step, 6) for step in range(1, 7)]  # four steps, then half of four
    assert kit.apart(kit.floats(both)[1:], kit.floats(painter(**params, seed=4))) <= ALONE


def test_the_high_resolution_fix_is_text_to_image_and_then_image_to_image(sd: Path, painter: Any) -> None:
    ours = painter(prompt=kit.PROMPT, seed=3, num_inference_steps=4, upscale=1.5, upscale_strength=0.6)
    own = kit.generators(3)  # drawn on from by both
    small = kit.plain(sd, "StableDiffusionPipeline")(
        kit.PROMPT, num_inference_steps=4, generator=own, output_type="np"
    ).images[0]
    larger = canvas.enlarged([torch.from_numpy(small).permute(2, 0, 1)], (96, 96))
    theirs = kit.plain(sd, "StableDiffusionImg2ImgPipeline")(
        kit.PROMPT, image=larger, strength=0.6, num_inference_steps=4, generator=own, output_type="np"
    )
    assert kit.apart(kit.floats(ours), theirs.images) <= CLOSE


def test_what_an_image_begins_from_can_be_enlarged_too(painter: Any) -> None:
    output = painter(prompt="a", image=kit.photo(50, 40), upscale=2, seed=3, num_inference_steps=2)
    assert output.images[0].size == (100, 80)


def test_the_seam_lies_inside_the_mask() -> None:
    mask = torch.zeros(1, 512, 512)
    mask[:, 100:300, 100:300] = 1
    share = canvas._seam(mask)
    assert (share[mask == 0] == 0).all()
    assert (share[:, 110:290, 110:290] == 1).all()
    edge = share[0, 200, 98:108]
    assert edge.tolist() == sorted(edge.tolist())
    assert ((edge > 0) & (edge < 1)).sum() >= 3
