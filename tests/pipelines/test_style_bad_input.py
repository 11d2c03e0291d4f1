"""`genkit style-transfer` given what it cannot use: one line, exit status 2, nothing written, no memory taken."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import style_kit
import torch
from safetensors.torch import save_file

from genkit import weights


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A working folder that holds nothing yet."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def good(files) -> dict[str, Any]:
    """Flags that work."""
    return {
        "content": files.content,
        "style": files.style,
        "features-weights": files.small,
        "size": 32,
        "num-inference-steps": 1,
        "seed": 7,
        "o": "out.png",
    }


def flags(values: dict[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name}" if len(name) > 1 else f"-{name}", str(one)]
    return words


@pytest.fixture
def refused(run, workplace, good) -> Callable[..., str]:
    """refused(size=0) -> the one line. Underscores are dashes; None takes a flag away."""

    def check(**changes: Any) -> str:
        before = sorted(workplace.rglob("*"))
        values = {**good, **{name.replace("_", "-"): value for name, value in changes.items()}}
        done = run("style-transfer", *flags({name: value for name, value in values.items() if value is not None}))
        assert done.status == 2, done
        assert done.out == ""
        lines = done.err.splitlines()
        assert len(lines) == 1, done.err
        assert lines[0].startswith("genkit: ")
        assert "Traceback" not in lines[0]
        assert sorted(workplace.rglob("*")) == before
        return lines[0]

    return check


def test_the_flags_these_begin_from_work(run, workplace, good):
    done = run("style-transfer", *flags(good))
    assert (done.status, done.out) == (0, "out.png\n")
    with PIL.Image.open("out.png") as picture:
        assert picture.size == (32, 25)


# ------------------------------------------------------------------------------------------------ numbers and words


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size": "0"}, "size '0' is out of range: it must be 32 to 16384 px"),
        ({"size": "-1"}, "size '-1' is out of range"),
        ({"size": "1000000000"}, "is out of range"),
        ({"size": "NaN"}, "size 'NaN' is not a whole number"),
        ({"size": "large"}, "size 'large' is not a whole number"),
        ({"num_inference_steps": "1000000"}, "is out of range: it must be 1 to 10000 steps"),
        ({"content_weight": "nan"}, "content_weight 'nan' is not a finite number"),
        ({"content_weight": "-0.1"}, "is out of range"),
        ({"tv_weight": "inf"}, "is not a finite number"),
        ({"learning_rate": "0"}, "is out of range"),
        ({"style_scale": "9"}, "style_scale '9' is out of range: it must be 0.1 to 4"),
        ({"seed": str(2**64)}, "seed"),
        ({"seed": "-1"}, "seed '-1' is out of range"),
        ({"max_memory": "1"}, "is out of range: it must be 64 to 1000000 MB"),
        ({"min_scale": "3"}, "is out of range"),
        ({"method": "optimise"}, "method 'optimise' is not known: did you mean 'optimize'?"),
        ({"method": "cyclic"}, "method 'cyclic' is not known: known are optimize, fast, adain"),
        ({"method": "adain"}, "method 'adain' needs a model"),
        ({"method": "fast", "features_weights": None}, "a 'fast' network has learned its own"),
        ({"features": "vgg18"}, "features 'vgg18' is not known: did you mean 'vgg1"),
        ({"style_loss": "gramm"}, "did you mean 'gram'?"),
        ({"init": "<script>"}, "is not known"),
        ({"style_weights": ["1", "2"]}, "style_weights has 2 numbers for 1 styles; give one for each"),
        ({"style_weights": "0"}, "style_weights are all zero"),
        ({"style_weights": "nan"}, "is not a finite number"),
        ({"style": None}, "style is missing: method 'optimize' needs a painting"),
        ({"content": None}, "content is missing"),
        ({"model": "smal"}, "no model is called 'smal': did you mean 'small'?"),
        ({"dtype": "float31"}, "no dtype is called 'float31'"),
    ],
)  # fmt: skip
def test_numbers_and_words(refused, change, says):
    assert says in refused(**change)


def test_an_unknown_flag_is_corrected(refused):
    assert "--content-weight" in refused(content_wieght="1")


# ----------------------------------------------------------------------------------------------------------- pictures


def png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data does not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


PICTURES: dict[str, Callable[[Path], Any]] = {
    "missing.png": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "empty.png": lambda path: path.touch(),
    "text.png": lambda path: path.write_text("no picture at all"),
    "huge.png": lambda path: path.write_bytes(png(13_000, 13_000)),
    "flat.png": lambda path: path.write_bytes(png(0, 10)),
    "wide.png": lambda path: path.write_bytes(png(2**31 - 1, 2**31 - 1)),
    "cut.png": lambda path: path.write_bytes(style_kit.save(path, 64, 64).read_bytes()[:2000]),
    "page.eps": lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "pipe": os.mkfifo,
    "bad\nname\x1b[31m.png": lambda path: path.write_text("x"),
}


@pytest.mark.parametrize("role", ["content", "style", "mask"])
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_that_are_none(refused, tmp_path, name, role):
    PICTURES[name](tmp_path / name)
    line = refused(**{role: tmp_path / name})
    assert "\x1b" not in line
    if name == "huge.png":
        assert "13000 x 13000" in line
        assert "limit" in line


def test_a_content_of_a_few_pixels_wide_is_refused(refused, tmp_path):
    assert "the shorter side needs 8" in refused(content=style_kit.save(tmp_path / "thin.png", 400, 9))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: [style_kit.save(path / "a.png", 52, 40)], "give masks of the photo's proportions"),
        (
            lambda path: [style_kit.save(path / f"{i}.png", 40, 52) for i in range(2)],
            "mask has 2 pictures for 1 styles",
        ),
        (lambda path: PIL.Image.new("L", (52, 40)).save(path / "black.png") or [path / "black.png"], "black all over"),
    ],
)
def test_masks_that_do_not_fit(refused, tmp_path, make, says):
    assert says in refused(mask=make(tmp_path))


PEAK = """
import pathlib, resource, sys
import pipelines.style_transfer.workshop
from genkit.cli import main
from genkit.runtime import Runtime

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

