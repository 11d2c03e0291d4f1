"""A batch that runs out of memory: what was given up is entered, kept for later jobs, undone where it was in vain."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_kit import packaged

from genkit import registry
from genkit.batch import journal, plan, recipe, runner
from genkit.batch.engines.worker import Worker
from genkit.batch.store import Folder

NARROW = '''
"""Noise, whole or in strips, on a machine that has room for ROOM values at once."""
from pathlib import Path
from typing import ClassVar
import genkit.pipeline
from genkit.pipeline import Output, Params, Pipeline

ROOM = 4 * 3 * 16 * 16

class NarrowParams(Params):
    side: int = 16
    broken: bool = False

class Narrow(Pipeline):
    name = "test-narrow"
    Params: ClassVar = NarrowParams
    together = 8
    loads: ClassVar[list] = []
    def __init__(self, model, runtime):
        super().__init__(model, runtime)
        self.strips = 1
        self.loads.append(model)
    def run(self, batch, progress):
        import torch
        from genkit.media.image import Image
        if any(params.broken for params in batch):
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        noise = self.runtime.noise([params.seed for params in batch], (3, batch[0].side, batch[0].side)).sigmoid()
        if noise.numel() > ROOM * self.strips:
            torch.empty(2**60)
        return [Output(images=[Image.from_tensor(picture)]) for picture in noise]
    def relieve(self):
        if self.strips == 2:
            return None
        self.strips = 2
        return "works in strips"
    @classmethod
    def batch_key(cls, params):
        return params.side
'''


@pytest.fixture
def narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str | None]]:
    """Installs `test-narrow`; gives the models that it was loaded with."""
    monkeypatch.syspath_prepend(str(packaged(tmp_path / "plugin", "narrow", "Narrow", NARROW)))
    registry._entries.cache_clear()
    yield registry.get("test-narrow").loads  # type: ignore[attr-defined]
    sys.modules.pop("narrow_test_pipeline", None)
    registry._entries.cache_clear()


def run(text: str, out: Path) -> runner.Summary:
    return runner.run(plan.make(recipe.parse(f"pipeline: test-narrow\n{text}")), out, device="cpu", retries=0)


def degraded(out: Path) -> dict[str, str]:
    return {name: done.degraded for name, done in journal.read(out).done.items()}


def test_a_batch_is_halved_and_its_files_are_those_of_one_that_fitted(narrow, tmp_path):
    summary = run('matrix: {seed: [1, 2, 3, 4, 5, 6, 7, 8]}\noutput: "{seed}.png"', tmp_path / "eight")
    assert (summary.done, summary.degraded, narrow) == (8, 8, [None])
    assert set(degraded(tmp_path / "eight").values()) == {"ran 4 at a time"}
    run('matrix: {seed: [1, 2, 3, 4]}\noutput: "{seed}.png"', tmp_path / "four")
    assert set(degraded(tmp_path / "four").values()) == {""}
    for path in (tmp_path / "four").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "eight" / path.name).read_bytes()


def test_what_was_given_up_stays_so_for_the_jobs_that_follow(narrow, tmp_path):
    text = 'rows: [{seed: 1}, {seed: 2, side: 40}, {seed: 3, side: 40}, {seed: 4, side: 12}]\noutput: "{seed}.png"'
    assert run(text, tmp_path / "out").done == 4
    found = degraded(tmp_path / "out")
    assert found["1.png"] == ""
    assert found["4.png"] == "works in strips"
    assert found["2.png"] == found["3.png"] == "works in strips; ran 1 at a time"
    assert narrow == [None]


def test_a_job_that_fits_nowhere_does_not_slow_down_the_others(narrow, tmp_path):
    text = 'rows: [{seed: 1, side: 100}, {seed: 2, side: 40}, {seed: 3}]\noutput: "{seed}.png"'
    summary = run(text, tmp_path / "out")
    assert [one.output for one in summary.failed] == ["1.png"]
    assert summary.failed[0].error.startswith("cpu has no memory for a single item (")
    assert degraded(tmp_path / "out") == {"2.png": "works in strips", "3.png": "works in strips"}
    assert narrow == [None, None]  # anew after the first, so that strips are the second's own


def test_memory_may_be_there_later_and_a_broken_device_not(narrow, tmp_path):
    planned = plan.make(
        recipe.parse('pipeline: test-narrow\nmatrix: {seed: [1, 2]}\nparams: {broken: true}\noutput: "{seed}.png"')
    )
    worker = Worker(Folder(tmp_path), device="cpu")
    outcomes = worker.perform(list(planned.jobs))
    assert [(one.sick, one.job.output) for one in outcomes] == [(True, "1.png"), (True, "2.png")]
    planned = plan.make(recipe.parse('pipeline: test-narrow\nparams: {side: 100, seed: 1}\noutput: "{seed}.png"'))
    (outcome,) = worker.perform(list(planned.jobs))
    assert (outcome.sick, outcome.retry, worker.warm) == (False, "later", None)
