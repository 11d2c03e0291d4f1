"""LoRA: what comes out makes the pictures of the model it was trained in, by diffusers alone, in both layouts; a run
that was stopped goes on exactly; nothing but the changes is trained or saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import tuning_kit as kit
from runs_kit import assert_the_same, everything, metrics

from genkit import weights
from genkit.errors import InputError, ModelError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return kit.pictures(tmp_path / "data")


def pipeline(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder, local_files_only=True)


FAST = ("rate=0.02", "rank=3", "alpha=5")


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_diffusers_makes_the_same_picture_from_either_file(
    family: str, text: bool, data: Path, tmp_path: Path, request: Any
) -> None:
    model = request.getfixturevalue(family)
    settings = (f"model={model}", f"data={data}", f"text_encoder={str(text).lower()}", "steps=2", *FAST)
    run = kit.trainer("lora", tmp_path / "run", *settings, "sample_every=null")
    run.train()
    export = tmp_path / "run/export"
    assert sorted(path.name for path in export.iterdir()) == ["kohya.safetensors", "pytorch_lora_weights.safetensors"]
    wanted = kit.painted(run.task.pipe, "red apple")  # type: ignore[attr-defined]
    plain = pipeline(model)
    before = kit.painted(plain, "red apple")
    assert (before - wanted).abs().max() > 1e-3
    for name in ("pytorch_lora_weights", "kohya"):
        plain.load_lora_weights(export / f"{name}.safetensors")
        torch.testing.assert_close(kit.painted(plain, "red apple"), wanted, atol=1e-4, rtol=0)
        plain.unload_lora_weights()
        assert torch.equal(kit.painted(plain, "red apple"), before)


@pytest.mark.parametrize("targets", ["[to_q, to_k, to_v, to_out.0]", "[to_q, conv1, proj_in, ff.net.2]"])
def test_genkit_paints_what_the_training_did(targets: str, sd: Path, data: Path, tmp_path: Path) -> None:
    import genkit

    settings = (f"model={sd}", f"data={data}", f"targets={targets}", "text_encoder=true", *FAST, "sample_every=null")
    run = kit.trainer("lora", tmp_path / "run", *settings)
    run.train()
    wanted = kit.painted(run.task.pipe, "red apple")  # type: ignore[attr-defined]
    plain = pipeline(sd)
    plain.load_lora_weights(tmp_path / "run/export/pytorch_lora_weights.safetensors")
    torch.testing.assert_close(kit.painted(plain, "red apple"), wanted, atol=1e-4, rtol=0)
    painter = genkit.load("stable-diffusion", model=sd, device="cpu", dtype="float32")
    for place in ("", "kohya.safetensors"):
        lora = tmp_path / "run/export" / place
        made = painter(prompt="red apple", lora=str(lora), **kit.SETTINGS, seed=5).images[0].tensor()
        torch.testing.assert_close(made, wanted, atol=1e-2, rtol=0)  # of 256 levels


def test_the_kohya_file_has_published_names_and_alpha(sd: Path, data: Path, tmp_path: Path) -> None:
    run = kit.trainer(
        "lora", tmp_path / "run", f"model={sd}", f"data={data}", "text_encoder=true", *FAST, "sample_every=null"
    )
    run.train()
    tensors = weights.read(tmp_path / "run/export/kohya.safetensors")
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    down, up = tensors[f"{layer}.lora_down.weight"], tensors[f"{layer}.lora_up.weight"]
    assert (down.shape, up.shape) == ((3, 16), (16, 3))
    assert tensors[f"{layer}.alpha"] == 5
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha" in tensors
    assert all(key.startswith(("lora_unet_", "lora_te_")) for key in tensors)
    assert weights.metadata(tmp_path / "run/export/kohya.safetensors")["ss_network_alpha"] == "5.0"


def test_only_the_changes_are_trained_and_saved(sd: Path, data: Path, tmp_path: Path) -> None:
    run = kit.trainer("lora", tmp_path / "run", f"model={sd}", f"data={data}", *FAST, "sample_every=null")
    pipe = run.task.pipe  # type: ignore[attr-defined]
    before = kit.weights_of(pipe)
    begun = kit.painted(pipe, "red apple")
    assert torch.equal(begun, kit.painted(pipeline(sd), "red apple"))  # B is 0: the model as it was
    run.train()
    after = kit.weights_of(pipe)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if ".lora_" in key}
    saved = weights.read(tmp_path / "run/checkpoints/step-00000004/modules/lora.safetensors")
    assert sum(t.numel() for t in saved.values()) == sum(before[key].numel() for key in changed)


@pytest.mark.parametrize("more", [(), ("text_encoder=true", "caption_dropout=0.3", "ema=0.9")])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(more: Any, sd: Path, data: Path, tmp_path: Path) -> None:
    prior = kit.pictures(tmp_path / "prior", 2, seed=9, captions=False)
    settings = (f"model={sd}", f"data={data}", *FAST, "steps=6", "checkpoint.every=3", "log_every=1", "flip=true")
    settings = (*settings, f"prior={prior}", "prior_caption=a fox", "sample_every=null", "validate_every=3", *more)

    def stop(step: int, total: int, **_: Any) -> None:
        if step == 5:  # killed later than its last checkpoint
            raise KeyboardInterrupt

    whole = kit.trainer("lora", tmp_path / "whole", *settings)
    assert whole.train().finished
    at_the_end = everything(whole)
    with pytest.raises(KeyboardInterrupt):
        kit.trainer("lora", tmp_path / "parts", *settings, progress=stop).train()
    resumed = kit.trainer("lora", tmp_path / "parts", *settings)
    torch.rand(3)  # what happened in this process before must not matter
    assert resumed.train(resume=True).finished
    assert_the_same(at_the_end, everything(resumed))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    for name in ("pytorch_lora_weights", "kohya"):
        files = [tmp_path / out / f"export/{name}.safetensors" for out in ("whole", "parts")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_it_learns(sd: Path, data: Path, tmp_path: Path) -> None:
    """The loss on the very pictures that are trained on falls well below that of the model as it was."""
    settings = (f"model={sd}", f"data={data}", "steps=60", "rate=0.01", "rank=8", "alpha=8", "batch_size=3")
    run = kit.trainer("lora", tmp_path / "run", *settings, "sample_every=null", "validate_every=60", "min_snr=null")
    task: Any = run.task
    torch.manual_seed(run.recipe.seed)  # as the trainer does for every validation
    with torch.no_grad():
        before = task.validate()["loss"]
    run.train()
    after = [line["valid/loss"] for line in metrics(tmp_path / "run") if "valid/loss" in line][-1]
    assert after < 0.9 * before


def test_the_prior_counts_by_its_weight(sd: Path, data: Path, tmp_path: Path) -> None:
    prior = kit.pictures(tmp_path / "prior", 2, seed=9, captions=False)
    settings = (f"model={sd}", f"data={data}", "steps=1", f"prior={prior}", "prior_caption=a fox", "prior_weight=0.5")
    kit.trainer("lora", tmp_path / "run", *settings, "sample_every=null").train()
    first = metrics(tmp_path / "run")[0]
    assert first["train/loss"] == pytest.approx(first["train/own"] + 0.5 * first["train/prior"])
    assert first["train/own"] != first["train/prior"]


def test_one_text_for_all_pictures_needs_no_metadata(sd: Path, tmp_path: Path) -> None:
    bare = kit.pictures(tmp_path / "bare", captions=False)
    run = kit.trainer("lora", tmp_path / "run", f"model={sd}", f"data={bare}", "caption=a red fox, {folder}")
    assert run.task.seen.sentences == ["a red fox, bare"]  # type: ignore[attr-defined]
    run.train()
    assert sorted(path.name for path in (tmp_path / "run/samples").iterdir()) == [
        "00000002-captions.png",
        "00000004-captions.png",
    ]


def test_samples_are_of_the_prompts_or_below_their_pictures(sd: Path, data: Path, tmp_path: Path) -> None:
    run = kit.trainer("lora", tmp_path / "a", f"model={sd}", f"data={data}", "held_out=1")
    asked = kit.trainer("lora", tmp_path / "b", f"model={sd}", f"data={data}", "prompts=[a cat, a fox]")
    with torch.no_grad():
        found, prompts = run.task.sample(), asked.task.sample()
    assert found["captions"].shape == (3, 2 * 64, 64)  # one picture is held out
    assert prompts["prompts"].shape == (3, 64, 2 * 64)
    assert 0 <= found["captions"].min() <= found["captions"].max() <= 1


def test_mixed_precision_and_weights_of_16_bits_train(sd: Path, data: Path, tmp_path: Path) -> None:
    losses = {}
    for name, more in {
        "whole": (),
        "mixed": ("precision=bf16",),
        "half": ("weights=bfloat16", "precision=bf16"),
    }.items():
        settings = (f"model={sd}", f"data={data}", "steps=1", "sample_every=null", "recompute=true", *more)
        run = kit.trainer("lora", tmp_path / name, *settings)
        run.train()
        losses[name] = metrics(tmp_path / name)[0]["train/loss"]
        assert {p.dtype for p in run.task.modules["lora"].parameters()} == {torch.float32}
    assert losses["mixed"] == pytest.approx(losses["whole"], rel=0.05)
    assert losses["half"] == pytest.approx(losses["whole"], rel=0.05)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("rank=64", "rank 64 is more than 'to_q' of the unet has, 16"),
        ("targets=[to_q, to_z]", "no layer of the unet is called 'to_z'"),
        ("targets=[norm1]", "'norm1' is a"),
        ("size=60", "size 60 is no multiple of 8"),
        ("held_out=3", "all 3 pictures are held out"),
        ("prior_caption=a dog", "`prior` and `prior_caption` go together"),
        ("model=/nowhere/at/all", "/nowhere/at/all"),
    ],
)
def test_what_does_not_fit_is_one_line(setting: str, words: str, sd: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        kit.trainer("lora", tmp_path / "run", f"model={sd}", f"data={data}", setting)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("family", "words"), [("sd3", "Stable Diffusion 1, 2 or XL"), ("inpainting", "inpainting")])
def test_models_of_another_kind_are_refused(family: str, words: str, data: Path, tmp_path: Path, request: Any) -> None:
    with pytest.raises(ModelError, match=words):
        kit.trainer("lora", tmp_path / "run", f"model={request.getfixturevalue(family)}", f"data={data}")


def test_pictures_without_captions_are_refused(sd: Path, tmp_path: Path) -> None:
    bare = kit.pictures(tmp_path / "bare", captions=False)
    with pytest.raises(InputError, match=r"has no metadata\.jsonl"):
        kit.trainer("lora", tmp_path / "run", f"model={sd}", f"data={bare}")


def test_long_captions_are_told_of(sd: Path, data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    long = " ".join(["fox"] * 80)
    kit.trainer("lora", tmp_path / "run", f"model={sd}", f"data={data}", f"caption={long}", say=said.append)
    assert any("longer than 77 tokens" in line for line in said)
