"""One question, one answer, or an error that says which."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence

import pytest

from dht.errors import ProtocolError, Refusal, UnreachableError
from dht.frames import BULK_CAP, Kind
from dht.link import RefusedError
from dht.request import answer, ask

BULK = b"\xf0"


async def echo(frame: memoryview) -> Sequence[bytes]:
    return [bytes(frame[:1]), bytes(frame[1:])]


async def test_a_large_answer_arrives_whole() -> None:
    left, right = socket.socketpair()
    question = BULK + bytes(range(256)) * 2000
    server = asyncio.create_task(answer(right, echo))
    assert await ask(left, [question], timeout=5) == question
    assert await asyncio.wait_for(server, 5) is None


async def test_a_refusal_reaches_the_asker() -> None:
    async def refuse(frame: memoryview) -> Sequence[bytes]:
        raise ProtocolError(Refusal.STALE, "too late")

    left, right = socket.socketpair()
    server = asyncio.create_task(answer(right, refuse))
    with pytest.raises(RefusedError) as caught:
        await ask(left, [BULK, b"x"], timeout=5)
    assert caught.value.refusal is Refusal.STALE
    refused = await asyncio.wait_for(server, 5)
    assert refused is not None
    assert refused.refusal is Refusal.STALE


async def test_a_failing_handler_is_logged_and_the_asker_told_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(frame: memoryview) -> Sequence[bytes]:
        raise ZeroDivisionError

    left, right = socket.socketpair()
    server = asyncio.create_task(answer(right, fail))
    with pytest.raises(UnreachableError, match="without a reply"):
        await ask(left, [BULK, b"x"], timeout=5)
    assert await asyncio.wait_for(server, 5) is None
    assert "ZeroDivisionError" in caplog.text


async def test_no_answer_in_time_is_unreachable() -> None:
    left, right = socket.socketpair()
    with pytest.raises(UnreachableError, match="no reply in"):
        await ask(left, [BULK, b"x"], timeout=0.01)
    right.close()


async def test_a_question_over_its_cap_is_not_sent() -> None:
    left, right = socket.socketpair()
    with pytest.raises(ProtocolError):
        await ask(left, [BULK, bytes(BULK_CAP)], timeout=5)
    assert right.recv(1) == b""
    right.close()


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (struct.pack(">IBBBBQ", 2**31, Kind.REQUEST, 0, 0xF0, 0, 0), Refusal.OVERSIZED),
        (struct.pack(">IBBBBQ", 2, Kind.REPLY, 0, 0xF0, 0, 0) + b"\xf0x", Refusal.UNEXPECTED),
    ],
)
async def test_a_bad_question_is_refused_by_number(data: bytes, refusal: Refusal) -> None:
    left, right = socket.socketpair()
    left.setblocking(False)
    server = asyncio.create_task(answer(right, echo))
    await asyncio.get_running_loop().sock_sendall(left, data)
    reply = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(left, 100), 5)
    assert reply == struct.pack(">IBBBBQ", 0, Kind.REFUSE, 0, 0, 0, refusal)
    left.close()
    refused = await asyncio.wait_for(server, 5)
    assert refused is not None
    assert refused.refusal is refusal


async def test_an_asker_that_leaves_costs_nothing() -> None:
    left, right = socket.socketpair()
    server = asyncio.create_task(answer(right, echo))
    await asyncio.sleep(0)
    left.close()
    assert await asyncio.wait_for(server, 5) is None
