"""What a run leaves to be read: `metrics.jsonl` and samples as files, and TensorBoard's where the `train` extra is."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Log", "Ticker"]


class Log:
    """Writes numbers and samples under a run's folder. Used in the main process only.

    step: where a resumed run begins; what an earlier run logged after it is taken out.
    """

    def __init__(self, folder: Path, *, step: int, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self._forget_after(step)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = self._tensorboard(step)

    def _forget_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text("utf-8").splitlines(keepends=True):
            try:
                if line.endswith("\n") and json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):  # the torn last line of a run that was killed
                continue
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(kept), "utf-8")
        temporary.replace(self.path)

    def _tensorboard(self, step: int) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.say("no TensorBoard files: install genkit-media[train] for them (metrics.jsonl holds the numbers)")
            return None
        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1 if step else None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl and one point of each TensorBoard curve."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def samples(self, step: int, values: Mapping[str, Any]) -> None:
        """Pictures, sounds and pieces, as files under samples/ and in TensorBoard."""
        folder = self.folder / "samples"
        for name, value in values.items():
            folder.mkdir(exist_ok=True)
            self._sample(step, name, value, folder / f"{step:08d}-{name.replace('/', '-')}")
        if self._board:
            self._board.flush()

    def _sample(self, step: int, name: str, value: Any, path: Path) -> None:
        kind = getattr(value, "__genkit_media__", "image")
        if kind == "audio":
            value.save(path.with_suffix(".wav"))
            if self._board:
                sound = torch.as_tensor(value.samples).float().mean(0, keepdim=True).clamp(-1, 1).cpu()
                self._board.add_audio(f"sample/{name}", sound, step, value.sample_rate)
            return
        if kind == "midi":
            value.save(path.with_suffix(".mid"))
            value = value.roll()
        picture = _picture(value)
        picture.save(path.with_suffix(".png"))
        if self._board:
            self._board.add_image(f"sample/{name}", picture.tensor(), step)

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()


def _picture(value: Any) -> Any:
    from genkit.media.image import Image

    if isinstance(value, Tensor):
        return Image.from_tensor(value.detach().float().cpu().clamp(0, 1))
    return value if hasattr(value, "__genkit_media__") else Image.open(value)


class Ticker:
    """Steps a second between two reports."""

    def __init__(self, step: int) -> None:
        self._step, self._since = step, time.monotonic()

    def words(self, step: int, total: int) -> str:
        """ "3.1 it/s, 12 min left"."""
        now = time.monotonic()
        rate = (step - self._step) / max(now - self._since, 1e-9)
        self._step, self._since = step, now
        return f"{rate:.3g} it/s, {(total - step) / max(rate, 1e-9) / 60:.3g} min left"
