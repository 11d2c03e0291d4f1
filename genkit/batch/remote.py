"""A store behind a URL that fsspec understands: s3://, gs://, az://, sftp:// and what else has a driver.

The promise is that of a folder (`genkit.batch.store`): a job's files are made on this machine and appear under their
names whole, once, and over nobody else's file. How, depends on what is behind the URL:

- An object store puts an object whole or not at all, so a draft goes straight under its name. S3, Google Storage and
  Azure refuse to put over an object that is there if they are asked to (`mode="create"`), so that of two writers one
  wins and the other is told. Another store may not know the request: there the look beforehand decides.
- On anything else a draft is uploaded to `.genkit/staging`, its size compared, and then moved to its name. A look
  beforehand tells whether the name is free; no step between the two is safe from another program.

A journal cannot be appended to there. It lies in a folder of this machine, one for each URL, in GENKIT_HOME (default:
~/.local/state/genkit), and while a run lasts a thread uploads it whole every INTERVAL seconds, and at the end. A
machine that has none, or an older one, begins with the copy; what was made since that was uploaded is known by its
record. The same thread renews a notice of who works there, since a lock reaches only as far as this machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
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
from typing import Any

from genkit.batch.job import Job
from genkit.batch.journal import FOLDER, Made
from genkit.batch.store import BESIDE, entry
from genkit.errors import DiskError, DiskFull, GenkitError, InputError, Locked

__all__ = ["Remote", "state_folder"]

KEPT = (f"{FOLDER}/plan.jsonl", f"{FOLDER}/journal.jsonl", "report.html")
NOTICE = f"{FOLDER}/runner.json"
STAGING = f"{FOLDER}/staging"
INTERVAL = 30.0  # seconds between copies of the journal, and between signs of life
SILENT = 4 * INTERVAL  # seconds after which another machine's runner counts as dead
FRESH = 60.0  # seconds for which the list of what is there answers, instead of a question for each file
NAME_BYTES = 1000  # of an object's whole name; S3, Google and Azure take 1024

OBJECT_STORES = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss", "obs", "cos", "tos", "swift"))
PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
PACKAGES |= {"sftp": "paramiko", "ssh": "paramiko", "smb": "smbprotocol", "webdav": "webdav4", "hdfs": "pyarrow"}
# What drivers raise for missing or wrong credentials, by name, since none of them is imported here.
CREDENTIALS = frozenset(
    (
        *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError"),  # botocore
        *("SSOTokenLoadError", "UnauthorizedSSOTokenError", "CredentialRetrievalError"),
        *("DefaultCredentialsError", "RefreshError", "ClientAuthenticationError"),  # google-auth, azure
        *("AuthenticationException", "PasswordRequiredException", "BadHostKeyException"),  # paramiko
    )
)


class Remote:
    """url: as people wrote it, without a "/" at its end. Can be pickled; a copy knows no more than the URL.

    Raises InputError for a URL that nothing here can open.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._digest = hashlib.sha256(self.url.encode()).hexdigest()[:12]
        last = "".join(c if c.isalnum() or c in "-_." else "-" for c in self.url.rsplit("/", 1)[-1])[:60]
        self._home = state_folder() / "runs" / f"{last}-{self._digest}"
        self._seen: tuple[float, dict[str, int]] = (-FRESH, {})  # when, and the sizes of what is there by name
        self._sent: dict[str, tuple[int, int]] = {}  # what the copies were made from
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None
        self._fs, self._root = _opened(self.url)
        self._objects = self.url.split("://", 1)[0] in OBJECT_STORES

    def __reduce__(self) -> tuple[type[Remote], tuple[str]]:
        return Remote, (self.url,)

    @property
    def name(self) -> str:
        return self.url

    @property
    def home(self) -> Path:
        return self._home

    # ------------------------------------------------------------------------------------------------------ a run

    def fetch(self) -> None:
        """Before the journal is opened: looks at what is there, and brings the copies here if this machine has none, or
        if what it has is the beginning of what another machine made of it since. Raises InputError, DiskError."""
        with self._words(""):
            self._list()
        for name in KEPT:
            target = self.home / name
            mine = target.stat().st_size if target.exists() else 0
            if self._seen[1].get(name, 0) > mine and (not mine or target.suffix == ".jsonl"):
                with self.local(name) as copy:
                    if not mine or _begins(copy, target):
                        _replace(target, copy)

    def _list(self) -> None:
        try:
            found = self._fs.find(self._root, detail=True)
        except FileNotFoundError:
            found = {}
        sizes = {path.removeprefix(self._root).lstrip("/"): facts["size"] for path, facts in found.items()}
        self._seen = time.monotonic(), sizes

    def begin(self) -> None:
        """Raises Locked if a runner on another machine works there."""
        with self._words(NOTICE):
            self._check_notice()
            self._notice()
            self._sweep()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keeping, args=(self._stop,), name="genkit-keep", daemon=True)
        self._thread.start()

    def keep(self) -> None:
        """Brings the copies up to date; while a run lasts its thread does that."""
        if self._thread is None:
            self._copy()

    def end(self) -> None:
        if self._thread is not None and self._stop is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
        self._copy()
        with self._words(NOTICE):
            self._sweep()
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._place(NOTICE))

    def _keeping(self, stop: threading.Event) -> None:
        while not stop.wait(INTERVAL):
            with contextlib.suppress(GenkitError), self._words(NOTICE):  # a lost connection may come back
                self._notice()
                self._copy()

    def _copy(self) -> None:
        for name in KEPT:
            with contextlib.suppress(FileNotFoundError):
                status = (self.home / name).stat()
                if self._sent.get(name) == (version := (status.st_size, status.st_mtime_ns)):
                    continue
                with self._words(name), _snapshot(self.home / name) as copy:
                    self._put(copy, name, create=False)
                self._sent[name] = version

    def _notice(self) -> None:
        words = {"host": socket.gethostname(), "pid": os.getpid(), "at": round(time.time(), 1)}
        if not self._objects:  # with some drivers it would make a bucket
            self._fs.makedirs(self._place(FOLDER), exist_ok=True)
        self._fs.pipe_file(self._place(NOTICE), json.dumps(words).encode())

    def _check_notice(self) -> None:
        try:
            words = json.loads(self._fs.cat_file(self._place(NOTICE)))
            host, pid, silence = str(words["host"]), int(words["pid"]), time.time() - float(words["at"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return
        if host != socket.gethostname() and silence < SILENT:
            raise Locked(
                f"process {pid} on {host} works in {self.url}; wait for it, or, if it was killed, "
                f"for {SILENT - silence:.0f} s"
            )

    def _sweep(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._place(STAGING), recursive=True)
        for folder in Path(tempfile.gettempdir()).glob(f"genkit-{self._digest}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    # ----------------------------------------------------------------------------------------------------- a file

    def check(self, name: str) -> None:
        if ".." in name.split("/") or len(self._place(name).encode()) > NAME_BYTES:
            raise InputError(f"{name[:60]!r} is no name for a file under {self.url}; choose a shorter, plain one")

    @contextlib.contextmanager
    def draft(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix=f"genkit-{self._digest}-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def commit(self, drafts: Mapping[str, Path], job: Job) -> None:
        own = {name: name in job.replaces or name.endswith(BESIDE) for name in drafts}
        for name in drafts:  # of all of them before the first is put in its place
            self.check(name)
            if not own[name] and self._there(name):
                own[name] = self._made_by(name, job)
        for name, draft in drafts.items():
            with self._words(name):
                try:
                    self._put(draft, name, create=not own[name])
                except FileExistsError:  # it came to be there only now
                    self._put(draft, name, create=not self._made_by(name, job))

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
        there = self._there(made.path)
        return there is not None and there.get("size") == made.bytes

    def exists(self, name: str) -> bool:
        """A list that is fresh answers; what was put there since is seen when it stands in the way."""
        when, sizes = self._seen
        if time.monotonic() - when < FRESH:
            return name in sizes
        return self._there(name) is not None

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
        """A copy of a file on this machine, gone afterwards. Raises FileNotFoundError, DiskError."""
        with self.draft() as folder:
            path = folder / name.rsplit("/", 1)[-1]
            with self._words(name, missing=True):
                self._fs.get_file(self._place(name), str(path))
            yield path

    # ---------------------------------------------------------------------------------------------- what it rests on

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _there(self, name: str) -> dict[str, Any] | None:
        """What the store tells of a file; None if there is none."""
        with contextlib.suppress(FileNotFoundError), self._words(name, missing=True):
            return dict(self._fs.info(self._place(name)))
        return None

    def _put(self, path: Path, name: str, *, create: bool) -> None:
        """Raises FileExistsError if the name is to be new and is taken."""
        if self._objects:
            self._put_object(path, name, create)
        else:
            self._put_and_move(path, name, create)

    def _put_object(self, path: Path, name: str, create: bool) -> None:
        try:
            self._fs.put_file(str(path), self._place(name), mode="create" if create else "overwrite")
        except OSError as error:
            if create:
                self._check_free(name)  # drivers do not agree on how to say so
            if not create or error.errno != errno.ENOSYS:
                raise
            self._fs.put_file(str(path), self._place(name))  # it does not know the request, and the name was free

    def _put_and_move(self, path: Path, name: str, create: bool) -> None:
        staged, target = f"{self._place(STAGING)}/{secrets.token_hex(8)}", self._place(name)
        self._fs.makedirs(self._place(STAGING), exist_ok=True)
        self._fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        self._fs.put_file(str(path), staged)
        if self._fs.info(staged)["size"] != path.stat().st_size:
            raise OSError(errno.EIO, "what arrived has another size")
        if create:
            self._check_free(name)
        self._fs.mv(staged, target)

    def _check_free(self, name: str) -> None:
        if self._there(name) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.path(name))

    @contextlib.contextmanager
    def _words(self, name: str, *, missing: bool = False) -> Iterator[None]:
        """What a driver raises, in one line. missing: FileNotFoundError passes."""
        try:
            yield
        except (GenkitError, FileExistsError):
            raise
        except FileNotFoundError as error:
            if missing:
                raise
            raise InputError(f"{self.url} cannot be used: there is no such bucket or folder; create it") from error
        except Exception as error:
            raise self._error(name, error) from error

    def _error(self, name: str, error: Exception) -> GenkitError:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFull(f"{self.path(name)!r}: no space left; free some, then go on")
        if isinstance(error, PermissionError) or type(error).__name__ in CREDENTIALS:
            return InputError(f"{self.url} gives no access ({reason}); give the credentials that its driver looks for")
        return DiskError(f"{self.path(name)!r} cannot be reached ({reason}); look at the connection, then try again")


def state_folder() -> Path:
    """Where genkit keeps what outlasts a run and is no output: GENKIT_HOME, else the system's place for it."""
    if given := os.environ.get("GENKIT_HOME"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "genkit"


@functools.lru_cache(maxsize=64)
def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    import fsspec

    protocol = url.split("://", 1)[0].split("::", 1)[0]
    try:
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError:
        package = PACKAGES.get(protocol)
        remedy = f"`pip install {package}`" if package else "the package that fsspec names for it"
        raise InputError(f"{url}: {protocol}:// needs a driver that is not installed: {remedy}") from None
    except ValueError as error:
        raise InputError(
            f"{url}: nothing here opens it ({' '.join(str(error).split())[:100]}); use s3:// or gs://"
        ) from None
    except Exception as error:  # some drivers connect at once, or read their settings
        reason = " ".join(str(error).split())[:200]
        raise DiskError(f"{url} cannot be opened ({type(error).__name__}: {reason}); look at its settings") from error
    return fs, root.rstrip("/")


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
