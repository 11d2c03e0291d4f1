"""A Ray cluster of several nodes on this machine, of which one is lost in mid-run, or the driver is, or an actor.

Cluster and drivers are processes of their own: Ray opens sockets that the guard of these tests refuses, and a driver
that is killed should not take the tests along.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plugin_kit import packaged

from genkit import registry
from genkit.batch import plan, recipe, runner

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed: pip install 'genkit-media[ray]'", allow_module_level=True)

PATIENCE = 400  # seconds that a run may take on a machine with much else to do
pytestmark = pytest.mark.timeout(PATIENCE + 100)
ROOT = Path(__file__).parents[2]

CLUSTER = """
import json, os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
from ray.cluster_utils import Cluster
soon = {"health_check_period_ms": 1000, "health_check_timeout_ms": 4000, "health_check_failure_threshold": 3}
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False, "_system_config": soon})
nodes = []
print(json.dumps(cluster.address), flush=True)
for line in sys.stdin:
    what = line.split()
    if what[0] == "add":
        nodes.append(cluster.add_node(num_cpus=1, object_store_memory=80 << 20))
    else:
        cluster.remove_node(nodes.pop(0), allow_graceful=what[0] == "leave")
    print(json.dumps(len(nodes)), flush=True)
cluster.shutdown()
"""

DRIVER = """
import json, sys
from pathlib import Path
from genkit.batch import plan, recipe, runner
from genkit.batch.engines.engine import Watch
from genkit.batch.engines.ray import Ray
from genkit.errors import GenkitError

class Told(Watch):
    def __init__(self):
        self.notes, self.workers = [], set()
    def note(self, text):
        self.notes.append(text)
    def job(self, jobs, worker=0):
        self.workers.add(worker)

path, out, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
told = Told()
said = {}
planned = plan.make(recipe.load(path))
batch = options.get("batch", 1)
try:
    summary = runner.run(planned, out, batch=batch, watch=told, engine=lambda store: Ray(store, **options))
    said = {"done": summary.done, "skipped": summary.skipped, "failed": [vars(one) for one in summary.failed]}
except GenkitError as error:
    said = {"error": str(error), "status": error.exit_status}
print(json.dumps({**said, "notes": told.notes, "workers": len(told.workers)}, default=str))
"""

PIPELINE = '''
"""Takes its time, and breaks as told."""
import os, time
from pathlib import Path
from typing import ClassVar
from genkit.pipeline import Output, Params, Pipeline

class HardParams(Params):
    do: str = ""
    sleep: float = 0
    notes: str = ""

class Hard(Pipeline):
    name = "test-on-ray"
    Params: ClassVar = HardParams
    @classmethod
    def load(cls, model, runtime):
        if model == "broken":
            os.abort()
        return cls(model, runtime)
    @classmethod
    def model_refs(cls, model, params):
        return {}
    def run(self, batch, progress):
        import torch
        from genkit.media.image import Image
        for params in batch:
            if params.notes:
                with Path(params.notes).open("a") as file:
                    file.write(f"{os.getpid()} {params.seed}\\n")
            time.sleep(params.sleep)
            if params.do == "crash":
                os.abort()
            if params.do == "raise":
                raise RuntimeError("something broke")
        return [Output(images=[Image.from_tensor(torch.full((3, 4, 4), p.seed % 7 / 7))]) for p in batch]
'''


class Cluster:
    """A head without cores, and two nodes of one core each."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,  # its nodes know nothing of the tests' pipelines
            start_new_session=True,
        )
        self.address = self._answer()
        self.add()
        self.add()

    def _answer(self) -> Any:
        assert self._process.stdout
        for line in self._process.stdout:
            try:
                return json.loads(line)
            except ValueError:  # Ray speaks on stdout too
                continue
        raise AssertionError("the cluster has died")

    def _tell(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        self._answer()

    def add(self) -> None:
        self._tell("add")

    def kill(self) -> None:
        """The oldest node, without notice."""
        self._tell("kill")

    def leave(self) -> None:
        """The oldest node, as when a scheduler ends it."""
        self._tell("leave")

    def end(self) -> None:
        assert self._process.stdin
        with self._process:
            self._process.stdin.close()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.end()


@pytest.fixture
def hard(noise_pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Installs `test-on-ray` for this process and the drivers; gives the folder of recipes."""
    folder = packaged(tmp_path / "plugin", "on-ray", "Hard", PIPELINE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(folder), os.environ["PYTHONPATH"])))
    registry._entries.cache_clear()
    yield tmp_path
    sys.modules.pop("on_ray_test_pipeline", None)


running: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    """No driver outlives its test, however that ends."""
    yield
    for driver in running:
        with driver:
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
    running.clear()


def started(path: Path, out: Path | str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER, str(path), str(out), json.dumps({"device": "cpu", **options})]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running.append(subprocess.Popen(command, **pipes, text=True, start_new_session=True))  # type: ignore[call-overload]
    return running[-1]


def ended(driver: subprocess.Popen[str]) -> dict[str, Any]:
    said, complaints = driver.communicate(timeout=PATIENCE)
    assert said, complaints
    (line,) = said.splitlines()  # Ray has much to say of a lost node, and stdout is for data
    return dict(json.loads(line))


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def here(path: Path, out: Path) -> dict[str, str]:
    """What a run of one process makes of a recipe."""
    assert runner.run(plan.make(recipe.load(path)), out, batch=1, device="cpu").failed == []
    return content(out)


def files(folder: Path) -> Iterator[Path]:
    """All but the journal's folder, in which they come and go."""
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != ".genkit"]
        yield from (Path(where) / name for name in names)


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files(folder)
    }


