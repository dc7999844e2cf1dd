"""The chain of certified records: what happened in this run, checkable by anybody who knows run id and founder.

A record is in the chain when its parent is the head and a quorum of the committee that the head defines signed it.
The committee of a round is the survivors of the last record that is not void; the beacon is the head's hash.

One `Chain` is linear: a record whose parent is not the head is refused. When more than a third of a committee is gone
for good, the rest may certify a *recovery*, a record that changes nothing but the committee; then there may be two
chains with a common beginning. Which one stands is decided in `averaging.branches`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from averaging import certificate as certificates
from averaging.ballots import Certificate, Decision
from averaging.record import Record, check_founding, check_successor
from averaging.recovery import check_recovery
from averaging.tally import Tally
from dht.envelope import Envelope
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from dht.wire import U64, Count, decode_as, encode, message

SEGMENT_CAP = 1 << 20
MAX_LINKS = 512
_ROOM = SEGMENT_CAP - (24 << 10)
"""Bytes of links in one segment; the rest is for the founding, keys and the envelope."""


@message(tag=0x50, cap=64)
@dataclass(frozen=True, slots=True)
class ChainRequest:
    """Send me the founding and the certified records after this round; 0 asks for all."""

    after_round: U64


@message(tag=0x51, cap=SEGMENT_CAP)
@dataclass(frozen=True, slots=True)
class ChainSegment:
    """Consecutive links, as many as fit, and the sender's head round, so that the asker knows to ask on."""

    founding: Envelope
    head_round: U64
    links: Annotated[tuple[Decision, ...], Count(0, MAX_LINKS)]


@dataclass(frozen=True)
class Tip:
    """All that the next record is checked against: the head, the record whose survivors vote, and the tally."""

    head: Record
    electors: Record
    tally: Tally

    def committee(self) -> tuple[PeerId, ...]:
        """Who decides the next round, in certificate order (sorted by peer id)."""
        return self._committee

    @cached_property
    def _committee(self) -> tuple[PeerId, ...]:
        return certificates.draw_committee(self.expected, self.head.hash())

    @cached_property
    def expected(self) -> tuple[PeerId, ...]:
        """Who was in the last sum, and so is waited for in the next."""
        return self.electors.members()

    def advance(self, record: Record, certificate: Certificate) -> Tip:
        """The tip after `record`. Raises ProtocolError unless it is certified and follows from the head."""
        if record.recovery:
            check_recovery(record, certificate, self.head, self.committee())
            return Tip(record, record, self.tally)
        tally = check_successor(record, self.head, self.tally)
        certificates.verify(certificate, record, self.committee(), self.head.run)
        return Tip(record, self.electors if record.void else record, tally)


