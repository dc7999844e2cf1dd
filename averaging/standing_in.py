"""Reducers of one sid that die or are late: who stands in for them, and who is asked for what they signed.

A stand-in is the next certified reducer. Survivors send it the dead one's chunks once more, byte for byte.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from averaging.actions import Send, SetTimer
from averaging.bulk import BulkKind
from averaging.checking import Checking
from averaging.messages import Missing
from averaging.params import tolerated
from averaging.work import CohortAction, Reduce, Transfer
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId


class StandingIn(Checking, ABC):
    """What a `Cohort` does when sums do not come."""

    @abstractmethod
    def _advance(self) -> list[CohortAction]:
        """Take every step whose conditions hold."""

    @property
    def finished(self) -> bool:
        """Whether my part is done: all sums are here; with several cohorts, all of them are signed."""
        if self.certified is None or self.failed is not None:
            return False
        return self.sums.complete if self.roster.alone else self.sums.all_signed

    def replace_reducer(self, peer: PeerId) -> list[CohortAction]:
        """A reducer signed its sums, but who adds them up across cohorts did not get them: somebody stands in."""
        member = self.peers.index(peer)
        if not self.finished or not self._once(f"replace-{member}", True):
            return []
        self._suspects.add(member)
        return self._stand_in((member,)) + self._advance()

    def heir(self, peer: PeerId) -> PeerId | None:
        """Who makes a certified reducer's sums anew when it is gone, as far as I know who is there."""
        if self.certified is None or peer not in self.peers:
            return None
        member = self.peers.index(peer)
        chosen = self.duties.stand_in(member, self.certified.reducers, self._suspects | {member}, 0)
        return None if chosen is None else self.peers[chosen]

    def _ask_for_hashes(self) -> list[CohortAction]:
        """With several cohorts sums stay with their reducers, but others may have seen what a dead one signed."""
        unbound = () if self.roster.alone else self.sums.unbound
        return self._broadcast(Missing(self.sid, unbound)) if unbound else []

    def _late_sums(self, turn: int) -> list[CohortAction]:
        self._done.add("sums-late")
        missing = self.sums.missing if self.roster.alone else self.sums.unbound
        if not missing:
            return self._advance()  # all sums are bound, and what I do not hold myself others add up
        late = tuple(sorted({self.duties.reducers[c] for c in missing}))
        if turn > tolerated(len(self.peers)):
            if len(missing) == self.layout.total_chunks or not self.roster.alone:
                return self._fail("no sum arrived in time")
            self.sums.give_up()
            return self._advance()
        again = SetTimer(self._key("sums", turn + 1), self.params.deadlines.sums)
        self.sums.asked = True
        ask = self._broadcast(Missing(self.sid, missing)) if missing else []
        self._suspects |= {i for i in late if not self.sums.signed_by(i)}
        return [again, *ask, *self._stand_in(late, turn), *self._advance()]

    def _stand_in(self, dead: tuple[int, ...], turn: int = 0) -> list[CohortAction]:
        """Resend the dead reducers' chunks, byte for byte, to whoever stands in; reduce them if that is me."""
        assert self.certified is not None
        gone = set(dead) | (set(range(len(self.peers))) - set(self.certified.reducers))
        actions: list[CohortAction] = []
        for reducer in sorted(gone):
            chunks = tuple(c for c in self.duties.of(reducer) if c in self.sums.missing)
            chosen = self.duties.stand_in(reducer, self.certified.reducers, self._suspects | {reducer}, turn)
            if chosen is None or not chunks:
                continue
            if chosen == self.me:
                self._stood_in.add(reducer)
                if self._masked and self.me in self.certified.survivors:
                    for c in chunks:
                        self.inputs.add(self.me, c, self._masked[c][0])
            elif self.me in self.certified.survivors:
                actions.append(Transfer(self.sid, BulkKind.MASKED, chunks, (self.peers[chosen],)))
        return actions

    def _step_stand_in(self) -> list[CohortAction]:
        if self.certified is None or "opened" not in self._done:
            return []
        actions: list[CohortAction] = []
        for reducer in sorted(self._stood_in):
            chunks = tuple(c for c in self.duties.of(reducer) if c in self.sums.missing)
            held = all(self.inputs.holds(i, chunks, self.r3.manifests[i][0]) for i in self.certified.survivors)
            if chunks and held and self._once(f"stand-in-{reducer}", True):
                actions.append(Reduce(self.sid, chunks))
        return actions

    def _answer(self, message: Missing, sender: PeerId) -> list[CohortAction]:
        member = self.peers.index(sender)
        self._asked[member] = self._asked.get(member, 0) + 1
        if self._asked[member] > 2 * len(self.peers):
            raise ProtocolError(Refusal.RATE_LIMITED, "asked for sums too often")
        if not self.roster.alone:
            return [Send(sender, frame) for frame in self.sums.signed_frames(message.chunks)]
        have = tuple(c for c in message.chunks if self.sums.provable(c))
        hashes: list[CohortAction] = [Send(sender, frame) for frame in self.sums.frames_for(have)]
        return [*hashes, Transfer(self.sid, BulkKind.SUM, have, (sender,))] if have else []