def until(condition: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


def count(out: Path) -> int:
    return sum(1 for _ in files(out))


def deaths(out: Path) -> int:
    """How many a journal has held against its jobs."""
    lines = (out / ".genkit/journal.jsonl").read_text().splitlines()
    return sum(json.loads(line)["kind"] == "died" for line in lines)


CHAIN = """\
name: chain
stages:
- {name: paint, pipeline: test-noise, params: {width: 6, height: 6}, matrix: {seed: [1, 2, 3, 4]}}
- {name: blend, pipeline: test-noise, files: {content: {stage: paint}}}
- {name: tone, pipeline: test-tone, matrix: {seed: [1, 2]}}
- {name: tune, pipeline: test-tune}
"""
SLOW = """\
name: slow
pipeline: test-on-ray
params: {sleep: 0.4, notes: NOTES}
matrix: {seed: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]}
"""


def test_a_cluster_makes_what_one_process_makes(cluster: Cluster, hard: Path) -> None:
    path = written(hard, CHAIN)
    said = ended(started(path, hard / "ray", address=cluster.address))
    assert (said["done"], said["failed"], said["workers"]) == (11, [], 2)
    assert content(hard / "ray") == here(path, hard / "one")
    assert sorted(entry.name for entry in (hard / "ray/.genkit").iterdir()) == ["journal.jsonl", "lock", "plan.jsonl"]
    again = ended(started(path, hard / "ray", address=cluster.address))
    assert (again["done"], again["skipped"]) == (0, 11)


def test_what_breaks_an_actor_is_held_after_three_and_what_raises_is_recorded(cluster: Cluster, hard: Path) -> None:
    path = written(
        hard,
        "name: hard\nstages:\n- {name: breaks, pipeline: test-on-ray, params: {notes: NOTES}, output: '{seed}.png', "
        "matrix: {seed: [1, 2, 3, 4, 5, 6]}, include: [{seed: 7, do: crash}, {seed: 8, do: raise}]}\n"
        "- {name: never, pipeline: test-on-ray, model: broken, matrix: {seed: [1, 2]}}\n".replace(
            "NOTES", str(hard / "notes")
        ),
    )
    said = ended(started(path, hard / "out", address=cluster.address, batch=0))
    assert said["done"] == 6
    failed = {entry["output"]: entry for entry in said["failed"]}
    assert set(failed) == {"7.png", "8.png", "never/1.png", "never/2.png"}
    for name in ("never/1.png", "never/2.png"):
        assert "each time it loaded model 'broken' of test-on-ray" in failed[name]["error"]
        assert not failed[name]["quarantined"]
    assert failed["7.png"]["quarantined"]
    assert "its actor on node" in failed["7.png"]["error"]
    assert "died (Aborted)" in failed["7.png"]["error"]
    assert "on_ray_test_pipeline.py" in failed["7.png"]["trace"]
    assert not failed["8.png"]["quarantined"]
    assert "something broke" in failed["8.png"]["error"]
    tries = Counter(line.split()[1] for line in (hard / "notes").read_text().splitlines())
    assert tries["7"] == 3
    assert not any("was lost" in note for note in said["notes"])
    assert set(content(hard / "out")) == {f"{i}.png" for i in range(1, 7)}


def test_a_node_is_lost_in_mid_run_and_another_one_joins(cluster: Cluster, hard: Path) -> None:
    path = written(hard, SLOW.replace("NOTES", str(hard / "notes")))
    driver = started(path, hard / "out", address=cluster.address)
    until(lambda: count(hard / "out") >= 3)
    cluster.kill()
    cluster.add()
    said = ended(driver)
    assert (said["done"], said["failed"]) == (16, [])
    assert any("was lost; what it had to do goes elsewhere" in note for note in said["notes"])
    assert content(hard / "out") == here(path, hard / "one")
    assert deaths(hard / "out") == 0
    assert sorted(entry.name for entry in (hard / "out/.genkit").iterdir()) == ["journal.jsonl", "lock", "plan.jsonl"]


@pytest.mark.slow
def test_a_node_that_leaves_and_a_hand_that_kills_are_held_against_nobody(cluster: Cluster, hard: Path) -> None:
    path = written(hard, SLOW.replace("NOTES", str(hard / "notes")))
    driver = started(path, hard / "out", address=cluster.address)
    until(lambda: count(hard / "out") >= 2)
    cluster.leave()
    cluster.add()
    before = count(hard / "out")
    until(lambda: count(hard / "out") >= before + 2)
    os.kill(int((hard / "notes").read_text().splitlines()[-1].split()[0]), signal.SIGKILL)
    said = ended(driver)
    assert (said["done"], said["failed"]) == (16, [])
    assert content(hard / "out") == here(path, hard / "one")
    assert deaths(hard / "out") == 0


def test_the_driver_is_killed_and_run_again(cluster: Cluster, hard: Path) -> None:
    path = written(hard, SLOW.replace("NOTES", str(hard / "notes")))
    driver = started(path, hard / "out", address=cluster.address)
    until(lambda: count(hard / "out") >= 3)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    actors = {int(line.split()[0]) for line in (hard / "notes").read_text().splitlines()}
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in actors), 60)
    made = count(hard / "out")
    assert 3 <= made < 16
    said = ended(started(path, hard / "out", address=cluster.address))
    assert (said["done"] + said["skipped"], said["failed"]) == (16, [])
    assert said["skipped"] >= 3
    assert content(hard / "out") == here(path, hard / "one")