class Chain:
    """The certified history of one run, from its founding. Links are held in memory; round r is `link(r)`."""

    def __init__(self, run: bytes, founder: PeerId, founding: Envelope) -> None:
        """Begin with a founding envelope. Raises ProtocolError unless the run's founder signed it."""
        self.run, self.founder, self.founding = run, founder, founding
        genesis = check_founding(founding, run, founder).record()
        self.tip = Tip(genesis, genesis, Tally())
        self._genesis = genesis
        self._links: list[tuple[Record, Certificate]] = []
        self.recoveries: list[tuple[int, tuple[PeerId, ...]]] = []
        """Round of each recovery in this chain, and whom of the committee it went on without."""
        self.finalized = 0
        """The last round that no fork choice ever rolls back: one that is checkpointed on the ledger."""

    @property
    def head(self) -> Record:
        """The last certified record (the founding record of round 0 at first)."""
        return self.tip.head

    @property
    def beacon(self) -> bytes:
        """Hash of the head, 32 bytes: the randomness of the next round."""
        return self.tip.head.hash()

    @property
    def tally(self) -> Tally:
        """Contributions up to the head."""
        return self.tip.tally

    def committee(self) -> tuple[PeerId, ...]:
        """Who decides the next round, in certificate order."""
        return self.tip.committee()

    def record(self, round_: int) -> Record:
        """The record of a round. Raises KeyError when the chain does not reach it."""
        return self._genesis if round_ == 0 else self.link(round_)[0]

    def link(self, round_: int) -> tuple[Record, Certificate]:
        """Record and certificate of a round from 1 on. Raises KeyError."""
        if not 1 <= round_ <= len(self._links):
            raise KeyError(round_)
        return self._links[round_ - 1]

    def decision(self, round_: int) -> Decision | None:
        """What to answer somebody who is still deciding `round_`; None when this chain does not know either."""
        return _pack(*self.link(round_)) if 1 <= round_ <= len(self._links) else None

    def append(self, record: Record, certificate: Certificate) -> None:
        """Add the next link. Raises ProtocolError and changes nothing when it does not follow."""
        committee = self.committee() if record.recovery else ()
        self.tip = self.tip.advance(record, certificate)
        self._links.append((record, certificate))
        if record.recovery:
            members = record.members()
            self.recoveries.append((record.round, tuple(peer for peer in committee if peer not in members)))

    def finalize(self, round_: int) -> None:
        """No fork choice shall roll back this round or one before it. Raises KeyError when there is no such record."""
        self.record(round_)
        self.finalized = max(self.finalized, round_)

    def state_root(self, round_: int) -> bytes | None:
        """The root of the state after a round; None when the chain does not reach it."""
        return self.record(round_).state_root if round_ <= self.head.round else None

    def holds(self, record: Record) -> bool:
        """Whether this very record is in the chain."""
        return record.round <= self.head.round and self.record(record.round) == record

    def branch(self, round_: int) -> Chain:
        """A chain of its own: this one up to `round_`. Raises KeyError, and ProtocolError before a final round."""
        if round_ < self.finalized:
            raise ProtocolError(Refusal.EQUIVOCATION, f"a branch from round {round_}; {self.finalized} is final")
        other = Chain(self.run, self.founder, self.founding)
        head = self.record(round_)
        other._links = self._links[:round_]
        other.recoveries = [entry for entry in self.recoveries if entry[0] <= round_]
        other.finalized = self.finalized
        electors, tally = self._genesis, Tally()
        for record, _ in other._links:
            electors = electors if record.void and not record.recovery else record
            tally = tally.apply(record)
        other.tip = Tip(head, electors, tally)
        return other

    def verify_segment(self, links: Iterable[tuple[Record, Certificate]]) -> Tip:
        """The tip that `links`, from an untrusted peer, would lead to; the chain stays as it is.

        Raises ProtocolError at the first link that does not follow.
        """
        tip = self.tip
        for record, certificate in links:
            tip = tip.advance(record, certificate)
        return tip

    def extend(self, segment: ChainSegment) -> int:
        """Append what is new in a peer's segment; how many links were.

        Raises ProtocolError at the first bad link; the good ones before it stay, since each proves itself.
        Also refuses a segment that contradicts a link held here (EQUIVOCATION: a quorum signed twice).
        """
        if segment.founding.body != self.founding.body:
            raise ProtocolError(Refusal.BAD_HASH, "the segment is of another founding")
        added = 0
        for packed in segment.links:
            record, certificate = unpack(packed)
            if 1 <= record.round <= len(self._links):
                if self.record(record.round) != record:
                    raise ProtocolError(Refusal.EQUIVOCATION, f"another record of round {record.round}")
                continue
            self.append(record, certificate)
            added += 1
        return added

    def segment(self, after_round: int) -> ChainSegment:
        """The links after a round, as many as one frame holds."""
        links: list[Decision] = []
        room = _ROOM
        for record, certificate in self._links[after_round : after_round + MAX_LINKS]:
            packed = _pack(record, certificate)
            room -= len(packed.record) + len(packed.certificate) + 64
            if room < 0:
                break
            links.append(packed)
        return ChainSegment(self.founding, self.head.round, tuple(links))


def unpack(decision: Decision) -> tuple[Record, Certificate]:
    """Record and certificate of a packed link. Raises ProtocolError."""
    return decode_as(Record, decision.record), decode_as(Certificate, decision.certificate)


def verify_segment(
    run: bytes, founder: PeerId, founding: Envelope, links: Sequence[tuple[Record, Certificate]]
) -> Chain:
    """The chain that a joiner, who knows only run id and founder, can trust. Raises ProtocolError."""
    chain = Chain(run, founder, founding)
    for record, certificate in links:
        chain.append(record, certificate)
    return chain


def _pack(record: Record, certificate: Certificate) -> Decision:
    return Decision(encode(record), encode(certificate))
