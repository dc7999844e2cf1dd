"""Attestors on an in-memory network under virtual time, each with its own records, disk and window on a fake chain."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from averaging.actions import CancelTimer, Note, Send, SetTimer, TimerKey
from averaging.chain import Chain
from averaging.record import Record
from dht.errors import ProtocolError
from dht.identity import Identity, PeerId
from dht.wire import decode, encode
from ledger.attestation_log import SqliteAttestationLog
from ledger.attestor import Attestor, Expose, Finalize
from ledger.attestor_guard import SqliteAttestorGuard
from ledger.books import Books
from ledger.chain_view import HubIntent
from ledger.checkpoint import Checkpoint, Rollback
from ledger.checkpointer import Checkpointer
from ledger.electorate import Electorate
from ledger.messages import Attestations, RollbackSignatures
from ledger.quorum import Submit
from ledger.rewards import Constants
from ledger.signatures import key_address, recover, sign
from tests.ledger.fake_hub import DOMAIN, FakeChain, Hub, landed
from tests.ledger.records import KEYS, RUN, add_round, certify, new_chain

CONSTANTS = Constants(
    rounds_per_checkpoint=3, emission=1_000_003, emission_cap=10_000_000, tokens_bps=7000, chunk_bytes=131072
)
ROUND, BLOCK, POLL, RESTART_AFTER = 10.0, 2.0, 5.0, 7.0


class Node:
    """One attestor. What is in `guard`, `log`, `journal` and `chain` survives a restart; `attestor` does not."""

    def __init__(self, net: Net, identity: Identity, folder: Path | None) -> None:
        self.net, self.identity, self.peer = net, identity, identity.peer_id
        self.chain = new_chain(len(net.identities))
        self.folder = folder
        self.journal: list[HubIntent] = []
        self.exposed: list[Expose] = []
        self.notes: list[str] = []
        self.refused: list[ProtocolError] = []
        self.timers: dict[TimerKey, object] = {}
        self.rpc = True
        self.events = 0
        self.open()
        self.start()

    def open(self) -> None:
        """Open the files (or memory, which is then never closed)."""
        path = ":memory:" if self.folder is None else self.folder
        self.guard = SqliteAttestorGuard(path if isinstance(path, str) else path / f"{self.peer.short}.guard")
        self.log = SqliteAttestationLog(path if isinstance(path, str) else path / f"{self.peer.short}.log")

    def start(self) -> None:
        """Begin with an empty memory."""
        if self.folder is not None:
            self.guard.close()
            self.log.close()
            self.open()
        books = Books(CONSTANTS)
        self.attestor = Attestor(self.identity, DOMAIN, books, lambda: self.chain, self.guard, self.log)
        self.timers.clear()
        self.alive = True

    def stop(self) -> None:
        """Die: timers and memory are gone."""
        self.alive = False
        self.timers.clear()

    def feed(self, event: Callable[[], list]) -> None:
        """One event, and what follows from it; in the event `net.crash` names, the peer dies before it acts."""
        if not self.alive:
            return
        self.events += 1
        try:
            actions = event()
        except ProtocolError as error:
            self.refused.append(error)
            return
        if self.net.crash == (self.peer, self.events):
            self.net.fired.append(("crash", [type(action).__name__ for action in actions]))
            self.stop()
            self.net.at(RESTART_AFTER, self.start)
            return
        for action in actions:
            self.act(action)

    def act(self, action: object) -> None:
        """What the driver does."""
        if not self.alive:
            return
        if isinstance(action, Send):
            self.net.send(self, action.to, action.message)
        elif isinstance(action, SetTimer):
            token = self.timers[action.key] = object()
            self.net.at(action.delay, lambda: self.due(action.key, token))
        elif isinstance(action, CancelTimer):
            self.timers.pop(action.key, None)
        elif isinstance(action, Submit):
            self.net.submitted(self, action.intent)
        elif isinstance(action, Expose):
            self.exposed.append(action)
        elif isinstance(action, Finalize):
            self.chain.finalize(action.round)
        elif isinstance(action, Note):
            self.notes.append(action.text)

    def due(self, key: TimerKey, token: object) -> None:
        """A timer fires unless it was replaced or cancelled."""
        if self.timers.get(key) is token:
            del self.timers[key]
            self.feed(lambda: self.attestor.timeout(key))

    def poll(self) -> None:
        """Look at the hub, and send what is journalled and not fulfilled."""
        self.net.at(POLL, self.poll)
        if not (self.alive and self.rpc):
            return
        head = self.net.ledger.tip.head(self.net.now)
        for intent in self.journal:
            if not intent.fulfilled(head):
                self.net.ledger.send(intent)
        self.feed(lambda: self.attestor.head(head))

    def learn(self, record: Record) -> None:
        """A certified record arrives."""
        if record.round > self.chain.head.round:
            self.chain.append(record, certify(record, self.chain.committee()))
        self.feed(self.attestor.advanced)


class Net:
    """All of it. `loss` is the share of messages that never arrive; `fired` says which faults happened."""

    def __init__(
        self,
        size: int = 4,
        *,
        seed: int = 0,
        loss: float = 0.0,
        folder: Path | None = None,
        rounds: int = 6,
        window: float = 60.0,
    ) -> None:
        self.random, self.loss, self.now = random.Random(seed), loss, 0.0
        self.crash: tuple[PeerId, int] | None = None
        self.fired: list[object] = []
        self.lost = 0
        self.signed: dict[tuple[bytes, int, int], set[bytes]] = {}
        self.rollbacks: dict[bytes, set[tuple[int, int]]] = {}
        """(fork nonce, epoch) of the rollbacks that each attestor signed."""
        self.on_submit: Callable[[Node, HubIntent], bool] = lambda node, intent: True
        self.identities = KEYS[:size]
        electorate = Electorate(tuple(key_address(key.peer_id) for key in self.identities), (1,) * size)
        self.ledger = FakeChain(Hub(RUN, electorate, CONSTANTS, window=window))
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.nodes = [Node(self, key, folder) for key in self.identities]
        self.truth = new_chain(size)
        self.rounds = rounds
        self.at(ROUND, self.next_round)
        self.at(BLOCK, self.next_block)
        for node in self.nodes:
            self.at(self.random.uniform(0, POLL), node.poll)

    def node(self, address: bytes) -> Node:
        """The attestor with this key address."""
        return next(node for node in self.nodes if key_address(node.peer) == address)

    def at(self, delay: float, what: Callable[[], None]) -> None:
        """Do something after a delay."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay, self._count, what))

    def run(self, until: float) -> None:
        """Let virtual time pass."""
        while self._queue and self._queue[0][0] <= until:
            self.now, _, what = heapq.heappop(self._queue)
            what()
        self.now = until

    def next_round(self) -> None:
        """A round is certified; every chain has it soon, also a dead peer's: that is on disk, and catches up."""
        record = add_round(self.truth)
        for node in self.nodes:
            self.at(1.0 + 0.1 * self.random.random(), lambda node=node: node.learn(record))
        if record.round < self.rounds:
            self.at(ROUND, self.next_round)

    def next_block(self) -> None:
        """The chain goes on."""
        self.ledger.mine(self.now)
        self.at(BLOCK, self.next_block)

    def send(self, sender: Node, to: PeerId, message: object) -> None:
        """A message leaves: what it says is checked, then it may get lost."""
        frame = encode(message)
        self.watch(message)
        if self.random.random() < self.loss:
            self.lost += 1
            return
        receiver = next(node for node in self.nodes if node.peer == to)
        arrive = lambda: receiver.feed(lambda: receiver.attestor.receive(sender.peer, decode(frame)))  # noqa: E731
        self.at(self.random.uniform(0.01, 0.2), arrive)

    def watch(self, message: object) -> None:
        """Remember who signed what."""
        if isinstance(message, Attestations):
            header = Checkpoint.decode(message.header)
            for signature in message.signatures:
                signer = recover(header.digest(DOMAIN), signature)
                assert signer is not None
                self.signed.setdefault((signer, *header.place), set()).add(header.hash())
        elif isinstance(message, RollbackSignatures):
            rollback = Rollback(RUN, message.fork_nonce, message.epoch)
            for signature in message.signatures:
                signer = recover(rollback.digest(DOMAIN), signature)
                assert signer is not None
                self.rollbacks.setdefault(signer, set()).add((message.fork_nonce, message.epoch))

    def submitted(self, node: Node, intent: HubIntent) -> None:
        """A node's sender journals an intent and sends it, unless `on_submit` says otherwise."""
        if self.on_submit(node, intent) and intent not in node.journal:
            node.journal.append(intent)
            if node.rpc:
                self.ledger.send(intent)

    def check(self, epochs: int, liars: set[bytes] = frozenset()) -> None:
        """Each checkpoint is there once, they are what the records give, and nobody honest signed two for one place."""
        assert landed(self.ledger) == list(range(1, epochs + 1))
        books, fees = Books(CONSTANTS), self.ledger.tip.fees()
        for header, _, _ in self.ledger.tip.checkpoints:
            assert books.contents(self.truth, header.epoch, fees).agrees(header)
        twice = {signer for (signer, _, _), headers in self.signed.items() if len(headers) > 1}
        assert twice == liars
        assert {exposed.accused for node in self.nodes for exposed in node.exposed} == liars


