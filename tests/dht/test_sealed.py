"""Sealed records: each opens once, in order, on the stream it was made for, and not if a bit differs."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.errors import UnreachableError
from dht.frames import FrameReader, FrameStream, Header, Kind, pack_header
from dht.sealed import SEAL_BYTES, Channel, Seal, channel

BULK = b"\xf0"
TICKET = b"t" * 16


def two_ends(secret: bytes = bytes(32), ticket: bytes = TICKET) -> tuple[Channel, Channel]:
    near, far = (channel(secret, ticket, b"dialler", b"listener", dialling=dialling) for dialling in (True, False))
    return near, far


def sealed(seal: Seal, plain: bytes) -> bytearray:
    record = bytearray(len(plain) + SEAL_BYTES)
    seal.seal([plain], memoryview(record))
    return record


def opened(seal: Seal, record: bytes | bytearray) -> bytes:
    plain = bytearray(len(record) - SEAL_BYTES)
    seal.open(record, memoryview(plain))
    return bytes(plain)


def wire(seal: Seal, frames: list[bytes]) -> bytes:
    return b"".join(
        bytes(sealed(seal, pack_header(Kind.FRAME, number, [frame])) + sealed(seal, frame))
        for number, frame in enumerate(frames, 1)
    )


@settings(deadline=None)
@given(st.lists(st.binary(max_size=2000), max_size=5), st.lists(st.binary(max_size=2000), max_size=5))
def test_both_directions_carry_what_was_sealed(there: list[bytes], back: list[bytes]) -> None:
    near, far = two_ends()
    assert [opened(far.into, sealed(near.out, plain)) for plain in there] == there
    assert [opened(near.into, sealed(far.out, plain)) for plain in back] == back


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=5))
def test_parts_are_sealed_as_if_they_were_one(parts: list[bytes]) -> None:
    (one, _), (other, _) = two_ends(), two_ends()
    record = bytearray(sum(map(len, parts)) + SEAL_BYTES)
    one.out.seal(parts, memoryview(record))
    assert record == sealed(other.out, b"".join(parts))


@given(st.integers(0, 1000), st.integers(0, 7))
def test_one_changed_bit_is_noticed(place: int, bit: int) -> None:
    near, far = two_ends()
    record = sealed(near.out, b"masked chunk" * 50)
    record[place % len(record)] ^= 1 << bit
    with pytest.raises(UnreachableError, match="not those that its peer sealed"):
        opened(far.into, record)


def test_a_record_that_is_dropped_repeated_moved_or_reflected_does_not_open() -> None:
    near, _ = two_ends()
    first, second = (sealed(near.out, plain) for plain in (b"first", b"second"))
    for stream in ([second], [first, first], [second, first]):
        far, *rest = two_ends()[1], *stream
        with pytest.raises(UnreachableError):
            [opened(far.into, record) for record in rest]
    with pytest.raises(UnreachableError):  # my own record, sent back to me
        opened(two_ends()[0].into, first)


@pytest.mark.parametrize("other", [two_ends(secret=b"x" * 32)[1], two_ends(ticket=b"u" * 16)[1]])
def test_a_record_of_another_secret_or_stream_does_not_open(other: Channel) -> None:
    with pytest.raises(UnreachableError):
        opened(other.into, sealed(two_ends()[0].out, b"frame"))


def test_nothing_of_a_frame_is_readable_on_the_wire() -> None:
    frame = BULK + b"the sum of everybody's updates" * 20
    data = wire(two_ends()[0].out, [frame])
    assert len(data) == 16 + len(frame) + 2 * SEAL_BYTES
    assert frame[1:17] not in data
    assert pack_header(Kind.FRAME, 1, [frame]) not in data


@given(
    st.lists(st.binary(min_size=1, max_size=400).map(lambda tail: BULK + tail), max_size=6),
    st.lists(st.integers(1, 300), min_size=1, max_size=20),
)
def test_any_splitting_of_a_sealed_stream_gives_the_same_frames(frames: list[bytes], cuts: list[int]) -> None:
    near, far = two_ends()
    data, reader, got, at, turn = wire(near.out, frames), FrameReader(far.into), [], 0, 0
    while at < len(data):
        step = cuts[turn % len(cuts)]
        got += [(header.number, bytes(body)) for header, body in reader.feed(data[at : at + step])]
        at, turn = at + step, turn + 1
    assert got == list(enumerate(frames, 1))
    assert not reader.partial


@pytest.mark.parametrize("place", [3, 40, -1])
async def test_a_forged_byte_ends_the_stream_and_accuses_nobody(place: int) -> None:
    left, right = socket.socketpair()
    near, far = two_ends()
    got: list[Header] = []
    lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    stream = FrameStream(right, lambda header, body: got.append(header), lost.set_result, channel=far)
    stream.on_refusal = lambda error: pytest.fail("a broken rule, as if the peer had broken it")
    stream.start()
    data = bytearray(wire(near.out, [BULK + bytes(500)]))
    data[place] ^= 1
    left.sendall(data)
    assert isinstance(await asyncio.wait_for(lost, 5), UnreachableError)
    assert got == []
    left.close()
