"""The codecs behind `Image`: from a file of any of five formats to plain pixels, and back.

A format's reader is called directly rather than through `PIL.Image.open`, which tries readers we do not want (EPS) and
compares the size with a limit that is a global of the process. Formats have traps of their own:

- 16-bit colour TIFF: Pillow cannot read it; tifffile does, uncompressed or deflated.
- 16-bit grey (PNG, TIFF): Pillow's `convert` clips at 255 instead of scaling; it is scaled here.
- WebP: the reader takes memory for the whole canvas when it opens, so its header is parsed here first.
"""

from __future__ import annotations

import io
import logging
import os
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    ImageCms,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL import Image as PILImage

from genkit.errors import InputError, MediaError
from genkit.media import files

if TYPE_CHECKING:
    from genkit.media.image import Image

__all__ = ["MAX_PIXELS", "check_size", "encode", "limit", "plain", "read", "to_8_bits", "upright_srgb"]

MAX_PIXELS = 100_000_000  # 10,000 x 10,000: 0.4 GB as a Pillow picture, 1.2 GB as a float tensor

_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
FORMATS = tuple(_READERS)
_OPTIONS = {"PNG": set(), "JPEG": {"quality"}, "WEBP": {"quality", "lossless"}, "TIFF": {"bits"}, "BMP": set()}
XMP_TAG = 700  # of type BYTE; other texts are ASCII
QUALITY = {"JPEG": 95, "WEBP": 90}  # no visible loss, at a third of the size of 100
_DEFLATE = 4  # three times as fast as the usual 6 on a photograph, and 1 to 3 % longer
_SUBSAMPLING = "4:4:4"  # thin coloured lines, common in made pictures, smear at JPEG's usual 4:2:0
_LONGEST = {"JPEG": 65500, "WEBP": 16383}  # px a side that the format holds
_SRGB = ImageCms.createProfile("sRGB")

# Without a handler of its own its complaints about a damaged file would reach stderr beside our one line.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def limit(max_pixels: int | None) -> int:
    """The largest picture taken, in pixels: the argument, GENKIT_MAX_PIXELS, or MAX_PIXELS."""
    if max_pixels is not None:
        return max_pixels
    text = os.environ.get("GENKIT_MAX_PIXELS") or str(MAX_PIXELS)
    if not text.isdecimal():
        raise InputError(f"GENKIT_MAX_PIXELS is {text[:40]!r}; give a number of pixels, such as {MAX_PIXELS}")
    return int(text)


def check_size(width: int, height: int, *, limit: int, name: str) -> None:
    """Raises MediaError for a picture without pixels or with more than `limit`."""
    if width < 1 or height < 1:
        raise MediaError(f"{name}: a picture of {width} x {height} px has no pixels")
    if width * height > limit:
        size = f"{width} x {height} px ({width * height / 1e6:.0f} megapixels)"
        raise MediaError(
            f"{name}: {size} is over the limit of {limit / 1e6:g}; make it smaller or set GENKIT_MAX_PIXELS"
        )


def read(file: BinaryIO, name: str, limit: int) -> tuple[PILImage.Image, np.ndarray | None]:
    """The picture upright in sRGB (RGB or RGBA), and [H, W, 3] uint16 if the file holds 16-bit colour.

    Raises MediaError; `name` opens its message.
    """
    start = file.read(32)
    found = files.sniff(start)
    if found is None or found[0] != "image":
        what = (
            f"is a file of kind {found[0]}" if found else "is empty" if not start else "is not a picture that is known"
        )
        raise MediaError(f"{name} {what}; give a PNG, JPEG, WebP, TIFF or BMP")
    try:
        if found[1] == "WEBP":
            check_size(*webp_size(start), limit=limit, name=name)
        file.seek(0)
        if found[1] == "TIFF" and (deep := _read_deep_tiff(file, name, limit)) is not None:
            return deep
        file.seek(0)
        with _READERS[found[1]](file) as pil:
            check_size(*pil.size, limit=limit, name=name)
            pil.load()
            return upright_srgb(pil), None
    except MediaError:
        raise
    except MemoryError:
        raise MediaError(f"{name}: not enough memory to read it; make it smaller") from None
    except Exception as error:  # decoders raise anything at all on damaged bytes
        reason = str(error).split("\n")[0][:120] or type(error).__name__
        raise MediaError(f"{name}: the {found[1]} picture is damaged or cut off ({reason})") from error


