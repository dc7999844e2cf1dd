"""A peer's window on the hub: the index says where it is, a journalled sender gets proposals there."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from dht.errors import MurmurationError, UnreachableError
from ledger.chain.journal import Intent, Journal
from ledger.chain.rpc import RpcPool
from ledger.chain.sender import Fulfilled, Sender
from ledger.chain_view import Head, HubIntent, is_hub_intent, journalled
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
        journal = self._wallet[1]
        # The first set of signatures stays, also after a restart: with another one it would be a second transaction.
        if (begun := journal.intent(intent.key)) is None:
            data = self._interface.call("CheckpointHub", intent.FUNCTION, *intent.abi())
            journal.open(begun := Intent(intent.key, bytes.fromhex(self._hub[2:]), data))
        self._land(begun, intent)

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

    def _land(self, intent: Intent, wanted: HubIntent) -> None:
        if intent.key not in self._landing:
            task = asyncio.get_running_loop().create_task(self._send(intent, wanted))
            self._landing[intent.key] = task
            task.add_done_callback(lambda _: self._landing.pop(intent.key, None))

    async def _send(self, intent: Intent, wanted: HubIntent) -> None:
        assert self._wallet is not None
        try:
            receipt = await self._wallet[0].land(intent, self._fulfilled(wanted))
        except MurmurationError as error:
            _log.warning("%s did not land yet: %s", wanted.about, error)
        else:
            _log.info("%s is on the chain%s", wanted.about, "" if receipt else ", or needed no more")

    def _fulfilled(self, wanted: HubIntent) -> Fulfilled:
        async def fulfilled() -> bool:
            async with self._looking:
                await self._indexer.sync()
                return wanted.fulfilled(self._head())

        return fulfilled

    async def _look_after(self, head: Head) -> None:
        """Go on with what this process or one before it began, and send again what a reorganisation took back.

        Only what can succeed now: what needs another checkpoint first would be refused, and pay for that.
        """
        if self._wallet is None:
            return
        sender, journal = self._wallet
        gone = {intent.key for intent in await sender.taken_back()}
        for intent, tx_hash in journal.unsettled():
            if not is_hub_intent(intent.key) or (tx_hash is not None and intent.key not in gone):
                continue
            wanted = self._wanted(intent)
            if wanted.possible(head) or wanted.fulfilled(head):
                if intent.key in gone and intent.key not in self._landing:
                    _log.warning("the chain was reorganised: %s has to land again", wanted.about)
                self._land(intent, wanted)

    def _wanted(self, intent: Intent) -> HubIntent:
        """What a journalled transaction is for."""
        call = self._interface.read_call(intent.data)
        assert call is not None, intent.key
        return journalled(intent.key, tuple(call[1].values()))


def _electorate(row: dict[str, Any]) -> Electorate:
    addresses = tuple(bytes.fromhex(address[2:]) for address in json.loads(row["attestors"]))
    return Electorate(addresses, tuple(int(weight) for weight in json.loads(row["weights"])))
