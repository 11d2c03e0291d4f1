"""The autoencoder's training: learns, resumes exactly, and leaves a folder of standardised latents."""

from __future__ import annotations

from pathlib import Path

import diffusion_training_kit as kit
import pytest
import torch

from genkit.errors import InputError, ModelError
from pipelines.stable_diffusion.train.vae import standardise


@pytest.fixture
def data(tmp_path: Path) -> str:
    return f"data=[{kit.captioned(tmp_path / 'a')}, {kit.captioned(tmp_path / 'b', shift=3)}]"


def load(folder: Path):
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder, use_safetensors=True).float()


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(data: str, tmp_path: Path) -> None:
    kit.interrupted_equals_whole("vae", tmp_path, data)
    files = [tmp_path / out / "export/diffusion_pytorch_model.safetensors" for out in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_it_learns_to_draw_what_it_is_shown(data: str, tmp_path: Path) -> None:
    fast = ("steps=60", "batch_size=4", "rate=0.01", "ema=null", "kl=0.000001", "checkpoint.every=100")
    run = kit.trainer("vae", tmp_path / "run", data, *fast, "validate_every=null", "sample_every=null")
    with torch.no_grad():
        before = run.task.validate()
    assert run.train().finished
    with torch.no_grad():
        after = run.task.validate()
    assert after["l1"] < 0.6 * before["l1"]
    assert after["psnr"] > before["psnr"] + 2


def test_the_exported_latents_have_mean_0_and_deviation_1_and_the_pictures_stay(data: str, tmp_path: Path) -> None:
    run = kit.trainer("vae", tmp_path / "run", data, "steps=10", "rate=0.01", "ema=null")
    run.train()
    vae, own = load(tmp_path / "run/export"), run.task.modules["vae"].eval()
    x = run.task.data.show(run.task.data.pairs)
    with torch.no_grad():
        found, wanted = vae.encode(x).latent_dist, own.encode(x).latent_dist
        torch.testing.assert_close(vae.decode(found.mean).sample, own.decode(wanted.mean).sample, atol=0.02, rtol=0)
    assert found.mean.mean((0, 2, 3)).abs().max() < 0.01
    assert (found.mean.std((0, 2, 3)) - 1).abs().max() < 0.01
    assert vae.config.scaling_factor == 1.0


def test_standardising_changes_neither_picture_nor_noise(data: str, tmp_path: Path) -> None:
    """Exactly, in double precision: z' = (z - mu) / sd for every draw, and the decoder undoes it."""
    run = kit.trainer("vae", tmp_path / "run", data)
    vae = run.task.modules["vae"].eval().double()
    with torch.no_grad():
        for p in (vae.quant_conv.weight, vae.quant_conv.bias, vae.post_quant_conv.bias):
            p.add_(torch.randn_like(p))
        x = run.task.data.show(run.task.data.pairs).double()

        def seen() -> tuple[torch.Tensor, torch.Tensor]:
            drawn = vae.encode(x).latent_dist.sample(torch.Generator().manual_seed(3))
            return drawn, vae.decode(drawn).sample

        before, picture = seen()
        mean = vae.encode(x).latent_dist.mean
        standardise(vae, iter(x.split(3)))
        after, same = seen()
        mu, sd = mean.mean((0, 2, 3), keepdim=True), mean.std((0, 2, 3)).view(1, -1, 1, 1)
    torch.testing.assert_close(after, (before - mu) / sd)
    torch.testing.assert_close(same, picture)


def test_going_on_with_the_decoder_leaves_the_latents_alone(data: str, tmp_path: Path) -> None:
    kit.trainer("vae", tmp_path / "first", data, "steps=4", "rate=0.01").train()
    begin = tmp_path / "first/export"
    more = (f"begin={begin}", "decoder_only=true", "rate=0.01", "kl=0.5")
    run = kit.trainer("vae", tmp_path / "second", data, *more)
    x = run.task.data.show(run.task.data.pairs)
    run.train()
    one, two = load(begin), load(tmp_path / "second/export")
    with torch.no_grad():
        a, b = one.encode(x).latent_dist, two.encode(x).latent_dist
        assert torch.equal(a.mean, b.mean)
        assert torch.equal(a.logvar, b.logvar)
        assert not torch.allclose(one.decode(a.mean).sample, two.decode(a.mean).sample, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("perceptual=1",), "`perceptual` needs `features`"),
        (("decoder_only=true",), "`decoder_only` needs `begin`"),
        (("channels=[8, 12]",), "groups 8 does not divide channels [8, 12]"),
        (("channels=[8, 8, 8, 8, 8, 8]", "size=48", "load_size=48"), "size 48 cannot be halved 5 times"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: tuple[str, ...], words: str, data: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        kit.trainer("vae", tmp_path / "run", data, *settings)
    assert words in str(caught.value)


def test_a_folder_without_an_autoencoder_is_refused(data: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no autoencoder"):
        kit.trainer("vae", tmp_path / "run", data, f"begin={tmp_path / 'a'}")


def test_a_folder_that_is_held_out_as_a_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="all 8 pictures are held out; lower held_out"):
        kit.trainer("vae", tmp_path / "run", f"data={kit.captioned(tmp_path / 'a')}", "held_out=1000")
