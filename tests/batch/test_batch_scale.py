"""Many jobs: what a batch costs grows with their number and not faster, and the driver's memory stays small.

Held by counting what is asked of the disk, and in processes of their own by memory; clocks are `benchmarks/batch.py`'s.
"""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from genkit.batch import plan, recipe, runner
from genkit.batch.engines.engine import Source, Watch
from genkit.batch.engines.outcome import Outcome
from genkit.batch.job import Job
from genkit.batch.journal import Made
from genkit.batch.store import Store

CHAIN = """\
stages:
- {{name: first, pipeline: test-noise, matrix: {{seed: {seeds}}}}}
- {{name: second, pipeline: test-noise, files: {{content: {{stage: first}}}}}}
"""


class Instant:
    """An engine whose jobs are a byte each. waves: how many outcomes come in at once; a worker asks in turn."""

    def __init__(self, store: Store, wave: int = 50, workers: int = 4) -> None:
        self.store, self.wave, self.workers = store, wave, workers

    def run(self, source: Source, watch: Watch) -> Iterator[list[Outcome]]:
        asked = 0
        while True:
            outcomes: list[Outcome] = []
            while len(outcomes) < self.wave:
                jobs = source.take(("test-noise", None), asked % self.workers)
                asked += 1
                if jobs is None:
                    break
                outcomes += [self._made(job) for job in jobs]
            if not outcomes:
                return
            yield outcomes

    def _made(self, job: Job) -> Outcome:
        path = self.store.home / job.output
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"1")
        return Outcome(job, (Made(job.output, job.id, 1),))


@pytest.fixture
def planned(noise_pipeline: str, tmp_path: Path) -> Callable[..., plan.Plan]:
    def planned(text: str) -> plan.Plan:
        text = text if "pipeline:" in text else f"pipeline: {noise_pipeline}\n{text}"
        return plan.make(recipe.parse(text, root=tmp_path))

    return planned


class Asked:
    """What is asked of the file system, by the call and by the file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        self.calls: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()
        self.home = str(home)
        for module, name in ((os, "stat"), (os, "lstat"), (os, "open"), (builtins, "open"), (os, "fsync")):
            monkeypatch.setattr(module, name, self._counted(getattr(module, name), name))

    def _counted(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(what: Any, *rest: Any, **more: Any) -> Any:
            if name == "fsync" or str(what).startswith(self.home):
                self.calls[name] += 1
                self.paths[str(what)] += 1
            return call(what, *rest, **more)

        return counted


def test_a_resume_asks_for_each_file_once_and_opens_none(planned, tmp_path: Path, monkeypatch) -> None:
    many = {}
    for count in (20, 60):
        made, out = planned(f"matrix: {{seed: {list(range(count))}}}\noutput: '{{seed}}.png'"), tmp_path / str(count)
        assert runner.run(made, out, engine=Instant).done == count
        with monkeypatch.context() as patch:
            asked = Asked(patch, out)
            assert runner.run(made, out).skipped == count
        assert {asked.paths[str(out / job.output)] for job in made.jobs} == {1}
        many[count] = asked.calls
    grown = many[60] - many[20]
    assert dict(grown) == {"stat": 40}


def test_a_job_costs_the_same_syncs_however_many_there_are(planned, tmp_path: Path, monkeypatch) -> None:
    many = {}
    for count in (1, 4, 8):  # the first syncs the folders above, once for the process
        text = f"params: {{width: 4, height: 4}}\nmatrix: {{seed: {list(range(count))}}}\noutput: '{{seed}}.png'"
        made, out = planned(text), tmp_path / str(count)
        with monkeypatch.context() as patch:
            asked = Asked(patch, out)
            assert runner.run(made, out).done == count
        many[count] = asked.calls["fsync"]
    # Of the file, of its folder, of the journal.
    assert many[8] - many[4] == 4 * 3


def test_outcomes_that_come_in_at_once_share_a_sync(planned, tmp_path: Path, monkeypatch) -> None:
    made = planned(f"matrix: {{seed: {list(range(100))}}}\noutput: '{{seed}}.png'")
    asked = Asked(monkeypatch, tmp_path)
    runner.run(made, tmp_path / "out", engine=lambda store: Instant(store, wave=50))
    assert asked.calls["fsync"] < 20


class Counted(Sequence[Job]):
    """Jobs that count how often they are read."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs, self.read = jobs, 0

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: Any) -> Any:
        self.read += 1
        return self.jobs[index]

    def __iter__(self) -> Iterator[Job]:
        for job in self.jobs:
            self.read += 1
            yield job

    def lines(self) -> Iterator[bytes]:
        return self.jobs.lines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("text", ["pipeline: test-noise\nmatrix: {{seed: {seeds}}}", CHAIN], ids=["one", "chain"])
