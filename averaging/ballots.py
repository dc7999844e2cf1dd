"""Messages of the agreement on one round's record. All travel in signed envelopes; views count from 0.

`docs/decisions/0004-agreement.md` says why they look as they do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from averaging.record import RECORD_CAP
from dht.envelope import Envelope
from dht.wire import U16, U64, Bytes32, Bytes64, Count, Length, Range, message

PREVOTE, PRECOMMIT = 0, 1
KIND_NAMES = ("prevote", "precommit")
MAX_COMMITTEE = 64
NIL = bytes(32)
"""The value of a ballot for nothing."""
MAX_VIEW = 2**31 - 1

View = Annotated[int, Range(0, MAX_VIEW)]
ViewOrNone = Annotated[int, Range(0, MAX_VIEW + 1)]
"""0 for none (the paper's -1), else the view plus one."""
Kind = Annotated[int, Range(PREVOTE, PRECOMMIT)]
RecordFrame = Annotated[bytes, Length(2, RECORD_CAP)]
Signers = Annotated[tuple[U16, ...], Count(0, MAX_COMMITTEE)]
Signatures = Annotated[tuple[Bytes64, ...], Count(0, MAX_COMMITTEE)]
Envelopes = Annotated[tuple[Envelope, ...], Count(0, 2 * MAX_COMMITTEE)]


@message(tag=0x42, cap=RECORD_CAP + (8 << 10))
@dataclass(frozen=True, slots=True)
class Proposal:
    """The proposer of `view` asks for `record`, whose hash is `value`.

    With `valid_view`, `signers` and `signatures` are a quorum's prevotes for the same value in that earlier view:
    the proof that lets a member locked before that view let go of its lock.
    """

    round: U64
    view: View
    value: Bytes32
    valid_view: ViewOrNone
    record: RecordFrame
    signers: Signers
    signatures: Signatures


@message(tag=0x43, cap=160)
@dataclass(frozen=True, slots=True)
class Ballot:
    """One vote: PREVOTE or PRECOMMIT, for a record's hash or NIL."""

    round: U64
    view: View
    kind: Kind
    value: Bytes32


@message(tag=0x44, cap=RECORD_CAP + (8 << 10))
@dataclass(frozen=True, slots=True)
class ProofOfLock:
    """A quorum's prevotes for `record` in one view. Proves itself, whoever sends it."""

    round: U64
    view: View
    value: Bytes32
    record: RecordFrame
    signers: Signers
    signatures: Signatures


@message(tag=0x45, cap=896 << 10)
@dataclass(frozen=True, slots=True)
class Gossip:
    """What an undecided member holds, repeated until it decides: its ballots and why it is in its view
    (`ballots`, its own and other members'), the current view's proposal, and its newest proof of lock.
    """

    round: U64
    ballots: Envelopes
    proposal: Annotated[tuple[Envelope, ...], Count(0, 1)]
    proof: Annotated[tuple[ProofOfLock, ...], Count(0, 1)]


@message(tag=0x46, cap=8 << 10)
@dataclass(frozen=True, slots=True)
class Certificate:
    """A quorum's precommits for `value` in one view. `signers` are committee indices, strictly increasing, and
    `signatures` those of their ballots' envelopes in the same order. With it, the round happened.
    """

    round: U64
    view: View
    value: Bytes32
    signers: Signers
    signatures: Signatures


@message(tag=0x47, cap=64)
@dataclass(frozen=True, slots=True)
class DecisionRequest:
    """What did the committee decide in this round? Anybody may ask any member."""

    round: U64


@message(tag=0x48, cap=RECORD_CAP + (9 << 10))
@dataclass(frozen=True, slots=True)
class Decision:
    """The round's record and certificate, as frames."""

    record: RecordFrame
    certificate: Annotated[bytes, Length(2, 8 << 10)]


@message(tag=0x4A, cap=832 << 10)
@dataclass(frozen=True, slots=True)
class Memory:
    """What a member must not forget over a restart; never sent. Written through the guard before each message
    that it covers.

    `step` counts the votes of `view` that are behind (0 propose, 1 prevote cast, 2 precommit cast). `own` are its
    envelopes of `view`: the proposal, if it was the proposer, and its ballots. `entry` are the ballots that brought
    it into `view`. `proof` is its newest proof of lock, whose view is at least the lock's.
    """

    round: U64
    view: View
    step: Annotated[int, Range(0, 2)]
    own: Annotated[tuple[Envelope, ...], Count(0, 3)]
    entry: Envelopes
    locked_view: ViewOrNone
    locked_value: Bytes32
    proof: Annotated[tuple[ProofOfLock, ...], Count(0, 1)]
