"""The accepting end of the direct lane (`dht.direct`): tickets, and strangers who have a few seconds to show one."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from dht.addresses import AddressError, parse
from dht.clock import Clock
from dht.direct import MOST_ADDRESSES, TICKET_BYTES, DirectAsk, DirectOffer, exactly, hello
from dht.errors import ProtocolError, Refusal, UnreachableError
from dht.identity import PeerId
from dht.sealed import SEAL_BYTES, Channel, channel

TICKET_SECONDS = 10.0
MOST_TICKETS = 8
"""Tickets of one peer that wait for its connection."""
MOST_STRANGERS = 64
"""Connections at once that have not shown a ticket yet."""
GREETING_SECONDS = 5.0
_BACKLOG = 128
_log = logging.getLogger(__name__)

OnStream = Callable[[PeerId, socket.socket, Channel], None]


class Tickets:
    """Tickets that a connection may redeem: each once, until it expires."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: dict[bytes, tuple[PeerId, bytes, float]] = {}

    def issue(self, peer: PeerId, ticket: bytes) -> bytes:
        """A fresh 32-byte secret for `peer`'s ticket. Raises ProtocolError (RATE_LIMITED, EQUIVOCATION)."""
        now = self._clock.now()
        self._held = {name: held for name, held in self._held.items() if held[2] > now}
        if sum(holder == peer for holder, _, _ in self._held.values()) >= MOST_TICKETS:
            raise ProtocolError(Refusal.RATE_LIMITED, f"{peer.short} asks for more direct streams than it opens")
        if ticket in self._held:
            raise ProtocolError(Refusal.EQUIVOCATION, "a ticket twice")
        secret = os.urandom(32)
        self._held[ticket] = (peer, secret, now + TICKET_SECONDS)
        return secret

    def redeem(self, ticket: bytes) -> tuple[PeerId, bytes] | None:
        """Whose ticket this is, and its secret; None if it is nobody's, used, or too old."""
        held = self._held.pop(ticket, None)
        return held[:2] if held is not None and held[2] > self._clock.now() else None


class DirectListener:
    """Accepts direct streams. `on_stream` gets the authenticated peer, a socket to own, and the channel."""

    def __init__(self, own: PeerId, clock: Clock, on_stream: OnStream) -> None:
        self._own, self._on_stream = own, on_stream
        self.tickets = Tickets(clock)
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers = 0
        self.port = 0

    def listen(self, hosts: Iterable[str], port: int) -> None:
        """Listen on `port` (0: any free one) of these IP addresses. Raises AddressError for a given port in use."""
        for host in dict.fromkeys(hosts):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                listener = socket.create_server((host, self.port or port), family=family, backlog=_BACKLOG)
            except OSError as error:
                if port:
                    self.close()
                    remedy = "choose another --direct-port, or 0 for any free one"
                    raise AddressError(f"cannot listen on port {port}: {error.strerror}", remedy=remedy) from None
                _log.info("no direct streams on %s: %s", host, error.strerror)
                continue
            listener.setblocking(False)
            self.port = self.port or int(listener.getsockname()[1])
            self._sockets.append(listener)
            self._spawn(self._accept(listener))

    def offer(self, peer: PeerId, ask: DirectAsk, own_addresses: Iterable[str]) -> DirectOffer:
        """The answer to `peer`, which libp2p authenticated. Raises ProtocolError.

        `own_addresses`: where libp2p can be dialled; direct streams come in on another port of the same hosts.
        """
        if not self._sockets:
            return DirectOffer(bytes(32), ())
        return DirectOffer(self.tickets.issue(peer, ask.ticket), _on_port(own_addresses, self.port))

    def close(self) -> None:
        """Accept nothing more. Streams that were handed over stay open."""
        for task in self._tasks:
            task.cancel()
        for listener in self._sockets:
            listener.close()
        self._sockets.clear()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED):
                    _log.warning("no more direct streams: %s", error.strerror)
                    return
                await asyncio.sleep(0.5)  # no descriptor for it now; whoever waits falls back to libp2p
                continue
            if self._strangers >= MOST_STRANGERS:
                sock.close()
                continue
            self._strangers += 1
            self._spawn(self._welcome(sock))

    async def _welcome(self, sock: socket.socket) -> None:
        try:
            try:
                async with asyncio.timeout(GREETING_SECONDS):
                    found = await self._greet(sock)
            finally:
                self._strangers -= 1
        except (OSError, TimeoutError, UnreachableError) as error:
            _log.debug("a connection to the direct port came to nothing: %s", error)
            sock.close()
        except asyncio.CancelledError:
            sock.close()
            raise
        else:
            self._on_stream(found[0], sock, found[1])

    async def _greet(self, sock: socket.socket) -> tuple[PeerId, Channel]:
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        greeting = await exactly(sock, TICKET_BYTES + SEAL_BYTES)
        redeemed = self.tickets.redeem(bytes(greeting[:TICKET_BYTES]))
        if redeemed is None:
            raise UnreachableError("a ticket that is not good")
        peer, secret = redeemed
        ends = channel(secret, bytes(greeting[:TICKET_BYTES]), peer, self._own, dialling=False)
        ends.into.open(greeting[TICKET_BYTES:], memoryview(bytearray()))
        await loop.sock_sendall(sock, hello(ends))
        return peer, ends

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _on_port(addresses: Iterable[str], port: int) -> tuple[str, ...]:
    """The hosts of these libp2p addresses with a TCP port of our own; relays lead to others and do not count."""
    places = []
    for text in addresses:
        address = parse(text)
        kind = text.split("/", 2)[1]
        if not address.relayed:
            places.append(f"/{kind}/{address.host}/tcp/{port}")
    return tuple(dict.fromkeys(places))[:MOST_ADDRESSES]


def listen_hosts(listen: Sequence[str]) -> list[str]:
    """The IP addresses that libp2p listens on, from its multiaddresses."""
    return [parse(text, peer=False).host for text in listen if text.startswith(("/ip4/", "/ip6/"))]
