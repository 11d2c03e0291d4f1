"""Previews look like the picture that is being made, for every family, and cost next to nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.errors import ModelError
from genkit.runtime import Runtime
from pipelines.stable_diffusion.loading import Model, load_model
from pipelines.stable_diffusion.preview import Preview, coloured, fit_colours

exact = Runtime.pick(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def model(sd: Path) -> Model:
    return load_model(sd, exact)


def alike(one: Tensor, other: Tensor) -> float:
    """The correlation of two pictures' deviations from their mean colours."""
    rows = [(picture - picture.mean((-1, -2), keepdim=True)).flatten() for picture in (one, other)]
    return float(torch.corrcoef(torch.stack(rows))[0, 1])


def smooth(count: int, channels: int = 4, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return F.interpolate(torch.randn(count, channels, 3, 3, generator=generator), size=(side, side), mode="bicubic")


def test_colours_of_a_linear_autoencoder_are_found() -> None:
    class Config:
        latent_channels, block_out_channels = 4, (1, 1, 1)

    class Averages:
        """Latents are mixed means of 4 x 4 px."""

        config, dtype = Config, torch.float32
        mix = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

        def encode(self, pictures: Tensor) -> Averages:
            self.latents = torch.einsum("lc,bchw->blhw", self.mix, F.avg_pool2d(pictures, 4)) + 0.5
            return self

        @property
        def latent_dist(self) -> Averages:
            return self

        def mode(self) -> Tensor:
            return self.latents

    autoencoder = Averages()
    weights = fit_colours(autoencoder, torch.device("cpu"))
    pictures = torch.rand(2, 3, 20, 12, generator=torch.Generator().manual_seed(1))
    shown = coloured(autoencoder.encode(2 * pictures - 1).mode(), weights)
    torch.testing.assert_close(shown, F.avg_pool2d(pictures, 4), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_every_family_has_previews(request: pytest.FixtureRequest, family: str) -> None:
    model = load_model(request.getfixturevalue(family), exact)
    latents = smooth(1, model.pipe.vae.config.latent_channels)
    if family == "flux":
        latents = model.pipe._pack_latents(latents, 1, latents.shape[1], 8, 8)
    first, again = (Preview(model).picture(latents, 64, 64) for _ in range(2))
    assert first.pil.size == (256, 256)
    assert torch.equal(first.tensor(), again.tensor())
    assert first.tensor().std() > 0.005


def test_several_pictures_lie_side_by_side(model: Model) -> None:
    preview = Preview(model)
    latents = smooth(3)
    together = preview.picture(latents, 64, 64).tensor()
    assert together.shape == (3, 256, 256)
    assert torch.equal(together[:, 160:, 160:], torch.ones(3, 96, 96))  # three of four places are taken
    alone = preview.picture(latents[1:2], 64, 64).tensor()
    assert alike(F.avg_pool2d(together[:, :128, 128:], 16), F.avg_pool2d(alone, 32)) > 0.99


def test_noise_beyond_all_bounds_is_shown_too(model: Model) -> None:
    preview = Preview(model)
    right = preview.picture(smooth(1) / smooth(1).std(), 64, 64).tensor()
    assert torch.allclose(preview.picture(smooth(1) * 80, 64, 64).tensor(), right, atol=0.01)
    broken = smooth(1)
    broken[0, 0, 0, 0] = float("nan")
    assert preview.picture(broken, 64, 64).tensor().isfinite().all()


def test_it_is_fitted_once_and_only_if_asked_for(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = model.pipe.vae.encode
    monkeypatch.setattr(model.pipe.vae, "encode", lambda *given: calls.append(1) or encode(*given))
    preview = Preview(model)
    assert not calls
    preview.picture(smooth(1), 64, 64)
    fitted = len(calls)
    assert fitted
    preview.picture(smooth(2), 64, 64)
    assert len(calls) == fitted


def test_a_small_decoder_in_the_folder_is_used(sd: Path, model: Model, tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    shutil.copytree(sd, tmp_path / "model")
    tiny.save_pretrained(tmp_path / "model" / "taesd")
    preview = Preview(load_model(tmp_path / "model", exact))
    latents = smooth(1) / smooth(1).std()
    with torch.no_grad():
        right = (tiny.eval().decode(latents).sample[0] / 2 + 0.5).clamp(0, 1)
    shown = F.avg_pool2d(preview.picture(latents, 64, 64).tensor(), 4)
    assert shown.shape == right.shape
    assert torch.allclose(shown, right, atol=0.1)
    named = Preview(model, tmp_path / "model" / "taesd")
    assert torch.equal(named.picture(latents, 64, 64).tensor(), preview.picture(latents, 64, 64).tensor())


def test_a_decoder_that_is_none_is_named(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no AutoencoderTiny"):
        Preview(model, tmp_path).picture(smooth(1), 64, 64)
