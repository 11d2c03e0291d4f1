"""Stores behind a URL: the promise of a folder, kept by an object store and by a plain file system on the network."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry, known_implementations

from genkit.batch import plan, recipe, remote, runner, site
from genkit.batch.engines import inputs as batch_inputs
from genkit.batch.engines.inputs import Inputs
from genkit.batch.job import Job
from genkit.batch.journal import Made
from genkit.batch.remote import Remote
from genkit.batch.store import Folder
from genkit.errors import DiskError, DiskFull, InputError, Locked
from genkit.media import provenance
from genkit.media.image import Image
from genkit.media.provenance import Provenance, digest_file


class Bucket(MemoryFileSystem):
    """An object store: puts an object whole, over another only if it may. `conditions`: whether it can be asked to."""

    protocol = "s3"
    store: dict[str, Any] = {}  # noqa: RUF012 - shared by all instances, as the memory of the one it is made from
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    cachable = False
    conditions = "kept"
    guard = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("s3://").strip("/") if path.strip("/") else ""

    def put_file(self, lpath: str, rpath: str, callback: Any = None, mode: str = "overwrite", **kwargs: Any) -> None:
        content = Path(lpath).read_bytes()
        if mode == "create" and self.conditions == "unknown":
            raise OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented")
        with self.guard:
            if mode == "create" and self.conditions == "kept" and self.exists(rpath):
                raise OSError(errno.EINVAL, "At least one of the pre-conditions you specified did not hold")
            super().pipe_file(rpath, content)

    def mv(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("an object store cannot rename")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    monkeypatch.setenv("GENKIT_HOME", str(tmp_path / "state"))
    monkeypatch.setitem(_registry, "s3", Bucket)
    site._opened.cache_clear()
    Bucket.store.clear()
    yield Remote("s3://far/out")
    site._opened.cache_clear()


@pytest.fixture(params=["memory", "s3", "s3 without conditions", "file"])
def store(
    bucket: Remote, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Remote]:
    monkeypatch.setattr(Bucket, "conditions", "unknown" if "without" in request.param else "kept")
    MemoryFileSystem.store.clear()
    urls = {"memory": "memory://far/out", "file": f"file://{tmp_path}/far/out"}
    yield Remote(urls[request.param]) if request.param in urls else bucket
    MemoryFileSystem.store.clear()


def job(id: str = "a" * 64, output: str = "fox.png", **facts: Any) -> Job:
    return Job(id=id, stage="main", index=1, pipeline="test-noise", model=None, params={}, output=output, **facts)


def picture(path: Path, made_by: str | None, grey: int = 7) -> Path:
    """A picture that says which job made it; None: that no batch did."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    record = None if made_by is None else Provenance("test-noise", 1, {}, job=made_by)
    return Image.from_tensor(torch.full((3, 4, 4), grey / 255)).save(path, provenance=record)


def put(store: Remote, name: str, path: Path) -> None:
    store.site.put(path, name, create=False)


def content(store: Remote, name: str) -> bytes:
    with store.local(name) as path:
        return path.read_bytes()


# ---------------------------------------------------------------------------------------------------------- commits


def test_a_commit_puts_every_file_whole_and_leaves_nothing_else(store: Remote) -> None:
    with store.draft() as folder:
        one, two = picture(folder / "a/fox-1.png", "a" * 64), picture(folder / "fox-2.png", "a" * 64, 9)
        wanted = one.read_bytes(), two.read_bytes()
        store.commit({"a/fox-1.png": one, "fox-2.png": two}, job())
    assert (content(store, "a/fox-1.png"), content(store, "fox-2.png")) == wanted
    assert not folder.exists()
    assert store.in_place(Made("a/fox-1.png", "", len(wanted[0])))
    assert not store.in_place(Made("a/fox-1.png", "", len(wanted[0]) + 1))
    assert not store.in_place(Made("a/owl.png", "", 3))
    assert store.made("a/fox-1.png") == Made("a/fox-1.png", hashlib.sha256(wanted[0]).hexdigest(), len(wanted[0]))
    assert store.exists("fox-2.png")
    assert not store.exists("owl.png")
    assert store.maker("fox-2.png") == "a" * 64
    assert store.maker("owl.png") is None
    assert store.path("a/fox-1.png") == f"{store.url}/a/fox-1.png"
    found = {path.rsplit("/out/", 1)[-1] for path in store.site.fs.find(store.site.root)}
    assert found == {"a/fox-1.png", "fox-2.png"}


