"""Both trainings: the data, the losses, a tiny network that learns an octave, and what comes out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genkit.errors import InputError, MediaError
from genkit.media.audio import Audio
from genkit.media.streaming import Reader
from genkit.training import loading
from genkit.training.data import Draw
from genkit.training.task import Setup
from genkit.training.trainer import Trainer
from pipelines.audio_super_resolution.loading import load
from pipelines.audio_super_resolution.train.data import Degradation, Files, Pairs, split, whole
from pipelines.audio_super_resolution.train.losses import energy_distance, phase_distance, spectra, waveform
from pipelines.audio_super_resolution.train.task import picture

RATE = 8000
SETUP = Setup(torch.device("cpu"))


def octave(seed: int, seconds: float = 2.0) -> Tensor:
    """A tone below 2 kHz and its octave above, in step with it: who hears the one can know the other."""
    draw = torch.Generator().manual_seed(seed)
    low, phase = 1000 + 800 * float(torch.rand((), generator=draw)), 6 * float(torch.rand((), generator=draw))
    angle = 2 * math.pi * low * torch.arange(int(seconds * RATE)) / RATE + phase
    return 0.3 * angle.sin() + 0.15 * (2 * angle).sin()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("octaves")
    for number in range(20):
        Audio(octave(number)[None], RATE).save(folder / f"{number:02}.flac")
    return folder


def trainer(kind: str, data: Path, out: Path, *more: str, say: Callable[[str], None] = lambda text: None) -> Trainer:
    settings = [f"data={data}", f"sample_rate={RATE}", "from_rates=[4000]", "log_every=1", *more]
    loaded = loading.load(f"audio_super_resolution/{kind}", overrides=settings, debug=True)
    return Trainer(loaded.task, loaded.recipe, out, config=loaded.config, device="cpu", say=say)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------------- losses


def test_waveform_is_the_published_root() -> None:
    made, true = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    assert float(waveform(made, true)) == pytest.approx((math.sqrt(5 + 1e-6) + 1e-3) / 2)


def test_spectra_are_the_log_spectral_distance_of_a_gain() -> None:
    true = torch.randn(2, 8192, generator=torch.Generator().manual_seed(0))
    assert float(spectra(true, true)) == pytest.approx(1e-3, abs=1e-6)
    assert float(spectra(true / 2, true)) == pytest.approx(0.5 + 0.602, abs=2e-3)


def test_spectra_reach_what_is_below_the_floor() -> None:
    true = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
    made = (1e-7 * torch.randn(1, 4096, generator=torch.Generator().manual_seed(1))).requires_grad_()
    spectra(made, true).backward()
    assert float(made.grad.abs().max()) > 0  # type: ignore[union-attr]


def test_phases_are_compared_round_the_circle() -> None:
    phase = 6 * torch.rand(1, 5, 7, generator=torch.Generator().manual_seed(0)) - 3
    assert float(phase_distance(phase + 2 * math.pi, phase)) == pytest.approx(0, abs=1e-5)
    assert float(phase_distance(phase + 0.25, phase)) == pytest.approx(0.25, abs=1e-5)  # its steps are the same
    ramp = phase + 0.5 * torch.arange(7)
    assert float(phase_distance(ramp, phase)) == pytest.approx(
        sum(abs(math.remainder(0.5 * n, 2 * math.pi)) for n in range(7)) / 7 + 0.5, abs=1e-4
    )


def test_energy_distance_prefers_hiss_of_its_own_to_what_is_least_wrong() -> None:
    draw = torch.Generator().manual_seed(0)
    true, one, other = torch.randn(3, 16, 4096, generator=draw) / 10
    pulses = torch.zeros(16, 4096)
    pulses[:, ::128] = 128**0.5 / 10  # as loud, and alike wherever one looks
    own = float(energy_distance(one, other, true))
    assert own < float(energy_distance(one, one, true)) - 0.1  # the same hiss twice says less
    assert own < float(energy_distance(pulses, pulses, true)) - 0.1
    assert own < float(energy_distance(one / 2, other / 2, true))
    assert own < float(energy_distance(2 * one, 2 * other, true))
    assert float(energy_distance(true, true, true)) < own  # what is known is known


# --------------------------------------------------------------------------------------------------------------- data


def test_the_last_of_every_ten_is_held_out(data: Path) -> None:
    learned, held = split(data, 0.1)
    assert [path.stem for path in held] == ["09", "19"]
    assert len(learned) == 18
    assert split(data, 0)[1] == []
    assert len(split(data, 0.25)[1]) == 5
    with pytest.raises(InputError, match="no files"):
        split(data.parent / "nothing", 0.1)


def test_a_crop_is_a_stretch_of_a_file_and_nothing_more_is_read(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sound = torch.randn(2, 60 * RATE, generator=torch.Generator().manual_seed(0)) / 8
    Audio(sound, RATE).save(tmp_path / "long.wav", bits=16)
    true = Audio.open(tmp_path / "long.wav").samples
    counts: list[int] = []
    read = Reader.read
    monkeypatch.setattr(Reader, "read", lambda self, start, count: counts.append(count) or read(self, start, count))
    crop = Files([tmp_path / "long.wav"], RATE).crop(torch.Generator().manual_seed(3), 4096)
    assert counts == [4096]
    assert crop.shape == (4096,)
    found = true.unfold(1, 4096, 1)
    assert any(bool((channel == crop).all(-1).any()) for channel in found)


def test_higher_rates_are_brought_down_and_lower_ones_left_out(data: Path, tmp_path: Path) -> None:
    Audio(octave(0)[None], RATE).resample(2 * RATE).save(tmp_path / "high.wav")
    Audio(octave(0)[None], RATE).resample(RATE // 2).save(tmp_path / "low.wav")
    said: list[str] = []
    source = Files([tmp_path / "high.wav", tmp_path / "low.wav"], RATE, Setup(torch.device("cpu"), say=said.append))
    assert [path.stem for path in source.paths] == ["high"]
    assert "low.wav has 4000 Hz" in said[0]
    spectrum = torch.fft.rfft(source.crop(torch.Generator().manual_seed(0), 8000)).abs()
    tone = 1000 + 800 * float(torch.rand((), generator=torch.Generator().manual_seed(0)))
    assert int(spectrum.argmax()) == pytest.approx(tone, abs=2)
    with pytest.raises(MediaError, match="none of 1"):
        Files([tmp_path / "low.wav"], RATE)


def test_a_short_file_is_followed_by_silence(tmp_path: Path) -> None:
    Audio(torch.ones(1, 100) / 2, RATE).save(tmp_path / "short.wav")
    crop = Files([tmp_path / "short.wav"], RATE).crop(torch.Generator().manual_seed(0), 300)
    assert crop[:100].tolist() == [0.5] * 100
    assert not crop[100:].any()


def test_a_pair_is_a_pure_function_of_its_draw(data: Path) -> None:
    pairs = Pairs(Files(split(data, 0)[0], RATE), Degradation(RATE, [4000]), 4096, 12.0)
    first, again, other = pairs[Draw(3, 1, 7)], pairs[Draw(3, 1, 7)], pairs[Draw(3, 2, 7)]
    assert torch.equal(first["dull"], again["dull"])
    assert torch.equal(first["true"], again["true"])
    assert not torch.equal(first["true"], other["true"])
    assert len(pairs) == 20 * 2 * RATE // 4096


def test_pairs_are_louder_and_softer_and_never_clip(data: Path) -> None:
    pairs = Pairs(Files(split(data, 0)[0], RATE), Degradation(RATE, [4000]), 4096, 24.0)
    peaks = [float(pairs[Draw(i)]["true"].abs().max()) for i in range(30)]
    assert max(peaks) <= 1 + 1e-6
    assert max(peaks) / min(peaks) > 8


def test_what_becomes_dull_has_no_treble_left() -> None:
    true = torch.randn(16000, generator=torch.Generator().manual_seed(0)) / 8
    lost = []
    for seed in range(40):
        dull = Degradation(16000, [4000, 8000])(true, torch.Generator().manual_seed(seed))
        assert dull.shape == true.shape
        assert dull.isfinite().all()
        power = torch.fft.rfft(dull).abs().square()
        lost.append(float(power[7300:].sum() / torch.fft.rfft(true).abs().square()[7300:].sum()))
    assert max(lost) < 0.5
    assert sorted(lost)[20] < 1e-3
    with pytest.raises(InputError, match="below the rate"):
        Degradation(8000, [8000])


def test_a_filter_that_rings_too_long_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    steep = {"filter": "chebyshev", "order": 12, "ripple": 3.0}
    monkeypatch.setattr("pipelines.audio_super_resolution.train.data.random_filter", lambda generator: steep)
    true = torch.randn(8000, generator=torch.Generator().manual_seed(0)) / 8
    dull = Degradation(192_000, [1000], plain=0.0)(true, torch.Generator().manual_seed(1))
    assert dull.isfinite().all()
    assert float(dull.std()) < float(true.std()) / 4


def test_validation_hears_the_beginning_of_a_file(tmp_path: Path) -> None:
    Audio(torch.stack((octave(0), -octave(0) / 2)), RATE).save(tmp_path / "a.wav")
    assert torch.allclose(whole(tmp_path / "a.wav", RATE, 0.5), octave(0)[: RATE // 2] / 4, atol=1e-6)


def test_spectrograms_stand_one_above_the_other() -> None:
    pictures = picture([torch.zeros(4096), octave(0)[:4096]])
    assert pictures.shape[:2] == (3, 2050)
    assert float(pictures.min()) >= 0
    assert float(pictures.max()) <= 1
    assert not pictures[:, :1025].any()
    assert float(pictures[:, 1025:].max()) > 0.9


# ------------------------------------------------------------------------------------------------------------ training


def test_a_tiny_unet_learns_an_octave(data: Path, tmp_path: Path) -> None:
    run = trainer(
        "unet",
        data,
        tmp_path,
        *("steps=300", "batch_size=8", "rate=0.005", "ema=null", "validate_every=300", "task.cuts=0"),
        *("task.blocks=4", "task.width=8", "crop=2048", "task.spectra=0", "task.gain=3"),
        *("sample_every=null", "checkpoint.every=300"),
    )
    before = run.task.validate()["snr"]
    run.train()
    after = next(line["valid/snr"] for line in lines(tmp_path) if "valid/snr" in line)
    assert before == pytest.approx(7, abs=1)  # the octave is missing: 10 log10(5)
    assert after > before + 4  # decibels; another 2 and more on the machine it was written on


@pytest.mark.parametrize("kind", ["unet", "spectral"])
def test_the_recipe_runs_resumes_exactly_and_gives_a_model(kind: str, data: Path, tmp_path: Path) -> None:
    whole_run = trainer(kind, data, tmp_path / "whole")
    whole_run.train()
    preset = {"unet": "faithful", "spectral": "bright"}[kind]
    model = load(tmp_path / "whole" / "export")
    assert (model.architecture, model.rate, model.from_rates, model.preset) == (kind, RATE, (4000,), preset)
    parts = trainer(kind, data, tmp_path / "parts")
    assert not parts.train(max_minutes=0).finished
    parts = trainer(kind, data, tmp_path / "parts")
    assert parts.train(resume=True).finished
    for name, module in whole_run.task.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, parts.task.modules[name].state_dict()[key]), f"{name}.{key}"
    samples = sorted(path.name for path in (tmp_path / "whole" / "samples").iterdir())
    assert samples == [f"00000004-4000-{clip}{end}" for clip in (0, 1) for end in ("-spectrogram.png", ".wav")]
    measured = [line for line in lines(tmp_path / "whole") if "valid/snr" in line]
    assert [line["step"] for line in measured] == [2, 4]
    assert all(f"valid/{name}-4000" in measured[0] for name in ("snr", "lsd", "lsd_lf", "lsd_hf"))


def test_critics_come_in_late(data: Path, tmp_path: Path) -> None:
    run = trainer("spectral", data, tmp_path, "task.critics_from=3", "validate_every=null", "sample_every=null")
    before = [p.clone() for p in run.task.modules["critics"].parameters()]
    seen: list[bool] = []
    run.progress = lambda *_, **__: seen.append(
        all(torch.equal(a, b) for a, b in zip(before, run.task.modules["critics"].parameters(), strict=True))
    )
    run.train()
    assert seen == [True, True, True, False]
    rows = [line for line in lines(tmp_path) if "train/loss" in line]
    assert ["train/critics" in row for row in rows] == [False, False, False, True]


def test_a_training_goes_on_from_a_model(data: Path, tmp_path: Path) -> None:
    trainer("spectral", data, tmp_path / "first").train()
    model = tmp_path / "first" / "export" / "bright.safetensors"
    known = load(model).network.state_dict()
    energetic = ("task.energy=1", "task.amplitude=0", "task.phase=0", "task.complex=0", "critics=0")
    second = trainer("spectral", data, tmp_path / "second", f"start={model}", *energetic)
    assert all(torch.equal(value, known[name]) for name, value in second.task.network.state_dict().items())
    second.train()
    assert "train/energy" in lines(tmp_path / "second")[0]
    assert not all(torch.equal(value, known[name]) for name, value in second.task.network.state_dict().items())
    with pytest.raises(InputError, match=r"start: .*bright.safetensors is Config\(channels=8"):
        trainer("spectral", data, tmp_path / "third", f"start={model}", "task.channels=4")


def test_rates_that_cannot_be_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"from_rates \[8000\]"):
        trainer("unet", data, tmp_path, "from_rates=[8000]")
