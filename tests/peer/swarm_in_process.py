"""Several whole peers in one process: real trainers, learners, stores, guards and drivers on a network in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from averaging.ballots import PRECOMMIT, Ballot, Certificate
from averaging.certificate import quorum
from averaging.chain import Chain
from averaging.driver import Driver
from averaging.guard import SqliteGuard
from averaging.record import Record, Survivor, found, void_record
from dht.counters import Counters
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, UnreachableError
from dht.identity import Identity, PeerId
from dht.transport import FrameHandler, Part, RequestHandler
from dht.wire import decode, decode_as, message_type
from peer.config import PeerConfig
from peer.data import TokenBatches, TokenData
from peer.manifest import Codec, Cohort, Data, Deadlines, Manifest, Model, Run, Train, Weights
from peer.model import build_model
from peer.node import Node, _assemble
from peer.overlapped import OverlappedLearner
from peer.trainer import Trainer

PATIENCE = 60.0
"""Seconds that a busy machine may take for what should happen at once."""
_SEALED = message_type(Envelope).tag
SEQUENCE, BATCH, STEPS = 16, 4, 3
SIZES = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = b"starlings have no leader; each bird minds a few neighbours, and the flock turns as one. " * 40


def identity(index: int) -> Identity:
    return Identity(bytes([7] * 31 + [index + 1]))


def tiny_manifest(
    peers: int,
    limits: dict[str, float] | None = None,
    recovery_after: float = 600.0,
    target: int = 0,
    weights: Weights | None = None,
    **train: Any,
) -> Manifest:
    """A model of 11 thousand parameters: three chunks of one Hadamard block each, and the trailer."""
    config = {"model_type": "llama", "vocab_size": 257, "max_position_embeddings": 32, "tie_word_embeddings": True}
    phases = ("join", "shares", "train", "upload", "survivors", "unmask", "sums", "commit")
    deadlines = dict.fromkeys(phases, PATIENCE / 3) | (limits or {})
    settings = {"learning_rate": 3e-3, "warmup": 1, "local_steps": STEPS}
    settings |= {"tokens_per_round": 2 * STEPS * BATCH * SEQUENCE}
    return Manifest.demo(
        str(identity(0).peer_id),
        run=Run(name="tiny", founder=str(identity(0).peer_id), genesis_peers=peers),
        model=Model(config=config | SIZES, seed=3),
        data=Data(sequence_length=SEQUENCE),
        train=Train(**settings | train),
        weights=weights or Weights(),
        cohort=Cohort(
            target=target or peers, minimum=3, recovery_after=recovery_after, deadlines=Deadlines(**deadlines)
        ),
        codec=Codec(chunk_elements=4096),
    )


def make_trainer(manifest: Manifest, index: int) -> Trainer:
    """Peer `index`'s trainer: its own stretch of the text, its own order."""
    tokens = np.frombuffer(TEXT[index * 7 :], np.uint8)
    return Trainer(
        build_model(manifest), TokenBatches(TokenData(tokens, SEQUENCE, "text"), BATCH, index), manifest, "cpu"
    )


