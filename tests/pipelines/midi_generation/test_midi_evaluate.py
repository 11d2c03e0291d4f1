"""`genkit evaluate midi` on tiny models and folders: what it prints, and that bad input is one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import midi_kit
import numpy as np
import pytest
import torch

from genkit import weights
from genkit.media.midi import Midi
from pipelines.midi_generation.measuring.likely import line
from pipelines.midi_generation.measuring.ngram import NGram
from pipelines.midi_generation.networks.transformer_xl import Config, TransformerXL
from pipelines.midi_generation.tokens.vocabulary import Vocabulary


class Done(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def evaluate(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    from genkit.cli import main

    def call(*arguments: object) -> Done:
        status = main(["evaluate", "midi", *map(str, arguments)])
        return Done(status, *capfd.readouterr())

    return call


def tune(seed: int, transpose: int = 0, notes: int = 80) -> Any:
    """Steps up and down a scale of C, in quarters and eighths."""
    draw = np.random.default_rng(seed)
    scale = [48 + 12 * octave + step for octave in range(4) for step in (0, 2, 4, 5, 7, 9, 11)]
    place, time, made = 14, 0, []
    for _ in range(notes):
        place = int(np.clip(place + draw.integers(-2, 3), 0, len(scale) - 1))
        length = int(draw.choice([midi_kit.QUARTER // 2, midi_kit.QUARTER]))
        made.append((time, length, scale[place] + transpose, 0))
        time += length
    return midi_kit.score(made, [(0, 4, 4)], [(0, 120.0)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ has twelve tunes; valid/ five others, one in a folder of its own; copies/ one of train's, transposed."""
    home = tmp_path_factory.mktemp("songs")
    for name, seeds in (("train", range(12)), ("valid", range(20, 24)), ("valid/more", range(24, 25))):
        (home / name).mkdir()
        for seed in seeds:
            Midi(tune(seed)).save(home / name / f"{seed:02}.mid")
    (home / "copies").mkdir()
    Midi(tune(3, transpose=5)).save(home / "copies/three.mid")
    return home


def export(path: Path, architecture: str, network: Any, vocabulary: Vocabulary, **more: str) -> Path:
    """A model's file as the training task writes it."""
    about = {
        "architecture": f"genkit.midi-generation.{architecture}",
        "network": network.config.json(),
        "vocabulary": vocabulary.record(),
        **more,
    }
    weights.write(path, {name: t.half() for name, t in network.state_dict().items()}, about)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    vocabulary = Vocabulary.build()
    shape = Config(len(vocabulary), layers=1, width=16, heads=2, feedforward=16, places=48, bars=4)
    return export(
        tmp_path_factory.mktemp("model") / "tiny.safetensors", "transformer-xl", TransformerXL(shape), vocabulary
    )


def test_likelihood_beside_ngrams(evaluate: Any, folder: Path, model: Path) -> None:
    done = evaluate("--model", model, "--train", folder / "train", "--transpose", "--json", folder / "valid")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    rows = {(row["model"], row["memory"]): row for row in found["likelihood"]}
    assert list(rows) == [
        ("unigram", None),
        ("5-gram", None),
        ("5-gram, 12 keys", None),
        ("transformer-xl", 0),
        ("transformer-xl", 512),
        ("transformer-xl", 1024),
    ]
    facts, scores = found["facts"], [Midi.open(path) for path in sorted((folder / "valid").rglob("*.mid"))]
    assert facts["pieces"] == 5
    assert facts["notes"] == 5 * 80
    assert facts["seconds"] == pytest.approx(sum(score.duration for score in scores))
    for row in rows.values():
        bits = row["nats_per_token"] * facts["tokens"] / math.log(2)
        assert row["bits_per_note"] == pytest.approx(bits / facts["notes"])
        assert row["bits_per_second"] == pytest.approx(bits / facts["seconds"])
    # An untrained network knows next to nothing; a 5-gram of tunes in C knows tunes in C.
    assert rows["transformer-xl", 0]["nats_per_token"] == pytest.approx(math.log(659), abs=0.3)
    assert rows["5-gram", None]["nats_per_token"] < rows["unigram", None]["nats_per_token"] < 4
    vocabulary = Vocabulary.build()
    lines = {
        name: [line(vocabulary, vocabulary.encode(Midi.open(p).score))[0] for p in (folder / name).rglob("*.mid")]
        for name in ("train", "valid")
    }
    five = NGram.fit(lines["train"], len(vocabulary))
    nats = -np.concatenate([five.log_probabilities(tokens) for tokens in lines["valid"]]).mean()
    assert rows["5-gram", None]["nats_per_token"] == pytest.approx(nats)


def test_sliding_memory_is_what_every_token_sees_alone(evaluate: Any, folder: Path, model: Path) -> None:
    settings = ("--model", model, "--json", "--memory", "32", "--sliding", folder / "valid/20.mid")
    rows = [json.loads(evaluate(*settings, "--segment", n).out)["likelihood"] for n in (8, 64)]
    (plain, sliding), (other_plain, other_sliding) = rows
    assert sliding["memory"] == "32, sliding"
    assert plain["nats_per_token"] != pytest.approx(other_plain["nats_per_token"], rel=1e-6)
    assert sliding["nats_per_token"] == pytest.approx(other_sliding["nats_per_token"], rel=1e-5)


