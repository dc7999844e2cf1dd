"""Dialling one address, with a diagnosis that a person can act on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from dht.addresses import Address, AddressError, parse
from dht.errors import UnreachableError
from dht.identity import PeerId

DIAL_TIMEOUT = 8.0
BACKOFF = "dial backoff"
"""p2pd's word for an address that failed moments ago."""


class Verdict(StrEnum):
    """How a dial went."""

    OK = "ok"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    WRONG_PEER = "wrong peer id"
    NOT_AN_ADDRESS = "not a multiaddr"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Dial:
    """The outcome of dialling one address; `milliseconds` it took, `detail` what went wrong beyond the verdict."""

    address: str
    verdict: Verdict
    milliseconds: float = 0.0
    peer: PeerId | None = None
    detail: str = ""

    def __str__(self) -> str:
        tail = f" {self.milliseconds:.0f} ms" if self.verdict is Verdict.OK else f" ({self.detail})" * bool(self.detail)
        return f"{self.address}: {self.verdict}{tail}"


async def dial(
    address: str, connect: Callable[[PeerId, Sequence[str]], Awaitable[None]], timeout: float = DIAL_TIMEOUT
) -> Dial:
    """Dial `address`, with `connect` for the libp2p part, within `timeout` seconds. Raises nothing."""
    try:
        target = parse(address)
    except AddressError as error:
        return Dial(address, Verdict.NOT_AN_ADDRESS, detail=error.message)
    assert target.peer is not None  # parse demands one
    started = time.perf_counter()
    try:
        async with asyncio.timeout(timeout):
            await _probe(target)
            await connect(target.peer, [address])
    except TimeoutError:
        return Dial(address, Verdict.TIMEOUT, timeout * 1e3, target.peer)
    except UnreachableError as error:
        return Dial(address, _verdict(error.message), 0.0, target.peer, _detail(error.message, address))
    except ConnectionRefusedError:
        return Dial(address, Verdict.REFUSED, 0.0, target.peer)
    except OSError as error:
        return Dial(address, Verdict.UNREACHABLE, 0.0, target.peer, error.strerror or str(error))
    return Dial(address, Verdict.OK, (time.perf_counter() - started) * 1e3, target.peer)


async def listens(address: str, timeout: float = DIAL_TIMEOUT) -> bool:
    """Whether something accepts TCP connections at a multiaddress; False for relayed and other transports."""
    try:
        target = parse(address)
        if target.transport != "tcp" or target.relayed:
            return False
        async with asyncio.timeout(timeout):
            await _probe(target)
    except (AddressError, OSError):
        return False
    return True


async def _probe(target: Address) -> None:
    """A bare TCP dial first: it tells `refused` from `timeout`, and p2pd would remember a failure and back off."""
    if target.transport != "tcp" or target.relayed:
        return
    _, writer = await asyncio.open_connection(target.host, target.port)
    writer.transport.abort()


_VERDICTS: tuple[tuple[str, Verdict], ...] = (
    ("peer id mismatch", Verdict.WRONG_PEER),
    ("connection refused", Verdict.REFUSED),
    ("i/o timeout", Verdict.TIMEOUT),
    ("deadline exceeded", Verdict.TIMEOUT),
)


def _verdict(cause: str) -> Verdict:
    return next((verdict for text, verdict in _VERDICTS if text in cause), Verdict.UNREACHABLE)


def _detail(cause: str, address: str) -> str:
    """What p2pd says about this address; it lists every address of the peer that it ever tried."""
    place = f"[{address.rsplit('/p2p/', 1)[0]}] "
    attempts = cause.split(" * ")
    mine = next((attempt.partition(place)[2] for attempt in attempts if place in attempt), cause)
    return mine.removeprefix("failed to negotiate security protocol: ").removeprefix("peer id mismatch: ").strip()
