"""Every fault of the matrix as a case: a seeded swarm of 16, one fault that fires, and what came of it.

`play(fault, seed)` is one run; the same arguments give the same history in every process.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from averaging.messages import Manifest, Receipt, Seating, Shares, SumHashes, Survivors, Unmask, Vote
from averaging.params import Deadlines, tolerated
from dht.envelope import Envelope
from dht.identity import PeerId
from dht.wire import decode_as
from tests.sim.faults import FaultSwarm
from tests.sim.swarm import Peer

PEERS = 16
DELTA = tolerated(PEERS)
GRACE = 5.0
"""Seconds after its deadline at which an open round counts as hung."""
USUAL = Deadlines(3.0, 5.0, 20.0, 20.0, 5.0, 5.0, 20.0, 5.0)
"""Deadlines as in a manifest that names none, but for the time to train."""
_LIMIT = 900.0

# Before which of its actions a victim dies: the event, and how many of that name it does before.
STEPS: dict[str, tuple[str, int]] = {
    "R0 join": ("Join", 0),
    "R0 roster signed": ("Seating", 0),
    "R0 roster half sent": ("Seating", 7),
    "R0 in a roster": ("joined", 0),
    "R1 shares half dealt": ("Shares", 7),
    "R1 shares dealt, not ready": ("Ready", 0),
    "R1 ready half said": ("Ready", 7),
    "R2 before the upload": ("upload", 0),
    "R2 upload, one chunk": ("ship", 1),
    "R2 upload, most chunks": ("ship", 4),
    "R2 manifest half sent": ("Manifest", 7),
    "R3 before the receipt": ("Receipt", 0),
    "R3 receipt half sent": ("Receipt", 7),
    "R3 proposal half sent": ("Survivors", 7),
    "R3 before the vote": ("Vote", 0),
    "R3 vote half sent": ("Vote", 7),
    "R4 before unmasking": ("Unmask", 0),
    "R4 unmask half sent": ("Unmask", 7),
    "R5 before reducing": ("reduce", 0),
    "R5 hashes half sent": ("SumHashes", 7),
    "R5 before its sums": ("sum", 0),
    "audit shares half sent": ("AuditShares", 7),
    "apply": ("apply", 0),
    "attest half sent": ("Attest", 7),
    "agreement: proposal half sent": ("Proposal", 7),
    "agreement: before prevote": ("Prevote", 0),
    "agreement: prevote half sent": ("Prevote", 7),
    "agreement: precommit half sent": ("Precommit", 7),
    "decided": ("decided", 0),
    "commit, before the state write": ("commit", 0),
    "commit, after the state write": ("written", 0),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one case. `lost`: void rounds from the fault on; `late`: seconds over the deadline."""

    fault: str
    seed: int
    fired: int
    victims: int = 0
    divergent: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    hangs: int = 0
    lost: int = 0
    late: float = 0.0
    trace: str = ""

    @property
    def good(self) -> bool:
        """Whether the fault happened and every promise was kept; up to delta deaths must not cost a round."""
        spared = 0 < self.victims <= DELTA and self.lost > 0
        return bool(self.fired) and not (self.divergent or self.wrong or self.hangs or spared)


def through_first_round(swarm: FaultSwarm) -> FaultSwarm:
    """Found the run and certify its first round. Raises AssertionError when that takes too long."""
    swarm.start()
    if not swarm.run(lambda: swarm.reached(1), 120):
        raise AssertionError("no first round")
    return swarm


_waiting: dict[int, FaultSwarm] = {}


def prepare(seed: int) -> None:
    """Start a swarm ahead, for the next case of this seed in this process or (better) in a fork of it."""
    _waiting.clear()
    _waiting[seed] = started(seed)


def started(seed: int) -> FaultSwarm:
    """The swarm of a seed after its first round; the same whether prepared or not."""
    return _waiting.pop(seed, None) or through_first_round(FaultSwarm(PEERS, seed))


