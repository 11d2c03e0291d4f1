"""The loop over actors, on a cluster of threads: its makers are the real ones, its losses come when they are told to.

What Ray itself does when a node is lost is in `test_ray_cluster`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from genkit.batch import plan, recipe, runner
from genkit.batch.engines import crew
from genkit.batch.engines.actor import Maker
from genkit.batch.engines.cluster import Lost
from genkit.batch.engines.crew import Crew
from genkit.batch.engines.engine import Watch
from genkit.batch.engines.places import Place
from genkit.batch.runner import Summary
from genkit.errors import Cancelled, InputError

FOXES = "name: foxes\npipeline: test-noise\nparams: {width: 4, height: 4}\nmatrix: {seed: [1, 2, 3, 4, 5, 6]}\n"
Script = Callable[[str, str, tuple[Any, ...]], None]


class Actor:
    """A maker in a thread of its own."""

    def __init__(self, node: str, arguments: tuple[Any, ...]) -> None:
        self.node, self.arguments, self.maker = node, arguments, None
        self.thread = ThreadPoolExecutor(1)

    def do(self, script: Script, method: str, arguments: tuple[Any, ...]) -> Any:
        script(self.node, method, arguments)
        if self.maker is None:
            self.maker = Maker(*self.arguments)
        return getattr(self.maker, method)(*arguments)


class Threads:
    """A cluster of nodes with a core each. script: is told node, method and arguments of each call before it is done,
    and may raise Lost."""

    def __init__(self, *nodes: str) -> None:
        self.names, self.hired = list(nodes), list[Actor]()
        self.script: Script = lambda node, method, arguments: None
        self.words = ""  # the last ones of an actor that died

    @contextmanager
    def joined(self) -> Iterator[None]:
        yield
        for actor in self.hired:
            actor.thread.shutdown(wait=False, cancel_futures=True)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": n, "NodeManagerHostname": f"host-{n}", "Resources": {"CPU": 1}} for n in self.names]

    def hire(self, place: Place, *arguments: Any) -> Actor:
        self.hired.append(Actor(place.node, arguments))
        return self.hired[-1]

    def call(self, actor: Actor, method: str, *arguments: Any) -> Future[Any]:
        return actor.thread.submit(actor.do, self.script, method, arguments)

    def knock(self, node: str, file: str) -> Future[Any]:
        answer: Future[Any] = Future()
        if node in self.names:
            answer.set_result(self.words)
        else:
            answer.set_exception(Lost("its node is dead", node=True))
        return answer

    def put(self, content: bytes) -> bytes:
        return content

    def come(self, results: Sequence[Future[Any]], seconds: float) -> list[Future[Any]]:
        return list(wait(results, seconds, FIRST_COMPLETED).done)

    def get(self, result: Future[Any]) -> Any:
        return result.result()

    def kill(self, actor: Actor) -> None:
        actor.thread.shutdown(wait=False, cancel_futures=True)


class Told(Watch):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Looks at the cluster are frequent, and what a maker changes in its process is undone."""
    import torch

    monkeypatch.setattr(crew, "LOOK", 0.05)
    monkeypatch.setattr(crew, "TICK", 0.05)
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(noise_pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Summary, Told]]:
    monkeypatch.setenv("GENKIT_HOME", str(tmp_path / "state"))

    def run(cluster: Threads, text: str = FOXES, **options: Any) -> tuple[Summary, Told]:
        told = Told()
        stop = options.pop("stop", None)
        planned = plan.make(recipe.parse(text, root=tmp_path))
        summary = runner.run(
            planned,
            tmp_path / "out",
            watch=told,
            stop=stop,
            engine=lambda store: Crew(cluster, store, device="cpu", **options),
        )
        return summary, told

    return run


def content(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and ".genkit" not in path.parts)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def deaths(out: Path) -> int:
    """How many a journal has held against its jobs."""
    lines = (out / ".genkit/journal.jsonl").read_text().splitlines()
    return sum(json.loads(line)["kind"] == "died" for line in lines)


