"""Which cohorts are in a round's sum: signed results, a coordinator's proposal, and a quorum of the committee's votes.

All chunks must add up the same cohorts. Every member of a cohort signs what its aggregation came to; t equal ones
prove it. A coordinator (the convener, then the next in line) proposes the cohorts that are proven, each committee
member votes once per roster (the guard remembers), and a quorum of votes settles it: two sets cannot both have one
while fewer than a third lie. Who voted shows a later coordinator what it voted for, so that this can be finished.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from averaging.certificate import check_signatures, quorum
from averaging.messages import Included, Inclusion, InclusionVote, Result
from averaging.params import threshold, tolerated
from averaging.roster import CheckedRoster
from averaging.survivors import bits
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from dht.wire import decode_as, digest, encode


def failed_result(sid: bytes, cohort: int) -> Result:
    """What members say of a cohort that gives no sum."""
    return Result(sid, cohort, 0, 0, (), 0, bytes(32))


def inclusion_value(sid: bytes, results: Iterable[bytes]) -> bytes:
    """What a vote names: the digest over the results' frames, 32 bytes."""
    return digest("inclusion", sid, *results)


def check_result(result: Result, roster: CheckedRoster) -> None:
    """Raises ProtocolError unless the result is one that a cohort of this roster can come to, or a failure."""
    if result.sid != roster.round_sid or result.cohort >= len(roster.cohorts):
        raise ProtocolError(Refusal.STALE, "the result of another roster's cohort")
    if result == failed_result(result.sid, result.cohort):
        return
    members = len(roster.cohorts[result.cohort])
    least = threshold(members)
    survivors, reducers = bits(result.survivors), bits(result.reducers)
    if max(survivors[-1:] + reducers[-1:], default=0) >= members or min(len(survivors), len(reducers)) < least:
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"a result with fewer than {least} survivors or reducers")
    if len(result.tokens) != len(survivors) or not all(result.tokens):
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, "a result with another number of weights than survivors")
    if result.domains and (len(result.domains) != len(survivors) or not any(result.domains)):
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, "a result with another number of data domains than survivors")


def check_inclusion(inclusion: Inclusion, roster: CheckedRoster, run: bytes) -> None:
    """Raises ProtocolError unless every result is proven by t members of its cohort, in order of the cohorts."""
    indices = []
    used = 0
    signers, signatures = inclusion.signers, inclusion.signatures
    if len(signers) != len(signatures) or list(signers) != sorted(set(signers)):
        raise ProtocolError(Refusal.UNEXPECTED, "signers are repeated or out of order")
    for frame in inclusion.results:
        result = decode_as(Result, frame)
        check_result(result, roster)
        places, peers = roster.cohorts[result.cohort], roster.cohort(result.cohort)
        signed = slice(bisect_left(signers, places.start), bisect_left(signers, places.stop))
        members = [i - places.start for i in signers[signed]]
        if not result.survivors:
            raise ProtocolError(Refusal.BAD_CERTIFICATE, f"cohort {result.cohort} came to nothing")
        check_signatures(run, roster.round, frame, peers, members, signatures[signed], threshold(len(peers)))
        indices.append(result.cohort)
        used += len(members)
    if indices != sorted(set(indices)) or used != len(signers):
        raise ProtocolError(Refusal.UNEXPECTED, "cohorts or signers are repeated, foreign or out of order")


def check_included(
    message: Included, roster: CheckedRoster, run: bytes, committee: Sequence[PeerId]
) -> tuple[Result, ...]:
    """The results of the cohorts that a quorum of the committee put into the sum. Raises ProtocolError."""
    vote = InclusionVote(message.sid, inclusion_value(message.sid, message.results))
    signers, signatures = message.signers, message.signatures
    check_signatures(run, roster.round, encode(vote), committee, signers, signatures, quorum(len(committee)))
    results = tuple(decode_as(Result, frame) for frame in message.results)
    for result in results:
        check_result(result, roster)
    return results


@dataclass(slots=True)
class _Cohort:
    """What the members of one cohort said: per frame of a result the signatures by member index."""

    signatures: dict[bytes, dict[int, bytes]]
    said: set[int]