class Case:
    """One fault on one swarm, from its second round on."""

    def __init__(self, fault: str, seed: int, swarm: FaultSwarm | None = None) -> None:
        self.fault, self.seed = fault, seed
        self.swarm = swarm or started(seed)
        self.draw = random.Random(f"{fault} {seed}")
        self.struck: set[PeerId] = set()
        self.calm = 0.0
        """When the last fault ended."""

    def some(self, count: int) -> list[PeerId]:
        """That many peers, drawn by the seed."""
        return self.draw.sample(self.swarm.order, count)

    def fires(self, count: int = 1) -> None:
        """A fault happened just now."""
        self.swarm.fired[self.fault] += count
        self.calm = max(self.calm, self.swarm.now)

    def dies_at(
        self,
        step: tuple[str, int],
        victims: int,
        chosen: Collection[PeerId],
        leaders: Collection[str],
        back: float | None,
    ) -> None:
        """SIGKILL that many members as they come to a step: of those chosen, or whoever leads where only one sends
        it. They come back after `back` seconds, if at all. Returns when all are struck, or after 40 s.
        """
        swarm, (name, before) = self.swarm, step
        seen: Counter[PeerId] = Counter()

        def strike(event: str, peer: Peer) -> None:
            meant = event == name and (event in leaders or peer.id in chosen)
            if not meant or len(self.struck) >= victims or peer.id in self.struck:
                return
            seen[peer.id] += 1
            if seen[peer.id] == before + 1:
                self.struck.add(peer.id)
                self.fires()
                swarm.crash(peer.id)
                if back is not None:
                    swarm.at(back, lambda: swarm._boot(peer))

        swarm.on_event = strike
        swarm.run(lambda: len(self.struck) >= victims, 40)

    def run_until(self, moment: float) -> None:
        """Let virtual time pass."""
        self.swarm.at(moment - self.swarm.now, lambda: None)
        self.swarm.run(lambda: self.swarm.now >= moment, _LIMIT)

    def finish(self, first: int, rounds: int = 2, limit: float = _LIMIT) -> Outcome:
        """Wait for the struck round and the next: every living peer must be past both in time."""
        swarm, hangs, late = self.swarm, 0, 0.0
        for round_ in range(first, first + rounds):
            ended = swarm.run(lambda round_=round_: swarm.reached(round_), limit)  # type: ignore[misc]
            began = max(self.calm, swarm.began.get(round_, swarm.now))
            late = max(late, swarm.now - began - swarm.deadline(round_))
            if not ended or late > GRACE:
                hangs += 1
                break
        divergent, wrong = swarm.verdict()
        void = [r for r in range(first, first + rounds) if all(x.void for x in swarm.records.get(r, {}).values())]
        if len(void) == rounds and not hangs:
            divergent.append(f"rounds {void} were both lost")
        fired, trace = swarm.fired[self.fault], swarm.trace.hexdigest()
        return Outcome(
            self.fault,
            self.seed,
            fired,
            len(self.struck),
            tuple(divergent),
            tuple(wrong),
            hangs,
            len(void),
            late,
            trace,
        )


def kill(step: str) -> Callable[[str, int], Outcome]:
    """SIGKILL of 1 to delta + 1 members in a step (the seed says how many); they come back after a while, or not."""

    def case(fault: str, seed: int) -> Outcome:
        it = Case(fault, seed)
        swarm, victims = it.swarm, 1 + seed % (DELTA + 1)
        back = it.draw.choice((None, it.draw.uniform(1, 20)))
        first = swarm.height() + 1
        chosen = it.some(victims) if seed % 2 else swarm.order
        it.dies_at(STEPS[step], victims, chosen, ("Seating", "Survivors", "Proposal"), back)
        return it.finish(max(first, swarm.height() + 1 if not it.struck else first))

    return case


def power_cut(fault: str, seed: int) -> Outcome:
    """Machines vanish: nobody's connection breaks, so that only deadlines tell."""
    it = Case(fault, seed)
    swarm = it.swarm
    swarm.silent_deaths = True
    first = swarm.height() + 1
    it.run_until(swarm.now + it.draw.uniform(0, 2))
    it.struck = set(it.some(1 + seed % (DELTA + 1)))
    for peer in sorted(it.struck):
        swarm.crash(peer)
        it.fires()
    return it.finish(max(first, swarm.height()))


