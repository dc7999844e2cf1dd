"""One agreement on an in-memory network under virtual time: seeded, replayable, with every fault the seed asks for.

The net watches from above. `certifiable` collects each record for which a quorum of precommits was signed at all,
whether or not anybody received them, so that safety is about what could ever be shown to a joiner.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random

from averaging import certificate as certificates
from averaging.actions import CancelTimer, Send, SetTimer, TimerKey
from averaging.agreement import Agreement, Timeouts, Verdict
from averaging.ballots import PRECOMMIT, PREVOTE, Ballot, Certificate, Decision, Gossip, Proposal
from averaging.guard import MemoryGuard
from averaging.record import Record, Survivor, found, void_record
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError
from dht.identity import Identity, PeerId
from dht.wire import encode

RUN = hashlib.sha256(b"agreement simulation").digest()
ROUND = 1
CANDIDATES = 3
SPEED = Timeouts(propose=0.6, prevote=0.3, precommit=0.3, growth=0.3, ceiling=30.0, resend=0.7)


@cache
def identity(index: int) -> Identity:
    return Identity(hashlib.sha256(b"member %d" % index).digest())


@cache
def founding_record(n: int) -> Record:
    members = tuple(identity(i).peer_id for i in range(n))
    return found(identity(0), RUN, members, b"s" * 32, b"n" * 32).message().record()


@cache
def candidates(n: int) -> tuple[Record, ...]:
    """Several records that honest members find valid: the hardest case for agreement. The last one is void."""
    void = void_record(founding_record(n))
    survivors = tuple(Survivor(member, 10, 1) for member in founding_record(n).members())
    real = [replace(void, void=False, attempt=i, survivors=survivors) for i in range(CANDIDATES)]
    return (*real, void)


@dataclass
class Weather:
    """What the network does to messages until `heals`; afterwards it is quick and loses nothing."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.01
    splits: list[tuple[float, float, frozenset[int]]] = field(default_factory=list)
    heals: float = 0.0
    drop: Callable[[int, int, Envelope, float], bool] | None = None


class Node:
    """A member. `agreement` is None while it is down; `guard` is its disk."""

    def __init__(self, index: int, candidate: Record, knows_at: float) -> None:
        self.index, self.candidate, self.knows_at = index, candidate, knows_at
        self.guard = MemoryGuard()
        self.agreement: Agreement | None = None
        self.timers: dict[TimerKey, int] = {}


