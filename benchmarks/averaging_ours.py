"""One peer of ours: the product's `Host`, `Participant` and `Driver`, with a random update in place of a learner.

Training ends for all peers at once, when the coordinator says so; by then keys and shares are exchanged, as they are
while a real peer trains. Everything after is the product's own path: encode, mask, upload, receipts, survivors'
certificate, unmask, signed sums, state root (here a digest over the sums), attestation, agreement, commit.
"""

from __future__ import annotations

import asyncio
import cProfile
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from averaging.aggregate import Aggregate
from averaging.ballots import Ballot, Certificate, Proposal
from averaging.chain import Chain
from averaging.cohort import Cohort
from averaging.driver import Driver
from averaging.encoding import Decoder, Encoder, squared_norm
from averaging.evidence import Proof
from averaging.guard import SqliteGuard
from averaging.layout import Layout, RingArray
from averaging.masking import Masker
from averaging.messages import (
    Attest,
    AuditShares,
    Closed,
    Join,
    Knock,
    Manifest,
    Missing,
    Ready,
    Receipt,
    Roster,
    Seating,
    Shares,
    SumHashes,
    Survivors,
    Unmask,
    Vote,
)
from averaging.params import Deadlines, RunParams
from averaging.participant import Participant
from averaging.record import Record
from averaging.reducing import Inputs
from averaging.sums import Sums
from averaging.trailer import Statistics, pack
from averaging.work import Decided, Joined, ParticipantAction, RolledBack
from benchmarks.averaging_swarm import SAMPLE, Spec, update
from dht.envelope import Envelope
from dht.host import Host
from dht.identity import Identity, PeerId
from dht.transport import Part
from dht.wire import digest, message_type

CLIP = 6e-3
"""Codec scale of every block: six standard deviations of the update."""
SECURITY = ("mask", "unmask", "keys", "shares", "votes", "protocol")
"""What is counted as secure aggregation; `protocol` is what no message caused: the ends of one's own work, timers."""
AGREEING = ("hashes", "agreement")
STEPS: dict[type, str] = {
    **dict.fromkeys((Knock, Join, Roster, Seating, Closed), "keys"),
    **dict.fromkeys((Shares, Ready), "shares"),
    **dict.fromkeys((Receipt, Survivors, Vote), "votes"),
    Unmask: "unmask",
    **dict.fromkeys((Manifest, SumHashes, Missing, AuditShares), "hashes"),
    **dict.fromkeys((Attest, Proposal, Ballot, Certificate), "agreement"),
}
"""What the work that a message causes is counted as."""
_WEIGHT_CAP = 1 << 20
_GENESIS = bytes(32)


class Meters:
    """CPU seconds of this process by what they were spent on, on whichever thread; a block in a block counts once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.on_loop = 0.0
        """Of all of them, what the event loop's thread spent."""
        self._open = threading.local()

    @contextmanager
    def on(self, what: str) -> Iterator[list[str]]:
        """Count the block's CPU time under `what`, and not under what the block around it counts as. The block may put
        another name into the list, once it knows better.
        """
        outer: list[float] | None = getattr(self._open, "inner", None)
        inner, name = [0.0], [what]
        self._open.inner = inner
        started = time.thread_time()
        try:
            yield name
        finally:
            spent = time.thread_time() - started
            self.seconds[name[0]] += spent - inner[0]
            self._open.inner = outer
            if outer is not None:
                outer[0] += spent
            elif threading.current_thread() is threading.main_thread():
                self.on_loop += spent

    def security(self) -> float:
        """What keys, shares, masks, votes and unmasking took so far."""
        return sum(self.seconds[what] for what in SECURITY)

    def agreeing(self) -> float:
        """What hash lists, audits and the committee's agreement took so far: nobody is believed, masks or none."""
        return sum(self.seconds[what] for what in AGREEING)


