"""The lock of a folder: one runner has it, and who only asks disturbs nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from genkit.batch import lock
from genkit.batch.journal import Journal, owner
from genkit.errors import Locked

HOLD = """
import sys
from genkit.batch.journal import Journal
with Journal(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""
TRY = """
import sys
from genkit.batch.journal import Journal, owner
from genkit.errors import Locked
print(owner(sys.argv[1]))
try:
    Journal(sys.argv[1])
    print("free")
except Locked:
    print("locked")
"""


def elsewhere(code: str, folder: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_another_process_is_seen_and_gone_when_it_is_killed(tmp_path: Path) -> None:
    assert owner(tmp_path) == ""
    with elsewhere(HOLD, tmp_path) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert owner(tmp_path).startswith(f"process {other.pid} on ")
        with pytest.raises(Locked, match=f"process {other.pid} on "):
            Journal(tmp_path)
        (tmp_path / ".genkit/lock").write_text("process 1 on elsewhere")  # the words of the one before
        assert owner(tmp_path) == f"process {other.pid}"
        other.kill()
    assert owner(tmp_path) == ""


def test_asking_takes_no_lock_and_loses_none(tmp_path: Path) -> None:
    """A process that closes a handle to a file it has locked has lost its lock: asking must not do that."""
    with Journal(tmp_path):
        assert owner(tmp_path) == f"process {os.getpid()} on {os.uname().nodename}"
        with pytest.raises(Locked):
            Journal(tmp_path)
        with elsewhere(TRY, tmp_path) as other:
            said = other.communicate()[0].splitlines()
    assert said[0].startswith(f"process {os.getpid()} on ")
    assert said[1] == "locked"
    assert owner(tmp_path) == ""
    with Journal(tmp_path):
        pass


ASK = """
import sys, time
from genkit.batch.journal import owner
print("asking", flush=True)
seen, until = set(), time.monotonic() + 1
while time.monotonic() < until:
    seen.add(owner(sys.argv[1]))
print(len(seen - {""}))
"""


def test_who_is_asked_about_all_the_time_is_never_turned_away(tmp_path: Path) -> None:
    with elsewhere(ASK, tmp_path) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "asking\n"
        while other.poll() is None:
            with Journal(tmp_path):
                pass
        assert int(other.stdout.read()) >= 1  # and with its words or, for a moment, without


def test_a_folder_that_cannot_be_asked_has_no_runner(tmp_path: Path) -> None:
    assert lock.owner(tmp_path / "nowhere/.genkit/lock") == ""
