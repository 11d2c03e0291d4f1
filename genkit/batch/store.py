"""Where a batch's outputs go, and the promise that they appear there whole, once, and over nobody else's file.

A job's files are written as drafts in a folder of their own (`.genkit/staging`) and then committed: each is synced, put
under its name in one step, and its folder synced. A name that is taken is left alone, unless what lies there is the
same job's (an earlier run put it there and was killed before it could say so) or an older version that the job
replaces. The drafts of a run that was killed are swept away when the next one begins, so nothing half-written ever lies
among the outputs.

`Folder` is a folder of this machine or of a shared file system; `genkit.batch.remote` has the stores behind a URL.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from genkit.batch.job import Job
from genkit.batch.journal import FOLDER, Made
from genkit.errors import GenkitError, InputError
from genkit.media import files

__all__ = ["Folder", "Store", "open"]

STAGING = "staging"
BESIDE = ".genkit.json"  # the record of a file that has no place for one, see `provenance.sidecar`


class Store(Protocol):
    """name: as people wrote it; home: a folder of this machine whose `.genkit` holds journal, plan and lock. Can be
    pickled to a worker."""

    @property
    def name(self) -> str: ...

    @property
    def home(self) -> Path: ...

    def begin(self) -> None:
        """A run begins, and has the lock: what a killed one left half-written is removed."""

    def keep(self) -> None:
        """The journal has grown: a store that keeps a copy of it may bring that up to date."""

    def end(self) -> None:
        """The run ends, however: nothing half-written is left, and a copy of the journal is up to date."""

    def check(self, name: str) -> None:
        """Asked before anything is computed. Raises InputError if the name leads elsewhere or cannot be written."""

    def draft(self) -> AbstractContextManager[Path]:
        """A fresh folder of this machine for a job's drafts, gone afterwards."""

    def commit(self, drafts: Mapping[str, Path], job: Job) -> None:
        """Puts all of a job's files in their places, in order. Raises InputError if a place is taken by another's file,
        DiskFull, OSError."""

    def path(self, name: str) -> str:
        """What a later stage's parameter holds to take it."""

    def in_place(self, made: Made) -> bool:
        """Whether a file is there as it was entered, by its size."""

    def exists(self, name: str) -> bool: ...

    def local(self, name: str) -> AbstractContextManager[Path]:
        """A file as one of this machine, while it lasts. Raises FileNotFoundError."""

    def made(self, name: str) -> Made:
        """A file that is there, as the journal enters it."""

    def maker(self, name: str) -> str | None:
        """The id of the job that made a file; None if no batch did, or it cannot be told."""


def open(out: str | Path) -> Store:
    """The store of an output folder or URL; what is kept of its journal behind a URL is brought here. Raises
    InputError, DiskError."""
    place = str(out).removeprefix("file://")
    if "://" in place:
        from genkit.batch.remote import Remote

        store = Remote(place)
        store.fetch()
        return store
    return Folder(Path(place).absolute())


@dataclass(frozen=True)
class Folder:
    """A folder, its links resolved once so that nothing can lead out of it later."""

    root: Path

    @property
    def name(self) -> str:
        return str(self.root)

    @property
    def home(self) -> Path:
        return self.root

    def begin(self) -> None:
        shutil.rmtree(self.root / FOLDER / STAGING, ignore_errors=True)
        for folder in (self.root, self.root / FOLDER):  # the report, the plan
            for path in folder.glob(".*.genkit-*.tmp"):
                path.unlink(missing_ok=True)

    def keep(self) -> None:
        pass

    def end(self) -> None:
        # Again, since a worker that outlived a killed runner for a moment may have left something after `begin`.
        shutil.rmtree(self.root / FOLDER / STAGING, ignore_errors=True)

    def check(self, name: str) -> None:
        home, folder = self.root.resolve(), (self.root / name).parent
        while not folder.exists():
            folder = folder.parent
        if not folder.resolve().is_relative_to(home):
            raise InputError(f"{str(folder)!r} is a link that leads out of the output folder; remove it")
        files.check_place(self.root / name)

    @contextlib.contextmanager
    def draft(self) -> Iterator[Path]:
        staging = self.root / FOLDER / STAGING
        staging.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=staging)
        try:
            yield Path(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, drafts: Mapping[str, Path], job: Job) -> None:
        own = {name: name in job.replaces or name.endswith(BESIDE) for name in drafts}
        for name in drafts:  # of all of them before the first is put in its place
            self.check(name)
            if not own[name] and self.exists(name):
                own[name] = self._made_by(name, job)
        for name, draft in drafts.items():
            try:
                files.commit(draft, self.root / name, overwrite=own[name])
            except FileExistsError:  # it came to be there only now
                files.commit(draft, self.root / name, overwrite=self._made_by(name, job))

    def _made_by(self, name: str, job: Job) -> bool:
        """That a file is a job's own. Raises InputError."""
        if self.maker(name) != job.id:
            raise InputError(f"{name!r} exists and is not this job's; move it away, or name another")
        return True

    def path(self, name: str) -> str:
        return str(self.root / name)

    def in_place(self, made: Made) -> bool:
        try:
            status = os.stat(f"{self.root}/{made.path}")  # noqa: PTH116 - of every file at each start: no Path for each
        except (OSError, ValueError):
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == made.bytes

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        path = self.root / name
        if not path.exists():
            raise FileNotFoundError(name)
        yield path

    def made(self, name: str) -> Made:
        return entry(self.root, name)

    def maker(self, name: str) -> str | None:
        from genkit.media import provenance

        path = self.root / name
        with contextlib.suppress(GenkitError):
            record = provenance.read(path) if path.is_file() else None
            return record.job if record else None
        return None


def entry(folder: Path, name: str) -> Made:
    """A file of a folder as the journal enters it."""
    from genkit.media.provenance import digest_file

    path = folder / name
    return Made(name, digest_file(path), path.stat().st_size)
