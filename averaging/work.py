"""Work that the machines ask of their driver besides messages and timers. Bulk work may use threads; order is free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from averaging.actions import Action
from averaging.ballots import Certificate
from averaging.bulk import BulkKind
from averaging.evidence import Proof
from averaging.record import Record
from dht.identity import PeerId


@dataclass(frozen=True, slots=True)
class Upload:
    """For each (chunk, receivers): encode it, `Cohort.mask` it, send it; then call `Cohort.uploaded`."""

    sid: bytes
    plan: tuple[tuple[int, tuple[PeerId, ...]], ...]


@dataclass(frozen=True, slots=True)
class Reduce:
    """Call `Cohort.reduce` for each chunk (any thread), then `Cohort.reduced` with them."""

    sid: bytes
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AddUp:
    """Call `Across.add_up` for each chunk (any thread), then `Across.added_up` with them."""

    sid: bytes
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Transfer:
    """Send `Participant.payload(sid, kind, chunk)` for each chunk to each peer, on the bulk lane."""

    sid: bytes
    kind: BulkKind
    chunks: tuple[int, ...]
    to: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Show:
    """Send `Cohort.shown(member, chunk)` for each input to an auditor, on the bulk lane."""

    sid: bytes
    inputs: tuple[tuple[int, int], ...]
    to: PeerId


@dataclass(frozen=True, slots=True)
class Check:
    """Call `Cohort.check` for each chunk (any thread), then `Cohort.checked` with them."""

    sid: bytes
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Blame:
    """Somebody is proven a liar: keep the evidence (its frame) on disk, and report what it proves."""

    proof: Proof
    evidence: bytes


@dataclass(frozen=True, slots=True)
class Train:
    """Train for this round from the state that I hold; then call `Participant.trained`."""

    round: int


@dataclass(frozen=True, slots=True)
class Apply:
    """`Participant.aggregate(sid)` is complete: compute the next state's root; then call `Participant.applied`."""

    sid: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    """The round is certified and its next state is the one I computed: adopt it; then call `Participant.holds`."""

    record: Record
    certificate: Certificate
    sid: bytes


@dataclass(frozen=True, slots=True)
class FetchState:
    """Download the state of this record from these peers, chunk by chunk against its root; then `Participant.holds`."""

    record: Record
    donors: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """I am in a roster: the round's members, and which attempt this is."""

    round: int
    attempt: int
    members: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Decided:
    """The committee has decided a round; `included` says whether my update is in its sum."""

    record: Record
    certificate: Certificate
    included: bool


@dataclass(frozen=True, slots=True)
class RolledBack:
    """Another branch stands: what was certified after round `fork` did not happen here. `left` was my head."""

    fork: int
    left: Record
    head: Record


CohortAction: TypeAlias = Action | Upload | Reduce | AddUp | Transfer | Show | Check
ParticipantAction: TypeAlias = (
    CohortAction | Blame | Train | Apply | Commit | FetchState | Joined | Decided | RolledBack
)
