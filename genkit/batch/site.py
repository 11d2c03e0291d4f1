"""A place behind a URL, by way of fsspec: files put and got whole, and whatever a driver raises told in one line.

How a file comes to be under its name whole depends on what is there:

- An object store puts an object whole or not at all, so a file goes straight under its name. S3, Google Storage and
  Azure refuse to put over an object that is there if they are asked to (`mode="create"`), so that of two writers one
  wins and the other is told. Another store may not know the request: there the look beforehand decides.
- On anything else a file is uploaded to `.genkit/staging`, its size compared, and then moved to its name. A look
  beforehand tells whether the name is free; no step between the two is safe from another program.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genkit.batch.journal import FOLDER
from genkit.batch.store import STAGING
from genkit.errors import DiskError, DiskFull, GenkitError, InputError

__all__ = ["Site"]

STAGED = f"{FOLDER}/{STAGING}"
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


class Site:
    """url: without a "/" at its end. Names are from there down. Every method may raise InputError (no access, no such
    bucket or folder), DiskFull, and DiskError, after which trying again may help."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.objects = url.split("://", 1)[0] in OBJECT_STORES
        self.fs, self.root = _opened(url)

    def place(self, name: str) -> str:
        """A name as the driver takes it."""
        return f"{self.root}/{name}"

    def files(self) -> dict[str, int]:
        """Every file that is there, with its size."""
        found: dict[str, Any] = {}
        with self._words(""), contextlib.suppress(FileNotFoundError):
            found = self.fs.find(self.root, detail=True)
        return {path.removeprefix(self.root).lstrip("/"): facts["size"] for path, facts in found.items()}

    def size(self, name: str) -> int | None:
        """None if there is no such file."""
        with self._words(name), contextlib.suppress(FileNotFoundError):
            return int(self.fs.info(self.place(name)).get("size") or 0)
        return None

    def get(self, name: str, path: Path) -> None:
        """Raises FileNotFoundError."""
        with self._words(name, missing=True):
            self.fs.get_file(self.place(name), str(path))

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        with self._words(name, missing=True):
            return bytes(self.fs.cat_file(self.place(name)))

    def write(self, name: str, content: bytes) -> None:
        """For what may be lost or torn."""
        with self._words(name):
            if not self.objects:  # with some drivers it would make a bucket
                self.fs.makedirs(self.place(name).rpartition("/")[0], exist_ok=True)
            self.fs.pipe_file(self.place(name), content)

    def remove(self, name: str, *, recursive: bool = False) -> None:
        """What is not there is no fault."""
        with self._words(name), contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.place(name), recursive=recursive)

    def put(self, path: Path, name: str, *, create: bool) -> None:
        """A file of this machine under a name, whole. create: the name is to be new. Raises FileExistsError."""
        with self._words(name):
            if self.objects:
                self._put_object(path, name, create)
            else:
                self._put_and_move(path, name, create)

    def _put_object(self, path: Path, name: str, create: bool) -> None:
        try:
            self.fs.put_file(str(path), self.place(name), mode="create" if create else "overwrite")
        except OSError as error:
            if create:
                self._check_free(name)  # drivers do not agree on how to say so
            if not create or error.errno != errno.ENOSYS:
                raise
            self.fs.put_file(str(path), self.place(name))  # it does not know the request, and the name was free

    def _put_and_move(self, path: Path, name: str, create: bool) -> None:
        staged, target = self.place(f"{STAGED}/{secrets.token_hex(8)}"), self.place(name)
        for folder in {staged.rpartition("/")[0], target.rpartition("/")[0]}:
            self.fs.makedirs(folder, exist_ok=True)
        self.fs.put_file(str(path), staged)
        if self.fs.info(staged)["size"] != path.stat().st_size:
            raise OSError(errno.EIO, "what arrived has another size")
        if create:
            self._check_free(name)
        self.fs.mv(staged, target)

    def _check_free(self, name: str) -> None:
        if self.size(name) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), f"{self.url}/{name}")

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
        place = f"{self.url}/{name}"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFull(f"{place!r}: no space left; free some, then go on")
        if isinstance(error, PermissionError) or type(error).__name__ in CREDENTIALS:
            return InputError(f"{self.url} gives no access ({reason}); give the credentials that its driver looks for")
        return DiskError(f"{place!r} cannot be reached ({reason}); look at the connection, then try again")


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
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{url}: nothing here opens it ({reason}); use s3:// or gs://") from None
    except Exception as error:  # some drivers connect at once, or read their settings
        reason = " ".join(str(error).split())[:200]
        raise DiskError(f"{url} cannot be opened ({type(error).__name__}: {reason}); look at its settings") from error
    return fs, root.rstrip("/")
