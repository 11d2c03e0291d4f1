"""What a file says of its making is somebody else's word: any word at all is a run or one line, and no more than that.

Records are wounded as values (kinds, sizes, nesting, paths, models), as text, and with the file around them, and given
to `rerun` and `inspect`. An audit hook of Python's sees every file that is opened and every address that is looked up.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import fuzz_kit
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import genkit
from genkit.media import _embed, provenance
from genkit.media.image import Image

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".wav": "WAV", ".flac": "FLAC", ".mid": "MIDI", ".bmp": "BMP"}
OUTSIDE = "outside"  # a folder beside the working one: nothing in it is read unless the record names it as an input


class Watch:
    """Files opened and addresses asked for while it is on. A hook of Python's cannot be taken away again."""

    on = False
    opened: ClassVar[list[str]] = []
    network: ClassVar[list[str]] = []

    @classmethod
    def hook(cls, event: str, arguments: tuple[Any, ...]) -> None:
        if not cls.on:
            return
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            cls.opened.append(os.fsdecode(arguments[0]))
        elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
            cls.network.append(f"{event} {arguments[1:]}")


sys.addaudithook(Watch.hook)


@contextlib.contextmanager
def watched() -> Iterator[type[Watch]]:
    Watch.opened, Watch.network, Watch.on = [], [], True
    try:
        yield Watch
    finally:
        Watch.on = False


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.marker, "w")


class Files(dict[str, tuple[Any, bytes, str]]):
    def __repr__(self) -> str:  # a failing example is told with it
        return f"<{len(self)} files>"


