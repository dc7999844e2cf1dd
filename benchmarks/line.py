"""Peers in one process, each behind a line of its own: so many bytes a second up and down, and a delay each way.

Bulk frames share the line, one after the other, up at the sender and down at the receiver. Small frames do not queue
behind them, as they have streams of their own on a real line. A sender hears of the arrival one delay later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dht.errors import ProtocolError, UnreachableError
from dht.identity import PeerId
from dht.transport import FrameHandler, Part, RequestHandler


class Network:
    """All lines. `rate` in bytes per second, `delay` in seconds one way."""

    def __init__(self, rate: float, delay: float) -> None:
        self.rate, self.delay = rate, delay
        self.lines: dict[PeerId, Line] = {}

    def line(self, peer: PeerId) -> Line:
        """This peer's transport."""
        return self.lines.setdefault(peer, Line(self, peer))


class Line:
    """One peer's `dht.transport.Transport`. `sent`: bytes up."""

    def __init__(self, network: Network, peer_id: PeerId) -> None:
        self._network, self._id = network, peer_id
        self._on_frame: FrameHandler | None = None
        self._up = self._down = self._words = 0.0  # when each is free again, on the loop's clock
        self.sent = 0

    @property
    def peer_id(self) -> PeerId:
        """Whose it is."""
        return self._id

    def serve(self, on_frame: FrameHandler, on_request: RequestHandler) -> None:
        """Begin to receive; requests are not carried."""
        self._on_frame = on_frame

    async def send(self, to: PeerId, parts: Sequence[Part], *, bulk: bool = False) -> None:
        """Carry a frame and wait until it is acknowledged. Raises UnreachableError when the other side refuses it."""
        frame = b"".join(parts)
        loop, network = asyncio.get_running_loop(), self._network
        other, seconds = network.lines[to], len(frame) / network.rate
        self.sent += len(frame)
        if bulk:
            self._up = max(self._up, loop.time()) + seconds
            await _until(self._up + network.delay)
            other._down = max(other._down + seconds, loop.time())
            await _until(other._down)
        else:
            self._words = max(self._words, loop.time() + seconds)  # in the order of sending
            await _until(self._words + network.delay)
        if other._on_frame is None:
            raise UnreachableError("nobody is there")
        try:
            other._on_frame(self._id, memoryview(frame))
        except ProtocolError as error:
            raise UnreachableError("the other side refused it") from error
        await asyncio.sleep(network.delay)

    async def request(self, to: PeerId, parts: Sequence[Part], *, timeout: float) -> memoryview:
        """Nobody restarts here, so nobody has anything to ask for. Raises UnreachableError."""
        raise UnreachableError("requests are not carried")


async def _until(due: float) -> None:
    await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
