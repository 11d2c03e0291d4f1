"""Piece by piece is the whole in one piece: around every boundary, for filters, networks and changes of rate."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genkit.errors import Cancelled, InputError, MediaError
from genkit.media import sampling
from genkit.media.audio import Audio
from genkit.media.streaming import Reader, write
from pipelines.audio_super_resolution.chunks import Pieces, convert, process

SIZE, CONTEXT = 64, 16
BOUNDARIES = sorted(
    {
        length
        for base in (0, CONTEXT, SIZE, SIZE + CONTEXT, SIZE + 2 * CONTEXT, 2 * SIZE, 2 * SIZE + CONTEXT, 3 * SIZE)
        for length in range(base - 2, base + 3)
        if length > 0
    }
)


def noise(channels: int, frames: int) -> Tensor:
    return 0.1 * torch.randn(channels, frames, generator=torch.Generator().manual_seed(frames))


def fir(samples: Tensor) -> Tensor:
    """33 taps: looks 16 samples to either side."""
    taps = torch.randn(33, generator=torch.Generator().manual_seed(1))
    return nn.functional.conv1d(samples[:, None], taps[None, None], padding=16)[:, 0]


def network() -> Callable[[Tensor], Tensor]:
    """Three layers of kernel 9, with dilation 1, 1, 2: looks 4 + 4 + 8 samples to either side; of both channels."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv1d(2, 4, 9, padding=4),
        nn.GELU(),
        nn.Conv1d(4, 4, 9, padding=4),
        nn.GELU(),
        nn.Conv1d(4, 2, 9, padding=8, dilation=2),
    ).eval()
    return torch.no_grad()(layers)


def strided(samples: Tensor) -> Tensor:
    """Halves the rate in blocks of 8 and brings it back: right only where pieces begin at multiples of 8."""
    padded = nn.functional.pad(samples, (0, -samples.shape[1] % 8))
    means = nn.functional.avg_pool1d(padded[:, None], 8)
    around = nn.functional.avg_pool1d(means, 3, 1, padding=1, count_include_pad=True)
    return around.repeat_interleave(8, dim=2)[:, 0, : samples.shape[1]]


def joined(function: Callable[[Tensor], Tensor], sound: Tensor, pieces: Pieces, block: int) -> Tensor:
    return torch.cat(list(process(sound.split(block, 1), function, pieces)), 1)


@pytest.mark.parametrize("name", ["fir", "network", "strided"])
def test_pieces_are_the_whole_around_every_boundary(name: str) -> None:
    function, grid = {"fir": (fir, 1), "network": (network(), 1), "strided": (strided, 8)}[name]
    for length in BOUNDARIES:
        sound = noise(2, length)
        for block in (7, 64, 1000):
            found = joined(function, sound, Pieces(SIZE, CONTEXT, grid), block)
            assert found.shape == sound.shape, (length, block)
            assert (found - function(sound)).abs().max() < 1e-6, (length, block)


def test_too_little_context_leaves_seams() -> None:
    """What the tests above would show if the context did nothing."""
    sound = noise(2, 300)
    assert (joined(fir, sound, Pieces(SIZE, 15), 64) - fir(sound)).abs().max() > 1e-4
    assert (joined(strided, sound, Pieces(60, 15, 5), 64) - strided(sound)).abs().max() > 1e-4


@pytest.mark.parametrize(("old", "new"), [(1, 2), (1, 4), (2, 3), (441, 160), (160, 441)])
def test_a_change_of_rate_is_the_whole_too(old: int, new: int) -> None:
    """By the windowed sinc, which looks some 70 samples of the lower rate to either side."""
    reach = int(75 * max(1, old / new)) + 1
    pieces = Pieces(500, reach, old=100 * old, new=100 * new)
    for length in (1, 499, 500, 501, 1000, 1003, 2345):
        sound = noise(1, length)
        whole = sampling.resample(sound, old, new)
        found = joined(lambda part: sampling.resample(part, old, new), sound, pieces, 333)
        assert found.shape == whole.shape == (1, pieces.output(length))
        assert (found - whole).abs().max() < 1e-5, length


def test_from_file_to_file(tmp_path: Path) -> None:
    sound = Audio(noise(2, 70_001), 16000)
    source = sound.save(tmp_path / "in.flac")
    seen: list[tuple[int, int, str]] = []

    def progress(step: int, total: int, *, preview: Any = None, note: str = "") -> None:
        seen.append((step, total, note))

    convert(source, tmp_path / "out.wav", fir, Pieces(10_000, 16), progress=progress)
    whole = fir(Audio.open(source).samples).clamp(-1, 1)
    assert (Audio.open(tmp_path / "out.wav").samples - whole).abs().max() < 1e-5
    assert [step for step, _, _ in seen] == [625 * n for n in range(1, 8)] + [4375]
    assert {total for _, total, _ in seen} == {4375}
    assert seen[-1][2] == "0:00 left"
    assert all(note.endswith(" left") for _, _, note in seen)


@pytest.mark.parametrize("frames", [1, 3, 65_537])
def test_one_sample_and_odd_lengths_keep_theirs(frames: int, tmp_path: Path) -> None:
    source = Audio(noise(2, frames), 8000).save(tmp_path / "in.wav")
    pieces = Pieces(10_000, 200, old=1, new=2)
    convert(source, tmp_path / "out.flac", lambda part: sampling.resample(part, 1, 2), pieces)
    found = Audio.open(tmp_path / "out.flac")
    assert (found.samples.shape, found.sample_rate) == ((2, 2 * frames), 16000)


def test_a_cancel_or_an_error_leaves_nothing(tmp_path: Path) -> None:
    source = Audio(noise(1, 50_000), 8000).save(tmp_path / "in.wav")

    def cancel(step: int, total: int, *, preview: Any = None, note: str = "") -> None:
        if step > total // 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        convert(source, tmp_path / "out.wav", fir, Pieces(1000, 16), progress=cancel)
    with pytest.raises(MediaError, match="NaN"):
        convert(source, tmp_path / "out.wav", lambda part: part / 0, Pieces(1000, 16))
    with pytest.raises(InputError, match="came back as"):
        convert(source, tmp_path / "out.wav", lambda part: part[:, 1:], Pieces(1000, 16))
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


def test_what_is_no_piece_is_one_line() -> None:
    for wrong in ((0, 1), (1, -1), (1, 1, 0), (1, 1, 1, 0)):
        with pytest.raises(InputError):
            Pieces(*wrong)


def test_ten_minutes_take_no_more_memory_than_one(tmp_path: Path) -> None:
    """Samples that are alive at once, counted at every piece, and what Python allocates."""

    def minute(count: int) -> Iterator[Tensor]:
        block = noise(1, 16_000)
        return (block for _ in range(60 * count))

    def peak(minutes: int) -> tuple[int, int]:
        source = write(tmp_path / f"{minutes}.wav", minute(minutes), 16_000, 1, bits=16)
        longest = 0

        def watched(part: Tensor) -> Tensor:
            nonlocal longest
            longest = max(longest, part.untyped_storage().nbytes())
            return 0.5 * part

        tracemalloc.start()
        convert(source, tmp_path / "out.wav", watched, Pieces(160_000, 16_000))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        with Reader(tmp_path / "out.wav") as sound:
            assert sound.frames == 60 * 16_000 * minutes
        return used, longest

    peak(1)  # what the first call imports
    one, ten = peak(1), peak(10)
    assert ten[0] < 1.2 * one[0] + 100_000
    assert ten[1] == one[1] < 4 * 300_000