Runtime.pick()
before = peak()
status = main(sys.argv[1:])
pathlib.Path("peak").write_text(str(peak() - before))
sys.exit(status)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read as Linux states it")
def test_a_huge_picture_is_refused_from_its_header(workplace, files, tmp_path):
    """Half a gigabyte of pixels behind a hundred bytes."""
    (tmp_path / "huge.png").write_bytes(png(13_000, 13_000))
    command = [sys.executable, "-c", PEAK, "style-transfer", "-c", tmp_path / "huge.png", "-s", files.style]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "13000 x 13000" in done.stderr
    assert [path.name for path in workplace.iterdir()] == ["peak"]
    assert int(Path("peak").read_text()) < 100_000  # kB, over what importing torch and Accelerate takes


# ------------------------------------------------------------------------------------------------------------- models


class Harm:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch harmed",)


@pytest.fixture
def models(tmp_path, files) -> dict[str, Path]:
    """Files that are no model for the purpose, by what is wrong with them."""
    home = tmp_path / "models"
    home.mkdir()
    whole = files.small.read_bytes()
    encoder, decoder = style_kit.adain_tensors()
    tensors = weights.read(files.small)
    (home / "harm.pth").write_bytes(pickle.dumps({"features.0.0.weight": Harm()}))
    torch.save({"features.0.0.weight": Harm()}, home / "harm.pt")
    (home / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (home / "header.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    (home / "empty.safetensors").touch()
    (home / "page.pth").write_text("<!DOCTYPE html><title>404</title>")
    save_file({**tensors, "features.0.0.bias": torch.full((4,), float("nan"))}, home / "nan.safetensors")
    save_file({k: t for k, t in tensors.items() if "heads.fire4" not in k}, home / "less.safetensors")
    save_file({**tensors, "more": torch.zeros(2)}, home / "more.safetensors")
    save_file({**tensors, "features.0.0.weight": torch.zeros(())}, home / "scalar.safetensors")
    torch.save(decoder, home / "decoder-alone.pth")
    torch.save(encoder, home / "encoder-alone.pth")
    (home / "half").mkdir()
    torch.save(decoder, home / "half/decoder.pth")
    (home / "nothing").mkdir()
    return {path.name: path for path in home.iterdir()}


DAMAGED = {
    "harm.pth": "could run any code",
    "harm.pt": "could run any code",
    "cut.safetensors": "is damaged",
    "header.safetensors": "is damaged",
    "empty.safetensors": "is damaged",
    "page.pth": "a web page",
    "nan.safetensors": "holds NaN",
}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        *DAMAGED.items(),
        ("less.safetensors", "missing (heads.fire4"),
        ("more.safetensors", "unexpected (more)"),
        ("scalar.safetensors", "features.0.0.weight"),
        ("decoder-alone.pth", "is no `small` feature network"),
    ],
)
def test_feature_networks_that_are_none(refused, models, workplace, name, says):
    line = refused(features_weights=models[name])
    assert says in line
    assert name in line
    assert not (workplace / "harmed").exists()


