"""The dull piano that ships: it can be played again, is as dull as it says, and was not before."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from genkit import shipped
from genkit.media.audio import Audio, degrade
from genkit.media.spectrogram import levels
from pipelines.audio_super_resolution.bandwidth import detect

QUICKSTART = Path(shipped.folder() or ".") / "quickstart"


@pytest.fixture(scope="module")
def bright() -> Audio:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(QUICKSTART))
        patch.setattr(sys, "dont_write_bytecode", True)
        return runpy.run_path(str(QUICKSTART / "write_dull.py"))["bright"]()


def test_it_can_be_played_again(bright: Audio) -> None:
    ships, again = Audio.open(QUICKSTART / "dull.flac"), degrade(bright, 11025, bits=16, dither=7)
    assert (ships.sample_rate, ships.channels, ships.frames) == (11025, 1, again.frames)
    assert float((ships.samples - again.samples).abs().max()) < 3 / 2**15, "up to a rounding of the synthesiser's"
    assert (QUICKSTART / "dull.flac").stat().st_size < 150_000


def test_there_is_treble_to_restore(bright: Audio) -> None:
    """Between 6 and 16 kHz, where the dull one has nothing: 30 dB above the floor of 16 bits."""
    rows = levels(bright, 40, 441).flip(0)  # of 50 Hz
    assert float(rows[120:320].quantile(0.9)) > -85


def test_its_cutoff_is_found() -> None:
    dull = Audio.open(QUICKSTART / "dull.flac")
    found = detect(iter([dull.samples]), dull.sample_rate)
    assert 4400 < found.cutoff < 5513
