"""Acknowledged, ordered delivery of frames over one byte stream.

The sender numbers its frames; the receiver writes back how far it has handled them (a cumulative
acknowledgement), at once when the sender has nothing more to say, else once per mebibyte. `send` returns only
when its frame is covered. A stream that ends first fails every send that is not. Nobody closes a stream that
the other side has not read to the end: the sender says FIN, the receiver answers FIN, then the sender closes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from dht.errors import ProtocolError, Refusal, UnreachableError
from dht.frames import PATIENCE, FrameStream, Header, Kind, Meter, check_parts
from dht.sealed import Channel
from dht.transport import Part

WINDOW = 16 << 20
"""Bytes that may be on their way without an acknowledgement."""
_ACK_EVERY = 1 << 20
_ACK_NOW = 1
_LINGER = 5.0
_log = logging.getLogger(__name__)


class RefusedError(UnreachableError):
    """The other side refused what we sent and ended the stream; `refusal` says why."""

    code = "MUR-310"

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"the other side refused it ({refusal.value} {refusal.name})")
        self.refusal = refusal


def refusal_of(number: int) -> Refusal:
    """The refusal that a REFUSE header names; numbers we do not know become MALFORMED."""
    return Refusal(number) if number in Refusal.__members__.values() else Refusal.MALFORMED


@dataclass(slots=True, eq=False)
class _Outgoing:
    parts: Sequence[Part]
    size: int
    done: asyncio.Future[None]


class Sender:
    """The sending side of a stream.

    Frames may be queued before there is a stream; `attach` gives it one, `abort` gives up. `on_lost` is called
    once when it is over.
    """

    def __init__(
        self, *, window: int = WINDOW, patience: float = PATIENCE, on_lost: Callable[[], None] = lambda: None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._window, self._patience, self._notify_lost = window, patience, on_lost
        self._queue: deque[_Outgoing] = deque()
        self._flying: deque[_Outgoing] = deque()
        self._flying_bytes = self._sent = self._acked = 0
        self._pumping = self._closing = self._fin_sent = self._sealed = False
        self._fin: asyncio.Future[None] = self._loop.create_future()
        self._error: UnreachableError | None = None
        self._stream: FrameStream | None = None

    def attach(self, sock: socket.socket, *, meter: Meter | None = None, channel: Channel | None = None) -> None:
        """Send over `sock`, which is ours from now on; through `channel` if nobody else protects it."""
        if self._error is not None:
            sock.close()
            return
        self._sealed = channel is not None
        self._stream = FrameStream(sock, self._frame, self._lost, patience=self._patience, meter=meter, channel=channel)
        self._stream.waiting = lambda: bool(self._flying)
        self._stream.start()
        self._pump()

    @property
    def open(self) -> bool:
        """Whether another `send` can succeed."""
        return self._error is None and not self._closing

    @property
    def sealed(self) -> bool:
        """Whether it sends over a channel of its own."""
        return self._sealed

    async def send(self, parts: Sequence[Part]) -> None:
        """Deliver one frame; returns when the other side has handled it.

        The parts must not change before that. Raises ProtocolError if they break the cap of their tag, and
        UnreachableError when the stream ends first: then the frame may or may not have arrived.
        """
        size, _ = check_parts(parts)
        if self._error is not None:
            raise self._error
        if self._closing:
            raise UnreachableError("the link is being closed")
        entry = _Outgoing(parts, size, self._loop.create_future())
        self._queue.append(entry)
        if not self._pumping:
            # All sends of this turn of the loop go out together, and only the last one asks for an answer.
            self._pumping = True
            self._loop.call_soon(self._pump)
        await entry.done

    async def close(self, timeout: float = _LINGER) -> None:
        """Wait until everything sent was read by the other side, at most `timeout` seconds, then close."""
        if self._error is None and not self._closing:
            self._closing = True
            self._pump()
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._fin), timeout)
        self.abort(UnreachableError("the link was closed"))

    def abort(self, reason: UnreachableError) -> None:
        """Close now; every send that is not acknowledged raises `reason`."""
        if self._stream is not None:
            self._stream.close(reason)
        elif self._error is None:
            self._lost(reason)

    def _pump(self) -> None:
        self._pumping = False
        if self._stream is None:
            return
        while self._queue and (not self._flying or self._flying_bytes + self._queue[0].size <= self._window):
            entry = self._queue.popleft()
            if entry.done.cancelled():
                continue
            more = self._queue and self._flying_bytes + entry.size + self._queue[0].size <= self._window
            self._sent += 1
            self._flying.append(entry)
            self._flying_bytes += entry.size
            self._stream.write(Kind.FRAME, self._sent, entry.parts, flags=0 if more else _ACK_NOW)
        if self._closing and not self._queue and not self._fin_sent:
            self._fin_sent = True
            self._stream.write(Kind.FIN, self._sent)

    def _frame(self, header: Header, body: memoryview) -> None:
        if header.kind is Kind.REFUSE:
            self.abort(RefusedError(refusal_of(header.number)))
            return
        if header.kind not in (Kind.ACK, Kind.FIN) or not self._acked <= header.number <= self._sent:
            raise ProtocolError(Refusal.UNEXPECTED, f"{header.kind.name} {header.number} to a sender")
        for _ in range(header.number - self._acked):
            entry = self._flying.popleft()
            self._flying_bytes -= entry.size
            if not entry.done.done():
                entry.done.set_result(None)
        self._acked = header.number
        if header.kind is Kind.FIN and not self._fin.done():
            self._fin.set_result(None)
        if self._queue:
            self._pump()

    def _lost(self, reason: Exception | None) -> None:
        cause = reason or UnreachableError("the other side closed the stream")
        self._error = cause if isinstance(cause, UnreachableError) else UnreachableError(str(cause))
        if not self._fin.done():
            self._fin.set_result(None)
        for entry in (*self._flying, *self._queue):
            if not entry.done.done():
                entry.done.set_exception(self._error)
        self._flying.clear()
        self._queue.clear()
        self._notify_lost()


class Receiver:
    """The receiving side of a stream: hands each frame to `on_frame` in order, then acknowledges it.

    `on_frame` raising ProtocolError, or a frame that breaks the rules of the stream, ends it with a numbered
    REFUSE. `admit` is asked before each frame and returns for how many seconds to stop reading (0: go on).
    `closed` resolves with the refusal, or None, when the stream is over.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_frame: Callable[[memoryview], None],
        *,
        leftover: bytes = b"",
        admit: Callable[[], float] = lambda: 0.0,
        patience: float = PATIENCE,
        meter: Meter | None = None,
        channel: Channel | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_frame, self._admit = on_frame, admit
        self._received = self._unacked = 0
        self._refused: ProtocolError | None = None
        self.closed: asyncio.Future[ProtocolError | None] = self._loop.create_future()
        self.stream = FrameStream(sock, self._frame, self._lost, patience=patience, meter=meter, channel=channel)
        self.stream.on_refusal = self.refuse
        self.stream.start(leftover)

    def close(self) -> None:
        """Give the stream up; frames that are not acknowledged fail at the sender."""
        self.stream.close()

    def refuse(self, error: ProtocolError) -> None:
        """Tell the sender why, stop handling its frames, and close once it has read that."""
        if self._refused is None and self.stream.open:
            self._refused = error
            self.stream.write(Kind.REFUSE, error.refusal)
            self.stream.discard()
            self._loop.call_later(_LINGER, self.stream.close)

    def _frame(self, header: Header, body: memoryview) -> None:
        try:
            self._handle(header, body)
        except ProtocolError:
            raise
        except Exception:
            # Our own fault, not the sender's: without an acknowledgement it knows that nothing is certain.
            _log.exception("a frame handler failed")
            self.stream.close()

    def _handle(self, header: Header, body: memoryview) -> None:
        if header.kind is Kind.FIN and header.number == self._received:
            self.stream.write(Kind.FIN, self._received)
            return
        if header.kind is not Kind.FRAME or header.number != self._received + 1:
            raise ProtocolError(Refusal.UNEXPECTED, f"{header.kind.name} {header.number} after {self._received}")
        self._on_frame(body)
        self._received += 1
        self._unacked += header.length
        if header.flags & _ACK_NOW or self._unacked >= _ACK_EVERY:
            self._unacked = 0
            self.stream.write(Kind.ACK, self._received)
        wait = self._admit()
        if wait > 0:
            self.stream.pause()
            self._loop.call_later(wait, self.stream.resume)

    def _lost(self, reason: Exception | None) -> None:
        error = self._refused or (reason if isinstance(reason, ProtocolError) else None)
        if not self.closed.done():
            self.closed.set_result(error)
