"""Where each format keeps a text of ours: placing the record into a file's bytes, and finding it again.

    PNG        iTXt chunks `parameters` and `genkit`, before the pixels
    JPEG       APP1: XMP with the record, EXIF UserComment with the parameters
    WebP       chunks "XMP " and "EXIF", the same
    TIFF       tag 700 (XMP) with the record, ImageDescription with the parameters
    FLAC, OGG  Vorbis comments GENKIT and COMMENT
    MP3        ID3 frames TXXX:genkit and COMM
    WAV        an ID3 chunk as in MP3, and LIST/INFO (ISFT, ICMT) for tools that read only that
    MIDI       text events at the start of the first track, `genkit:` and the record, then the parameters
    MusicXML   a miscellaneous-field of the identification, with the record; packed (.mxl) or not
    BMP        nothing

Texts go into the container around pixels that are already compressed, so that a picture is compressed once. Finding
reads only what stands around the pixels or samples, and takes any bytes without a traceback.
"""

from __future__ import annotations

import html
import io
import re
import struct
import zlib
from typing import Any, BinaryIO

import mutagen.flac
import mutagen.id3
import mutagen.mp3
import mutagen.oggopus
import mutagen.oggvorbis
import mutagen.wave
from PIL import Image as PILImage

from genkit.errors import MediaError
from genkit.media import _notation, _pictures, _smf

__all__ = ["find_parameters", "find_record", "place", "tag"]

KEY = "genkit"
MIDI_PREFIX = b"genkit:"
_PNG_TEXT = 1 << 20  # bytes of one text that Pillow reads
_SEGMENT = 65_533  # bytes of data in one JPEG segment
_XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:genkit="urn:genkit"><genkit:provenance>{}</genkit:provenance>'
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
)
_IN_XMP = re.compile(rb"<genkit:provenance>([^<]*)</genkit:provenance>")
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_DESCRIPTION = 270


def place(value: Any, data: bytes, format: str, record: str, parameters: str, options: dict[str, Any]) -> bytes | None:
    """`data` (an encoded file) with both texts in it; None if the format has no place for them.

    value, options: what `data` was encoded from; TIFF is written anew, since its tags stand among its offsets.
    """
    if format == "PNG":
        return _into_png(data, {"parameters": parameters, KEY: record})
    if format == "JPEG":
        return _into_jpeg(data, _exif(parameters), _xmp(record))
    if format == "WEBP":
        return _into_webp(data, _exif(parameters), _xmp(record))
    if format == "TIFF":
        tags = {_DESCRIPTION: parameters.encode() + b"\0", _pictures.XMP_TAG: _xmp(record)}
        return _pictures.encode(value, format, options, {"tags": tags})
    if format in ("FLAC", "OGG", "MP3", "WAV"):
        buffer = io.BytesIO(data)
        return buffer.getvalue() if tag(buffer, format, record, parameters) else None
    if format == "MIDI":
        return _smf.with_text(data, [MIDI_PREFIX + record.encode(), parameters.encode()])
    if format in ("MUSICXML", "MXL"):
        return _notation.place_field(data, format, record)
    return None


def _xmp(record: str) -> bytes:
    return _XMP.format(html.escape(record, quote=False)).encode()


def _exif(parameters: str) -> bytes:
    """An EXIF block with a UserComment in Unicode, as A1111 writes it into JPEG and WebP."""
    exif = PILImage.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be")
    return exif.tobytes()


def _into_png(data: bytes, texts: dict[str, str]) -> bytes | None:
    """After IHDR, which is the 25 bytes behind the signature (PNG 3rd edition, section 11.3.3.4)."""
    chunks = b""
    for keyword, text in texts.items():
        if len(text.encode()) >= _PNG_TEXT:
            return None
        body = b"iTXt" + keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode()
        chunks += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + chunks + data[33:]


def _into_jpeg(data: bytes, exif: bytes, xmp: bytes) -> bytes | None:
    """After the start and the JFIF segment that Pillow writes."""
    segments = b""
    for body in (exif, _XMP_HEADER + xmp):
        if len(body) > _SEGMENT:
            return None
        segments += b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    start = 2 + (2 + struct.unpack(">H", data[4:6])[0] if data[2:4] == b"\xff\xe0" else 0)
    return data[:start] + segments + data[start:]


def _into_webp(data: bytes, exif: bytes, xmp: bytes) -> bytes:
    """As an extended file: VP8X, the picture, EXIF, XMP (RFC 9649, section 2.7)."""
    width, height = _pictures.webp_size(data[:32])
    if data[12:16] == b"VP8X":
        flags, picture = data[20], data[30:]
    else:
        alpha = data[12:16] == b"VP8L" and int.from_bytes(data[21:25], "little") >> 28 & 1
        flags, picture = (0x10 if alpha else 0), data[12:]
    flags |= 0x08 | 0x04  # EXIF, XMP
    canvas = struct.pack("<I", flags) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    exif = exif.removeprefix(b"Exif\0\0")
    body = b"WEBP" + _chunk(b"VP8X", canvas) + picture + _chunk(b"EXIF", exif) + _chunk(b"XMP ", xmp)
    return _chunk(b"RIFF", body)


