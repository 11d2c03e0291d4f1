"""Pipelines small enough for any test: seeded noise, a tone, a tune.

Installed by the fixture `noise_pipeline` through a .dist-info folder, as a third party's package would be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from genkit.evaluation import Evaluation, Place, Report
from genkit.fields import AudioFile, ImageFile, Pixels, Slider
from genkit.pipeline import Closed, Output, Params, Pipeline, Progress


class NoiseParams(Params):
    width: Annotated[int, Pixels(1, 4096)] = Field(32, description="Width of the picture.")
    height: Annotated[int, Pixels(1, 4096)] = Field(24, description="Height of the picture.")
    content: ImageFile | None = Field(None, description="A picture that the noise is blended with.")
    strength: Annotated[float, Slider(0, 1)] = Field(0.5, description="How much of the noise is in the blend.")
    count: int = Field(1, ge=1, le=8, description="How many pictures, each from a seed of its own.")


class Noise(Pipeline):
    name = "test-noise"
    Params: ClassVar[type[Params]] = NoiseParams
    produces = "image"

    def run(self, batch: Sequence[Any], progress: Progress) -> list[Output]:
        outputs = []
        for step, params in enumerate(batch, 1):
            seeds = [params.seed + i for i in range(params.count)]
            outputs.append(Output(images=[self._picture(params, seed) for seed in seeds], seeds=seeds))
            progress(step, len(batch))
        return outputs

    def _picture(self, params: NoiseParams, seed: int) -> Any:
        import torch

        from genkit.media.image import Image

        pixels = torch.rand(3, params.height, params.width, generator=torch.Generator().manual_seed(seed))
        if params.content is not None:
            content = Image.open(params.content).pil.resize((params.width, params.height))
            pixels = params.strength * pixels + (1 - params.strength) * Image(content).tensor()
        return Image.from_tensor(pixels)


class ToneParams(Params):
    pitch: Annotated[float, Slider(20, 5000, "Hz")] = Field(440.0, description="Frequency of the tone.")
    source: AudioFile | None = Field(None, description="A sound that is mixed in.")


class Tone(Pipeline):
    name = "test-tone"
    Params: ClassVar[type[Params]] = ToneParams
    produces = "audio"
    evaluations: ClassVar[Mapping[str, str]] = {"test-levels": "genkit_test_pipelines:Levels"}

    def run(self, batch: Sequence[Any], progress: Progress) -> list[Output]:
        import torch

        from genkit.media.audio import Audio

        outputs = []
        for params in batch:
            time = torch.arange(11025) / 22050
            noise = torch.rand(11025, generator=torch.Generator().manual_seed(params.seed))
            outputs.append(
                Output(audio=Audio(0.5 * torch.sin(6.2831853 * params.pitch * time)[None] + 0.1 * noise, 22050))
            )
        return outputs


class LevelsParams(Closed):
    reference: Place = Field(description="The true sound.")
    estimate: Place = Field(description="The sound to measure.")
    floor: Annotated[float, Slider(0, 1)] = Field(0.0, description="Levels below it count as it.")


class Levels(Evaluation):
    """How far the levels of two sounds are apart."""

    Params: ClassVar[type[Closed]] = LevelsParams
    arguments = ("reference", "estimate")
    examples = ("genkit evaluate test-levels true.wav mine.wav",)

    def run(self, params: Any, progress: Progress) -> Report:
        from genkit.media.audio import Audio

        sounds = [Audio.open(path) for path in (params.reference, params.estimate)]
        levels = [max(float(abs(sound.samples).max()), params.floor) for sound in sounds]
        progress(2, 2)
        rows = [{"measure": "peak", "difference": levels[1] - levels[0], "nothing": float("nan")}]
        return Report({"sounds": 2}, {"levels": rows}, {"each": [{"peak": level} for level in levels]}, ["a note"])


class Tune(Pipeline):
    name = "test-tune"
    Params: ClassVar[type[Params]] = Params
    produces = "midi"

    def run(self, batch: Sequence[Any], progress: Progress) -> list[Output]:
        import random

        from symusic import Note, Score, Track

        from genkit.media.midi import Midi

        outputs = []
        for params in batch:
            draw = random.Random(params.seed)
            score = Score(480)
            track = Track(program=0, is_drum=False, name="tune")
            for i in range(8):
                track.notes.append(Note(240 * i, 240, draw.randrange(50, 80), 90))
            score.tracks.append(track)
            outputs.append(Output(midi=Midi(score)))
        return outputs
