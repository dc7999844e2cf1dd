"""Cohorts in one process under virtual time: real masks, shares and guards, an oracle that knows every update.

A test plans deaths (`plan`), changes what liars send (`tamper`), and reads what was on the wire (`sent`).
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from averaging.actions import CancelTimer, Note, Send, SetTimer
from averaging.bulk import BulkKind, Chunk
from averaging.cohort import Cohort
from averaging.guard import MemoryGuard
from averaging.keys import MemberSecrets
from averaging.layout import Layout
from averaging.messages import Join, Seating
from averaging.params import Deadlines, RunParams
from averaging.roster import CheckedRoster, check_roster, convener, make_roster, make_seatings
from averaging.scales import levels
from averaging.work import Check, Reduce, Show, Transfer, Upload
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError
from dht.identity import Identity, PeerId
from dht.wire import decode_as, digest, encode

RUN = digest("test-run")
HEAD = digest("test-head")
FIRST = 0.3
"""Seconds that a message takes at most, unless a test says otherwise; every deadline is longer than several."""


@lru_cache
def identity(index: int) -> Identity:
    return Identity(digest("test-identity", index.to_bytes(2, "big")))


def small_params(n: int, bits: int = 16, chunks: int | None = None, **changes: Any) -> RunParams:
    """One Hadamard block a chunk, and a chunk for everybody unless `chunks` says otherwise."""
    layout = Layout((chunks or n) * 4096 - 5, bits, 4096)
    limits = Deadlines(2.0, 4.0, 4.0, 6.0, 4.0, 2.0, 6.0, 3.0)
    return RunParams(RUN, identity(0).peer_id, layout, **{"minimum": 3, "target": 64, "deadlines": limits, **changes})


def make_secrets(n: int, seed: int) -> list[MemberSecrets]:
    return [MemberSecrets.generate(random.Random(f"{seed} {i}").randbytes) for i in range(n)]


def sign_joins(secrets: Mapping[int, MemberSecrets], attempt: int = 0, round_: int = 1) -> dict[int, Envelope]:
    joins = {}
    for i, secret in secrets.items():
        public = secret.public()
        keys = (public.mask_key, public.share_key, public.self_commitment, public.audit_commitment)
        joins[i] = seal(
            identity(i), RUN, round_, Join(round_, attempt, HEAD, *keys, digest("nonce", secret.e), 100, 100, ())
        )
    return joins


def sign_roster(params: RunParams, joins: Iterable[Envelope], attempt: int = 0, round_: int = 1) -> Seating:
    """The only cohort of the roster of these Joins, signed by the convener out of the members' committee."""
    by_peer = {join.check(RUN): join for join in joins}
    roster = make_roster(round_, attempt, HEAD, by_peer)
    by_id = {identity(i).peer_id: identity(i) for i in range(64)}
    signed = seal(by_id[convener(HEAD, sorted(by_peer), attempt)], RUN, round_, roster)
    ((_, seating),) = make_seatings(params, signed, by_peer)
    return seating


def accept_roster(params: RunParams, seating: Seating, mine: Envelope, round_: int = 1) -> CheckedRoster:
    """What a member makes of a roster."""
    joins = [decode_as(Envelope, frame) for frame in seating.joins]
    committee = tuple(sorted(join.check(RUN) for join in joins))
    return check_roster(seating, params, round_, HEAD, committee, mine)


class Node:
    """One member: its machine, its disk, and what it had encoded before it was masked."""

    def __init__(self, identity: Identity, secrets: MemberSecrets, guard: MemoryGuard) -> None:
        self.identity, self.secrets, self.guard = identity, secrets, guard
        self.cohort: Any = None
        self.alive = True
        self.complete = False
        self.timers: dict[Any, int] = {}
        self.encoded: dict[int, np.ndarray[Any, Any]] = {}


