"""Sound files in blocks: the same as whole ones, in memory that does not grow, and never half a file."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_audio
import torch
from torch import Tensor

from genkit.errors import Cancelled, MediaError
from genkit.media import streaming
from genkit.media.audio import Audio
from genkit.media.streaming import Reader, write


def noise(channels: int, frames: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(channels, frames, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
@pytest.mark.parametrize("frames", [1, 70_000])
def test_blocks_are_the_file(suffix: str, frames: int, tmp_path: Path) -> None:
    sound = Audio(noise(2, frames), 44100)
    whole = sound.save(tmp_path / f"whole{suffix}")
    path = write(tmp_path / f"blocks{suffix}", sound.samples.split(1000, dim=1), 44100, 2)
    assert Audio.open(path).digest() == Audio.open(whole).digest()
    with Reader(whole) as reader:
        assert (reader.sample_rate, reader.channels, reader.frames) == (44100, 2, frames)
        for size in (700, 1 << 17):
            blocks = list(reader.blocks(size))
            assert [block.shape[1] for block in blocks[:-1]] == [size] * (len(blocks) - 1)
            assert torch.equal(torch.cat(blocks, 1), Audio.open(whole).samples)


def test_a_crop_is_read_alone(tmp_path: Path) -> None:
    sound = Audio(noise(1, 200_000), 16000)
    with Reader(sound.save(tmp_path / "a.flac")) as reader:
        whole = torch.cat(list(reader.blocks()), 1)
        assert torch.equal(reader.read(150_001, 70), whole[:, 150_001:150_071])
        assert reader.read(199_990, 70).shape == (1, 10)
        assert reader.read(300_000, 70).shape == (1, 0)


@pytest.mark.parametrize("what", sorted(test_audio.bad()))
def test_a_bad_sound_is_one_line(what: str, tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(test_audio.bad()[what])

    def through() -> None:
        with Reader(path) as reader:
            for _ in reader.blocks():
                pass

    with pytest.raises(MediaError) as error:
        through()
    assert "\n" not in str(error.value)
    assert "sound" in str(error.value)


def test_nan_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    samples = noise(1, 40_000)
    samples[0, 30_000] = float("nan")
    (tmp_path / "a.wav").write_bytes(test_audio.wav(samples[0].numpy(), 8000))
    with Reader(tmp_path / "a.wav") as reader, pytest.raises(MediaError, match=r"first at 3\.750 s"):
        list(reader.blocks(1000))


@pytest.mark.parametrize("error", [Cancelled(), MediaError("broken"), KeyboardInterrupt()])
def test_what_stops_on_the_way_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    def blocks() -> Iterator[Tensor]:
        yield noise(1, 1000)
        raise error

    (tmp_path / "there.wav").write_bytes(b"as it was")
    for name in ("there.wav", "new.flac"):
        with pytest.raises(type(error)):
            write(tmp_path / name, blocks(), 8000, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["there.wav"]
    assert (tmp_path / "there.wav").read_bytes() == b"as it was"


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    for name, blocks, channels, match in (
        ("a.mp3", [noise(3, 100)], 3, "wav"),
        ("a.flac", [], 1, "empty"),
        ("a.txt", [noise(1, 100)], 1, "suffix"),
        ("a.wav", [noise(1, 100) / 0], 1, "NaN"),
    ):
        with pytest.raises(MediaError, match=match):
            write(tmp_path / name, blocks, 8000, channels)
    with pytest.raises(MediaError, match="bits"):
        write(tmp_path / "a.wav", [noise(1, 100)], 8000, 1, bits=8)
    assert not list(tmp_path.iterdir())


def test_a_wav_of_any_length_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known to be short it is the file of `Audio.save`; else it is begun as RF64, and reads back as well."""
    sound = Audio(noise(1, 501), 8000)
    whole = sound.save(tmp_path / "whole.wav").read_bytes()
    assert write(tmp_path / "a.wav", [sound.samples], 8000, 1, frames=501).read_bytes() == whole
    monkeypatch.setattr(streaming, "_WAV_BYTES", 1000)
    for frames in (None, 501):
        path = write(tmp_path / "a.wav", [sound.samples], 8000, 1, frames=frames)
        assert path.read_bytes() != whole
        assert Audio.open(path).digest() == Audio.open(tmp_path / "whole.wav").digest()


@pytest.mark.parametrize("sizes", [[3], [1, 1, 1, 1, 1, 1], [4, 0, 4], [7, 9, 1], [0], []])
def test_regrouping_keeps_every_sample(sizes: list[int]) -> None:
    whole = noise(2, sum(sizes))
    again = list(streaming.regroup(whole.split(sizes, 1) if sizes else [], 4))
    assert all(block.shape[1] == 4 for block in again[:-1])
    assert all(block.shape[1] for block in again)
    assert torch.equal(torch.cat([*again, whole[:, :0]], 1), whole)


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    block = noise(1, 1 << 15)

    def peak(blocks: int) -> int:
        tracemalloc.start()
        path = write(tmp_path / "a.wav", (block for _ in range(blocks)), 16000, 1, bits=16)
        with Reader(path) as reader:
            assert sum(part.shape[1] for part in reader.blocks()) == blocks << 15
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(1)  # what the first call imports
    assert peak(100) < 1.3 * peak(10)