def test_a_gpt2_reads_windows(evaluate: Any, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from pipelines.midi_generation.networks.gpt2 import GPT2

    torch.manual_seed(0)
    vocabulary = Vocabulary.build()
    network = GPT2(Config(len(vocabulary), layers=1, width=16, heads=2, feedforward=16), context=32)
    path = export(tmp_path / "gpt2.safetensors", "gpt2", network, vocabulary, context="32")
    done = evaluate("--model", path, "--json", folder / "valid")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    (row,) = found["likelihood"]
    assert (row["model"], row["memory"]) == ("gpt2", "16 to 32")
    assert row["nats_per_token"] == pytest.approx(math.log(659), abs=0.3)
    assert any("windows of 32 tokens" in note for note in found["notes"])


def test_statistics_and_copies(evaluate: Any, folder: Path) -> None:
    done = evaluate("--reference", folder / "valid", "--train", folder / "train", folder / "copies", "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["facts"] == {"pieces": 1, "reference": 5, "train": 12}
    rows = {row["statistic"]: row for row in found["statistics"]}
    assert rows["scale_consistency"]["pieces"] == 1  # of G flat ... transposed by five, still one scale
    assert all(0 <= row["overlap"] <= 1 + 1e-6 for row in rows.values() if row["overlap"] is not None)
    copies = {row["found_in_train"]: row for row in found["copies"]}
    assert copies["longest_run"]["pieces"] == 80  # the whole of it, five semitones up
    assert copies["32-grams_found"]["pieces"] == 1
    assert copies["longest_run"]["held_out"] < 30
    assert copies["32-grams_found"]["held_out"] == 0
    (piece,) = found["pieces"]
    assert piece["file"] == str(folder / "copies/three.mid")
    assert piece["longest_run"] == 80


def test_pieces_overlap_with_themselves_wholly(evaluate: Any, folder: Path) -> None:
    done = evaluate("--reference", folder / "train", folder / "train", "--json")
    found = json.loads(done.out)
    assert all(row["overlap"] == pytest.approx(1, abs=1e-3) for row in found["statistics"])
    assert all(row["real_against_real"] < 1 for row in found["statistics"][-1:])
    assert all(row["held_out"] is None for row in found["copies"])
    assert any("no held-out share" in note for note in found["notes"])


def test_unreadable_files_are_named_and_counted(evaluate: Any, folder: Path, tmp_path: Path) -> None:
    Midi(tune(1)).save(tmp_path / "good.mid")
    (tmp_path / "bad.mid").write_bytes(b"RIFF not a MIDI file")
    (tmp_path / "empty.midi").write_bytes(b"")
    (tmp_path / ".hidden.mid").write_bytes(b"never looked at")
    done = evaluate("--reference", folder / "valid", tmp_path)
    assert done.status == 0
    assert f"left out: '{tmp_path / 'bad.mid'}' is not a MIDI file" in done.err
    assert "left out 2 unreadable file(s) of 3 (pieces)" in done.err
    assert ".hidden" not in done.err


def test_learning_from_what_is_measured_is_said(evaluate: Any, folder: Path, model: Path) -> None:
    done = evaluate("--model", model, "--memory", 0, "--train", folder / "valid", folder / "valid/20.mid")
    assert "1 of the pieces are in --train too" in done.err


def test_without_train_the_rows_are_left_out_with_a_note(evaluate: Any, folder: Path, model: Path) -> None:
    done = evaluate("--model", model, "--memory", 0, folder / "valid")
    assert [row.split("\t")[0] for row in done.out.splitlines()] == ["transformer-xl"]
    assert "no unigram and no n-gram beside it" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "MODEL", "gone"), "pieces[0] 'gone' does not exist"),
        (("--model", "gone.safetensors", "PIECES"), "model 'gone.safetensors' does not exist"),
        (("--model", "PIECES/20.mid", "PIECES"), "is no model file"),
        (("--model", "MODEL", "EMPTY"), "no files ending in .mid, .midi in there"),
        (("--model", "MODEL", "MODEL"), "none of 1 files can be read"),
        (("--model", "MODEL", "--train", "EMPTY", "PIECES"), "no files ending in"),
        (("--model", "MODEL", "--transpose", "PIECES"), "it needs --model and --train"),
        (("--model", "MODEL", "--order", "9", "PIECES"), "order '9' is out of range"),
        (("--model", "MODEL", "--memory", "-1", "PIECES"), "memory[0] '-1'"),
        (("--held-out", "PIECES", "--model", "MODEL", "PIECES"), "it needs --reference"),
        (("PIECES",), "give --model"),
        ((), "Missing argument 'PIECES"),
    ],
)
def test_mistakes_are_one_line(
    evaluate: Any, folder: Path, model: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "none").mkdir()
    names = {"MODEL": model, "PIECES": folder / "valid", "EMPTY": tmp_path / "none"}
    given = [str(names.get(a, a)).replace("PIECES", str(folder / "valid")) for a in arguments]
    done = evaluate(*given, "--quiet") if arguments else evaluate()
    assert message in done.err
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)


def test_what_no_memory_holds_is_refused_before_it_is_taken(
    evaluate: Any, model: Path, folder: Path, tmp_path: Path
) -> None:
    Midi(tune(0, notes=12_000)).save(tmp_path / "long.mid")
    long = ("--model", model, "--segment", 65536, "--batch", 4096, "--memory", 65536, "--quiet")
    done = evaluate(*long, tmp_path)
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert "GB; lower them" in done.err
    assert evaluate(*long, "--memory", 0, folder / "valid").status == 0  # short pieces fit whatever is asked for
