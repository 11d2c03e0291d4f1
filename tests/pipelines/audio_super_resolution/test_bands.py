"""The recorded band stays, loudness stays, and channels do not wander."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genkit.errors import InputError
from genkit.media import sampling
from genkit.metrics.audio import compare
from pipelines.audio_super_resolution.bands import keep_band, link, reach
from pipelines.audio_super_resolution.chunks import Pieces, process

RATE, CUTOFF = 16000, 4000


def noise(channels: int = 1, frames: int = 20_000, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(channels, frames, generator=torch.Generator().manual_seed(seed))


def dull(sound: Tensor) -> Tensor:
    return sampling.lowpass(sound, 2 * CUTOFF / RATE, family="brickwall")


def treble(sound: Tensor) -> Tensor:
    return sound - sampling.lowpass(sound, 2 * 1.05 * CUTOFF / RATE, family="brickwall")


@pytest.mark.parametrize("gain", [0.5, 1.0, 2.0])
def test_the_band_that_was_there_stays(gain: float) -> None:
    """Whatever was made, louder or softer: LSD-LF under 0.05 against the input, and above the cutoff what was made."""
    low, made = dull(noise(2)), gain * noise(2, seed=1)
    kept = keep_band(low, made, CUTOFF, RATE)
    assert compare(low, kept, RATE, CUTOFF).lsd_lf < 0.05
    above = treble(made)
    assert (treble(kept) - above)[:, 2000:-2000].norm() < 0.01 * above[:, 2000:-2000].norm()
    assert keep_band(low, made, 7900, RATE) is low


def test_what_is_right_already_stays() -> None:
    sound = noise(2)
    assert torch.equal(keep_band(sound, sound, CUTOFF, RATE), sound)
    for length in (1, 2, 101):
        assert torch.equal(keep_band(sound[:, :length], sound[:, :length], CUTOFF, RATE), sound[:, :length])


def test_linked_channels_swap_with_their_inputs() -> None:
    low, made = dull(noise(3)), noise(3, seed=1)
    order = [2, 0, 1]
    assert torch.allclose(link(low, made, CUTOFF, RATE)[order], link(low[order], made[order], CUTOFF, RATE), atol=1e-7)
    mono = noise(1)
    assert torch.equal(link(dull(mono), mono, CUTOFF, RATE), mono)


def test_treble_follows_the_pan_and_keeps_its_energy() -> None:
    """A sound panned to the left by 2 : 1 whose treble was made at 1 : 1 comes out at 2 : 1."""
    pan = torch.tensor([[2.0], [1.0]])
    low, made = pan * dull(noise()), dull(noise()) * pan + treble(noise(2, seed=1))
    linked = link(low, made, CUTOFF, RATE)
    inner = slice(2000, -2000)
    left, right = treble(linked)[:, inner].norm(dim=1)
    assert float(left / right) == pytest.approx(2, rel=0.02)
    assert float(treble(linked)[:, inner].norm()) == pytest.approx(float(treble(made)[:, inner].norm()), rel=0.02)
    assert torch.allclose(dull(linked)[:, inner], dull(made)[:, inner], atol=2e-3)


def test_a_silent_channel_gets_no_treble() -> None:
    low = torch.cat((dull(noise()), torch.zeros(1, 20_000)))
    linked = link(low, noise(2, seed=1), CUTOFF, RATE)
    assert treble(linked)[1].norm() < 1e-3 * treble(linked)[0].norm()


def test_pieces_with_its_reach_are_the_whole() -> None:
    low, made = dull(noise(2)), noise(2, seed=1)

    def both(part: Tensor) -> Tensor:
        return keep_band(part[:2], link(part[:2], part[2:], CUTOFF, RATE), CUTOFF, RATE)

    sound = torch.cat((low, made))
    pieces = Pieces(5000, reach(CUTOFF, RATE))
    found = torch.cat(list(process([sound], both, pieces)), 1)
    assert (found - both(sound)).abs().max() < 1e-5


def test_what_does_not_fit_is_one_line() -> None:
    for function in (keep_band, link):
        with pytest.raises(InputError, match="shapes"):
            function(noise(2), noise(1), CUTOFF, RATE)
        with pytest.raises(InputError, match="cutoff"):
            function(noise(2), noise(2), 9000, RATE)