async def until(condition: Callable[[], bool], failed: Iterable[asyncio.Future[None]] = ()) -> None:
    """Wait for what other tasks and threads bring about; TimeoutError after `PATIENCE`, or what ended a driver."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            for future in failed:
                if future.done():
                    future.result()
            await asyncio.sleep(0.005)


class Network:
    """Delivers frames between ports in one event loop, in order; remembers what was sent and what was refused."""

    def __init__(self) -> None:
        self.ports: dict[PeerId, Port] = {}
        self.gone: set[PeerId] = set()
        self.cut: set[tuple[PeerId, PeerId]] = set()
        self.sent: list[tuple[PeerId, PeerId, bytes]] = []
        self.refused: list[tuple[PeerId, PeerId, ProtocolError]] = []
        self.requests: list[tuple[PeerId, PeerId, Any]] = []
        self.on_request: Callable[[PeerId, Any, bytes], Awaitable[bytes]] | None = None

    def port(self, peer: PeerId) -> Port:
        """A new place on the network for this peer; frames for an older one are lost."""
        self.ports[peer] = Port(self, peer)
        self.gone.discard(peer)
        return self.ports[peer]

    def reach(self, sender: PeerId, to: PeerId) -> Port:
        if (sender, to) in self.cut:
            raise UnreachableError(f"no way to {to.short}")
        if to in self.gone or sender in self.gone or to not in self.ports or self.ports[to].on_frame is None:
            raise UnreachableError(f"{to.short} is not there")
        return self.ports[to]

    def messages(self, sender: PeerId, kind: type) -> list[Any]:
        """The different messages of a class that a peer has sent, in no order."""
        tag = message_type(kind).tag
        sealed = {frame for peer, _, frame in self.sent if peer == sender and frame[0] == _SEALED}
        envelopes = [decode_as(Envelope, frame) for frame in sealed]
        return [envelope.message() for envelope in envelopes if envelope.body[0] == tag]


class Port:
    """One peer's `Transport`."""

    def __init__(self, network: Network, peer_id: PeerId) -> None:
        self.network, self.peer_id = network, peer_id
        self.counters = Counters()
        self.on_frame: FrameHandler | None = None
        self.on_request: RequestHandler | None = None

    def serve(self, on_frame: FrameHandler, on_request: RequestHandler) -> None:
        self.on_frame, self.on_request = on_frame, on_request

    async def send(self, to: PeerId, parts: Sequence[Part], *, bulk: bool = False) -> None:
        frame = b"".join(parts)
        await asyncio.sleep(0)
        port = self.network.reach(self.peer_id, to)
        self.network.sent.append((self.peer_id, to, frame))
        assert port.on_frame is not None
        try:
            port.on_frame(self.peer_id, memoryview(frame))
        except ProtocolError as error:
            self.network.refused.append((self.peer_id, to, error))
            raise UnreachableError("the other side refused it") from error

    async def request(self, to: PeerId, parts: Sequence[Part], *, timeout: float) -> memoryview:
        frame = b"".join(parts)
        await asyncio.sleep(0)
        port = self.network.reach(self.peer_id, to)
        self.network.requests.append((self.peer_id, to, decode(frame)))
        assert port.on_request is not None
        reply = b"".join(await port.on_request(self.peer_id, memoryview(frame)))
        if self.network.on_request is not None:
            reply = await self.network.on_request(to, decode(frame), reply)
        return memoryview(reply)


