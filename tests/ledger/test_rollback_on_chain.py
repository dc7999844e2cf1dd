"""A rollback on the contracts themselves: attestors with journalled senders on an embedded chain, and the explorer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from averaging.chain import Chain
from ledger import rollbacks
from ledger.attestation_log import SqliteAttestationLog
from ledger.attestor import Attestor
from ledger.attestor_guard import SqliteAttestorGuard
from ledger.books import Books
from ledger.chain import artifacts
from ledger.chain.journal import Journal
from ledger.chain.rpc import RpcPool
from ledger.chain.sender import Policy, Sender
from ledger.chain.wallet import Wallet
from ledger.checkpointer import Checkpointer
from ledger.devnet import PASSWORD, Devnet, devnet
from ledger.eip712 import Domain
from ledger.explorer import cli
from ledger.hub_view import HubView
from ledger.indexer.abi import Interface
from ledger.indexer.store import Index
from ledger.rewards import Constants
from ledger.signatures import key_address
from tests.ledger.attestor_net import all_running
from tests.ledger.records import KEYS, RUN, add_round, new_chain

SIZE = 4
POLL = 0.05
EMISSION = 50 * 10**18


class Lane:
    """Delivers frames within the process."""

    def __init__(self, swarm: Swarm, me: Any) -> None:
        self.swarm, self.me = swarm, me

    async def send(self, to, parts, *, bulk=False):
        self.swarm.runners[to].receive(self.me, b"".join(parts))


class Swarm:
    """Attestors of one run whose records are `records`, whichever branch that is."""

    def __init__(self, folder: Path, net: Devnet) -> None:
        self.folder, self.net, self.closing = folder, net, []
        self.records: Chain = new_chain(SIZE)
        self.views, self.runners, self.attestors, self.journals = {}, {}, [], []
        interface = Interface({name: artifacts.load(name).abi for name in artifacts.CONTRACTS})
        for number, (key, keystore) in enumerate(zip(KEYS, list(net.keystores.values())[1:], strict=False)):
            if number < SIZE:
                self.add(key, folder / f"peer {number}", Wallet.load(keystore, PASSWORD), interface)

    def add(self, key, folder: Path, wallet: Wallet, interface: Interface) -> None:
        deployment = self.net.deployment
        hub = deployment.contracts["CheckpointHub"]
        rpc = RpcPool(deployment.rpc, deployment.chain_id)
        index, journal = Index(folder / "index.sqlite", deployment, interface), Journal(folder / "wallet")
        guard, seen = SqliteAttestorGuard(folder / "guard.sqlite"), SqliteAttestationLog(folder / "seen.sqlite")
        view = HubView(rpc, index, interface, hub, (Sender(rpc, wallet, journal, Policy(poll=POLL)), journal))
        self.closing += [guard.close, seen.close, index.close, journal.close, rpc.close, view.close]
        domain = Domain(deployment.chain_id, bytes.fromhex(hub[2:]))
        constants = Constants(3, EMISSION, 10**30, 7000, 131072)
        attestor = Attestor(key, domain, Books(constants), lambda: self.records, guard, seen)
        lane, evidence = Lane(self, key.peer_id), folder / "evidence"
        self.runners[key.peer_id] = Checkpointer(attestor, view, lane, evidence, lambda round_: None, poll=POLL)
        self.views[key.peer_id] = view
        self.attestors.append(attestor)
        self.journals.append(journal)

    def switch(self, records: Chain) -> None:
        """Another branch wins everywhere."""
        self.records = records
        for runner in self.runners.values():
            runner.advanced()

    def heads(self) -> set[tuple[int, int]]:
        """(fork nonce, epoch) as each attestor has seen the hub last."""
        heads = (attestor._head for attestor in self.attestors)
        return {(head.fork_nonce, head.epoch) if head else (-1, -1) for head in heads}


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Swarm]:
    attestors = {"0x" + key_address(key.peer_id).hex(): 1 for key in KEYS[:SIZE]}
    async with devnet(folder, "embedded", run_id=RUN, attestors=attestors) as net:
        for number in range(SIZE):
            (folder / f"peer {number}").mkdir()
        swarm = Swarm(folder, net)
        try:
            async with all_running(swarm.runners.values()):
                yield swarm
        finally:
            for close in reversed(swarm.closing):
                if asyncio.iscoroutine(closed := close()):
                    await closed


async def until(swarm: Swarm, heads: set[tuple[int, int]]) -> None:
    """Wait until all attestors see the hub there, at most half a minute."""
    async with asyncio.timeout(30):
        while swarm.heads() != heads:  # noqa: ASYNC110 - the chain has no event for it
            await asyncio.sleep(POLL)


def branch(salt: bytes) -> Chain:
    chain = new_chain(SIZE)
    for _ in range(6):
        add_round(chain, salt=salt)
    return chain


async def explored(swarm: Swarm, capsys, *command: str) -> Any:
    """What a command of the explorer prints, asked of the same node."""
    capsys.readouterr()

    def call() -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, "--json", "--deployment", str(swarm.net.file), "--index", str(swarm.folder / "own")])
        assert not ended.value.code

    await asyncio.to_thread(call)
    return json.loads(capsys.readouterr().out)


async def test_a_rollback_lands_once_and_the_epochs_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rollbacks, "PATIENCE", 0.5)
    async with running(tmp_path) as swarm:
        lost, won = branch(b"lost"), branch(b"won")
        await until(swarm, {(0, 0)})
        swarm.switch(lost)
        await until(swarm, {(0, 2)})
        swarm.switch(won)
        await until(swarm, {(1, 2)})
        rows = [view._index.events("CheckpointRolledBack") for view in swarm.views.values()]
        assert [[(row["epoch"], row["fork_nonce"]) for row in each] for each in rows] == [[(1, 1)]] * SIZE
        sent = [journal.first_nonce("rollback/") for journal in swarm.journals]
        assert sum(nonce is not None for nonce in sent) == 1
        headers = {attestor._head.checkpoint for attestor in swarm.attestors}
        assert {header.model_root for header in headers} == {won.record(6).state_root}
        epochs = await explored(swarm, capsys, "epochs")
        states = [(row["fork_nonce"], row["state"], row["model_root"]) for row in epochs]
        assert states == [
            (nonce, state, f"0x{records.record(3 * epoch).state_root.hex()}")
            for nonce, state, records in ((0, "rolled back", lost), (1, "pending", won))
            for epoch in (1, 2)
        ]
