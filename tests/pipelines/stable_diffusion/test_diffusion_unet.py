"""The training of a text-to-image model: learns, resumes exactly, and leaves a folder that diffusers loads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import diffusion_kit as models
import diffusion_training_kit as kit
import pytest
import torch
from runs_kit import metrics

from genkit.errors import GenkitError, InputError, ModelError
from pipelines.stable_diffusion.train.unet import _heads, _Kept

SMALL = ("size=64", "channels=[16, 16]", "attention=[false, true]", "groups=8", "caption='{text}, {folder} style'")


@pytest.fixture
def settings(tmp_path: Path, sd: Path) -> tuple[str, ...]:
    a, b = kit.captioned(tmp_path / "noto", side=64, each=1), kit.captioned(tmp_path / "blob", side=64, each=1, shift=3)
    return (f"data=[{a}, {b}]", f"vae={sd / 'vae'}", f"text={sd}", "held_out=1", *SMALL)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(settings: tuple[str, ...], tmp_path: Path) -> None:
    kit.interrupted_equals_whole("unet", tmp_path, *settings, "sample_every=null", "validate_every=3", steps=6)
    files = [tmp_path / out / "export/unet/diffusion_pytorch_model.safetensors" for out in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_loss_falls(settings: tuple[str, ...], tmp_path: Path) -> None:
    more = ("steps=60", "batch_size=8", "rate=0.003", "validate_every=null", "sample_every=null", "log_every=1")
    run = kit.trainer("unet", tmp_path / "run", *settings, *more, "checkpoint.every=100", "min_snr=null")
    run.train()
    losses = [line["train/loss"] for line in metrics(tmp_path / "run")]
    assert math.fsum(losses[-10:]) < 0.8 * math.fsum(losses[:10])


def test_what_comes_out_is_a_folder_of_diffusers(settings: tuple[str, ...], tmp_path: Path) -> None:
    """Plain diffusers draws the same with it as the run's own samples do, but for the 16 bits."""
    from diffusers import StableDiffusionPipeline

    run = kit.trainer("unet", tmp_path / "run", *settings, "sample_every=null", "ema=null")
    run.train()
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "run/export", use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.sample_size == 8
    assert pipe.scheduler.config.prediction_type == "v_prediction"

    def drawn(pipeline) -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        made = pipeline("red disc", num_inference_steps=3, generator=generator, output_type="pt", height=64, width=64)
        return made.images

    run.task.modules["unet"].eval()
    torch.testing.assert_close(drawn(pipe), drawn(run.task.pipeline()), atol=0.02, rtol=0)
    saved = {p.relative_to(tmp_path / "run/export").as_posix() for p in (tmp_path / "run/export").rglob("*.*")}
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"} <= saved
    assert not [name for name in saved if name.endswith((".bin", ".pt"))]
    texts = [path.read_text() for path in (tmp_path / "run/export").rglob("*.json")]
    assert not [text for text in texts if str(tmp_path) in text or "_name_or_path" in text]


def test_a_model_of_ones_own_is_called_as_its_training_says(settings: tuple[str, ...], tmp_path: Path) -> None:
    """By its path, without an alias; a folder that states nonsense is refused."""
    from genkit.runtime import Runtime
    from pipelines.stable_diffusion.loading import load_model

    more = ("sampling_steps=7", "guidance=2.5", "steps=2", "sample_every=null")
    kit.trainer("unet", tmp_path / "run", *settings, *more).train()
    folder = tmp_path / "run/export"
    own = load_model(folder, Runtime.pick(device="cpu", dtype="float32")).defaults
    assert (own.width, own.height, own.num_inference_steps, own.guidance_scale) == (64, 64, 7, 2.5)
    stated = json.loads((folder / "genkit.json").read_text())
    assert stated["training"]["steps"] == 2
    for nonsense in ({"num_inference_steps": 0}, {"guidance_scale": "much"}, {"guidance_scale": math.nan}):
        (folder / "genkit.json").write_text(json.dumps(nonsense))
        with pytest.raises(ModelError, match="states no steps of 1 to 1000 or no guidance"):
            load_model(folder, Runtime.pick(device="cpu", dtype="float32"))


