"""A peer's window on the hub through restarts and reorganisations: the deployed contracts on an embedded chain."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import repeat

import pytest

from ledger.books import Books
from ledger.chain.journal import Journal
from ledger.chain.rpc import RpcPool
from ledger.chain.sender import Policy, Sender
from ledger.chain.wallet import Wallet
from ledger.chain_view import Propose
from ledger.checkpoint import NOTHING
from ledger.devnet import PASSWORD, devnet
from ledger.eip712 import Domain
from ledger.explorer.facts import epochs
from ledger.hub_view import HubView
from ledger.indexer.store import Index
from ledger.signatures import key_address, pack, sign
from tests.ledger.attestor_net import CONSTANTS
from tests.ledger.records import KEYS, RUN, add_round, new_chain

ATTESTORS = {"0x" + key_address(key.peer_id).hex(): 1 for key in KEYS[:4]}


class Ledger:
    """A hub, its checkpoints to come, and views on it, each with a disk and a wallet of its own."""

    def __init__(self, net, rpc, interface, folder) -> None:
        self.rpc, self._interface, self._folder, self._net = rpc, interface, folder, net
        self.hub = net.deployment.contracts["CheckpointHub"]
        self.domain = Domain(net.deployment.chain_id, bytes.fromhex(self.hub[2:]))
        self.chain, self.books = new_chain(), Books(CONSTANTS)
        self.wallets = [Wallet.load(path, PASSWORD) for path in net.keystores.values()][1:]
        self.parent = NOTHING

    def proposal(self, epoch: int, signers=(0, 1, 2), parent=None) -> Propose:
        """The checkpoint of an epoch, behind the last one of which this was asked."""
        while self.chain.head.round < CONSTANTS.last_round(epoch):
            add_round(self.chain)
        header = self.books.contents(self.chain, epoch, ()).checkpoint(0, self.parent if parent is None else parent)
        self.parent = header.hash()
        return Propose(header, *pack({index: sign(KEYS[index], header.digest(self.domain)) for index in signers}))

    @asynccontextmanager
    async def view(self, wallet: int = 0):
        """One life of a process: a view and its journal, which are closed at the end."""
        folder = self._folder / str(wallet)
        journal = Journal(folder)
        index = Index(folder / "index.sqlite", self._net.deployment, self._interface)
        sender = Sender(self.rpc, self.wallets[wallet], journal, Policy(poll=0.01))
        view = HubView(self.rpc, index, self._interface, self.hub, (sender, journal))
        try:
            yield view, journal
        finally:
            await view.close()
            index.close()
            journal.close()

    async def until(self, view: HubView, condition) -> None:
        """Look at the hub until something holds of its head. AssertionError at the deadline."""
        async with asyncio.timeout(20):
            for pause in repeat(0.005):
                if condition(await view.head()):
                    return
                await asyncio.sleep(pause)

    async def anchor(self, view: HubView, epoch: int) -> None:
        """Have the next checkpoint land."""
        await self.rpc.call("evm_increaseTime", [2])
        await view.submit(self.proposal(epoch))
        await self.until(view, lambda head: head.epoch == epoch)

    async def sent(self, wallet: int = 0) -> int:
        """Transactions of a wallet that are on the chain, refused ones included."""
        return int(await self.rpc.call("eth_getTransactionCount", [self.wallets[wallet].address, "latest"]), 16)


@pytest.fixture
async def ledger(tmp_path, interface):
    async with (
        devnet(tmp_path / "net", "embedded", run_id=RUN, attestors=ATTESTORS) as net,
        RpcPool(net.deployment.rpc, net.deployment.chain_id) as rpc,
    ):
        yield Ledger(net, rpc, interface, tmp_path)


async def finalize(ledger, view, journal) -> None:
    """Nothing is open once all blocks are final."""
    await ledger.rpc.call("anvil_mine", [hex(100)])
    await ledger.until(view, lambda head: journal.unsettled() == [])


async def test_what_a_process_sent_and_did_not_write_down_is_found_by_the_next(ledger):
    async with ledger.view() as (view, journal):
        await ledger.anchor(view, 1)
        await ledger.until(view, lambda head: journal.unsettled()[0][1] is not None)
        # As it is on the disk of a process that died right after it had sent.
        journal._db.execute("update intent set tx_hash = null, block = null")
    async with ledger.view() as (view, journal):
        await finalize(ledger, view, journal)
    assert await ledger.sent() == 1


async def test_what_was_taken_back_while_the_process_was_away_lands_again_in_order(ledger):
    """Epoch 10 sorts before 9, and is refused without it."""
    async with ledger.view() as (view, journal):
        for epoch in range(1, 11):
            await ledger.anchor(view, epoch)
        await ledger.until(view, lambda head: all(tx_hash for _, tx_hash in journal.unsettled()))
    await ledger.rpc.call("anvil_reorg", [2, []])
    assert await ledger.sent() == 8
    async with ledger.view() as (view, journal):
        await ledger.until(view, lambda head: head.epoch == 10)
        await finalize(ledger, view, journal)
        assert [epoch.number for epoch in epochs(view._index)] == list(range(1, 11))
    assert await ledger.sent() == 10


async def test_what_was_taken_back_and_done_by_somebody_else_is_over(ledger):
    async with ledger.view(0) as (view, journal):
        await ledger.anchor(view, 1)
        await ledger.until(view, lambda head: journal.unsettled()[0][1] is not None)
    await ledger.rpc.call("anvil_reorg", [1, []])
    async with ledger.view(1) as (other, _):
        await other.submit(ledger.proposal(1, signers=(1, 2, 3), parent=NOTHING))
        await ledger.until(other, lambda head: head.epoch == 1)
    async with ledger.view(0) as (view, journal):
        await finalize(ledger, view, journal)
    assert (await ledger.sent(0), await ledger.sent(1)) == (0, 1)


async def test_a_checkpoint_that_waits_for_its_parent_costs_nothing(ledger):
    async with ledger.view(0) as (view, journal), ledger.view(1) as (other, others):
        await ledger.anchor(other, 1)
        await ledger.anchor(view, 2)
        await ledger.until(other, lambda head: head.epoch == 2 and others.unsettled()[0][1] is not None)
        await ledger.until(view, lambda head: journal.unsettled()[0][1] is not None)
        await ledger.rpc.call("anvil_reorg", [2, []])
        for _ in range(5):
            assert (await view.head()).epoch == 0
        assert await ledger.sent(0) == 0
        await ledger.until(other, lambda head: head.epoch == 1)
        await ledger.rpc.call("evm_increaseTime", [2])
        await ledger.until(view, lambda head: head.epoch == 2)
    assert (await ledger.sent(0), await ledger.sent(1)) == (1, 1)


async def test_the_first_set_of_signatures_stays_also_after_somebody_else_had_done_it(ledger):
    async with ledger.view(0) as (view, journal), ledger.view(1) as (other, _):
        await ledger.anchor(other, 1)
        await view.submit(ledger.proposal(1, parent=NOTHING))
        await ledger.until(view, lambda head: journal.unsettled() == [])
    assert await ledger.sent(0) == 0
    await ledger.rpc.call("anvil_reorg", [1, []])
    async with ledger.view(0) as (view, _):
        await view.submit(ledger.proposal(1, signers=(1, 2, 3), parent=NOTHING))
        await ledger.until(view, lambda head: head.epoch == 1)
    assert await ledger.sent(0) == 1
