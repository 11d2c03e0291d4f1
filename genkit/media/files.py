"""Files: which suffix is which kind, opening what may be anything, and writing so that no half file is ever seen.

- A file is opened only if it is a regular one: a FIFO would wait for ever, a device never end.
- A file appears under its name whole or not at all: it is written beside its place, checked, synced and renamed, and
  the folder is synced so that the name survives a loss of power. A batch takes the two halves apart: it has a job's
  files drafted in a folder of its own and commits them from there.
- What is wrong with a place is the fault of who named it (MediaError); what is wrong with a disk is nobody's
  (DiskError), and trying again may help.
- What a file is, is read from its first bytes; its name decides only what is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from genkit.errors import DiskError, DiskFull, MediaError
from genkit.fields import expanded

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "atomic_write",
    "check_target",
    "commit",
    "draft",
    "file_format",
    "kind_of",
    "open_regular",
    "sniff",
]

# suffix -> format, by kind; what can be written, which is also what can be read
FORMATS: dict[str, dict[str, str]] = {
    "image": {
        ".png": "PNG",
        ".jpg": "JPEG",
        ".jpeg": "JPEG",
        ".webp": "WEBP",
        ".tif": "TIFF",
        ".tiff": "TIFF",
        ".bmp": "BMP",
    },
    "audio": {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"},
    "midi": {".mid": "MIDI", ".midi": "MIDI"},
    "notation": {".musicxml": "MUSICXML", ".mxl": "MXL", ".xml": "MUSICXML"},
}
SUFFIXES: dict[str, tuple[str, ...]] = {kind: tuple(formats) for kind, formats in FORMATS.items()}

HEAD = 512  # bytes that tell what a file is; all but a score are told by 16
NAME_BYTES = 255  # the longest file name of ext4, APFS, NTFS and most others
TEMPORARY = ".{name}.genkit-{token}.tmp"

_drafting: ContextVar[bool] = ContextVar("drafting", default=False)
_lasting: set[Path] = set()  # folders whose names this process has synced
# A place that cannot be, or may not be written: another one is to be named. Any other error is the disk's.
_WRONG_PLACE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG, errno.EFBIG, errno.EXDEV, errno.ENODEV, errno.ENXIO),
}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


def file_format(path: str | os.PathLike[str], kind: str) -> str:
    """The format that a file's suffix asks for: "PNG". Raises MediaError, listing the suffixes that fit the kind."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS[kind]:
        named = f"the suffix {suffix!r} does not fit" if suffix else "a suffix is missing"
        raise MediaError(f"{str(path)!r}: {named} for {_kind(kind)}; use one of {', '.join(SUFFIXES[kind])}")
    return FORMATS[kind][suffix]


def _kind(kind: str) -> str:
    return {"image": "a picture", "audio": "a sound", "midi": "a MIDI file", "notation": "a score"}[kind]


def check_target(path: str | os.PathLike[str], kind: str) -> Path:
    """Whether a file of a kind ("image", "audio", "midi", "notation") can be written to `path`, asked before anything
    is computed. Makes the folder if it is missing.

    Raises MediaError: the suffix does not fit, the name is too long or a folder's,
    the folder cannot be made or written.
    """
    path = expanded(path)
    file_format(path, kind)
    return check_place(path)


