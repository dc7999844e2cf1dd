"""A whole network in one process under virtual time: participants, a network with faults, and an oracle.

Everything random comes from one seed, so a failing seed can be replayed and two runs of one seed have one trace.
State is modelled by its root (a digest chain over aggregate roots); updates are real ring vectors under real masks,
shares and signatures.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np

from averaging.actions import CancelTimer, Note, Send, SetTimer
from averaging.aggregate import Aggregate
from averaging.bulk import BulkKind, Chunk, parse
from averaging.chain import Chain
from averaging.cohort import Cohort
from averaging.evidence import Proof
from averaging.guard import Guard, MemoryGuard
from averaging.layout import Layout
from averaging.params import Deadlines, RunParams
from averaging.participant import Participant
from averaging.record import Record
from averaging.scales import levels
from averaging.trailer import Statistics, pack
from averaging.work import (
    AddUp,
    Apply,
    Blame,
    Check,
    Commit,
    Decided,
    FetchState,
    Joined,
    Reduce,
    RolledBack,
    Show,
    Train,
    Transfer,
    Upload,
)
from dht.envelope import Envelope
from dht.errors import ProtocolError
from dht.identity import Identity, PeerId
from dht.wire import digest, encode
from tests.sim.watch import Watch

GENESIS = digest("sim-genesis")
_TRANSFERS = {BulkKind.SUM: "sum", BulkKind.MASKED: "resend", BulkKind.PART: "part", BulkKind.TOTAL: "total"}


def small_params(run: bytes, founder: PeerId, peers: int, **changes: Any) -> RunParams:
    """Parameters of a small, fast run: 5 data chunks of one Hadamard block each."""
    fields: dict[str, Any] = {
        "layout": Layout(5 * 4096 - 7, 16, 4096),
        "genesis_peers": peers,
        "target": peers,
        "minimum": 3,
        "deadlines": Deadlines(1.0, 2.0, 3.0, 4.0, 2.0, 1.0, 4.0, 2.0),
    }
    return RunParams(run, founder, **{**fields, **changes})


@dataclass
class Peer:
    """One simulated machine: what is on its disk survives a crash, `participant` does not."""

    identity: Identity
    guard: Guard = field(default_factory=MemoryGuard)
    chain: Chain | None = None
    states: dict[int, bytes] = field(default_factory=lambda: {0: GENESIS})
    participant: Participant | None = None
    life: int = 0
    timers: dict[Any, int] = field(default_factory=dict)
    pending: tuple[bytes, bytes] | None = None
    evidence: list[bytes] = field(default_factory=list)
    speed: float = 1.0

    @property
    def id(self) -> PeerId:
        """Its peer id."""
        return self.identity.peer_id

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.participant is not None


def _number(i: int) -> bytes:
    return i.to_bytes(1 if i < 256 else 2, "big")


@lru_cache(maxsize=1024)
def _name(frame: bytes) -> str:
    return sha256(frame).hexdigest()[:12]  # a broadcast is the same bytes for all


class Swarm:
    """Peers, a virtual clock, an event queue, and faults that tests switch on."""

    word: type[np.signedinteger[Any]] = np.int64
    """In what the plain updates are drawn and kept."""

    def __init__(self, peers: int, seed: int, **changes: Any) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.trace = sha256()
        identities = [Identity(digest("sim-identity", bytes([seed % 251, *_number(i)]))) for i in range(peers)]
        self.run_id = digest("sim-run", seed.to_bytes(8, "big"))
        self.params = small_params(self.run_id, identities[0].peer_id, peers, **changes)
        self.peers = {identity.peer_id: Peer(identity) for identity in identities}
        self.order = tuple(self.peers)
        self.delay: Callable[[PeerId, PeerId], float] = lambda a, b: self.random.uniform(0.001, 0.05)
        self.duplicate = 0.0
        self.blocked: set[tuple[PeerId, PeerId]] = set()
        self.on_event: Callable[[str, Peer], None] = lambda name, peer: None
        """Called before a peer does something: train, joined, upload, ship (a chunk), resend, reduce, sum, part,
        add-up, total, apply, commit, fetch, decided, or sends a message (by its class name). It may crash the peer."""
        self.kinds: dict[PeerId, type[Participant]] = {}
        self.watch = Watch(self)
        self.tamper: Callable[[PeerId, PeerId, bytes], bytes | None] = lambda a, b, frame: frame
        self.records: dict[int, dict[bytes, Record]] = {}
        self.updates: dict[tuple[bytes, PeerId], dict[int, np.ndarray[Any, Any]]] = {}
        self.sums: dict[bytes, dict[PeerId, Aggregate]] = {}
        self.notes: list[str] = []
        self._last: tuple[Envelope, object, bytes] | None = None
        self.refusals: list[ProtocolError] = []
        self.fetches = 0
        self.blamed: dict[PeerId, list[tuple[PeerId, Proof]]] = {}
        """Who was proven a liar, with by whom it was learned and what was proven."""

    # --- clock and processes ------------------------------------------------------------------------------------

    def at(self, delay: float, call: Callable[[], None]) -> None:
        """Run `call` after `delay` virtual seconds."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay, self._count, call))

    def run(self, until: Callable[[], bool], limit: float = 600.0) -> bool:
        """Process events until the condition holds; False when `limit` virtual seconds pass first."""
        deadline = self.now + limit
        while not until():
            if not self._queue or self._queue[0][0] > deadline:
                return False
            self.now, _, call = heapq.heappop(self._queue)
            call()
        return True

    def start(self, peers: Iterable[PeerId] | None = None) -> None:
        """Start (or restart) peers, each within the next second."""
        for peer in peers if peers is not None else self.order:
            self.at(self.random.uniform(0, 0.5), lambda peer=peer: self._boot(self.peers[peer]))  # type: ignore[misc]

    def _boot(self, peer: Peer) -> None:
        if peer.alive:
            return
        peer.life += 1
        peer.timers.clear()
        newest = max(peer.states)
        # Seeds must differ between lives of a peer, as they do when they come from the operating system.
        source = random.Random(digest("boot", bytes(peer.id), peer.life.to_bytes(4, "big"), self.run_id))
        peer.participant = self.kinds.get(peer.id, Participant)(
            self.params,
            peer.identity,
            peer.guard,
            source.randbytes,
            GENESIS,
            peer.chain,
            newest,
            evidence=peer.evidence,
        )
        self._act(peer, peer.participant.start())
        self._call(peer, lambda p: p.learned(list(self.order)))

    def crash(self, peer: PeerId) -> None:
        """SIGKILL: the process is gone, the disk stays."""
        self.peers[peer].participant = None
        self.peers[peer].life += 1
        self.log(f"crash {peer.short}")
        for other in self.order:
            if other != peer:
                self.at(self.random.uniform(0.01, 0.3), lambda other=other: self._lost(other, peer))  # type: ignore[misc]

    def _lost(self, observer: PeerId, gone: PeerId) -> None:
        participant = self.peers[observer].participant
        if participant is not None and not self.peers[gone].alive:
            self._act(self.peers[observer], participant.suspect(gone))

    def partition(self, side: set[PeerId]) -> None:
        """Cut all links between `side` and the rest, both ways."""
        self.blocked |= {(a, b) for a in self.order for b in self.order if (a in side) != (b in side)}

    def heal(self) -> None:
        """All links work again."""
        self.blocked.clear()

    def log(self, line: str) -> None:
        """Add a line to the trace hash."""
        self.trace.update(f"{self.now:.6f} {line}\n".encode())

    # --- network ------------------------------------------------------------------------------------------------

    def deliver(self, sender: PeerId, to: PeerId, frame: bytes, *, bulk: bool = False) -> None:
        """Put a frame on the wire; links that are cut retry like a transport does, until the sender dies."""
        changed = self.tamper(sender, to, frame)
        if changed is None:
            return
        life = self.peers[sender].life
        copies = 2 if self.random.random() < self.duplicate else 1
        for _ in range(copies):
            self.at(self.delay(sender, to), lambda: self._arrive(sender, to, changed, bulk, life))

    def _arrive(self, sender: PeerId, to: PeerId, frame: bytes, bulk: bool, life: int, tries: int = 0) -> None:
        if (sender, to) in self.blocked:
            if self.peers[sender].life == life:
                self.at(0.5, lambda: self._arrive(sender, to, frame, bulk, life, tries + 1))
                if tries == 2:
                    self._call(self.peers[sender], lambda p: p.suspect(to))
            return
        peer = self.peers[to]
        if peer.participant is None:
            return
        self.log(f"{sender.short}>{to.short} {_name(frame)}")
        self._take(peer, sender, frame, bulk)

    def _take(self, peer: Peer, sender: PeerId, frame: bytes, bulk: bool) -> None:
        """A frame reaches a living peer."""
        assert peer.participant is not None
        try:
            if bulk:
                self._act(peer, peer.participant.receive_chunk(sender, parse(memoryview(frame))))
            else:
                self._act(peer, peer.participant.receive(sender, frame))
        except ProtocolError as error:
            self.refusals.append(error)
            self._call(peer, lambda p: p.findings())

    def cohort_of(self, peer: PeerId) -> Cohort:
        """The cohort that a living peer works in."""
        participant = self.peers[peer].participant
        assert participant is not None and participant.current is not None and participant.current.cohort is not None
        return participant.current.cohort

    # --- driver -------------------------------------------------------------------------------------------------

    def _act(self, peer: Peer, actions: Iterable[object]) -> None:
        for action in actions:
            if peer.participant is None:  # a test crashed it in the middle
                return
            self._do(peer, action)

    def _do(self, peer: Peer, action: object) -> None:
        match action:
            case Send(to, Envelope() as message):
                body, frame = self._opened(message)
                self.on_event(type(body).__name__, peer)
                if peer.alive:
                    self.watch.sent(peer.id, body)
                    self.deliver(peer.id, to, frame)
            case SetTimer(key, delay):
                stamp = peer.timers[key] = self._count + 1
                self._later(peer, delay, lambda: self._timer(peer, key, stamp))
            case CancelTimer(key):
                peer.timers.pop(key, None)
            case Note(text):
                self.notes.append(f"{self.now:.2f} {peer.id.short} {text}")
            case Train(round_):
                self.on_event("train", peer)
                seconds = self.random.uniform(0.5, 1.5) / peer.speed
                self._later(peer, seconds, lambda: self._call(peer, lambda p: p.trained(round_, 100)))
            case Joined():
                self.on_event("joined", peer)
            case Upload(sid, plan):
                self._upload(peer, sid, plan)
            case Reduce(sid, chunks):
                self._reduce(peer, sid, chunks)
            case AddUp(sid, chunks):
                self._add_up(peer, sid, chunks)
            case Transfer(sid, kind, chunks, to):
                self.on_event(_TRANSFERS[kind], peer)
                self._transfer(peer, sid, kind, chunks, to)
            case Show(sid, inputs, to):
                self.on_event("show", peer)
                cohort = peer.participant.cohort(sid) if peer.participant else None
                for member, chunk in inputs if cohort else ():
                    self._ship(peer, cohort.shown(member, chunk), (to,))
            case Check(sid, chunks):
                self._check(peer, sid, chunks)
            case Blame(proof, evidence):
                self.on_event("blame", peer)
                peer.evidence.append(evidence)
                self.blamed.setdefault(proof.accused, []).append((peer.id, proof))
            case Apply(sid):
                self._apply(peer, sid)
            case Commit(record, _, _):
                self.on_event("commit", peer)
                self._later(peer, 0.05, lambda: self._hold(peer, record))
            case FetchState(record, donors):
                self.on_event("fetch", peer)
                self.fetches += 1
                self._later(peer, self.random.uniform(0.1, 0.5), lambda: self._fetch(peer, record, donors))
            case RolledBack():
                self.on_event("rolled back", peer)
            case Decided(record, _, _):
                self._decided(peer, record)
            case _:
                raise AssertionError(f"an action without a driver: {action}")

    def _opened(self, envelope: Envelope) -> tuple[object, bytes]:
        """What is in an envelope, and its frame; a broadcast is opened once."""
        if self._last is None or envelope is not self._last[0]:
            self._last = envelope, envelope.message(), encode(envelope)
        return self._last[1:]

    def _later(self, peer: Peer, delay: float, call: Callable[[], None]) -> None:
        life = peer.life
        self.at(delay, lambda: call() if peer.life == life and peer.alive else None)

    def _call(self, peer: Peer, call: Callable[[Participant], Iterable[object]]) -> None:
        if peer.participant is not None:
            self._act(peer, call(peer.participant))

    def _timer(self, peer: Peer, key: Any, stamp: int) -> None:
        if peer.timers.get(key) == stamp:
            del peer.timers[key]
            self.log(f"timer {peer.id.short} {key}")
            self._call(peer, lambda p: p.timeout(key))

    def _upload(self, peer: Peer, sid: bytes, plan: Any) -> None:
        self.on_event("upload", peer)
        cohort = peer.participant.cohort(sid) if peer.participant else None
        if cohort is None:
            return
        source = np.random.default_rng(list(digest("update", sid, bytes(peer.id))))
        mine = self.updates.setdefault((cohort.roster.round_sid, peer.id), {})
        limit = levels(self.params.layout, cohort.roster.largest)
        for chunk, receivers in plan:
            signed = source.integers(-limit, limit + 1, self.params.layout.words(chunk), self.word)
            if chunk == self.params.layout.trailer:
                signed = pack(Statistics(cohort.tokens or 1, 1.5, 1.5, 0.5, 0.0, 10)).astype(np.int64)
            mine[chunk] = signed
            ring = signed.astype(self.params.layout.dtype(chunk))
            cohort.mask(chunk, ring)
            self._ship(peer, cohort.payload(BulkKind.MASKED, chunk), receivers)
            if not peer.alive:
                return
        self._later(peer, self._uploading(peer), lambda: self._uploaded(peer, cohort))

    def _uploading(self, peer: Peer) -> float:
        """Seconds until all that a peer just handed over has left it."""
        return 0.05

    def _uploaded(self, peer: Peer, cohort: Cohort) -> None:
        self._call(peer, lambda p: p.uploaded(cohort.sid))

    def _ship(self, peer: Peer, chunk: Chunk, receivers: Iterable[PeerId]) -> None:
        frame = b"".join(bytes(part) for part in chunk.parts())
        for to in receivers:
            self.on_event("ship", peer)
            if peer.alive:
                self.deliver(peer.id, to, frame, bulk=True)

    def _transfer(self, peer: Peer, sid: bytes, kind: BulkKind, chunks: Any, to: Any) -> None:
        for chunk in chunks:
            frame = peer.participant.payload(sid, kind, chunk) if peer.participant else None
            if frame is not None:
                self._ship(peer, frame, to)

    def _reduce(self, peer: Peer, sid: bytes, chunks: tuple[int, ...]) -> None:
        self.on_event("reduce", peer)
        cohort = peer.participant.cohort(sid) if peer.participant else None
        if cohort is not None:
            for chunk in chunks:
                cohort.reduce(chunk)
            self._later(peer, 0.01, lambda: self._call(peer, lambda p: p.reduced(sid, chunks)))

    def _add_up(self, peer: Peer, sid: bytes, chunks: tuple[int, ...]) -> None:
        self.on_event("add-up", peer)
        across = peer.participant.across(sid) if peer.participant else None
        if across is not None:
            for chunk in chunks:
                across.add_up(chunk)
            self._later(peer, 0.01, lambda: self._call(peer, lambda p: p.added_up(sid, chunks)))

    def _check(self, peer: Peer, sid: bytes, chunks: tuple[int, ...]) -> None:
        self.on_event("check", peer)
        cohort = peer.participant.cohort(sid) if peer.participant else None
        if cohort is not None:
            for chunk in chunks:
                cohort.check(chunk)
            self._later(peer, 0.01, lambda: self._call(peer, lambda p: p.checked(sid, chunks)))

    def _apply(self, peer: Peer, sid: bytes) -> None:
        self.on_event("apply", peer)
        aggregate = peer.participant.aggregate(sid) if peer.participant else None
        if aggregate is None:
            return
        self.sums.setdefault(sid, {})[peer.id] = aggregate
        before = peer.states[max(peer.states)]
        root = digest("sim-state", before, aggregate.root)
        peer.pending = (sid, root)
        self._later(peer, 0.02, lambda: self._call(peer, lambda p: p.applied(sid, root, 1.5)))

    def _hold(self, peer: Peer, record: Record) -> None:
        chain = peer.participant.chain if peer.participant else None
        if chain is None or not chain.holds(record):
            return  # begun on a branch that was left meanwhile
        if peer.chain is not chain:  # a state is on disk together with the chain that certifies it
            certified = {r: chain.record(r).state_root for r in peer.states if r <= chain.head.round}
            peer.states = {r: root for r, root in peer.states.items() if certified.get(r) == root}
            peer.chain = chain
        peer.states[record.round] = record.state_root
        self._call(peer, lambda p: p.holds(record.round, record.state_root))

    def _fetch(self, peer: Peer, record: Record, donors: tuple[PeerId, ...]) -> None:
        for donor in donors:
            other = self.peers[donor]
            linked = (peer.id, donor) not in self.blocked and (donor, peer.id) not in self.blocked
            if other.alive and linked and record.state_root in other.states.values():
                self._hold(peer, record)
                return
        self._later(peer, 0.5, lambda: self._call(peer, lambda p: p.fetch_failed(record.round)))

    def _decided(self, peer: Peer, record: Record) -> None:
        self.records.setdefault(record.round, {})[record.hash()] = record
        self.log(f"decided {peer.id.short} {record.round} {record.hash().hex()[:12]}")
        assert peer.participant is not None
        if peer.chain is None or peer.participant.chain is None or peer.participant.chain.holds(peer.chain.head):
            peer.chain = peer.participant.chain  # another branch replaces it together with its state
        self.on_event("decided", peer)

    # --- oracle -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """The promises: one record per round, equal states behind it, exact sums, and no share that must not leave."""
        assert self.watch.broken == []
        assert set(self.blamed) <= self.watch.liars, "evidence against an honest peer"
        for round_, found in self.records.items():
            assert len(found) == 1, f"round {round_} was decided in {len(found)} ways"
        for peer in self.peers.values():
            for round_, root in peer.states.items():
                for record in self.records.get(round_, {}).values():
                    assert root == record.state_root, f"{peer.id.short} holds another state of round {round_}"
        certified = {record.sid for found in self.records.values() for record in found.values()}
        for sid, results in self.sums.items():
            if self.watch.liars and sid not in certified:
                continue  # a liar's wrong sums may be applied, as long as they are not certified
            for aggregate in results.values():
                self._check_sum(sid, aggregate)

    def _check_sum(self, sid: bytes, aggregate: Aggregate) -> None:
        mine = [self.updates[sid, PeerId(survivor.peer)] for survivor in aggregate.survivors]
        for chunk, ring in enumerate(aggregate.sums):
            if chunk in aggregate.lost:
                assert not ring.any()
                continue
            expected = np.asarray(sum(update[chunk].astype(np.int64) for update in mine))
            if chunk == self.params.layout.trailer and ring.dtype.kind == "i":
                expected = expected % 2**32  # a trailer's words are counts: cohorts' sums are lifted as unsigned ones
                ring = ring % 2**32
            assert np.array_equal(ring, expected.astype(ring.dtype)), f"chunk {chunk} is not the sum"

    def height(self) -> int:
        """The highest decided round."""
        return max(self.records, default=0)

    def reached(self, round_: int, peers: Iterable[PeerId] | None = None) -> bool:
        """Whether all (living) peers hold the state of at least this round's chain position."""
        living = False
        for peer in peers if peers is not None else self.order:
            participant = self.peers[peer].participant
            if participant is not None:
                if participant.round <= round_ or not participant.settled:
                    return False
                living = True
        return living
