"""`genkit evaluate restoring`: the numbers are those of the metrics, and a model that adds nothing gains nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from genkit import weights
from genkit.media.audio import Audio
from genkit.media.sampling import degrade, upsample
from genkit.metrics.audio import compare
from pipelines.audio_super_resolution.loading import header
from pipelines.audio_super_resolution.networks.unet import Config, UNet

RATE = 16000


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(10):
        noise = torch.randn(1, RATE, generator=torch.Generator().manual_seed(number)) / 10
        Audio(noise, RATE).save(folder / f"{number}.flac")
    return folder


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A U-Net whose last layer is zero: it gives back what it takes."""
    network = UNet(Config(2, 2))
    torch.nn.init.zeros_(network.last.weight)
    path = tmp_path_factory.mktemp("model") / "nothing.safetensors"
    about = header(network, rate=RATE, from_rates=[8000], preset="faithful")
    weights.write(path, {key: value.contiguous() for key, value in network.state_dict().items()}, about)
    return path


def test_what_adds_nothing_is_the_sinc(sounds: Path, nothing: Path, run: Callable[..., Any]) -> None:
    done = run("evaluate", "restoring", sounds, "--model", nothing, "--from-rates", "8000", "--held-out", 0.1, "--json")
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert report["facts"]["files"] == 1
    rows = {row["way"]: row for row in report["restored"]}
    assert set(rows) == {"sinc", "spline", "faithful"}
    true = Audio.open(sounds / "9.flac").samples[0]
    dull = degrade(true, RATE, 8000, filter="sinc")
    for method in ("sinc", "spline"):
        known = compare(true, upsample(dull, 8000, RATE, method=method, length=RATE), RATE, 0.94 * 4000)
        assert rows[method]["SNR (dB)"] == pytest.approx(known.snr, abs=6e-4)
        assert rows[method]["LSD-HF"] == pytest.approx(known.lsd_hf, abs=6e-4)
    assert rows["faithful"]["SNR (dB)"] == pytest.approx(rows["sinc"]["SNR (dB)"], abs=2e-3)
    assert rows["faithful"]["LSD-LF to input"] < 0.001
    assert rows["faithful"]["x real time"] > 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--from-rates", "16000"], "must be below 16000 Hz"),
        (["--held-out", "0.05"], "raise --held-out"),
        (["--model", "nobody"], "nobody"),
    ],
)
def test_bad_requests_get_a_line(
    sounds: Path, nothing: Path, run: Callable[..., Any], arguments: list[str], line: str
) -> None:
    done = run("evaluate", "restoring", sounds, *([] if "--model" in arguments else ["--model", nothing]), *arguments)
    assert done.status != 0
    assert line in done.err


def test_truth_below_the_rate_is_refused(tmp_path: Path, nothing: Path, run: Callable[..., Any]) -> None:
    Audio(torch.zeros(1, 8000), 8000).save(tmp_path / "low.wav")
    done = run("evaluate", "restoring", tmp_path / "low.wav", "--model", nothing, "--from-rates", "4000")
    assert done.status != 0
    assert "low.wav has 8000 Hz; the truth must have 16000" in done.err
