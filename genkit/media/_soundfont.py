"""Soundfonts made plain for symusic's synthesiser, which plays most General MIDI instruments out of tune.

It takes a sample's pitch from the sample's own header and does not heed what an instrument says of it: the generators
`overridingRootKey`, `coarseTune` and `fineTune` (symusic issue 55). So each use of a sample gets a header of its own
with that pitch in it. Sounds and everything else stay as they are.

The layout is that of the SoundFont 2.04 specification, section 7: in the `pdta` list, `inst` names ranges of zones in
`ibag`, a zone a range of generators in `igen`, and a zone's last generator, `sampleID`, a header in `shdr`.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

from genkit.errors import MediaError

__all__ = ["in_tune"]

_COARSE_TUNE, _FINE_TUNE, _SAMPLE_ID, _ROOT_KEY = 51, 52, 53, 58
_TUNING = {_COARSE_TUNE, _FINE_TUNE, _ROOT_KEY}
_HEADER = struct.Struct("<20sIIIIIBbHH")
_MOST_SAMPLES = 65_534  # a sampleID has 16 bits


def in_tune(data: bytes) -> bytes:
    """The soundfont (RIFF, .sf2 or .sf3) with every pitch in the sample headers. Raises MediaError if it is damaged."""
    try:
        before, lists = data[:12], []
        for name, start, end in _chunks(data, 12, len(data)):
            body = data[start:end]
            lists.append((name, b"pdta" + _plain(body) if name == b"LIST" and body[:4] == b"pdta" else body))
        body = before[8:] + b"".join(_chunk(name, body) for name, body in lists)
        return b"RIFF" + struct.pack("<I", len(body)) + body
    except (struct.error, IndexError, KeyError) as error:
        raise MediaError("the soundfont is damaged or cut off; give another .sf2 file") from error


def _chunks(data: bytes, place: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    while place + 8 <= end:
        name, size = struct.unpack_from("<4sI", data, place)
        if place + 8 + size > end:
            raise IndexError("a chunk is longer than its file")
        yield name, place + 8, place + 8 + size
        place += 8 + size + size % 2


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _plain(pdta: bytes) -> bytes:
    """The sub-chunks of a `pdta` list, with `igen` and `shdr` rewritten."""
    chunks = {name: pdta[start:end] for name, start, end in _chunks(pdta, 4, len(pdta))}
    headers = list(_HEADER.iter_unpack(chunks[b"shdr"]))
    last = headers.pop()  # the terminal record
    generators = [list(pair) for pair in struct.iter_unpack("<HH", chunks[b"igen"])]
    bags = [first for first, _ in struct.iter_unpack("<HH", chunks[b"ibag"])]
    instruments = [first for _, first in struct.iter_unpack("<20sH", chunks[b"inst"])]
    made: dict[tuple[int, int, int], int] = {}
    for first, beyond in itertools.pairwise(instruments):
        common: dict[int, int] = {}
        for bag in range(first, beyond):
            zone = generators[bags[bag] : bags[bag + 1]]
            stated = common | {kind: amount for kind, amount in zone if kind in _TUNING}
            if not zone or zone[-1][0] != _SAMPLE_ID:
                common = stated if bag == first else common  # only the first zone may speak for all
            elif stated:
                _retune(zone, stated, headers, made)
    chunks[b"igen"] = b"".join(struct.pack("<HH", *pair) for pair in generators)
    chunks[b"shdr"] = b"".join(_HEADER.pack(*header) for header in (*headers, last))
    return b"".join(_chunk(name, body) for name, body in chunks.items())


def _retune(
    zone: list[list[int]], stated: dict[int, int], headers: list[tuple], made: dict[tuple[int, int, int], int]
) -> None:
    """Gives the zone a header with its pitch. A note sounds the higher the lower its sample's root is."""
    sample = zone[-1][1]
    name, *places, key, correction, link, kind = headers[sample]
    override = stated.get(_ROOT_KEY, 0xFFFF)
    cents = 100 * (override if override <= 127 else key) - correction
    cents -= 100 * _signed(stated.get(_COARSE_TUNE, 0)) + _signed(stated.get(_FINE_TUNE, 0))
    root = min(max(round(cents / 100), 0), 127)
    tuned = (sample, root, min(max(100 * root - cents, -128), 127))
    if tuned not in made:
        if len(headers) >= _MOST_SAMPLES:
            return
        made[tuned] = len(headers)
        headers.append((name, *places, tuned[1], tuned[2], link, kind))
    zone[-1][1] = made[tuned]
    for generator in zone:
        if generator[0] in (_COARSE_TUNE, _FINE_TUNE):
            generator[1] = 0
        elif generator[0] == _ROOT_KEY:
            generator[1] = root


def _signed(amount: int) -> int:
    return amount - 65536 if amount > 32767 else amount