@pytest.mark.parametrize("name", ["squeezenet1_0", "vgg19"])
def test_the_weights_of_another_network(refused, files, name):
    line = refused(features=name, features_weights=files.small)
    assert "tiny-small.safetensors does not fit" in line


@pytest.mark.parametrize(
    ("name", "says"),
    [
        *DAMAGED.items(),
        ("less.safetensors", "is no style model"),
        ("decoder-alone.pth", "half of an AdaIN model: put decoder.pth and vgg_normalised.pth into one folder"),
        ("encoder-alone.pth", "half of an AdaIN model"),
        ("half", "holds no vgg_normalised.pth"),
        ("nothing", "holds no model"),
    ],
)
def test_style_models_that_are_none(refused, models, workplace, name, says):
    line = refused(model=models[name], features_weights=None)
    assert says in line
    assert not (workplace / "harmed").exists()


def test_a_model_that_is_not_there(refused, tmp_path):
    assert "does not exist" in refused(model=tmp_path / "candy.pth", features_weights=None)
    assert "does not exist" in refused(features_weights=tmp_path / "vgg19.pth")


# ------------------------------------------------------------------------------------------------------------- output


@pytest.mark.parametrize(
    ("output", "says"),
    [("out.xyz", "xyz"), ("out", "suffix"), ("out.wav", "does not fit for a picture"), ("out.png/x.png", "out.png")],
)
def test_outputs_that_cannot_be(refused, workplace, output, says):
    if "/" in output:
        (workplace / "out.png").write_text("a file, no folder")
    assert says in refused(o=output)


def test_a_folder_that_cannot_be_written(refused, workplace):
    if os.geteuid() == 0:
        target = "/proc/out.png"  # not even root writes there
    else:
        (workplace / "locked").mkdir(mode=0o555)
        target = "locked/out.png"
    assert target in refused(o=target)


def test_a_bound_of_memory_that_cannot_be_kept(refused):
    line = refused(size="4096", min_scale="4096", max_memory="64")
    assert "needs" in line
    assert "raise max_memory or lower size" in line


# ----------------------------------------------------------------------------------------------------- a real process


def test_a_real_process_says_one_line_and_leaves_nothing(workplace, files):
    command = [sys.executable, "-m", "genkit", "style-transfer", "--content", "photo.jpg", "--style", str(files.style)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [done.stderr.rstrip("\n")]
    assert "'photo.jpg' does not exist" in done.stderr
    assert list(workplace.iterdir()) == []


def test_a_real_process_paints(workplace, good):
    command = [sys.executable, "-m", "genkit", "style-transfer", *flags(good)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "out.png\n"), done.stderr
    assert [path.name for path in workplace.iterdir()] == ["out.png"]