def info(file: BinaryIO, format: str, name: str) -> dict[str, Any]:
    """The texts around the pixels, which are not decoded: Pillow's `info`; of a TIFF "xmp" and "description"."""
    if format == "TIFF":
        import tifffile

        with tifffile.TiffFile(file) as tiff:
            tags = {tag.code: tag.value for tag in tiff.pages.first.tags if tag.code in (XMP_TAG, 270)}
        return {"xmp": tags.get(XMP_TAG), "description": tags.get(270)}
    if format == "WEBP":
        check_size(*webp_size(file.read(32)), limit=limit(None), name=repr(name))
        file.seek(0)
    with _READERS[format](file) as pil:
        return {str(key): value for key, value in pil.info.items()}


def webp_size(start: bytes) -> tuple[int, int]:
    """Width and height from the first 30 bytes (RFC 9649, sections 2.5 to 2.7)."""
    chunk, data = start[12:16], start[20:]
    if chunk == b"VP8X":  # 24-bit width-1 and height-1 of the canvas
        return int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1
    if chunk == b"VP8L":  # 14 bits each after the signature byte
        bits = int.from_bytes(data[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", data[6:10])
    return width & 0x3FFF, height & 0x3FFF


def upright_srgb(pil: PILImage.Image) -> PILImage.Image:
    """Turned as EXIF says, in sRGB, RGB or RGBA."""
    profile = pil.info.get("icc_profile")
    try:
        turned = ImageOps.exif_transpose(pil)
    except Exception:  # a broken EXIF block says nothing about which way is up
        turned = pil
    converted = _srgb(turned, profile) if profile else None
    return plain(turned) if converted is None else converted


def plain(pil: PILImage.Image) -> PILImage.Image:
    """RGB, or RGBA for a picture with transparency; without metadata, 16-bit grey scaled to 8 bits."""
    if pil.mode in ("I", "F"):  # no telling what white is in these: 1, 255, 65535 or 2^32
        raise MediaError("a picture of 32 bits a channel is not read; convert it to 16 or 8 bits")
    if pil.mode.startswith("I;16"):
        pil = PILImage.fromarray(to_8_bits(np.asarray(pil).astype(np.uint16)))
    mode = "RGBA" if pil.has_transparency_data else "RGB"
    result = pil.convert(mode) if pil.mode != mode else pil.copy()
    result.info = {}
    return result


def to_8_bits(array: np.ndarray) -> np.ndarray:
    """uint16 to uint8, rounded: 65535 becomes 255."""
    return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _srgb(pil: PILImage.Image, profile: bytes) -> PILImage.Image | None:
    """Converted by its ICC profile, or None where that is needless or the profile does not fit."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        alpha = pil.convert("RGBA").getchannel("A") if pil.has_transparency_data else None
        colour = pil if pil.mode in ("L", "CMYK") else plain(pil).convert("RGB")
        result = ImageCms.profileToProfile(colour, source, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, ValueError, OSError, TypeError):
        return None
    if result is None:
        return None
    if alpha is not None:
        result.putalpha(alpha)
    return plain(result)


def _read_deep_tiff(file: BinaryIO, name: str, limit: int) -> tuple[PILImage.Image, np.ndarray | None] | None:
    """A TIFF of 16-bit colour; None for every other TIFF, which Pillow reads."""
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages.first
        check_size(page.imagewidth, page.imagelength, limit=limit, name=name)
        if page.dtype != np.uint16 or page.samplesperpixel < 3 or page.photometric != tifffile.PHOTOMETRIC.RGB:
            return None
        try:
            array = page.asarray()
        except (ValueError, KeyError) as error:
            if "imagecodecs" not in str(error):
                raise
            how = str(tifffile.COMPRESSION(page.compression).name)
            raise MediaError(
                f"{name}: 16-bit TIFF compressed by {how} is not read; save it uncompressed or as ZIP"
            ) from None
        tags = {tag.code: tag.value for tag in page.tags}
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
            array = array.transpose(1, 2, 0)
    array = _turned(array, tags.get(ExifTags.Base.Orientation, 1))
    eight = upright_srgb(_with_profile(PILImage.fromarray(to_8_bits(array[:, :, :4])), tags.get(34675)))
    # Little CMS through Pillow has 8 bits: with another profile than sRGB the right colour goes before the depth.
    kept = array.shape[2] == 3 and np.array_equal(np.asarray(eight), to_8_bits(array))
    return eight, np.ascontiguousarray(array) if kept else None


def _with_profile(pil: PILImage.Image, profile: bytes | None) -> PILImage.Image:
    if profile:
        pil.info["icc_profile"] = profile
    return pil


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, C] upright, from the eight values of the TIFF tag Orientation (TIFF 6.0, section 8)."""
    if orientation in (5, 6, 7, 8):
        array = array.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def encode(image: Image, format: str, options: dict[str, Any], metadata: dict[str, Any] | None = None) -> bytes:
    """A file's bytes. metadata: arguments for Pillow's writer of the format, or {"tags": {code: bytes}} for TIFF."""
    unknown = set(options) - _OPTIONS[format]
    if unknown:
        known = ", ".join(sorted(_OPTIONS[format])) or "no options"
        raise MediaError(f"{format} has no option {sorted(unknown)[0]!r}; it takes {known}")
    buffer = io.BytesIO()
    if format == "TIFF":
        _encode_tiff(image, buffer, options.get("bits"), (metadata or {}).get("tags", {}))
        return buffer.getvalue()
    pil = image.over("white").pil if format in ("JPEG", "BMP") else image.pil
    longest = _LONGEST.get(format)
    if longest and max(pil.size) > longest:
        raise MediaError(f"{format} holds at most {longest} px a side, not {pil.size[0]} x {pil.size[1]}; use .png")
    pil.save(buffer, format, **_writer_arguments(format, options), **(metadata or {}))
    return buffer.getvalue()


def _writer_arguments(format: str, options: dict[str, Any]) -> dict[str, Any]:
    if format == "PNG":
        return {"compress_level": _DEFLATE}
    if format not in QUALITY:
        return {}
    quality = options.get("quality", QUALITY[format])
    if not isinstance(quality, int) or not 1 <= quality <= 100:
        raise MediaError(f"quality {quality!r} is not valid: give a whole number from 1 to 100")
    if format == "JPEG":
        return {"quality": quality, "subsampling": _SUBSAMPLING}
    # exact: the colour under full transparency is kept, so that a lossless picture comes back as it was
    return {"quality": quality, "lossless": bool(options.get("lossless", False)), "exact": True}


def _encode_tiff(image: Image, buffer: BinaryIO, bits: int | None, tags: dict[int, bytes]) -> None:
    """Deflated RGB or RGBA through tifffile, which writes both depths; without a date, so that bytes are repeatable."""
    import tifffile

    deep = image.deep
    if bits is None:
        bits = 16 if deep is not None and deep.dtype == np.uint16 else 8
    if bits == 8:
        array = np.asarray(image.pil)
    elif bits != 16:
        raise MediaError(f"bits {bits!r} is not valid: a TIFF holds 8 or 16")
    elif deep is None:
        array = np.asarray(image.over("white").pil).astype(np.uint16) * 257
    else:
        array = deep if deep.dtype == np.uint16 else np.rint(deep * np.float32(65535)).astype(np.uint16)
    alpha = ["unassalpha"] if array.shape[2] == 4 else None
    tifffile.imwrite(
        buffer,
        array,
        photometric="rgb",
        extrasamples=alpha,
        compression="zlib",
        compressionargs={"level": _DEFLATE},
        predictor=True,
        metadata=None,
        software=False,
        extratags=[(code, 1 if code == XMP_TAG else 2, len(data), data, True) for code, data in tags.items()],
    )
