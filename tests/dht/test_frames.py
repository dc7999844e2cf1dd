"""Frames survive any splitting; anything that breaks a rule is refused before memory is reserved."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging.evidence import Evidence
from dht.errors import ProtocolError, Refusal
from dht.frames import (
    BULK_CAP,
    HEADER_BYTES,
    FrameReader,
    FrameStream,
    Kind,
    Meter,
    cap_of,
    pack_header,
    parse_header,
)
from dht.wire import REGISTRY, message_type

BULK = b"\xf0"
bodies = st.lists(st.binary(min_size=1, max_size=400).map(lambda tail: BULK + tail), max_size=6)


def wire(frames: list[bytes]) -> bytes:
    return b"".join(pack_header(Kind.FRAME, i + 1, [body]) + body for i, body in enumerate(frames))


@given(bodies, st.lists(st.integers(1, 300), min_size=1, max_size=20))
def test_any_splitting_gives_the_same_frames(frames: list[bytes], cuts: list[int]) -> None:
    data, reader, got, at, turn = wire(frames), FrameReader(), [], 0, 0
    while at < len(data):
        step = cuts[turn % len(cuts)]
        got += [(header.number, bytes(body)) for header, body in reader.feed(data[at : at + step])]
        at, turn = at + step, turn + 1
    assert got == [(i + 1, body) for i, body in enumerate(frames)]
    assert not reader.partial


@given(bodies, st.lists(st.integers(1, 300), min_size=1, max_size=20))
def test_scattered_reads_give_the_same_frames(frames: list[bytes], cuts: list[int]) -> None:
    data, reader, got, at, turn = memoryview(wire(frames)), FrameReader(), [], 0, 0
    while at < len(data):
        count, room = 0, cuts[turn % len(cuts)]
        for buffer in reader.buffers():
            take = min(len(buffer), room - count, len(data) - at - count)
            buffer[:take] = data[at + count : at + count + take]
            count += take
        got += [bytes(body) for _, body in reader.advance(count)]
        at, turn = at + count, turn + 1
    assert got == frames


@given(bodies.filter(bool), st.data())
def test_a_truncated_stream_is_partial_and_never_a_frame(frames: list[bytes], data: st.DataObject) -> None:
    whole = wire(frames)
    cut = data.draw(st.integers(0, len(whole) - 1))
    reader = FrameReader()
    got = [bytes(body) for _, body in reader.feed(whole[:cut])]
    assert got == frames[: len(got)]
    assert len(got) < len(frames)
    assert reader.partial == (len(wire(frames[: len(got)])) != cut)


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waits_for_more(data: bytes) -> None:
    frames = []
    with suppress(ProtocolError):  # and nothing else
        frames = list(FrameReader().feed(data))
    assert sum(HEADER_BYTES + header.length for header, _ in frames) <= len(data)


@given(st.integers(0, 2**32 - 1))
def test_the_cap_holds_before_memory_is_reserved(length: int) -> None:
    header = struct.pack(">IBBBBQ", length, Kind.FRAME, 0, 0xF0, 0, 1)
    reader = FrameReader()
    if 2 <= length <= BULK_CAP:
        assert list(reader.feed(header)) == []
        assert len(reader.buffers()[0]) == length
        return
    with pytest.raises(ProtocolError) as caught:
        list(reader.feed(header))
    assert caught.value.refusal is (Refusal.TRUNCATED if length < 2 else Refusal.OVERSIZED)
    assert len(reader.buffers()) == 1  # only the next header has memory


def test_registered_tags_have_their_own_cap() -> None:
    import dht.envelope

    assert cap_of(0x01) == REGISTRY[0x01].cap == dht.envelope.BODY_CAP + 256
    with pytest.raises(ProtocolError) as caught:
        cap_of(0xEE)
    assert caught.value.refusal is Refusal.UNKNOWN_TAG


@pytest.mark.parametrize("cls", get_args(Evidence))
def test_what_is_kept_in_files_only_is_no_frame(cls: type) -> None:
    with pytest.raises(ProtocolError) as caught:
        cap_of(message_type(cls).tag)
    assert caught.value.refusal is Refusal.UNKNOWN_TAG


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ((8, 99, 0, 0xF0, 0, 1), Refusal.MALFORMED),
        ((8, Kind.FRAME, 2, 0xF0, 0, 1), Refusal.MALFORMED),
        ((8, Kind.FRAME, 0, 0xF0, 1, 1), Refusal.MALFORMED),
        ((8, Kind.ACK, 0, 0, 0, 1), Refusal.MALFORMED),
        ((0, Kind.REQUEST, 0, 0xF0, 0, 1), Refusal.TRUNCATED),
        ((8, Kind.FRAME, 0, 0xEE, 0, 1), Refusal.UNKNOWN_TAG),
    ],
)
def test_bad_headers_are_refused(fields: tuple[int, ...], refusal: Refusal) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_header(struct.pack(">IBBBBQ", *fields))
    assert caught.value.refusal is refusal


def test_the_tag_of_header_and_body_must_agree() -> None:
    with pytest.raises(ProtocolError, match="under a header"):
        list(FrameReader().feed(struct.pack(">IBBBBQ", 2, Kind.FRAME, 0, 0xF0, 0, 1) + b"\xf1x"))


async def test_a_stream_counts_its_bytes_and_reports_its_end() -> None:
    left, right = socket.socketpair()
    ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    got: list[bytes] = []
    up, down = Meter(), Meter()
    writer = FrameStream(left, lambda *_: None, lambda _: None, meter=up)
    reader = FrameStream(right, lambda _, body: got.append(bytes(body)), ended.set_result, meter=down)
    reader.start()
    writer.write(Kind.FRAME, 1, [BULK, b"", memoryview(b"abc")])
    writer.close()
    assert await asyncio.wait_for(ended, 5) is None
    assert got == [b"\xf0abc"]
    assert up.up == down.down == HEADER_BYTES + 4
    assert not reader.open


async def test_a_stalled_frame_is_given_up() -> None:
    left, right = socket.socketpair()
    ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    FrameStream(right, lambda *_: None, ended.set_result, patience=0.01).start()
    left.send(pack_header(Kind.FRAME, 1, [BULK + bytes(100)]) + BULK)
    assert "no progress" in str(await asyncio.wait_for(ended, 5))
    left.close()