class BenchmarkWork:
    """Implements `averaging.driver.Work`: the update is fixed, the state is a digest of the sums so far."""

    def __init__(self, spec: Spec, params: RunParams, meters: Meters, pipe: Connection) -> None:
        self._spec, self._layout, self._meters, self._pipe = spec, params.layout, meters, pipe
        self._update = update(spec.index, spec.parameters)
        self._scales = np.full(self._layout.blocks, CLIP, np.float32)
        self._statistics = Statistics(_WEIGHT_CAP, 2.0, 2.0, min(1.0, squared_norm(self._update)), 0.0, 1)
        self._expected = np.load(spec.expected)
        self._mean = np.empty(self._layout.elements, np.float32)
        """Kept, as a learner adds to the state that it has: fresh memory would cost as much as half of decoding."""
        self._encoder: Encoder | None = None
        self._dither = b""
        self._root = self._next = _GENESIS
        self.released = asyncio.Event()
        self.moments: dict[str, float] = {}
        self.wrong = 1.0

    async def train(self, round_: int) -> int:
        """Wait for the coordinator's word."""
        await self.released.wait()
        self.released.clear()
        return _WEIGHT_CAP

    def interrupt(self) -> None:
        """Training never runs into a decision here."""

    async def prepare(self, cohort: Cohort) -> None:
        """As a learner does: fresh signs and dither for each sid."""
        self._encoder = self._codec(Encoder, cohort.roster.round_sid)
        self._dither = os.urandom(16)

    def _codec(self, kind: Any, sid: bytes) -> Any:
        return kind(self._layout, self._spec.peers, self._scales, digest("signs", sid))

    def encode(self, cohort: Cohort, chunk: int) -> RingArray:
        """One chunk's ring elements."""
        with self._meters.on("encode"):
            if chunk == self._layout.trailer:
                return pack(self._statistics).astype("<u4")
            assert self._encoder is not None
            ring = self._layout.empty(chunk)
            self._encoder.encode_chunk(chunk, self._update, 1.0, self._dither, ring)
            return ring

    async def apply(self, aggregate: Aggregate) -> tuple[bytes, float]:
        """All sums are here and checked: the moment that counts. Then decode them, as a learner would."""
        self.moments["sum"] = time.monotonic()
        mean = await asyncio.to_thread(self._decode, aggregate)
        self.moments["decoded"] = time.monotonic()
        self.wrong = float((np.abs(mean[::SAMPLE] - self._expected) > 2 * CLIP / self._levels(aggregate.sid)).mean())
        self._next = digest("benchmark-state", self._root, aggregate.root)
        return self._next, 2.0

    def _levels(self, sid: bytes) -> int:
        return int(self._codec(Decoder, sid).levels)

    def _decode(self, aggregate: Aggregate) -> npt.NDArray[np.float32]:
        with self._meters.on("decode"):
            decoder = self._codec(Decoder, aggregate.sid)
            for chunk in range(self._layout.chunks):
                part, weight = self._layout.slice(chunk), float(len(aggregate.survivors))
                decoder.decode_chunk(chunk, aggregate.sums[chunk], weight, self._mean[part])
            return self._mean[: self._layout.parameters]

    async def commit(self, record: Record, chain: Chain) -> None:
        """Become what `apply` announced."""
        self._root = self._next

    async def fetch(self, record: Record, chain: Chain, donors: Sequence[PeerId]) -> bool:
        """The others decided and told me of it before I was through: adopt my own result, as a learner does."""
        if record.state_root != self._next:
            self._pipe.send(("error", f"this peer missed round {record.round}"))
            return False
        self._root = self._next
        return True


class BenchmarkObserver:
    """Reports a decided round."""

    def __init__(self) -> None:
        self.decision: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.notes: list[str] = []

    def joined(self, joined: Joined) -> None:
        """Not used: `_until_ready` looks at the cohort itself."""

    def step(self, round_: int, attempt: int, name: str) -> None:
        """Not used."""

    def decided(self, decided: Decided, cohort: Cohort | None) -> None:
        """The committee's certificate is here."""
        if decided.record.round and not self.decision.done() and decided.included and not decided.record.lost_chunks:
            self.decision.set_result(time.monotonic())

    def rolled_back(self, event: RolledBack) -> None:
        """Not used: one network, one branch."""

    def settled(self, round_: int) -> None:
        """The state is adopted: at the latest now the certificate is here."""
        if round_ and not self.decision.done():
            self.decision.set_result(time.monotonic())

    def blamed(self, proof: Proof, evidence: bytes) -> None:
        """Nobody lies here."""
        raise AssertionError(proof.text)

    def note(self, text: str, peer: PeerId | None) -> None:
        """Kept for the error message, should the swarm stop."""
        self.notes.append(text)


def _instrument(meters: Meters) -> None:
    """Time the product's own functions where they are called; the clock read costs a microsecond per chunk."""
    protocol = ("start", "learned", "receive_chunk", "timeout", "trained", "uploaded", "reduced", "added_up")
    for owner, name, what in (
        (Masker, "apply", "mask"),
        (Cohort, "reduce", "unmask"),
        (Cohort, "mask", "hash"),
        (Inputs, "add", "hash"),
        (Sums, "add", "hash"),
        *((Participant, name, "protocol") for name in (*protocol, "applied", "holds", "suspect")),
    ):
        inner = getattr(owner, name)

        def timed(*args: Any, _inner: Any = inner, _what: str = what, **options: Any) -> Any:
            with meters.on(_what):
                return _inner(*args, **options)

        setattr(owner, name, timed)
    _sort_by_message(meters)


