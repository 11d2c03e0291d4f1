"""Seamless pictures: rolled noise makes the rolled picture, and nothing of it stays behind."""

from __future__ import annotations

from pathlib import Path

import additions_kit as kit
import pytest
import torch
from torch import nn

from genkit.errors import InputError
from pipelines.stable_diffusion import seamless
from pipelines.stable_diffusion.additions.applying import Additions
from pipelines.stable_diffusion.pipeline import Params

SHRINKS = 8  # pixels for one of the latents
STRIDE = 2  # latents that the deepest level of the U-Net sees as one
SHIFTS = {"x": (0, STRIDE), "y": (STRIDE, 0), "both": (STRIDE, 3 * STRIDE)}


@pytest.fixture(scope="module")
def additions(sd: Path) -> Additions:
    return Additions(kit.load(sd))


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("axes", SHIFTS)
def test_rolled_noise_makes_the_rolled_picture(axes: str, additions: Additions, noise: torch.Tensor) -> None:
    shift = SHIFTS[axes]
    plain = kit.made(additions, seamless=axes, latents=noise)
    rolled = kit.made(additions, seamless=axes, latents=noise.roll(shift, (2, 3)))
    assert torch.allclose(plain.roll([SHRINKS * s for s in shift], (2, 3)), rolled, atol=1e-4)


@pytest.mark.parametrize(("axes", "other"), [("x", "y"), ("y", "x"), (None, "x"), (None, "y")])
def test_the_other_axis_keeps_its_borders(
    axes: str | None, other: str, additions: Additions, noise: torch.Tensor
) -> None:
    plain = kit.made(additions, seamless=axes, latents=noise)
    rolled = kit.made(additions, seamless=axes, latents=noise.roll(SHIFTS[other], (2, 3)))
    expected = plain.roll([SHRINKS * s for s in SHIFTS[other]], (2, 3))
    assert (expected - rolled).abs().max() > 0.01


def test_the_encoder_wraps_where_diffusers_pads_by_hand(additions: Additions) -> None:
    vae = additions.model.pipe.vae
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), seamless.wrapped([vae], "both"):
        latents = vae.encode(picture).latent_dist.mean
        rolled = vae.encode(picture.roll((8, 24), (2, 3))).latent_dist.mean
    assert torch.allclose(latents.roll((1, 3), (2, 3)), rolled, atol=1e-4)


@pytest.mark.parametrize("axes", SHIFTS)
def test_a_convolution_sees_the_opposite_border(axes: str) -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1)
    value = torch.randn(1, 2, 5, 6)
    columns = "circular" if axes in ("x", "both") else "constant"
    rows = "circular" if axes in ("y", "both") else "constant"
    padded = nn.functional.pad(nn.functional.pad(value, (1, 1, 0, 0), mode=columns), (0, 0, 1, 1), mode=rows)
    expected = nn.functional.conv2d(padded, layer.weight, layer.bias)
    with seamless.wrapped([layer], axes):
        assert torch.allclose(layer(value), expected, atol=1e-6)


def test_it_is_undone(additions: Additions, sd: Path, noise: torch.Tensor) -> None:
    before = kit.made(Additions(kit.load(sd)), latents=noise)
    vae = additions.model.pipe.vae
    vae.enable_tiling()
    with additions.applied(Params(prompt="a", seamless="both")):
        assert not vae.use_tiling
    with pytest.raises(KeyboardInterrupt), additions.applied(Params(prompt="a", seamless="both")):
        raise KeyboardInterrupt
    assert vae.use_tiling
    vae.disable_tiling()
    assert torch.equal(kit.made(additions, latents=noise), before)
    for network in (vae, additions.model.denoiser):
        assert not any("_conv_forward" in vars(layer) for layer in network.modules())


def test_with_a_lora_and_a_controlnet(additions: Additions, noise: torch.Tensor, tmp_path: Path) -> None:
    lora = kit.diffusers_file(tmp_path / "a.safetensors", kit.pairs(additions.model, "sd"))
    kit.controlnet(additions.model).save_pretrained(tmp_path / "control")
    grid = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(4)).repeat_interleave(8, 1)
    picture = grid.repeat_interleave(8, 2)
    roll = [SHRINKS * s for s in SHIFTS["both"]]
    made = []
    for start, edges in ((noise, picture), (noise.roll(SHIFTS["both"], (2, 3)), picture.roll(roll, (1, 2)))):
        control = {"model": str(tmp_path / "control"), "image": edges.permute(1, 2, 0).numpy()}
        made.append(kit.made(additions, seamless="both", lora=str(lora), control=control, latents=start))
    assert torch.allclose(made[0].roll(roll, (2, 3)), made[1], atol=1e-4)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_transformers_are_refused(family: str, request: pytest.FixtureRequest) -> None:
    additions = Additions(kit.load(request.getfixturevalue(family)))
    with (
        pytest.raises(InputError, match="seamless works with Stable Diffusion 1, 2 and XL"),
        additions.applied(Params(prompt="a", seamless="x")),
    ):
        pass
