"""A file says how it was made, in every format, and what it says is not trusted."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import string
from pathlib import Path
from typing import Any

import mido
import mutagen
import numpy as np
import pytest
import soundfile
import symusic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

import genkit
from genkit.errors import DiskFull, InputError, MediaError
from genkit.media import files, provenance
from genkit.media.image import Image
from genkit.media.provenance import Input, ModelUsed, Provenance

MADE_BY = {
    "test-noise": (".png", ".jpg", ".webp", ".tiff", ".bmp"),
    "test-tone": (".wav", ".flac", ".ogg", ".mp3"),
    "test-tune": (".mid",),
}
CASES = [(name, suffix) for name, suffixes in MADE_BY.items() for suffix in suffixes]


def record(**changes: Any) -> Provenance:
    full = Provenance(
        pipeline="test-noise",
        version=1,
        params={"prompt": 'a "fox" <b>, & früh 日本\n\\', "seed": 3},
        model="small",
        models={"model": ModelUsed("small", "sha256:" + "a" * 64)},
        inputs={"content": Input("b" * 64, "photo.jpg"), "mask": Input("c" * 64)},
        runtime={"device": "cpu"},
        job="j" * 64,
    )
    return dataclasses.replace(full, **changes)


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_every_format_carries_its_record(noise_pipeline: str, tmp_path: Path, name: str, suffix: str) -> None:
    pipeline = genkit.load(name)
    one, other = tmp_path / f"one{suffix}", tmp_path / f"other{suffix}"
    output = pipeline(seed=7)
    output.save(one)
    pipeline(seed=7).save(other)
    assert one.read_bytes() == other.read_bytes(), "two runs of the same thing are the same bytes"
    found = provenance.read(one)
    assert found is not None
    assert (found.pipeline, found.params["seed"], found.runtime["device"]) == (name, 7, "cpu")
    assert found.content == provenance.open_media(one).digest(), "the content that a reader gets"
    beside = [one.with_name(one.name + ".genkit.json")] if suffix == ".bmp" else []
    assert sorted(path for path in tmp_path.iterdir() if path.name.startswith("one")) == [one, *beside]


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_any_text_survives_and_the_media_is_untouched(
    noise_pipeline: str, tmp_path: Path, name: str, suffix: str
) -> None:
    value = genkit.load(name)(seed=1).media[0]
    path = tmp_path / f"a{suffix}"
    value.save(path, provenance=record())
    found = provenance.read(path)
    assert found == record(content=found.content if found else None)
    plain = value.encoded(files.file_format(path, value.__genkit_media__))
    assert provenance.open_media(path).digest() == provenance.decode(plain, value.__genkit_media__).digest()


@pytest.mark.parametrize(
    ("changes", "name"),
    [({}, "small"), ({"model": None}, "small"), ({"model": None, "models": {}}, "test-noise")],
    ids=["named", "default", "without"],
)
def test_other_programs_are_told_which_model_it_was(
    noise_pipeline: str, tmp_path: Path, changes: dict[str, Any], name: str
) -> None:
    genkit.load("test-noise")(seed=1).images[0].save(tmp_path / "a.png", provenance=record(**changes))
    with PILImage.open(tmp_path / "a.png") as pil:
        assert f"Model: {name}, " in pil.text["parameters"]


def test_other_programs_still_read_the_files(noise_pipeline: str, tmp_path: Path) -> None:
    for name, suffix in CASES:
        path = tmp_path / f"a{suffix}"
        genkit.load(name)(seed=1).media[0].save(path, provenance=record())
        if name == "test-noise":
            with PILImage.open(path) as pil:
                pil.load()
                assert pil.size == (32, 24)
                if suffix == ".png":
                    assert "Seed: 3" in pil.text["parameters"]
                if suffix in (".jpg", ".webp"):
                    assert "Seed: 3" in pil.getexif().get_ifd(0x8769)[0x9286][8:].decode("utf-16-be")
        elif name == "test-tone":
            assert len(soundfile.read(path)[0]) == 11025
            tagged = mutagen.File(path)
            assert json.loads(str(tagged.tags["TXXX:genkit" if suffix in (".wav", ".mp3") else "genkit"][0]))
        else:
            texts = [message.text for message in mido.MidiFile(path).tracks[0] if message.type == "text"]
            assert texts[0].startswith("genkit:{")
            assert sum(message.type == "note_on" for message in mido.MidiFile(path)) == 8


def test_a_transparent_webp_keeps_its_transparency(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 4), dtype=np.uint8)
    image = Image.open(pixels, background=None)
    for options in ({"lossless": True}, {}):
        path = image.save(tmp_path / "a.webp", provenance=record(), **options)
        with PILImage.open(path) as pil:
            assert pil.mode == "RGBA"
            assert np.array_equal(np.asarray(pil)[..., 3], pixels[..., 3])


def test_options_are_part_of_the_record(tmp_path: Path) -> None:
    image = Image.open(np.random.default_rng(0).random((16, 16, 3)))
    image.save(tmp_path / "a.jpg", provenance=record(), quality=50)
    image.save(tmp_path / "a.tiff", provenance=record(), bits=16)
    jpeg, tiff = provenance.read(tmp_path / "a.jpg"), provenance.read(tmp_path / "a.tiff")
    assert jpeg is not None
    assert tiff is not None
    assert (jpeg.encoding, tiff.encoding) == ({"quality": 50}, {"bits": 16})
    assert Image.open(tmp_path / "a.tiff").deep is not None


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_record_too_long_for_the_format_goes_beside_the_file(tmp_path: Path, suffix: str) -> None:
    """JPEG holds 64 kB, and Pillow reads 1 MiB of a text in a PNG; what no reader takes is refused."""
    image = Image.open(np.zeros((4, 4, 3), np.uint8))
    length = 70_000 if suffix == ".jpg" else 700_000
    long = record(params={"prompt": "é" * length})
    path = image.save(tmp_path / f"a{suffix}", provenance=dataclasses.replace(long, params={"prompt": "x" * length}))
    assert provenance.sidecar(path).exists() is (suffix == ".jpg")
    found = provenance.read(path)
    assert found is not None
    assert len(found.params["prompt"]) == length  # type: ignore[arg-type]


def test_a_record_beside_the_file_on_request(tmp_path: Path) -> None:
    path = Image.open(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png", provenance=record(), sidecar=True)
    text = provenance.sidecar(path).read_text("utf-8")
    assert Provenance.from_json(text) == provenance.read(path)


def test_a_failure_leaves_neither_file_nor_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = files.atomic_write

    def full(path: Path, *args: Any, **options: Any) -> Path:
        if path.suffix == ".bmp":
            raise DiskFull("no space left")
        return write(path, *args, **options)

    monkeypatch.setattr(files, "atomic_write", full)
    with pytest.raises(DiskFull):
        Image.open(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.bmp", provenance=record())
    assert not list(tmp_path.iterdir())


def test_inputs_are_known_by_their_content(noise_pipeline: str, tmp_path: Path) -> None:
    photo = Image.open(np.random.default_rng(0).random((8, 8, 3)))
    path = photo.save(tmp_path / "photo.png")
    pipeline = genkit.load(noise_pipeline)
    from_file = pipeline(content=path, seed=1).provenance
    from_memory = pipeline(content=photo, seed=1).provenance
    assert from_file is not None
    assert from_memory is not None
    assert from_file.inputs == {"content": Input(provenance.digest_file(path), str(path))}
    assert from_memory.inputs == {"content": Input(photo.digest())}


def test_an_input_whose_name_is_not_utf8_is_refused(noise_pipeline: str, tmp_path: Path) -> None:
    """Its name could not be recorded."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/photo\xff.png")
    Path(path).write_bytes(b"")
    with pytest.raises(InputError, match="UTF-8"):
        genkit.load(noise_pipeline)(content=path)


