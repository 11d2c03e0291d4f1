"""Training by the shipped recipe at debug size: a tune is learned to the last note, and resuming is exact."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import midi_kit
import numpy as np
import pytest
import torch
from midi_kit import QUARTER, score
from safetensors import safe_open

from genkit.errors import GenkitError, InputError
from genkit.media.midi import Midi
from genkit.training import loading
from genkit.training.schedules import SCHEDULES, share
from genkit.training.trainer import Trainer
from pipelines.midi_generation.measuring.likelihood import likelihood
from pipelines.midi_generation.tokens.vocabulary import Vocabulary
from pipelines.midi_generation.train.transformer_xl import TransformerXLConfig

RECIPE = "midi_generation/transformer_xl"


def tune(seed: int, bars: int = 12) -> Midi:
    draw = np.random.default_rng(seed)
    melody = [(QUARTER * i, QUARTER, int(draw.integers(55, 80)), 0) for i in range(4 * bars)]
    return Midi(score([*melody, *((t, 2 * d, p - 24, 32) for t, d, p, _ in melody[::2])]))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("midi")
    for i in range(4):
        tune(i).save(folder / f"{i}.mid")
    return folder


def trainer(
    data: Path, out: Path, *more: str, progress: Any = None, say: Any = lambda text: None, debug: bool = True
) -> Trainer:
    loaded = loading.load(RECIPE, overrides=[f"task.data={data}", "log_every=1", *more], debug=debug)
    options = {"progress": progress} if progress else {}
    return Trainer(loaded.task, loaded.recipe, out, config=loaded.config, device="cpu", say=say, **options)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


PARTS: dict[str, tuple[str, ...]] = {
    "as shipped": (),
    "merges, muon, average, dropout": (
        *("task.bpe=690", "task.optimizer=muon", "ema=0.9", "task.dropout=0.1", "precision=bf16"),
    ),
    "gpt2": ("task.architecture=gpt2", "task.infill=0.5"),
}


@pytest.mark.parametrize("more", PARTS.values(), ids=PARTS)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(more, data, tmp_path):
    if "task.architecture=gpt2" in more:
        pytest.importorskip("transformers", reason="the GPT-2 is Hugging Face's")

    def stop(step: int, total: int, **_: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt

    whole = trainer(data, tmp_path / "whole", *more)
    assert whole.train().finished
    with pytest.raises(KeyboardInterrupt):
        trainer(data, tmp_path / "parts", *more, progress=stop).train()
    parts = trainer(data, tmp_path / "parts", *more)
    assert parts.train(resume=True).finished
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    for one, two in zip(whole.task.network.parameters(), parts.task.network.parameters(), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(whole.task.memory or (), parts.task.memory or (), strict=True):
        assert torch.equal(one, two)
    (name,) = (file.name for file in (tmp_path / "whole/export").iterdir())
    assert (tmp_path / "whole/export" / name).read_bytes() == (tmp_path / "parts/export" / name).read_bytes()


def test_the_export_says_what_it_is(data, tmp_path):
    exported = trainer(data, tmp_path, "steps=1", "task.bpe=680").train().exported
    assert exported is not None
    with safe_open(exported / "transformer-xl.safetensors", "pt") as file:
        about = file.metadata()
        rows = file.get_tensor("embedding.weight").shape[0]
    vocabulary = Vocabulary.from_record(about["vocabulary"])
    assert about["architecture"] == "genkit.midi-generation.transformer-xl"
    assert json.loads(about["network"])["vocabulary"] == len(vocabulary) == rows == 680


def test_changed_pieces_do_not_go_on_with_other_merges(data, tmp_path):
    folder = tmp_path / "pieces"
    folder.mkdir()
    for i in range(2):
        tune(i).save(folder / f"{i}.mid")
    more = ("task.bpe=690", "task.valid_share=0", "checkpoint.every=1")
    trainer(folder, tmp_path / "run", "steps=1", *more).train()
    tune(7).save(folder / "1.mid")
    with pytest.raises(GenkitError, match="the pieces have changed since the checkpoint"):
        trainer(folder, tmp_path / "run", "steps=2", *more).train(resume=True)


# -------------------------------------------------------------------------------------------------------- pieces


def test_unreadable_files_are_named_and_counted(data, tmp_path):
    folder = tmp_path / "pieces"
    folder.mkdir()
    tune(0).save(folder / "good.mid")
    tune(1).save(folder / "fine.midi")
    (folder / "bad.mid").write_bytes(b"MThd is not enough")
    (folder / "notes.txt").write_text("no piece")
    said: list[str] = []
    task = trainer(folder, tmp_path / "run", "task.valid_share=0", say=said.append).task
    assert len(task.pieces) == 2
    assert any("left out: " in text and "bad.mid" in text for text in said)
    assert "left out 1 unreadable file(s) of 3" in said
    with pytest.raises(InputError, match=r"bad\.mid"):
        trainer(folder, tmp_path / "run", "strict=true")


def test_pieces_are_apart_before_anything_is_made_of_them(data, tmp_path):
    folder = tmp_path / "pieces"
    (folder / "held").mkdir(parents=True)
    tune(0).save(folder / "a.mid")
    tune(1).save(folder / "held/b.mid")
    tune(1).save(folder / "same-as-b.mid")
    said: list[str] = []
    task = trainer(folder, tmp_path / "run", f"task.valid={folder / 'held'}", say=said.append).task
    assert (len(task.pieces), len(task.held)) == (1, 1)
    assert "left out 2 piece(s) that are held out under another name" in said
    shares = trainer(data, tmp_path / "run", "task.valid_share=0.5").task
    kept, held = ({piece.tobytes() for piece in part} for part in (shares.pieces, shares.held))
    assert len(kept) == len(held) == 2
    assert not kept & held


def test_one_piece_is_learned_from_or_there_is_none(tmp_path):
    tune(0).save(tmp_path / "only.mid")
    task = trainer(tmp_path, tmp_path / "run", "task.valid_share=0.05").task
    assert (len(task.pieces), len(task.held), task.validate()) == (1, 0, {})
    with pytest.raises(InputError, match="no piece is left to learn from; lower valid_share"):
        trainer(tmp_path, tmp_path / "run", "task.valid_share=0.9")


# ------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokenization": "TSD"}, "tokenization TSD has no bars: set infill, accompany, pitches and rhythms to 0"),
        ({"tokenization": "CPWord"}, "tokenization"),
        ({"infill": 0.6, "accompany": 0.6}, "are 1.3 together; at most 1"),
        ({"width": 30, "heads": 4}, "width 30 must be even and a multiple of heads 4"),
        ({"positions": 5}, "positions"),
        ({"schedule": "steps"}, "schedule"),
    ],
)
def test_settings_that_cannot_be_are_one_line(values, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        TransformerXLConfig.parse({"data": str(tmp_path), **values})
    assert "\n" not in str(caught.value)


def test_merges_fewer_than_the_tokens_are_one_line(data, tmp_path):
    with pytest.raises(InputError, match="bpe 100 leaves nothing to merge: 659 tokens"):
        trainer(data, tmp_path, "task.bpe=100")


@pytest.mark.parametrize("tokenization", ["TSD", "MIDILike", "Structured"])
def test_other_tokenisations_train(tokenization, data, tmp_path):
    none = [f"task.{name}=0" for name in ("infill", "accompany", "pitches", "rhythms")]
    result = trainer(data, tmp_path, f"task.tokenization={tokenization}", "steps=1", *none).train()
    assert result.finished
    assert lines(tmp_path)[-1]["valid/nll"] > 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_rate_rises_to_its_height_and_falls_to_nothing(schedule):
    rates = [share(schedule, 200, 0.1, step) for step in range(200)]
    top = rates.index(max(rates))
    assert max(rates) == 1
    assert rates[0] < 0.1
    assert top == (49 if schedule == "one-cycle" else 19)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.02
    assert share(schedule, 200, 0.1, 200) == pytest.approx(0, abs=1e-9)
    if schedule == "trapezoid":
        assert rates[100] == 1
        assert rates[160] == pytest.approx(0.5)
    if schedule == "linear":
        assert rates[110] == pytest.approx(0.5)


def test_rates_reach_the_optimisers(data, tmp_path):
    given = ("steps=4", "task.optimizer=muon", "task.schedule=linear", "task.warmup=0.5", "task.rate=0.002")
    trainer(data, tmp_path, *given).train()
    seen = [line for line in lines(tmp_path) if "lr/rest" in line]
    assert [line["lr/rest"] for line in seen] == pytest.approx([0.002, 0.002, 0.001, 0.0])
    assert [line["lr/matrices"] for line in seen] == [line["lr/rest"] for line in seen]


# ------------------------------------------------------------------------------------------------------ learning

PLAIN = tuple(f"task.{name}=0" for name in ("infill", "accompany", "pitches", "rhythms", "transpose", "tempo_jitter"))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The task after a tune has been learned by heart, every token seeing the 48 before it."""
    home = tmp_path_factory.mktemp("learned")
    (home / "data").mkdir()
    tune(5, bars=6).save(home / "data/tune.mid")
    shape = ("width=64", "feedforward=128", "segment=48", "memory=48", "same_length=true", "valid_share=0")
    more = (*(f"task.{text}" for text in shape), "task.rate=0.01", "steps=160", "batch_size=2", "checkpoint.every=160")
    run = trainer(home / "data", home / "run", *more, *PLAIN)
    run.train()
    run.task.network.eval()
    return run.task


