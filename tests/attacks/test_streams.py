"""Idle streams and slow senders against a real host: they cost a bounded number of places, and nobody else notices."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from dht.errors import Refusal
from dht.frames import BULK_CAP, Kind
from dht.host import BULK, CONTROL, MAX_STREAMS, REQUEST
from dht.identity import PeerId
from dht.link import PATIENCE
from tests.dht.conftest import StartHost, Until, visited

TAG = b"\xf0"
STREAMS = 500


def is_closed(stream: socket.socket) -> bool:
    """Whether the other side has ended a stream on which it never says a word."""
    stream.setblocking(False)
    try:
        return stream.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


async def test_five_hundred_idle_streams_and_slow_senders_hold_nobody_up(
    start_host: StartHost, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one attacker 64 streams are open at most, whatever it does with them; an honest peer's frames all arrive."""
    host, (bad, good), got = await visited(start_host, "bad", "good")
    asked: list[PeerId] = []
    acquire = host._quota.acquire
    monkeypatch.setattr(host._quota, "acquire", lambda peer: asked.append(peer) or acquire(peer))
    streams: list[socket.socket] = []
    for start in range(0, STREAMS, 50):
        opened = (bad.p2p.open_stream(host.peer_id, (CONTROL, BULK, REQUEST)[k % 3]) for k in range(start, start + 50))
        streams += await asyncio.gather(*opened)
        # The host's daemon drops what more than a hundred wait for the host to accept: let it see these first.
        await until(lambda: len(asked) == len(streams))  # noqa: B023
    assert asked == [bad.peer_id] * STREAMS
    await until(lambda: sum(map(is_closed, streams)) == STREAMS - MAX_STREAMS)
    assert host.counters.refusals[Refusal.RATE_LIMITED] == STREAMS - MAX_STREAMS
    assert host._quota.total == MAX_STREAMS

    # Bulk streams that are open send frames of the largest size, byte by byte: announced is not reserved, and blocks
    # nobody.
    header = struct.pack(">IBBBBQ", BULK_CAP, Kind.FRAME, 0, 0xF0, 0, 1)
    loop = asyncio.get_running_loop()
    slow = [stream for stream in streams[1::3] if not is_closed(stream)]
    assert len(slow) >= MAX_STREAMS // 4
    for byte in range(len(header) + 4):
        part = (header + TAG + bytes(3))[byte : byte + 1]
        await asyncio.gather(*(loop.sock_sendall(stream, part) for stream in slow))
        await good.send(host.peer_id, [TAG, bytes([byte])])
    await until(lambda: sum(bool(receiver.stream._reader.partial) for receiver in host._receivers) == len(slow))
    frames = [TAG + bytes([k]) * 50_000 for k in range(100)]
    await asyncio.gather(*(good.send(host.peer_id, [frame], bulk=True) for frame in frames))
    assert await good.request(host.peer_id, [TAG, b"?"], timeout=20) == TAG + b"?"
    assert [frame for frame in got if len(frame) == 50_001] == frames
    assert len(got) == len(frames) + len(header) + 4
    assert not any(map(is_closed, slow))
    for stream in streams:
        stream.close()


async def test_many_identities_together_take_no_more_than_all_places_and_honest_peers_get_theirs_back(
    start_host: StartHost, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for six, the stream that was silent longest is closed for a new one, whosever it is."""
    monkeypatch.setattr("dht.host.MAX_ALL_STREAMS", 6)
    host, (good, *bad), got = await visited(start_host, "good", "bad0", "bad1", "bad2")
    await good.send(host.peer_id, [TAG, b"first"])
    streams = []
    for _ in range(4):
        for other in bad:
            streams.append(await other.p2p.open_stream(host.peer_id, CONTROL))
            await until(lambda: host._quota.total <= 7)
            await good.send(host.peer_id, [TAG, b"still here"])
    # Of six places the honest peer has one.
    await until(lambda: len(host._receivers) <= 6 and sum(map(is_closed, streams)) >= len(streams) - 5)
    await good.send(host.peer_id, [TAG, b"last"])
    assert got == [TAG + b"first", *[TAG + b"still here"] * 12, TAG + b"last"]
    for stream in streams:
        stream.close()


async def test_a_sender_that_stops_in_the_middle_of_a_frame_loses_its_stream(
    start_host: StartHost, until: Until
) -> None:
    assert PATIENCE == 30.0
    host, (bad,), _ = await visited(start_host, "bad")
    stream = await bad.p2p.open_stream(host.peer_id, BULK)
    stream.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(stream, struct.pack(">IBBBBQ", BULK_CAP, Kind.FRAME, 0, 0xF0, 0, 1))
    await until(lambda: len(host._receivers) == 1)
    (receiver,) = host._receivers
    await until(lambda: receiver.stream._reader.partial)

    def stalled() -> bool:
        receiver.stream._check_progress()  # its timer would call it after 30 s, and again 30 s later
        return not host._receivers

    await until(stalled)
    stream.close()
