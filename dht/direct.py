"""The direct lane: bulk frames over TCP of our own, beside libp2p, for peers that can reach each other.

Every byte through libp2p passes two daemons. Here it goes from peer to peer, and libp2p says who is there. The dialler
asks over an authenticated and encrypted libp2p stream (`DirectAsk`: a ticket that it drew); the listener answers with
where it listens and a fresh secret (`DirectOffer`). Then on TCP:

    dialler:  ticket (16 bytes) | seal of nothing (16)    proves that it has the secret
    listener: seal of nothing (16)                        proves the same
    both:     sealed frames (`dht.sealed`, `dht.frames`)

A ticket is good once, for one peer, for ten seconds, so who speaks on the stream is who asked through libp2p. If there
is no way through, everything goes over libp2p as if there were no direct lane.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import Annotated

from dht.addresses import AddressError, parse
from dht.errors import UnreachableError
from dht.identity import PeerId
from dht.sealed import SEAL_BYTES, Channel, channel
from dht.wire import Bytes32, Count, Length, message

TICKET_BYTES = 16
DIAL_SECONDS = 2.0
AVOID_SECONDS = 120.0
"""How long libp2p is used for a peer once the direct way to it failed or broke."""
MOST_ADDRESSES = 8


@message(tag=0x03, cap=64)
@dataclass(frozen=True, slots=True)
class DirectAsk:
    """May I send bulk frames directly? The dialler draws the ticket: nobody tells it what to write to whom."""

    ticket: Annotated[bytes, Length(TICKET_BYTES, TICKET_BYTES)]


@message(tag=0x04, cap=2400)
@dataclass(frozen=True, slots=True)
class DirectOffer:
    """Where to connect with that ticket (nowhere: no addresses), and the secret that the stream's keys come from."""

    secret: Bytes32 = field(repr=False)
    addresses: Annotated[tuple[Annotated[str, Length(1, 256)], ...], Count(0, MOST_ADDRESSES)]


async def dial(own: PeerId, to: PeerId, ticket: bytes, offer: DirectOffer) -> tuple[socket.socket, Channel]:
    """Connect where `to` said, to all places at once; the first that proves to be `to` counts.

    Raises UnreachableError, after `DIAL_SECONDS` at the latest.
    """
    attempts = [asyncio.ensure_future(_attempt(own, to, ticket, offer, text)) for text in offer.addresses]
    reason = "it offers no direct lane"
    winner: socket.socket | None = None
    try:
        async with asyncio.timeout(DIAL_SECONDS):
            for attempt in asyncio.as_completed(attempts):
                try:
                    sock, ends = await attempt
                except (OSError, UnreachableError) as error:
                    reason = getattr(error, "strerror", None) or str(error)
                    continue
                winner = sock
                return sock, ends
    except TimeoutError:
        reason = f"no answer in {DIAL_SECONDS:g} s"
    finally:
        for one in attempts:
            one.cancel()
        for late in await asyncio.gather(*attempts, return_exceptions=True):
            if isinstance(late, tuple) and late[0] is not winner:
                late[0].close()
    raise UnreachableError(f"no direct way to {to.short}: {reason}")


async def _attempt(
    own: PeerId, to: PeerId, ticket: bytes, offer: DirectOffer, text: str
) -> tuple[socket.socket, Channel]:
    loop = asyncio.get_running_loop()
    try:
        place = parse(text, peer=False)
    except AddressError as error:
        raise UnreachableError(error.message) from None
    if place.transport != "tcp" or place.relayed:
        raise UnreachableError(f"{text} is no place for TCP")
    found = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    family, *_, where = found[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, where)
        ends = channel(offer.secret, ticket, own, to, dialling=True)
        await loop.sock_sendall(sock, ticket + hello(ends))
        ends.into.open(await exactly(sock, SEAL_BYTES), memoryview(bytearray()))
    except BaseException:
        sock.close()
        raise
    return sock, ends


def hello(ends: Channel) -> bytes:
    """The first record of a direction: a seal of nothing."""
    record = bytearray(SEAL_BYTES)
    ends.out.seal([b""], memoryview(record))
    return bytes(record)


async def exactly(sock: socket.socket, count: int) -> memoryview:
    """The next `count` bytes and not one more: what follows is the frames'. Raises UnreachableError at the end."""
    loop, data, have = asyncio.get_running_loop(), memoryview(bytearray(count)), 0
    while have < count:
        got = await loop.sock_recv_into(sock, data[have:])
        if not got:
            raise UnreachableError("the connection ended at once")
        have += got
    return data
