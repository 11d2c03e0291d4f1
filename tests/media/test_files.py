"""Files: whole or not at all, and asked before the work."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from genkit.errors import DiskError, DiskFull, InputError, MediaError
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
        (OSError(errno.EIO, "input/output error"), DiskError),
        (OSError(errno.EROFS, "read-only file system"), MediaError),
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

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DiskFull, match=r"a\.bin"):
        files.atomic_write(tmp_path / "a.bin", b"content")
    assert not list(tmp_path.iterdir())


def test_a_draft_is_written_and_checked_but_not_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: pytest.fail("a draft was synced"))
    monkeypatch.setattr(os, "replace", lambda *paths: pytest.fail("a draft was renamed"))
    with files.draft():
        files.atomic_write(tmp_path / "a.bin", b"one", check=lambda place: seen.append([place.name, *_names(tmp_path)]))
        with pytest.raises(MediaError):
            files.atomic_write(tmp_path / "b.bin", b"two", check=_refuse)
    assert seen == [["a.bin", "a.bin"]]
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"one"]


def test_a_draft_ends_with_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.suppress(KeyError), files.draft():
        raise KeyError
    names: list[str] = []
    files.atomic_write(tmp_path / "a.bin", b"one", check=lambda place: names.append(place.name))
    assert names != ["a.bin"]


def test_a_commit_makes_the_folders_and_syncs_every_name_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = _log_of(monkeypatch)
    draft, target = _draft(tmp_path), tmp_path / "new" / "deeper" / "a.bin"
    files.commit(draft, target, overwrite=False)
    assert target.read_bytes() == b"content"
    assert not draft.exists()
    home = str(tmp_path)
    assert [line.replace(home, "~") for line in done if home in line] == [
        "sync ~",
        "sync ~/new",
        "sync ~/draft",
        "link ~/new/deeper/a.bin",
        "sync ~/new/deeper",
    ]
    del done[:]
    files.commit(_draft(tmp_path), target, overwrite=True)
    assert [line.replace(home, "~") for line in done] == [
        "sync ~/draft",
        "replace ~/new/deeper/a.bin",
        "sync ~/new/deeper",
    ]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_commit_overwrites_only_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:
        monkeypatch.setattr(os, "link", _raiser(errno.EPERM))
    draft, target = _draft(tmp_path), tmp_path / "a.bin"
    target.write_bytes(b"somebody else's")
    with pytest.raises(FileExistsError):
        files.commit(draft, target, overwrite=False)
    assert (target.read_bytes(), draft.read_bytes()) == (b"somebody else's", b"content")
    files.commit(draft, target, overwrite=True)
    assert list(tmp_path.iterdir()) == [target]
    files.commit(_draft(tmp_path), tmp_path / "b.bin", overwrite=False)
    assert _names(tmp_path) == ["a.bin", "b.bin"]


def test_a_link_whose_answer_is_lost_is_not_taken_for_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def made_twice(*paths: Path) -> None:
        link(*paths)
        link(*paths)

    monkeypatch.setattr(os, "link", made_twice)
    files.commit(_draft(tmp_path), tmp_path / "a.bin", overwrite=False)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"content"]


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "a.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        files.commit(_draft(tmp_path), tmp_path / "a.bin", overwrite=False)
    files.commit(_draft(tmp_path), tmp_path / "a.bin", overwrite=True)
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "a.bin").is_symlink()


@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EIO, DiskError),
        (errno.ESTALE, DiskError),
        (errno.ETIMEDOUT, DiskError),
        (errno.EROFS, MediaError),
    ],
)
def test_a_failed_commit_says_whose_fault_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, expected: type[Exception]
) -> None:
    draft = _draft(tmp_path)
    monkeypatch.setattr(os, call, _raiser(number))
    with pytest.raises(expected, match=r"a\.bin") as error:
        files.commit(draft, tmp_path / "a.bin", overwrite=call == "replace")
    assert "\n" not in str(error.value)
    assert isinstance(error.value, InputError) == (expected is MediaError)
    assert not (tmp_path / "a.bin").exists()


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems refuse; a file's own sync is another matter."""
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    files.commit(_draft(tmp_path), tmp_path / "a.bin", overwrite=False)
    assert (tmp_path / "a.bin").read_bytes() == b"content"


def test_a_file_where_a_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file/a.bin", "file/deeper/a.bin"):
        with pytest.raises(MediaError, match="choose another place"):
            files.commit(_draft(tmp_path), tmp_path / place, overwrite=False)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _refuse(place: Path) -> None:
    raise MediaError("does not read back")


def _draft(folder: Path) -> Path:
    (folder / "draft").write_bytes(b"content")
    return folder / "draft"


def _raiser(number: int) -> Callable[..., None]:
    def call(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def _log_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the file system from now on, in order."""
    done: list[str] = []
    opened: dict[int, object] = {}
    open_, fsync, link, replace = os.open, os.fsync, os.link, os.replace

    def opening(path: object, *rest: object) -> int:
        descriptor = open_(path, *rest)  # type: ignore[arg-type]
        opened[descriptor] = path
        return descriptor

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(f"sync {opened[fd]}"), fsync(fd)))
    monkeypatch.setattr(os, "link", lambda a, b: (done.append(f"link {b}"), link(a, b)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(f"replace {b}"), replace(a, b)))
    return done


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