names = st.text(string.ascii_letters, min_size=1, max_size=10)
texts = st.text(max_size=60)
values = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts
)


@given(
    params=st.dictionaries(names, values | st.lists(values, max_size=3), max_size=5),
    runtime=st.dictionaries(names, texts, max_size=3),
    model=st.none() | texts,
)
def test_a_record_survives_json(params: dict[str, Any], runtime: dict[str, str], model: str | None) -> None:
    one = record(params=params, runtime=runtime, model=model)
    assert Provenance.from_json(one.to_json()) == one
    assert Provenance.from_json(one.to_json()).to_json() == one.to_json()


GOOD = json.loads(record().to_json())
BAD_RECORDS = {
    "not JSON": "{",
    "a list": "[]",
    "deep": "[" * 100_000,
    "nothing": "{}",
    "unknown name": json.dumps(GOOD | {"surprise": 1}),
    "wrong type": json.dumps(GOOD | {"version": "1; rm -rf"}),
    "NaN": json.dumps(GOOD | {"params": {"x": float("nan")}}),
    "bad digest": json.dumps(GOOD | {"content": "../../etc/passwd"}),
    "negative index": json.dumps(GOOD | {"index": -1}),
    "huge": json.dumps(GOOD | {"params": {"x": "a" * (1 << 20)}}),
    "newer": json.dumps(GOOD | {"schema": 99, "surprise": 1}),
    "control signs": json.dumps(GOOD | {"inputs": {"\x1b[2J\n": 3}}),
}


