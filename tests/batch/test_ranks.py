"""Ranks: the test is rank 0 of a launch of two, the other is a process of its own; and real launches, which are slow.

Both ranks have a child that makes the jobs, so that each run starts two more processes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import AuthenticationError
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from genkit import registry
from genkit.batch import journal, plan, ranks, recipe, runner
from genkit.batch.engine import Watch
from genkit.batch.ranks import Launch, Ranks
from genkit.batch.runner import Summary
from genkit.errors import GenkitError

PIPELINE = '''
"""Noise that can be told to go wrong, and says where it was made."""
import os, signal, time
from typing import ClassVar
from genkit.errors import InputError
from genkit.pipeline import Output, Params, Pipeline

class RankedParams(Params):
    do: str = ""
    sleep: float = 0

class Ranked(Pipeline):
    name = "test-ranked"
    Params: ClassVar = RankedParams
    together = 3
    def run(self, batch, progress):
        from genkit.media.image import Image
        for params in batch:
            time.sleep(params.sleep)
            if params.do == "break":
                raise RuntimeError("something broke")
            if params.do == "refuse":
                raise InputError("the input is wrong")
            if params.do == "die":
                os.kill(os.getpid(), signal.SIGSEGV)
        noise = self.runtime.noise([params.seed for params in batch], (3, 16, 24)).sigmoid()
        notes = [f"made under {os.getppid()}"]
        return [Output(images=[Image.from_tensor(picture)], notes=notes) for picture in noise]
    @classmethod
    def batch_key(cls, params):
        return "all"
'''

RECIPE = """
pipeline: test-ranked
matrix:
  seed: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
output: "{seed}.png"
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`test-ranked`, installed for this process; the folder is for the PYTHONPATH of others."""
    folder = tmp_path_factory.mktemp("plugin")
    info = folder / "ranked-1.dist-info"
    info.mkdir()
    (folder / "ranked_test_pipeline.py").write_text(PIPELINE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ranked\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[genkit.pipelines]\ntest-ranked = ranked_test_pipeline:Ranked\n")
    sys.path.insert(0, str(folder))
    registry._entries.cache_clear()
    yield folder
    sys.path.remove(str(folder))
    registry._entries.cache_clear()


class Two(NamedTuple):
    """launch: as rank 0 has it; other: the process that is rank 1."""

    launch: Launch
    other: subprocess.Popen[str]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def environment(rank: int, port: int, plugin: Path, world: int = 2) -> dict[str, str]:
    numbers = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    return {
        **{name: str(number) for name, number in numbers.items()},
        "MASTER_ADDR": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(plugin), os.environ.get("PYTHONPATH")))),
    }


OTHER = "from genkit.batch import ranks; assert ranks.launched(); assert ranks.join() is None"


@pytest.fixture(scope="module")
def two(plugin: Path) -> Iterator[Two]:
    port = free_port()
    with pytest.MonkeyPatch.context() as monkeypatch:
        other = subprocess.Popen(
            [sys.executable, "-c", OTHER],
            env={**os.environ, **environment(1, port, plugin)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, value in environment(0, port, plugin).items():
            monkeypatch.setenv(name, value)
        launch = ranks.join()
        assert launch is not None
        assert "RANK" not in os.environ
    yield Two(launch, other)
    for peer in launch.peers:
        peer.pipe.close()
    other.kill()
    other.communicate()


class Notes(Watch):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.workers: set[int] = set()
        self.under: set[str] = set()

    def job(self, jobs: Any, worker: int = 0) -> None:
        self.workers.add(worker)

    def note(self, text: str) -> None:
        self.under |= set(re.findall(r"made under (\d+)", text))


def run(out: Path, two: Two | None, text: str = RECIPE, **options: Any) -> tuple[Summary, Notes]:
    watch = Notes()
    engine = (lambda store: Ranks(store, two.launch, device="cpu")) if two else None
    options |= {"engine": engine} if engine else {"device": "cpu"}
    return runner.run(plan.make(recipe.parse(text)), out, watch=watch, **options), watch


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_two_ranks_make_what_one_process_makes_byte_for_byte(two, tmp_path):
    alone, _ = run(tmp_path / "alone", None)
    summary, watch = run(tmp_path / "shared", two)
    assert (summary.done, summary.failed) == (12, [])
    assert files(tmp_path / "shared") == files(tmp_path / "alone")
    assert len(files(tmp_path / "alone")) == 12
    assert watch.workers == {0, 1}
    assert watch.under == {str(os.getpid()), str(two.other.pid)}
    assert not list((tmp_path / "shared" / ".genkit").glob("ranks-*"))
    again, _ = run(tmp_path / "shared", two)
    assert (again.done, again.skipped) == (0, 12)
    assert alone.done == 12


WRONG = """
pipeline: test-ranked
rows:
  - {seed: 1, do: refuse}
  - {seed: 2}
  - {seed: 3, do: break}
  - {seed: 4}
  - {seed: 5, do: die}
  - {seed: 6}
  - {seed: 7, do: break}
  - {seed: 8}
