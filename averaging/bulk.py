"""Bulk frames: a fixed 39-byte header and the raw bytes of one chunk. No msgpack, no copy.

    0      tag: 0xf0 a masked chunk, 0xf1 a summed chunk, 0xf2 a cohort's sum for another cohort, 0xf3 a total,
           0xf4 a masked chunk shown to an auditor
    1..32  sid; of 0xf2 and 0xf3 the round's
    33..34 big-endian index of the member that the chunk belongs to (the uploader, or the author of the sum); of 0xf2
           and 0xf3 the index of the cohort whose member made it
    35..38 chunk index, big-endian
    39..   little-endian ring words; of 0xf2 followed by the Merkle proof under the cohort's root (32 bytes a hash); of
           0xf3 wide words (`averaging.wide`), and before them a big-endian length of two bytes and the signed
           TotalHash of that length

They carry no signature of their own: a masked chunk is bound by its uploader's signed Manifest, a sum by its author's
SumHashes, a cohort's sum by the root that its members signed, a total by its TotalHash.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from dht.errors import ProtocolError, Refusal
from dht.transport import Part

_HEADER = struct.Struct(">B32sHI")
MAX_CHUNK_BYTES = 512 * 1024
MAX_WIDE_BYTES = 644 * 1024
"""Payload of a part or a total: words up to a quarter longer, and a proof or a signature."""


class BulkKind(IntEnum):
    """First byte of a bulk frame."""

    MASKED = 0xF0
    SUM = 0xF1
    PART = 0xF2
    TOTAL = 0xF3
    AUDIT = 0xF4


_KINDS = {int(kind): kind for kind in BulkKind}


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk in flight."""

    kind: BulkKind
    sid: bytes
    member: int
    index: int
    data: Part

    def parts(self) -> tuple[Part, ...]:
        """Header and payload, to be written one after the other."""
        return (_HEADER.pack(self.kind, self.sid, self.member, self.index), self.data)


def is_bulk(frame: memoryview | bytes) -> bool:
    """Whether a frame is a bulk frame, by its tag."""
    return len(frame) > 0 and frame[0] >= 0xF0


def parse(frame: memoryview) -> Chunk:
    """The chunk in a frame; `data` is a view into it. Raises ProtocolError."""
    if len(frame) <= _HEADER.size:
        raise ProtocolError(Refusal.TRUNCATED, f"a bulk frame of {len(frame)} bytes")
    wide = len(frame) > 0 and frame[0] in (BulkKind.PART, BulkKind.TOTAL)
    if len(frame) > _HEADER.size + (MAX_WIDE_BYTES if wide else MAX_CHUNK_BYTES):
        raise ProtocolError(Refusal.OVERSIZED, f"a bulk frame of {len(frame)} bytes")
    tag, sid, member, index = _HEADER.unpack_from(frame)
    if tag not in _KINDS:
        raise ProtocolError(Refusal.UNKNOWN_TAG, f"bulk tag {tag:#04x}")
    return Chunk(_KINDS[tag], sid, member, index, frame[_HEADER.size :])