def on(
    method: str, action: Callable[[str, tuple[Any, ...]], None], *, times: int = 10**6, node: str | None = None
) -> Script:
    """Does something at the first calls of a method."""
    left, guard = [times], threading.Lock()

    def script(where: str, what: str, arguments: tuple[Any, ...]) -> None:
        with guard:
            if what != method or (node and where != node) or not left[0]:
                return
            left[0] -= 1
        action(where, arguments)

    return script


def dies(reason: str = "died", **how: bool) -> Callable[[str, tuple[Any, ...]], None]:
    def action(node: str, arguments: tuple[Any, ...]) -> None:
        raise Lost(reason, **how)

    return action


def test_every_node_takes_part_and_the_bytes_are_those_of_one_process(run: Any, tmp_path: Path) -> None:
    cluster, busy = Threads("a", "b"), Counter[str]()

    def slowly(node: str, arguments: tuple[Any, ...]) -> None:
        busy[node] += len(arguments[0])
        time.sleep(0.05)

    cluster.script = on("perform", slowly)
    summary, told = run(cluster)
    assert (summary.done, summary.failed, told.notes) == (6, [], [])
    assert set(busy) == {"a", "b"}
    assert sum(busy.values()) == 6
    runner.run(plan.make(recipe.parse(FOXES, root=tmp_path)), tmp_path / "one", device="cpu")
    assert content(tmp_path / "out") == content(tmp_path / "one")


def test_as_many_actors_as_are_wanted(run: Any) -> None:
    cluster = Threads("a", "b", "c")
    assert run(cluster, workers=2)[0].done == 6
    assert len(cluster.hired) == 2


def test_the_jobs_of_a_lost_node_run_elsewhere_and_count_against_nobody(run: Any, tmp_path: Path) -> None:
    cluster = Threads("a", "b")

    def lost(node: str, arguments: tuple[Any, ...]) -> None:
        cluster.names = [name for name in cluster.names if name != "a"]
        raise Lost("cannot be reached", node=True)

    cluster.script = on("perform", lost, node="a")
    summary, told = run(cluster)
    assert (summary.done, summary.failed) == (6, [])
    assert told.notes == ["node host-a was lost; what it had to do goes elsewhere"]
    assert deaths(tmp_path / "out") == 0


def test_a_process_that_dies_with_its_node_is_no_crash(run: Any, tmp_path: Path) -> None:
    """Its node is told of as alive when the process dies, but does not answer."""
    cluster = Threads("a", "b")
    knock = cluster.knock

    def silent(node: str, file: str) -> Future[Any]:
        cluster.names = ["b"]
        return knock(node, file)

    cluster.knock = silent  # type: ignore[method-assign]
    cluster.script = on("perform", dies(), node="a")
    summary, _ = run(cluster)
    assert (summary.done, summary.failed) == (6, [])
    assert deaths(tmp_path / "out") == 0


@pytest.mark.parametrize(
    ("words", "reason", "held"),
    [("the job\nFatal Python error: Aborted\n\nline 1", "died (Aborted)", 3), ("", "was killed (out of memory?)", 0)],
)
def test_a_job_that_kills_its_actor_is_held_after_three(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, reason: str, held: int
) -> None:
    """A crash is counted across runs; what nothing is known of, as of a SIGKILL, within one."""
    ready = Maker.ready
    monkeypatch.setattr(Maker, "ready", lambda self, *rest: (ready(self, *rest)[0], "its file"))

    def poison(node: str, arguments: tuple[Any, ...]) -> None:
        if any(job.params["seed"] == 3 for job in arguments[0]):
            raise Lost

    cluster = Threads("a", "b")
    cluster.script, cluster.words = on("perform", poison), words
    summary, told = run(cluster)
    assert summary.done == 5
    (failed,) = summary.failed
    assert (failed.output, failed.quarantined) == ("3.png", True)
    assert "its actor on node host-" in failed.error
    assert reason in failed.error
    assert deaths(tmp_path / "out") == held
    assert told.notes == []
    assert len(cluster.hired) >= 4  # another took the place of each