@pytest.fixture
def files(noise_pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """By suffix: a value, its bytes without a record, the record as JSON. The working folder holds its inputs."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # to see whether anybody would ask
    outside, work = tmp_path / OUTSIDE, tmp_path / "work"
    for folder in (outside, work):
        folder.mkdir()
    monkeypatch.chdir(work)
    Image.open(np.random.default_rng(0).random((12, 16, 3))).save("photo.png")
    Image.open(np.random.default_rng(1).random((12, 16, 3))).save(outside / "secret.png")
    for place in (outside / "evil.pth", work / "evil.pth"):
        place.write_bytes(pickle.dumps(Evil(outside / "marker")))
    os.mkfifo(work / "fifo")
    noise = genkit.load("test-noise")(content="photo.png", seed=3, count=2, width=16, height=12)
    tune = genkit.load("test-tune")(seed=3)
    for suffix in FORMATS:
        if suffix == ".mid":
            tune.save("made.mid")
        elif suffix in (".wav", ".flac"):
            genkit.load("test-tone")(seed=3).save(f"made{suffix}")
        else:
            noise.images[1].save(f"made{suffix}", provenance=noise.provenance and noise.provenance.at(1))
    tune.render("made-roll.png", "made-sound.wav")
    found = Files()
    for path in sorted(work.glob("made*.*")):
        if path.name.endswith(".json"):
            continue
        record, value = provenance.read(path), provenance.open_media(path)
        assert record is not None
        plain = value.save(f"plain{path.suffix}")
        found[path.name] = (value, plain.read_bytes(), record.to_json())
    return found


NAMES = (".png", ".jpg", ".wav", ".flac", ".mid", ".bmp", "-roll.png", "-sound.wav")
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 7, 10**6, 2**53, 10**30, 10**400, 0.5, -0.0, float("nan"), float("inf"), 1e-320),
    *("", "x", "x" * 300, "x" * 9000, [], {}, [[]], [{}], {"": {}}, {"sha256": "0" * 64}, "0" * 64, [0] * 2000),
    *(f"../{OUTSIDE}/secret.png", "fifo", "evil.pth", f"../{OUTSIDE}/evil.pth", "/dev/zero", "/dev/stdin", "photo.png"),
    *("../../x", "../../../../etc/passwd", "org/name", "hub:org/name@main:x.safetensors", "https://example.com/x"),
    *(
        "shipped:genkit/errors.py",
        "shipped:os/../x",
        "torchvision:vgg19",
        "~nobody-here/x",
        "style-transfer",
        "test-none",
    ),
    *("content", "content[0]", "content.x", "seed", "[0]", "a[9].b", "audio", "image", "midi", "notation", "float16"),
    *("float99", "true", "cuda", "quality", "subtype", "\x1b]0;owned\x07", "\u202e", "a\nb", "\u00e9", *fuzz_kit.TRAPS),
)
DEEP = '{"pipeline": "test-noise", "version": 1, "params": {"x": %s1%s}}'


STRINGS = [value for value in VALUES if isinstance(value, str)]
SIMPLE = st.sampled_from(VALUES)
INPUTS = st.fixed_dictionaries(
    {"sha256": st.sampled_from(("0" * 64, "f" * 64, "x", 7)), "path": st.sampled_from(STRINGS) | st.none()}
)
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(("replace", "replace", "remove", "add", "copy", "input")),
        st.lists(st.integers(0, 30), min_size=1, max_size=4),  # the way to the place, each step modulo what is there
        st.sampled_from([*STRINGS, "content", "source", "seed", "model", "index", "dtype", "job", "params", "inputs"]),
        SIMPLE | st.lists(SIMPLE, max_size=3) | st.dictionaries(st.sampled_from(STRINGS), SIMPLE, max_size=3) | INPUTS,
    ),
    max_size=4,
)
WORDS = ("Steps: ", "Seed: 1, ", 'a: "', "\\", "\n", "x" * 999, " " * 9999, *fuzz_kit.TRAPS)
BYTES = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=3)


@dataclass
class Case:
    """What is done to a file: its record changed as values, written anew as text, wounded, and then the bytes."""

    name: str
    changes: list[tuple[str, list[int], str, Any]]
    ascii: bool
    form: str
    depth: int
    parameters: str
    bytes: list[tuple[int, int]]
    check: bool

    def record(self, text: str) -> str:
        if self.form == "deep":
            return DEEP % ("[" * self.depth, "]" * self.depth)
        record = json.loads(text)
        for change in self.changes:
            _change(record, *change)
        return json.dumps(record, ensure_ascii=self.ascii).encode("utf-8", "replace").decode()


CASES = st.builds(
    Case,
    name=st.sampled_from(NAMES),
    changes=CHANGES,
    ascii=st.booleans(),
    form=st.sampled_from(("values", "values", "values", "deep", "text")),
    depth=st.sampled_from((30, 200, 3000, 100_000)),
    parameters=st.lists(st.sampled_from(WORDS)).map(lambda words: "".join(words).encode("utf-8", "replace").decode()),
    bytes=st.just([]) | BYTES,
    check=st.booleans(),
)


def _change(record: Any, how: str, steps: list[int], name: str, value: Any) -> None:
    if how == "input":  # what it was made from, wherever that is said to be
        record["inputs"] = {name: deepcopy(value)}
        return
    place, key = record, None
    for number, step in enumerate(steps, 1):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = keys[step % len(keys)]
        if not isinstance(place[key], dict | list):
            break
        if number < len(steps):
            place, key = place[key], None
    if how == "remove" and key is not None:
        del place[key]
    elif how == "replace" and key is not None:
        place[key] = deepcopy(value)
    elif isinstance(place, dict):
        place[name] = deepcopy(value if how == "add" or key is None else place[key])


def check(files: dict[str, Any], case: Case, wounds: list[fuzz_kit.Wound]) -> None:
    value, plain, original = files[f"made{case.name}"]
    record = case.record(original)
    if case.form == "text":
        record = fuzz_kit.wounded(record, wounds).decode("utf-8", "replace")
    suffix = Path(f"x{case.name}").suffix
    placed = plain if suffix == ".bmp" else _embed.place(value, plain, FORMATS[suffix], record, case.parameters, {})
    if placed is None:  # more than the format has a place for
        return
    data = bytearray(placed)
    for at, byte in case.bytes:
        data[at % len(data)] = byte
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder, f"a{suffix}")
        path.write_bytes(data)
        if suffix == ".bmp":
            provenance.sidecar(path).write_text(record, "utf-8")
        _use(path, record, case.check)


def _use(path: Path, record: str, check_only: bool) -> None:
    """Gives the file to `inspect` and `rerun`, and holds what they may do."""
    again = path.with_stem("again")
    before = set(path.parent.iterdir())
    with watched() as seen:
        statuses = [fuzz_kit.genkit("inspect", str(path), *more)[0] for more in ((), ("--json",))]
        arguments = ("--check",) if check_only else ("-o", str(again))
        status, _, _ = fuzz_kit.genkit("rerun", str(path), "--quiet", *arguments)
    assert set(statuses) <= {0, 2}
    assert status in (0, 1, 2)
    written = {again, provenance.sidecar(again)} if status == 0 and not check_only else set()
    assert set(path.parent.iterdir()) - before <= written
    assert not seen.network
    assert not Path(f"../{OUTSIDE}/marker").exists(), "a pickle was executed"
    for opened in seen.opened:
        if f"{OUTSIDE}/" in opened:
            assert _names(record, Path(opened).name), f"{opened} is no input that the record names"


def _names(record: str, name: str) -> bool:
    """Whether the record names a file as an input, a soundfont or a model: those are read to see what they are."""
    values = json.loads(record)
    played = (values.get("rendered") or {}).get("soundfont") or {}
    inputs = [one.get("path") for one in (values.get("inputs") or {}).values()]
    return any(
        isinstance(one, str) and one.endswith(name) for one in (values.get("model"), played.get("path"), *inputs)
    )


@fuzz_kit.short(80)
@given(CASES, fuzz_kit.WOUNDS)
def test_any_record_is_a_run_or_one_line(files, case: Case, wounds: list[fuzz_kit.Wound]) -> None:
    check(files, case, wounds)


@pytest.mark.slow
@pytest.mark.timeout(0)
@fuzz_kit.long()
@given(CASES, fuzz_kit.WOUNDS)
def test_records_at_length(files, case: Case, wounds: list[fuzz_kit.Wound]) -> None:
    check(files, case, wounds)


# What was found, and what must never be.


def placed(files: dict[str, Any], **changes: Any) -> Path:
    """A picture whose record has these values."""
    value, plain, record = files["made.png"]
    path = Path("changed.png")
    data = _embed.place(value, plain, "PNG", json.dumps(json.loads(record) | changes), "", {})
    assert data is not None
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "path", ["/proc/self/mem", "/proc/kcore", "/dev/zero", "fifo", ".", "x" * 5000, "~nobody-here/x"]
)
def test_an_input_that_is_no_ordinary_file_is_not_there(files, path: str) -> None:
    changed = placed(files, inputs={"content": {"sha256": "0" * 64, "path": path}})
    status, out, _ = fuzz_kit.genkit("inspect", str(changed))
    assert (status, "not there any more" in out) == (0, True)
    status, _, said = fuzz_kit.genkit("rerun", str(changed), "--check")
    assert (status, "say where it is" in said) == (2, True)


def test_a_file_that_is_no_stated_input_is_not_read(files) -> None:
    path = placed(files, params={"seed": 3, "content": f"../{OUTSIDE}/secret.png"}, inputs={})
    with watched() as seen:
        status, _, said = fuzz_kit.genkit("rerun", str(path), "-o", "again.png")
    assert status == 2
    assert "not among the inputs" in said
    assert not [name for name in seen.opened if "secret" in name]


@pytest.mark.parametrize("ref", ["org/name", "hub:org/name", "hub:org/name@main:x.safetensors", "torchvision:alexnet"])
def test_nothing_is_fetched_for_a_files_word(files, ref: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(Path.cwd()))
    with watched() as seen:
        status, _, said = fuzz_kit.genkit("rerun", str(placed(files, model=ref)), "--check")
    assert status == 2
    assert "fetches nothing" in said
    assert not seen.network


def test_a_model_out_of_a_record_is_not_imported_and_not_unpickled(files, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("effect.py").write_text("open('marker', 'w')")
    Path("package").mkdir()
    Path("package/__init__.py").write_text("open('marker', 'w')")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    for ref in ("shipped:effect/x", "shipped:package/x", "shipped:package.below/x", "shipped:package/__init__.py"):
        status, _, _ = fuzz_kit.genkit("rerun", str(placed(files, model=ref)), "--quiet", "-o", "again.png")
        assert status in (0, 2)
        assert not Path("marker").exists()


def test_a_pickle_out_of_a_record_is_refused_by_pipelines_that_read_models(files) -> None:
    photo = {"sha256": provenance.digest_file("photo.png"), "path": "photo.png"}
    path = placed(
        files,
        pipeline="image-translation",
        model="evil.pth",
        params={"image": "photo.png", "seed": 1},
        inputs={"image": photo},
        index=0,
    )
    status, _, said = fuzz_kit.genkit("rerun", str(path), "--quiet", "-o", "again.png")
    assert status == 2
    assert "evil.pth" in said
    assert not Path("../outside/marker").exists()
