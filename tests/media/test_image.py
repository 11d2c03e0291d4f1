"""Pictures: whatever comes in means the same picture; whatever is wrong is one line."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as PILImage
from PIL import ImageCms

from genkit.errors import InputError, MediaError
from genkit.media.image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
LOSSLESS = ("PNG", "TIFF", "BMP")


def smooth(width: int = 40, height: int = 30) -> np.ndarray:
    """A picture that a lossy format keeps well: uint8 [H, W, 3]."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, 255 - x], axis=2).astype(np.uint8)


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG of any declared size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def file_of(pil: PILImage.Image, format: str = "PNG", **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    pil.save(buffer, format, **options)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_comes_back_from_every_format(format: str) -> None:
    image = Image.open(smooth())
    data = image.encoded(format)
    assert data == image.encoded(format), "the same picture is the same bytes"
    back = Image.open(io.BytesIO(data))
    apart = np.abs(np.asarray(back.pil, int) - np.asarray(image.pil, int)).max()
    assert back.size == image.size
    assert apart == 0 if format in LOSSLESS else apart < 24
    assert (back.digest() == image.digest()) == (apart == 0)


def test_a_tensor_survives_an_eight_bit_file() -> None:
    values = torch.arange(256).float() / 255
    tensor = values.expand(3, 2, 256).contiguous()
    back = Image.open(io.BytesIO(Image.from_tensor(tensor).encoded("PNG"))).tensor()
    torch.testing.assert_close(back, tensor)


def test_a_tensor_survives_a_sixteen_bit_tiff() -> None:
    tensor = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0))
    data = Image.from_tensor(tensor).encoded("TIFF", bits=16)
    back = Image.open(io.BytesIO(data))
    assert (back.tensor() - tensor).abs().max() <= 0.5 / 65535 + 1e-7
    assert back.encoded("TIFF") == data, "what was read at 16 bits is written at 16 bits"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb_without_garbage(mode: str) -> None:
    grey = PILImage.new("L", (8, 6), 255)
    pil = PILImage.fromarray(np.full((6, 8), 65535, np.uint16)) if mode == "I;16" else grey.convert(mode)
    image = Image.open(pil)
    assert image.pil.mode == "RGB"
    assert np.asarray(image.pil).min() >= 254, "white stays white"


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(4, 0)
    for format in ("PNG", "TIFF"):
        image = Image.open(file_of(PILImage.fromarray(ramp), format))
        assert np.abs(np.asarray(image.pil)[0, :, 0] - np.linspace(0, 255, 64)).max() <= 1


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_sixteen_bit_colour_tiff_keeps_its_bits(planar: str) -> None:
    array = np.random.default_rng(0).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    buffer = io.BytesIO()
    stored = array if planar == "contig" else array.transpose(2, 0, 1)
    tifffile.imwrite(buffer, stored, photometric="rgb", planarconfig=planar, metadata=None)
    buffer.seek(0)
    assert np.array_equal(Image.open(buffer).deep, array)


def test_sixteen_bit_tiff_is_turned_as_its_tag_says() -> None:
    array = np.random.default_rng(0).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    for orientation in range(1, 9):
        eight, deep = io.BytesIO(), io.BytesIO()
        tags = [(274, 3, 1, orientation, True)]
        tifffile.imwrite(eight, (array >> 8).astype(np.uint8), photometric="rgb", metadata=None, extratags=tags)
        tifffile.imwrite(deep, array, photometric="rgb", metadata=None, extratags=tags)
        eight.seek(0)
        deep.seek(0)
        one, other = Image.open(eight), Image.open(deep)
        assert one.size == other.size
        assert np.array_equal(np.asarray(one.pil), other.deep >> 8), orientation


def test_exif_rotation_is_applied() -> None:
    exif = PILImage.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image = Image.open(file_of(PILImage.fromarray(smooth(40, 30)), "JPEG", exif=exif))
    assert image.size == (30, 40)


def test_transparency_is_laid_on_the_stated_colour_and_kept_beside() -> None:
    clear = PILImage.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert Image.open(file_of(clear)).pil.getpixel((0, 0)) == (255, 255, 255)
    red = Image.open(file_of(clear), background="#ff0000")
    assert red.pil.getpixel((0, 0)) == (255, 0, 0)
    assert red.alpha is not None
    assert red.alpha.getextrema() == (0, 0)
    kept = Image.open(file_of(clear), background=None)
    assert kept.pil.mode == "RGBA"
    assert kept.tensor().shape == (3, 4, 4)
    for format in ("PNG", "WEBP", "TIFF"):
        assert Image.open(io.BytesIO(kept.encoded(format)), background=None).pil.mode == "RGBA"


