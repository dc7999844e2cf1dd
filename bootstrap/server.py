"""A DHT entry point and relay. It trains nothing and decides nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dht.clock import SystemClock
from dht.errors import ProtocolError, Refusal, UnreachableError
from dht.identity import Identity, PeerId
from dht.lock import FolderLock

if TYPE_CHECKING:
    from dht.host import Host

IDENTITY_NAME = "identity.key"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """What `run-bootstrap` was told; `bootstrap` are other entry points to join."""

    data_dir: Path
    listen: tuple[str, ...]
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """Under which addresses the server can be reached."""

    peer_id: PeerId
    addresses: tuple[str, ...]


async def serve(options: Options, on_ready: Callable[[Ready], None], stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises ConfigError, IdentityError, LockedError, StorageError or UnreachableError."""
    with FolderLock(options.data_dir):
        identity = Identity.load_or_create(options.data_dir / IDENTITY_NAME)
        # hivemind takes seconds to import; by now everything that could be refused at once has been.
        from dht.discovery import Discovery
        from dht.host import Host, Relay

        clock = SystemClock()
        host = await Host.start(
            options.data_dir / IDENTITY_NAME,
            listen=options.listen,
            announce=options.announce,
            relay=Relay.SERVE,
            direct=False,
            clock=clock,
        )
        try:
            host.serve(_no_frames, _no_requests)
            known = await _reached(host, options.bootstrap)
            discovery = await Discovery.start(host, None, None, clock, bootstrap=known)
            on_ready(Ready(identity.peer_id, host.addresses()))
            try:
                await _until(stop, host.daemon_died)
            finally:
                await discovery.stop()
        finally:
            await host.stop()


async def _reached(host: Host, addresses: Sequence[str]) -> list[str]:
    results = [await host.dial(address) for address in addresses]
    for result in results:
        if result.verdict != "ok":
            _log.warning("%s", result)
    return [result.address for result in results if result.verdict == "ok"]


async def _until(stop: asyncio.Event, died: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in (stop, died)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if died.is_set() and not stop.is_set():
        raise UnreachableError("the libp2p daemon died", remedy="start run-bootstrap again")


def _no_frames(peer: PeerId, frame: memoryview) -> None:
    raise ProtocolError(Refusal.UNEXPECTED, "a bootstrap server takes part in no round")


async def _no_requests(peer: PeerId, frame: memoryview) -> Sequence[bytes]:
    raise ProtocolError(Refusal.UNEXPECTED, "a bootstrap server takes part in no round")
