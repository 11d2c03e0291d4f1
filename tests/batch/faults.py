# ruff: noqa: T201 - a program that prints
"""A run at the mercy of a bad disk: the n-th call that changes its output folder fails or ends it, for every n.

    LD_PRELOAD=faults.so python tests/batch/faults.py RECIPE --scratch DIR --error EIO --how once

`faults.c` spoils the calls. This process imports everything and makes the recipe's files once, undisturbed; then it
forks a child for each n, a thousand times quicker than a start, and a dozen at once. The child runs `genkit run` as it
stands, spoilt, in a folder of its own, looks at what it left, and gives the same command again, on a good disk.
With `--lose` the power fails as well: what was not synced until then is lost. Each n is told as a line of JSON:

    n, hit        which call it was: "fsync .genkit/journal.jsonl"
    status, said  how the run ended, and what it wrote to stderr
    wrong         which promises it broke, in words; empty if none

The promises: under a final name there is the whole file or none; the journal can be read, and has no line for a file
that is not there; the run ends with the status and the line due to it; a run on a good disk then ends with 0 and gives
what an undisturbed one gives, byte for byte and without leavings; and one more finds nothing to do.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
HOW = {"once": 0, "on": 1, "half": 2, "kill": 3}
REPORTS = ("report.html", "grid.png")  # written anew by every run, and they tell its times


def build(folder: Path) -> Path:
    """Compiles the disk that fails. Raises OSError or CalledProcessError where that cannot be done."""
    library = folder / "faults.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def content(folder: Path, but: tuple[str, ...] = REPORTS) -> dict[str, str]:
    """Every file outside `.genkit` by its digest."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(".genkit/") and name not in but:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def leavings(folder: Path) -> list[str]:
    """Temporary files: anything in the staging folder, or named as one."""
    staged = (folder / ".genkit/staging").rglob("*")
    return sorted({path.relative_to(folder).as_posix() for path in (*staged, *folder.rglob("*.tmp"))})


def fork(work: Callable[[], int]) -> int:
    """Does work in a child, which ends with the status it gives; the child's id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            status = work()
        finally:
            os._exit(status)
    return child


def wait(child: int) -> int:
    """A child's exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@dataclass(frozen=True)
class Fault:
    """error: its number; how: see faults.c; lost: what is lost with the power, "names" or "data", if it fails too."""

    error: int
    how: int
    lost: str = ""


class Inode:
    """A file, whatever its names. synced: bytes of it that are on the disk for certain."""

    synced = 0


class Diary:
    """What a run did to its folder, in order, as `faults.c` wrote it down; and what is left of it without power.

    The worst that a file system may do: of a file there is what it held when it was last synced, and of a folder's
    names there are those it had when it was.
    """

    def __init__(self, folder: Path, mark: Path, text: str) -> None:
        self.folder, self.mark = folder, mark
        self.files: dict[str, Inode] = {}
        self.undo: list[tuple[str, Callable[[], object]]] = []  # by the folder whose names are changed, in order
        for line in text.splitlines():
            call, place, origin, number = line.split("\t")
            getattr(self, f"_{call}", self._other)(place, origin, int(number))

    def lose(self, names: bool) -> None:
        for place, inode in self.files.items():
            path = self.folder / place
            if path.is_file() and path.stat().st_size > inode.synced:
                os.truncate(path, inode.synced)
        for _, undo in reversed(self.undo) if names else ():
            with contextlib.suppress(FileNotFoundError):
                undo()

    def _changes(self, place: str, undo: Callable[[], object]) -> None:
        self.undo.append((str(Path(place).parent), undo))

    def _gone(self, place: str, number: int = 0) -> None:
        """A name goes; what it stood for before comes back, if that was kept."""
        path = self.folder / place
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if number:
            os.link(f"{self.mark}.{number}", path)

    def _create(self, place: str, origin: str, number: int) -> None:
        self.files[place] = Inode()
        self._changes(place, lambda: self._gone(place))

    def _mkdir(self, place: str, origin: str, number: int) -> None:
        self._changes(place, lambda: self._gone(place))

    def _link(self, place: str, origin: str, number: int) -> None:
        self.files[place] = self.files[origin]
        self._changes(place, lambda: self._gone(place))

    def _rename(self, place: str, origin: str, number: int) -> None:
        self.files[place] = self.files.pop(origin)
        self._changes(place, lambda: self._gone(place, number))

    def _unlink(self, place: str, origin: str, number: int) -> None:
        self.files.pop(place, None)
        if number:
            self._changes(place, lambda: self._gone(place, number))

    def _fsync(self, place: str, origin: str, number: int) -> None:
        if place in self.files:
            self.files[place].synced = number
        else:
            self.undo = [(folder, undo) for folder, undo in self.undo if folder != place]

    _fdatasync = _fsync

    def _other(self, place: str, origin: str, number: int) -> None:
        pass