def test_an_icc_profile_is_converted_to_srgb() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    grey = file_of(PILImage.new("L", (4, 4), 128), "TIFF", icc_profile=b"not a profile")
    assert Image.open(grey).pil.getpixel((0, 0)) == (128, 128, 128), "a broken profile is ignored"
    wrong = file_of(PILImage.fromarray(smooth()), icc_profile=lab.tobytes())
    assert Image.open(wrong).size == (40, 30), "a profile that does not fit is ignored"
    srgb = file_of(
        PILImage.fromarray(smooth()), icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    assert np.array_equal(np.asarray(Image.open(srgb).pil), smooth()), "sRGB is left as it is"


def test_the_first_picture_of_an_animation_is_taken() -> None:
    frames = [PILImage.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    for format in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        animated = file_of(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert Image.open(animated).pil.getpixel((2, 2)) == (255, 0, 0)


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(Image.open(smooth()).encoded("PNG"))
    assert Image.open(path).size == (40, 30)


def damaged() -> dict[str, bytes]:
    whole = {format: Image.open(smooth()).encoded(format) for format in FORMATS}
    cut = {f"cut {format}": data[: len(data) * 2 // 3] for format, data in whole.items() if format != "JPEG"}
    heads = {f"head of {format}": data[:20] for format, data in whole.items()}
    gif, eps, float_tiff = io.BytesIO(), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", io.BytesIO()
    PILImage.new("L", (3, 3)).save(gif, "GIF")
    PILImage.new("F", (3, 3)).save(float_tiff, "TIFF")
    others = {"empty": b"", "text": b"hello", "gif": gif.getvalue(), "eps": eps, "float": float_tiff.getvalue()}
    return cut | heads | others | {"0 x 0": png(0, 0), "no pixels": png(4, 4), "169 MP": png(13000, 13000)}


@pytest.mark.parametrize("what", sorted(damaged()))
def test_a_bad_picture_is_one_line(what: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(damaged()[what])
    with pytest.raises(MediaError, match=r"picture\.png|picture") as error:
        Image.open(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, word in ((tmp_path, "folder"), (tmp_path / "fifo", "ordinary"), (tmp_path / "no.png", "exist")):
        with pytest.raises(MediaError, match=word):
            Image.open(path)
    with pytest.raises(MediaError, match="int"):
        Image.open(3)


def test_a_huge_picture_is_refused_from_its_header(tmp_path: Path) -> None:
    """In a process of its own, so that the peak of its memory can be read."""
    path = tmp_path / "bomb.png"
    path.write_bytes(png(13000, 13000, bytes(13000 * 39001)))
    assert path.stat().st_size < 1_000_000
    script = """
import resource, sys
from genkit.errors import MediaError
from genkit.media.image import Image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    Image.open(sys.argv[1])
except MediaError as error:
    print(error)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert grown < 30_000, f"{grown} kB"
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert "169 megapixels" in done.stdout
    assert not done.stderr


def test_the_limit_can_be_raised_and_pillows_own_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 100)  # Pillow would raise for any picture of 30 x 30
    assert Image.open(io.BytesIO(Image.open(smooth(40, 30)).encoded("PNG"))).size == (40, 30)
    assert PILImage.MAX_IMAGE_PIXELS == 100
    monkeypatch.setenv("GENKIT_MAX_PIXELS", "1000")
    with pytest.raises(MediaError, match="limit"):
        Image.open(io.BytesIO(Image.open(smooth(40, 20)).encoded("PNG")[:60]), max_pixels=700)
    with pytest.raises(MediaError, match="limit"):
        Image.open(PILImage.new("RGB", (40, 30)))
    monkeypatch.setenv("GENKIT_MAX_PIXELS", "many")
    with pytest.raises(InputError, match="GENKIT_MAX_PIXELS"):
        Image.open(PILImage.new("RGB", (4, 3)))


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 2, 5)), np.zeros((0, 2, 3)), np.full((2, 2, 3), np.nan), np.zeros((2, 2, 3), np.int64), np.zeros(4)],
)
def test_an_array_that_is_no_picture_is_refused(array: np.ndarray) -> None:
    with pytest.raises(MediaError):
        Image.open(array)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.png", {"quality": 3}), ("a.jpg", {"quality": 0}), ("a.jpg", {"quality": "high"}), ("a.tif", {"bits": 12})],
)
def test_a_wrong_option_writes_nothing(name: str, options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(MediaError):
        Image.open(smooth()).save(tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_a_notebook_shows_a_small_png() -> None:
    bundle = Image.open(PILImage.new("RGB", (3000, 10)))._repr_mimebundle_()
    assert Image.open(io.BytesIO(bundle["image/png"])).size[0] == 1024
