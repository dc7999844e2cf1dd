"""A peer's window on the hub: the index says where it is, a journalled sender gets proposals and rollbacks there."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Coroutine
from typing import Any

from dht.errors import MurmurationError, UnreachableError
from ledger.chain.errors import RevertedError
from ledger.chain.journal import Intent, Journal
from ledger.chain.rpc import RpcPool
from ledger.chain.sender import Fulfilled, Sender
from ledger.chain_view import Head, HubIntent
from ledger.electorate import Electorate
from ledger.explorer.facts import epochs, standing
from ledger.indexer.abi import Interface
from ledger.indexer.store import Index
from ledger.indexer.sync import Indexer
from ledger.usage_fees import count_fees

_log = logging.getLogger(__name__)


class HubView:
    """Implements `ledger.chain_view.ChainView`. Without a sender, others' wallets have to submit."""

    def __init__(
        self,
        rpc: RpcPool,
        index: Index,
        interface: Interface,
        hub: str,
        wallet: tuple[Sender, Journal] | None = None,
    ) -> None:
        """`hub`: its 0x-prefixed address. `wallet`: who pays for transactions, and their journal."""
        self._rpc, self._index, self._interface, self._hub = rpc, index, interface, hub
        self._indexer = Indexer(rpc, index, interface)
        self._wallet = wallet
        self._landing: dict[str, asyncio.Task[None]] = {}
        self._wanted: dict[str, HubIntent] = {}
        self._looking = asyncio.Lock()

    async def head(self) -> Head:
        """Where the hub is, by its events. Raises UnreachableError when no node answers."""
        async with self._looking:
            await self._indexer.sync()
            head = self._head()
        await self._look_after(head)
        return head

    async def submit(self, intent: HubIntent) -> None:
        """Journal it and see to it. Raises StorageError."""
        if self._wallet is None:
            return
        self._wanted[intent.key] = intent
        self._wallet[1].open(self._transaction(intent.key))
        self._land(intent.key)

    async def close(self) -> None:
        """Stop sending; what was journalled goes on at the next start."""
        for task in self._landing.values():
            task.cancel()
        await asyncio.gather(*self._landing.values(), return_exceptions=True)

    # --- what the events say --------------------------------------------------------------------------------------

    def _head(self) -> Head:
        last = self._index.last()
        rotations = self._index.events("AttestorsRotated")
        if last is None or not rotations:
            raise UnreachableError("the node has not reached the block of the contracts yet", remedy="wait")
        found = standing(epochs(self._index))
        active = [epoch.number for epoch in found if epoch.active_at <= last.timestamp]
        rolled_back = self._index.events("CheckpointRolledBack")
        payments = [
            ((row["block"], row["log_index"]), int(row["contributors"])) for row in self._index.events("UsagePaid")
        ]
        return Head(
            found[-1].header if found else None,
            int(rolled_back[-1]["fork_nonce"]) if rolled_back else 0,
            max(active, default=0),
            _electorate(rotations[-1]),
            count_fees([(epoch.block, epoch.log_index) for epoch in found], payments),
            tuple(epoch.header for epoch in found[:-1] if epoch.number >= max(active, default=0)),
            int(rolled_back[-1]["epoch"]) if rolled_back else 0,
        )

    # --- transactions ---------------------------------------------------------------------------------------------

    def _transaction(self, key: str) -> Intent:
        assert self._wallet is not None
        wanted = self._wanted[key]
        # The first set of signatures stays, also after a restart: with another one it would be a second transaction.
        begun = self._wallet[1].intent(key)
        if begun is not None:
            return begun
        data = self._interface.call("CheckpointHub", wanted.FUNCTION, *wanted.abi())
        return Intent(key, bytes.fromhex(self._hub[2:]), data)

    def _land(self, key: str) -> None:
        if key not in self._landing:
            task = self._landing[key] = asyncio.get_running_loop().create_task(self._send(key))
            task.add_done_callback(lambda _: self._landing.pop(key, None))

    async def _send(self, key: str) -> None:
        assert self._wallet is not None
        try:
            receipt = await self._wallet[0].land(self._transaction(key), self._fulfilled(key))
        except MurmurationError as error:
            _log.warning("%s did not land yet: %s", self._wanted[key].about, error)
        else:
            _log.info("%s is on the chain%s", self._wanted[key].about, "" if receipt else ", or needed no more")

    def _fulfilled(self, key: str) -> Fulfilled:
        async def fulfilled() -> bool:
            async with self._looking:
                await self._indexer.sync()
                return self._wanted[key].fulfilled(self._head())

        return fulfilled

    async def _look_after(self, head: Head) -> None:
        """Go on with what did not land, and send again what a reorganisation took back."""
        for key, wanted in list(self._wanted.items()):
            if wanted.fulfilled(head):
                continue
            self._land(key)
        if self._wallet is not None and not self._landing:
            again: Coroutine[Any, Any, list[str]] = self._wallet[0].recheck(self._predicate)
            try:
                for key in await again:
                    _log.warning("the chain was reorganised: %s was sent again", key)
            except RevertedError as error:  # from before a restart, and others did it: no reason not to see the hub
                _log.warning("the chain was reorganised: %s", error)

    def _predicate(self, key: str) -> Fulfilled | None:
        return self._fulfilled(key) if key in self._wanted else None


def _electorate(row: dict[str, Any]) -> Electorate:
    addresses = tuple(bytes.fromhex(address[2:]) for address in json.loads(row["attestors"]))
    return Electorate(addresses, tuple(int(weight) for weight in json.loads(row["weights"])))