def stopped(fault: str, seed: int) -> Outcome:
    """SIGSTOP for 30 s, at any moment of a round."""
    it = Case(fault, seed)
    swarm = it.swarm
    it.run_until(swarm.now + it.draw.uniform(0, 2))
    first = swarm.height()
    for peer in it.some(1 + seed % (DELTA + 1)):
        swarm.freeze(peer, 30.0)
    it.run_until(swarm.now + 30.001)
    it.fires(swarm.fired["late after the freeze"])
    return it.finish(max(first, swarm.height()))


def split(few: int, *, one_way: bool) -> Callable[[str, int], Outcome]:
    """A cut between `few` peers and the rest for 10 to 40 s, then healing. One way: only what the few say is lost."""

    def case(fault: str, seed: int) -> Outcome:
        it = Case(fault, seed)
        swarm = it.swarm
        it.run_until(swarm.now + it.draw.uniform(0, 2))
        side = set(it.some(few))
        swarm.blocked |= {(a, b) for a in side for b in swarm.order if b not in side}
        if not one_way:
            swarm.blocked |= {(b, a) for a, b in swarm.blocked}
        it.run_until(swarm.now + it.draw.uniform(10, 40))
        it.fires(swarm.fired["blocked"])
        swarm.heal()
        divergent, wrong = swarm.verdict()
        ended = it.finish(swarm.height() + 1)
        return replace(ended, divergent=(*divergent, *ended.divergent), wrong=(*wrong, *ended.wrong))

    return case


def weather(*, latency: float = 0.0, loss: float = 0.0) -> Callable[[str, int], Outcome]:
    """All links are slow or lossy from the first message on."""

    def case(fault: str, seed: int) -> Outcome:
        swarm = FaultSwarm(PEERS, seed, deadlines=USUAL)
        swarm.latency, swarm.loss = latency, loss
        it = Case(fault, seed, through_first_round(swarm))
        ended = it.finish(2)
        return replace(ended, fired=it.swarm.fired["delayed" if latency else "lost, sent again"])

    return case


def slow(bits_per_second: float) -> Callable[[str, int], Outcome]:
    """One peer's link carries so little each way; its share of a round is about 100 KiB."""

    def case(fault: str, seed: int) -> Outcome:
        it = Case(fault, seed)
        (peer,) = it.some(1)
        it.swarm.rate[peer] = bits_per_second / 8
        first = it.swarm.height() + 1
        ended = it.finish(first)
        return replace(ended, fired=it.swarm.fired["queued on a slow link"])

    return case


_LOSABLE = (Seating, Shares, Manifest, Receipt, Survivors, Vote, Unmask, SumHashes, None)


def lost_for_good(fault: str, seed: int) -> Outcome:
    """One message or chunk never arrives: its sender gave up before the link worked again."""
    it = Case(fault, seed)
    swarm = it.swarm
    kind = _LOSABLE[seed % len(_LOSABLE)]
    receiver = it.draw.choice(swarm.order)

    def lose(sender: PeerId, to: PeerId, frame: bytes) -> bytes | None:
        if swarm.fired[fault] or to != receiver:
            return frame
        sealed = frame[0] == 0x01
        body = decode_as(Envelope, frame).message() if sealed else None
        if (not sealed) if kind is None else isinstance(body, kind):
            it.fires()
            return None
        return frame

    swarm.tamper = lose
    first = swarm.height() + 1
    return it.finish(first)


Fault = Callable[[str, int], Outcome]
FAULTS: dict[str, Fault] = {
    **{f"kill: {step}": kill(step) for step in STEPS},
    "power cut": power_cut,
    "SIGSTOP for 30 s": stopped,
    "split 8/8": split(8, one_way=False),
    "split 3/13": split(3, one_way=False),
    "one-way split 8/8": split(8, one_way=True),
    "one-way split 3/13": split(3, one_way=True),
    "delay 100 ms": weather(latency=0.1),
    "delay 300 ms": weather(latency=0.3),
    "loss 2 %": weather(loss=0.02),
    "loss 5 %": weather(loss=0.05),
    "one message lost for good": lost_for_good,
    "1 Mbit/s peer": slow(1e6),
    "64 kbit/s peer": slow(64e3),
}


def play(fault: str, seed: int) -> Outcome:
    """One run. Raises AssertionError when the swarm does not even begin."""
    return FAULTS[fault](fault, seed)
