"""The pipeline with tiny networks: pieces are the whole, the recorded band stays, channels stay where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import restoring_kit as kit
import torch
from torch import Tensor

import genkit
from genkit.errors import Cancelled, InputError, MediaError
from genkit.media import recording, sampling
from genkit.media.audio import Audio
from genkit.media.recording import Recording
from genkit.metrics.audio import Distance
from pipelines.audio_super_resolution import restoring
from pipelines.audio_super_resolution.chunks import Pieces

ARCHITECTURES = ("unet", "spectral")
RATES = (8000, 11025, 16000, 22050, 24000, 32000, 44100)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    home = tmp_path_factory.mktemp("models")
    return {
        (name, rate): kit.model_file(home / f"{name}-{rate}.safetensors", name, rate=rate)
        for name in ARCHITECTURES
        for rate in (16000, 44100)
    }


@pytest.fixture(scope="module")
def restorers(models: dict[tuple[str, int], Path]) -> dict[tuple[str, int], Any]:
    return {key: genkit.load("audio-super-resolution", model=path, device="cpu") for key, path in models.items()}


@pytest.fixture(params=ARCHITECTURES)
def restorer(request: pytest.FixtureRequest, restorers: dict[tuple[str, int], Any]) -> Any:
    return restorers[request.param, 16000]


def in_pieces(monkeypatch: pytest.MonkeyPatch, size: int) -> int:
    """Pieces of `size`, whatever the context; returns the context."""
    contexts = []
    original = restoring._pieces

    def pieces(model: Any, cutoff: float) -> Pieces:
        found = original(model, cutoff)
        contexts.append(found.context)
        return Pieces(size, found.context, found.grid)

    monkeypatch.setattr(restoring, "_pieces", pieces)
    return size


def test_pieces_are_the_whole_around_every_boundary(restorer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 4096
    whole, cutoff = kit.music(2, 1.4, 8000), 3500
    lengths = [1, 2, 3, 79, 801, *(n * size // 2 + d for n in (1, 2, 3) for d in (-1, 0, 1)), 11_200]
    expected = [restorer(audio=Audio(whole[:, :t], 8000), cutoff=cutoff).audio.samples for t in lengths]
    in_pieces(monkeypatch, size)
    monkeypatch.setitem(restoring.ROOM, "cpu", 3 * 4 * size)
    for t, one in zip(lengths, expected, strict=True):
        again = restorer(audio=Audio(whole[:, :t], 8000), cutoff=cutoff).audio.samples
        assert again.shape == one.shape == (2, 2 * t)
        assert (again - one).abs().max() < 1e-5, t
    assert (expected[-1] - sampling.resample(whole, 8000, 16000)).abs().max() > 1e-3  # and something was made


def test_what_is_heard_does_not_depend_on_the_pieces(restorer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit: the phase of an empty band is that of rounding errors."""
    work = restorer.restorer._work(
        restorer.Params.parse({"audio": Audio(kit.music(1, 20, 22050), 22050), "cutoff": 4000}),
        Audio(kit.music(1, 20, 22050), 22050),
        restoring.Meter(lambda *a, **k: None, 1, 0),
    )
    whole = torch.cat(list(work.at(16000)), 1)
    for size in (4096, 50_000):
        pieces = list(restoring.cut(work.at(16000), Pieces(size, 1000, 16)))
        assert torch.equal(torch.cat([p.samples[:, p.start : p.end] for p in pieces], 1), whole)


