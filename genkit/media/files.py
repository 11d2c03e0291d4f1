"""Files: which suffix is which kind, opening what may be anything, and writing so that no half file is ever seen.

- A file is opened only if it is a regular one: a FIFO would wait for ever, a device never end.
- A file appears under its name whole or not at all: it is written beside its place, checked, synced and renamed, and
  the folder is synced so that the name survives a loss of power.
- What a file is, is read from its first bytes; its name decides only what is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from genkit.errors import DiskFull, MediaError

__all__ = ["FORMATS", "SUFFIXES", "atomic_write", "check_target", "file_format", "kind_of", "open_regular", "sniff"]

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
    path = Path(path).expanduser()
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
        raise MediaError(f"{str(path)!r}: the folder cannot be made ({error.strerror}); choose another place") from None
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
    """Puts a file in its place whole, or leaves the place as it was.

    content: the bytes, or a function that writes them to the temporary path it is given; check: called with the
    temporary path before the rename, raises if the file does not read back. An existing file is replaced.

    Raises DiskFull if there is no space left, MediaError if the place cannot be written, and whatever `content` and
    `check` raise; the temporary file is gone in every case but a kill.
    """
    path = check_place(Path(path).expanduser())
    # A long name is cut so that the temporary one fits too; its suffix is the target's no more, on purpose.
    stem = os.fsdecode(os.fsencode(path.name)[: NAME_BYTES - 32]).encode("utf-8", "ignore").decode()
    temporary = path.with_name(TEMPORARY.format(name=stem, token=secrets.token_hex(4)))
    try:
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            content(temporary)
        if check is not None:
            check(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _failed(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def _failed(path: Path, error: OSError) -> DiskFull | MediaError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{str(path)!r}: no space left on its disk; free some, then go on")
    return MediaError(f"{str(path)!r}: cannot be written ({error.strerror or error}); choose another place")


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows has no handle for a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens an ordinary file for reading. Raises MediaError for a missing one, a folder, a FIFO, a device."""
    place = os.fspath(Path(path).expanduser())
    try:
        file = open(place, "rb", opener=_without_waiting)  # noqa: SIM115 - Path.open takes no opener
    except IsADirectoryError:
        raise MediaError(f"{str(path)!r} is a folder; give the path of a file") from None
    except OSError as error:
        reason = "does not exist" if error.errno == errno.ENOENT else f"cannot be opened ({error.strerror})"
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
