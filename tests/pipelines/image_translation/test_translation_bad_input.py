"""`genkit image-translation` given what it cannot use: one line, its exit status, nothing written, no memory taken."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import translating_kit

from genkit import weights


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that people might name."""
    home = tmp_path_factory.mktemp("models")
    for name in ("cyclegan", "unet", "stargan"):
        translating_kit.old_file(home / f"{name}.pth", name)
    state = translating_kit.network("cyclegan").state_dict()
    first = next(iter(state))
    torch.save({**state, first: state[first] * float("nan")}, home / "nan.pth")
    torch.save({key: state[key] for key in list(state)[:-1]}, home / "short.pth")
    torch.save({**state, first: torch.zeros(6, 4, 7, 7)}, home / "four.pth")
    torch.save({key: tensor * 1e30 for key, tensor in state.items()}, home / "hot.pth")
    torch.save({"features.0.weight": torch.zeros(4, 3, 3, 3)}, home / "vgg.pth")
    (home / "empty.pth").write_bytes(b"")
    (home / "text.pth").write_text("not a model")
    (home / "cut.pth").write_bytes((home / "cyclegan.pth").read_bytes()[:5000])
    weights.write(
        home / "lying.safetensors",
        state,
        {"architecture": "genkit.image-translation", "layout": json.dumps({"kind": "resnet", "width": 99})},
    )
    (home / "none").mkdir()
    (home / "both").mkdir()
    for side in "AB":
        translating_kit.old_file(home / "both" / f"latest_net_G_{side}.pth", "cyclegan")
    return home


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a picture and what is none."""
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    translating_kit.pixels(40, 48).save(place / "in.png")
    (place / "in.txt").write_text("not a picture")
    (place / "cut.png").write_bytes((place / "in.png").read_bytes()[:200])
    (place / "huge.png").write_bytes(claiming(200_000, 200_000))
    return place


def claiming(width: int, height: int) -> bytes:
    """The start of a PNG that says it is so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.fixture
def refused(run: Callable[..., Any], workplace: Path, models: Path) -> Callable[..., str]:
    """refused(tile=0) -> the one line. Underscores are dashes, {models} is the folder; None takes a flag away."""

    def check(status: int = 2, **changes: Any) -> str:
        before = sorted(workplace.rglob("*"))
        values = {"image": "in.png", "model": "{models}/cyclegan.pth", "output": "out.png", "seed": "7", **changes}
        words = []
        for name, value in values.items():
            for one in value if isinstance(value, list) else [value] if value is not None else []:
                words += ["--" + name.replace("_", "-"), str(one).replace("{models}", str(models))]
        done = run("image-translation", *words)
        assert done.status == status, done
        assert done.out == ""
        lines = done.err.splitlines()
        assert len(lines) == 1, done.err
        assert lines[0].startswith("genkit: ")
        assert sorted(workplace.rglob("*")) == before
        return lines[0]

    return check


def test_the_flags_these_begin_from_work(run: Callable[..., Any], workplace: Path, models: Path) -> None:
    done = run("image-translation", "-i", "in.png", "-m", models / "cyclegan.pth", "-o", "out.png", "--seed", 7)
    assert (done.status, done.out) == (0, "out.png\n")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image": None}, "image is missing"),
        ({"image": "none.png"}, "image 'none.png' does not exist; check the path"),
        ({"image": "."}, "is a folder; name one file"),
        ({"image": "in.txt"}, "'in.txt' is not a picture that is known; give a PNG, JPEG, WebP, TIFF or BMP"),
        ({"image": "cut.png"}, "'cut.png': the PNG picture is damaged or cut off"),
        ({"image": "huge.png"}, "'huge.png': 200000 x 200000 px (40000 megapixels) is over the limit of 100"),
        ({"image": "/dev/null"}, "is no ordinary file"),
        ({"tile": "0"}, "tile '0' is out of range: it must be 64 to 16384 px"),
        ({"tile": "16"}, "tile '16' is out of range"),
        ({"tile": "-512"}, "tile '-512' is out of range"),
        ({"tile": "200000"}, "tile '200000' is out of range"),
        ({"tile": "large"}, "tile 'large' is not a whole number"),
        ({"tile": "nan"}, "tile 'nan' is not a whole number"),
        ({"size": "0"}, "size '0' is out of range: it must be 1 to 16384 px"),
        ({"size": "99999"}, "size '99999' is out of range"),
        ({"size": "16384"}, "size 16384 makes 16384x13653 px, over 100 megapixels; ask for less"),
        ({"background": "whiet"}, "background 'whiet' is not valid: give a colour by its name or as '#rrggbb'"),
        ({"background": "#12"}, "background '#12' is not valid: give a colour"),
        ({"seed": "-1"}, "seed '-1' is out of range"),
        ({"domain": "0"}, "domain is for StarGAN's generators; {models}/cyclegan.pth makes one look only"),
        ({"domain": "nan"}, "domain[0] 'nan' is not a finite number"),
        ({"domain": "black hair"}, "domain[0] 'black hair' is not a number"),
        ({"output": "out.wav"}, "'out.wav'"),
        ({"dtype": "float31"}, "no dtype is called 'float31'"),
        ({"device": "abacus"}, "abacus"),
    ],
)  # fmt: skip
def test_parameters_and_pictures(refused: Callable[..., str], models: Path, changes: dict[str, Any], says: str) -> None:
    status = 1 if "device" in changes else 2
    assert says.replace("{models}", str(models)) in refused(status, **changes)


@pytest.mark.parametrize(
    ("domain", "says"),
    [
        (None, "takes 3 labels, and domain is missing: give domain as a place from 0 to 2, or as 3 numbers"),
        ("3", "domain 3 is none of the 3 that "),
        ("-1", "domain -1 is none of the 3 that "),
        ("0.5", "domain 0.5 is none of the 3 that "),
        (["1", "0"], "domain has 2 numbers, and "),
        (["1", "0", "0", "0"], "domain has 4 numbers, and "),
        ("1e9", "domain[0] '1e9' is out of range"),
    ],
)
def test_looks_of_stargan(refused: Callable[..., str], domain: Any, says: str) -> None:
    assert says in refused(model="{models}/stargan.pth", domain=domain)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("none.pth", "model 'none.pth' does not exist; check the path"),
        ("noto-to-blop", "no model is called 'noto-to-blop': did you mean 'noto-to-blob'?"),
        ("{models}/nan.pth", "nan.pth"),
        ("{models}/short.pth", "short.pth"),
        ("{models}/four.pth", "four.pth takes 4 channels, and pictures have 1 (grey) or 3 (RGB): use another model"),
        ("{models}/vgg.pth", "vgg.pth"),
        ("{models}/empty.pth", "empty.pth"),
        ("{models}/text.pth", "text.pth"),
        ("{models}/cut.pth", "cut.pth"),
        ("{models}/lying.safetensors", "lying.safetensors"),
        ("{models}/none", "holds no generator"),
        ("{models}/both", "holds 2 generators (latest_net_G_A.pth, latest_net_G_B.pth); name one"),
        ("in.png", "in.png"),
    ],
)
def test_models(refused: Callable[..., str], model: str, says: str) -> None:
    assert says in refused(model=model)


def test_a_model_that_makes_no_picture(refused: Callable[..., str]) -> None:
    assert "the result is not a picture (NaN): the model is damaged" in refused(1, model="{models}/hot.pth")