@pytest.mark.parametrize("what", sorted(BAD_RECORDS))
@pytest.mark.parametrize("suffix", [".bmp", ".flac", ".mid"])
def test_a_bad_record_is_one_line(noise_pipeline: str, tmp_path: Path, what: str, suffix: str) -> None:
    """However it got into the file, by the same path as a good one."""
    from genkit.media import _embed

    name = next(name for name, suffixes in MADE_BY.items() if suffix in suffixes)
    value = genkit.load(name)(seed=1).media[0]
    format = files.file_format("a" + suffix, value.__genkit_media__)
    path = tmp_path / f"a{suffix}"
    data = value.encoded(format)
    path.write_bytes(_embed.place(value, data, format, BAD_RECORDS[what], "", {}) or data)
    if suffix == ".bmp":
        provenance.sidecar(path).write_text(BAD_RECORDS[what])
    with pytest.raises(MediaError, match="record") as error:
        provenance.read(path)
    assert str(error.value).isprintable()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A file of every format with its record, as bytes."""
    import torch

    from genkit.media.audio import Audio
    from genkit.media.midi import Midi

    score = symusic.Score(480)
    score.tracks.append(symusic.Track(program=0, is_drum=False, name=""))
    score.tracks[0].notes.append(symusic.Note(0, 480, 60, 80))
    folder = tmp_path_factory.mktemp("made")
    media = {
        "image": Image.open(np.random.default_rng(0).random((9, 9, 3))),
        "audio": Audio(torch.zeros(1, 3000), 8000),
        "midi": Midi(score),
    }
    paths = [media[kind].save(folder / f"a{suffix}", record()) for kind in media for suffix in files.SUFFIXES[kind]]
    return {path.suffix: path.read_bytes() for path in paths}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_damaged_files_never_raise_anything_else(made: dict[str, bytes], tmp_path: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(sorted(made)))
    content = bytearray(made[suffix])
    for place in data.draw(st.lists(st.integers(0, min(len(content), 900) - 1), max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    for read in (provenance.read, provenance.open_media, provenance.read_parameters):
        with contextlib.suppress(MediaError):
            read(path)


def test_a_file_without_a_record_has_none(tmp_path: Path) -> None:
    path = Image.open(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    assert provenance.read(path) is None
    assert provenance.read_parameters(path) is None
    (tmp_path / "text.txt").write_text("hello")
    assert provenance.read(tmp_path / "text.txt") is None
    with pytest.raises(MediaError, match="exist"):
        provenance.read(tmp_path / "missing.png")


def test_parameters_of_another_tool_are_read(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(
        "parameters", "a fox\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 8x8"
    )
    buffer = io.BytesIO()
    PILImage.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=info)
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    found = provenance.read_parameters(tmp_path / "a.png")
    assert found is not None
    assert (found["prompt"], found["negative_prompt"], found["seed"], found["width"]) == ("a fox", "dog", 5, 8)