def check_place(path: Path) -> Path:
    """Whether a file can be put at `path`, whatever is in it; makes the folder. Raises MediaError."""
    if "\x00" in str(path):
        raise MediaError(f"{str(path)!r}: a file name cannot hold NUL; choose another")
    if len(os.fsencode(path.name)) > NAME_BYTES:
        raise MediaError(f"{path.name[:40] + '...'!r}: the name is over {NAME_BYTES} bytes long; choose a shorter one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode if path.exists() else None
    except (FileExistsError, NotADirectoryError):
        raise MediaError(f"{str(path)!r}: {str(path.parent)!r} is not a folder; choose another place") from None
    except OSError as error:
        raise _failed(path, error) from None
    if mode is not None and not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "not an ordinary file"
        raise MediaError(f"{str(path)!r}: is {what}; give the name of a file")
    if not os.access(path.parent, os.W_OK | os.X_OK) or (mode is not None and not os.access(path, os.W_OK)):
        place = "the file" if mode is not None and os.access(path.parent, os.W_OK) else "its folder"
        raise MediaError(f"{str(path)!r}: {place} cannot be written (read-only); choose another place")
    return path


def atomic_write(
    path: str | os.PathLike[str],
    content: bytes | Callable[[Path], object],
    *,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Puts a file in its place whole, or leaves the place as it was. In a `draft` it is written there at once.

    content: the bytes, or a function that writes them to the temporary path it is given; check: called with the
    temporary path before the rename, raises if the file does not read back. An existing file is replaced.

    Raises DiskFull if there is no space left, DiskError if the disk fails, MediaError if the place cannot be written,
    and whatever `content` and `check` raise; the temporary file is gone in every case but a kill.
    """
    path = check_place(expanded(path))
    drafting = _drafting.get()
    temporary = path if drafting else _beside(path)
    try:
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            content(temporary)
        if check is not None:
            check(temporary)
        if not drafting:
            commit(temporary, path, overwrite=True)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _failed(path, error) from error
        raise
    return path


def _beside(path: Path) -> Path:
    """A temporary name in the same folder. A long name is cut so that it fits; its suffix is the target's no more, on
    purpose."""
    stem = os.fsdecode(os.fsencode(path.name)[: NAME_BYTES - 32]).encode("utf-8", "ignore").decode()
    return path.with_name(TEMPORARY.format(name=stem, token=secrets.token_hex(4)))


@contextlib.contextmanager
def draft() -> Iterator[None]:
    """While it lasts `atomic_write` writes and checks a file straight under the name it is given, and syncs and renames
    nothing: who opened the draft puts the file in its place, with `commit`. Holds in the thread that opened it."""
    token = _drafting.set(True)
    try:
        yield
    finally:
        _drafting.reset(token)


def commit(draft: Path, target: Path, *, overwrite: bool) -> None:
    """Gives a finished file on the same file system its name, to last: syncs it, moves it, syncs the folder. Missing
    folders are made.

    overwrite: whether a file of that name may be replaced. Raises FileExistsError where it may not and is there,
    DiskFull, DiskError if the disk fails, MediaError if the place cannot be written.
    """
    target = target.absolute()
    try:
        _last(target.parent)
        _sync(draft)
        if overwrite:
            os.replace(draft, target)  # noqa: PTH105 - to be seen as the rename that it is
        else:
            _put(draft, target)
        _sync_folder(target.parent)
    except FileExistsError as error:
        if error.filename2 is None:  # a file stands where a folder should
            raise _failed(target, error) from error
        raise
    except OSError as error:
        raise _failed(target, error) from error


def _put(draft: Path, target: Path) -> None:
    """Moves a file to a name that is free. Raises FileExistsError."""
    try:
        os.link(draft, target)
    except FileExistsError:
        # Over NFS a link may be made and its answer lost; asked again, the server finds it there.
        if not os.path.samestat(draft.lstat(), target.lstat()):
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(draft), None, str(target)) from None
        draft.rename(target)
        return
    draft.unlink()


def _last(folder: Path) -> None:
    """Makes a folder and the ones above it, and syncs their names, once in a process: one that is there already may
    have been made a moment ago, by somebody who did not come to that."""
    if folder in _lasting and folder.is_dir():
        return
    if folder.parent != folder:
        _last(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)
    _lasting.add(folder)


def _failed(path: Path, error: OSError) -> DiskFull | DiskError | MediaError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{str(path)!r}: no space left on its disk; free some, then go on")
    why = f"{str(path)!r}: cannot be written ({error.strerror or error})"
    if error.errno in _WRONG_PLACE:
        return MediaError(f"{why}; choose another place")
    return DiskError(f"{why}; look at its disk, then try again")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """Syncs the names in a folder, where there is a way: Windows has no handle for one, a folder above ours may not be
    ours to open, and some network file systems refuse."""
    try:
        if os.name != "nt":
            _sync(path)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP):
            raise


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens an ordinary file for reading. Raises MediaError for a missing one, a folder, a FIFO, a device, DiskError if
    the disk fails."""
    place = os.fspath(expanded(path))
    try:
        file = open(place, "rb", opener=_without_waiting)  # noqa: SIM115 - Path.open takes no opener
    except IsADirectoryError:
        raise MediaError(f"{str(path)!r} is a folder; give the path of a file") from None
    except OSError as error:
        reason = "does not exist" if error.errno == errno.ENOENT else f"cannot be opened ({error.strerror})"
        if error.errno not in _WRONG_PLACE:
            raise DiskError(f"{str(path)!r} {reason}; look at its disk, then try again") from None
        raise MediaError(f"{str(path)!r} {reason}; check the path") from None
    except ValueError:  # an embedded NUL
        raise MediaError(f"{str(path)!r} is not a file name") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise MediaError(f"{str(path)!r} is not an ordinary file; give the path of one")
    return file


def _without_waiting(path: str, flags: int) -> int:
    """Without O_NONBLOCK the opening of a FIFO waits for a writer; on an ordinary file it changes nothing."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def sniff(head: bytes) -> tuple[str, str] | None:
    """Kind and format from the first HEAD bytes of a file: ("image", "PNG"). None if it is nothing we read.

    16 bytes will do for pictures, sounds and MIDI; a score is XML, or a zip, that says what it is further on.
    """
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "image", "PNG"
    if head[:3] == b"\xff\xd8\xff":
        return "image", "JPEG"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "image", "TIFF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image", "WEBP"
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return "audio", "WAV"
    if head[:4] == b"fLaC":
        return "audio", "FLAC"
    if head[:4] == b"OggS":
        return "audio", "OGG"
    if head[:4] == b"MThd":
        return "midi", "MIDI"
    if head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0):
        return "audio", "MP3"
    if head[:2] == b"BM":
        return "image", "BMP"
    if b"<score-partwise" in head:
        return "notation", "MUSICXML"
    if head[:4] == b"PK\3\4" and head[30:52] == b"META-INF/container.xml":
        return "notation", "MXL"
    return None


def kind_of(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Kind and format of a file by its content. Raises MediaError if it cannot be opened."""
    with open_regular(path) as file:
        return sniff(file.read(HEAD))