def _chunk(name: bytes, body: bytes) -> bytes:
    """A RIFF chunk: name, length, body, padded to an even length."""
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def tag(file: BinaryIO, format: str, record: str, parameters: str) -> bool:
    """Puts both texts into a sound file, open for reading and writing, in memory that does not grow with it; False,
    and nothing done, if it is a WAV without a place for them: beyond 4 GB, where it is an RF64."""
    if format == "WAV":
        texts = _chunk(b"LIST", b"INFO" + _chunk(b"ISFT", b"genkit\0") + _chunk(b"ICMT", parameters.encode() + b"\0"))
        end = file.seek(0, io.SEEK_END)
        file.seek(0)
        if file.read(4) != b"RIFF" or end + 2 * (len(texts) + len(record.encode())) >= _LONGEST_RIFF:
            return False
        file.seek(end)
        file.write(b"\0" * (end % 2) + texts)
        file.seek(4)
        file.write(struct.pack("<I", end + end % 2 + len(texts) - 8))
    file.seek(0)
    tagged: Any = _TAGGED[format](file)
    if tagged.tags is None:
        tagged.add_tags()
    if format in ("FLAC", "OGG"):
        tagged.tags[KEY.upper()], tagged.tags["COMMENT"] = record, parameters
    else:
        tagged.tags.add(mutagen.id3.TXXX(encoding=3, desc=KEY, text=[record]))
        tagged.tags.add(mutagen.id3.COMM(encoding=3, lang="eng", desc="", text=[parameters]))
    file.seek(0)
    tagged.save(file)
    return True


_TAGGED: dict[str, Any] = {
    "FLAC": mutagen.flac.FLAC,
    "OGG": mutagen.oggvorbis.OggVorbis,
    "MP3": mutagen.mp3.MP3,
    "WAV": mutagen.wave.WAVE,
}
_LONGEST_RIFF = 2**32 - 1


def find_record(file: BinaryIO, format: str, name: str) -> str | bytes | None:
    """The record's text in an open file. Raises MediaError for a file too damaged to look into."""
    return _guarded(file, format, name, _record)


def find_parameters(file: BinaryIO, format: str, name: str) -> str | None:
    """The A1111 text in an open picture, or our own of the same form. Raises MediaError as `find_record` does."""
    found = _guarded(file, format, name, _parameters)
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else found


def _guarded(file: BinaryIO, format: str, name: str, find: Any) -> Any:
    try:
        return find(file, format, name)
    except MediaError:
        raise
    except Exception as error:  # readers of tags raise anything at all on damaged bytes
        raise MediaError(f"{name!r}: the {format} file is damaged or cut off ({str(error)[:80]})") from error


def _record(file: BinaryIO, format: str, name: str) -> str | bytes | None:
    if format in _pictures.FORMATS:
        info = _pictures.info(file, format, name)
        if format == "PNG":
            return _text(info.get(KEY))
        found = _IN_XMP.search(info.get("xmp") or b"")
        return html.unescape(found[1].decode("utf-8", "replace")) if found else None
    if format == "MIDI":
        return _smf.first_text(file.read(_smf.MAX_BYTES), MIDI_PREFIX)
    if format in ("MUSICXML", "MXL"):
        return _notation.find_field(file, name)
    tags = _tags(file, format)
    if format in ("FLAC", "OGG"):
        return tags[KEY][0] if tags and KEY in tags else None
    frame = tags.get(f"TXXX:{KEY}") if tags else None
    return str(frame.text[0]) if frame is not None and frame.text else None


def _parameters(file: BinaryIO, format: str, name: str) -> str | bytes | None:
    if format not in _pictures.FORMATS:
        return None
    info = _pictures.info(file, format, name)
    if format == "PNG":
        return _text(info.get("parameters"))
    if format == "TIFF":
        return info.get("description")
    exif = PILImage.Exif()
    exif.load(info.get("exif") or b"")
    comment = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    if not isinstance(comment, bytes) or not comment.startswith(b"UNICODE\0"):
        return None
    return comment[8:].decode("utf-16-be", "replace")


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str) else None


def _tags(file: BinaryIO, format: str) -> Any:
    if format == "FLAC":
        return mutagen.flac.FLAC(file).tags
    if format == "WAV":
        long = file.read(4) == b"RF64"  # it has no place for a record, see `tag`
        file.seek(0)
        return None if long else mutagen.wave.WAVE(file).tags
    if format == "MP3":
        return mutagen.mp3.MP3(file).tags
    try:
        return mutagen.oggvorbis.OggVorbis(file).tags
    except mutagen.oggvorbis.OggVorbisHeaderError:
        file.seek(0)
        return mutagen.oggopus.OggOpus(file).tags
