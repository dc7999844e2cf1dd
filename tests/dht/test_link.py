"""A link delivers in order, exactly once per success, and fails every send that it cannot vouch for.

Every test that goes through `pair` runs on a plain stream and on a sealed one: the contract is the same.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.errors import ProtocolError, Refusal, UnreachableError
from dht.frames import BULK_CAP, Kind, pack_header
from dht.link import Receiver, RefusedError, Sender
from dht.sealed import Channel, channel

BULK = b"\xf0"
_streams = {"sealed": False}


@pytest.fixture(scope="module", autouse=True, params=["plain", "sealed"])
def _kind_of_stream(request: pytest.FixtureRequest) -> Iterator[None]:
    _streams["sealed"] = request.param == "sealed"
    yield
    _streams["sealed"] = False


def ends() -> tuple[Channel | None, Channel | None]:
    if not _streams["sealed"]:
        return None, None
    left, right = (channel(bytes(32), b"ticket", b"left", b"right", dialling=dialling) for dialling in (True, False))
    return left, right


def pair(
    on_frame: Callable[[memoryview], None], *, window: int = 1 << 20, admit: Callable[[], float] = lambda: 0.0
) -> tuple[Sender, Receiver]:
    left, right = socket.socketpair()
    near, far = ends()
    sender = Sender(window=window)
    sender.attach(left, channel=near)
    return sender, Receiver(right, on_frame, admit=admit, channel=far)


async def finish(sender: Sender, receiver: Receiver) -> None:
    await sender.close()
    await asyncio.wait_for(receiver.closed, 5)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 1 << 18))
def test_every_frame_arrives_once_in_order(seed: int, window: int) -> None:
    dice = random.Random(seed)
    frames = [BULK + dice.randbytes(dice.choice([1, 50, 5000, 90000])) for _ in range(30)]
    got: list[bytes] = []

    async def run() -> None:
        sender, receiver = pair(lambda frame: got.append(bytes(frame)), window=window)
        await asyncio.gather(*(sender.send([frame[:1], frame[1:]]) for frame in frames))
        assert got == frames
        await finish(sender, receiver)

    asyncio.run(run())


async def test_send_returns_only_after_the_frame_was_handled() -> None:
    got: list[int] = []
    sender, receiver = pair(lambda frame: got.append(frame[1]))
    for number in range(50):
        await sender.send([BULK, bytes([number])])
        assert got[-1] == number
    await finish(sender, receiver)


async def test_frames_queued_before_the_stream_exists_keep_their_order() -> None:
    got: list[int] = []
    left, right = socket.socketpair()
    sender = Sender()
    sends = [asyncio.create_task(sender.send([BULK, bytes([number])])) for number in range(20)]
    await asyncio.sleep(0)
    receiver = Receiver(right, lambda frame: got.append(frame[1]))
    sender.attach(left)
    await asyncio.gather(*sends)
    assert got == list(range(20))
    await finish(sender, receiver)


async def test_the_window_bounds_what_is_on_its_way() -> None:
    left, right = socket.socketpair()
    right.setblocking(False)
    sender = Sender(window=3000)
    sender.attach(left)
    sends = [asyncio.create_task(sender.send([BULK, bytes(999)])) for _ in range(10)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(right.recv(1 << 20)) == 3 * (16 + 1000)
    right.close()
    assert all(isinstance(result, UnreachableError) for result in await asyncio.gather(*sends, return_exceptions=True))


async def test_a_stream_that_ends_fails_every_unacknowledged_send() -> None:
    killed = asyncio.Event()

    def on_frame(frame: memoryview) -> None:
        if frame[1] == 5:
            receiver.close()  # before the acknowledgement of the sixth frame
            killed.set()

    sender, receiver = pair(on_frame)
    results = []
    for number in range(10):
        results.append(await asyncio.gather(sender.send([BULK, bytes([number])]), return_exceptions=True))
    assert killed.is_set()
    assert [bool(result[0]) for result in results] == [False] * 5 + [True] * 5
    assert all(isinstance(result[0], UnreachableError) for result in results[5:])
    assert not sender.open


async def test_close_waits_until_everything_was_read() -> None:
    got: list[int] = []
    sender, receiver = pair(lambda frame: got.append(len(frame)), window=100_000)
    sends = [asyncio.create_task(sender.send([BULK, bytes(60_000)])) for _ in range(20)]
    await asyncio.sleep(0)
    await sender.close()
    assert await asyncio.gather(*sends) == [None] * 20
    assert len(got) == 20
    with pytest.raises(UnreachableError):
        await sender.send([BULK, b"late"])
    await asyncio.wait_for(receiver.closed, 5)


async def test_a_cancelled_send_disturbs_nobody() -> None:
    got: list[int] = []
    sender, receiver = pair(lambda frame: got.append(frame[1]), window=10)
    tasks = [asyncio.create_task(sender.send([BULK, bytes([number]) * 20])) for number in range(6)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[3], asyncio.CancelledError)
    assert got == [0, 1, 2, 4, 5]
    await finish(sender, receiver)


async def test_a_refusal_reaches_the_sender_with_its_number() -> None:
    def on_frame(frame: memoryview) -> None:
        raise ProtocolError(Refusal.BAD_HASH, "no")

    sender, receiver = pair(on_frame)
    with pytest.raises(RefusedError) as caught:
        await sender.send([BULK, b"x"])
    assert caught.value.refusal is Refusal.BAD_HASH
    error = await asyncio.wait_for(receiver.closed, 5)
    assert error is not None
    assert error.refusal is Refusal.BAD_HASH


async def test_a_failing_handler_is_logged_and_acknowledges_nothing(caplog: pytest.LogCaptureFixture) -> None:
    sender, receiver = pair(lambda frame: frame[99])
    with pytest.raises(UnreachableError):
        await sender.send([BULK, b"x"])
    assert await asyncio.wait_for(receiver.closed, 5) is None
    assert "a frame handler failed" in caplog.text


async def test_the_cap_is_checked_where_the_frame_is_made() -> None:
    sender, receiver = pair(lambda frame: None)
    with pytest.raises(ProtocolError) as caught:
        await sender.send([BULK, bytes(BULK_CAP)])
    assert caught.value.refusal is Refusal.OVERSIZED
    await sender.send([BULK, b"the link still works"])
    await finish(sender, receiver)


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (struct.pack(">IBBBBQ", BULK_CAP + 1, Kind.FRAME, 0, 0xF0, 0, 1), Refusal.OVERSIZED),
        (struct.pack(">IBBBBQ", 10, Kind.FRAME, 0, 0xEE, 0, 1), Refusal.UNKNOWN_TAG),
        (bytes(16), Refusal.MALFORMED),
        (pack_header(Kind.FRAME, 2, [BULK + b"x"]) + BULK + b"x", Refusal.UNEXPECTED),
        (pack_header(Kind.REQUEST, 1, [BULK + b"x"]) + BULK + b"x", Refusal.UNEXPECTED),
        (pack_header(Kind.FIN, 7), Refusal.UNEXPECTED),
    ],
)
async def test_bytes_that_break_the_rules_end_the_stream_with_a_number(data: bytes, refusal: Refusal) -> None:
    left, right = socket.socketpair()
    left.setblocking(False)
    handled: list[bytes] = []
    receiver = Receiver(right, lambda frame: handled.append(bytes(frame)))
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(left, data + bytes(100_000))
    reply = await asyncio.wait_for(loop.sock_recv(left, 100), 5)
    assert reply == struct.pack(">IBBBBQ", 0, Kind.REFUSE, 0, 0, 0, refusal)
    assert not receiver.closed.done()  # it stays until we have read that
    left.close()
    error = await asyncio.wait_for(receiver.closed, 5)
    assert error is not None
    assert error.refusal is refusal
    assert handled == []


async def test_a_sender_trusts_no_impossible_acknowledgement() -> None:
    left, right = socket.socketpair()
    sender = Sender()
    sender.attach(left)
    send = asyncio.create_task(sender.send([BULK, b"x"]))
    await asyncio.sleep(0)
    right.send(pack_header(Kind.ACK, 2))
    with pytest.raises(UnreachableError, match="ACK 2"):
        await asyncio.wait_for(send, 5)
    right.close()


async def test_silence_after_a_frame_is_noticed() -> None:
    left, right = socket.socketpair()
    sender = Sender(patience=0.01)
    sender.attach(left)
    with pytest.raises(UnreachableError, match="no progress"):
        await asyncio.wait_for(sender.send([BULK, b"x"]), 5)
    right.close()


async def test_a_sender_over_its_rate_is_held_back_not_dropped() -> None:
    waits = iter([0.0, 0.01, 0.0, 0.01])
    asked: list[float] = []

    def admit() -> float:
        asked.append(next(waits, 0.0))
        return asked[-1]

    got: list[int] = []
    sender, receiver = pair(lambda frame: got.append(frame[1]), admit=admit)
    await asyncio.gather(*(sender.send([BULK, bytes([number])]) for number in range(6)))
    assert got == list(range(6))
    assert asked == [0.0, 0.01, 0.0, 0.01, 0.0, 0.0]
    await finish(sender, receiver)


async def test_aborting_before_a_stream_exists_fails_what_is_queued() -> None:
    lost: list[bool] = []
    sender = Sender(on_lost=lambda: lost.append(True))
    send = asyncio.create_task(sender.send([BULK, b"x"]))
    await asyncio.sleep(0)
    sender.abort(UnreachableError("nobody there"))
    with pytest.raises(UnreachableError, match="nobody there"):
        await send
    assert lost == [True]
