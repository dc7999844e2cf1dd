"""Four peers' processes on one anvil with the deployed contracts, and what must hold of them at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dht.wire import encode
from ledger.books import Books
from ledger.chain.deploy import UNIT, Terms
from ledger.chain.rpc import RpcPool
from ledger.checkpoint import NOTHING, Checkpoint
from ledger.devnet import ACCOUNTS, PASSWORD, Devnet, devnet
from ledger.explorer import wiring
from ledger.rewards import Constants
from ledger.signatures import key_address
from peer.manifest import LedgerChoice, Manifest
from tests.ledger.e2e.gateway import Gateway, Hold
from tests.ledger.e2e.peer_process import Settings
from tests.ledger.e2e.processes import PeerProcess
from tests.ledger.records import KEYS, add_round, new_chain

PEERS, ROUNDS, EPOCHS = 4, 3, 80
"""Rounds in an epoch; epochs of which there are records."""
PATIENCE = 60.0
"""Seconds for what takes a few on an idle machine. Only a failing test waits that long."""
GENESIS = 100_000 * UNIT
"""What the devnet gives each of its accounts."""
BLOCKS = 100
"""More than anvil's finalized block is behind its newest."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """A checkpoint on the chain: block and transaction as hex text, and the hash that the hub gave it."""

    block: str
    tx: str
    header: Checkpoint
    hash: bytes