class Results:
    """A coordinator's collection of signed results."""

    def __init__(self, roster: CheckedRoster) -> None:
        self._roster = roster
        self._cohorts = [_Cohort({}, set()) for _ in roster.cohorts]
        self._open = set(range(len(roster.cohorts)))
        self._gone: set[PeerId] = set()

    def add(self, sender: PeerId, result: Result, signature: bytes) -> None:
        """Keep a member's first result, which its envelope signed. Raises ProtocolError."""
        check_result(result, self._roster)
        cohort, member = self._roster.places.get(sender, (-1, -1))
        if cohort != result.cohort:
            raise ProtocolError(Refusal.NOT_A_MEMBER, f"{sender.short} speaks of another cohort than its own")
        kept = self._cohorts[cohort]
        if member not in kept.said:
            kept.said.add(member)
            kept.signatures.setdefault(encode(result), {})[member] = signature
            self._close(cohort)

    def gone(self, peer: PeerId) -> None:
        """A member cannot be reached: its result is not waited for."""
        self._gone.add(peer)
        cohort, _ = self._roster.places.get(peer, (-1, -1))
        if cohort in self._open:
            self._close(cohort)

    def silent(self) -> list[PeerId]:
        """Members that have said nothing and may be gone: all where somebody has spoken or is gone; of other cohorts as
        many as it takes, since the roster may never have reached these.
        """
        asked: list[PeerId] = []
        for k in sorted(self._open):
            peers, said = self._roster.cohort(k), self._cohorts[k].said
            waiting = [peer for i, peer in enumerate(peers) if i not in said and peer not in self._gone]
            untouched = len(waiting) == len(peers)
            asked += waiting[: tolerated(len(peers)) + 1] if untouched else waiting
        return asked

    def _close(self, cohort: int) -> None:
        if self._over(cohort, self._cohorts[cohort]):
            self._open.discard(cohort)

    def inclusion(self, view: int) -> Inclusion:
        """A proposal of the cohorts with t equal results, each with t signatures."""
        frames: list[bytes] = []
        signed: list[tuple[int, bytes]] = []
        for k, kept in enumerate(self._cohorts):
            least, start = threshold(len(self._roster.cohorts[k])), self._roster.cohorts[k].start
            failure = encode(failed_result(self._roster.round_sid, k))
            for frame, signatures in kept.signatures.items():
                if len(signatures) >= least and frame != failure:
                    frames.append(frame)
                    signed += [(start + i, signature) for i, signature in sorted(signatures.items())[:least]]
        signers, signatures_ = tuple(i for i, _ in signed), tuple(signature for _, signature in signed)
        return Inclusion(self._roster.round_sid, view, tuple(frames), signers, signatures_)

    @property
    def settled(self) -> bool:
        """Whether no cohort can still become proven that is not."""
        return not self._open

    def _over(self, index: int, kept: _Cohort) -> bool:
        size = len(self._roster.cohorts[index])
        failure = encode(failed_result(self._roster.round_sid, index))
        best = max((len(s) for frame, s in kept.signatures.items() if frame != failure), default=0)
        least = threshold(size)
        lost = sum(
            i not in kept.said and peer in self._gone
            for i, peer in enumerate(self._roster.cohort(index) if self._gone else ())
        )
        return best >= least or best + size - len(kept.said) - lost < least


class Votes:
    """Counts the committee's votes for inclusions whose results are known."""

    def __init__(self, roster: CheckedRoster, committee: Sequence[PeerId]) -> None:
        self._sid, self._committee = roster.round_sid, tuple(committee)
        self._index = {peer: i for i, peer in enumerate(committee)}
        self._signatures: dict[bytes, dict[int, bytes]] = {}
        self._voted: set[PeerId] = set()
        self.known: dict[bytes, Inclusion] = {}

    def learn(self, inclusion: Inclusion) -> bytes:
        """Remember a checked proposal; the value that votes for it name."""
        value = inclusion_value(self._sid, inclusion.results)
        self.known.setdefault(value, inclusion)
        return value

    def add(self, voter: PeerId, vote: InclusionVote, signature: bytes) -> None:
        """Count a member's first vote. Raises ProtocolError (NOT_A_MEMBER)."""
        if voter not in self._index:
            raise ProtocolError(Refusal.NOT_A_MEMBER, f"{voter.short} is not in the committee")
        if voter not in self._voted:
            self._voted.add(voter)
            self._signatures.setdefault(vote.value, {})[self._index[voter]] = signature

    def included(self) -> Included | None:
        """The certificate, once a quorum voted for an inclusion that is known here."""
        needed = quorum(len(self._committee))
        for value, signatures in self._signatures.items():
            if len(signatures) >= needed and value in self.known:
                chosen = sorted(signatures.items())[:needed]
                frames = self.known[value].results
                return Included(self._sid, frames, tuple(i for i, _ in chosen), tuple(s for _, s in chosen))
        return None