@dataclass
class Case:
    n: int
    hit: str
    status: int
    said: str
    wrong: list[str] = field(default_factory=list)


class Sweep:
    """workers: the call is spoilt in a worker process, whichever comes to it first; 0: in the run's own."""

    def __init__(self, recipe: Path, scratch: Path, fault: Fault, workers: int, options: list[str]) -> None:
        self.recipe, self.scratch, self.fault, self.workers = recipe, scratch, fault, workers
        self.options = [*options, "--workers", str(workers)] if workers else options
        self.calls = ctypes.CDLL(None)  # the library that was loaded before this process
        self.expected: dict[str, str] = {}

    def genkit(self, out: Path) -> int:
        from genkit.cli import main

        return main(["run", str(self.recipe), "--out", str(out), "--quiet", *self.options])

    def undisturbed(self) -> None:
        """A run as it should be; everything is imported by it."""
        out = self.scratch / "undisturbed"
        assert self.genkit(out) == 0
        self.expected = content(out)
        assert self.expected
        assert leavings(out) == []
        gc.collect()
        gc.freeze()  # a collection in a child would copy every page that it looks at

    def cases(self, at_once: int) -> Iterator[Case]:
        """A case for every call, until a run ends without coming to it."""
        n = 0
        while True:
            numbers = range(n + 1, n + 1 + at_once)
            trials = [Trial(self, number) for number in numbers]
            for child in [fork(trial.run) for trial in trials]:
                assert wait(child) == 0
            for trial in trials:
                case = Case(**json.loads((trial.home / "case").read_text()))
                if not case.hit:
                    assert case.status == 0, case.said
                    return
                yield case
            n += at_once


