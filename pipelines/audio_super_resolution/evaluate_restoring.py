"""How well a model restores: true sounds are made dull, restored, and compared with themselves.

`restoring` of `genkit evaluate`, what the model cards are measured with. Beside each preset stand the two ways back
that know nothing: band-limited interpolation (sinc) and the cubic spline.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from genkit.errors import InputError
from genkit.evaluation import Evaluation, Place, Report
from genkit.fields import Hint
from genkit.pipeline import Closed, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.audio_super_resolution.pipeline import AudioSuperResolution

__all__ = ["RestoringEvaluation"]


class Params(Closed):
    """What is made dull, how, and what restores it."""

    sounds: Place = Field(description="A folder of true sounds at the model's rate or above, or one of them.")
    model: Annotated[str, Hint(kind="model", short="m")] = Field(
        "speech-16k", description="The model that restores: an alias, or a file that `genkit train` exported."
    )
    from_rates: Annotated[list[Annotated[int, Field(ge=1000, le=192_000)]], Field(min_length=1), Hint(unit="Hz")] = (
        Field([4000, 8000], description="Rates that the sounds are brought down to.")
    )
    filter: Literal["sinc", "chebyshev"] = Field(
        "sinc", description="How: as good resamplers do, or as scipy.signal.decimate (Kuleshov et al. 2017)."
    )
    held_out: float = Field(
        0.0, ge=0, le=0.5, description="Only what a training with this `valid_share` held out; 0: every file."
    )
    limit: int | None = Field(None, ge=1, description="At most so many files, evenly from all.")
    seconds: float = Field(60.0, gt=0, le=600, description="At most so much of each, from its beginning.")
    device: str | None = Field(None, description="cpu, cuda, cuda:1, mps or xpu; by default the best there is.")


@dataclass
class Tally:
    """The measurements of one way back from one rate. snr in dB; kept: LSD-LF against the dull sound itself."""

    snr: list[float] = field(default_factory=list)
    lsd: list[float] = field(default_factory=list)
    lsd_lf: list[float] = field(default_factory=list)
    lsd_hf: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    sound: float = 0.0
    """Seconds of it."""
    work: float = 0.0
    """Seconds that it took."""

    def row(self) -> dict[str, float]:
        numbers = {name: _mean(values) for name, values in asdict(self).items() if isinstance(values, list)}
        titles = {"snr": "SNR (dB)", "lsd": "LSD", "lsd_lf": "LSD-LF", "lsd_hf": "LSD-HF", "kept": "LSD-LF to input"}
        return {titles[name]: round(value, 3) for name, value in numbers.items()} | {
            "x real time": round(self.sound / self.work, 1)
        }


class RestoringEvaluation(Evaluation):
    """How well a model restores SOUNDS: each is brought down to a lower rate, restored, and compared with itself.

    SNR in dB (higher is better) and LSD (lower is better) are those of `genkit evaluate audio`; LSD-LF below 0.94 of
    half the lower rate, LSD-HF above it; LSD-LF to input tells how far the band that was there has been touched. The
    last column is the speed, everything from dull samples to restored ones included.
    """

    Params: ClassVar[type[Closed]] = Params
    arguments = ("sounds",)
    examples = (
        "genkit evaluate restoring speech --held-out 0.1",
        "genkit evaluate restoring rendered --model piano-44k --from-rates 11025 --from-rates 22050",
    )

    def run(self, params: Any, progress: Progress) -> Report:
        """Raises InputError, MediaError, ModelError, DeviceError."""
        from genkit.runtime import Runtime
        from pipelines.audio_super_resolution.pipeline import AudioSuperResolution

        paths, (rate, presets) = _paths(params), _asked(params.model)
        if max(params.from_rates) >= rate:
            raise InputError(f"from_rates {params.from_rates} must be below {rate} Hz, the rate of {params.model!r}")
        restorer = AudioSuperResolution.load(params.model, Runtime.pick(device=params.device))
        tallies: dict[tuple[int, str], Tally] = {}
        heard, total, done = 0.0, len(paths) * len(params.from_rates), 0
        for path in paths:
            true = _true(path, rate, params.seconds)
            heard += true.shape[-1] / rate
            for low in params.from_rates:
                for way, made, kept, work in _ways(true, rate, low, params.filter, restorer, presets):
                    _add(tallies.setdefault((low, way), Tally()), true, made, kept, rate, low, work)
                done += 1
                progress(done, total, note=path.name)
        rows = [{"from (Hz)": low, "way": way, **tally.row()} for (low, way), tally in tallies.items()]
        facts = {"model": params.model, "files": len(paths), "seconds": round(heard, 1), "Hz": rate}
        return Report(facts, {"restored": sorted(rows, key=lambda row: row["from (Hz)"])})


def _asked(model: str) -> tuple[int, Sequence[str]]:
    """Rate in Hz, and presets, of a model. Raises ModelError."""
    from genkit import weights
    from pipelines.audio_super_resolution.loading import PRESETS, load
    from pipelines.audio_super_resolution.models import MODELS, RATES

    if model in MODELS:
        return RATES[model], PRESETS
    own = load(weights.locate(model, MODELS))
    return own.rate, (own.preset,)


def _paths(params: Params) -> list[Path]:
    """The files to measure. Raises InputError where there are none."""
    from pipelines.audio_super_resolution.train.data import split

    if not params.sounds.is_dir():
        return [params.sounds]
    learned, held = split(params.sounds, params.held_out)
    paths = held if params.held_out else learned
    if not paths:
        raise InputError(f"{params.sounds} has too few files for a share of {params.held_out:g}; raise --held-out")
    count = min(params.limit or len(paths), len(paths))
    return [paths[n * len(paths) // count] for n in range(count)]


def _true(path: Path, rate: int, seconds: float) -> Tensor:
    """[T] at the model's rate. Raises MediaError, InputError."""
    from genkit.media.streaming import Reader
    from pipelines.audio_super_resolution.train.data import whole

    with Reader(path) as sound:
        if sound.sample_rate < rate:
            raise InputError(f"{path} has {sound.sample_rate} Hz; the truth must have {rate} at least")
    return whole(path, rate, seconds)