def switch(node: Node, chain: Chain) -> None:
    """Another branch of records wins at a node."""
    node.chain = chain
    node.feed(node.attestor.advanced)


def astray(net: Net, nodes: list[Node], rounds: int) -> Chain:
    """These nodes follow a branch of their own, of so many rounds, until `come_back`."""
    branch = new_chain(4)
    for _ in range(rounds):
        add_round(branch, salt=b"other")
    for node in nodes:
        switch(node, branch)
        node.learn = lambda record: None
    return branch


def come_back(net: Net, nodes: list[Node]) -> None:
    """They roll back, and have all records at once."""
    for node in nodes:
        del node.learn
        switch(node, net.truth.branch(net.truth.head.round))


def equivocator(net: Net, node: Node) -> None:
    """From here on a node sends half of the others a header of its own making, properly signed."""
    send = net.send

    def lie(sender, to, message):
        if sender is node and isinstance(message, Attestations) and net.identities.index(to_key(net, to)) % 2:
            header = replace(Checkpoint.decode(message.header), model_root=b"\1" * 32)
            signature = sign(node.identity, header.digest(DOMAIN))
            message = Attestations(header.encode(), (signature,))
            net.fired.append(header.place)
        send(sender, to, message)

    net.send = lie


def to_key(net: Net, peer):
    return next(key for key in net.identities if key.peer_id == peer)


@asynccontextmanager
async def all_running(runners: Collection[Checkpointer]) -> AsyncIterator[None]:
    """Run them all, and stop them at the end."""
    tasks = [asyncio.create_task(runner.run()) for runner in runners]
    try:
        yield
    finally:
        for runner in runners:
            await runner.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
