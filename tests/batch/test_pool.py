"""Worker processes: real ones, that die, hang, are told to stop and lose their runner.

Starting a process takes seconds, so that many of the questions are asked of one pool.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from plugin_kit import packaged

from genkit import registry
from genkit.batch import journal, plan, recipe, runner
from genkit.batch.engines import pool
from genkit.batch.engines.engine import Engine, InProcess, Warm, Watch
from genkit.batch.engines.outcome import Outcome
from genkit.batch.engines.pool import Pool
from genkit.batch.engines.worker import Worker
from genkit.batch.job import Job
from genkit.batch.journal import Journal
from genkit.batch.store import Folder
from genkit.errors import Cancelled, GenkitError
from genkit.lanes import Lane

HARD = '''
"""Does as it is told, however unreasonable. NOTES is a folder for what it has to report."""
import ctypes, json, os, signal, subprocess, sys, time
from pathlib import Path
from typing import ClassVar
from genkit.pipeline import Output, Params, Pipeline

NOTES = Path(os.environ["NOTES"])

def note(name, what):
    with (NOTES / name).open("a") as file:
        file.write(f"{what}\\n")

class HardParams(Params):
    do: str = ""
    sleep: float = 0

class Hard(Pipeline):
    name = "test-hard"
    Params: ClassVar = HardParams
    @classmethod
    def load(cls, model, runtime):
        note("loads", f"{os.getpid()} {model} {runtime.device}")
        if model == "slow":
            time.sleep(5)
        if model == "broken":
            os.abort()
        return cls(model, runtime)
    @classmethod
    def model_refs(cls, model, params):
        return {}
    @classmethod
    def batch_key(cls, params):
        return "all"
    def run(self, batch, progress):
        import torch
        from genkit.media.image import Image
        note("calls", f"{os.getpid()} {' '.join(str(p.seed) for p in batch)}")
        for params in batch:
            time.sleep(params.sleep)
            if params.do:
                getattr(self, params.do)(progress)
        return [Output(images=[Image.from_tensor(torch.full((3, 4, 4), p.seed % 7 / 7))]) for p in batch]
    def segv(self, progress):
        print("nearly there", flush=True)
        ctypes.string_at(0)
    def kill(self, progress):
        os.kill(os.getpid(), signal.SIGKILL)
    def unwind(self, progress):
        sys.exit("out of ideas")
    def fork(self, progress):  # what it leaves behind holds the pipe open
        if os.fork() == 0:
            time.sleep(1000)
        os.abort()
    def hang(self, progress):
        time.sleep(1000)
    def hold(self, progress):  # as native code that never comes back: no other thread of Python's gets a turn
        note("held", os.getpid())
        ctypes.PyDLL(None).sleep(1000)
    def start(self, progress):
        note("started", subprocess.Popen(["sleep", "1000"]).pid)
        progress(1, 2)
        time.sleep(1000)
    def sick(self, progress):
        raise RuntimeError("CUDA error: device-side assert triggered")
    def deaf(self, progress):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        child = [sys.executable, "-c", "import signal; print(int(signal.getsignal(15)))"]
        note("grandchild", subprocess.run(child, capture_output=True, text=True).stdout)
    def meet(self, progress):
        note("met", os.getpid())
        deadline = time.monotonic() + 30
        while len(set((NOTES / "met").read_text().split())) < 2:
            assert time.monotonic() < deadline, "nobody came"
            time.sleep(0.01)
    def steps(self, progress):
        for step in range(1, 5001):
            progress(step, 5000, preview=lambda: 1 / 0, note="on")
            time.sleep(0.0001)
    def talk(self, progress):
        print("a word", flush=True)
        sys.stderr.write("0%\\r50%\\r100%\\n")
    def facts(self, progress):
        import torch
        descriptors = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2
                       if os.path.exists(f"/proc/self/fd/{fd}") or os.path.islink(f"/proc/self/fd/{fd}")]
        note("facts", json.dumps({"threads": torch.get_num_threads(), "omp": os.environ["OMP_NUM_THREADS"],
             "fds": descriptors, "group": os.getpgrp() == os.getpid(), "path": sys.path, "main": "BAIT" in os.environ}))
'''


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """Installs `test-hard`, for child processes too; gives a fresh folder for its reports each time it is called."""
    folder = packaged(tmp_path_factory.mktemp("plugin") / "hard", "hard", "Hard", HARD)
    with pytest.MonkeyPatch.context() as patch:

        def fresh() -> Path:
            place = tmp_path_factory.mktemp("notes")
            patch.setenv("NOTES", str(place))
            return place

        fresh()
        patch.syspath_prepend(str(folder))  # and not PYTHONPATH: a child has the path of its runner
        registry._entries.cache_clear()
        yield fresh
    registry._entries.cache_clear()
    sys.modules.pop("hard_test_pipeline", None)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Whatever a test does, no process and no descriptor is left of it."""
    before, others = descriptors(), set(children())
    yield
    assert set(children()) <= others
    assert descriptors() <= before