def test_an_image_encoder_beside_the_text_encoder_goes_along(
    settings: tuple[str, ...], seeing: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    run = kit.trainer("unet", tmp_path / "run", *settings, f"text={seeing}", "sample_every=null")
    run.train()
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "run/export", use_safetensors=True)
    assert type(pipe.image_encoder).__name__ == "CLIPVisionModelWithProjection"
    assert type(pipe.feature_extractor).__name__ == "CLIPImageProcessor"


def test_captions_are_dropped_as_often_as_asked(settings: tuple[str, ...], tmp_path: Path) -> None:
    run = kit.trainer("unet", tmp_path / "run", *settings, "caption_dropout=1", "steps=2", "sample_every=null")
    read: list[str] = []
    task = run.task
    plain = task._read
    task._read = lambda caption: (read.append(caption), plain(caption))[1]  # type: ignore[method-assign]
    batch = torch.utils.data.default_collate([task.data[i] for i in range(4)])
    task.step(batch, run)
    assert set(read) == {""}


def test_the_latents_are_drawn_from_the_encoders_mean_and_deviation(settings: tuple[str, ...], tmp_path: Path) -> None:
    task = kit.trainer("unet", tmp_path / "run", *settings).task
    pair, picture = task.data.pairs[0], task.data[0]["picture"]
    mean, std = task.latents(pair, picture)
    torch.manual_seed(0)
    drawn = torch.stack([task._drawn(picture[None], [pair])[0] for _ in range(400)])
    torch.testing.assert_close(drawn.mean(0), mean, atol=float(std.max()) * 0.3, rtol=0)
    torch.testing.assert_close(drawn.std(0).mean(), std.mean(), atol=0, rtol=0.05)
    scale = task.vae.config.scaling_factor
    with torch.no_grad():
        torch.testing.assert_close(mean, task.vae.encode(picture[None]).latent_dist.mean[0] * scale)


def test_what_is_kept_has_a_bound() -> None:
    kept, made = _Kept(40), []

    def make(n: int) -> tuple[torch.Tensor]:
        made.append(n)
        return (torch.full((4,), float(n)),)  # 16 bytes

    for _ in range(3):
        assert [kept.of(n, lambda n=n: make(n))[0][0].item() for n in range(4)] == [0, 1, 2, 3]
    assert sorted(kept.tensors) == [0, 1]
    assert made == [0, 1, 2, 3, 2, 3, 2, 3]


def test_heads_divide_their_width() -> None:
    assert [_heads(width, 32) for width in (96, 128, 176, 31, 320)] == [3, 4, 4, 1, 10]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("channels=[16, 16, 16]", "channels has 3 levels and attention 2"),
        ("groups=5", "groups 5 does not divide channels [16, 16]"),
        ("size=72", "size 72 does not fit 2 levels on latents of 9"),
        ("vae={tmp}", "do not load"),
        ("text={tmp}", "do not load"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    change: str, words: str, settings: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises((InputError, ModelError)) as caught:
        kit.trainer("unet", tmp_path / "run", *settings, change.replace("{tmp}", str(tmp_path)))
    assert isinstance(caught.value, GenkitError)
    assert words in str(caught.value)


def test_a_tokenizer_of_any_length_is_filled_up(tmp_path: Path, settings: tuple[str, ...]) -> None:
    """The text encoder sees as many tokens as its tokenizer says, as diffusers will show it."""
    tokenizer = models.clip_tokenizer()
    task = kit.trainer("unet", tmp_path / "run", *settings).task
    assert task.embedding("red disc").shape == (tokenizer.model_max_length, models.HIDDEN)