@torch.no_grad()
def test_a_tune_is_learned_to_the_last_note(learned):
    (piece,) = learned.pieces
    learned.held = [piece]
    ((tokens, _, _, _),) = learned.lines()
    bars = learned.vocabulary.bars(tokens)
    made = tokens[: len(tokens) - sum(map(len, bars[1:]))].tolist()  # BOS, key and the first bar
    while len(made) < len(tokens):
        place, bar = learned.vocabulary.clock(np.array(made))
        given = [torch.from_numpy(np.array(array))[None] for array in (made, place, bar)]
        logits, _ = learned.network(given[0], place=given[1], bar=given[2])
        made.append(int(logits[0, -1].argmax()))
    assert made == tokens.tolist()
    assert midi_kit.notes(learned.vocabulary.decode(made)) == midi_kit.notes(tune(5, bars=6).score)


def test_memory_makes_what_follows_likelier(learned):
    learned.held = [learned.pieces[0]]
    with_memory, without = (
        likelihood(learned.network, learned.lines(), segment=12, memory=memory, pitches=learned.vocabulary.note_counts)
        for memory in (48, 0)
    )
    assert with_memory.tokens == without.tokens
    assert with_memory.notes == without.notes == 36
    assert with_memory.nll < 0.5 * without.nll


# ----------------------------------------------------------------------------------------------------- processes


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(data, tmp_path):
    def run(out: str, *launcher: str) -> list[dict[str, Any]]:
        command = [sys.executable, *(launcher or ("-m",)), "genkit", "train", RECIPE, "--debug", "--quiet"]
        sets = (f"task.data={data}", "log_every=1", "batch_size=4", "task.accompany=0.5")
        command += [part for text in sets for part in ("--set", text)] + ["--out", str(tmp_path / out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return lines(tmp_path / out)

    one = run("one")
    two = run("two", "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m")
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
