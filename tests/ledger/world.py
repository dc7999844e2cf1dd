"""A small run, all of it real but the chain: records, certificates, states on disk, tallies, signed checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from averaging.ballots import PRECOMMIT, Ballot, Certificate
from averaging.certificate import quorum
from averaging.chain import Chain
from averaging.record import LOSS_SCALE, Record, Survivor, found, void_record
from dht.envelope import seal
from dht.identity import Identity, PeerId
from ledger import signatures
from ledger.books import Books
from ledger.checkpoint import NOTHING, Checkpoint
from ledger.eip712 import Domain
from ledger.explorer.people import text_address
from ledger.indexer.abi import Interface
from ledger.rewards import Constants
from peer.history import chain_frames
from peer.state import CanonicalState, StateSchema
from peer.store import StateStore
from tests.ledger.fake_chain import ADDRESSES, CHAIN_ID, RUN, FakeChain

UNIT = 10**18
CONSTANTS = Constants(
    rounds_per_checkpoint=3, emission=1000 * UNIT, emission_cap=10**6 * UNIT, tokens_bps=8000, chunk_bytes=262144
)
IDENTITIES = sorted((Identity(bytes([*[5] * 31, i + 1])) for i in range(5)), key=lambda each: each.peer_id)
PEERS = tuple(each.peer_id for each in IDENTITIES)
WALLETS = {peer: "0x" + f"{0xC0 + place:02x}" * 20 for place, peer in enumerate(PEERS)}
WINDOW = 3600
DOMAIN = Domain(CHAIN_ID, bytes.fromhex(ADDRESSES["CheckpointHub"][2:]))
SCHEMA = StateSchema(RUN, ("a.weight", "b.weight"), ((300, 250), (40,)))


def states(round_: int) -> CanonicalState:
    """Another state after each round."""
    parameters = np.full(SCHEMA.elements, round_ + 0.5, "<f4")
    return CanonicalState.genesis(SCHEMA, parameters, 0.25)


@dataclass
class World:
    """A run whose peers are its attestors, each of weight 1. `chain` is the chain of blocks, `records` of rounds."""

    folder: Path
    interface: Interface
    chain: FakeChain = field(init=False)
    records: Chain = field(init=False)
    checkpoints: list[Checkpoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chain = FakeChain(self.interface)
        founding = found(IDENTITIES[0], RUN, PEERS, states(0).root(), b"n" * 32)
        self.records = Chain(RUN, IDENTITIES[0].peer_id, founding)
        self.store = StateStore(self.folder / "state" / RUN.hex()[:16], SCHEMA)
        self.books = Books(CONSTANTS)
        self.save(0)
        attestors = [text_address(peer) for peer in PEERS]
        views = self.chain.views
        views["CheckpointHub", "attestors"] = lambda: (attestors, [1] * len(PEERS))
        views["CheckpointHub", "runId"] = lambda: (RUN,)
        views["CheckpointHub", "slot"] = self._slot
        views["CheckpointHub", "window"] = lambda: (WINDOW,)
        views["CheckpointHub", "minInterval"] = lambda: (60,)
        views["Token", "symbol"] = lambda: ("MUR",)
        views["RewardPool", "funded"] = lambda epoch: (epoch * CONSTANTS.emission,)
        views["RewardPool", "mostEmitted"] = lambda: (CONSTANTS.emission_cap,)
        views["RewardPool", "emission"] = lambda: (CONSTANTS.emission,)
        views["PeerRegistry", "unbondDelay"] = lambda: (14 * 86400,)
        views["PeerRegistry", "peer"] = self._peer

    def enrol(self, peer: PeerId, stake: int) -> None:
        """A peer's wallet enrols."""
        key = {"x": peer.public_key[1:], "prefix": peer.public_key[0], "metadata": bytes(32)}
        self.chain.mine(("Enrolled", {"wallet": WALLETS[peer], "key": text_address(peer), "stake": stake} | key))

    def train(self, *, void: bool = False) -> Record:
        """One round; peer i trains 100 × (i + 1) tokens."""
        head = self.records.head
        record = void_record(head)
        if not void:
            rows = tuple(Survivor(peer, 100 * (place + 1), 1 + place % 2) for place, peer in enumerate(PEERS))
            state = states(head.round + 1)
            loss = LOSS_SCALE * 4 // (1 + head.round)
            record = replace(record, void=False, survivors=rows, state_root=state.root(), loss=loss)
            record = replace(record, tally_root=self.records.tally.apply(record).root())
        self.records.append(record, certify(record, self.records.committee()))
        return record

    def save(self, round_: int) -> None:
        """Write records and state as a peer does."""
        last = round_
        while last and self.records.record(last).void:
            last -= 1
        state = states(last)
        frames = chain_frames(self.records, round_)
        self.store.save(round_, state.root(), state.leaves(), state.chunks(), frames)

    def checkpoint(self, *, signers: Sequence[int] = (0, 1, 3, 4), **change: Any) -> Checkpoint:
        """The next epoch's three rounds, their state on disk, and the checkpoint on the chain."""
        epoch = len(self.checkpoints) + 1
        for _ in range(CONSTANTS.rounds_per_checkpoint - (self.records.head.round - 3 * (epoch - 1))):
            self.train()
        self.save(3 * epoch)
        parent = self.checkpoints[-1].hash() if self.checkpoints else NOTHING
        made = replace(self.books.contents(self.records, epoch, ()).checkpoint(0, parent), **change)
        self.propose(made, signers)
        return made

    def propose(self, made: Checkpoint, signers: Sequence[int], forged: dict[int, bytes] | None = None) -> None:
        """Mine a checkpoint with these attestors' signatures."""
        signed = {place: signatures.sign(IDENTITIES[place], made.digest(DOMAIN)) for place in signers} | (forged or {})
        bitmap, rvs = signatures.pack(signed)
        names = [part.name for part in self.interface.functions["CheckpointHub", "propose"].inputs[0].parts]
        header = dict(zip(names, made.abi(), strict=True))
        at = self.chain.blocks[-1].timestamp + 2
        event = {"epoch": made.epoch, "hash": made.hash(), "header": header, "bitmap": bitmap, "activeAt": at + WINDOW}
        calldata = self.interface.call("CheckpointHub", "propose", header, bitmap, list(rvs))
        self.chain.mine(("CheckpointProposed", event), calldata=calldata)
        self.checkpoints.append(made)

    def claim(self, peer: PeerId, epoch: int) -> int:
        """A peer claims all that it had earned by an epoch."""
        cumulative = self.books.tally(self.records, epoch, ()).leaves[signatures.key_address(peer)]
        values = {"account": text_address(peer), "recipient": WALLETS[peer], "amount": cumulative}
        self.chain.mine(("Claimed", values | {"cumulative": cumulative, "epoch": epoch}))
        return cumulative

    def _slot(self, epoch: int) -> tuple[Any, ...]:
        if not 1 <= epoch <= len(self.checkpoints):
            return bytes(32), bytes(32), 0, 0, 0
        made = self.checkpoints[epoch - 1]
        return made.hash(), made.tally_root, epoch, 1_700_000_000 + WINDOW, made.cumulative_reward

    def _peer(self, wallet: str) -> tuple[Any, ...]:
        peer = next(peer for peer, each in WALLETS.items() if each == wallet)
        return text_address(peer), 100 * UNIT, 0, 0, False