class Trial:
    """One n, in a folder of its own."""

    def __init__(self, sweep: Sweep, n: int) -> None:
        self.sweep, self.n, self.fault, self.workers = sweep, n, sweep.fault, sweep.workers
        self.expected = sweep.expected
        self.home = sweep.scratch / str(n)
        self.out, self.mark, self.said = self.home / "out", self.home / "mark", self.home / "said"
        self.diary = self.home / "diary"

    def run(self) -> int:
        self.home.mkdir()
        status = wait(fork(self._spoilt))
        if self.fault.lost:
            Diary(self.out, self.mark, self.diary.read_text()).lose(self.fault.lost == "names")
        case = Case(self.n, self.mark.read_text() if self.mark.exists() else "", status, self.said.read_text())
        if case.hit:
            case.wrong += [*self._left(), *self._ending(case), *self._again()]
        if not case.wrong:
            shutil.rmtree(self.out)
        (self.home / "case").write_text(json.dumps(asdict(case)))
        return 0

    def _spoilt(self) -> int:
        with self.said.open("w") as said:
            os.dup2(said.fileno(), 2)
        given = {"DIR": self.out, "AT": self.n, "ERROR": self.fault.error, "HOW": self.fault.how, "MARK": self.mark}
        if self.workers:
            os.environ.update({f"FAULT_{name}": str(value) for name, value in given.items()})
        else:
            if self.fault.lost:
                self.sweep.calls.faults_diary(os.open(self.diary, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
            texts = os.fsencode(self.out), os.fsencode(self.mark)
            self.sweep.calls.faults_arm(texts[0], self.n, self.fault.error, self.fault.how, texts[1])
        return self.sweep.genkit(self.out)

    def _left(self) -> Iterator[str]:
        """What is wrong with the folder as the spoilt run left it."""
        from genkit.batch.journal import read

        there = self._files()
        for name, digest in there.items():
            if digest != self.expected.get(name):
                yield f"{name} is half a file, or not one of the recipe's"
        for name in REPORTS:
            if (self.out / name).exists() and not _whole(self.out / name):
                yield f"{name} is half a file"
        state = read(self.out)
        if state.damaged:
            yield f"the journal has {state.damaged} damaged lines"
        for done in state.done.values():
            for made in done.files:
                if there.get(made.path) != made.sha256.removeprefix("sha256:"):
                    yield f"the journal says that {made.path} is done"

    def _ending(self, case: Case) -> Iterator[str]:
        """Whether the spoilt run ended as it should have."""
        killed = self.fault.how == HOW["kill"]
        if killed and not self.workers:
            if case.status != -9:
                yield f"it was not killed but ended with {case.status}"
            return
        full = self.fault.error in (errno.ENOSPC, errno.EDQUOT)
        allowed = (0,) if killed else (0, 4) if full else (0, 2) if self.fault.error == errno.EROFS else (0, 1, 3)
        if case.status not in allowed:
            yield f"it ended with {case.status}"
        if "Traceback" in case.said or "a fault in genkit" in case.said:
            yield "it ended with a fault of its own"
        if len([line for line in case.said.splitlines() if not line.startswith("no report:")]) != bool(case.status):
            yield "it says more than one line, or none"
        if case.status == 0 and self._files() != self.expected:
            yield "it says that all is well"

    def _files(self) -> dict[str, str]:
        """By digest, without the report's temporary ones: a report that cannot be written is no job that failed."""
        reports = tuple(f".{name}." for name in REPORTS)
        return {name: digest for name, digest in content(self.out).items() if not name.startswith(reports)}

    def _again(self) -> Iterator[str]:
        """What is wrong after the same command on a good disk."""
        from genkit.batch.journal import read

        with self.said.open("w") as said, contextlib.redirect_stderr(said):
            status = self.sweep.genkit(self.out)
        if status:
            yield f"run again, it ended with {status}: {self.said.read_text()}"
        there = content(self.out)
        for name in sorted(there.keys() | self.expected.keys()):
            if there.get(name) != self.expected.get(name):
                yield f"run again, {name} is {'another' if name in there else 'missing'}"
        for name in leavings(self.out):
            yield f"run again, {name} is left over"
        if damaged := read(self.out).damaged:
            yield f"run again, the journal has {damaged} damaged lines"
        before = (self.out / ".genkit/journal.jsonl").read_bytes()
        if self.sweep.genkit(self.out) or (self.out / ".genkit/journal.jsonl").read_bytes() != before:
            yield "run once more, it finds something to do"


def _whole(path: Path) -> bool:
    data = path.read_bytes()
    return data.rstrip().endswith(b"</html>") if path.suffix == ".html" else data.endswith(b"IEND\xaeB`\x82")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=f"{__doc__.splitlines()[0]} Other options go to `genkit run`.", allow_abbrev=False
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--scratch", type=Path, required=True, help="a folder to work in")
    parser.add_argument("--error", default="EIO", help="EIO, ENOSPC, EDQUOT, EROFS")
    parser.add_argument("--how", choices=HOW, default="once", help="see faults.c")
    parser.add_argument("--lose", choices=("names", "data"), default="", help="and the power fails: what is lost")
    parser.add_argument("--at-once", type=int, default=12, help="cases at the same time; mostly they wait")
    parser.add_argument("--workers", type=int, default=0, help="spoil a call of one of so many workers")
    given, options = parser.parse_known_args()
    given.scratch.mkdir(parents=True, exist_ok=True)
    fault = Fault(getattr(errno, given.error), HOW[given.how], given.lose)
    sweep = Sweep(given.recipe.absolute(), given.scratch.absolute(), fault, given.workers, options)
    sweep.undisturbed()
    for case in sweep.cases(given.at_once):
        print(json.dumps(asdict(case)), flush=True)


if __name__ == "__main__":
    main()
