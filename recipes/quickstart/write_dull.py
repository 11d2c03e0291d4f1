"""Plays the dull piano that the quickstart restores, so that no recording need ship.

    python recipes/quickstart/write_dull.py [FOLDER]

dull.flac   the first phrase of the Ode to Joy (Beethoven, Ninth Symphony, 1824; public domain) in octaves over a broken
            bass, for piano: played with the General MIDI soundfont at 44.1 kHz, and made dull by a low-pass at 4.4 kHz
            and sampling at 11.025 kHz, 16 bits, mono

Needs genkit. The same sound every time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import symusic
from write_tune import HALVES, OPENING, QUARTER, part

from genkit.media.audio import Audio, degrade
from genkit.media.midi import Midi

BARS = 4
RATE, BITS = 11025, 16
ENDING = [("F#5", 1.5), ("E5", 0.5), ("E5", 2)]


def tune() -> symusic.Score:
    """The melody in octaves, as loud as a tune is played: loud notes are those with treble."""
    score = symusic.Score(QUARTER)
    score.tempos.append(symusic.Tempo(0, 112))
    melody = [*OPENING, *ENDING]
    score.tracks.append(part("Melody", 0, melody, 112))
    score.tracks.append(part("Octave", 0, melody, 100).shift_pitch(12))
    score.tracks.append(part("Bass", 0, [(pitch, 0.5) for half in HALVES[: 2 * BARS] for pitch in half], 80))
    return score


def bright() -> Audio:
    """As it is played, mono at 44.1 kHz, up to a tenth of a second after it has died away."""
    sound = Midi(tune()).render()
    samples = sound.samples.mean(0, keepdim=True)
    end = int((samples[0].abs() > 1e-3).nonzero().max()) + sound.sample_rate // 10
    return Audio(samples[:, :end], sound.sample_rate)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    degrade(bright(), RATE, bits=BITS, dither=7).save(folder / "dull.flac", bits=BITS)
