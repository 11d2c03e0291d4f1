"""The parameter types: bounds, files, text, and one line for each mistake."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from genkit.errors import InputError
from genkit.fields import (
    MAX_SEED,
    AudioFile,
    ImageFile,
    ModelFile,
    Pixels,
    Prompt,
    Slider,
    Steps,
    expanded,
)
from genkit.pipeline import Params


class Look(enum.StrEnum):
    NOTO = "noto"
    BLOB = "blob"


class Everything(Params):
    width: Annotated[int, Pixels(64, 8192, multiple_of=8)] = Field(512, description="Width of the result.")
    num_inference_steps: Annotated[int, Steps(1, 1000)] = 20
    guidance_scale: Annotated[float, Slider(0, 30)] = 7.5
    margin: Annotated[int, Pixels(0, 64)] | None = None
    above: float | None = Field(None, gt=0)
    prompt: Prompt = ""
    look: Look = Look.NOTO
    mode: Literal["fast", "good"] = "fast"
    tiled: bool = False
    content: ImageFile | None = None
    style: list[ImageFile] = Field([], max_length=2)
    sound: AudioFile | None = None
    weights: ModelFile | None = None

    @model_validator(mode="after")
    def _blob_is_fast(self) -> Everything:
        if self.look == "blob" and self.mode == "good":
            raise ValueError("look 'blob' has no mode 'good'; choose fast")
        return self


def complaint(**values: Any) -> str:
    with pytest.raises(InputError) as caught:
        Everything.parse(values)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
    assert "pydantic" not in message
    return message


NUMBERS = [
    ({"width": -1}, "width -1 is out of range: it must be 64 to 8192 px"),
    ({"width": 0}, "width 0 is out of range: it must be 64 to 8192 px"),
    ({"width": 65536}, "width 65536 is out of range: it must be 64 to 8192 px"),
    ({"width": "65536"}, "width '65536' is out of range: it must be 64 to 8192 px"),
    ({"width": 513}, "width 513 is not a multiple of 8: 512 and 520 are"),
    ({"width": "513"}, "width '513' is not a multiple of 8: 512 and 520 are"),
    ({"width": "-1"}, "width '-1' is out of range: it must be 64 to 8192 px"),
    ({"width": 512.5}, "width 512.5 is not a whole number"),
    ({"width": "wide"}, "width 'wide' is not a whole number"),
    ({"width": None}, "width None is not a whole number"),
    ({"width": "9" * 5000}, "is not a whole number of a size that anything is made in"),
    ({"num_inference_steps": 10**6}, "num_inference_steps 1000000 is out of range: it must be 1 to 1000 steps"),
    ({"guidance_scale": float("nan")}, "guidance_scale nan is not a finite number"),
    ({"guidance_scale": "nan"}, "guidance_scale 'nan' is not a finite number"),
    ({"guidance_scale": "inf"}, "guidance_scale 'inf' is not a finite number"),
    ({"guidance_scale": "much"}, "guidance_scale 'much' is not a number"),
    ({"margin": 65}, "margin 65 is out of range: it must be 0 to 64 px"),
    ({"above": 0}, "above 0 is out of range: it must be over 0"),
    ({"seed": 2**64}, f"seed {2**64} is out of range: it must be 0 to {MAX_SEED}"),
    ({"seed": -1}, f"seed -1 is out of range: it must be 0 to {MAX_SEED}"),
    ({"seed": "seven"}, "seed 'seven' is not a whole number"),
    ({"tiled": "perhaps"}, "tiled 'perhaps' is neither true nor false"),
]


@pytest.mark.parametrize(("values", "message"), NUMBERS, ids=[str(v)[:40] for v, _ in NUMBERS])
def test_a_number_that_will_not_do_is_told_its_range(values, message):
    assert complaint(**values).endswith(message)


WORDS = [
    ({"look": "notto"}, "look 'notto' is not known: did you mean 'noto'?"),
    ({"look": "zzz"}, "look 'zzz' is not known: known are noto, blob"),
    ({"mode": "god"}, "mode 'god' is not known: did you mean 'good'?"),
    ({"widht": 3}, "unknown parameter 'widht': did you mean 'width'?"),
    ({"look": "blob", "mode": "good"}, "look 'blob' has no mode 'good'; choose fast"),
    ({"prompt": 3}, "prompt 3 is not a text"),
    ({"prompt": "a\x00b"}, "holds the control character U+0000; remove it"),
    ({"prompt": "a\x1b[2Jb"}, "holds the control character U+001B; remove it"),
    ({"prompt": "abc\u202edef"}, "holds the control character U+202E; remove it"),
    ({"prompt": "abc\u2066def"}, "holds the control character U+2066; remove it"),
    ({"prompt": "abc\u200fdef"}, "holds the control character U+200F; remove it"),
    ({"prompt": "abc\ud800"}, "is not valid Unicode"),
    ({"prompt": "x" * 2**20}, "is too long: 1048576 characters, of 10000 at most"),
    ({"width": 1, "margin": -1}, "width 1 is out of range: it must be 64 to 8192 px (and 1 more)"),
]


@pytest.mark.parametrize(("values", "message"), WORDS, ids=[str(v)[:40].encode("ascii", "replace") for v, _ in WORDS])
def test_a_word_that_will_not_do_is_told_what_would(values, message):
    assert message in complaint(**values)


def test_every_unknown_parameter_name_is_listed_against_the_known():
    assert complaint(zzzzzz=1).startswith("unknown parameter 'zzzzzz': known are seed, width, ")


def test_texts_of_all_scripts_and_lines_are_texts():
    for text in ("", "<script>alert(1)</script>", "狐と梟\n二行目\t", "👩‍👩‍👧", "שלום", "x" * 10_000):
        assert Everything.parse({"prompt": text}).prompt == text


@given(st.integers())
def test_a_whole_number_is_taken_or_refused_never_changed(number):
    try:
        params = Everything.parse({"num_inference_steps": number})
    except InputError:
        assert not 1 <= number <= 1000
    else:
        assert params.num_inference_steps == number


@given(st.text())
def test_any_text_is_taken_or_refused_in_one_line(text):
    try:
        assert Everything.parse({"prompt": text}).prompt == text
    except InputError as error:
        assert str(error).isprintable()  # noqa: PT017 - both ends are right


# ------------------------------------------------------------------------------------------------------------ files


def test_a_file_is_a_path_or_a_value_in_memory(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    picture, array = PIL.Image.new("RGB", (2, 2)), np.zeros((2, 2, 3), np.uint8)
    assert Everything.parse({"content": str(path)}).content == path
    assert Everything.parse({"content": path}).content == path
    assert Everything.parse({"content": picture}).content is picture
    assert Everything.parse({"style": [array, path]}).style[0] is array


def test_a_relative_file_starts_at_the_root_and_may_come_later(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    assert Everything.parse({"content": "a.png"}, root=tmp_path).content == tmp_path / "a.png"
    assert Everything.parse({"content": "later.png"}, root=tmp_path, unchecked=True).content == tmp_path / "later.png"
    assert "does not exist" in complaint(content="a.png")


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert complaint(content=tmp_path / "none.png") == f"content '{tmp_path}/none.png' does not exist; check the path"
    assert "is a folder; name one file" in complaint(content=tmp_path)
    assert "is no ordinary file (a pipe or a device)" in complaint(content=tmp_path / "pipe")
    assert "is no ordinary file (a pipe or a device)" in complaint(content="/dev/zero")
    assert "is not a file name" in complaint(content="")
    assert "is not a file name" in complaint(content="a\x00b")
    assert "is not a file name; give the path of a file of kind image" in complaint(content=3)
    assert "cannot be read" in complaint(content="x" * 5000)
    assert complaint(style=[tmp_path / "none.png"]).startswith("style[0] '")
    assert "does not exist" in complaint(sound="none.wav")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.png").touch(mode=0)
    assert "is not readable; check its permissions" in complaint(content=tmp_path / "a.png")


def test_a_list_that_is_too_long_says_how_many(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    assert complaint(style=[path] * 3) == "style holds 3 values: it must hold at most 2"


def test_the_record_names_files_by_path_and_pictures_in_memory_by_content(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    red, red_too, blue = (PIL.Image.new("RGB", (2, 2), colour) for colour in ("red", "red", "blue"))
    assert Everything.parse({"content": tmp_path / "a.png"}).record()["content"] == str(tmp_path / "a.png")
    names = [Everything.parse({"content": picture}).record()["content"] for picture in (red, red_too, blue)]
    assert names[0] == names[1] != names[2]
    wide, high = np.zeros((2, 8)), np.zeros((8, 2))
    assert Everything.parse({"content": wide}).record() != Everything.parse({"content": high}).record()


# ----------------------------------------------------------------------------------------------------------- schema


def test_the_schema_carries_bounds_units_and_kinds():
    schema = Everything.model_json_schema()["properties"]
    assert schema["width"] | {"title": ""} == {
        "default": 512,
        "description": "Width of the result.",
        "maximum": 8192,
        "minimum": 64,
        "multipleOf": 8,
        "title": "",
        "type": "integer",
        "x-genkit": {"kind": "number", "unit": "px"},
    }
    assert schema["guidance_scale"]["x-genkit"]["kind"] == "slider"
    assert schema["seed"]["x-genkit"]["kind"] == "seed"
    assert schema["content"]["anyOf"][0] == {"type": "string", "format": "path", "x-genkit": {"kind": "image"}}
    assert schema["style"]["items"]["x-genkit"] == {"kind": "image"}


def test_file_fields_are_found_however_deep():
    assert Everything.file_fields() == {"content": "image", "style": "image", "sound": "audio", "weights": "model"}


def test_files_of_lists_are_numbered(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(b"x")
    params = Everything.parse({"style": paths, "content": paths[0]})
    assert params.files() == {"content": paths[0], "style[0]": paths[0], "style[1]": paths[1]}


def test_a_home_folder_is_followed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"x")
    assert Everything.parse({"content": "~/a.png"}).content == Path(tmp_path / "a.png")


def test_the_home_of_nobody_is_a_name_like_any_other() -> None:
    assert expanded("~/x") == Path.home() / "x"
    assert expanded("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")