@pytest.mark.parametrize("old", RATES)
def test_every_pair_of_rates(old: int, restorers: dict[tuple[str, int], Any]) -> None:
    """The length is ceil(T new / old), and what was there is what sinc resampling makes of it."""
    sound = Audio(kit.music(1, 0.31, old), old)
    t = sound.frames
    for new in (16000, 44100, 48000):
        restorer = restorers["spectral", 16000 if new == 16000 else 44100]
        cutoff = 0.4 * min(old, new)
        made = restorer(audio=sound, sample_rate=new, cutoff=cutoff).audio
        assert (made.sample_rate, made.frames) == (new, -(-t * new // old))
        resampled = sampling.resample(sampling.lowpass(sound.samples, 1.9 * cutoff / old, family="brickwall"), old, new)
        assert low_frequencies(resampled, made.samples, new, 0.9 * cutoff) < 0.05


def low_frequencies(reference: Tensor, made: Tensor, rate: int, cutoff: float) -> float:
    distance = Distance(rate, cutoff)
    distance.add(reference, made)
    return distance.result().lsd_lf


@pytest.mark.parametrize("new", [16000, 44100, 48000])
def test_the_recorded_band_passes_untouched(new: int, restorers: dict[tuple[str, int], Any]) -> None:
    sound = Audio(kit.music(2, 3, 8000), 8000)
    restorer = restorers["spectral", 16000 if new == 16000 else 44100]
    output = restorer(audio=sound, sample_rate=new)
    made, resampled = output.audio.samples, sampling.resample(sound.samples, 8000, new)
    cutoff = float(output.found["restored"].split()[1].replace(",", ""))
    assert cutoff == pytest.approx(4000, rel=0.06)
    assert low_frequencies(resampled, made, new, cutoff) < 0.05
    # Loudness: below the cutoff not a hundredth of a decibel changes.
    levels = [sampling.lowpass(x, 1.9 * cutoff / new, family="brickwall").square().mean() for x in (made, resampled)]
    assert (10 * torch.log10(levels[0] / levels[1])).abs() < 0.01
    assert (made - resampled).square().mean() > 1e-4 * resampled.square().mean()


def test_swapping_channels_swaps_the_result(restorer: Any) -> None:
    sound = kit.music(2, 1, 8000)
    made = restorer(audio=Audio(sound, 8000)).audio.samples
    swapped = restorer(audio=Audio(sound.flip(0), 8000)).audio.samples
    assert (swapped.flip(0) - made).abs().max() < 1e-5


def test_what_is_in_the_middle_stays_there(restorer: Any) -> None:
    mono = kit.music(1, 1, 8000)
    made = restorer(audio=Audio(mono.repeat(2, 1), 8000)).audio.samples
    assert (made[0] - made[1]).abs().max() < 1e-6
    assert (restorer(audio=Audio(mono, 8000)).audio.samples[0] - made[0]).abs().max() < 1e-5


def test_six_channels_and_a_silent_one(restorer: Any) -> None:
    sound = kit.music(6, 1, 8000)
    sound[3] = 0
    made = restorer(audio=Audio(sound, 8000)).audio.samples
    assert made.shape == (6, 16000)
    assert not made[3].any()
    assert all(made[c].any() for c in (0, 1, 2, 4, 5))


@pytest.mark.parametrize("frames", [1, 7, 16001])
@pytest.mark.parametrize("cutoff", [None, 3000])
def test_silence_stays_silent_and_a_constant_constant(restorer: Any, frames: int, cutoff: float | None) -> None:
    silent = restorer(audio=Audio(torch.zeros(2, frames), 8000), cutoff=cutoff)
    assert silent.audio.samples.shape == (2, 2 * frames)
    assert not silent.audio.samples.any()
    constant = restorer(audio=Audio(torch.full((1, 16001), 0.5), 8000)).audio.samples
    assert (constant[:, 2000:-2000] - 0.5).abs().max() < 1e-3
    assert silent.notes == ([] if cutoff else ["the sound is silent, and stays so"])


def test_a_pause_stays_silent(restorer: Any) -> None:
    sound = kit.music(1, 3, 8000)
    sound[:, 8000:16000] = 0
    made = restorer(audio=Audio(sound, 8000), cutoff=3500).audio.samples
    assert not made[:, 18_500:29_500].any()
    assert made[:, :15_000].any()


def test_one_sample_and_odd_lengths(restorer: Any) -> None:
    for frames in (1, 2, 3, 127, 16383):
        made = restorer(audio=Audio(kit.music(1, 3, 8000)[:, :frames], 8000), cutoff=3500).audio
        assert made.frames == 2 * frames
        assert made.samples.isfinite().all()


def test_over_full_scale_is_kept_and_told(restorer: Any, tmp_path: Path) -> None:
    clipped = Audio((20 * kit.music(1, 1, 8000)).clamp(-1, 1), 8000)
    output = restorer(audio=clipped, cutoff=3500)
    assert output.audio.samples.abs().max() > 1
    assert "dB over full scale" in output.found["peak"]
    assert "files clip there" in output.notes[0]
    output.save(tmp_path / "a.wav")
    assert Audio.open(tmp_path / "a.wav").samples.abs().max() <= 1


def test_a_full_recording_is_passed_on_and_told(restorers: dict[tuple[str, int], Any], tmp_path: Path) -> None:
    path = Audio(kit.music(1, 3, 16000), 16000).save(tmp_path / "full.wav")
    output = restorers["spectral", 16000](audio=path)
    assert torch.equal(output.audio.samples, Audio.open(path).samples)
    assert output.found["restored"] == "no"
    assert "nothing to restore at 16000 Hz" in output.notes[0]
    assert "full.wav" in output.notes[0]
    again = restorers["spectral", 16000](audio=path, cutoff=4000)
    assert not again.notes
    assert low_frequencies(Audio.open(path).samples, again.audio.samples, 16000, 4000) < 0.05
    assert not torch.equal(output.audio.samples, again.audio.samples)


def test_sound_that_the_rate_cannot_hold_is_refused(restorers: dict[tuple[str, int], Any]) -> None:
    wide = Audio(kit.music(1, 3, 44100), 44100)
    with pytest.raises(InputError, match=r"cannot hold what is above 8,000 Hz.*--cutoff"):
        restorers["spectral", 16000](audio=wide)
    assert restorers["spectral", 16000](audio=wide, cutoff=4000).audio.sample_rate == 16000
    # Where nothing is lost a higher rate is taken down: 44.1 kHz with sound up to 3 kHz.
    narrow = Audio(sampling.upsample(kit.music(1, 3, 6000), 6000, 44100), 44100)
    assert restorers["spectral", 16000](audio=narrow, sample_rate=16000).found["restored"].startswith("from 2,")


def test_a_model_of_ones_own_decides(restorers: dict[tuple[str, int], Any]) -> None:
    bright = restorers["spectral", 16000]
    sound = kit.dull(1, 1)
    assert torch.equal(bright(audio=sound, preset="bright").audio.samples, bright(audio=sound).audio.samples)
    with pytest.raises(InputError, match=r"preset 'faithful' does not fit.*'bright'"):
        bright(audio=sound, preset="faithful")
    with pytest.raises(InputError, match="makes sounds of 16000 Hz, not of 44100"):
        bright(audio=sound, sample_rate=44100)
    with pytest.raises(InputError, match="above half the rate"):
        bright(audio=sound, cutoff=9000)


def test_a_batch_is_what_it_is_one_by_one(restorer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    in_pieces(monkeypatch, 4096)
    sounds = [kit.dull(c, s, seed=i) for i, (c, s) in enumerate([(1, 0.5), (2, 0.5), (1, 1.3), (1, 0.5), (2, 0.9)])]
    params = [restorer.Params.parse({"audio": sound}) for sound in sounds]
    params.insert(2, restorer.Params.parse({"audio": Audio(torch.zeros(1, 100), 8000)}))
    alone = [restorer.generate([one])[0].audio.samples for one in params]
    # On the CPU to the last bit, so that a file made in a batch can be made again by itself.
    assert all(torch.equal(a, b.audio.samples) for a, b in zip(alone, restorer.generate(params), strict=True))
    calls = []
    restore = restorer.restorer._through
    monkeypatch.setattr(restorer.restorer, "_through", lambda net, rows: calls.append(len(rows)) or restore(net, rows))
    monkeypatch.setitem(restoring.ROOM, "cpu", 1 << 20)
    together = restorer.generate(params)
    assert max(calls) >= 4  # those of one length went through at once
    for one, other in zip(alone, together, strict=True):
        assert one.shape == other.audio.samples.shape
        assert (one - other.audio.samples).abs().max() < 1e-5


def test_memory_that_runs_out_halves_the_rows(restorer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(restoring.ROOM, "cpu", 1 << 20)
    params = [restorer.Params.parse({"audio": kit.dull(1, 0.5, seed=i)}) for i in range(4)]
    expected = [one.audio.samples for one in restorer.generate(params)]
    [net] = {restorer.restorer._own.network}
    restore, sizes = net.restore, []

    def small(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        if len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return restore(rows)

    monkeypatch.setattr(net, "restore", small)
    again = restorer.generate(params)
    restorer.restorer._rows._fits = None
    assert max(sizes) > 1
    assert all((a - b.audio.samples).abs().max() < 1e-5 for a, b in zip(expected, again, strict=True))


def test_progress_ends_where_it_should_and_a_cancel_leaves_nothing(
    restorer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_pieces(monkeypatch, 4096)
    monkeypatch.setattr(recording, "SMALL", 1000)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    path = kit.dull(1, 4).save(tmp_path / "dull.wav")
    seen: list[tuple[int, int, str]] = []
    restorer.generate(
        [restorer.Params.parse({"audio": path})],
        lambda step, total, *, preview=None, note="": seen.append((step, total, note)),
    )
    assert [step for step, _, _ in seen] == sorted(step for step, _, _ in seen)
    assert seen[0][2] == "finding the cutoff"
    assert seen[-1][:2] == (4200, 4200)
    assert seen[-1][2] == "restoring, 0:00 left"

    def cancel(step: int, total: int, *, preview: Any = None, note: str = "") -> None:
        if step > total // 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        restorer.generate([restorer.Params.parse({"audio": path})], cancel)
    assert [file.name for file in tmp_path.iterdir()] == ["dull.wav"]


def test_a_long_result_stays_on_disk_and_is_the_same(
    restorer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kit.dull(2, 4).save(tmp_path / "dull.flac")
    short = restorer(audio=path)
    monkeypatch.setattr(recording, "SMALL", 1000)
    long = restorer(audio=path)
    assert isinstance(long.audio, Recording)
    assert not isinstance(short.audio, Recording)
    assert long.audio.digest() == short.audio.digest()
    for suffix in (".wav", ".flac", ".ogg", ".mp3"):
        one, other = short.save(tmp_path / f"short{suffix}")[0], long.save(tmp_path / f"long{suffix}")[0]
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("params", [{}, {"cutoff": 300}])
def test_bad_files_are_one_line(params: dict[str, Any], restorer: Any, tmp_path: Path) -> None:
    for name, data in kit.bad(tmp_path).items():
        path = tmp_path / "bad.wav"
        path.write_bytes(data)
        with pytest.raises(MediaError) as error:
            restorer(audio=path, **params)
        assert "\n" not in str(error.value), name
        assert "bad.wav" in str(error.value), name
    (tmp_path / "folder.wav").mkdir()
    for path, message in ((tmp_path / "folder.wav", "is a folder"), (tmp_path / "none.wav", "does not exist")):
        with pytest.raises(InputError, match=message):
            restorer(audio=path, **params)


def test_the_roll_off_of_a_resampler_is_filled(restorers: dict[Any, Any]) -> None:
    output = restorers["spectral", 16000](audio=Audio(kit.music(1, 2, 8000), 8000), sample_rate=16000)
    assert output.found["restored"] == "from 3,760 Hz"  # 0.94 of 4,000


def test_the_last_bit_above_a_cutoff_is_not_heard(restorers: dict[Any, Any]) -> None:
    """A file of 16 bits has noise in its empty band; with and without, the same is made."""
    clean = kit.dull(1, 2)
    noisy = Audio(clean.samples + 1e-5 * torch.randn(clean.samples.shape), 16000)
    made = [restorers["unet", 16000](audio=sound, cutoff=3900).audio.samples for sound in (clean, noisy)]
    assert float((made[0] - made[1]).abs().max()) < 3e-4