def test_a_model_that_kills_whoever_loads_it_is_given_up_and_no_job_is_blamed(run: Any) -> None:
    cluster = Threads("a", "b")
    cluster.script = on("prepare", dies("ran out of memory and was killed"))
    summary, _ = run(cluster)
    assert summary.done == 0
    assert len(summary.failed) == 6
    assert not any(failed.quarantined for failed in summary.failed)
    assert "each time it loaded the model of test-noise" in summary.failed[0].error
    assert "ran out of memory" in summary.failed[0].error


def test_one_death_over_a_model_is_none(run: Any) -> None:
    cluster = Threads("a", "b")
    cluster.script = on("prepare", dies(), times=2)
    assert run(cluster)[0].done == 6


def test_a_run_waits_for_nodes_and_takes_those_that_join(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "PATIENCE", 0.2)
    cluster = Threads()
    timer = threading.Timer(0.8, lambda: cluster.names.append("late"))
    timer.start()
    summary, told = run(cluster)
    timer.join()
    assert summary.done == 6
    assert told.notes == ["waiting for an actor to start: perhaps no core is free (`ray status` shows the cluster)"]


def test_a_run_that_waits_can_be_stopped(run: Any) -> None:
    stop = threading.Event()
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    with pytest.raises(Cancelled):
        run(Threads(), stop=stop)
    timer.join()


def test_a_node_that_cannot_be_used_is_left_out_and_said(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Threads("a", "b")
    ready, line = Maker.ready, "node host-a does not see out; give a folder that all nodes share"
    where = threading.local()
    cluster.script = on("ready", lambda node, arguments: setattr(where, "node", node))
    monkeypatch.setattr(Maker, "ready", lambda self, *rest: (line, "") if where.node == "a" else ready(self, *rest))
    summary, told = run(cluster)
    assert (summary.done, told.notes) == (6, [line])
    assert Counter(actor.node for actor in cluster.hired) == {"a": 1, "b": 1}


def test_if_no_node_can_be_used_the_run_ends(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Maker, "ready", lambda *_: ("node host-a has genkit 0.0, and the runner 1.0", ""))
    with pytest.raises(InputError, match=r"has genkit 0\.0, and the runner"):
        run(Threads("a"))


@pytest.mark.parametrize(("how", "tries"), [({"hopeless": True}, 1), ({}, 3)])
def test_a_node_on_which_no_actor_gets_ready_is_left_out(run: Any, how: dict[str, bool], tries: int) -> None:
    cluster = Threads("a", "b")
    cluster.script = on("ready", dies("failed: No module named 'genkit'", **how), node="a")
    summary, told = run(cluster)
    assert summary.done == 6
    assert Counter(actor.node for actor in cluster.hired)["a"] <= tries
    for note in told.notes:  # the other node may have made everything before the third try
        assert note == "node host-a cannot be used: an actor there failed: No module named 'genkit'"


def test_a_call_that_takes_too_long_is_ended_with_its_actor(run: Any) -> None:
    def hang(node: str, arguments: tuple[Any, ...]) -> None:
        if any(job.params["seed"] == 3 for job in arguments[0]):
            time.sleep(1.5)

    cluster = Threads("a", "b")
    cluster.script = on("perform", hang)
    summary, _ = run(cluster, job_timeout=0.5)
    assert summary.done == 5
    (failed,) = summary.failed
    assert failed.error == "took longer than 0.5 s (--job-timeout)"


def test_the_first_wish_to_stop_finishes_what_runs(run: Any, tmp_path: Path) -> None:
    stop = threading.Event()
    cluster = Threads("a")
    cluster.script = on("perform", lambda node, arguments: stop.set(), times=1)
    with pytest.raises(Cancelled):
        run(cluster, stop=stop, batch=1)
    assert len(content(tmp_path / "out")) == 1
    assert run(Threads("a"))[0].skipped == 1