class Net:
    """`n` members; those in `liars` are driven by `Liar`, the `dead` never start. Same arguments, same trace."""

    def __init__(
        self,
        seed: int,
        n: int,
        weather: Weather,
        *,
        liars: frozenset[int] = frozenset(),
        rules: type[Agreement] = Agreement,
        slow: float = 0.0,
        starts: float = 0.2,
        dead: frozenset[int] = frozenset(),
    ) -> None:
        self.random, self.n, self.weather, self.liars, self.rules = Random(seed), n, weather, liars, rules
        self.now = 0.0
        self.fired: Counter[str] = Counter()
        self.head = founding_record(n)
        self.committee = self.head.members()
        self.index_of = {member: i for i, member in enumerate(self.committee)}
        by_peer = {identity(i).peer_id: identity(i) for i in range(n)}
        self.identities = [by_peer[member] for member in self.committee]
        self.records = candidates(n)
        self.hashes = {record.hash(): record for record in self.records}
        pick = self.random.randrange(CANDIDATES + 1)
        self.nodes = [
            Node(i, self.records[(pick + i) % len(self.records)], self.random.uniform(0, slow)) for i in range(n)
        ]
        self.decided: dict[bytes, set[int]] = defaultdict(set)
        self.certifiable: set[bytes] = set()
        self.contradictions: set[tuple[int, int, str]] = set()
        self._precommits: dict[tuple[int, bytes], set[int]] = defaultdict(set)
        self._said: dict[tuple[int, int, str], bytes] = {}
        self._heap: list[tuple[float, int, str, tuple]] = []
        self._serial = 0
        self._timer_serial = 0
        self._trace = hashlib.sha256()
        self._seen_on_wire: set[Envelope] = set()
        self.schemers = {i: Liar(self, i) for i in sorted(liars)}
        self.dead = dead
        for i in set(range(n)) - dead:
            self.at(self.random.uniform(0, starts), "start", i)

    # What tests ask

    @property
    def honest(self) -> list[Node]:
        return [node for node in self.nodes if node.index not in self.liars | self.dead]

    @property
    def trace(self) -> str:
        return self._trace.hexdigest()

    def all_decided(self) -> bool:
        return all(node.agreement is not None and node.agreement.decision for node in self.honest)

    def proposers(self) -> list[int]:
        return [self.index_of[p] for p in certificates.proposers(self.committee, self.head.hash())]

    def run(self, until: float, *, stop_when_decided: bool = True) -> None:
        """Play events up to a virtual time, or until every honest member holds a decision."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, kind, payload = heapq.heappop(self._heap)
            self._trace.update(f"{self.now:.9f} {kind} {payload[0]} ".encode())
            getattr(self, f"_on_{kind}")(*payload)
            if stop_when_decided and kind == "message" and self.all_decided():
                return
        self.now = until

    def close(self) -> None:
        for node in self.nodes:
            node.guard.close()

    # Faults

    def crash(self, index: int, *, back_after: float, forget: bool = False) -> None:
        """Kill a member now and start it again later, with its disk or (`forget`) without."""
        node = self.nodes[index]
        if node.agreement is None:
            return
        self.fired["crash"] += 1
        node.agreement, node.timers = None, {}
        if forget:
            node.guard.close()
            node.guard = MemoryGuard()
        self.at(self.now + back_after, "start", index)

    def at(self, when: float, kind: str, *payload: object) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (when, self._serial, kind, payload))

    # Events

    def _on_start(self, index: int) -> None:
        node = self.nodes[index]
        if index in self.schemers:
            self.schemers[index].start()
            return
        if node.agreement is not None:
            return
        node.agreement = self.member(index, node.guard, lambda: self._candidate(node))
        if self.now < node.knows_at:
            self.at(node.knows_at, "learn", index)
        self.at(max(10.0, self.now), "learn", index)
        self._do(index, node.agreement.start())

    def member(self, index: int, guard: MemoryGuard, propose: Callable[[], Record | None]) -> Agreement:
        """A state machine for one member's key."""
        return self.rules(
            RUN,
            ROUND,
            self.committee,
            self.identities[index],
            self.head.hash(),
            guard,
            SPEED,
            validate=lambda record: self._judge(self.nodes[index], record),
            propose=propose,
        )

    def _candidate(self, node: Node) -> Record | None:
        if self.now >= node.knows_at:
            return node.candidate
        return self.records[-1] if self.now >= 10.0 else None

    def _judge(self, node: Node, record: Record) -> Verdict:
        if record.hash() not in self.hashes:
            self.fired["invalid proposal"] += 1
            return Verdict.INVALID
        if record.void or self.now >= node.knows_at:
            return Verdict.VALID
        self.fired["unknown yet"] += 1
        return Verdict.UNKNOWN_YET

    def _on_scheme(self, index: int) -> None:
        self.schemers[index].scheme()
        self.at(self.now + self.random.uniform(0.2, 1.0), "scheme", index)

    def _on_learn(self, index: int) -> None:
        node = self.nodes[index]
        if node.agreement is not None:
            self._do(index, node.agreement.revalidate())

    def _on_crash(self, index: int, back_after: float) -> None:
        self.crash(index, back_after=back_after)

    def _on_timer(self, index: int, key: TimerKey, serial: int) -> None:
        node = self.nodes[index]
        if node.agreement is not None and node.timers.get(key) == serial:
            del node.timers[key]
            self._do(index, node.agreement.timeout(key))

    def _on_message(self, to: int, source: int, envelope: Envelope) -> None:
        self._trace.update(envelope.signature)
        node = self.nodes[to]
        if to in self.schemers:
            self.schemers[to].receive(envelope)
        elif node.agreement is None:
            self.fired["sent to the dead"] += 1
        else:
            try:
                actions = node.agreement.receive(envelope)
            except ProtocolError as error:
                if source not in self.liars:
                    raise AssertionError(f"honest {source} was refused by {to}") from error
                self.fired["refused"] += 1
            else:
                self._do(to, actions)

    def _do(self, index: int, actions: list) -> None:
        node = self.nodes[index]
        for action in actions:
            if isinstance(action, Send):
                self.send(index, self.index_of[action.to], action.message)
            elif isinstance(action, SetTimer):
                self._timer_serial += 1
                node.timers[action.key] = self._timer_serial
                self.at(self.now + action.delay, "timer", index, action.key, self._timer_serial)
            elif isinstance(action, CancelTimer):
                node.timers.pop(action.key, None)
        if node.agreement is not None and node.agreement.decision:
            record, certificate = node.agreement.decision
            if index not in self.decided[record.hash()]:
                certificates.verify(certificate, record, self.committee, RUN)
                self.decided[record.hash()].add(index)

    # The wire

    def send(self, source: int, to: int, envelope: Envelope) -> None:
        """Put a message on the wire, where the weather may lose, double or delay it."""
        self.watch(envelope)
        weather = self.weather
        if self.now >= weather.heals:
            self.at(self.now + self.random.uniform(0.001, 0.05), "message", to, source, envelope)
            return
        if weather.drop is not None and weather.drop(source, to, envelope, self.now):
            self.fired["dropped"] += 1
            return
        if any(start <= self.now < end and (source in side) != (to in side) for start, end, side in weather.splits):
            self.fired["split"] += 1
            return
        if self.random.random() < weather.loss:
            self.fired["lost"] += 1
            return
        copies = 1
        if self.random.random() < weather.duplicate:
            self.fired["duplicated"] += 1
            copies = 2
        for _ in range(copies):
            # A heavy tail reorders: now and then a message is ten times as slow as its neighbours.
            stretch = 10.0 if self.random.random() < 0.1 else 1.0
            self.fired["delayed"] += stretch > 1.0
            self.at(self.now + self.random.uniform(0.2, 1.0) * weather.delay * stretch, "message", to, source, envelope)

    def watch(self, envelope: Envelope) -> None:
        """Note what was signed: who could certify what, and whether an honest member contradicts itself."""
        if envelope in self._seen_on_wire:
            return
        self._seen_on_wire.add(envelope)
        try:
            sender = self.index_of[envelope.check(RUN)]
            body = envelope.message()
        except ProtocolError:
            return
        if isinstance(body, Ballot) and envelope.round == body.round == ROUND:
            if body.kind == PRECOMMIT and body.value != bytes(32):
                voters = self._precommits[body.view, body.value]
                voters.add(sender)
                if len(voters) >= certificates.quorum(self.n):
                    self.certifiable.add(body.value)
            self._compare(sender, body.view, f"ballot {body.kind}", envelope.body)
        elif isinstance(body, Proposal):
            self._compare(sender, body.view, "proposal", envelope.body)

    def _compare(self, sender: int, view: int, what: str, said: bytes) -> None:
        if self._said.setdefault((sender, view, what), said) != said:
            if sender in self.liars:
                self.fired["equivocated"] += 1
            else:
                self.contradictions.add((sender, view, what))