@pytest.mark.slow
def test_the_first_interrupt_finishes_what_runs(cluster: Cluster, hard: Path) -> None:
    path = written(hard, SLOW.replace("NOTES", str(hard / "notes")))
    driver = started(path, hard / "out", address=cluster.address)
    until(lambda: count(hard / "out") >= 2)
    os.kill(driver.pid, signal.SIGTERM)  # which Ray would take for itself
    said = ended(driver)
    assert said["status"] == 143
    assert 2 <= count(hard / "out") < 16
    begun = [line.split()[1] for line in (hard / "notes").read_text().splitlines()]
    assert len(begun) == count(hard / "out")  # nothing was begun that was not finished


@pytest.mark.slow
def test_a_job_that_hangs_is_ended(cluster: Cluster, hard: Path) -> None:
    path = written(
        hard,
        "name: hard\npipeline: test-on-ray\nmatrix: {seed: [1, 2]}\ninclude: [{seed: 3, sleep: 1000}]\n"
        "output: '{seed}.png'\n",
    )
    said = ended(started(path, hard / "out", address=cluster.address, job_timeout=1.0))
    assert said["done"] == 2
    (failed,) = said["failed"]
    assert "took longer than 1 s (--job-timeout)" in failed["error"]


@pytest.mark.slow
def test_an_input_travels_by_digest(cluster: Cluster, hard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that means this file only in the driver's own folder."""
    import torch

    from genkit.media.image import Image

    monkeypatch.setenv("GENKIT_HOME", str(hard / "state"))
    monkeypatch.chdir(hard)
    Image.from_tensor(torch.full((3, 4, 4), 0.5)).save(hard / "grey.png")
    path = written(
        hard,
        "name: blend\npipeline: test-noise\nparams: {width: 4, height: 4, content: /proc/self/cwd/grey.png}\n"
        "matrix: {seed: [1, 2, 3]}\n",
    )
    said = ended(started(path, hard / "out", address=cluster.address))
    assert (said["done"], said["failed"]) == (3, [])
    assert content(hard / "out") == here(path, hard / "one")


@pytest.mark.slow
def test_a_node_that_cannot_be_used_is_said_in_one_line(cluster: Cluster, hard: Path) -> None:
    path = written(hard, CHAIN)
    script = "from genkit.batch.engines import crew\ncrew.__version__ = '0.0'\n" + DRIVER
    command = [sys.executable, "-c", script, str(path), str(hard / "out"), json.dumps({"address": cluster.address})]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["status"] == 2
    assert "and the runner 0.0; install the same on both" in said["error"]
    assert content(hard / "out") == {}


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_said_in_one_line(hard: Path) -> None:
    said = ended(started(written(hard, CHAIN), hard / "out", address="127.0.0.1:1"))
    assert said["status"] == 2
    assert "no Ray cluster at '127.0.0.1:1'" in said["error"]
    assert "ray start --head" in said["error"]


@pytest.mark.slow
def test_a_run_starts_a_cluster_of_its_own(hard: Path) -> None:
    path = written(hard, CHAIN)
    said = ended(started(path, hard / "ray", workers=2))
    assert (said["done"], said["failed"]) == (11, [])
    assert content(hard / "ray") == here(path, hard / "one")


@pytest.mark.slow
@pytest.mark.timeout(5 * PATIENCE)
def test_the_torture_recipe_survives_the_loss_of_a_node(cluster: Cluster, tmp_path: Path) -> None:
    path = ROOT / "recipes/torture.yaml"
    driver = started(path, tmp_path / "ray", address=cluster.address)
    until(lambda: count(tmp_path / "ray") >= 30, PATIENCE)
    cluster.kill()
    cluster.add()
    said = ended(driver)
    assert said["failed"] == []
    assert any("was lost" in note for note in said["notes"])
    assert content(tmp_path / "ray") == here(path, tmp_path / "one")