def certify(record: Record, committee: tuple[PeerId, ...]) -> Certificate:
    keys = {each.peer_id: each for each in IDENTITIES}
    chosen = tuple(range(quorum(len(committee))))
    ballot = Ballot(record.round, 0, PRECOMMIT, record.hash())
    signed = tuple(seal(keys[committee[i]], RUN, record.round, ballot).signature for i in chosen)
    return Certificate(record.round, 0, record.hash(), chosen, signed)


def small_run(folder: Path, interface: Interface) -> World:
    """Two epochs with a void round, three enrolled peers, a claim, a fee, a slash."""
    world = World(folder, interface)
    for peer in PEERS[:3]:
        world.enrol(peer, 100 * UNIT)
    world.chain.mine()
    world.checkpoint()
    world.claim(PEERS[1], 1)
    world.train()
    world.train(void=True)
    world.checkpoint(signers=(0, 1, 2, 4))
    slashed = {"wallet": WALLETS[PEERS[2]], "key": text_address(PEERS[2]), "amount": 50 * UNIT}
    evidence = {"wallet": slashed["wallet"], "key": slashed["key"], "evidence": b"e" * 32, "kind": 1}
    reporter = {"reporter": WALLETS[PEERS[0]], "reward": 5 * UNIT}
    world.chain.mine(("Slashed", slashed | reporter), ("EquivocationProven", evidence))
    return world
