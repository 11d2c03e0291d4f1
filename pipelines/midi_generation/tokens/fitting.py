"""A score made such that MidiTok's own preprocessing has nothing to get wrong.

MidiTok (3.1) would pick the same grid, but:
- it cuts the times of signatures down to the grid in floating point, where 35.99 is one too few and a signature then
  comes a bar too late (files of 44 or 47 ticks a quarter);
- it takes notes to be sorted, and quantises those that are not by the wrong signature;
- it adds a tempo at the beginning without seeing that the next one is the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import symusic

from pipelines.midi_generation.tokens.signatures import Signature, barred

__all__ = ["fitted"]


def fitted(score: Any, tokenizer: Any) -> Any:
    """A copy of a symusic Score in ticks: on MidiTok's grid, its bars such as MidiTok knows, notes and tracks in order.

    Raises MediaError: more bars than signatures.MAX_BARS.
    """
    positions = tokenizer.config.max_num_pos_per_beat
    fine = 4 * positions  # of a sixteenth, in which any known bar is a whole number
    scale = fine / score.ticks_per_quarter
    given = score.time_signatures if tokenizer.config.use_time_signatures else ()
    signatures = barred(
        (Signature(round(s.time * scale), s.numerator, s.denominator) for s in given),
        round(_last(score) * scale) + 1,
        fine,
        tokenizer.time_signatures,
    )
    quarter = positions * max(s.denominator for s in signatures) // 4
    made = score.resample(quarter, min_dur=1)
    made.time_signatures = type(made.time_signatures)(
        [symusic.TimeSignature(s.time * quarter // fine, s.numerator, s.denominator) for s in signatures]
    )
    for events in (made.tempos, *(track.notes for track in made.tracks)):
        if (np.diff(events.numpy()["time"]) < 0).any():  # not so in a file that was read
            events.sort()
    if not len(made.tempos) or made.tempos[0].time > 0:
        made.tempos.insert(0, symusic.Tempo(0, 120.0))  # as MIDI has it
    # The notes of a moment come in the order of the tracks.
    made.tracks = type(made.tracks)(sorted(made.tracks, key=lambda track: (track.is_drum, track.program)))
    return made


def _last(score: Any) -> int:
    """When the last note begins: what signatures say after it tells of nothing."""
    times = [track.notes.numpy()["time"] for track in score.tracks]
    return max((int(array.max()) for array in times if len(array)), default=0)
