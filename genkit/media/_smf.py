"""Standard MIDI Files as bytes: checked before a parser sees them, and given a text at their start.

The format is that of the MIDI 1.0 specification, "Standard MIDI Files" (RP-001): an MThd chunk of format, number of
tracks and division, then MTrk chunks of events, each a delta time (a number of up to four 7-bit bytes) and a message.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import NamedTuple

from genkit.errors import MediaError

__all__ = ["Facts", "first_text", "survey", "with_text"]

MAX_BYTES = 32 << 20
MAX_TRACKS = 4096
MAX_SECONDS = 4 * 3600.0  # longer than any work of the repertoire in one piece

_DATA_BYTES = {0x8: 2, 0x9: 2, 0xA: 2, 0xB: 2, 0xC: 1, 0xD: 1, 0xE: 2}
_TEXT, _END, _TEMPO = 0x01, 0x2F, 0x51


class Facts(NamedTuple):
    """What a file holds: notes, and its length."""

    notes: int
    seconds: float


def survey(data: bytes, name: str) -> Facts:
    """Walks every event. Raises MediaError (`name` opens it) for anything that a parser could trip or choke on."""
    if data[:4] != b"MThd":
        raise MediaError(f"{name} is not a MIDI file; give one that ends in .mid")
    if len(data) > MAX_BYTES:
        raise MediaError(f"{name} has {len(data)} bytes; at most {MAX_BYTES} are taken")
    if len(data) < 14:
        raise MediaError(f"{name}: the MIDI header is cut off")
    division = struct.unpack(">H", data[12:14])[0]
    if division == 0:
        raise MediaError(f"{name}: the division is 0 ticks per quarter note, so nothing has a length")
    if division & 0x8000:
        raise MediaError(f"{name} counts time in SMPTE frames; save it with ticks per quarter note")
    notes, end, tempos, tracks = 0, 0, [(0, 500_000)], 0
    for track in _tracks(data, name):
        tracks += 1
        if tracks > MAX_TRACKS:
            raise MediaError(f"{name} has over {MAX_TRACKS} tracks")
        last = 0
        for tick, status, body in _events(track, f"{name}, track {tracks}"):
            last = tick
            if status >> 4 == 0x9 and body[1]:
                notes += 1
            elif status == 0xFF and body[0] == _TEMPO and len(body) == 4:
                tempos.append((tick, int.from_bytes(body[1:], "big")))
        end = max(end, last)
    if not tracks:
        raise MediaError(f"{name}: the MIDI file has no track; it is damaged or cut off")
    seconds = _seconds(end, tempos, division)
    if seconds > MAX_SECONDS:
        raise MediaError(f"{name} lasts {seconds:,.0f} s; at most {MAX_SECONDS:,.0f} are taken, cut it")
    return Facts(notes, seconds)


def _seconds(end: int, tempos: list[tuple[int, int]], division: int) -> float:
    """The time of tick `end`. tempos: (tick, microseconds per quarter note)."""
    total = 0
    ordered = [*sorted(tempos, key=lambda tempo: tempo[0]), (end, 0)]
    for (start, tempo), (stop, _) in itertools.pairwise(ordered):
        total += (stop - start) * tempo
    return total / division / 1e6


def _tracks(data: bytes, name: str) -> Iterator[memoryview]:
    place = 8 + struct.unpack(">I", data[4:8])[0]
    while place + 8 <= len(data):
        chunk, size = struct.unpack(">4sI", data[place : place + 8])
        place += 8
        if chunk == b"MTrk":
            if place + size > len(data):
                raise MediaError(
                    f"{name}: a track declares {size} bytes but {len(data) - place} are left; it is cut off"
                )
            yield memoryview(data)[place : place + size]
        place += size


def _events(track: memoryview, name: str) -> Iterator[tuple[int, int, bytes]]:
    """(tick, status byte, data bytes); of a meta event its type, then its data."""
    place, tick, status = 0, 0, 0
    try:
        while place < len(track):
            delta, place = _number(track, place, name)
            tick += delta
            byte = track[place]
            running = status
            if byte >= 0x80:
                status, place = byte, place + 1
            elif not status:
                raise MediaError(f"{name}: a data byte stands where a message must begin (broken running status)")
            if status < 0xF0:
                size = _DATA_BYTES[status >> 4]
                body = bytes(track[place : place + size])
                place += size
                if len(body) < size:
                    raise IndexError
                if max(body) > 127:
                    raise MediaError(f"{name}: the data byte {max(body)} is over 127; the file is damaged")
                yield tick, status, body
                continue
            if status not in (0xF0, 0xF7, 0xFF):
                raise MediaError(f"{name}: the message 0x{status:02X} has no place in a file; it is damaged")
            meta = bytes(track[place : place + 1]) if status == 0xFF else b""
            size, place = _number(track, place + len(meta), name)
            if place + size > len(track):
                left = len(track) - place
                raise MediaError(f"{name}: a text or other message declares {size} bytes but {left} are left")
            yield tick, status, meta + bytes(track[place : place + size])
            place += size
            # By the book a meta event ends running status too; files that go on are common, and readers take them.
            status = running if meta else 0
            if meta and meta[0] == _END:
                return
    except IndexError:
        raise MediaError(f"{name}: ends in the middle of a message; it is damaged or cut off") from None


def _number(track: memoryview, place: int, name: str) -> tuple[int, int]:
    """A variable-length quantity and the place behind it."""
    value = 0
    for length in range(4):
        byte = track[place + length]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + length + 1
    raise MediaError(f"{name}: a number is longer than four bytes; the file is damaged")


def with_text(data: bytes, texts: list[bytes]) -> bytes:
    """The file with text events (meta type 1) at the start of its first track. `data` has passed `survey`."""
    start = data.index(b"MTrk")
    (size,) = struct.unpack(">I", data[start + 4 : start + 8])
    events = b"".join(b"\x00\xff\x01" + _quantity(len(text)) + text for text in texts)
    return data[: start + 4] + struct.pack(">I", size + len(events)) + events + data[start + 8 :]


def _quantity(value: int) -> bytes:
    parts = [value & 0x7F]
    while value := value >> 7:
        parts.append(value & 0x7F | 0x80)
    return bytes(reversed(parts))


def first_text(data: bytes, prefix: bytes) -> bytes | None:
    """The first text event at tick 0 of the first track that begins with `prefix`, without it."""
    for track in _tracks(data, "the MIDI file"):
        for tick, status, body in _events(track, "the MIDI file"):
            if tick:
                return None
            if status == 0xFF and body[0] == _TEXT and body[1:].startswith(prefix):
                return body[1 + len(prefix) :]
        return None
    return None
