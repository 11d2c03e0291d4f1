"""Jobs that take their process along: counted, tried alone, put in quarantine, and released when somebody says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genkit.batch import blackbox, plan, recipe, runner
from genkit.batch.engines.engine import InProcess, Source, Watch
from genkit.batch.engines.outcome import Outcome
from genkit.batch.engines.worker import Worker
from genkit.batch.journal import Journal, read
from genkit.batch.runner import Summary
from genkit.batch.store import Store

FOXES = "pipeline: test-noise\nparams: {width: 4, height: 4}\nmatrix: {seed: [1, 2, 3, 4]}\noutput: '{seed}.png'\n"


class Deadly(InProcess):
    """Makes jobs as usual, but says of some that their process died, as often as `fates` has a word for it."""

    def __init__(self, store: Store, fates: dict[str, list[str]], tried: list[list[str]]) -> None:
        super().__init__(Worker(store, batch=4))
        self.fates, self.tried = fates, tried

    def run(self, source: Source, watch: Watch) -> Iterator[list[Outcome]]:
        while (jobs := source.take(self.worker.warm)) is not None:
            self.tried.append([job.output for job in jobs])
            doomed = [job for job in jobs if self.fates.get(job.output)]
            if doomed:
                died = self.fates[doomed[0].output].pop(0)
                yield [Outcome(job, error="its process died (SIGSEGV)", died=died) for job in jobs]  # type: ignore[arg-type]
            else:
                yield self.worker.perform(jobs)


@pytest.fixture
def run(noise_pipeline: str, tmp_path: Path) -> Callable[..., tuple[Summary, list[list[str]]]]:
    def run(fates: dict[str, list[str]], **options: object) -> tuple[Summary, list[list[str]]]:
        tried: list[list[str]] = []
        made = plan.make(recipe.parse(FOXES, root=tmp_path))
        engine = lambda store: Deadly(store, fates, tried)  # noqa: E731
        return runner.run(made, tmp_path / "out", engine=engine, batch=4, **options), tried  # type: ignore[arg-type]

    return run


def test_three_deaths_put_a_job_in_quarantine_and_the_others_are_made(run, tmp_path: Path) -> None:
    summary, tried = run({"2.png": ["crash"] * 9})
    assert (summary.done, summary.quarantined) == (3, 1)
    assert "SIGSEGV), 3 times; it is in quarantine" in summary.failed[0].error
    assert Counter(output for batch in tried for output in batch)["2.png"] == 3
    assert read(tmp_path / "out").failed["2.png"].quarantined


def test_no_run_tries_it_again_until_it_is_released(run, tmp_path: Path) -> None:
    run({"2.png": ["crash"] * 9})
    summary, tried = run({"2.png": ["crash"] * 9})
    assert (summary.done, summary.skipped, summary.quarantined, tried) == (0, 3, 1, [])
    summary, tried = run({}, only={"2.png"})
    assert (summary.done, summary.failed, tried) == (1, [], [["2.png"]])
    assert not read(tmp_path / "out").failed


def test_crashes_count_across_runs_and_a_suspect_is_tried_alone(run, tmp_path: Path) -> None:
    with Journal(tmp_path / "out") as journal:
        journal.died("3.png", "its process died (SIGSEGV)")
        journal.died("3.png", "its process died (SIGSEGV)")
    summary, tried = run({"3.png": ["crash"]})
    assert tried[0] == ["3.png"]
    assert summary.quarantined == 1


def test_a_kill_from_outside_counts_only_in_its_run(run) -> None:
    summary, _ = run({"1.png": ["killed"] * 2})
    assert (summary.done, summary.failed) == (4, [])
    summary, _ = run({}, only=set())
    assert summary.failed == []


def test_what_kills_itself_is_quarantined_too(run) -> None:
    summary, tried = run({"1.png": ["killed"] * 9})
    assert summary.quarantined == 1
    assert Counter(output for batch in tried for output in batch)["1.png"] == 3


def test_somebody_who_kills_at_random_is_not_taken_for_a_job(run) -> None:
    summary, _ = run({"1.png": ["killed"] * 2, "3.png": ["killed"] * 5}, retries=0)
    assert (summary.done, summary.failed) == (4, [])


def test_a_lost_node_is_held_against_nobody(run) -> None:
    summary, tried = run({"1.png": ["node"] * 9})
    assert (summary.done, summary.failed) == (4, [])
    assert Counter(output for batch in tried for output in batch)["1.png"] == 10


def test_success_forgets_the_deaths(run, tmp_path: Path) -> None:
    run({"1.png": ["crash"] * 2})
    assert not read(tmp_path / "out").deaths


def test_a_run_without_workers_leaves_word_of_its_own_crash(flaky: str, tmp_path: Path) -> None:
    """The job's own process is the run's: what the next one knows is what `faulthandler` wrote."""
    (tmp_path / "out/.genkit").mkdir(parents=True)
    script = (
        "import sys, ctypes; from pathlib import Path; from genkit.batch import blackbox\n"
        "with blackbox.recording(Path(sys.argv[1])): ctypes.string_at(0)"
    )
    process = subprocess.run([sys.executable, "-c", script, tmp_path / "out"], check=False)
    assert process.returncode == -signal.SIGSEGV
    assert blackbox.read(tmp_path / "out") == "its process died (Segmentation fault)"
    with Journal(tmp_path / "out") as journal:
        journal.plan(recipe="r")
        journal.start(["1.png", "2.png"])
    text = (
        f"pipeline: {flaky}\nmatrix: {{seed: [1, 2, 3]}}\nparams: {{tries: {tmp_path / 'log'}}}\noutput: '{{seed}}.png'"
    )
    runner.run(plan.make(recipe.parse(text, root=tmp_path)), tmp_path / "out")
    assert (tmp_path / "log").read_text().splitlines() == ["1 1", "2 1", "3 1"]  # suspects first, each alone
    lines = (tmp_path / "out/.genkit/journal.jsonl").read_text()
    assert lines.count('"kind":"died"') == 2
    assert blackbox.read(tmp_path / "out") == ""


def test_a_run_that_ends_well_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / ".genkit").mkdir()
    script = "import sys; from pathlib import Path; from genkit.batch import blackbox\n"
    script += "with blackbox.recording(Path(sys.argv[1])): pass"
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True, env={**os.environ, "PYTHONFAULTHANDLER": ""})
    assert list((tmp_path / ".genkit").iterdir()) == []