output: "{seed}.png"
"""


@pytest.mark.slow
def test_what_goes_wrong_in_a_rank_is_the_items_own(two, tmp_path):
    summary, _ = run(tmp_path, two, WRONG, retries=0)
    assert sorted(files(tmp_path)) == ["2.png", "4.png", "6.png", "8.png"]
    errors = {one.output: one.error for one in summary.failed}
    assert errors["1.png"] == "the input is wrong"
    assert errors["3.png"] == errors["7.png"] == "RuntimeError: something broke"
    assert errors["5.png"].startswith("its process died (SIGSEGV), 3 times; it is in quarantine")
    assert two.other.poll() is None  # it was its child that died


def test_an_ended_rank_ends_the_run_with_one_line_and_what_was_done_is_kept(two, tmp_path):
    """The last one of this process: it costs rank 1."""

    class Killing(Notes):
        def done(self, outcome: Any, final: bool) -> None:
            if two.other.poll() is None:
                two.other.send_signal(signal.SIGKILL)
                two.other.wait()

    text = RECIPE.replace("matrix:", "params: {sleep: 0.2}\nmatrix:")
    start = time.monotonic()
    with pytest.raises(GenkitError, match=r"^process 1 of this launch \(.+\) is gone; the same command goes on where"):
        runner.run(
            plan.make(recipe.parse(text)),
            tmp_path,
            engine=lambda store: Ranks(store, two.launch, device="cpu"),
            watch=Killing(),
        )
    assert time.monotonic() - start < 60
    done = journal.read(tmp_path).done
    assert 0 < len(done) < 12
    summary, _ = run(tmp_path, None, text)
    assert summary.done + summary.skipped == 12
    assert summary.skipped >= len(done)


def test_a_rank_that_does_not_turn_up_is_one_line(plugin, monkeypatch):
    monkeypatch.setattr(ranks, "JOIN", 1.0)
    for name, value in environment(0, free_port(), plugin).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(GenkitError, match=r"^the processes of this launch do not find each other: "):
        ranks.join()


class Board(dict):
    """A launch's store, of one process."""

    def set(self, key: str, value: str) -> None:
        self[key] = value


def test_a_stranger_at_the_socket_is_no_rank(monkeypatch):
    monkeypatch.setattr(ranks, "JOIN", 4.0)
    board, met = Board(), []
    thread = threading.Thread(target=lambda: met.extend(ranks._met(board, "127.0.0.1", 2)))
    thread.start()
    while "genkit" not in board:
        time.sleep(0.01)
    told = json.loads(board["genkit"])
    for greeting in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x10" + bytes(16)):
        with socket.create_connection((told["host"], told["port"])) as stranger:
            stranger.sendall(greeting)
            stranger.shutdown(socket.SHUT_WR)
    wrong = Board(genkit=json.dumps({**told, "key": "00" * 32}))
    with pytest.raises(AuthenticationError):
        ranks._connected(wrong, 1)
    pipe = ranks._connected(board, 1)
    thread.join(5)
    assert [(peer.rank, peer.host) for peer in met] == [(1, socket.gethostname())]
    met[0].send("hello")
    assert pipe.recv() == "hello"
    pipe.close()
    met[0].pipe.close()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, False),
        ({"WORLD_SIZE": "2"}, False),
        ({"RANK": "0", "WORLD_SIZE": "1"}, False),
        ({"RANK": "0", "WORLD_SIZE": ""}, False),
        ({"RANK": "1", "WORLD_SIZE": "2"}, True),
    ],
)
def test_a_launch_is_told_by_its_environment(monkeypatch, given, expected):
    for name in ranks.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert ranks.launched() is expected


def test_a_rank_is_on_its_own_device(monkeypatch):
    monkeypatch.delenv("GENKIT_DEVICE", raising=False)
    monkeypatch.setattr("genkit.lanes._may_have_gpus", lambda: True)
    monkeypatch.setattr("genkit.runtime.devices", lambda: ["cuda:0", "cuda:1", "cpu"])
    assert [ranks._lane((i, 2), {"device": None}).device for i in range(2)] == ["cuda:0", "cuda:1"]
    assert ranks._lane((1, 2), {"device": "cpu"}).device == "cpu"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert ranks._lane((1, 2), {}).device == "cpu"
