"""Which rate, which model, and whether there is anything to restore: the rules, without a sound."""

from __future__ import annotations

import pytest

from genkit.errors import InputError
from pipelines.audio_super_resolution.bandwidth import Bandwidth
from pipelines.audio_super_resolution.deciding import DEFAULT_RATES, Recorded, decide, rates_of
from pipelines.audio_super_resolution.models import MODELS
from pipelines.audio_super_resolution.pipeline import AudioSuperResolution, Params


def recorded(rate: int, top: float) -> Recorded:
    kind = "silent" if not top else "full" if top == rate / 2 else "cut"
    return Recorded("'a.wav'", rate, top, Bandwidth(top or rate / 2, kind, 0.9, 30))


@pytest.mark.parametrize(
    ("rate", "top", "result", "restores"),
    [
        (8000, 4000, 16000, True),
        (8000, 3400, 16000, True),
        (11025, 5512.5, 16000, True),
        (16000, 4000, 16000, True),
        (16000, 8000, 44100, True),  # at 16 kHz it is full
        (22050, 11025, 44100, True),
        (24000, 12000, 44100, True),
        (32000, 16000, 44100, True),
        (44100, 16000, 44100, True),  # an MP3
        (44100, 22050, 44100, False),
        (48000, 16000, 48000, True),
        (48000, 24000, 48000, False),
        (96000, 16000, 48000, True),
        (96000, 23000, 48000, False),
        (8000, 0, 16000, False),
        (96000, 0, 48000, False),
    ],
)
def test_the_rate_by_default(rate: int, top: float, result: int, restores: bool) -> None:
    found = decide(recorded(rate, top), None, DEFAULT_RATES, "None")
    assert (found.rate, found.restores) == (result, restores)
    assert found.working == (16000 if result == 16000 else 44100)
    assert len(found.notes) == (not restores)


def test_what_a_rate_cannot_hold_is_refused_with_a_remedy() -> None:
    for rate, top, asked, remedy in (
        (44100, 22050, 16000, "--sample-rate 44100 holds it"),
        (48000, 24000, 44100, "--sample-rate 48000 holds it"),
        (96000, 48000, None, "no rate that can be made holds it"),
    ):
        with pytest.raises(InputError, match=f"{remedy}, or --cutoff HZ"):
            decide(recorded(rate, top), asked, DEFAULT_RATES, "None")


def test_a_note_says_which_rate_has_room() -> None:
    [note] = decide(recorded(16000, 8000), 16000, DEFAULT_RATES, "None").notes
    assert "--sample-rate 44100 has room for more" in note


def test_a_model_makes_its_own_rate_and_its_neighbour() -> None:
    assert rates_of(16000) == {16000: 16000}
    assert rates_of(44100) == {44100: 44100, 48000: 44100}
    assert rates_of(48000) == {48000: 48000, 44100: 48000}
    assert decide(recorded(48000, 16000), None, rates_of(44100), "m").rate == 48000
    assert decide(recorded(8000, 4000), None, rates_of(48000), "m").rate == 44100
    with pytest.raises(InputError, match="model 'm' makes sounds of 44100 and 48000 Hz, not of 16000"):
        decide(recorded(8000, 4000), 16000, rates_of(44100), "m")


def test_the_models_of_a_run_are_named_before_it(tmp_path) -> None:
    (tmp_path / "a.wav").write_bytes(b"nothing of it is read")

    def refs(model: str | None, **params: object) -> dict[str, str]:
        stated = Params.parse({"audio": tmp_path / "a.wav", **params})
        found = AudioSuperResolution.model_refs(model, stated)
        return {role: ref.rpartition("/")[2].removesuffix(".safetensors") for role, ref in found.items()}

    assert refs(None, sample_rate=16000) == {"model": "speech-16k-bright"}
    assert refs(None, sample_rate=44100, preset="faithful") == {"model": "piano-44k-faithful"}
    assert refs(None, sample_rate=48000) == {"model": "piano-44k-bright"}
    assert refs("piano-44k", preset="faithful") == {"model": "piano-44k-faithful"}
    assert refs(None) == {"speech-16k": "speech-16k-bright", "piano-44k": "piano-44k-bright"}
    assert refs("my/own.safetensors") == {"model": "own"}
    assert {model.ref.rpartition("-")[2] for model in MODELS.values()} == {"bright.safetensors"}
