"""A store behind a URL that fsspec understands: s3://, gs://, az://, sftp:// and what else has a driver.

The promise is that of a folder (`genkit.batch.store`): a job's files are made on this machine and appear under their
names whole, once, and over nobody else's file. `genkit.batch.site` says how, and where that is weaker.

A journal cannot be appended to there. It lies in a folder of this machine, one for each URL, in GENKIT_HOME (default:
~/.local/state/genkit), and while a run lasts a thread uploads it whole every INTERVAL seconds, and at the end. A
machine that has none, or an older one, begins with the copy; what was made since that was uploaded is known by its
record. The same thread renews a notice of who works there, since a lock reaches only as far as this machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from genkit.batch.job import Job
from genkit.batch.journal import FOLDER, Made
from genkit.batch.site import STAGED, Site
from genkit.batch.store import BESIDE, entry
from genkit.errors import GenkitError, InputError, Locked

__all__ = ["Remote", "state_folder"]

KEPT = (f"{FOLDER}/plan.jsonl", f"{FOLDER}/journal.jsonl", "report.html", "grid.png")
NOTICE = f"{FOLDER}/runner.json"
INTERVAL = 30.0  # seconds between copies of the journal, and between signs of life
SILENT = 4 * INTERVAL  # seconds after which another machine's runner counts as dead
FRESH = 60.0  # seconds for which the list of what is there answers, instead of a question for each file
NAME_BYTES = 1000  # of an object's whole name; S3, Google and Azure take 1024


class Remote:
    """url: as people wrote it. Can be pickled; a copy knows no more than the URL.

    Raises InputError for a URL that nothing here can open; every method may raise what a `Site` does.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.site = Site(self.url)
        self._digest = hashlib.sha256(self.url.encode()).hexdigest()[:12]
        last = "".join(c if c.isalnum() or c in "-_." else "-" for c in self.url.rsplit("/", 1)[-1])[:60]
        self._home = state_folder() / "runs" / f"{last}-{self._digest}"
        self._seen: tuple[float, dict[str, int]] = (-FRESH, {})  # when, and the sizes of what is there by name
        self._sent: dict[str, tuple[int, int]] = {}  # what the copies were made from
        self._thread: tuple[threading.Thread, threading.Event] | None = None  # and what stops it

    def __reduce__(self) -> tuple[type[Remote], tuple[str]]:
        return Remote, (self.url,)

    @property
    def name(self) -> str:
        return self.url

    @property
    def home(self) -> Path:
        return self._home

    # A run

    def fetch(self) -> None:
        """Before the journal is opened: looks at what is there, and brings the copies here if this machine has none, or
        if what it has is the beginning of what another machine made of it since."""
        self._seen = time.monotonic(), self.site.files()
        for name in KEPT:
            target = self.home / name
            mine = target.stat().st_size if target.exists() else 0
            if self._seen[1].get(name, 0) > mine and (not mine or target.suffix == ".jsonl"):
                with self.local(name) as copy:
                    if not mine or _begins(copy, target):
                        _replace(target, copy)

    def begin(self) -> None:
        """Raises Locked if a runner on another machine works there."""
        self._check_notice()
        self._notice()
        self._sweep()
        stop = threading.Event()
        thread = threading.Thread(target=self._keeping, args=(stop,), name="genkit-keep", daemon=True)
        thread.start()
        self._thread = thread, stop

    def keep(self) -> None:
        """Brings the copies up to date; while a run lasts its thread does that."""
        if self._thread is None:
            self._copy()

    def end(self) -> None:
        if self._thread is not None:
            (thread, stop), self._thread = self._thread, None
            stop.set()
            thread.join()
        self._copy()
        self._sweep()
        self.site.remove(NOTICE)

    def _keeping(self, stop: threading.Event) -> None:
        while not stop.wait(INTERVAL):
            with contextlib.suppress(GenkitError):  # a lost connection may come back
                self._notice()
                self._copy()

    def _copy(self) -> None:
        for name in KEPT:
            with contextlib.suppress(FileNotFoundError):
                status = (self.home / name).stat()
                version = status.st_size, status.st_mtime_ns
                if self._sent.get(name) != version:
                    with _snapshot(self.home / name) as copy:
                        self.site.put(copy, name, create=False)
                    self._sent[name] = version

    def _notice(self) -> None:
        words = {"host": socket.gethostname(), "pid": os.getpid(), "at": round(time.time(), 1)}
        self.site.write(NOTICE, json.dumps(words).encode())

    def _check_notice(self) -> None:
        try:
            words = json.loads(self.site.read(NOTICE))
            host, pid, silence = str(words["host"]), int(words["pid"]), time.time() - float(words["at"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return
        if host != socket.gethostname() and silence < SILENT:
            wait = f"{SILENT - silence:.0f} s"
            raise Locked(f"process {pid} on {host} works in {self.url}; wait for it, or, if it was killed, for {wait}")

    def _sweep(self) -> None:
        self.site.remove(STAGED, recursive=True)
        for folder in Path(tempfile.gettempdir()).glob(f"genkit-{self._digest}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    # A file

    def check(self, name: str) -> None:
        if ".." in name.split("/") or len(self.site.place(name).encode()) > NAME_BYTES:
            raise InputError(f"{name[:60]!r} is no name for a file under {self.url}; choose a shorter, plain one")

    @contextlib.contextmanager
    def draft(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix=f"genkit-{self._digest}-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def commit(self, drafts: Mapping[str, Path], job: Job) -> None:
        own = {name: name in job.replaces or name.endswith(BESIDE) for name in drafts}
        for name in drafts:  # of all of them before the first is put in its place
            self.check(name)
            if not own[name] and self.site.size(name) is not None:
                own[name] = self._made_by(name, job)
        for name, draft in drafts.items():
            try:
                self.site.put(draft, name, create=not own[name])
            except FileExistsError:  # it came to be there only now
                self.site.put(draft, name, create=not self._made_by(name, job))

    def _made_by(self, name: str, job: Job) -> bool:
        """That a file is a job's own. Raises InputError."""
        if self.maker(name) != job.id:
            raise InputError(f"{self.path(name)!r} exists and is not this job's; move it away, or name another")
        return True

    def path(self, name: str) -> str:
        return f"{self.url}/{name}"

    def in_place(self, made: Made) -> bool:
        """A list that is fresh answers if it knows the file; what it does not know may have been made since."""
        when, sizes = self._seen
        if time.monotonic() - when < FRESH and sizes.get(made.path) == made.bytes:
            return True
        return self.site.size(made.path) == made.bytes

    def exists(self, name: str) -> bool:
        """A list that is fresh answers; what was put there since is seen when it stands in the way."""
        when, sizes = self._seen
        if time.monotonic() - when < FRESH:
            return name in sizes
        return self.site.size(name) is not None

    def made(self, name: str) -> Made:
        with self.local(name) as path:
            return dataclasses.replace(entry(path.parent, path.name), path=name)

    def maker(self, name: str) -> str | None:
        from genkit.media import provenance

        with contextlib.suppress(FileNotFoundError), self.local(name) as path:
            with contextlib.suppress(FileNotFoundError), self.local(name + BESIDE) as beside:
                shutil.copyfile(beside, provenance.sidecar(path))
            with contextlib.suppress(InputError):
                record = provenance.read(path)
                return record.job if record else None
        return None

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        with self.draft() as folder:
            path = folder / name.rsplit("/", 1)[-1]
            self.site.get(name, path)
            yield path


def state_folder() -> Path:
    """Where genkit keeps what outlasts a run and is no output: GENKIT_HOME, else the system's place for it."""
    if given := os.environ.get("GENKIT_HOME"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "genkit"


def _begins(longer: Path, shorter: Path) -> bool:
    """Whether one file is the beginning of the other."""
    with longer.open("rb") as whole, shorter.open("rb") as part:
        while block := part.read(1 << 20):
            if whole.read(len(block)) != block:
                return False
    return True


def _replace(target: Path, copy: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.genkit-{secrets.token_hex(4)}.tmp")
    shutil.copyfile(copy, beside)
    beside.replace(target)


@contextlib.contextmanager
def _snapshot(path: Path) -> Iterator[Path]:
    """A copy of a file that may be growing, which stays as it is while it is uploaded."""
    with tempfile.TemporaryDirectory(prefix="genkit-") as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        yield copy
