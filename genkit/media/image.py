"""Pictures: PNG, JPEG, WebP, TIFF (8 and 16 bits) and BMP in, one plain sRGB picture out.

Choices made here:
- What is shown is what is meant: EXIF rotation is applied, an ICC profile is converted to sRGB, transparency is laid on
  a stated colour (white), CMYK, palette, grey and 16-bit pictures become RGB. Of an animation or a file of several
  pages the first one is taken.
- The format is read from the content and opened by that format's reader alone. The size is read from the header and
  refused over MAX_PIXELS (GENKIT_MAX_PIXELS raises it) before memory is taken; Pillow's own limit, a global of the
  whole process, is neither used nor changed.
- Pixels have 8 bits. A picture made from a tensor also keeps its floats, and one read from a 16-bit TIFF its 16 bits,
  so that nothing is lost on the way to a 16-bit TIFF. A 16-bit colour PNG is read at 8 bits (its high byte).
- A broken ICC profile or EXIF block is ignored: the picture is there all the same.

H, W: height and width in pixels.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np
from PIL import Image as PILImage
from PIL import ImageColor, ImageOps

from genkit.errors import MediaError
from genkit.media import _pictures, files

if TYPE_CHECKING:
    from torch import Tensor

    from genkit.media.provenance import Provenance

__all__ = ["MAX_PIXELS", "Image"]

MAX_PIXELS = _pictures.MAX_PIXELS


class Image:
    """A picture. `Image.open` takes anything; `.pil` is the Pillow picture, `.tensor()` the tensor, `.save()` writes.

    `.alpha` is the transparency that the source had (8-bit "L" picture, 255 opaque), or None.
    """

    __genkit_media__: ClassVar[str] = "image"

    def __init__(
        self,
        pil: PILImage.Image,
        *,
        alpha: PILImage.Image | None = None,
        deep: np.ndarray | None = None,
    ) -> None:
        """pil: brought to RGB, or RGBA if it is transparent; deep: the same pixels [H, W, 3] as uint16 or floats."""
        self.pil = _pictures.plain(pil)
        self.alpha = alpha if alpha is not None else (self.pil.getchannel("A") if self.pil.mode == "RGBA" else None)
        self.deep = deep

    @classmethod
    def open(cls, source: Any, *, background: str | None = "white", max_pixels: int | None = None) -> Image:
        """A picture from a path, an Image, a PIL picture, a file object, or an array ([H, W], [H, W, 3] or [H, W, 4];
        uint8, uint16, or floats in 0..1).

        background: the colour under transparent parts (a name or "#rrggbb"; None keeps the picture RGBA);
        max_pixels: the largest picture taken, in pixels (default: GENKIT_MAX_PIXELS, else MAX_PIXELS).

        Raises MediaError: not there, not a picture, damaged, or too large.
        """
        limit = _pictures.limit(max_pixels)
        if isinstance(source, Image):
            image = source
        elif isinstance(source, np.ndarray):
            image = _from_array(source)
        elif isinstance(source, PILImage.Image):
            _pictures.check_size(*source.size, limit=limit, name="the picture")
            image = cls(_pictures.upright_srgb(source))
        elif isinstance(source, str | os.PathLike):
            with files.open_regular(source) as file:
                image = cls._read(file, str(source), limit)
        elif hasattr(source, "read"):
            image = cls._read(source, "the picture", limit)
        else:
            raise MediaError(f"a {type(source).__name__} is not a picture; give a path, a PIL picture or an array")
        return image if background is None else image.over(background)

    @classmethod
    def _read(cls, file: BinaryIO, name: str, limit: int) -> Image:
        pil, deep = _pictures.read(file, repr(name), limit)
        return cls(pil, deep=deep)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> Image:
        """tensor: float [3, H, W] (or [1, H, W], grey) in 0..1; what lies outside is clipped. NaN is refused."""
        array = tensor.detach().float().cpu().numpy()
        if array.ndim != 3 or array.shape[0] not in (1, 3):
            raise MediaError(f"a picture needs a tensor [3, H, W], not {list(array.shape)}")
        return _from_array(np.repeat(array, 3 // array.shape[0], axis=0).transpose(1, 2, 0))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pil.size

    def over(self, background: str) -> Image:
        """Without transparency: laid on a colour. `.alpha` still tells what was transparent."""
        if self.pil.mode != "RGBA":
            return self
        try:
            colour = ImageColor.getrgb(background)[:3]
        except ValueError:
            raise MediaError(f"{background[:40]!r} is not a colour; give a name or '#rrggbb'") from None
        ground = PILImage.new("RGBA", self.size, (*colour, 255))
        return Image(PILImage.alpha_composite(ground, self.pil).convert("RGB"), alpha=self.alpha)

    def tensor(self) -> Tensor:
        """float32 [3, H, W] in 0..1, sRGB; transparency laid on white. A tensor of its own, free to change."""
        import torch

        if self.deep is not None:
            scale = 65535.0 if self.deep.dtype == np.uint16 else 1.0
            array = self.deep.astype(np.float32) / np.float32(scale)
        else:
            array = np.asarray(self.over("white").pil, np.float32) / np.float32(255)
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))

    def digest(self) -> str:
        """sha256 (hex) of the decoded picture: mode, size and pixels; of 16 bits where a 16-bit file was read.

        A file's own encoding does not enter: a PNG and a lossless WebP of one picture have one digest.
        """
        deep = self.deep is not None and self.deep.dtype == np.uint16
        mode = "RGB;16" if deep else self.pil.mode
        pixels = self.deep.astype("<u2").tobytes() if deep and self.deep is not None else self.pil.tobytes()
        header = f"genkit image {mode} {self.size[0]}x{self.size[1]}\n".encode()
        return hashlib.sha256(header + pixels).hexdigest()

    def encoded(self, format: str, **options: Any) -> bytes:
        """The bytes of a file, without provenance; the same picture gives the same bytes.

        format: "PNG", "JPEG", "WEBP", "TIFF" or "BMP"; options: `quality` 1..100 (JPEG 95, WebP 90), `lossless` (WebP),
        `bits` 8 or 16 (TIFF; default 16 for a picture read from 16 bits, else 8). JPEG and BMP hold no transparency: it
        is laid on white. Raises MediaError for an option that the format has not.
        """
        return _pictures.encode(self, format, options)

    def save(self, path: str | Path, provenance: Provenance | None = None, **options: Any) -> Path:
        """Writes the file atomically, with its provenance in it. The suffix is the format; options as in `encoded`.

        Returns the path. Raises MediaError (suffix, place, option), DiskFull.
        """
        from genkit.media import saving

        return saving.save(self, path, provenance, options)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The picture itself in a notebook, at most 1024 px across."""
        small = ImageOps.contain(self.pil, (1024, 1024)) if max(self.size) > 1024 else self.pil
        buffer = io.BytesIO()
        small.save(buffer, "PNG")
        return {"image/png": buffer.getvalue(), "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"<genkit.Image {self.size[0]}x{self.size[1]} {self.pil.mode}>"


def _from_array(array: np.ndarray) -> Image:
    """[H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; uint8, uint16, bool, or floats in 0..1."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise MediaError(f"a picture needs an array [H, W, 3], not {list(array.shape)}")
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    deep = None
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise MediaError("the picture holds NaN or infinity; its values must lie in 0..1")
        deep = np.clip(array, 0, 1).astype(np.float32)
        array = np.rint(deep * np.float32(255)).astype(np.uint8)
    elif array.dtype == np.uint16:
        deep = array.copy()
        array = _pictures.to_8_bits(array)
    elif array.dtype != np.uint8:
        raise MediaError(f"a picture needs uint8, uint16 or floats in 0..1, not {array.dtype}")
    # The deep copy has no place for transparency: such a picture goes on at 8 bits.
    opaque = array.shape[2] == 3
    return Image(PILImage.fromarray(np.ascontiguousarray(array)), deep=deep if opaque else None)