class Events:
    """A reporter that keeps everything."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, Any]]] = []

    def event(self, name: str, /, **fields: object) -> None:
        self.all.append((name, fields))

    def named(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.all if event == name]


class Peer:
    """One peer, as `run_peer` would put it together, without libp2p and discovery."""

    def __init__(self, network: Network, manifest: Manifest, index: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.network, self.identity, self.events = network, identity(index), Events()
        self.id = self.identity.peer_id
        self.guard = SqliteGuard(folder / "guard.sqlite")
        self.port = network.port(self.id)
        kinds = ("", *manifest.weights.domains)
        config = PeerConfig(data_dir=folder, threads=1, domain=kinds[index % len(kinds)])
        self.node: Node = _assemble(
            config,
            manifest,
            self.identity,
            make_trainer(manifest, index),
            None,
            self.port,  # type: ignore[arg-type]
            self.guard,
            self.events,
        )
        self.participant, self.learner = self.node._participant, self.node._learner
        self.encoded: dict[bytes, dict[int, np.ndarray]] = {}
        self.updates: dict[bytes, np.ndarray] = {}
        self._listen_in()
        self.driver = self.node._driver = Driver(self.participant, self.port, self.learner, self.node)
        self.port.serve(self.driver.on_frame, self.node._donor.answer)

    def _listen_in(self) -> None:
        """Keep what is encoded, before it is masked, and the update that it was encoded from."""
        encode = self.learner.encode

        def listen(cohort: Any, chunk: int) -> Any:
            ring = encode(cohort, chunk)
            self.encoded.setdefault(cohort.roster.round_sid, {})[chunk] = ring.copy()
            self.updates[cohort.sid] = self.learner._residual.copy()
            return ring

        self.learner.encode = listen  # type: ignore[method-assign]

    def start(self, others: Iterable[Peer]) -> None:
        self.driver.start()
        self.driver.learned([peer.id for peer in others if peer is not self])

    async def kill(self) -> None:
        """What SIGKILL leaves: the disk."""
        self.network.gone.add(self.id)
        await self.driver.stop()
        if isinstance(self.learner, OverlappedLearner):
            self.learner._stepper.stop()
        self.guard.close()

    async def leave(self) -> None:
        """What the first SIGTERM does."""
        await self.driver.stop()
        self.network.gone.add(self.id)
        await self.learner.leave()
        self.guard.close()


class Swarm:
    """Peers that have met. `async with Swarm(5, tmp_path) as swarm`."""

    def __init__(
        self, peers: int, folder: Path, limits: dict[str, float] | None = None, codec: Codec | None = None, **train: Any
    ) -> None:
        manifest = tiny_manifest(peers, limits, **train)
        self.network, self.folder = Network(), folder
        self.manifest = manifest if codec is None else manifest.replace(codec=codec)
        self.peers = [self.make(index) for index in range(peers)]

    def make(self, index: int) -> Peer:
        """A peer from what its folder holds; not started."""
        return Peer(self.network, self.manifest, index, self.folder / str(index))

    async def __aenter__(self) -> Swarm:
        for peer in self.peers:
            peer.start(self.peers)
        return self

    async def __aexit__(self, *_: object) -> None:
        for peer in self.peers:
            if peer.id not in self.network.gone:
                await peer.kill()

    @property
    def living(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.id not in self.network.gone]

    async def reach(self, round_: int, peers: Sequence[Peer] | None = None) -> Record:
        """Wait until these (the living) peers hold the state of this round; its record."""
        chosen = self.living if peers is None else peers
        await until(
            lambda: all(peer.learner.round >= round_ for peer in chosen), [peer.driver.failed for peer in chosen]
        )
        chain = chosen[0].participant.chain
        assert chain is not None
        return chain.record(round_)

    async def restart(self, index: int) -> Peer:
        """Start a peer that was killed or has left, from its folder."""
        self.peers[index] = self.make(index)
        self.peers[index].start(self.peers)
        return self.peers[index]


# --- chains without a network -------------------------------------------------------------------------------------


def founded(manifest: Manifest, peers: int, root: bytes) -> Chain:
    """A new chain of the first `peers` identities."""
    members = tuple(identity(index).peer_id for index in range(peers))
    return Chain(manifest.run_id, manifest.founder, found(identity(0), manifest.run_id, members, root, bytes(32)))


def certificate(chain: Chain, record: Record, signers: int | None = None) -> Certificate:
    """As many members of the chain's committee as it takes (or as given) sign this record."""
    committee = chain.committee()
    keys = {identity(index).peer_id: identity(index) for index in range(16)}
    chosen = tuple(range(quorum(len(committee)) if signers is None else signers))
    ballot = Ballot(record.round, 0, PRECOMMIT, record.hash())
    signatures = tuple(seal(keys[committee[i]], chain.run, record.round, ballot).signature for i in chosen)
    return Certificate(record.round, 0, record.hash(), chosen, signatures)


def grow(chain: Chain, **facts: Any) -> Record:
    """Certify and append the next record; a void one when no `survivors` ({peer: tokens}) are given."""
    record = next_record(chain, **facts)
    chain.append(record, certificate(chain, record))
    return record


def next_record(chain: Chain, survivors: dict[PeerId, int] | None = None, **facts: Any) -> Record:
    """The next record, not certified yet."""
    import dataclasses

    record = void_record(chain.head)
    if not survivors:
        return record
    rows = tuple(Survivor(peer, tokens, 1) for peer, tokens in sorted(survivors.items()))
    record = dataclasses.replace(record, void=False, survivors=rows, **facts)
    return dataclasses.replace(record, tally_root=chain.tally.apply(record).root())
