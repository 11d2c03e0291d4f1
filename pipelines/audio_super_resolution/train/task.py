"""What both architectures' trainings have in common: data, validation, samples and the file that comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from genkit import weights
from genkit.errors import InputError
from genkit.fields import ModelFile
from genkit.media.audio import Audio
from genkit.media.sampling import degrade
from genkit.metrics.audio import compare, log_spectrum
from genkit.training.schedules import scheduled
from genkit.training.task import Folder, Folders, Setup, Task, TaskConfig
from pipelines.audio_super_resolution.bands import KEPT, keep_band
from pipelines.audio_super_resolution.loading import Network, header, load
from pipelines.audio_super_resolution.train.data import Degradation, Files, Music, Pairs, Source, split, whole
from pipelines.audio_super_resolution.train.notes import Notes

__all__ = ["AudioConfig", "AudioTask"]

START = 10.0  # seconds into a song, where all of it plays


class AudioConfig(TaskConfig):
    data: Folders = Field(description="Folders of sounds to learn from, at `sample_rate` or above; with `notes`, MIDI.")
    valid: Folder | None = Field(None, description="Folder of the same for validation, none of it in `data`.")
    valid_share: float = Field(0.1, ge=0, le=0.5, description="Share of the files (and notes) that is held out.")
    valid_clips: int = Field(8, ge=1, le=1000, description="Held-out clips that a validation hears.")
    valid_seconds: float = Field(3.0, ge=0.1, le=600, description="Seconds of each.")
    notes: Folder | None = Field(None, description="Folder of single recorded notes that play the MIDI in `data`.")

    start: ModelFile | None = Field(None, description="A trained model to go on from, of the same shape and rate.")
    preset: Literal["faithful", "bright"] = Field("faithful", description="What the model is for; in its file.")
    sample_rate: int = Field(16_000, ge=1000, le=192_000, description="Rate of the restored sound, Hz.")
    from_rates: list[int] = Field([4000, 8000], min_length=1, description="Rates of the sounds to restore, Hz.")
    cuts: float = Field(0.2, ge=0, le=1, description="Share of crops cut off anywhere, as lossy encoders do.")
    crop: int = Field(8192, ge=2048, le=2**22, description="Samples of a crop.")
    gain: float = Field(12.0, ge=0, le=40, description="Decibels by which crops are made louder or softer, at most.")

    waveform: float = Field(1.0, ge=0, le=1e6, description="Weight of the waveform's root mean square error.")
    spectra: float = Field(0.0, ge=0, le=1e6, description="Weight of the spectra's distance at several resolutions.")
    rate: float = Field(1e-4, gt=0, le=1, description="Highest learning rate.")
    schedule: Literal["cosine", "one-cycle", "linear", "trapezoid"] = Field(
        "trapezoid", description="How the rate falls; trapezoid: over the last two fifths."
    )
    warmup: float = Field(0.02, ge=0, lt=1, description="Share of the steps over which the rate rises.")

    @model_validator(mode="after")
    def _rates(self) -> AudioConfig:
        if min(self.from_rates) < 1 or max(self.from_rates) >= self.sample_rate:
            raise ValueError(f"from_rates {self.from_rates} must be above 0 and below sample_rate {self.sample_rate}")
        return self


class AudioTask(Task):
    """A network that gives sounds their treble back; a subclass makes it and says what it is to learn."""

    best = ("lsd", "min")

    def __init__(self, config: Any, setup: Setup, network: Network) -> None:
        super().__init__(config, setup)
        self.network = _begun(network, config.start) if config.start else network
        self.modules = {"network": self.network}
        self.source, self.clips = self._sounds()
        setup.say(f"{self.source.seconds / 60:,.1f} minutes to learn from; {len(self.clips)} clips held out")

    def optimise(self, name: str, parameters: Any, betas: tuple[float, float]) -> None:
        """Adam without weight decay, for what is registered under `name`."""
        c = self.config
        optimizer = torch.optim.Adam(parameters, c.rate, betas=betas)
        self.optimizers[name] = optimizer
        self.schedules[name] = scheduled(optimizer, c.schedule, self.setup.steps, c.warmup)

    def _sounds(self) -> tuple[Source, list[Tensor]]:
        c, setup = self.config, self.setup
        if c.notes:
            return self._music(c.notes)
        learned, held = [], []
        for folder in c.data:
            paths, out = split(folder, 0 if c.valid else c.valid_share)
            learned += paths
            held += out
        if c.valid:
            held = split(c.valid, 0)[0]
        if not learned:
            raise InputError("no file is left to learn from; lower valid_share or give more files")
        every = max(1, len(held) // c.valid_clips)
        clips = [whole(path, c.sample_rate, c.valid_seconds) for path in held[::every][: c.valid_clips]]
        return Files(learned, c.sample_rate, setup), clips

    def _music(self, notes: Path) -> tuple[Source, list[Tensor]]:
        """Held out are notes, and songs where `valid` names some: no validation plays a note that was learnt."""
        c, setup = self.config, self.setup
        if not c.valid_share:
            return Music.of(c.data, Notes(notes, rate=c.sample_rate, setup=setup), setup), []
        learned, held = Notes.split(notes, c.valid_share, rate=c.sample_rate, setup=setup)
        valid = Music.of([c.valid] if c.valid else c.data, held).songs
        count = int(c.valid_seconds * c.sample_rate)
        chosen = range(0, len(valid), max(1, len(valid) // c.valid_clips))[: c.valid_clips]
        return Music.of(c.data, learned, setup), [valid.crop(song, START, count) for song in chosen]

    def dataset(self) -> Pairs:
        c = self.config
        return Pairs(self.source, Degradation(c.sample_rate, c.from_rates, cuts=c.cuts), c.crop, c.gain)

    def restored(self) -> list[tuple[int, Tensor, Tensor, Tensor]]:
        """For each held-out clip and lower rate: that rate, and the dull, restored and true samples [T]."""
        c = self.config
        found = []
        for true in self.clips:
            for low in c.from_rates:
                dull = degrade(true, c.sample_rate, low, filter="sinc", restore="sinc")
                made = self.network.restore(dull[None].to(self.setup.device))[0].float().cpu()
                found.append((low, dull, keep_band(dull, made, KEPT * low / 2, c.sample_rate), true))
        return found

    def validate(self) -> dict[str, float]:
        """SNR, LSD, LSD-LF and LSD-HF, means over the clips: of all lower rates, and of each."""
        rows: dict[str, list[float]] = {}
        for low, _, made, true in self.restored():
            found = compare(true, made, self.config.sample_rate, KEPT * low / 2)
            for name in ("snr", "lsd", "lsd_lf", "lsd_hf"):
                for key in (name, f"{name}-{low}"):
                    rows.setdefault(key, []).append(getattr(found, name))
        return {key: sum(values) / len(values) for key, values in rows.items()}

    def sample(self) -> dict[str, Any]:
        """The first clips restored, and spectrograms: dull, restored and true, one above the other."""
        found: dict[str, Any] = {}
        for number, (low, dull, made, true) in enumerate(self.restored()[: 2 * len(self.config.from_rates)]):
            name = f"{low}-{number // len(self.config.from_rates)}"
            found[name] = Audio(made[None].clamp(-1, 1), self.config.sample_rate)
            found[f"{name}-spectrogram"] = picture([dull, made, true])
        return found

    def export(self, folder: Path) -> None:
        c = self.config
        tensors = {key: value.half().contiguous() for key, value in self.network.state_dict().items()}
        about = header(self.network, rate=c.sample_rate, from_rates=c.from_rates, preset=c.preset)
        weights.write(folder / f"{c.preset}.safetensors", tensors, about)


def _begun(network: Network, start: str | Path) -> Network:
    """The network with the weights of a model. Raises ModelError, or InputError where it is another's."""
    model = load(start)
    if model.network.config != network.config:
        raise InputError(
            f"start: {start} is {model.network.config}, not {network.config}; give the recipe its settings"
        )
    network.load_state_dict(model.network.state_dict())
    return network


def picture(sounds: list[Tensor]) -> Tensor:
    """Spectrograms of sounds [T], one above the other, [3, H, W] in 0..1: from 120 dB below the loudest in black."""
    levels = [log_spectrum(torch.nn.functional.pad(sound, (0, max(0, 2048 - len(sound))))[None])[0] for sound in sounds]
    top = max(float(level.max()) for level in levels)
    rows = [((level - top) / 12 + 1).clamp(0, 1).flip(0) for level in levels]
    return torch.cat(rows)[None].expand(3, -1, -1)
