"""Ranks: the test is rank 0 of a launch of two, the other is a process of its own; and real launches, which are slow.

Both ranks have a child that makes the jobs, so that each run starts two more processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import AuthenticationError
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from plugin_kit import packaged

from genkit import registry
from genkit.batch import journal, plan, recipe, runner
from genkit.batch.engines import meeting, ranks
from genkit.batch.engines.engine import Watch
from genkit.batch.engines.ranks import Launch, Ranks
from genkit.batch.runner import Summary
from genkit.errors import GenkitError, InputError

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


def recipe_of(count: int, sleep: float = 0.0) -> str:
    """So many pictures, each of which takes so many seconds."""
    lines = ["pipeline: test-ranked", f"params: {{sleep: {sleep}}}", f"matrix: {{seed: {[*range(1, count + 1)]}}}"]
    return "\n".join([*lines, 'output: "{seed}.png"'])


RECIPE = recipe_of(12)
SLOWLY = recipe_of(24, 0.4)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`test-ranked`, installed for this process; the folder is for the PYTHONPATH of others."""
    folder = packaged(tmp_path_factory.mktemp("plugin") / "ranked", "ranked", "Ranked", PIPELINE)
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


OTHER = "from genkit.batch.engines import ranks; assert ranks.launched(); assert ranks.join() is None"


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

    text = recipe_of(12, 0.2)
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
    monkeypatch.setattr(meeting, "JOIN", 1.0)
    for name, value in environment(0, free_port(), plugin).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(GenkitError, match=r"^the processes of this launch do not find each other: "):
        ranks.join()


class Board(dict):
    """A launch's store, of one process."""

    def set(self, key: str, value: str) -> None:
        self[key] = value


def test_a_stranger_at_the_socket_is_no_rank(monkeypatch):
    monkeypatch.setattr(meeting, "JOIN", 4.0)
    board, met = Board(), []
    thread = threading.Thread(target=lambda: met.extend(meeting.met(board, "127.0.0.1", 2)))
    thread.start()
    while "genkit" not in board:
        time.sleep(0.01)
    told = json.loads(board["genkit"])
    for greeting in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x10" + bytes(16)):
        # It may have been shown the door before it has said all.
        with contextlib.suppress(OSError), socket.create_connection((told["host"], told["port"])) as stranger:
            stranger.sendall(greeting)
            stranger.shutdown(socket.SHUT_WR)
    wrong = Board(genkit=json.dumps({**told, "key": "00" * 32}))
    with pytest.raises(AuthenticationError):
        meeting.connected(wrong, 1)
    pipe = meeting.connected(board, 1)
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


# ------------------------------------------------------------------------------------------------------- real launches

SPLIT = """
import sys
import genkit
from accelerate import PartialState

state = PartialState(cpu=True)
with state.split_between_processes(range(1, 6)) as seeds:
    loaded = genkit.load("test-ranked")
    for seed, output in zip(seeds, loaded.generate([loaded.Params(seed=seed) for seed in seeds])):
        output.save(f"{sys.argv[2]}/{seed}.png")
state.destroy_process_group()
"""


