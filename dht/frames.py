"""Frames on a byte stream: a fixed header, caps checked before memory is reserved, no copy on the way.

    u32 length | u8 kind | u8 flags | u8 tag | u8 zero | u64 number | frame of `length` bytes

All integers are big-endian. `tag` repeats the frame's first byte, so that the cap of its message type is known
before its body is read. `FrameReader` is the parser without a socket; `FrameStream` binds it to one. On a stream that
nobody else protects, header and frame are each a sealed record (`dht.sealed`).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, TypeAlias

import numpy as np

from dht.errors import ProtocolError, Refusal, UnreachableError
from dht.sealed import SEAL_BYTES, Channel, Seal
from dht.transport import Part
from dht.wire import REGISTRY

BULK_TAGS = range(0xF0, 0x100)
"""Frames with a fixed binary header instead of msgpack; they are in no registry."""
BULK_CAP = 648 * 1024
PATIENCE = 30.0
"""Seconds without a byte of progress after which an unfinished exchange counts as dead."""
_HEADER = struct.Struct(">IBBBBQ")
HEADER_BYTES = _HEADER.size
_SOCKET_BUFFER = 4 << 20
_BUFFERS_PER_CALL = 64
_READS_PER_TURN = 16


class Kind(IntEnum):
    """What a header announces."""

    FRAME = 1  # number: its place in the lane, from 1
    ACK = 2  # number: all frames up to here are handled
    REFUSE = 3  # number: the `Refusal`; the stream is over
    FIN = 4  # no frame follows; answered by FIN
    REQUEST = 5
    REPLY = 6


class Header(NamedTuple):
    """One parsed header; sizes in bytes."""

    length: int
    kind: Kind
    flags: int
    tag: int
    number: int


FrameSink: TypeAlias = Callable[[Header, memoryview], None]
LostSink: TypeAlias = Callable[[Exception | None], None]


def cap_of(tag: int) -> int:
    """Most bytes that a frame of `tag` may have. Raises ProtocolError (UNKNOWN_TAG)."""
    if tag in BULK_TAGS:
        return BULK_CAP
    row = REGISTRY.get(tag)
    if row is None or not row.framed:
        raise ProtocolError(Refusal.UNKNOWN_TAG, f"tag {tag:#04x}")
    return row.cap


def pack_header(kind: Kind, number: int, parts: Sequence[Part] = (), flags: int = 0) -> bytes:
    """The 16 header bytes before `parts`. Raises ProtocolError if the parts break their own cap."""
    length, tag = check_parts(parts) if parts else (0, 0)
    return _HEADER.pack(length, kind, flags, tag, 0, number)


def check_parts(parts: Sequence[Part]) -> tuple[int, int]:
    """Length and tag of a frame that these parts make. Raises ProtocolError if they break their own cap."""
    length, tag = sum(map(len, parts)), next((part[0] for part in parts if len(part)), 0)
    check_length(length, tag)
    return length, tag


def check_length(length: int, tag: int) -> None:
    """Raise ProtocolError unless a frame of `tag` may have `length` bytes."""
    if length < 2:
        raise ProtocolError(Refusal.TRUNCATED, f"a frame of {length} bytes")
    cap = cap_of(tag)
    if length > cap:
        raise ProtocolError(Refusal.OVERSIZED, f"tag {tag:#04x}: {length} bytes, cap {cap}")


def parse_header(data: bytes | bytearray) -> Header:
    """Check 16 header bytes. Raises ProtocolError before anything of the announced size exists."""
    length, kind, flags, tag, zero, number = _HEADER.unpack(data)
    if not Kind.FRAME <= kind <= Kind.REPLY or zero or flags > 1:
        raise ProtocolError(Refusal.MALFORMED, f"a header of kind {kind}")
    if kind in (Kind.FRAME, Kind.REQUEST, Kind.REPLY):
        check_length(length, tag)
    elif length or tag:
        raise ProtocolError(Refusal.MALFORMED, f"{Kind(kind).name} with a body")
    return Header(length, Kind(kind), flags, tag, number)


@dataclass(slots=True)
class Meter:
    """Bytes sent and received, headers included."""

    up: int = 0
    down: int = 0


class FrameReader:
    """Bytes in, frames out, however the bytes are split. Each frame gets memory of its own."""

    def __init__(self, seal: Seal | None = None) -> None:
        """`seal` opens the records that the bytes are, if they are sealed."""
        self._seal, self._extra = seal, SEAL_BYTES if seal else 0
        self._head = bytearray(HEADER_BYTES + self._extra)
        self._head_view = memoryview(self._head)
        self._head_have = 0
        self._plain_head = bytearray(HEADER_BYTES)
        self._header: Header | None = None
        self._scratch = memoryview(bytearray())
        self._body = self._rest = self._scratch

    @property
    def partial(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self._header is not None or self._head_have > 0

    def buffers(self) -> list[memoryview]:
        """Where the next bytes belong: the rest of this frame and the next header, for one scattered read."""
        head = self._head_view[self._head_have :]
        return [head] if self._header is None else [self._rest, head]

    def advance(self, count: int) -> Iterator[tuple[Header, memoryview]]:
        """Account for `count` bytes put into `buffers()`; yields what is complete.

        Raises ProtocolError, and UnreachableError for a record that does not open.
        """
        if self._header is not None:
            taken = min(count, len(self._rest))
            self._rest = self._rest[taken:]
            count -= taken
            if self._rest:
                return
            header, self._header = self._header, None
            yield self._finish(header)
        self._head_have += count
        if self._head_have == len(self._head):
            self._head_have = 0
            header = parse_header(self._opened_head())
            if not header.length:
                yield header, memoryview(b"")
                return
            self._header = header
            self._body = self._rest = self._room(header.length)

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[Header, memoryview]]:
        """Copy `data` in; yields what is complete. Raises as `advance` does."""
        view = memoryview(data)
        while view:
            buffer = self.buffers()[0]
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            view = view[count:]
            yield from self.advance(count)

    def _opened_head(self) -> bytes | bytearray:
        if self._seal is None:
            return self._head
        self._seal.open(self._head, memoryview(self._plain_head))
        return self._plain_head

    def _room(self, length: int) -> memoryview:
        """Where the bytes of the next frame go: into its own memory, or if they are sealed into one place for all."""
        if self._seal is None:
            return uninitialised(length)
        if len(self._scratch) < length + SEAL_BYTES:
            self._scratch = uninitialised(length + SEAL_BYTES)
        return self._scratch[: length + SEAL_BYTES]

    def _finish(self, header: Header) -> tuple[Header, memoryview]:
        body, self._body = self._body, memoryview(bytearray())
        self._rest = self._body
        if self._seal is not None:
            opened = uninitialised(header.length)
            self._seal.open(body, opened)
            body = opened
        if body[0] != header.tag:
            raise ProtocolError(Refusal.MALFORMED, f"tag {body[0]:#04x} under a header of tag {header.tag:#04x}")
        return header, body


def uninitialised(length: int) -> memoryview:
    """Memory that is not zeroed: for bytes that are all overwritten before anybody sees them."""
    return np.empty(length, np.uint8).data


class FrameStream:
    """Frames over one connected non-blocking stream socket, on the running event loop.

    `on_frame` gets each header and body; `on_lost` is called once, with the reason or None for a plain end of
    file. Writes gather the caller's own memory (no copy), so it must not change before the other side has it.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_frame: FrameSink,
        on_lost: LostSink,
        *,
        patience: float = PATIENCE,
        meter: Meter | None = None,
        channel: Channel | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock, self._on_frame, self._on_lost = sock, on_frame, on_lost
        self._seal = channel.out if channel else None
        self._record = memoryview(bytearray())
        self._reader = FrameReader(channel.into if channel else None)
        self._out: deque[memoryview] = deque()
        self._unsealed: deque[tuple[bytes, Sequence[Part]]] = deque()
        self._open, self._reading, self._writing, self._discard = True, False, False, False
        self._own, self._meter = Meter(), meter or Meter()
        self.waiting: Callable[[], bool] = lambda: False
        """Whether the owner waits for the other side; then silence longer than `patience` is death."""
        self.on_refusal: Callable[[ProtocolError], None] = self.close
        """What to do about bytes that break the rules; by default the stream is closed."""
        self._patience, self._seen = patience, (-1, -1)
        sock.setblocking(False)
        _tune(sock)
        self._watch = self._loop.call_later(patience, self._check_progress)

    @property
    def open(self) -> bool:
        """Whether the socket is still ours."""
        return self._open

    def start(self, leftover: bytes = b"") -> None:
        """Handle bytes that were read before the socket was taken over, then begin to read."""
        self._count(down=len(leftover))
        if self._take(self._reader.feed(leftover)):
            self.resume()

    def write(self, kind: Kind, number: int, parts: Sequence[Part] = (), *, flags: int = 0) -> None:
        """Queue a header and its parts and send what fits. Raises ProtocolError if the parts break their cap."""
        header = pack_header(kind, number, parts, flags)
        if self._open:
            if self._seal is None:
                self._out.append(memoryview(header))
                self._out.extend(memoryview(part).cast("B") for part in parts if len(part))
            else:
                self._unsealed.append((header, parts))
            if not self._writing:
                self._writable()

    def pause(self) -> None:
        """Stop reading; the other side is held back by its socket."""
        if self._reading:
            self._loop.remove_reader(self._sock)
            self._reading = False

    def resume(self) -> None:
        """Read again after `pause`."""
        if self._open and not self._reading:
            self._loop.add_reader(self._sock, self._readable)
            self._reading = True

    def discard(self) -> None:
        """From here on throw incoming bytes away unparsed, until the other side closes."""
        self._discard = True
        self.resume()

    def close(self, reason: Exception | None = None) -> None:
        """Give the socket up at once and report `reason` to `on_lost`."""
        if not self._open:
            return
        self.pause()
        self._open = False
        self._watch.cancel()
        if self._writing:
            self._loop.remove_writer(self._sock)
        self._out.clear()
        self._unsealed.clear()
        self._sock.close()
        self._on_lost(reason)

    def _readable(self) -> None:
        for _ in range(_READS_PER_TURN):
            if not self._reading:
                return
            try:
                buffers = [memoryview(bytearray(65536))] if self._discard else self._reader.buffers()
                count = self._sock.recvmsg_into(buffers)[0]
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self.close(UnreachableError(f"the stream broke: {error.strerror}"))
                return
            self._count(down=count)
            if not count:
                self.close(UnreachableError("the stream ended inside a frame") if self._reader.partial else None)
                return
            drained = count < sum(map(len, buffers))
            if not self._discard and not self._take(self._reader.advance(count)):
                return
            if drained:
                return

    def _take(self, frames: Iterator[tuple[Header, memoryview]]) -> bool:
        try:
            for header, body in frames:
                self._on_frame(header, body)
                if not self._open or self._discard:
                    return False
        except ProtocolError as error:
            self.on_refusal(error)
            return False
        except UnreachableError as error:
            self.close(error)
            return False
        return True

    def _writable(self) -> None:
        try:
            while self._out or self._seal_next():
                count = self._sock.sendmsg([self._out[i] for i in range(min(len(self._out), _BUFFERS_PER_CALL))])
                self._count(up=count)
                self._drop(count)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self.close(UnreachableError(f"the stream broke: {error.strerror}"))
            return
        except UnreachableError as error:
            self.close(error)
            return
        if bool(self._out) != self._writing:
            self._writing = bool(self._out)
            if self._writing:
                self._loop.add_writer(self._sock, self._writable)
            else:
                self._loop.remove_writer(self._sock)

    def _seal_next(self) -> bool:
        """Seal the next frame when the socket has taken the one before: all of them go through the same memory."""
        if self._seal is None or not self._unsealed:
            return False
        header, parts = self._unsealed.popleft()
        size = HEADER_BYTES + SEAL_BYTES + (sum(map(len, parts)) + SEAL_BYTES if parts else 0)
        if len(self._record) < size:
            self._record = uninitialised(size)
        self._seal.seal([header], self._record[: HEADER_BYTES + SEAL_BYTES])
        if parts:
            self._seal.seal(parts, self._record[HEADER_BYTES + SEAL_BYTES : size])
        self._out.append(self._record[:size])
        return True

    def _count(self, *, up: int = 0, down: int = 0) -> None:
        for meter in (self._own, self._meter):
            meter.up += up
            meter.down += down

    def _drop(self, count: int) -> None:
        while count:
            first = self._out[0]
            if count < len(first):
                self._out[0] = first[count:]
                return
            count -= len(first)
            self._out.popleft()

    def _check_progress(self) -> None:
        seen = (self._own.up, self._own.down)
        busy = bool(self._out) or (self._reading and self._reader.partial) or self.waiting()
        if busy and seen == self._seen:
            self.close(UnreachableError(f"no progress for {self._patience:.0f} s"))
            return
        self._seen = seen
        self._watch = self._loop.call_later(self._patience, self._check_progress)


def _tune(sock: socket.socket) -> None:
    """Room for a few frames in a local socket. For TCP the kernel finds the window; acknowledgements must not wait."""
    with suppress(OSError):
        if sock.family == socket.AF_UNIX:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