def descriptors() -> Counter[str]:
    found: Counter[str] = Counter()
    for link in Path("/proc/self/fd").iterdir():
        try:
            found[str(link.readlink()).split(":")[0]] += 1  # "pipe:[123]"
        except OSError:  # the one that the folder is read by
            found["gone"] = 0
    return found


def children(of: int | None = None) -> list[int]:
    """The processes that a process started, zombies among them."""
    of = of or os.getpid()
    return [int(pid) for pid in Path(f"/proc/{of}/task/{of}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pids: Sequence[int], within: float) -> bool:
    deadline = time.monotonic() + within
    while any(map(alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def hard(seed: int, do: str = "", *, model: str | None = None, sleep: float = 0.0) -> Job:
    params = {"seed": seed, "do": do, "sleep": sleep}
    return Job(f"{seed:064d}", "one", seed, "test-hard", model, params, f"{seed}.png")


class Batches:
    """A source of what it is given. What died of no fault of its own is made again."""

    def __init__(self, *batches: Sequence[Job]) -> None:
        self.batches = deque(batches)
        self.stopping = False
        self.taken: list[tuple[Warm | None, int, list[int]]] = []

    def take(self, warm: Warm | None = None, worker: int = 0) -> Sequence[Job] | None:
        if self.stopping or not self.batches:
            return None
        jobs = self.batches.popleft()
        self.taken.append((warm, worker, [job.index for job in jobs]))
        return jobs

    def wait(self) -> float | None:
        return 0.01 if self.batches and not self.stopping else None


def outcomes(engine: Engine, source: Batches, watch: Watch | None = None) -> dict[int, Outcome]:
    """What became of each job, by its index."""
    found: dict[int, Outcome] = {}
    for wave in engine.run(source, watch or Watch()):
        assert wave
        for outcome in wave:
            assert outcome.job.index not in found
            if outcome.died == "node":
                source.batches.append([outcome.job])
            else:
                found[outcome.job.index] = outcome
    return found


def folder(path: Path) -> Folder:
    path.mkdir()
    return Folder(path)


def content(path: Path) -> dict[str, str]:
    files = (file for file in path.rglob("*") if file.is_file() and ".genkit" not in file.parts)
    return {file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


LANES = [Lane(None, 1), Lane(None, 1)]


# What goes well.


def test_processes_make_the_same_bytes_and_keep_their_models(notes, tmp_path: Path) -> None:
    place = notes()
    batches = [[hard(1), hard(2), hard(3)], [hard(4, model="a")], [hard(5), hard(6)], [hard(7)]]
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two")
    outcomes(InProcess(Worker(one, batch=2)), Batches(*batches))
    source = Batches(*batches)
    found = outcomes(Pool(two, LANES, batch=2), source)
    assert content(two.root) == content(one.root)
    assert {name: [made.sha256 for made in found[int(Path(name).stem)].files] for name in content(two.root)} == {
        name: [digest] for name, digest in content(two.root).items()
    }
    assert not list((two.root / ".genkit/staging").iterdir())
    here = str(os.getpid())
    calls = [line.split() for line in lines(place / "calls") if line.split()[0] != here]
    assert sorted(seeds for _, *seeds in calls) == [["1", "2"], ["3"], ["4"], ["5", "6"], ["7"]]
    changes: dict[str, list[str]] = {}
    for pid, *seeds in calls:
        model = "a" if seeds == ["4"] else "None"
        if changes.setdefault(pid, [])[-1:] != [model]:
            changes[pid].append(model)
    loads = [line.split()[:2] for line in lines(place / "loads") if line.split()[0] != here]
    assert sorted(loads) == sorted([pid, model] for pid, models in changes.items() for model in models)
    for warm, worker, _ in source.taken[2:]:  # and says which it has
        earlier = [indices for _, other, indices in source.taken if other == worker]
        assert warm in {("test-hard", "a" if indices == [4] else None) for indices in earlier}


def test_what_a_process_is_given(notes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, store = notes(), folder(tmp_path / "out")
    steps: list[tuple[int, int, str, int]] = []

    class Steps(Watch):
        def step(self, step: int, total: int, *, preview: Any = None, note: str = "", worker: int = 0) -> None:
            assert preview is None
            steps.append((step, total, note, worker))

    jobs = [hard(1, "meet"), hard(2, "meet"), hard(3, "facts"), hard(4, "steps"), hard(5, "talk"), hard(6, "deaf")]
    with Journal(store.root):  # its lock and file are open here
        engine = Pool(store, [Lane("cpu", 3)] * 2, batch=1, device="cuda:7")
        found = outcomes(engine, Batches(*([job] for job in jobs)), Steps())
    assert [outcome.error for outcome in found.values()] == [""] * 6  # the first two were at work at one time
    facts = json.loads((place / "facts").read_text())
    assert (facts["threads"], facts["omp"]) == (3, "3")
    assert not [name for name in facts["fds"] if str(tmp_path) in name]
    assert sum(name.startswith("socket:") for name in facts["fds"]) == 1  # not those of its neighbour
    assert facts["group"]
    assert [entry for entry in sys.path if entry] == [entry for entry in facts["path"] if entry]
    assert 1 < len(steps) < 40
    assert {step[1:3] for step in steps} == {(5000, "on")}
    assert {step[3] for step in steps} <= {0, 1}
    assert capsys.readouterr().err.splitlines() == ["a word", "100%"]
    assert (place / "grandchild").read_text().strip() == "0"  # SIG_DFL: what it starts can be terminated


def test_no_more_processes_are_started_than_there_is_work_for(notes, tmp_path: Path) -> None:
    place = notes()
    outcomes(Pool(folder(tmp_path / "out"), LANES * 4, batch=1), Batches([hard(1)]))
    assert len(lines(place / "loads")) == 1
    list(Pool(folder(tmp_path / "nothing"), LANES, batch=1).run(Batches(), Watch()))
    assert len(lines(place / "loads")) == 1


# What goes wrong.


@pytest.fixture(scope="module")
def fates(notes, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, Outcome], Folder]:
    """One run, two jobs a call, in which everything dies that can."""
    notes()
    source = Batches(
        [hard(15), hard(25), hard(5, "hang"), hard(35)],
        [hard(8, model="slow", sleep=1.0)],
        [hard(1, "segv"), hard(11), hard(12)],
        [hard(2, "kill")],
        [hard(3), hard(13), hard(23, "unwind"), hard(33), hard(43)],
        [hard(6, "sick"), hard(16), hard(26)],
        [hard(7, model="broken"), hard(17, model="broken")],
        [hard(9, "fork")],
    )
    store = Folder(tmp_path_factory.mktemp("fates"))
    return outcomes(Pool(store, LANES, batch=2, job_timeout=4), source), store


@pytest.mark.parametrize(
    ("jobs", "error", "died"),
    [
        ([1, 11], "its process died (SIGSEGV)", "crash"),
        ([2], "its process was killed (out of memory?)", "killed"),
        ([23, 33], "its process ended by itself (exit status 1)", "crash"),
        ([9], "its process died (SIGABRT)", "crash"),
        ([5, 35], "took longer than 4 s (--job-timeout)", ""),
        ([6, 16], "RuntimeError: CUDA error: device-side assert triggered", ""),
    ],
)
def test_what_was_at_work_is_suspect_and_nothing_else(fates, jobs: list[int], error: str, died: str) -> None:
    found, store = fates
    for index in jobs:
        assert (found[index].error, found[index].died, found[index].files) == (error, died, ())
        assert found[index].retry == ("now" if not died else "never")
        assert found[index].sick == ("CUDA" in error)
    assert not any(store.exists(f"{index}.png") for index in jobs)


def test_neighbours_of_the_dead_are_made(fates) -> None:
    found, store = fates
    fine = {index for index, outcome in found.items() if not outcome.error}
    assert fine == {8, 15, 25, 12, 3, 13, 43, 26}  # 8 had loaded for longer than a job may take
    assert set(content(store.root)) == {f"{index}.png" for index in fine}


def test_a_model_that_kills_whoever_loads_it_is_given_up(fates) -> None:
    found, _ = fates
    for index in (7, 17):
        assert found[index].error.startswith(
            "its process died (SIGABRT) each time it loaded model 'broken' of test-hard;"
        )
        assert (found[index].died, found[index].retry) == ("", "never")
    assert "in load" in found[7].trace


def test_what_a_process_said_last_tells_where_it_died(fates) -> None:
    found, _ = fates
    assert found[1].trace.startswith("nearly there\nFatal Python error: Segmentation fault\n")
    assert "in segv" in found[1].trace
    assert "out of ideas" in found[23].trace


def test_an_installation_that_cannot_work_is_told_once(
    notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notes()
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    start = time.monotonic()
    with pytest.raises(GenkitError, match=r"exit status 1\): ImportError: libcudart.so.13.*`genkit doctor`"):
        outcomes(Pool(folder(tmp_path / "out"), LANES, batch=1), Batches([hard(1)], [hard(2)]))
    assert time.monotonic() - start < 30
    assert capsys.readouterr().err == ""


def test_a_process_that_was_killed_while_it_was_idle_is_replaced(notes, tmp_path: Path) -> None:
    place, others = notes(), set(children())

    class Murder(Batches):
        def wait(self) -> float | None:
            if not self.batches and len(self.taken) == 1:
                for pid in set(children()) - others:
                    os.kill(pid, signal.SIGKILL)
                self.batches.append([hard(2)])
            return super().wait()

    found = outcomes(Pool(folder(tmp_path / "out"), LANES[:1], batch=1), Murder([hard(1)]))
    assert [outcome.error for outcome in found.values()] == ["", ""]  # though it may be handed over to the dead
    assert len({line.split()[0] for line in lines(place / "loads")}) == 2


# The end.


def test_a_stop_lets_the_running_calls_finish_and_begins_no_more(notes, tmp_path: Path) -> None:
    place = notes()

    class Stop(Batches):
        @property
        def stopping(self) -> bool:
            return len(lines(place / "calls")) >= 2

        @stopping.setter
        def stopping(self, value: bool) -> None: ...

    source = Stop([hard(i, sleep=0.5) for i in range(1, 9)], [hard(i, sleep=0.5) for i in range(11, 19)], [hard(21)])
    found = outcomes(Pool(folder(tmp_path / "out"), LANES, batch=1), source)
    assert 2 <= len(found) == len(lines(place / "calls")) <= 4  # a call each may begin before the word is heard
    assert not any(outcome.error for outcome in found.values())


def test_what_is_interrupted_ends_at_once(notes, tmp_path: Path) -> None:
    place = notes()

    class Impatient(Watch):
        def step(self, step: int, total: int, **more: Any) -> None:
            self.at = time.monotonic()
            raise Cancelled

    watch = Impatient()
    with pytest.raises(Cancelled):
        outcomes(Pool(folder(tmp_path / "out"), LANES, batch=1), Batches([hard(1, "hang")], [hard(2, "start")]), watch)
    assert time.monotonic() - watch.at < 2
    assert gone([int(pid) for pid in lines(place / "started")], within=1)  # what a pipeline had started


SCRIPT = """
import sys
sys.path[:0] = {path!r}
from genkit.batch.engines.engine import Watch
from genkit.batch.engines.pool import Pool
from genkit.batch.store import Folder
from test_pool import Batches, LANES, hard
from pathlib import Path
print("once", flush=True)
for wave in Pool(Folder(Path({out!r})), LANES, batch=1).run(Batches({jobs}), Watch()):
    print(*(outcome.job.index for outcome in wave), flush=True)
"""


def script(out: Path, jobs: str, *, typed: bool = False) -> subprocess.Popen[str]:
    """A program that runs jobs, with no `if __name__ == "__main__"`; typed: through stdin."""
    text = SCRIPT.format(path=[entry for entry in sys.path if entry], out=str(out), jobs=jobs)
    file = out.with_suffix(".py")
    file.write_text(text)
    with file.open() as content:
        return subprocess.Popen(
            [sys.executable, *([] if typed else [str(file)])],
            stdin=content,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def wait_for(process: subprocess.Popen[str], state: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not state():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("typed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_script_needs_no_guard(notes, tmp_path: Path, typed: bool) -> None:
    notes()
    (tmp_path / "out").mkdir()
    process = script(tmp_path / "out", "[hard(1)]", typed=typed)
    output, errors = process.communicate(timeout=60)
    assert (output.split(), errors, process.returncode) == (["once", "1"], "", 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_children_leave_with_their_runner(notes, tmp_path: Path, number: int) -> None:
    """Also one that no thread of Python's can end any more, and at once where a KeyboardInterrupt does it."""
    place = notes()
    (tmp_path / "out").mkdir()
    process = script(tmp_path / "out", "[hard(1, 'hold')], [hard(2, 'hang')]")
    wait_for(process, lambda: len(lines(place / "calls")) == 2 and bool(lines(place / "held")))
    pids = children(process.pid)
    assert len(pids) == 2
    start = time.monotonic()
    os.killpg(process.pid, number) if number == signal.SIGINT else process.kill()
    process.communicate(timeout=10)
    assert gone(pids, within=2)
    assert time.monotonic() - start < 2


# A whole run.

POISON = """\
pipeline: test-hard
rows: [{seed: 1}, {seed: 2}, {seed: 3}, {seed: 4, do: segv}]
"""
SLOW = "pipeline: test-hard\nparams: {sleep: 1.5}\nmatrix: {seed: [1, 2, 3, 4, 5, 6, 7]}\n"


def test_poison_is_set_aside_and_its_neighbours_are_made(notes, tmp_path: Path) -> None:
    place = notes()
    planned = plan.make(recipe.parse(POISON, root=tmp_path))
    summary = runner.run(planned, tmp_path / "out", workers=2, batch=2)
    assert (summary.done, summary.quarantined, len(summary.failed)) == (3, 1, 1)
    assert "SIGSEGV" in summary.failed[0].error
    assert "in segv" in summary.failed[0].trace
    tries = [line.split()[1:] for line in lines(place / "calls")]
    assert [seeds for seeds in tries if "4" in seeds][1:] == [["4"], ["4"]]  # a suspect is tried alone
    before = len(tries)
    again = runner.run(planned, tmp_path / "out", workers=2, batch=2)
    assert (again.done, again.skipped, again.quarantined) == (0, 3, 1)
    assert len(lines(place / "calls")) == before


@pytest.mark.parametrize(
    ("number", "times", "status"),
    [
        (signal.SIGINT, 2, 130),
        pytest.param(signal.SIGINT, 1, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 1, 143, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_with_workers(notes, tmp_path: Path, number: int, times: int, status: int) -> None:
    place = notes()
    file = tmp_path / "r.yaml"
    file.write_text(SLOW)
    command = [sys.executable, "-m", "genkit", "run", str(file), "--workers", "2", "--no-report", "--out"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal's Ctrl-C goes to a whole group
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    wait_for(process, lambda: len(lines(place / "calls")) >= 3)
    pids = children(process.pid)
    start = time.monotonic()
    for _ in range(times):
        os.killpg(process.pid, number)
        time.sleep(0.3)
    calls = len(lines(place / "calls"))
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert gone(pids, within=1)
    assert len(lines(place / "calls")) == calls < 7  # nothing was begun after it
    done = len(journal.read(tmp_path / "out").done)
    assert done == calls if times == 1 else done <= calls - 1
    assert times == 1 or time.monotonic() - start < 2.5
    again = runner.run(plan.make(recipe.load(file)), tmp_path / "out")
    assert (again.skipped, again.done) == (done, 7 - done)


# What the kernel counts.


def test_the_kernels_own_kills_are_told_from_others(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    assert pool.oom_kills(tmp_path) == 0
    (tmp_path / "proc/vmstat").write_text("oom_kill_disable 7\npgfault 8\noom_kill 2\n")
    assert pool.oom_kills(tmp_path) == 2
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/there\n0::/here/below\n")
    assert pool.oom_kills(tmp_path) == 2
    group = tmp_path / "sys/fs/cgroup/here/below"
    group.mkdir(parents=True)
    (group / "memory.events").write_text("low 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 0\n")
    assert pool.oom_kills(tmp_path) == 3
    assert isinstance(pool.oom_kills(), int)
