"""The light client: records and model of a run from peers, with no data folder, no daemon, and belief in none of them.

Peers are asked one after another, in the order given, until one has served what holds. Who fails, lies, or takes too
long is named with the reason, and the next one is asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from averaging.state_chunks import NotHeldError
from dht.addresses import AddressError
from dht.errors import ConfigError, DataError, MurmurationError, ProtocolError, UnreachableError
from dht.host import Host
from dht.identity import Identity, PeerId
from ledger.explorer.dialler import Dialler, dialable
from ledger.explorer.fetch import RecordsOf, StateFetch
from ledger.explorer.history import History, founder_of

if TYPE_CHECKING:
    from ledger.explorer.options import Common, FromPeers

T = TypeVar("T")
MOST_PEERS = 32
MOST_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class Served:
    """What came of asking one peer for one thing. `lacks`: it answered truly that it does not have it."""

    address: str
    what: Literal["records", "model"]
    verdict: Literal["ok", "lacks", "unreachable", "bad"]
    text: str


class LightClient:
    """Asks the peers at `addresses` about `run`, each for `seconds` at most per thing asked for."""

    def __init__(self, addresses: Sequence[str], run: bytes, founder: PeerId, seconds: float) -> None:
        """Raises ConfigError for addresses that cannot be dialled without a daemon."""
        if len(addresses) > MOST_PEERS:
            raise ConfigError(f"{len(addresses)} peers are too many", remedy=f"give {MOST_PEERS} at most")
        if not 0 < seconds <= MOST_SECONDS:
            raise ConfigError(
                f"{seconds:g} s is no time for a peer", remedy=f"give --peer-timeout 1 to {MOST_SECONDS:g}"
            )
        for address in addresses:
            if not dialable(address):
                remedy = "give an address with /tcp/ and no relay: /ip4/203.0.113.5/tcp/31337/p2p/16Uiu2..."
                raise AddressError(f"{address} can be dialled by a daemon only", remedy=remedy)
        self._addresses, self._run, self._founder, self._seconds = tuple(addresses), run, founder, seconds
        self.served: list[Served] = []

    async def records(self, round_: int) -> History:
        """The certified records of the rounds up to `round_`, from the founder's founding on.

        Raises UnreachableError when no peer answered, DataError when those that did have none that hold.
        """

        async def fetch(host: Host, me: Identity, peer: PeerId) -> tuple[History, str]:
            chain, size = await RecordsOf(host, me, peer, self._run).chain(self._founder, round_)
            history = History(None, chain, (), founder_known=True)
            return history, f"rounds 0 to {chain.head.round}, {size:,} bytes"

        found = await self._first("records", fetch)
        if found is None:
            raise self._nobody()
        return found

    async def model(self, root: bytes) -> bytes | None:
        """The root recomputed over all chunks of the state with this root; None when no peer gave them all.

        Raises StorageError when what has this root is no state of the run: the quorum that signed it lied.
        """
        state = StateFetch(self._run, root)

        async def fetch(host: Host, me: Identity, peer: PeerId) -> tuple[bytes, str]:
            before = state.size
            found = await state.go_on(host, peer)
            return found, f"{state.size - before:,} bytes" + (f" after the {before:,} of others" if before else "")

        return await self._first("model", fetch)

    async def _first(
        self,
        what: Literal["records", "model"],
        fetch: Callable[[Host, Identity, PeerId], Awaitable[tuple[T, str]]],
    ) -> T | None:
        liars = {served.address for served in self.served if served.verdict == "bad"}
        for address in self._addresses:
            if address in liars:
                continue
            try:
                async with asyncio.timeout(self._seconds), _dialled(address) as (host, me, peer):
                    found, text = await fetch(host, me, peer)
            except TimeoutError:
                self.served.append(Served(address, what, "unreachable", f"not done in {self._seconds:g} s"))
            except (DataError, UnreachableError, ProtocolError) as error:
                text = error.message.removeprefix(f"{address}: ")
                self.served.append(Served(address, what, _verdict(error), text))
            else:
                self.served.append(Served(address, what, "ok", text))
                return found
        return None

    def _nobody(self) -> MurmurationError:
        reasons = "; ".join(f"{served.address}: {served.text}" for served in self.served)
        if all(served.verdict == "unreachable" for served in self.served):
            return UnreachableError(f"no peer could be asked: {reasons}", remedy="give --peer of one that runs")
        return DataError(f"no peer gave records that hold: {reasons}", remedy="give --peer of another one")


def light_client(common: Common, peers: FromPeers, run: bytes) -> LightClient | None:
    """The light client that these options ask for; None for none. Raises ConfigError, DataError."""
    if not peers.peer:
        if peers.founder is not None:
            raise ConfigError("--founder is for records from --peer", remedy="leave it out, or give --run run.toml")
        return None
    if common.records is not None:
        raise ConfigError("records come from --records or from --peer", remedy="give one of them")
    if (common.run is None) == (peers.founder is None):
        raise ConfigError(
            "what strangers send is checked from the run's founder on",
            remedy="give --run run.toml, or --founder and the founder's peer id",
        )
    founder = founder_of(common.run) if common.run else parse_founder(peers.founder or "")
    return LightClient(peers.peer, run, founder, peers.peer_timeout)


def parse_founder(text: str) -> PeerId:
    """A founder's peer id. Raises ConfigError."""
    try:
        return PeerId.parse(text)
    except MurmurationError:
        raise ConfigError(f"{text!r} is no peer id", remedy="the founder of a run is in its run.toml") from None


@asynccontextmanager
async def _dialled(address: str) -> AsyncIterator[tuple[Host, Identity, PeerId]]:
    """A host of its own under a key of its own, connected to who proved to be the peer that the address names.

    One for each peer: py-libp2p does not dial a peer again within minutes of a failure.
    """
    logging.getLogger("dht.host").setLevel(logging.ERROR)  # what was refused is in the report
    me = Identity.generate()
    host = await Host.over(await Dialler.launch(me), me.peer_id)
    try:
        peer = await host.connect(address)
        yield host, me, peer
    finally:
        await host.stop()


def _verdict(error: MurmurationError) -> Literal["lacks", "unreachable", "bad"]:
    if isinstance(error, NotHeldError | DataError):
        return "lacks"
    return "unreachable" if isinstance(error, UnreachableError) else "bad"
