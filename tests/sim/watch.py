"""What must never be seen on the wire: shares of two seeds, two openings of a round, shares without votes."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from averaging.messages import AuditShares, SumHashes, Unmask, Vote
from dht.identity import PeerId

if TYPE_CHECKING:
    from tests.sim.swarm import Swarm


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
        self._signed: dict[bytes, set[int]] = defaultdict(set)

    def sent(self, sender: PeerId, message: object) -> None:
        """A peer sends this."""
        self.seen[type(message).__name__] += 1
        if isinstance(message, Vote):
            self._votes[message.sid, message.survivors][message].add(sender)
        elif isinstance(message, SumHashes):
            self._signed[message.sid].update(c for c in message.chunks if c < self._swarm.params.layout.total_chunks)
        if sender in self.liars:
            return
        if isinstance(message, Unmask):
            self._unmask(sender, message)
        elif isinstance(message, AuditShares):
            # A sum that was given up binds nobody: it is zero for everyone, and none is taken any more.
            participant = self._swarm.peers[sender].participant
            cohort = participant.cohort(message.sid) if participant is not None else None  # of this round or the last
            settled = self._signed[message.sid].union(cohort.sums.lost if cohort is not None else ())
            missing = self._swarm.params.layout.total_chunks - len(settled)
            self._rule(missing == 0, f"{sender.short} opened its audit shares with {missing} sums unsigned")

    def _unmask(self, sender: PeerId, message: Unmask) -> None:
        cohort = self._swarm.cohort_of(sender)
        # Which seed a share belongs to follows from the survivors' bitmap: a share of each never leaves one helper.
        same = self._released.setdefault((message.sid, sender), message) == message
        self._rule(same, f"{sender.short} released shares twice in one sid")
        only = self._opened.setdefault((cohort.roster.round, sender), message.sid) == message.sid
        self._rule(only, f"{sender.short} opened two sids of round {cohort.roster.round}")
        votes = self._votes[message.sid, message.survivors].values()
        enough = any(len(voters) >= cohort.threshold for voters in votes)
        self._rule(enough, f"{sender.short} released shares without {cohort.threshold} votes")

    def _rule(self, holds: bool, text: str) -> None:
        if not holds:
            self.broken.append(text)
