"""Bulk frames: a golden header, and refusals by number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging.bulk import MAX_CHUNK_BYTES, MAX_WIDE_BYTES, BulkKind, Chunk, is_bulk, parse
from dht.errors import ProtocolError, Refusal

GOLDEN = bytes.fromhex("f0" + "ab" * 32 + "0005" + "00010203" + "c0ffee")


def frame(chunk: Chunk) -> bytes:
    return b"".join(bytes(part) for part in chunk.parts())


def test_the_header_is_what_the_documentation_says():
    assert frame(Chunk(BulkKind.MASKED, b"\xab" * 32, 5, 0x10203, b"\xc0\xff\xee")) == GOLDEN


@given(
    st.sampled_from(BulkKind),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=1, max_size=99),
)
def test_frames_round_trip(kind, sid, member, index, data):
    chunk = Chunk(kind, sid, member, index, data)
    parsed = parse(memoryview(frame(chunk)))
    assert (parsed.kind, parsed.sid, parsed.member, parsed.index, bytes(parsed.data)) == (
        kind,
        sid,
        member,
        index,
        data,
    )


def test_the_payload_is_a_view():
    raw = memoryview(bytearray(GOLDEN))
    parsed = parse(raw)
    raw[-1] = 0
    assert bytes(parsed.data) == b"\xc0\xff\x00"


@pytest.mark.parametrize(
    ("raw", "refusal"),
    [
        (GOLDEN[:39], Refusal.TRUNCATED),
        (GOLDEN[:3], Refusal.TRUNCATED),
        (b"", Refusal.TRUNCATED),
        (GOLDEN[:39] + bytes(MAX_CHUNK_BYTES + 1), Refusal.OVERSIZED),
        (b"\xf3" + GOLDEN[1:39] + bytes(MAX_WIDE_BYTES + 1), Refusal.OVERSIZED),
        (b"\xf5" + GOLDEN[1:], Refusal.UNKNOWN_TAG),
        (b"\x01" + GOLDEN[1:], Refusal.UNKNOWN_TAG),
    ],
)
def test_refusals(raw, refusal):
    with pytest.raises(ProtocolError) as caught:
        parse(memoryview(raw))
    assert caught.value.refusal is refusal


def test_the_largest_chunk_passes():
    assert len(parse(memoryview(GOLDEN[:39] + bytes(MAX_CHUNK_BYTES))).data) == MAX_CHUNK_BYTES


def test_bulk_is_told_by_its_tag():
    assert is_bulk(GOLDEN)
    assert not is_bulk(b"\x01abc")
    assert not is_bulk(b"")
