"""Textual inversion: only the new word's vectors change; diffusers reads them back and makes the same pictures; a run
that was stopped goes on exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import tuning_kit as kit
from runs_kit import assert_the_same, everything, metrics

from genkit import weights
from genkit.errors import InputError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return kit.pictures(tmp_path / "data", captions=False)


def pipeline(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder, local_files_only=True)


def trained(model: Path, data: Path, out: Path, *more: str) -> Any:
    settings = (f"model={model}", f"data={data}", "token=<patch>", "begin=apple", "rate=0.1", "sample_every=null")
    return kit.trainer("textual_inversion", out, *settings, *more)


@pytest.mark.parametrize("vectors", [1, 3])
def test_diffusers_reads_the_word_back(vectors: int, sd: Path, data: Path, tmp_path: Path) -> None:
    run = trained(sd, data, tmp_path / "run", f"vectors={vectors}")
    run.train()
    export, learned = tmp_path / "run/export", run.task.words["text_encoder"].vectors
    assert sorted(path.name for path in export.iterdir()) == ["learned_embeds.safetensors", "patch.safetensors"]
    assert learned.shape == (vectors, 32)
    assert torch.equal(weights.read(export / "patch.safetensors")["emb_params"], learned)
    prompt = "a <patch> in the snow"
    wanted = kit.painted(run.task.pipe, prompt)
    for file, settings in (("", {}), ("patch.safetensors", {"token": "<patch>"})):
        plain = pipeline(sd)
        plain.load_textual_inversion(export / file, **settings)
        ids = plain.tokenizer.convert_tokens_to_ids(["<patch>", "<patch>_1", "<patch>_2"][:vectors])
        assert torch.equal(plain.text_encoder.get_input_embeddings().weight[ids], learned)
        torch.testing.assert_close(kit.painted(plain, prompt), wanted, atol=1e-4, rtol=0)


def test_both_encoders_of_sdxl_learn_the_word(sdxl: Path, data: Path, tmp_path: Path) -> None:
    run = trained(sdxl, data, tmp_path / "run", "vectors=2")
    begun = {name: word.vectors.clone() for name, word in run.task.words.items()}
    run.train()
    export, words = tmp_path / "run/export", run.task.words
    assert all(not torch.equal(words[name].vectors, begun[name]) for name in begun)
    assert [path.name for path in export.iterdir()] == ["patch.safetensors"]
    both = weights.read(export / "patch.safetensors")
    assert torch.equal(both["clip_l"], words["text_encoder"].vectors)
    assert torch.equal(both["clip_g"], words["text_encoder_2"].vectors)
    plain = pipeline(sdxl)
    first = {"text_encoder": plain.text_encoder, "tokenizer": plain.tokenizer}
    second = {"text_encoder": plain.text_encoder_2, "tokenizer": plain.tokenizer_2}
    plain.load_textual_inversion(both["clip_l"], token="<patch>", **first)
    plain.load_textual_inversion(both["clip_g"], token="<patch>", **second)
    wanted = kit.painted(run.task.pipe, "a <patch>")
    torch.testing.assert_close(kit.painted(plain, "a <patch>"), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_genkit_paints_what_the_training_did(family: str, data: Path, tmp_path: Path, request: Any) -> None:
    import genkit

    model = request.getfixturevalue(family)
    run = trained(model, data, tmp_path / "run", "vectors=2")
    run.train()
    wanted = kit.painted(run.task.pipe, "a <patch> in the snow")
    painter = genkit.load("stable-diffusion", model=model, device="cpu", dtype="float32")
    for path in sorted((tmp_path / "run/export").iterdir()):
        made = painter(prompt="a <patch> in the snow", embedding=str(path), **kit.SETTINGS, seed=5).images[0].tensor()
        torch.testing.assert_close(made, wanted, atol=1e-2, rtol=0)  # of 256 levels


def test_nothing_but_the_word_changes(sd: Path, data: Path, tmp_path: Path) -> None:
    run = trained(sd, data, tmp_path / "run")
    before, known = kit.weights_of(run.task.pipe), kit.painted(pipeline(sd), "red apple")
    begun = run.task.words["text_encoder"].vectors.clone()
    run.train()
    after = kit.weights_of(run.task.pipe)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"text_encoder.embeddings.token_embedding.vectors"}
    assert torch.equal(kit.painted(run.task.pipe, "red apple"), known)
    assert not torch.equal(run.task.words["text_encoder"].vectors, begun)
    saved = weights.read(tmp_path / "run/checkpoints/step-00000004/modules/word.safetensors")
    assert {key: tuple(t.shape) for key, t in saved.items()} == {"text_encoder": (1, 32)}


def test_a_word_begins_as_the_one_it_is_given(sd: Path, data: Path, tmp_path: Path) -> None:
    """Before anything is trained, the new word paints what the old one does."""
    run = trained(sd, data, tmp_path / "run")
    assert torch.equal(kit.painted(run.task.pipe, "red <patch>"), kit.painted(run.task.pipe, "red apple"))


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(sd: Path, data: Path, tmp_path: Path) -> None:
    settings = ("steps=6", "checkpoint.every=3", "log_every=1", "flip=true", "vectors=2", "validate_every=3", "ema=0.5")

    def stop(step: int, total: int, **_: Any) -> None:
        if step == 5:
            raise KeyboardInterrupt

    whole = trained(sd, data, tmp_path / "whole", *settings)
    assert whole.train().finished
    at_the_end = everything(whole)
    parts = trained(sd, data, tmp_path / "parts", *settings)
    parts.progress = stop
    with pytest.raises(KeyboardInterrupt):
        parts.train()
    resumed = trained(sd, data, tmp_path / "parts", *settings)
    torch.rand(3)  # what happened in this process before must not matter
    assert resumed.train(resume=True).finished
    assert_the_same(at_the_end, everything(resumed))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    files = [tmp_path / out / "export/learned_embeds.safetensors" for out in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_gradient_is_that_of_the_loss(sd: Path, data: Path, tmp_path: Path) -> None:
    """By differences: the loss along the gradient of the vectors rises as fast as the gradient says."""
    task = trained(sd, data, tmp_path / "run").task
    vectors = task.words["text_encoder"].vectors
    batch = {key: value[None] for key, value in task.seen[0].items()}
    texts = ["a picture of <patch>"]

    def loss() -> torch.Tensor:
        torch.manual_seed(0)
        return task._loss(batch, texts, kept=False)

    task.pipe.to(torch.float64), task.modules["word"].double()
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    (gradient,) = torch.autograd.grad(loss(), vectors)
    assert gradient.norm() > 0
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        vectors += step
        high = loss()
        vectors -= 2 * step
        low = loss()
    torch.testing.assert_close((high - low) / 2e-3, gradient.norm().to(high), rtol=1e-2, atol=0)


def test_templates_are_drawn_anew_each_epoch(sd: Path, data: Path, tmp_path: Path) -> None:
    from genkit.training.data import Draw

    task = trained(sd, data, tmp_path / "run", "caption=['{token}', 'a {token}, {folder} style']").task
    assert task.seen.sentences == ["<patch>", "a <patch>, data style"]
    drawn = {int(task.seen[Draw(0, epoch, 1)]["text"]) for epoch in range(20)}
    assert drawn == {0, 1}
    again = [task.seen[Draw(0, 3, 1)] for _ in range(2)]
    assert all(torch.equal(again[0][key], again[1][key]) for key in again[0])


def test_it_learns(sd: Path, data: Path, tmp_path: Path) -> None:
    settings = ("steps=60", "vectors=4", "batch_size=3", "min_snr=null", "validate_every=60")
    run = trained(sd, data, tmp_path / "run", *settings)
    torch.manual_seed(run.recipe.seed)  # as the trainer does for every validation
    with torch.no_grad():
        before = run.task.validate()["loss"]
    run.train()
    after = [line["valid/loss"] for line in metrics(tmp_path / "run") if "valid/loss" in line][-1]
    assert after < before


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("token=apple", "knows 'apple' already"),
        ("token=red hat", "'red hat' is several words; write it as one: <red-hat>"),
        ("token=<>", "has no letter or digit"),
        ("begin=pomegranate", "'pomegranate' is 10 tokens; give a shorter word, or `vectors: 10`"),
        ("begin=' '", "is no word that this model knows"),
        ("caption=a picture", "'a picture' does not say {token}"),
        ("vectors=0", "vectors"),
        ("token=x", "token"),
    ],
)
def test_what_does_not_fit_is_one_line(setting: str, words: str, sd: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        trained(sd, data, tmp_path / "run", setting)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_samples_are_below_their_pictures(sd: Path, data: Path, tmp_path: Path) -> None:
    run = trained(sd, data, tmp_path / "run")
    with torch.no_grad():
        assert run.task.sample()["captions"].shape == (3, 2 * 64, 3 * 64)


def test_views_are_the_picture_moved_and_made_smaller(tmp_path: Path) -> None:
    from genkit.media.image import Image
    from pipelines.stable_diffusion.measuring.words import views

    picture = torch.ones(3, 64, 64)
    picture[:, 24:40, 24:40] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    Image.from_tensor(picture).save(tmp_path / "red.png")
    found = [Image.open(path).tensor() for path in sorted(views(tmp_path / "red.png", tmp_path / "views").iterdir())]
    assert [tuple(view.shape) for view in found] == [(3, 64, 64)] * 5
    for view, (down, right) in zip(found, [(0, 4), (0, -4), (4, 0), (-4, 0)], strict=False):
        assert torch.equal(view, picture.roll((down, right), (1, 2)))
    assert (found[4][1] < 0.5).sum() == pytest.approx(0.81 * 16 * 16, rel=0.1)
    assert found[4][:, 0].eq(1).all()


def test_a_learned_word_is_measured_beside_its_caption(sd: Path, tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision").models
    from genkit.metrics.features import Features
    from pipelines.stable_diffusion.measuring.words import learned_words

    torch.manual_seed(0)
    weights.write(tmp_path / "squeeze.safetensors", models.squeezenet1_0(weights=None).state_dict(), {})
    hands = [kit.pictures(tmp_path / name, 6, seed=seed) for seed, name in enumerate(("noto", "blob"))]
    settings = ("steps=2", "batch_size=2", "sampling_steps=2", "checkpoint.every=2")
    rows = learned_words(
        str(sd),
        hands,
        "{text}, {folder} style",
        Features.load(tmp_path / "squeeze.safetensors"),
        tmp_path / "out",
        count=2,
        held_out=5,
        pictures=2,
        settings=settings,
    )
    assert len(rows) == 2
    for number, row in enumerate(rows):
        assert all(1 <= place <= 5 for place in (*row.by_caption, *row.by_word))
        assert [made.shape for made in row.made] == [(2, 3, 64, 64)] * 2
        assert not torch.equal(*row.made)
        word = weights.read(tmp_path / f"out/{number}/run/export/learned_embeds.safetensors")
        assert {key: tuple(value.shape) for key, value in word.items()} == {"<new-word>": (4, 32)}
        assert row.row()["place by word"] == sum(row.by_word) / 2
