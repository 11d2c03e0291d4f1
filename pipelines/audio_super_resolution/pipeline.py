"""The missing treble of a dull recording: speech, music, old transfers, low-rate and MP3-cut files.

The recording's cutoff is found, what lies above it is made by a network, and what lies below passes through as it was.
No torch is imported here; `run` opens the restorer.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

import genkit.pipeline
from genkit.fields import AudioFile, Hint, Number, Seed
from genkit.pipeline import Output, Progress
from pipelines.audio_super_resolution.models import DEFAULT_PRESET, MODELS, RATES, shipped

if TYPE_CHECKING:
    from genkit.runtime import Runtime

__all__ = ["AudioSuperResolution"]


class Params(genkit.pipeline.Params):
    """What a recording is restored by."""

    audio: Annotated[AudioFile, Hint(section="main", short="a")] = Field(
        description="The dull recording: any rate, length and number of channels."
    )
    sample_rate: Annotated[Literal[16000, 44100, 48000] | None, Hint(section="main", unit="Hz")] = Field(
        None,
        description="Rate of the result in Hz. By default the lowest that is not below the recording's own and has "
        "room above its cutoff; speech-16k makes 16000, piano-44k the others.",
    )
    preset: Annotated[Literal["faithful", "bright"] | None, Hint(section="main")] = Field(
        None,
        description="bright makes all of the treble, and sounds like it; faithful only what it is sure of, nearest to "
        "the true waveform. By default bright, or what the model was trained for.",
    )
    cutoff: Annotated[float | None, Number(100, 24_000, "Hz"), Hint(section="main")] = Field(
        None,
        description="Restore from here on; what is above is taken for missing, even if something is there. By default "
        "found in the recording.",
    )
    seed: Seed = Field(0, description="Changes nothing: no chance is involved.")


Item: TypeAlias = Params  # what `Params` means inside the class, where the name is its own


class AudioSuperResolution(genkit.pipeline.Pipeline):
    """Audio super-resolution. See `Params` for what a call takes."""

    name = "audio-super-resolution"
    Params = Params
    produces = "audio"
    models = MODELS
    examples: ClassVar[Sequence[str]] = (
        "genkit audio-super-resolution --audio dull.wav --sample-rate 16000 -o bright.wav",
        "genkit audio-super-resolution -a piano-22k.flac --preset faithful -o piano-44k.flac",
        "genkit audio-super-resolution -a old-mp3.mp3 --cutoff 11000 --sample-rate 48000 -o restored.flac",
        "genkit audio-super-resolution -a dull.wav --model AP-BWE/g_8kto16k -o bright.wav",
    )
    trainings: ClassVar[Mapping[str, str]] = {
        "audio-unet": "pipelines.audio_super_resolution.train.unet:AudioUNet",
        "audio-spectral": "pipelines.audio_super_resolution.train.spectral:AudioSpectral",
    }
    evaluations: ClassVar[Mapping[str, str]] = {
        "audio": "pipelines.audio_super_resolution.evaluate:AudioEvaluation",
        "restoring": "pipelines.audio_super_resolution.evaluate_restoring:RestoringEvaluation",
    }

    def __init__(self, model: str | Path | None, runtime: Runtime) -> None:
        super().__init__(model, runtime)
        from pipelines.audio_super_resolution.restoring import Restorer

        self.restorer = Restorer(model, runtime)

    @classmethod
    def load(cls, model: str | Path | None, runtime: Runtime) -> AudioSuperResolution:
        """model: `speech-16k`, `piano-44k`, a file that `genkit train` exported, or a generator of AP-BWE; None for
        what ships and fits. Raises ModelError."""
        return cls(model, runtime)

    @classmethod
    def model_refs(cls, model: str | None, params: genkit.pipeline.Params) -> dict[str, str]:
        """Without a model or a rate what the recording holds decides between those that ship: both are named."""
        assert isinstance(params, Params)
        if model is not None and str(model) not in MODELS:
            return {"model": str(model)}
        preset = params.preset or DEFAULT_PRESET
        if model is None and params.sample_rate is None:
            return {alias: shipped(alias, preset) for alias in MODELS}
        alias = str(model or next(name for name, rate in RATES.items() if rate >= min(params.sample_rate or 0, 44100)))
        return {"model": shipped(alias, preset)}

    @classmethod
    def describe_model(cls, path: Path) -> dict[str, Any] | None:
        from pipelines.audio_super_resolution.loading import describe

        return describe(path)

    @classmethod
    def batch_key(cls, params: Any) -> Hashable:
        """Any recordings may be restored side by side."""
        return cls.name

    def run(self, batch: Sequence[Item], progress: Progress) -> list[Output]:
        """One sound for each item; a long one stays on disk (a `Recording`). Progress counts milliseconds."""
        return self.restorer.make(batch, progress)
