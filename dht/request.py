"""One question and one answer on a short stream of their own, so that a slow answer holds nobody up."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

from dht.errors import ProtocolError, Refusal, UnreachableError
from dht.frames import FrameStream, Header, Kind, Meter
from dht.link import RefusedError, refusal_of
from dht.transport import Part

ANSWER_TIMEOUT = 60.0
"""Seconds that a handler may take; seconds that the question may take to arrive, too."""
_LINGER = 5.0
_log = logging.getLogger(__name__)


async def ask(sock: socket.socket, parts: Sequence[Part], *, timeout: float, meter: Meter | None = None) -> memoryview:
    """Send a request frame and return the reply frame; closes the socket.

    Raises RefusedError when the other side names a refusal, UnreachableError when no reply comes within
    `timeout` seconds, ProtocolError when the request breaks its cap or the reply its rules.
    """
    reply: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()

    def on_frame(header: Header, body: memoryview) -> None:
        if header.kind is Kind.REFUSE:
            stream.close(RefusedError(refusal_of(header.number)))
            return
        if header.kind is not Kind.REPLY:
            raise ProtocolError(Refusal.UNEXPECTED, f"{header.kind.name} instead of a reply")
        if not reply.done():
            reply.set_result(body)

    def on_lost(reason: Exception | None) -> None:
        if not reply.done():
            reply.set_exception(reason or UnreachableError("the stream ended without a reply"))

    stream = FrameStream(sock, on_frame, on_lost, patience=timeout, meter=meter)
    try:
        stream.write(Kind.REQUEST, 0, parts)
        stream.start()
        return await asyncio.wait_for(reply, timeout)
    except TimeoutError:
        raise UnreachableError(f"no reply in {timeout:g} s") from None
    finally:
        reply.cancel()
        stream.close()


async def answer(
    sock: socket.socket,
    handler: Callable[[memoryview], Awaitable[Sequence[Part]]],
    *,
    leftover: bytes = b"",
    timeout: float = ANSWER_TIMEOUT,
    meter: Meter | None = None,
) -> ProtocolError | None:
    """Read one request, answer it, wait until the other side has read the answer, and close.

    Returns the refusal if the request was refused: by the rules of frames or by `handler` raising ProtocolError.
    """
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[memoryview] = loop.create_future()
    over: asyncio.Future[None] = loop.create_future()

    def fail(error: Exception) -> None:
        if not asked.done():
            asked.set_exception(error)

    def on_frame(header: Header, body: memoryview) -> None:
        if header.kind is not Kind.REQUEST or asked.done():
            raise ProtocolError(Refusal.UNEXPECTED, f"{header.kind.name} instead of one request")
        asked.set_result(body)

    def on_lost(reason: Exception | None) -> None:
        fail(reason or UnreachableError("the stream ended without a request"))
        if not over.done():
            over.set_result(None)

    stream = FrameStream(sock, on_frame, on_lost, patience=timeout, meter=meter)
    stream.on_refusal = fail
    stream.start(leftover)
    refused: ProtocolError | None = None
    try:
        try:
            request = await asyncio.wait_for(asked, timeout)
            parts = await asyncio.wait_for(handler(request), timeout)
            stream.write(Kind.REPLY, 0, parts)
        except ProtocolError as error:
            refused = error
            stream.write(Kind.REFUSE, error.refusal)
        except (UnreachableError, TimeoutError):
            return None
        except Exception:
            _log.exception("a request handler failed")
            return None
        stream.discard()
        await asyncio.wait([over], timeout=max(_LINGER, timeout))
        return refused
    finally:
        asked.cancel()
        stream.close()
