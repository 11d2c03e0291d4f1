"""Sounds that stay on disk: the same as those in memory in every way that can be told, and nothing left behind."""

from __future__ import annotations

import errno
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genkit.errors import Cancelled, DiskFull, MediaError
from genkit.media import provenance, recording, saving, streaming
from genkit.media.audio import Audio
from genkit.media.provenance import Provenance
from genkit.media.recording import Recording, difference, keep, sound

RECORD = Provenance(pipeline="test", version=1, params={"seed": 3}, found={"cutoff": 4000})
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def noise(channels: int, frames: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(channels, frames, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of scratch files, used from the thousandth sample on."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(recording, "SMALL", 1000)
    return folder


def test_it_has_the_face_of_an_audio(scratch: Path) -> None:
    whole = Audio(noise(3, 70_001), 16000)
    kept = keep(whole.samples.split(777, 1), 16000, 3)
    assert isinstance(kept, Recording)
    assert (kept.sample_rate, kept.channels, kept.frames, kept.duration) == (16000, 3, 70_001, whole.duration)
    assert repr(kept) == repr(whole)
    assert torch.equal(kept.samples, whole.samples)
    assert kept.digest() == whole.digest()
    assert kept.resample(8000).digest() == whole.resample(8000).digest()
    assert [block.shape[1] for block in kept.blocks(50_000)] == [50_000, 20_001]
    assert "<audio" in kept._repr_mimebundle_()["text/html"]
    assert Audio.open(kept) is kept
    assert difference(kept, whole) == (0, 0)
    assert difference(kept, Audio(whole.samples + 0.5, 16000)) == pytest.approx((0.5, 0.5), abs=1e-6)
    assert list(scratch.iterdir()) == []


def test_a_short_one_stays_in_memory(scratch: Path) -> None:
    assert type(keep([noise(1, 1000)], 8000, 1)) is Audio
    assert type(keep([noise(1, 1001)], 8000, 1)) is Recording


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("frames", [1001, 140_001])
def test_its_file_is_that_of_an_audio_to_the_byte(suffix: str, frames: int, scratch: Path, tmp_path: Path) -> None:
    whole = Audio(noise(2, frames), 44100)
    kept = keep(whole.blocks(), 44100, 2)
    for record in (None, RECORD):
        one = whole.save(tmp_path / f"one{suffix}", provenance=record)
        other = kept.save(tmp_path / f"other{suffix}", provenance=record)
        assert one.read_bytes() == other.read_bytes()
    found = provenance.read(other)
    assert found is not None
    assert found.content == Audio.open(other).digest() == Recording.open(other).digest()
    assert sound(other).frames == Audio.open(other).frames
    assert found.found == {"cutoff": 4000}
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"one{suffix}", f"other{suffix}", "scratch"]


@pytest.mark.parametrize("options", [{"bits": 16}, {"sidecar": True}])
def test_options_are_those_of_an_audio(options: dict, scratch: Path, tmp_path: Path) -> None:
    whole = Audio(noise(1, 5000), 8000)
    one = whole.save(tmp_path / "one.wav", provenance=RECORD, **options)
    other = keep([whole.samples], 8000, 1).save(tmp_path / "other.wav", provenance=RECORD, **options)
    assert one.read_bytes() == other.read_bytes()
    assert provenance.sidecar(other).is_file() == ("sidecar" in options)
    with pytest.raises(MediaError, match="has no option"):
        keep([whole.samples], 8000, 1).save(tmp_path / "bad.flac", quality=3)


def test_a_wav_beyond_4_gb_has_its_record_beside_it(
    scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_WAV_BYTES", 1000)
    path = keep([noise(1, 5000)], 8000, 1).save(tmp_path / "a.wav", provenance=RECORD)
    assert path.read_bytes()[:4] == b"RF64"
    assert provenance.sidecar(path).is_file()
    found = provenance.read(path)
    assert found is not None
    assert found.content == Audio.open(path).digest()


def test_what_is_saved_is_what_a_rerun_compares(scratch: Path) -> None:
    whole = Audio(noise(2, 5000), 16000)
    for format in ("WAV", "OGG", "MP3"):
        kept = keep([whole.samples], 16000, 2)
        with saving.as_saved(kept, format, {}) as one, saving.as_saved(whole, format, {}) as other:
            assert one.digest() == other.digest()
    assert list(scratch.iterdir()) == []


def test_a_limit_is_a_limit(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = keep([noise(2, 5000)], 16000, 2)
    monkeypatch.setenv("GENKIT_MAX_SAMPLES", "9999")
    with pytest.raises(MediaError, match=r"over the limit of 9999 samples; use blocks\(\)"):
        _ = kept.samples
    assert kept.digest()


@pytest.mark.parametrize("error", [Cancelled(), MediaError("broken"), KeyboardInterrupt()])
def test_what_stops_on_the_way_leaves_nothing(error: BaseException, scratch: Path) -> None:
    def blocks() -> Iterator[Tensor]:
        yield noise(1, 5000)
        raise error

    with pytest.raises(type(error)):
        keep(blocks(), 8000, 1)
    with pytest.raises(MediaError, match="NaN"):
        keep([noise(1, 5000), noise(1, 10) / 0], 8000, 1)
    with pytest.raises(MediaError, match="empty"):
        keep([], 8000, 1)
    assert list(scratch.iterdir()) == []


def test_a_full_disk_is_said_before_the_work_and_in_it(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DiskFull, match=r"takes 4000000.0 GB there.*TMPDIR"):
        keep(iter(()), 8000, 1, frames=10**15)

    class Full:
        def __getattr__(self, name: str) -> object:
            return lambda *_: 0

        def write(self, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    with pytest.raises(DiskFull, match=r"no space is left.*TMPDIR"):
        keep([noise(1, 5000)], 8000, 1)


def test_memory_does_not_grow_with_the_length(scratch: Path, tmp_path: Path) -> None:
    block = noise(1, 1 << 15)

    def peak(blocks: int) -> int:
        tracemalloc.start()
        kept = keep((block for _ in range(blocks)), 16000, 1)
        kept.save(tmp_path / "a.wav", provenance=RECORD)
        assert provenance.open_media(tmp_path / "a.wav").digest()
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(10)  # what the first call imports
    assert peak(100) < 1.3 * peak(10) + 100_000
