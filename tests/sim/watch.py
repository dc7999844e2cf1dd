"""What must never be seen on the wire: shares of two seeds, two openings of a round, shares without votes."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from averaging.messages import AuditShares, SumHashes, Unmask, Vote
from averaging.params import tolerated
from averaging.survivors import bits
from dht.identity import PeerId

if TYPE_CHECKING:
    from tests.sim.swarm import Swarm


@dataclass(frozen=True)
class Opened:
    """One peer released its shares: when, and whose sums count in its cohort from then on."""

    moment: float
    reducers: frozenset[PeerId]
    members: int
    alone: bool
    """Whether its cohort is the only one."""


class Watch:
    """Reads every message that leaves an honest peer, and notes what must never be seen there."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self.liars: set[PeerId] = set()
        self.broken: list[str] = []
        self.seen: Counter[str] = Counter()
        self._released: dict[tuple[bytes, PeerId], Unmask] = {}
        self._opened: dict[tuple[int, PeerId], bytes] = {}
        self._votes: dict[tuple[bytes, int], dict[Vote, set[PeerId]]] = defaultdict(lambda: defaultdict(set))
        self._signed: dict[bytes, dict[PeerId, set[int]]] = defaultdict(lambda: defaultdict(set))
        self._openings: dict[tuple[bytes, PeerId], Opened] = {}
        self._audited: set[tuple[bytes, PeerId]] = set()

    def sent(self, sender: PeerId, message: object) -> None:
        """A peer sends this."""
        self.seen[type(message).__name__] += 1
        if isinstance(message, Vote):
            self._votes[message.sid, message.survivors][message].add(sender)
        elif isinstance(message, SumHashes):
            self._signed[message.sid][sender].update(message.chunks)
        if sender in self.liars:
            return
        if isinstance(message, Unmask):
            self._unmask(sender, message)
        elif isinstance(message, AuditShares) and (message.sid, sender) not in self._audited:
            self._audited.add((message.sid, sender))  # the first one that leaves is the earliest
            self._audit(sender, message.sid)

    def _audit(self, sender: PeerId, sid: bytes) -> None:
        opened = self._openings.get((sid, sender))
        if opened is None:
            return self._rule(False, f"{sender.short} opened its audit shares before any other")
        signed = set[int]().union(*(self._signed[sid][reducer] for reducer in opened.reducers))
        missing = set(range(self._swarm.params.layout.total_chunks)) - signed
        if missing and opened.alone and self._swarm.now >= self._given_up(opened):
            self.seen["sums given up"] += 1
        else:
            self._rule(not missing, f"{sender.short} opened its audit shares with {len(missing)} sums unsigned")

    def _given_up(self, opened: Opened) -> float:
        """When a sum that nobody signed is zero for everyone and is not taken any more: its reducer and all who may
        stand in for it had their time. Sums of one among several cohorts are never given up.
        """
        limits = self._swarm.params.deadlines
        patience = limits.unmask + (tolerated(opened.members) + 2) * limits.sums
        return opened.moment + patience - 1e-6  # timers add up in floats

    def _unmask(self, sender: PeerId, message: Unmask) -> None:
        cohort = self._swarm.cohort_of(sender)
        # Which seed a share belongs to follows from the survivors' bitmap: a share of each never leaves one helper.
        same = self._released.setdefault((message.sid, sender), message) == message
        self._rule(same, f"{sender.short} released shares twice in one sid")
        only = self._opened.setdefault((cohort.roster.round, sender), message.sid) == message.sid
        self._rule(only, f"{sender.short} opened two sids of round {cohort.roster.round}")
        votes = self._votes[message.sid, message.survivors].items()
        certified = [vote for vote, voters in votes if len(voters) >= cohort.threshold]
        self._rule(bool(certified), f"{sender.short} released shares without {cohort.threshold} votes")
        for vote in certified:
            reducers = frozenset(cohort.peers[i] for i in bits(vote.reducers))
            opened = Opened(self._swarm.now, reducers, len(cohort.peers), cohort.roster.alone)
            self._openings.setdefault((message.sid, sender), opened)

    def _rule(self, holds: bool, text: str) -> None:
        if not holds:
            self.broken.append(text)
