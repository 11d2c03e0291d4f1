"""What the tests of batches share: recipes from text, and a pipeline that fails in every way a pipeline can."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from plugin_kit import packaged

from genkit.batch import plan, recipe
from genkit.batch.job import Job

FLAKY = '''
"""Fails as told."""
import errno, time
from pathlib import Path
from typing import ClassVar
from genkit.errors import InputError
from genkit.pipeline import Output, Params, Pipeline

class FlakyParams(Params):
    fail: str = ""
    tries: str = ""
    sleep: float = 0

class Flaky(Pipeline):
    name = "test-flaky"
    Params: ClassVar = FlakyParams
    def run(self, batch, progress):
        import torch
        from genkit.media.image import Image
        for params in batch:
            if params.tries:  # a file with a line for each try
                with Path(params.tries).open("a") as log:
                    log.write(f"{params.seed} {len(batch)}\\n")
            time.sleep(params.sleep)
            if params.fail == "input":
                raise InputError("the input is wrong")
            if params.fail == "crash":
                raise RuntimeError("something broke")
            if params.fail == "once" and len(Path(params.tries).read_text().splitlines()) == 1:
                raise RuntimeError("the first try breaks")
            if params.fail == "full":
                raise OSError(errno.ENOSPC, "No space left on device")
        return [Output(images=[Image.from_tensor(torch.full((3, 4, 4), (p.seed or 0) % 7 / 7))]) for p in batch]
    @classmethod
    def batch_key(cls, params):
        return "all"
'''


@pytest.fixture
def flaky(noise_pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Installs `test-flaky` beside the shared test pipelines, for child processes too."""
    from genkit import registry

    folder = packaged(tmp_path / "plugin", "flaky", "Flaky", FLAKY)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(folder), os.environ["PYTHONPATH"])))
    registry._entries.cache_clear()
    yield "test-flaky"
    sys.modules.pop("flaky_test_pipeline", None)


@pytest.fixture
def jobs(noise_pipeline: str, tmp_path: Path) -> Callable[..., list[Job]]:
    """The jobs of a recipe given as text; its folder is `tmp_path`. A line "pipeline: test-noise" is put first."""

    def planned(text: str, root: Path | None = None, **options: object) -> list[Job]:
        text = text if "pipeline:" in text else f"pipeline: {noise_pipeline}\n{text}"
        return plan.make(recipe.parse(text, root=root or tmp_path, **options)).jobs  # type: ignore[arg-type]

    return planned