class Network:
    """The whole. `epoch` is the last one whose records were released."""

    def __init__(self, net: Devnet, rpc: RpcPool, gateway: Gateway, manifest: Manifest, folder: Path) -> None:
        self.rpc, self.gateway, self.manifest, self.deployment, self.epoch = rpc, gateway, manifest, net.deployment, 0
        self.truth = new_chain(PEERS, manifest.run_id)
        for _ in range(ROUNDS * EPOCHS):
            add_round(self.truth)
        segment = self.truth.segment(0)
        assert len(segment.links) == ROUNDS * EPOCHS
        records, password = folder / "records", folder / "password"
        records.write_bytes(encode(segment))
        password.write_text(PASSWORD)
        self.peers = []
        self._wallets = list(net.keystores)[1 : PEERS + 1]
        for number, wallet in enumerate(self._wallets):
            keys = net.keystores[wallet], password
            places = map(str, (records, net.file, gateway.url(number), *keys, folder / str(number)))
            self.peers.append(PeerProcess(Settings(number, manifest.dumps(), *places), folder))
        self.interface = wiring.interface()
        self.hub = net.deployment.contracts["CheckpointHub"]

    async def until(self, what: str, condition: Callable[[], bool | Awaitable[bool]]) -> None:
        """Wait for what the processes bring about. AssertionError at the deadline, or when one ends by itself."""
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    found = condition()
                    if found if isinstance(found, bool) else await found:
                        return
                    for peer in self.peers:
                        assert peer.process is None or peer.alive, f"{peer.number} ended: {_tail(peer)}"
                    await asyncio.sleep(0.02)
        except TimeoutError:
            told = "\n".join(f"{peer.number}: {peer.events[-2:]} {_tail(peer)}" for peer in self.peers)
            raise AssertionError(f"waited in vain for: {what}\n{told}") from None

    def release(self, epochs: int = 1) -> None:
        """The rounds of the next epochs are over, at all who run."""
        self.epoch += epochs
        for peer in self.peers:
            if peer.alive:
                peer.release(self.epoch * ROUNDS)

    async def restart(self, peer: PeerProcess) -> None:
        """Start a killed peer again; it caught up with the rounds. Returns once it has read all events."""
        read = peer.number, "eth_getLogs"
        self.gateway.answered[read] = 0
        await peer.start(self.epoch * ROUNDS)
        await self.until("a look at the chain", lambda: self.gateway.answered[read] > 0)

    async def landed(self) -> None:
        """Wait until all who run have seen the last epoch's checkpoint on the chain."""
        alive = [peer for peer in self.peers if peer.alive]
        await self.until(
            f"the checkpoint of epoch {self.epoch}",
            lambda: all(peer.last("checkpoint").get("epoch") == self.epoch for peer in alive),
        )

    async def train(self, epochs: int) -> None:
        """Epoch after epoch, each anchored before the next is over."""
        for _ in range(epochs):
            self.release()
            await self.landed()

    async def proposed(self) -> list[Proposed]:
        """The checkpoints of the canonical chain in its order, as the node logs them."""
        block = hex(self.deployment.block)
        logs = await self.rpc.call("eth_getLogs", [{"address": self.hub, "fromBlock": block, "toBlock": "latest"}])
        found = []
        for log in logs:
            entry, values = self.interface.read_log(log) or (None, {})
            if entry is not None and entry.name == "CheckpointProposed":
                header = Checkpoint(*values["header"].values())
                found.append(Proposed(log["blockHash"], log["transactionHash"], header, values["hash"]))
        return found

    async def sent(self) -> int:
        """Transactions of all peers' wallets on the chain, refused ones included."""
        counts = [await self.rpc.call("eth_getTransactionCount", [each, "latest"]) for each in self._wallets]
        return sum(int(count, 16) for count in counts)

    async def all_there(self) -> bool:
        """Whether the canonical chain has a checkpoint of each epoch that is over."""
        return len(await self.proposed()) == self.epoch

    async def hold_submitter(self, when: Literal["before", "after"]) -> tuple[PeerProcess, Hold]:
        """End an epoch, and catch who submits it with its transaction sent, or about to be, and no answer yet."""
        holds = self.gateway.holds = {number: Hold("eth_sendRawTransaction", when) for number in range(PEERS)}
        self.release()
        await self.until("somebody to submit", lambda: any(hold.caught.is_set() for hold in holds.values()))
        (number,) = (number for number, hold in holds.items() if hold.caught.is_set())
        self.gateway.holds = {number: holds[number]}
        return self.peers[number], holds[number]

    async def check(self) -> None:
        """Everything that must hold once all is quiet; many blocks are mined, so that all is final."""
        await self.until("all checkpoints", self.all_there)
        await self.rpc.call("anvil_mine", [hex(BLOCKS)])
        proposed = await self.proposed()
        assert [each.header.epoch for each in proposed] == list(range(1, self.epoch + 1))
        parent, books = NOTHING, Books(self._constants())
        for each in proposed:
            assert each.header == books.contents(self.truth, each.header.epoch, ()).checkpoint(0, parent)
            parent = each.header.hash()
            assert parent == each.hash
        places = [(each.block, each.hash) for each in proposed]
        await self.until("all indexes agree", lambda: all(indexed(peer) == places for peer in self.peers))
        await self.until("all journals settled", lambda: all(unsettled(peer) == [] for peer in self.peers))
        last = self.epoch * ROUNDS
        await self.until(
            "all rounds final", lambda: all(peer.last("final").get("round") == last for peer in self.peers)
        )
        headers = {each.header.epoch: each.header.encode() for each in proposed}
        for peer in self.peers:
            signed = peer.rows("guard.sqlite", "select epoch, header from promise")
            assert all(header == headers[int.from_bytes(epoch, "big")] for epoch, header in signed)
            assert peer.evidence() == [] and peer.last("refused") == {}

    def _constants(self) -> Constants:
        """What the devnet deploys with, and the manifest says."""
        choice, codec = self.manifest.ledger, self.manifest.codec
        cap = Terms.cap - ACCOUNTS * GENESIS
        return Constants(ROUNDS, Terms.emission, cap, choice.tokens_bps, codec.chunk_elements * codec.ring_bits // 8)


def unsettled(peer: PeerProcess) -> list[Any]:
    """Intents in a peer's journal that are not fulfilled for good."""
    return peer.rows("wallet/transactions.sqlite", "select key from intent where not settled")


def indexed(peer: PeerProcess) -> list[tuple[str, bytes]]:
    """What a peer's index says: block hash and checkpoint hash of each proposal."""
    query = "select b.hash, p.hash from checkpoint_proposed p join block b on b.number = p.block order by p.block"
    return [(block, bytes.fromhex(hash_[2:])) for block, hash_ in peer.rows("index.sqlite", query)]


def _tail(peer: PeerProcess) -> str:
    return peer.stderr.read_text()[-1500:] if peer.stderr.exists() else ""


@asynccontextmanager
async def network(folder: Path) -> AsyncIterator[Network]:
    """Start the chain, deploy, start the peers; end them all, whatever happens."""
    founder = str(KEYS[0].peer_id)
    manifest = Manifest.demo(founder, genesis_peers=PEERS, ledger=LedgerChoice(rounds_per_checkpoint=ROUNDS))
    attestors = {"0x" + key_address(key.peer_id).hex(): 1 for key in KEYS[:PEERS]}
    async with (
        devnet(folder / "net", "anvil", run_id=manifest.run_id, attestors=attestors) as net,
        Gateway(net.deployment.rpc[0]).serving() as gateway,
        RpcPool(net.deployment.rpc, net.deployment.chain_id) as rpc,
    ):
        made = Network(net, rpc, gateway, manifest, folder)
        try:
            await asyncio.gather(*map(made.restart, made.peers))
            await rpc.call("anvil_setBlockTimestampInterval", [2])  # checkpoints need not wait for the clock
            yield made
        finally:
            for peer in made.peers:
                await peer.kill()
