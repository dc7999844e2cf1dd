"""What the protocol needs of a network. `dht.host` gives it over libp2p, the simulator in memory.

And what a host needs of libp2p: p2pd gives it to peers (`dht.daemon`), py-libp2p to the explorer, which runs no daemon.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

from dht.identity import PeerId

Part: TypeAlias = bytes | bytearray | memoryview
FrameHandler: TypeAlias = Callable[[PeerId, memoryview], None]
"""Called with the authenticated sender and one whole frame; the handler may keep the memory."""
RequestHandler: TypeAlias = Callable[[PeerId, memoryview], Awaitable[Sequence[Part]]]
"""Called with the authenticated sender and a request frame; returns the parts of the reply frame."""

StreamSink: TypeAlias = Callable[[str, bytes, socket.socket, bytes], Awaitable[None]]
"""Called with protocol, remote peer id, socket and the bytes that were read already."""


class Libp2p(Protocol):
    """Authenticated, encrypted streams to peers, each as a connected socket. `died` resolves with the cause when it
    ends without being asked to.
    """

    died: asyncio.Future[str]

    async def dial(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Connect to `peer` at any of `addresses`, unless connected. Raises UnreachableError."""
        ...

    async def open_stream(self, peer: PeerId, protocol: str) -> socket.socket:
        """A new stream to `peer`, as a socket that is ours to close. Raises UnreachableError."""
        ...

    async def accept(self, protocol: str, sink: StreamSink) -> None:
        """Hand every incoming stream of `protocol` to `sink`."""
        ...

    async def addresses(self) -> tuple[str, ...]:
        """Full multiaddresses under which it can be dialled; none if it does not listen. Raises UnreachableError."""
        ...

    async def shutdown(self) -> None:
        """End it and all of its streams. Safe to call twice."""
        ...


class Transport(Protocol):
    """Authenticated, acknowledged delivery of frames between peers."""

    @property
    def peer_id(self) -> PeerId:
        """Who we are on this network."""
        ...

    def serve(self, on_frame: FrameHandler, on_request: RequestHandler) -> None:
        """Set the handlers. Frames that arrive before are refused, not queued."""
        ...

    async def send(self, to: PeerId, parts: Sequence[Part], *, bulk: bool = False) -> None:
        """Deliver the concatenated parts as one frame; returns once the other side acknowledged it.

        Frames of one (peer, bulk) lane arrive in order, exactly once per success. Bulk frames have a lane of
        their own so that megabytes never delay a vote. Raises UnreachableError when delivery is not certain.
        """
        ...

    async def request(self, to: PeerId, parts: Sequence[Part], *, timeout: float) -> memoryview:
        """Send a request frame and wait for its reply frame. Raises UnreachableError."""
        ...
