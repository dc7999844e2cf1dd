"""What the protocol needs of a network. `dht.host` gives it over libp2p, the simulator in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

from dht.identity import PeerId

Part: TypeAlias = bytes | bytearray | memoryview
FrameHandler: TypeAlias = Callable[[PeerId, memoryview], None]
"""Called with the authenticated sender and one whole frame; the handler may keep the memory."""
RequestHandler: TypeAlias = Callable[[PeerId, memoryview], Awaitable[Sequence[Part]]]
"""Called with the authenticated sender and a request frame; returns the parts of the reply frame."""


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
