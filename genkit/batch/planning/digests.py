"""Files and models by their content, read once however many jobs use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from genkit.pipeline import Pipeline

__all__ = ["Digests"]


def _file_digest(path: Path) -> str:
    from genkit.media.provenance import digest_file

    return digest_file(path)


def _model_digest(ref: str, models: Mapping[str, Any]) -> str:
    from genkit.weights import digest

    return digest(ref, models)


class Digests:
    """The digest of each file and model, read once however many jobs use it."""

    def __init__(
        self,
        file: Callable[[Path], str] = _file_digest,
        model: Callable[[str, Mapping[str, Any]], str] = _model_digest,
    ) -> None:
        self.file = cache(file)
        self._model = model
        self._models: dict[tuple[type[Pipeline], str], str] = {}

    def model(self, kind: type[Pipeline], ref: str) -> str:
        if (kind, ref) not in self._models:
            self._models[kind, ref] = self._model(ref, kind.models)
        return self._models[kind, ref]
