"""Files: whole or not at all, and asked before the work."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from genkit.errors import DiskFull, MediaError
from genkit.media import files


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = files.atomic_write(tmp_path / "new" / "folder" / "a.bin", b"one")
    assert path.read_bytes() == b"one"
    files.atomic_write(path, lambda place: place.write_bytes(b"two"))
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError(errno.ENOSPC, "no space"), DiskFull),
        (OSError(errno.EIO, "input/output error"), MediaError),
        (MediaError("does not read back"), MediaError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("when", ["write", "check"])
def test_a_failure_leaves_the_place_as_it_was(
    tmp_path: Path, raised: BaseException, expected: type[BaseException], when: str
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"before")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise raised

    with pytest.raises(expected):
        files.atomic_write(path, fail if when == "write" else b"all", check=fail if when == "check" else None)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fills_up_late_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), full)
    with pytest.raises(DiskFull, match=r"a\.bin"):
        files.atomic_write(tmp_path / "a.bin", b"content")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_device_is_told(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(DiskFull):
        files.atomic_write(tmp_path / "a", write)


@pytest.mark.parametrize("name", ["ä" * 125 + ".png", "a" * 251 + ".png", "日" * 80 + ".png"])
def test_long_names_can_be_written(tmp_path: Path, name: str) -> None:
    assert files.atomic_write(tmp_path / name, b"x").name == name


@pytest.mark.parametrize(
    ("name", "kind", "word"),
    [
        ("a.gif", "image", r"\.png"),
        ("a", "image", "missing"),
        ("a.png", "audio", r"\.wav"),
        ("a.wav", "midi", r"\.mid"),
        ("a" * 252 + ".png", "image", "255"),
        ("folder.png", "image", "folder"),
        ("file.txt/a.png", "image", "not a folder"),
        ("file.txt/deeper/a.png", "image", "not a folder"),
        ("fifo.png", "image", "not an ordinary file"),
        ("nul\0.png", "image", "NUL"),
    ],
)
def test_a_bad_target_is_refused_before_the_work(tmp_path: Path, name: str, kind: str, word: str) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file.txt").write_text("")
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.raises(MediaError, match=word) as error:
        files.check_target(tmp_path / name, kind)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(MediaError, match="read-only"):
        files.check_target(tmp_path / "a.png", "image")
    tmp_path.chmod(0o700)


def test_a_target_that_is_missing_gets_its_folders(tmp_path: Path) -> None:
    assert files.check_target(tmp_path / "x" / "y" / "a.PNG", "image").parent.is_dir()
