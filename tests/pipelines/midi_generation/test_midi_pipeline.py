"""The pipeline from end to end with a tiny network: seeds, batches, streaming, what each parameter does."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import composing_kit
import numpy as np
import pytest
import symusic
from composing_kit import GRAMMAR, VOCABULARY, tune
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sheet import every_note

import genkit
from genkit.errors import Cancelled, InputError
from genkit.media.midi import Midi
from genkit.runtime import Runtime
from pipelines.midi_generation.composing.composer import Piece, compose
from pipelines.midi_generation.composing.sampling import Sampling
from pipelines.midi_generation.composing.writing import carry_on
from pipelines.midi_generation.pipeline import key_number
from pipelines.midi_generation.tokens.bars import Bar
from pipelines.midi_generation.tokens.keys import KEYS

V = VOCABULARY
SHORT = {"bars": 2, "seed": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return composing_kit.model_file(tmp_path_factory.mktemp("model") / "m.safetensors")


@pytest.fixture(scope="module")
def composer(model: Path) -> Any:
    return genkit.load("midi-generation", model=model, device="cpu")


def same(one: Any, other: Any) -> bool:
    return one.midi.encoded() == other.midi.encoded()


def items(composer: Any) -> list[Any]:
    """One of each task, of different lengths, in different signatures."""
    prompt, bass = Midi(tune(3)), Midi(tune(5, program=32))
    params = [
        {"bars": 3, "seed": 1, "time_signature": "3/4"},
        {"bars": 1, "seed": 2, "temperature": 3},
        {"prompt": prompt, "bars": 2, "seed": 3},
        {"prompt": bass, "task": "infill", "start_bar": 2, "end_bar": 3, "seed": 4},
        {"prompt": prompt, "task": "accompany", "instruments": ["flute"], "end_bar": 2, "seed": 5},
        {"prompt": bass, "task": "vary", "seed": 6, "start_bar": 4},
        {"prompt": prompt, "task": "vary", "vary": "rhythms", "seed": 7},
        {"bars": 2, "seed": 8, "instruments": ["drums", "violin"], "temperature": 0.5, "key": "F# minor"},
    ]
    return [composer.Params.parse(item) for item in params]


def test_a_piece_is_the_same_alone_or_in_a_batch_in_any_order(composer: Any) -> None:
    batch = items(composer)
    together = composer.generate(batch)
    turned = composer.generate(batch[::-1])[::-1]
    for item, one, other in zip(batch, together, turned, strict=True):
        assert same(one, other)
        assert same(one, composer.generate([item])[0])


def test_seeds(composer: Any) -> None:
    assert same(composer(**SHORT), composer(**SHORT))
    assert not same(composer(**SHORT), composer(**SHORT | {"seed": 2}))
    drawn = composer(bars=2)
    assert same(composer(bars=2, seed=drawn.seeds[0]), drawn)
    assert drawn.provenance.params["seed"] == drawn.seeds[0]


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, 2**20),
    st.sampled_from([0.0, 0.7, 3.0]),
    st.sampled_from(["3/4", "6/8", "5/4", "2/2", None]),
    st.sampled_from([None, ["drums"], ["piano", "flute", "tuba", "drums"]]),
    st.integers(0, 2),
)
def test_any_network_writes_bars_that_read_back(seed, temperature, signature, instruments, net) -> None:
    """Any network, temperature and seed: exactly so many bars, and notes that the vocabulary has words for."""
    network = composing_kit.network(net)
    programs = [V.ids["Program_0"], V.ids["Program_40"], V.ids["Program_-1"]][: len(instruments or "1")]
    time = V.ids[f"TimeSig_{signature}"] if signature else None
    writer = carry_on(GRAMMAR, [], first=1, bars=3, programs=programs, key=None, signature=time)
    generator = Runtime.pick("cpu").generator(seed)
    piece = Piece(writer, Sampling(temperature, temperature), generator, 3)
    compose(network, V, [piece], memory=64)
    assert [bar.number for bar in piece.written] == [1, 2, 3]
    line = [t for b in piece.written for t in Bar((GRAMMAR.bar, b.signature), b.events).tokens()]
    made = np.array(line)
    read = V.encode(V.decode(made))
    np.testing.assert_array_equal(read, made[: len(read)])
    assert not any(V.notes[made[len(read) :]])


def test_streaming_counts_bars_and_shows_those_that_are_done(composer: Any) -> None:
    seen: list[tuple[int, int, int]] = []

    def progress(step: int, total: int, *, preview: Any = None, note: str = "") -> None:
        shown = preview()
        assert isinstance(shown, Midi)
        end = max((n.time for t in shown.score.tracks for n in t.notes), default=0)
        assert end < 1920 * (4 + step)
        assert not every_note(tune(4)) - every_note(shown.score)
        seen.append((step, total, shown.notes))
        assert note == f"bar {step} of {total}"

    made = composer.generate([composer.Params.parse({"prompt": Midi(tune(4)), "bars": 4, "seed": 1})], progress)[0]
    assert [(step, total) for step, total, _ in seen] == [(i, 4) for i in (1, 2, 3, 4)]
    counts = [notes for *_, notes in seen]
    assert counts == sorted(counts)
    assert counts[-1] == made.midi.notes > 16


def test_a_stop_ends_it_and_keeps_whole_bars_if_asked(composer: Any) -> None:
    def stop(keep: bool) -> Any:
        def progress(step: int, total: int, *, preview: Any = None, note: str = "") -> None:
            if step == 2:
                raise Cancelled(keep=keep)

        return progress

    params = composer.Params.parse({"prompt": Midi(tune(2)), "bars": 6, "seed": 3})
    with pytest.raises(Cancelled):
        composer.generate([params], stop(keep=False))
    kept = composer.generate([params], stop(keep=True))[0]
    whole = composer.generate([params])[0]
    assert kept.info["bars"] == [3, 4]
    assert kept.info["tokens"] < whole.info["tokens"]
    end = 1920 * 4
    first = Counter({n: c for n, c in every_note(whole.midi.score).items() if n[2] < end // 480})
    assert {n[:3] + n[4:] for n in every_note(kept.midi.score)} == {n[:3] + n[4:] for n in first}


def tokens_differ(composer: Any, **params: Any) -> bool:
    base = {"prompt": Midi(tune(2)), "bars": 3, "seed": 5}
    return not same(composer(**base), composer(**base | params))


@pytest.mark.parametrize(
    "params",
    [
        {"bars": 2},
        {"tempo": 71.5},
        {"time_signature": "3/4"},
        {"key": "F# major"},
        {"instruments": ["flute", "violin"]},
        {"temperature": 0.3},
        {"duration_temperature": 0.1},
        {"top_k": 2},
        {"top_p": 0.3},
        {"min_p": 0.9},
        {"repetition_penalty": 3.0},
        {"memory": 16},
    ],
)
def test_every_parameter_acts(composer: Any, params: dict[str, Any]) -> None:
    assert tokens_differ(composer, **params)


def test_without_chance_the_seed_does_not_matter(composer: Any) -> None:
    base = {"prompt": Midi(tune(2)), "bars": 2, "temperature": 0}
    assert same(composer(seed=1, **base), composer(seed=2, **base))
    greedy = {"prompt": Midi(tune(2)), "bars": 2, "top_k": 1, "seed": 3}
    assert same(composer(seed=1, **base), composer(**greedy))
    assert not same(composer(seed=1, duration_temperature=2, **base), composer(seed=2, duration_temperature=2, **base))


def test_the_tempo_is_that_of_the_whole_piece(composer: Any) -> None:
    prompt = tune(2)
    prompt.tempos.append(symusic.Tempo(0, 60.0))
    prompt.tempos.append(symusic.Tempo(1920, 90.0))
    kept, changed = composer(prompt=Midi(prompt), **SHORT), composer(prompt=Midi(prompt), tempo=100, **SHORT)
    assert [(t.time, round(t.qpm)) for t in kept.midi.score.tempos] == [(0, 60), (1920, 90)]
    assert [(t.time, round(t.qpm)) for t in changed.midi.score.tempos] == [(0, 100)]
    assert [(t.time, round(t.qpm, 1)) for t in composer(tempo=71.5, **SHORT).midi.score.tempos] == [(0, 71.5)]
    assert len(composer(**SHORT).midi.score.tempos) == 1  # of a piece from nothing the network says it


def test_a_piece_from_nothing_is_in_the_signature_and_for_the_instruments_asked(composer: Any) -> None:
    made = composer(time_signature="6/8", instruments="violin, drums", bars=6, seed=2, temperature=2).midi.score
    assert [(s.time, s.numerator, s.denominator) for s in made.time_signatures] == [(0, 6, 8)]
    assert {(t.program, t.is_drum) for t in made.tracks} <= {(40, False), (0, True)}
    assert max(n.time for t in made.tracks for n in t.notes) < 6 * 3 * made.ticks_per_quarter


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("C", "C:maj"),
        ("D major", "D:maj"),
        ("F# minor", "Gb:min"),
        ("Bb", "Bb:maj"),
        ("Am", "A:min"),
        ("c♯ MIN", "Db:min"),
    ]
    + [(name.replace(":", " "), name) for name in KEYS],
)
def test_keys_are_read(text: str, key: str) -> None:
    assert KEYS[key_number(text)] == key


def test_the_info_tells_what_was_done(composer: Any) -> None:
    info = composer(prompt=Midi(tune(2)), key="D", **SHORT).info
    assert info["task"] == "continue"
    assert info["bars"] == [3, 4]
    assert info["key"] == "D:maj"
    assert info["tokens"] > 0


def test_of_a_prompt_of_two_thousand_bars_only_the_end_is_read(composer: Any, monkeypatch) -> None:
    from pipelines.midi_generation.networks.cached import Cached

    tokens: list[int] = []
    read = Cached.read

    def counted(self: Any, *args: Any, lengths: Any, **options: Any) -> Any:
        tokens.append(int(sum(lengths)))
        return read(self, *args, lengths=lengths, **options)

    monkeypatch.setattr(Cached, "read", counted)
    prompt = tune(2000)
    made = composer(prompt=Midi(prompt), bars=1, seed=1, memory=64)
    assert 2 * 64 <= sum(tokens) < 2 * 64 + 60  # two layers, each looking 64 tokens back, and the rest of a bar
    assert not every_note(prompt) - every_note(made.midi.score)


def test_an_interrupt_stops_it_and_leaves_nothing(model: Path, tmp_path: Path, capsys) -> None:
    from genkit.cli import main

    out = tmp_path / "long.mid"
    timer = threading.Timer(1.0, signal.raise_signal, [signal.SIGINT])
    timer.start()
    try:
        status = main(
            ["midi-generation", "--bars", "1000", "--temperature", "2", "-m", str(model), "-o", str(out), "-q"]
        )
    finally:
        timer.cancel()
    assert status == 130
    assert capsys.readouterr().err.strip() == "genkit: stopped"
    assert list(tmp_path.iterdir()) == []


def test_it_is_made_again_from_its_file(model: Path, tmp_path: Path) -> None:
    from genkit.cli import main

    Midi(tune(3)).save(tmp_path / "prompt.mid")
    first, again = tmp_path / "a.mid", tmp_path / "b.mid"
    command = ["midi-generation", "-p", str(tmp_path / "prompt.mid"), "--bars", "2", "--model", str(model)]
    assert main([*command, "-o", str(first), "--quiet"]) == 0
    assert main(["rerun", str(first), "-o", str(again), "--quiet"]) == 0
    assert symusic.Score(first).dumps_midi() == symusic.Score(again).dumps_midi()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"instruments": ["kazoo"]}, "instruments .*kazoo.*give a General MIDI name"),
        ({"instruments": ["piano"] * 17}, "instruments"),
        ({"key": "H"}, "key 'H'.*write it as"),
        ({"time_signature": "4/3"}, "time_signature '4/3'.*write it as"),
        ({"time_signature": "13/16"}, "time_signature 13/16 is none that the model has; it has"),
        ({"bars": 0}, "bars"),
        ({"bars": 1001}, "bars"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"memory": 10**9}, "memory"),
        ({"seed": 2**64}, "seed"),
        ({"tempo": 0}, "tempo"),
        ({"task": "dance"}, "task"),
        ({"task": "continue"}, "prompt is missing"),
        ({"task": "infill", "start_bar": 1, "end_bar": 2, "bars": None}, "prompt is missing"),
        ({"start_bar": 2}, "start_bar"),
    ],
)
def test_wrong_values_without_a_prompt(composer: Any, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        composer(**params)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"task": "infill"}, "needs start_bar and end_bar"),
        ({"task": "infill", "start_bar": 3, "end_bar": 2}, "start_bar 3 lies behind end_bar 2"),
        ({"task": "infill", "start_bar": 1, "end_bar": 5}, "end_bar 5 lies behind the prompt's last bar, 4"),
        ({"task": "vary", "start_bar": 9}, "start_bar 9 lies behind the prompt's last bar, 4"),
        ({"task": "vary", "bars": 3}, "takes start_bar and end_bar"),
        ({"task": "vary", "instruments": ["tuba"]}, "the prompt has no tuba to vary; it has acoustic grand piano"),
        ({"task": "vary", "time_signature": "3/4"}, "time_signature"),
        ({"task": "compose"}, "prompt is not for task 'compose'"),
        ({"bars": 2, "end_bar": 3}, "start_bar and end_bar"),
    ],
)
def test_wrong_values_with_a_prompt(composer: Any, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        composer(prompt=Midi(tune(4)), **params)
    assert "\n" not in str(caught.value)


def test_where_everybody_plays_the_parts_to_write_have_to_be_named(composer: Any) -> None:
    prompt = tune(2)
    prompt.tracks.append(tune(2, program=68).tracks[0])
    with pytest.raises(InputError, match="instruments is missing: the prompt has all that the model plays"):
        composer(prompt=Midi(prompt), task="accompany")
    flute = composer(prompt=Midi(tune(1, program=73)), task="accompany", seed=1)  # heard as the piano, by its height
    assert {t.program for t in flute.midi.score.tracks} == {73, 68}