def _ways(
    true: Tensor, rate: int, low: int, filter: str, restorer: AudioSuperResolution, presets: Sequence[str]
) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """Name, restored sound [T], the dull sound at this rate [T] and seconds of work, of each way back."""
    from genkit.media.audio import Audio
    from genkit.media.sampling import degrade, upsample

    dull = degrade(true, rate, low, filter=filter)
    restored: dict[str, tuple[Tensor, float]] = {}
    for method in ("sinc", "spline"):
        begun = time.perf_counter()
        found = upsample(dull, low, rate, method=method, length=len(true))
        restored[method] = found, time.perf_counter() - begun
    for preset in presets:
        begun = time.perf_counter()
        output = restorer(audio=Audio(dull[None], low), preset=preset, sample_rate=rate)
        assert output.audio is not None
        restored[preset] = output.audio.samples[0, : len(true)], time.perf_counter() - begun
    for name, (made, work) in restored.items():
        yield name, made, restored["sinc"][0], work


def _add(tally: Tally, true: Tensor, made: Tensor, kept: Tensor, rate: int, low: int, work: float) -> None:
    from genkit.metrics.audio import compare
    from pipelines.audio_super_resolution.bands import KEPT

    found = compare(true, made, rate, KEPT * low / 2)
    for measure in ("snr", "lsd", "lsd_lf", "lsd_hf"):
        getattr(tally, measure).append(getattr(found, measure))
    tally.kept.append(compare(kept, made, rate, KEPT * low / 2).lsd_lf)
    tally.sound += len(true) / rate
    tally.work += work


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
