"""What a member has received of one agreement: per view one proposal, and one ballot of each kind per member.

Bounded whatever arrives: only views near the current one are kept, only the first of two contradicting messages
counts, and of a view far ahead only the fact that its sender is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from averaging.ballots import KIND_NAMES, PRECOMMIT, PREVOTE, Ballot, Certificate, ProofOfLock, Proposal
from averaging.certificate import quorum
from averaging.record import Record
from dht.envelope import Envelope
from dht.wire import encode

Pair: TypeAlias = tuple[Envelope, Envelope]
VIEWS_BEHIND = 4
VIEWS_AHEAD = 8


@dataclass(slots=True)
class ViewLog:
    """One view. `cast[kind]` maps committee index to envelope, `votes[kind]` value to {index: signature}."""

    proposal: tuple[Proposal, Envelope] | None = None
    cast: tuple[dict[int, Envelope], dict[int, Envelope]] = field(default_factory=lambda: ({}, {}))
    votes: tuple[dict[bytes, dict[int, bytes]], dict[bytes, dict[int, bytes]]] = field(default_factory=lambda: ({}, {}))

    def winner(self, kind: int, needed: int) -> bytes | None:
        """The value (NIL included) with at least `needed` ballots of `kind`, if there is one."""
        return next((value for value, votes in self.votes[kind].items() if len(votes) >= needed), None)


class BallotBox:
    """The messages of one round's agreement among `committee_size` members. Stores only what was verified."""

    def __init__(self, round_: int, committee_size: int) -> None:
        self._round = round_
        self._needed = quorum(committee_size)
        self._current = 0
        self._logs: dict[int, ViewLog] = {}
        self._records: dict[bytes, tuple[int, Record]] = {}
        self._stored: dict[Envelope, int] = {}
        self._furthest: dict[int, tuple[int, Envelope]] = {}
        self.contradictions: dict[tuple[int, str], Pair] = {}
        """By member and kind: two of its messages of which one may be."""

    def keeps(self, view: int) -> bool:
        """Whether messages of `view` are stored."""
        return self._current - VIEWS_BEHIND <= view <= self._current + VIEWS_AHEAD

    def log(self, view: int) -> ViewLog:
        """What is stored of a view; an empty log when there is nothing."""
        return self._logs.get(view) or ViewLog()

    def logs(self) -> list[tuple[int, ViewLog]]:
        """All stored views, the newest first."""
        return sorted(self._logs.items(), reverse=True)

    def move_to(self, view: int) -> None:
        """Forget views that are too far behind `view`, and the records that only they named."""
        self._current = view
        self._logs = {v: log for v, log in self._logs.items() if self.keeps(v)}
        self._stored = {envelope: v for envelope, v in self._stored.items() if self.keeps(v)}
        self._records = {value: entry for value, entry in self._records.items() if self.keeps(entry[0])}

    def record(self, value: bytes) -> Record | None:
        """The record of a hash, when a stored proposal or proof carried it."""
        entry = self._records.get(value)
        return entry[1] if entry else None

    def add_record(self, view: int, value: bytes, record: Record) -> None:
        """Keep a record for as long as `view` is kept."""
        newest = max(view, self._records.get(value, (view, record))[0])
        self._records[value] = (newest, record)

    def add_proposal(self, proposer: int, proposal: Proposal, envelope: Envelope, record: Record) -> Pair | None:
        """Store a view's first proposal; with the earlier one when it contradicts that."""
        if not self.keeps(proposal.view):
            return None
        log = self._logs.setdefault(proposal.view, ViewLog())
        if log.proposal is None:
            log.proposal = (proposal, envelope)
            self._stored[envelope] = proposal.view
            self.add_record(proposal.view, proposal.value, record)
        elif log.proposal[1].body != envelope.body:
            return self._accuse(proposer, "proposal", log.proposal[1], envelope)
        return None

    def add_ballot(self, index: int, ballot: Ballot, envelope: Envelope) -> Pair | None:
        """Count a member's first ballot of its kind in its view; with the earlier one when it contradicts that."""
        if index not in self._furthest or self._furthest[index][0] < ballot.view:
            self._furthest[index] = (ballot.view, envelope)
        if not self.keeps(ballot.view):
            return None
        log = self._logs.setdefault(ballot.view, ViewLog())
        first = log.cast[ballot.kind].setdefault(index, envelope)
        if first is envelope:
            self._stored[envelope] = ballot.view
            log.votes[ballot.kind].setdefault(ballot.value, {})[index] = envelope.signature
        elif first.body != envelope.body:
            return self._accuse(index, KIND_NAMES[ballot.kind], first, envelope)
        return None

    def holds(self, envelope: Envelope) -> bool:
        """Whether exactly this message is already stored: repeats are the most of what arrives."""
        return envelope in self._stored

    def reached(self, count: int) -> tuple[int, tuple[Envelope, ...]] | None:
        """The highest view that at least `count` members cast ballots in or beyond, and ballots that show it."""
        furthest = sorted(self._furthest.values(), key=lambda entry: entry[0], reverse=True)[:count]
        if len(furthest) < count:
            return None
        return furthest[-1][0], tuple(envelope for _, envelope in furthest)

    def proof(self, above: int) -> tuple[ProofOfLock, Record] | None:
        """The newest quorum of prevotes for a record that is known, in a view greater than `above`."""
        for view, log in self.logs():
            value = log.winner(PREVOTE, self._needed)
            record = self.record(value) if value is not None and view > above else None
            if value is not None and record is not None:
                signed = self._signed(log, PREVOTE, value)
                return ProofOfLock(self._round, view, value, encode(record), *signed), record
        return None

    def certificate(self) -> tuple[Certificate, Record] | None:
        """A quorum of precommits of one view for a record that is known."""
        for view, log in self.logs():
            value = log.winner(PRECOMMIT, self._needed)
            record = self.record(value) if value is not None else None
            if value is not None and record is not None:
                return Certificate(self._round, view, value, *self._signed(log, PRECOMMIT, value)), record
        return None

    def _signed(self, log: ViewLog, kind: int, value: bytes) -> tuple[tuple[int, ...], tuple[bytes, ...]]:
        votes = sorted(log.votes[kind][value].items())[: self._needed]
        return tuple(index for index, _ in votes), tuple(signature for _, signature in votes)

    def _accuse(self, index: int, what: str, first: Envelope, second: Envelope) -> Pair | None:
        # One pair per member and kind is enough, and bounds what a liar can make us store.
        if (index, what) in self.contradictions:
            return None
        self.contradictions[index, what] = (first, second)
        return (first, second)