def _sort_by_message(meters: Meters) -> None:
    """Time what a message causes under the step that it belongs to. Its tag is known once its signature is checked."""
    steps = {message_type(kind).tag: what for kind, what in STEPS.items()}
    tags: list[int] = []
    check, receive = Envelope.check, Participant.receive

    def noted(self: Envelope, run: bytes) -> PeerId:
        tags.append(self.body[0])
        return check(self, run)

    def timed(self: Participant, sender: PeerId, frame: bytes | memoryview) -> list[ParticipantAction]:
        with meters.on("protocol") as name:
            tags.clear()
            try:
                return receive(self, sender, frame)
            finally:
                name[0] = steps.get(tags[0], "protocol") if tags else "protocol"

    for owner, name, replaced in ((Envelope, "check", noted), (Participant, "receive", timed)):
        setattr(owner, name, replaced)


def run_params(spec: Spec, founder: PeerId) -> RunParams:
    """The parameters of a run in which nobody is ever late."""
    return RunParams(
        digest("benchmark-run", bytes(founder), bytes([spec.copies])),
        founder,
        Layout(spec.parameters, spec.ring_bits, spec.chunk_elements),
        genesis_peers=spec.peers,
        target=spec.peers,
        minimum=spec.peers,
        weight_cap=_WEIGHT_CAP,
        reducer_copies=spec.copies,
        audit_share=spec.audit_share,
        deadlines=Deadlines(30.0, 30.0, 600.0, 60.0, 30.0, 30.0, 60.0, 30.0),
    )


def serve(pipe: Connection, spec: Spec) -> None:
    """The process of one peer; returns when told to stop."""
    asyncio.run(_serve(pipe, spec))


async def _serve(pipe: Connection, spec: Spec) -> None:
    folder = Path(spec.folder) / str(spec.index)
    identity = Identity.load_or_create(folder / "identity.key")
    host = await Host.start(folder / "identity.key", direct=spec.direct)
    words = _words(pipe)
    guard = SqliteGuard(folder / "guard.sqlite")
    try:
        pipe.send(("address", (str(identity.peer_id), host.addresses())))
        known = {PeerId.parse(text): addresses for text, addresses in await words.get()}
        for peer, addresses in known.items():
            if peer != identity.peer_id:
                host.learn(peer, addresses)
        params = run_params(spec, next(iter(known)))
        meters, observer = Meters(), BenchmarkObserver()
        _instrument(meters)
        work = BenchmarkWork(spec, params, meters, pipe)
        driver = Driver(Participant(params, identity, guard, os.urandom, _GENESIS), host, work, observer)
        host.serve(driver.on_frame, _no_requests)
        driver.start()
        driver.learned(list(known))
        await _rounds(pipe, words, driver, host, work, observer, meters, spec)
        await driver.stop()
    finally:
        guard.close()
        await host.stop()


async def _no_requests(peer: PeerId, frame: memoryview) -> Sequence[Part]:
    raise AssertionError("nobody asks for state in this benchmark")


def _words(pipe: Connection) -> asyncio.Queue[Any]:
    queue: asyncio.Queue[Any] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            queue.put_nowait(pipe.recv())
        except EOFError:
            loop.remove_reader(pipe.fileno())
            queue.put_nowait("stop")

    loop.add_reader(pipe.fileno(), read)
    return queue


async def _until_ready(driver: Driver) -> None:
    """Until keys and shares of the coming round are exchanged, so that only the update is missing."""
    while driver.participant.current is None or (cohort := driver.participant.current.cohort) is None:
        await _pause(driver)
    while "shares" not in cohort._done:
        await _pause(driver)


async def _pause(driver: Driver) -> None:
    if driver.failed.done():
        driver.failed.result()
    await asyncio.sleep(0.02)


async def _rounds(
    pipe: Connection,
    words: asyncio.Queue[Any],
    driver: Driver,
    host: Host,
    work: BenchmarkWork,
    observer: BenchmarkObserver,
    meters: Meters,
    spec: Spec,
) -> None:
    secured = agreed = 0.0
    profile = cProfile.Profile(time.thread_time) if spec.profile and spec.index == 0 else None
    while True:
        await _until_ready(driver)
        pipe.send(("ready", None))
        if await words.get() == "stop":
            break
        observer.decision = asyncio.get_running_loop().create_future()
        before, spent = host.counters.total(), dict(meters.seconds)
        loop_before, counted_before = time.thread_time(), meters.on_loop
        if profile:
            profile.enable()
        work.released.set()
        decided = await observer.decision
        if profile:
            profile.disable()
        after = host.counters.total()
        report = {"decided": decided, **work.moments, "wrong": work.wrong, "group": spec.peers}
        report |= {"up": after.up - before.up, "down": after.down - before.down}
        report |= {f"cpu_{what}": total - spent.get(what, 0.0) for what, total in meters.seconds.items()}
        report["cpu_send"] = time.thread_time() - loop_before - (meters.on_loop - counted_before)
        report["security"], secured = meters.security() - secured, meters.security()
        report["agreeing"], agreed = meters.agreeing() - agreed, meters.agreeing()
        pipe.send(("done", report))
    if profile:
        profile.dump_stats(spec.profile)
