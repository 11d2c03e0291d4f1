"""What a file says of its making is somebody else's word: any word at all is a run or one line, and no more than that.

Records are wounded as values (kinds, sizes, nesting, paths, models), as text, and with the file around them, and given to
`rerun` and `inspect`. An audit hook of Python's sees every file that is opened and every address that is looked up.
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
from pathlib import Path
from typing import Any

import fuzz_kit
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import genkit
from genkit.media import _embed, provenance
from genkit.media.image import Image

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".wav": "WAV", ".flac": "FLAC", ".mid": "MIDI", ".bmp": "BMP"}
OUTSIDE = "outside"  # a folder beside the working one: nothing in it is read unless the record names it as an input


class Watch:
    """Files opened and addresses asked for while it is on. A hook of Python's cannot be taken away again."""

    on = False
    opened: list[str] = []
    network: list[str] = []

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


@pytest.fixture
def files(noise_pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, bytes, str]]:
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
    found = {}
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


@st.composite
def records(draw: st.DrawFn, text: str) -> str:
    """A record with up to four values replaced, removed, moved or added, then perhaps wounded as text."""
    record = json.loads(text)
    anything = st.sampled_from(VALUES) | st.recursive(
        st.sampled_from(VALUES), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)
    )
    for _ in range(draw(st.integers(0, 4))):
        place: Any = record
        while True:
            keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys)) if keys else None
            if key is None or not isinstance(place[key], dict | list) or not draw(st.integers(0, 2)):
                break
            place = place[key]
        how = draw(st.sampled_from(("replace", "remove", "add", "name", "input")))
        if how == "input":  # what it was made from, wherever that is said to be
            record["inputs"] = {draw(st.sampled_from(("content", "source", "content[0]", "x"))): draw(inputs())}
        elif how == "remove" and key is not None:
            del place[key]
        elif how == "replace" and key is not None:
            place[key] = deepcopy(draw(anything))
        elif isinstance(place, dict):
            name = draw(st.sampled_from([*map(str, VALUES), "content", "source", "seed", "model", "index", "dtype"]))
            place[name] = deepcopy(draw(anything) if how == "add" or key is None else place[key])
        if not isinstance(record, dict):
            break
    changed = json.dumps(record, ensure_ascii=draw(st.booleans()))
    form = draw(st.integers(0, 9))
    if form == 0:
        depth = draw(st.sampled_from((30, 200, 3000, 100_000)))
        return DEEP % ("[" * depth, "]" * depth)
    if form == 1:
        return draw(fuzz_kit.mutated(st.just(changed))).decode("utf-8", "replace")
    return changed


def inputs() -> st.SearchStrategy[Any]:
    path = st.sampled_from([value for value in VALUES if isinstance(value, str)])
    return st.fixed_dictionaries({"sha256": st.sampled_from(("0" * 64, "f" * 64, "x", 7)), "path": path | st.none()})


PARAMETERS = st.just("a fox\nNegative prompt: blurry\nSteps: 20, Seed: 42, Size: 512x512, Model: x, Version: y") | (
    st.lists(st.sampled_from(("Steps: ", "Seed: 1, ", 'a: "', "\\", "\n", "x" * 999, " " * 9999, *fuzz_kit.TRAPS))).map(
        "".join
    )
)


def check(files: dict[str, Any], data: Any, check_only: bool) -> None:
    name = f"made{data.draw(st.sampled_from(NAMES))}"
    value, plain, original = files[name]
    record = data.draw(records(original)).encode("utf-8", "replace").decode()
    parameters = data.draw(PARAMETERS).encode("utf-8", "replace").decode()
    suffix = Path(name).suffix
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder, f"a{suffix}")
        placed = plain if suffix == ".bmp" else _embed.place(value, plain, FORMATS[suffix], record, parameters, {})
        assume(placed is not None)
        if data.draw(st.integers(0, 4)) == 0:
            placed = bytearray(placed)
            for at, byte in data.draw(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=3)):
                placed[at % len(placed)] = byte
        path.write_bytes(placed)
        if suffix == ".bmp":
            provenance.sidecar(path).write_text(record, "utf-8")
        before = {one.name for one in Path(folder).iterdir()}
        with watched() as seen:
            statuses = [fuzz_kit.genkit("inspect", str(path), *more)[0] for more in ((), ("--json",))]
            assert set(statuses) <= {0, 2}
            arguments = ("--check",) if check_only else ("-o", f"{folder}/again{suffix}")
            status, _, _ = fuzz_kit.genkit("rerun", str(path), "--quiet", *arguments)
        assert status in (0, 1, 2)
        made = {one.name for one in Path(folder).iterdir()} - before
        assert made <= ({f"again{suffix}", f"again{suffix}.genkit.json"} if status == 0 and not check_only else set())
        assert not seen.network
        assert not Path(f"../{OUTSIDE}/marker").exists(), "a pickle was executed"
        for opened in seen.opened:
            if f"{OUTSIDE}/" in opened:
                assert _names(record, Path(opened).name), f"{opened} is no input that the record names"


def _names(record: str, name: str) -> bool:
    """Whether the record names a file as an input, a soundfont or a model: those are read to see what they are."""
    values = json.loads(record)
    played = (values.get("rendered") or {}).get("soundfont") or {}
    given = [
        values.get("model"),
        played.get("path"),
        *(one.get("path") for one in (values.get("inputs") or {}).values()),
    ]
    return any(isinstance(one, str) and one.endswith(name) for one in given)


@fuzz_kit.short(80)
@given(data=st.data(), check_only=st.booleans())
def test_any_record_is_a_run_or_one_line(files, data: Any, check_only: bool) -> None:
    check(files, data, check_only)


@pytest.mark.slow
@pytest.mark.timeout(0)
@fuzz_kit.long()
@given(data=st.data(), check_only=st.booleans())
def test_records_at_length(files, data: Any, check_only: bool) -> None:
    check(files, data, check_only)
