"""Input files on a machine that may not have them: by digest, so that no two are ever mixed up.

A file that lies under its own path with the digest it should have is taken from there (the same machine, a shared
folder). Any other comes to a cache by digest, whole and compared, from a URL or from whoever can hand over its bytes.
The cache keeps what was used last, CACHE bytes of it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from genkit.batch.engines.worker import get
from genkit.batch.job import Job
from genkit.batch.remote import Remote, state_folder
from genkit.batch.store import Store
from genkit.errors import InputError
from genkit.media.provenance import digest_file

__all__ = ["Fetch", "Inputs"]

CACHE = 8 << 30
USED = 3600.0  # seconds for which a file that was asked for stays, whatever comes after it

Fetch = Callable[[str], bytes]
"""The content of the file with a digest. Raises KeyError if it is not to be had."""


class Inputs:
    """store: where the run's outputs are, which later stages take; fetch: where files of another machine come from."""

    def __init__(self, store: Store, fetch: Fetch | None = None) -> None:
        self.store, self.fetch = store, fetch
        self.folder = state_folder() / "inputs"
        self._known: dict[tuple[str, int, int], str] = {}  # digests by path, size and time of change

    def __call__(self, place: str, digest: str) -> Path:
        """Raises InputError if it is another file by now, or not to be had."""
        here = self.find(place, digest)
        if here is None:
            self._fill(place, digest)
            here = self._cached(place, digest)
        return here

    def missing(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Digests of the inputs that only another machine has, and the paths that they have there. What lies under such
        a path here, if anything does, is another file."""
        inputs = {digest: str(get(job.params, name)) for job in jobs for name, digest in job.inputs.items()}
        return {
            digest: place for digest, place in inputs.items() if "://" not in place and self.find(place, digest) is None
        }

    def find(self, place: str, digest: str) -> Path | None:
        """Where a file lies on this machine, if it does."""
        if "://" not in place and self._digest(Path(place)) == digest:
            return Path(place)
        cached = self._cached(place, digest)
        with contextlib.suppress(OSError):
            os.utime(cached)  # used now
            return cached
        return None

    def _cached(self, place: str, digest: str) -> Path:
        return self.folder / (digest + Path(place).suffix.lower())

    def _digest(self, path: Path) -> str | None:
        try:
            status = path.stat()
        except (OSError, ValueError):
            return None
        key = (str(path), status.st_size, status.st_mtime_ns)
        if key not in self._known:
            self._known[key] = digest_file(path)
        return self._known[key]

    def _fill(self, place: str, digest: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{secrets.token_hex(8)}.tmp"
        try:
            with self._source(place, digest) as source:
                _copy(source, temporary)
            if digest_file(temporary) != digest:
                raise InputError(f"{place!r} changed since the batch was planned; run the recipe again with --replace")
            temporary.replace(self._cached(place, digest))
            self._trim(self._cached(place, digest))
        except FileNotFoundError:
            raise InputError(f"{place!r} is not there any more; run it again") from None
        finally:
            temporary.unlink(missing_ok=True)

    def _source(self, place: str, digest: str) -> AbstractContextManager[Path | bytes]:
        if "://" not in place:
            return self._handed_over(place, digest)
        root = self.store.path("")
        if isinstance(self.store, Remote) and place.startswith(root):
            return self.store.local(place.removeprefix(root))
        folder, _, name = place.rpartition("/")
        return Remote(folder).local(name)

    @contextlib.contextmanager
    def _handed_over(self, place: str, digest: str) -> Iterator[Path | bytes]:
        source: Path | bytes = Path(place)  # another file by now: said where its digest is compared
        with contextlib.suppress(KeyError):
            source = self.fetch(digest) if self.fetch else source
        if isinstance(source, Path) and not source.exists():
            raise InputError(f"{place!r} does not exist on this machine, and nobody hands it over; use a shared folder")
        yield source

    def _trim(self, newest: Path) -> None:
        """Makes room for a file that has come: the ones used longest ago go."""
        files = [(path.stat().st_mtime, path.stat().st_size, path) for path in self.folder.iterdir()]
        size = sum(size for _, size, _ in files)
        for used, bytes_, path in sorted(files):
            if size <= CACHE or used > time.time() - USED or path == newest:
                break
            path.unlink(missing_ok=True)
            size -= bytes_


def _copy(source: Path | bytes, target: Path) -> None:
    if isinstance(source, bytes):
        target.write_bytes(source)
    else:
        shutil.copyfile(source, target)