class Started(NamedTuple):
    """there: the files that there were before."""

    process: subprocess.Popen[str]
    out: Path
    there: int

    def ranks(self) -> dict[int, int]:
        """The process of each rank."""
        found = {}
        for name in Path("/proc").glob("[0-9]*/environ"):
            try:
                given = dict(entry.split("=", 1) for entry in name.read_text().split("\0") if "=" in entry)
                parent = int((name.parent / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            if parent == self.process.pid and "RANK" in given:
                found[int(given["RANK"])] = int(name.parent.name)
        return found

    def more(self, count: int) -> None:
        """Waits until so many more files are there."""
        until = time.monotonic() + 120
        while self.process.poll() is None and time.monotonic() < until:
            if len(list(self.out.glob("*.png"))) >= self.there + count:
                return
            time.sleep(0.05)
        raise AssertionError(f"there are no {count} more files")


@pytest.fixture
def launch(plugin: Path, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """launch(out, recipe): `genkit run` on two ranks, as `accelerate launch` starts them on a machine of two GPUs.
    script: another program, which gets the recipe and the folder."""
    started: list[subprocess.Popen[str]] = []

    def start(out: str, text: str = RECIPE, script: str = "") -> Started:
        recipe, program = tmp_path / "recipe.yaml", tmp_path / "script.py"
        recipe.write_text(text)
        program.write_text(script)
        run = ["-m", "genkit", "run", str(recipe), "--device=cpu", "--quiet", "--out", str(tmp_path / out)]
        port = str(free_port())
        options = [
            "--multi_gpu",
            "--num_processes=2",
            "--num_machines=1",
            "--mixed_precision=no",
            "--dynamo_backend=no",
        ]
        python = [sys.executable, "-m", "accelerate.commands.launch", *options, f"--main_process_port={port}"]
        process = subprocess.Popen(
            [*python, *([str(program), str(recipe), str(tmp_path / out)] if script else run)],
            env={**os.environ, "PYTHONPATH": environment(0, 0, plugin)["PYTHONPATH"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return Started(process, tmp_path / out, len(list((tmp_path / out).glob("*.png"))))

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_launch_that_is_killed_and_killed_again_ends_as_if_nothing_had_happened(launch, tmp_path):
    run(tmp_path / "alone", None, SLOWLY)
    for rank in (1, 0):
        one = launch("shared", SLOWLY)
        one.more(2)
        os.kill(one.ranks()[rank], signal.SIGKILL)
        said, _ = one.process.communicate(timeout=120)
        assert one.process.returncode != 0, said
        assert ("process 1 of this launch" in said) is (rank == 1)
    one = launch("shared", SLOWLY)
    one.more(1)
    one.process.send_signal(signal.SIGINT)
    said, _ = one.process.communicate(timeout=120)
    assert re.search(r"genkit: stopped on request; \d+ made, \d+ left to do by the same command", said)
    one = launch("shared", SLOWLY)
    said, _ = one.process.communicate(timeout=120)
    assert (one.process.returncode, said) == (0, "")
    made = files(tmp_path / "shared")
    assert made.pop("report.html")
    assert made == files(tmp_path / "alone")


@pytest.mark.slow
def test_in_python_each_process_of_a_launch_makes_its_share(launch, plugin, tmp_path):
    import genkit

    (tmp_path / "shared").mkdir()
    said, _ = launch("shared", script=SPLIT).process.communicate(timeout=120)
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "shared").iterdir()}
    assert sorted(pictures) == [f"{seed}.png" for seed in range(1, 6)], said
    loaded = genkit.load("test-ranked", device="cpu")
    (tmp_path / "alone").mkdir()
    for seed in range(1, 6):
        loaded(seed=seed).save(tmp_path / "alone" / f"{seed}.png")
    assert files(tmp_path / "alone") == pictures


@pytest.mark.slow
def test_a_machine_that_does_not_see_the_folder_is_named(plugin, tmp_path, monkeypatch):
    """The folder is taken away between the sign and the look: to rank 1 it is another machine's."""
    port = free_port()
    other = subprocess.Popen([sys.executable, "-c", OTHER], env={**os.environ, **environment(1, port, plugin)})
    for name, value in environment(0, port, plugin).items():
        monkeypatch.setenv(name, value)
    found = ranks.join()
    assert found is not None
    monkeypatch.setattr(Path, "touch", lambda path: None)
    with pytest.raises(
        InputError, match=r"^process 1 of this launch \(.+\) does not see .+; give --out a folder that all"
    ):
        run(tmp_path / "out", Two(found, other), SLOWLY)  # type: ignore[arg-type]
    found.peers[0].pipe.close()
    assert other.wait(30) == 0