def test_each_job_of_a_plan_is_read_a_few_times(planned, tmp_path: Path, text: str, batch: int) -> None:
    each = {}
    for count in (100, 400):
        made = planned(text.format(seeds=list(range(count))))
        jobs = Counted(made.jobs)
        object.__setattr__(made, "jobs", jobs)
        assert runner.run(made, tmp_path / f"{count}", engine=Instant, batch=batch).done == len(jobs)
        each[count] = jobs.read / len(jobs)
    assert each[400] < each[100] + 0.5
    assert each[400] < 6


def test_the_journal_says_little_of_each_job(planned, tmp_path: Path) -> None:
    made = planned(f"matrix: {{seed: {list(range(200))}}}\noutput: '{{seed}}.png'")
    runner.run(made, tmp_path, engine=Instant)
    assert (tmp_path / ".genkit" / "journal.jsonl").stat().st_size < 200 * 500


# ------------------------------------------------------------------------------------------- processes of their own


def child(code: str, *arguments: object) -> dict[str, float]:
    """What a fresh interpreter prints as JSON in its last line, with the most memory it had in MB (`peak`), and its
    processor time in s (`seconds`)."""
    body = f"""
import json, resource, sys
from pathlib import Path
def peak():  # ru_maxrss would begin with that of the process it was started from
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
found = {{}}
{code}
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({{"peak": peak(), "seconds": usage.ru_utime + usage.ru_stime, **found}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", body, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
RESUME = """
from genkit.cli import main
try:
    main(["run", sys.argv[1], "--out", sys.argv[2], "--quiet", "--no-report"])
except SystemExit as ended:
    assert not ended.code, ended
found["heavy"] = len({"torch", "numpy", "accelerate", "ray"} & set(sys.modules))
found["compiler"] = len({"torch._dynamo", "torch._inductor"} & set(sys.modules))
"""


def folder_of(tmp_path: Path, count: int) -> tuple[Path, Path]:
    """A recipe of many jobs, and the folder in which they are all done."""
    (tmp_path / "rows.csv").write_text("seed\n" + "".join(f"{i}\n" for i in range(count)))
    path, out = tmp_path / "recipe.yaml", tmp_path / "out"
    path.write_text(f"pipeline: test-noise\nmax_jobs: {count}\nrows: rows.csv\noutput: '{{seed}}.png'\n")
    made = runner.run(plan.make(recipe.load(path)), out, engine=lambda store: Instant(store, wave=1000))
    assert made.done == count
    return path, out


@linux
def test_a_run_with_nothing_to_do_loads_nothing_heavy(noise_pipeline: str, tmp_path: Path) -> None:
    assert child(RESUME, *folder_of(tmp_path, 3))["heavy"] == 0


@linux
@pytest.mark.slow
def test_the_first_job_does_not_wait_for_the_compiler(noise_pipeline: str, tmp_path: Path) -> None:
    """Which takes a second to import, and every worker would."""
    path = tmp_path / "recipe.yaml"
    path.write_text("pipeline: test-noise\nparams: {width: 4, height: 4, seed: 1}\n")
    found = child(RESUME, path, tmp_path / "out")
    assert (found["heavy"] > 0, found["compiler"]) == (True, 0)


PLAN = """
from genkit import registry
from genkit.batch import plan, recipe
registry.get("test-noise")
count = int(sys.argv[1])
matrix = {"width": list(range(1, 101)), "seed": list(range(count // 100))}
text = f"pipeline: test-noise\\nmax_jobs: {count}\\nmatrix: {json.dumps(matrix)}"
parsed = recipe.parse(text, root=Path(sys.argv[2]))
found["before"] = peak()
made = plan.make(parsed)
for job in made.jobs:
    pass
assert len(made.jobs) == count
found["grown"] = peak() - found["before"]
"""


@linux
@pytest.mark.slow
def test_planning_streams(noise_pipeline: str, tmp_path: Path) -> None:
    """A hundred thousand jobs would be 200 MB as objects; what is kept is their names."""
    assert child(PLAN, 100_000, tmp_path)["grown"] < 40


@linux
@pytest.mark.slow
@pytest.mark.parametrize(("count", "seconds", "memory"), [(10_000, 2, 120), (100_000, 15, 500)])
def test_a_resume_of_many_jobs_is_short(
    noise_pipeline: str, tmp_path: Path, count: int, seconds: float, memory: float
) -> None:
    """By the processor's time, which other work on the machine does not lengthen as it does the clock's."""
    found = child(RESUME, *folder_of(tmp_path, count))
    assert found["seconds"] < seconds
    assert found["peak"] < memory
