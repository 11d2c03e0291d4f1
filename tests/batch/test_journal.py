"""The journal: what was written is read again, whatever happened to its end; one writer at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genkit.batch.journal import Done, Failed, Journal, Made, read
from genkit.errors import DiskFull, Locked, MediaError

ENTRIES = [
    Done("id1", "a.png", (Made("a.png", "0" * 64, 10),), {}, 1.5, 1),
    Failed("id2", "b.png", "broke\nin two lines", 3, "trace"),
    Done("id3", "c.png", (Made("c-1.png", "1" * 64, 1), Made("c-2.png", "2" * 64, 2)), {"content": "0" * 64}, 0.1, 2),
]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.plan(recipe="r", jobs=3)
        for entry in ENTRIES:
            journal.enter(entry)
        written = journal.state
    state = read(tmp_path)
    assert state == written
    assert state.done == {"a.png": ENTRIES[0], "c.png": ENTRIES[2]}
    assert state.failed == {"b.png": ENTRIES[1]}
    assert state.plan["jobs"] == 3


def test_the_last_word_counts(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.enter(Failed("id", "a.png", "no"))
        journal.enter(Done("id", "a.png", ()))
    assert read(tmp_path).failed == {}
    with Journal(tmp_path) as journal:
        journal.enter(Failed("new", "a.png", "no"))
    state = read(tmp_path)  # an old result stays known until it is replaced
    assert state.done["a.png"].job == "id"
    assert state.failed["a.png"].job == "new"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 400), junk=st.binary(max_size=20))
def test_a_torn_end_costs_at_most_the_torn_lines(tmp_path: Path, cut: int, junk: bytes) -> None:
    path = tmp_path / ".genkit/journal.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    with Journal(tmp_path) as journal:
        for entry in ENTRIES:
            journal.enter(entry)
    whole = path.read_bytes()
    kept = whole[: max(0, len(whole) - cut)]
    path.write_bytes(kept + junk.replace(b"\n", b""))
    with Journal(tmp_path) as journal:
        assert path.read_bytes() == kept[: kept.rfind(b"\n") + 1]
        journal.enter(ENTRIES[0])
    state = read(tmp_path)
    assert state.damaged == 0
    assert state.done["a.png"] == ENTRIES[0]


def test_a_damaged_line_in_the_middle_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / ".genkit/journal.jsonl"
    path.parent.mkdir()
    good = json.dumps({"kind": "done", "job": "i", "output": "a.png", "files": []})
    lines = [
        b"{",
        b"[]",
        b"\xff\x00",
        b'{"kind": "done"}',
        b'{"kind": "done", "files": 3}',
        b'{"kind": "later", "x": 1}',
    ]
    path.write_bytes(b"\n".join([*lines, good.encode(), b""]))
    state = read(tmp_path)
    assert list(state.done) == ["a.png"]
    assert state.damaged == 5


def test_one_writer_in_a_process(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(Locked, match=str(tmp_path)):
        Journal(tmp_path)
    Journal(tmp_path).__exit__()


def test_one_writer_among_processes_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    code = "import sys, time; from genkit.batch.journal import Journal\nj = Journal(sys.argv[1])\n"
    code += "print(flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(Locked, match=f"process {other.pid}"):
            Journal(tmp_path)
    finally:
        other.kill()
        other.communicate()
    Journal(tmp_path).__exit__()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_says_so(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        os.close(journal._file)
        journal._file = os.open("/dev/full", os.O_WRONLY)
        with pytest.raises(DiskFull):
            journal.enter(ENTRIES[0])
        assert journal.state.done == {}


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(MediaError, match="choose another"):
        Journal(tmp_path / "out")