class CohortNet:
    """`n` members of one sid. Members are numbered in cohort order; node i is the member with index i."""

    def __init__(self, n: int, bits: int = 16, seed: int = 0, *, attempt: int = 0, guards: Any = None, **changes: Any):
        self.random = random.Random(f"{n} {bits} {seed} {attempt}")
        self.params = small_params(n, bits, **changes)
        secrets = dict(enumerate(make_secrets(n, seed * 1000 + attempt)))
        joins = sign_joins(secrets, attempt)
        self.seating = sign_roster(self.params, joins.values(), attempt)
        self.roster = accept_roster(self.params, self.seating, joins[0])
        number = {identity(i).peer_id: i for i in range(n)}
        self.nodes = []
        for peer in self.roster.peers:
            i = number[peer]
            guard = guards[peer] if guards else MemoryGuard()
            self.nodes.append(Node(identity(i), secrets[i], guard))
        self.guards = {node.identity.peer_id: node.guard for node in self.nodes}
        self.now, self._count = 0.0, 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self.delay: Callable[[int, int, Any], float | None] = lambda i, j, item: self.random.uniform(0.001, FIRST)
        self.tamper: Callable[[int, int, Any], Any] = lambda i, j, item: item
        self.plan: dict[int, tuple[str, int]] = {}
        self.announce = 0.5
        self.fired: list[tuple[int, str]] = []
        self.counts: Counter[tuple[int, str]] = Counter()
        self.sent: list[tuple[int, int, Any]] = []
        self.times: list[tuple[float, float]] = []
        """When each of `sent` was sent, and when it arrived (infinity: never)."""
        self.refusals: list[tuple[int, int, ProtocolError]] = []
        self.notes: list[tuple[int, Note]] = []
        self._last: dict[tuple[int, int], float] = {}

    # --- running ------------------------------------------------------------------------------------------------

    def make_cohort(self, i: int) -> Cohort:
        """Member i's machine; a second one is what a restart that kept its secrets would be."""
        node = self.nodes[i]
        source = random.Random(f"shares {node.secrets.e!r}").randbytes
        cohort = Cohort(self.params, node.identity, self.roster, node.secrets, node.guard, source)
        cohort.seating = self.seating
        return cohort

    def run(self, limit: float = 120.0) -> CohortNet:
        """Start everybody and go on until nothing is left to do."""
        for node in self.nodes:
            if node.cohort is None:
                node.cohort = self.make_cohort(self.nodes.index(node))
        for i, node in enumerate(self.nodes):
            self.act(i, node.cohort.start())
            self.at(self.random.uniform(0, 1), lambda i=i: self.call(i, lambda c: c.update_ready(100 + i)))
        return self.run_on(limit)

    def run_on(self, limit: float = 120.0) -> CohortNet:
        """Go on until nothing is left to do, or `limit` seconds from the start."""
        while self._queue and self._queue[0][0] < limit:
            self.now, _, call = heapq.heappop(self._queue)
            call()
        return self

    def at(self, delay: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay, self._count, call))

    def kill(self, i: int) -> None:
        self.nodes[i].alive = False
        for j in range(len(self.nodes)):
            if self.random.random() < self.announce:
                # A connection breaks after what was sent over it has arrived.
                after = max(0.0, self._last.get((i, j), 0.0) - self.now)
                self.at(after + self.random.uniform(0.01, 0.5), lambda j=j: self._lost(j, i))

    def _lost(self, j: int, gone: int) -> None:
        self.call(j, lambda c: c.suspect(self.roster.peers[gone]))

    def step(self, i: int, name: str) -> bool:
        """Member i is about to do something; whether it lives to do it."""
        if not self.nodes[i].alive:
            return False
        self.counts[i, name] += 1
        if self.plan.get(i) == (name, self.counts[i, name]):
            self.fired.append((i, name))
            self.kill(i)
        return self.nodes[i].alive

    def call(self, i: int, call: Callable[[Cohort], Any]) -> None:
        if self.nodes[i].alive:
            self.act(i, call(self.nodes[i].cohort))

    def act(self, i: int, actions: Iterable[Any]) -> None:
        node = self.nodes[i]
        for action in actions:
            if not node.alive:
                return
            self._do(i, node, action)
        if node.alive and not node.complete and node.cohort.certified and node.cohort.sums.complete:
            node.complete = True
            self.step(i, "complete")

    def _do(self, i: int, node: Node, action: Any) -> None:
        match action:
            case Send(to, envelope):
                self.send(i, self.roster.peers.index(to), envelope.message(), envelope)
            case SetTimer(key, delay):
                stamp = node.timers[key] = self._count + 1
                self.at(delay, lambda: self._timer(i, key, stamp))
            case CancelTimer(key):
                node.timers.pop(key, None)
            case Note():
                self.notes.append((i, action))
            case Upload(_, plan):
                self._upload(i, node, plan)
            case Reduce(_, chunks):
                if self.step(i, "Reduce"):
                    for chunk in chunks:
                        node.cohort.reduce(chunk)
                    self.at(0.01, lambda: self.step(i, "reduced") and self.call(i, lambda c: c.reduced(chunks)))
            case Transfer(_, kind, chunks, to):
                for chunk in chunks:
                    self._ship(i, node.cohort.payload(kind, chunk), to)
            case Show(_, inputs, to):
                for member, chunk in inputs:
                    self._ship(i, node.cohort.shown(member, chunk), (to,))
            case Check(_, chunks):
                if self.step(i, "Check"):
                    for chunk in chunks:
                        node.cohort.check(chunk)
                    self.at(0.01, lambda: self.call(i, lambda c: c.checked(chunks)))
            case _:
                raise AssertionError(f"an action without a driver: {action}")

    def _timer(self, i: int, key: Any, stamp: int) -> None:
        if self.nodes[i].timers.get(key) == stamp:
            del self.nodes[i].timers[key]
            self.call(i, lambda c: c.timeout(key))

    def _upload(self, i: int, node: Node, plan: Any) -> None:
        if not self.step(i, "Upload"):
            return
        source = np.random.default_rng(self.random.getrandbits(64))
        for chunk, receivers in plan:
            limit = levels(self.params.layout, len(self.nodes))
            signed = node.encoded[chunk] = source.integers(-limit, limit + 1, self.params.layout.words(chunk))
            ring = signed.astype(self.params.layout.dtype(chunk))
            node.cohort.mask(chunk, ring)
            self._ship(i, node.cohort.payload(BulkKind.MASKED, chunk), receivers)
        self.at(0.01, lambda: self.call(i, lambda c: c.uploaded()))

    def _ship(self, i: int, chunk: Chunk, receivers: Any) -> None:
        copy = Chunk(chunk.kind, chunk.sid, chunk.member, chunk.index, bytes(chunk.data))
        for to in receivers:
            self.send(i, self.roster.peers.index(to), copy, None)

    # --- the wire -----------------------------------------------------------------------------------------------

    def send(self, i: int, j: int, item: Any, envelope: Envelope | None) -> None:
        """Member i sends a message or chunk to j; what `tamper` changed is signed again by i."""
        if not self.step(i, f"{item.kind.name} chunk" if isinstance(item, Chunk) else type(item).__name__):
            return
        changed = self.tamper(i, j, item)
        if changed is None:
            return
        self.inject(i, j, changed, envelope if changed is item else None)

    def inject(self, i: int, j: int, item: Any, envelope: Envelope | None = None) -> None:
        """Put something on the wire from i to j, signed by i."""
        if envelope is None and not isinstance(item, Chunk):
            envelope = seal(self.nodes[i].identity, RUN, self.roster.round, item)
        self.sent.append((i, j, item))
        delay = self.delay(i, j, item)
        self.times.append((self.now, math.inf if delay is None else self.now + delay))
        if delay is not None:
            self._last[i, j] = max(self._last.get((i, j), 0.0), self.now + delay)
            self.at(delay, lambda: self._arrive(i, j, item, envelope))

    def _arrive(self, i: int, j: int, item: Any, envelope: Envelope | None) -> None:
        if not self.nodes[j].alive:
            return
        cohort = self.nodes[j].cohort
        try:
            if envelope is None:
                actions = cohort.receive_chunk(self.roster.peers[i], item)
            else:  # whoever brings it: what counts is who signed it
                actions = cohort.receive(PeerId(envelope.sender), item, encode(envelope))
        except ProtocolError as error:
            self.refusals.append((i, j, error))
            return
        self.act(j, actions)

    def messages(self, cls: type, sender: int | None = None) -> list[Any]:
        """Every message of a class that was put on the wire."""
        return [item for i, _, item in self.sent if isinstance(item, cls) and sender in (None, i)]

    # --- oracle -------------------------------------------------------------------------------------------------

    @property
    def living(self) -> list[int]:
        return [i for i, node in enumerate(self.nodes) if node.alive]

    def check_sums(self, members: Iterable[int] | None = None) -> tuple[int, ...]:
        """Every one of these (the living) holds the exact integer sum of one survivor set; returns the lost chunks."""
        cohorts = [self.nodes[i].cohort for i in (self.living if members is None else members)]
        for cohort in cohorts:
            assert cohort.failed is None, cohort.failed
            assert cohort.certified is not None and cohort.sums.complete, "no complete sum"
        assert len({cohort.certified.survivors for cohort in cohorts}) == 1, "two survivor sets"
        assert len({cohort.sums.lost for cohort in cohorts}) == 1, "the lost chunks differ"
        assert len({cohort.sums.root() for cohort in cohorts}) == 1, "the aggregate roots differ"
        lost = cohorts[0].sums.lost
        for cohort in cohorts:
            for chunk in range(self.params.layout.total_chunks):
                ring = cohort.sums.ring(chunk)
                signed = ring.view(f"i{ring.itemsize}")
                if chunk in lost:
                    assert not signed.any()
                else:
                    total = sum(self.nodes[i].encoded[chunk] for i in cohort.certified.survivors)
                    assert np.array_equal(signed, total), f"chunk {chunk} is not the integer sum"
        return tuple(lost)