class Liar:
    """A member that lies: runs two lives at once towards two halves, votes for everything it hears of, replays, and
    makes things up. It signs only with its own key.
    """

    def __init__(self, net: Net, index: int) -> None:
        self.net, self.index, self.key = net, index, net.identities[index]
        self.random = Random(net.random.random())
        self.heard: list[Envelope] = []
        self.values: list[tuple[int, bytes]] = []
        self.silent = self.random.random() < 0.15
        self.others = [i for i in range(net.n) if i != index]
        self.random.shuffle(self.others)
        half = len(self.others) // 2
        self.halves = (self.others[:half], self.others[half:])
        self.lives: list[Agreement] = []

    def start(self) -> None:
        records = self.net.records
        for life in range(2):
            record = records[(self.index + life) % len(records)]
            if self.random.random() < 0.4:
                record = self._made_up()
            guard = MemoryGuard()
            self.lives.append(self.net.member(self.index, guard, lambda record=record: record))
            self._speak(life, self.lives[life].start())
        self.net.at(self.net.now + 0.3, "scheme", self.index)

    def receive(self, envelope: Envelope) -> None:
        self.heard.append(envelope)
        body = envelope.message()
        if isinstance(body, Ballot | Proposal):
            self.values.append((body.view, body.value))
        for life, agreement in enumerate(self.lives):
            try:
                self._speak(life, agreement.receive(envelope))
            except ProtocolError:
                self.net.fired["liar met a liar"] += 1

    def scheme(self) -> None:
        """Once in a while, do something that the protocol forbids."""
        move = self.random.choice((self._vote_for_all, self._vote_for_all, self._replay, self._invent, self._forge))
        move()
        for life, agreement in enumerate(self.lives):
            # Its lives need no clock: any timer that is due runs out now and then.
            for key in sorted(agreement._timers):
                if self.random.random() < 0.5:
                    self._speak(life, agreement.timeout(key))

    def _speak(self, life: int, actions: list) -> None:
        for action in actions:
            if isinstance(action, Send) and self.net.index_of[action.to] in self.halves[life]:
                self._send(self.net.index_of[action.to], action.message)

    def _send(self, to: int, envelope: Envelope) -> None:
        if not self.silent:
            self.net.send(self.index, to, envelope)

    def _sign(self, body: object) -> Envelope:
        return seal(self.key, RUN, ROUND, body)

    def _vote_for_all(self) -> None:
        for view, value in self.random.sample(self.values, min(2, len(self.values))):
            for to in self.others:
                kind = self.random.choice((PREVOTE, PRECOMMIT))
                chosen = self.random.choice((value, value, bytes(32), self.random.choice(list(self.net.hashes))))
                self._send(to, self._sign(Ballot(ROUND, view + self.random.choice((0, 0, 1)), kind, chosen)))

    def _replay(self) -> None:
        for envelope in self.random.sample(self.heard, min(3, len(self.heard))):
            self.net.fired["replayed"] += 1
            self._send(self.random.choice(self.others), envelope)

    def _invent(self) -> None:
        """Two proposals whenever it is its turn, one of them of a record that nobody computed."""
        proposers = self.net.proposers()
        view = max((view for view, _ in self.values), default=0)
        view += (proposers.index(self.index) - view) % self.net.n
        for record, side in ((self._made_up(), self.halves[0]), (self.random.choice(self.net.records), self.halves[1])):
            proposal = Proposal(ROUND, view, record.hash(), 0, encode(record), (), ())
            for to in side:
                self._send(to, self._sign(proposal))

    def _forge(self) -> None:
        """Unbacked proofs, certificates and signatures."""
        record = self.random.choice(self.net.records)
        signers = tuple(range(certificates.quorum(self.net.n)))
        junk = tuple(self.random.randbytes(64) for _ in signers)
        fake = Certificate(ROUND, 0, record.hash(), signers, junk)
        stolen = replace(self._sign(Ballot(ROUND, 0, PRECOMMIT, record.hash())), sender=bytes(self._victim()))
        proposal = Proposal(ROUND, 3, record.hash(), 1, encode(record), signers, junk)
        whisper = Gossip(ROUND, (stolen,), (), ())
        for body in (Decision(encode(record), encode(fake)), proposal, whisper):
            self._send(self.random.choice(self.others), self._sign(body))
        self._send(self.random.choice(self.others), stolen)

    def _made_up(self) -> Record:
        return replace(self.net.records[0], loss=self.random.randrange(1 << 20))

    def _victim(self) -> PeerId:
        return self.net.committee[self.random.choice(self.others)]