def test_what_is_not_the_jobs_own_is_never_written_over(store: Remote, tmp_path: Path) -> None:
    for name, maker in (("mine.png", None), ("theirs.png", "b" * 64), ("own.png", "a" * 64), ("older.png", "c" * 64)):
        put(store, name, picture(tmp_path / name, maker, 1))
    draft = picture(tmp_path / "draft.png", "a" * 64, 200)
    for name in ("mine.png", "theirs.png"):
        before = content(store, name)
        with pytest.raises(InputError, match=f"{name}' exists and is not this job's; move it away"):
            store.commit({name: draft}, job())
        assert content(store, name) == before
    for name in ("own.png", "older.png"):
        store.commit({name: draft}, job(replaces=("older.png",)))
        assert content(store, name) == draft.read_bytes()


def test_of_several_files_none_is_put_where_one_is_in_the_way(store: Remote, tmp_path: Path) -> None:
    put(store, "two.png", picture(tmp_path / "two.png", None))
    draft = picture(tmp_path / "draft.png", "a" * 64)
    with pytest.raises(InputError, match=r"two.png. exists"):
        store.commit({"one.png": draft, "two.png": draft}, job())
    assert not store.exists("one.png")


def test_a_text_is_nobodys(store: Remote, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not a picture")
    put(store, "notes.png", tmp_path / "notes.png")
    with pytest.raises(InputError, match="is not this job's"):
        store.commit({"notes.png": picture(tmp_path / "draft.png", "a" * 64)}, job())
    assert content(store, "notes.png") == b"not a picture"


def test_of_two_writers_of_one_name_one_wins_and_the_other_is_told(
    bucket: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both look first, and see that the name is free; the store's own condition decides."""
    barrier, looked = threading.Barrier(2, timeout=20), threading.local()
    looked.once = True  # here
    info = bucket.site.fs.info

    def slow_look(path: str, **options: Any) -> Any:
        try:
            return info(path, **options)
        finally:
            if not getattr(looked, "once", False):
                looked.once = True
                barrier.wait()

    monkeypatch.setattr(bucket.site.fs, "info", slow_look)
    results: dict[str, str] = {}

    def write(who: str) -> None:
        draft = picture(tmp_path / who / "fox.png", who * 64, ord(who))
        try:
            bucket.commit({"fox.png": draft}, job(who * 64))
            results[who] = "won"
        except InputError as error:
            results[who] = str(error)

    threads = [threading.Thread(target=write, args=(who,)) for who in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = (who for who, said in results.items() if said == "won")
    (loser,) = set("ab") - {winner}
    assert "is not this job's" in results[loser]
    assert bucket.maker("fox.png") == winner * 64


def test_a_name_that_leads_out_or_is_too_long_is_refused(bucket: Remote) -> None:
    for name in ("../fox.png", "a/../../fox.png", "x" * 1020):
        with pytest.raises(InputError, match="is no name for a file"):
            bucket.check(name)
    bucket.check("a/b..c/fox.png")


def test_a_store_travels_to_a_worker(store: Remote, tmp_path: Path) -> None:
    draft = picture(tmp_path / "draft.png", "a" * 64)
    pickle.loads(pickle.dumps(store)).commit({"fox.png": draft}, job())
    assert content(store, "fox.png") == draft.read_bytes()


def test_an_upload_that_breaks_off_leaves_no_file(
    store: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if store.site.objects:
        pytest.skip("an object store puts whole objects")
    upload = store.site.fs.put_file

    def cut(local: str, there: str, **options: Any) -> None:
        half = tmp_path / "half"
        half.write_bytes(Path(local).read_bytes()[:40])
        upload(str(half), there, **options)

    monkeypatch.setattr(store.site.fs, "put_file", cut)
    with pytest.raises(DiskError, match="what arrived has another size"):
        store.commit({"fox.png": picture(tmp_path / "draft.png", "a" * 64)}, job())
    assert not store.exists("fox.png")
    monkeypatch.undo()
    monkeypatch.setenv("GENKIT_HOME", str(tmp_path / "state"))
    store.begin()  # what a killed run left is swept away
    store.end()
    assert store.site.fs.find(store.site.root) == []


# ----------------------------------------------------------------------------------------------------------- a run


def test_the_journal_goes_along_and_another_machine_goes_on(
    store: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "INTERVAL", 0.02)
    journal = store.home / ".genkit/journal.jsonl"
    store.fetch()
    assert not journal.exists()
    store.begin()
    journal.parent.mkdir(parents=True)
    journal.write_text("one\n")
    until = time.monotonic() + 20
    while not store.site.size(".genkit/journal.jsonl") and time.monotonic() < until:
        time.sleep(0.01)
    assert content(store, ".genkit/journal.jsonl") == b"one\n"  # before the run has ended
    with journal.open("a") as file:
        file.write("two\n")
    store.end()
    (store.home / "report.html").write_text("<html>")
    store.keep()
    assert content(store, "report.html") == b"<html>"
    assert store.site.size(".genkit/runner.json") is None

    monkeypatch.setenv("GENKIT_HOME", str(tmp_path / "another machine"))
    there = Remote(store.url)
    there.fetch()
    assert (there.home / ".genkit/journal.jsonl").read_text() == "one\ntwo\n"
    assert (there.home / "report.html").read_text() == "<html>"
    with (there.home / ".genkit/journal.jsonl").open("a") as file:
        file.write("three\n")
    there.keep()

    monkeypatch.setenv("GENKIT_HOME", str(tmp_path / "state"))
    store.fetch()  # what it has is the beginning of what the other has
    assert journal.read_text() == "one\ntwo\nthree\n"
    journal.write_text("one\ntwo\n3\n")
    with (there.home / ".genkit/journal.jsonl").open("a") as file:
        file.write("four\n")
    there.keep()
    store.fetch()  # two that went apart: the own one stays
    assert journal.read_text() == "one\ntwo\n3\n"


def test_a_runner_on_another_machine_is_seen(store: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote.socket, "gethostname", lambda: "far-away")
    store.begin()
    other = Remote(store.url)
    monkeypatch.setattr(remote.socket, "gethostname", lambda: "here")
    with pytest.raises(Locked, match="on far-away works in") as caught:
        other.begin()
    assert caught.value.exit_status == 75
    words = json.loads(content(store, remote.NOTICE))
    store.site.fs.pipe_file(store.site.place(remote.NOTICE), json.dumps({**words, "at": time.time() - 500}).encode())
    other.begin()  # it was killed
    other.end()
    store.end()


def test_a_fresh_list_answers_for_every_file(bucket: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "draft.png", "a" * 64)
    for i in range(5):
        bucket.commit({f"{i}.png": path}, job())
    bucket.fetch()
    asked: list[str] = []
    info = bucket.site.fs.info
    monkeypatch.setattr(bucket.site.fs, "info", lambda path, **options: asked.append(path) or info(path, **options))
    assert all(bucket.in_place(Made(f"{i}.png", "", path.stat().st_size)) for i in range(5))
    assert not bucket.exists("6.png")
    assert asked == []
    bucket.commit({"6.png": path}, job())
    assert bucket.in_place(Made("6.png", "", path.stat().st_size))  # newer than the list


CHAIN = """\
name: chain
stages:
- {name: paint, pipeline: test-noise, params: {width: 6, height: 6, count: 2}, matrix: {seed: [1, 2]}}
- {name: blend, pipeline: test-noise, files: {content: {stage: paint}}, output: "{index}.bmp"}
- {name: tone, pipeline: test-tone}
"""


def contents(store: Remote) -> dict[str, bytes]:
    names = {path.rsplit("/out/", 1)[-1] for path in store.site.fs.find(store.site.root)}
    return {name: content(store, name) for name in names if not name.startswith(".genkit/")}


def test_a_run_makes_there_what_it_makes_in_a_folder(
    store: Remote, noise_pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan.make(recipe.parse(CHAIN, root=tmp_path))
    assert runner.run(planned, tmp_path / "here").done == 5
    assert runner.run(planned, store.url).done == 5
    here = tmp_path / "here"
    wanted = {path.relative_to(here).as_posix(): path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert contents(store) == {name: data for name, data in wanted.items() if not name.startswith(".genkit/")}
    assert runner.run(planned, store.url).skipped == 5

    monkeypatch.setenv("GENKIT_HOME", str(tmp_path / "another machine"))
    assert runner.run(planned, store.url).skipped == 5
    before = contents(store)
    store.site.fs.rm_file(store.site.place("paint/1-2.png"))
    again = runner.run(planned, store.url)
    assert (again.done, again.skipped) == (1, 4)
    assert contents(store) == before


def test_a_lost_journal_is_no_loss(bucket: Remote, noise_pipeline: str, tmp_path: Path) -> None:
    planned = plan.make(recipe.parse(CHAIN, root=tmp_path))
    runner.run(planned, bucket.url)
    before = contents(bucket)
    (bucket.home / ".genkit/journal.jsonl").unlink()
    bucket.site.fs.rm_file(bucket.site.place(".genkit/journal.jsonl"))
    again = runner.run(planned, bucket.url)
    assert (again.failed, again.done + again.skipped) == ([], 5)
    assert contents(bucket) == before


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (PermissionError("Forbidden"), InputError, "gives no access .Forbidden.; give the credentials"),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"), InputError, "gives no access"),
        (FileNotFoundError("The specified bucket does not exist"), InputError, "no such bucket or folder; create it"),
        (ConnectionResetError("reset"), DiskError, "cannot be reached .reset.; look at the connection"),
        (TimeoutError(), DiskError, "cannot be reached .TimeoutError."),
        (OSError(errno.ENOSPC, "full"), DiskFull, "no space left"),
    ],
)
def test_what_a_driver_raises_is_one_line(
    bucket: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type, words: str
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(Bucket, "put_file", broken)
    monkeypatch.setattr(Bucket, "pipe_file", broken)
    draft = picture(tmp_path / "draft.png", "a" * 64)
    for attempt in (bucket.begin, lambda: bucket.commit({"fox.png": draft}, job())):
        with pytest.raises(kind, match=words) as caught:
            attempt()
        assert type(caught.value) is kind
        assert "\n" not in str(caught.value)


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known_implementations, "gs", {"class": "no_such_package.FS", "err": "missing"})
    site._opened.cache_clear()
    with pytest.raises(InputError, match=r"gs:// needs a driver that is not installed: `pip install gcsfs`"):
        Remote("gs://far/out")
    with pytest.raises(InputError, match="nothing here opens it"):
        Remote("nonsense://far/out")
    site._opened.cache_clear()


# ----------------------------------------------------------------------------------------------------------- inputs


def handing_over(path: Path) -> tuple[dict[str, int], Any]:
    """How often each file was asked for, and what hands it over."""
    asked: dict[str, int] = {}
    contents = {digest_file(path): path.read_bytes()}

    def fetch(digest: str) -> bytes:
        asked[digest] = asked.get(digest, 0) + 1
        return contents[digest]

    return asked, fetch


def test_an_input_that_lies_here_is_taken_from_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENKIT_HOME", str(tmp_path / "state"))
    path = picture(tmp_path / "in/fox.png", None)
    digest = digest_file(path)
    found = Inputs(Folder(tmp_path))
    assert found(str(path), digest) == path
    picture(path, None, 99)  # another picture under the same name
    with pytest.raises(InputError, match=r"fox.png' changed since the batch was planned"):
        found(str(path), digest)
    assert list((tmp_path / "state/inputs").iterdir()) == []


def test_an_input_of_another_machine_comes_by_digest_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENKIT_HOME", str(tmp_path / "state"))
    path = picture(tmp_path / "in/fox.png", None)
    digest = digest_file(path)
    asked, fetch = handing_over(path)
    content = path.read_bytes()
    path.unlink()
    wanted = job(inputs={"content": digest})
    wanted.params["content"] = str(path)
    found = Inputs(Folder(tmp_path), fetch)
    assert found.missing([wanted]) == {digest: str(path)}
    for _ in range(3):
        local = found(str(path), digest)
        assert local.read_bytes() == content
        assert local.suffix == ".png"
    assert asked == {digest: 1}
    assert found.missing([wanted]) == {}
    with pytest.raises(InputError, match="nobody hands it over; use a shared folder"):
        found("/elsewhere/owl.png", "0" * 64)


def test_of_two_files_of_one_name_on_two_machines_the_right_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENKIT_HOME", str(tmp_path / "state"))
    path = picture(tmp_path / "in/fox.png", None)
    asked, fetch = handing_over(path)
    digest, content = digest_file(path), path.read_bytes()
    picture(path, None, 99)  # what lies there on this machine
    wanted = job(inputs={"content": digest})
    wanted.params["content"] = str(path)
    found = Inputs(Folder(tmp_path), fetch)
    assert found.missing([wanted]) == {digest: str(path)}
    assert found(str(path), digest).read_bytes() == content
    assert asked == {digest: 1}


def test_what_was_handed_over_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENKIT_HOME", str(tmp_path / "state"))
    found = Inputs(Folder(tmp_path), lambda digest: b"something else")
    with pytest.raises(InputError, match="changed since the batch was planned"):
        found("/elsewhere/owl.png", "0" * 64)
    assert list(found.folder.iterdir()) == []


def test_an_earlier_stages_file_is_taken_from_the_store(store: Remote, tmp_path: Path) -> None:
    draft = picture(tmp_path / "draft.png", "a" * 64)
    digest = digest_file(draft)
    store.commit({"paint/fox.png": draft}, job())
    found = Inputs(store)
    local = found(store.path("paint/fox.png"), digest)
    assert local.read_bytes() == draft.read_bytes()
    record = provenance.read(local)
    assert record is not None
    assert record.job == "a" * 64
    with pytest.raises(InputError, match="is not there any more"):
        found(store.path("paint/owl.png"), "0" * 64)


def test_the_cache_lets_go_of_what_was_used_longest_ago(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENKIT_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(batch_inputs, "CACHE", 250)
    monkeypatch.setattr(batch_inputs, "USED", -1.0)
    contents = {letter * 64: letter.encode() * 100 for letter in "abc"}
    monkeypatch.setattr(batch_inputs, "digest_file", lambda path: Path(path).read_bytes()[:1].decode() * 64)
    found = Inputs(Folder(tmp_path), contents.__getitem__)
    for letter in "ab":
        found(f"/elsewhere/{letter}.png", letter * 64)
        time.sleep(0.02)
    found("/elsewhere/a.png", "a" * 64)  # used again
    found("/elsewhere/c.png", "c" * 64)
    assert {path.name[0] for path in found.folder.iterdir()} == {"a", "c"}
