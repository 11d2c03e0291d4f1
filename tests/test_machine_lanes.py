"""A machine shared out: threads within the cores there are, one lane a GPU, and what a container is granted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import genkit.lanes
from genkit.errors import InputError
from genkit.lanes import Lane, cores, lanes
from genkit.runtime import devices


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(genkit.lanes, "cores", lambda: 16)


@pytest.mark.parametrize(
    ("workers", "count", "threads"), [(None, 4, 4), (1, 1, 16), (2, 2, 8), (3, 3, 5), (16, 16, 1), (40, 40, 1)]
)
def test_a_cpus_cores_are_divided_among_its_workers(sixteen, workers, count, threads):
    assert lanes(workers, "cpu") == [Lane("cpu", threads)] * count


def test_few_cores_are_one_lane(monkeypatch):
    monkeypatch.setattr(genkit.lanes, "cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert lanes(None, "cpu") == [Lane("cpu", 2)]


def test_threads_that_were_asked_for_are_the_most_a_lane_has(sixteen, monkeypatch):
    for words, threads in (("1", 1), ("6,2", 6), ("99", 8), ("many", 8), ("0", 8), ("٣", 8)):
        monkeypatch.setenv("OMP_NUM_THREADS", words)
        assert lanes(2, "cpu") == [Lane("cpu", threads)] * 2, words


def test_every_gpu_has_a_lane_and_more_lanes_take_turns(sixteen, monkeypatch):
    monkeypatch.delenv("GENKIT_DEVICE", raising=False)
    monkeypatch.setattr(genkit.lanes, "_may_have_gpus", lambda: True)
    monkeypatch.setattr("genkit.runtime.devices", lambda: ["cuda:0", "cuda:1", "xpu:0", "cpu"])
    assert lanes() == lanes(None, "cuda") == [Lane("cuda:0", 8), Lane("cuda:1", 8)]
    assert [lane.device for lane in lanes(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert lanes(None, "cuda:1") == [Lane("cuda:1", 16)]
    assert lanes(None, "xpu") == [Lane("xpu:0", 16)]
    assert lanes(None, "cpu") == [Lane("cpu", 4)] * 4
    monkeypatch.setattr("genkit.runtime.devices", lambda: ["mps", "cpu"])
    assert lanes() == lanes(None, "mps") == [Lane("mps", 16)]


def test_the_lanes_of_this_machine_are_on_devices_it_has(monkeypatch):
    monkeypatch.delenv("GENKIT_DEVICE", raising=False)
    assert {lane.device for lane in lanes()} <= {None, *devices()}
    monkeypatch.setenv("GENKIT_DEVICE", "cpu")
    assert lanes(2)[0].device == "cpu"


@pytest.mark.parametrize("workers", [0, -1, 257])
def test_no_lanes_and_a_great_many_are_refused(workers):
    with pytest.raises(InputError, match=rf"^workers {workers} is out of range: it must be 1 to 256$"):
        lanes(workers, "cpu")


def test_a_lane_is_found_without_torch():
    code = "import sys; from genkit.lanes import lanes; lanes(2, 'cpu'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def machine(root: Path, threads: dict[int, str], files: dict[str, str]) -> Path:
    files = {
        f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": text for i, text in threads.items()
    } | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.fixture
def eight_threads(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """Four cores of two threads each, all for this process."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return {i: f"{i % 4},{i % 4 + 4}" for i in range(8)}


def test_two_threads_of_one_core_are_one_core(tmp_path, eight_threads, monkeypatch):
    assert cores(machine(tmp_path, eight_threads, {})) == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6}, raising=False)
    assert cores(tmp_path) == 2
    assert cores(tmp_path / "tells-nothing") == 3


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, 4),
        ({"sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ({"sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"sys/fs/cgroup/a/cpu.max": "300000 100000", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 3),
        ({"sys/fs/cgroup/other/cpu.max": "100000 100000"}, 4),
        ({"sys/fs/cgroup/cpu.max": "nonsense"}, 4),
        ({"sys/fs/cgroup/cpu.max": "100000 0"}, 4),
    ],
)
def test_a_control_group_grants_no_more_than_it_has(tmp_path, eight_threads, files, expected):
    assert cores(machine(tmp_path, eight_threads, {"proc/self/cgroup": "0::/a/b", **files})) == expected


def test_the_older_control_groups_count_too(tmp_path, eight_threads):
    files = {"proc/self/cgroup": "5:memory:/x\n1:cpu,cpuacct:/docker/abc", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"}
    files["sys/fs/cgroup/cpu/cpu.cfs_period_us"] = "100000"
    assert cores(machine(tmp_path, eight_threads, files)) == 4
    assert cores(machine(tmp_path, {}, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000"})) == 1


def test_this_machine_has_a_core():
    assert 1 <= cores() <= (os.cpu_count() or 1)
