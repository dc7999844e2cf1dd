"""Messages of one round, in the order in which they travel. All are signed (`dht.envelope`).

Bounds are for the largest cohort, 64 members. `docs/protocol.md` lists who sends what, and what is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from averaging.layout import MAX_DOMAINS
from averaging.params import COORDINATORS, MAX_COHORTS, MAX_MEMBERS, MAX_PEERS
from dht.wire import U8, U16, U32, U64, Bytes32, Bytes64, Count, Length, PeerIdBytes, Range, message

Bitmap = Annotated[int, Range(0, 2**MAX_MEMBERS - 1)]
"""Bit i stands for the member with index i of the cohort."""

Domain = Annotated[int, Range(0, MAX_DOMAINS)]
"""A kind of data, by its place in the manifest's list, from 1; 0 for none."""

Hashes = Annotated[tuple[Bytes32, ...], Count(0, 16384)]


@message(tag=0x10, cap=256)
@dataclass(frozen=True, slots=True)
class Knock:
    """I want in: tell me the head of the chain, and keep the next roster open for me."""

    known: U64  # rounds of the chain that I hold, 0 for none
    head: Bytes32
    nonce: Bytes32 = bytes(32)  # that of my Joins since my process started


@message(tag=0x11, cap=4096)
@dataclass(frozen=True, slots=True)
class Join:
    """Round keys of one member for one attempt (step R0). Kept byte for byte in the roster."""

    round: U64
    attempt: U32
    head: Bytes32
    mask_key: Bytes32
    share_key: Bytes32
    self_commitment: Bytes32
    audit_commitment: Bytes32
    nonce: Bytes32
    tokens: U32  # expected to bring
    capacity: U16  # of its connection, relative to the others'; 0: it cannot be dialled and reduces nothing
    missing: Annotated[tuple[PeerIdBytes, ...], Count(0, MAX_MEMBERS)]  # who stalled my last attempt
    domain: Domain = 0  # what data I train on


@dataclass(frozen=True, slots=True)
class Seat:
    """One line of a roster: a member, the digest of its Join's frame, and the capacity that the Join declares."""

    peer: PeerIdBytes
    join: Bytes32
    capacity: U16


@message(tag=0x12, cap=480_000)
@dataclass(frozen=True, slots=True)
class Roster:
    """The convener's list of an attempt's members, in the order that cuts cohorts."""

    round: U64
    attempt: U32
    head: Bytes32
    seats: Annotated[tuple[Seat, ...], Count(1, MAX_PEERS)]


MOST_ONWARD = 240_000


@message(tag=0x20, cap=1_000_000)
@dataclass(frozen=True, slots=True)
class Seating:
    """A roster as its convener signed it, with the Joins of one cohort. Its first members pass it on to the others, and
    to other cohorts, of which `onward` has the Joins: one whole cohort after the other, each behind its length (u16).
    """

    roster: Annotated[bytes, Length(64, 480_256)]
    joins: Annotated[tuple[Annotated[bytes, Length(64, 4352)], ...], Count(1, MAX_MEMBERS)]
    onward: Annotated[bytes, Length(0, MOST_ONWARD)] = b""


@message(tag=0x13, cap=256)
@dataclass(frozen=True, slots=True)
class Closed:
    """Why a Join cannot be used: 1 roster already signed, 2 another head, 3 not the convener, 4 named a laggard."""

    round: U64
    attempt: U32
    reason: U8
    known: U64
    head: Bytes32


@message(tag=0x14, cap=16384)
@dataclass(frozen=True, slots=True)
class Shares:
    """Step R1: a dealer's sealed shares for one member, and hashes of everybody's shares (a, b, audit; n each)."""

    sid: Bytes32
    sealed: Annotated[bytes, Length(96, 256)]
    commitments: Annotated[tuple[Bytes32, ...], Count(3, 3 * MAX_MEMBERS)]


@message(tag=0x15, cap=4096)
@dataclass(frozen=True, slots=True)
class Ready:
    """I hold everybody's shares; `commitments` are digests of the dealers' hash lists, in index order."""

    sid: Bytes32
    commitments: Annotated[tuple[Bytes32, ...], Count(3, MAX_MEMBERS)]


@message(tag=0x16, cap=700_000)
@dataclass(frozen=True, slots=True)
class Manifest:
    """Step R2: SHA-256 of every masked chunk, trailer last, and the public weight in tokens."""

    sid: Bytes32
    tokens: U32
    hashes: Hashes


@message(tag=0x17, cap=2048)
@dataclass(frozen=True, slots=True)
class Receipt:
    """Step R3: whose masked chunks I hold completely, each equal to its manifest, and which manifest that is: the
    first 16 bytes of its digest, for each of them in index order."""

    sid: Bytes32
    complete: Bitmap
    manifests: Annotated[tuple[Annotated[bytes, Length(16, 16)], ...], Count(0, MAX_MEMBERS)]


@message(tag=0x18, cap=180_000)
@dataclass(frozen=True, slots=True)
class Survivors:
    """A leader's proposal: the members whose updates are summed, the live reducers, and the receipts that say so."""

    sid: Bytes32
    view: U16
    survivors: Bitmap
    reducers: Bitmap
    receipts: Annotated[tuple[Annotated[bytes, Length(64, 2560)], ...], Count(1, MAX_MEMBERS)]


@message(tag=0x19, cap=256)
@dataclass(frozen=True, slots=True)
class Vote:
    """My one vote of this sid. `manifests` binds the survivors' signed manifests."""

    sid: Bytes32
    survivors: Bitmap
    reducers: Bitmap
    manifests: Bytes32


@message(tag=0x1A, cap=8192)
@dataclass(frozen=True, slots=True)
class Unmask:
    """Step R4: one share per member, in index order: of survivors the self-mask seed's, of the rest the mask seed's."""

    sid: Bytes32
    survivors: Bitmap
    shares: Annotated[tuple[Bytes32, ...], Count(3, MAX_MEMBERS)]


@message(tag=0x1B, cap=700_000)
@dataclass(frozen=True, slots=True)
class SumHashes:
    """Step R5: SHA-256 of the sums of the chunks that the sender reduced; signed before it sees another's."""

    sid: Bytes32
    chunks: Annotated[tuple[U32, ...], Count(0, 16384)]
    hashes: Hashes


@message(tag=0x1C, cap=100_000)
@dataclass(frozen=True, slots=True)
class Missing:
    """These sums did not reach me; whoever holds one, send it."""

    sid: Bytes32
    chunks: Annotated[tuple[U32, ...], Count(1, 16384)]


@message(tag=0x1D, cap=8192)
@dataclass(frozen=True, slots=True)
class AuditShares:
    """Shares of the survivors' audit seeds, in index order; sent once all sum hashes are signed."""

    sid: Bytes32
    shares: Annotated[tuple[Bytes32, ...], Count(3, MAX_MEMBERS)]


ATTESTED_CAP = 16 << 10
"""Longest record that travels with every attestation; a longer one comes with the proposal alone."""


@message(tag=0x1E, cap=ATTESTED_CAP + 128)
@dataclass(frozen=True, slots=True)
class Attest:
    """I computed the record with hash `value` myself, and the sums behind it are on my disk. `record` is its frame,
    or empty when that is long.
    """

    round: U64
    value: Bytes32
    record: Annotated[bytes, Length(0, ATTESTED_CAP)]


@message(tag=0x1F, cap=128)
@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? The transport's acknowledgement is the answer. `sid`, if not zero: and in this attempt of this
    round? Who is not knocks, so that a restart is noticed.
    """

    nonce: U64
    sid: Bytes32 = bytes(32)


RESULT_CAP = 768


@message(tag=0x21, cap=RESULT_CAP)
@dataclass(frozen=True, slots=True)
class Result:
    """What my cohort's aggregation came to: survivors, live reducers, the survivors' tokens in index order, and the
    Merkle root over the hashes of its `chunks` sums. All empty or zero: it failed. `domains` are the survivors' by
    their Joins, empty where nobody has declared one.
    """

    sid: Bytes32  # the round's
    cohort: U16
    survivors: Bitmap
    reducers: Bitmap
    tokens: Annotated[tuple[U32, ...], Count(0, MAX_MEMBERS)]
    chunks: U32
    root: Bytes32
    domains: Annotated[tuple[Domain, ...], Count(0, MAX_MEMBERS)] = ()


@message(tag=0x22, cap=560_000)
@dataclass(frozen=True, slots=True)
class Inclusion:
    """A coordinator's proposal: the results of the cohorts whose sums are added up, in order of their index, and for
    each the signatures of t of its members. `signers` are places in the roster, strictly increasing.
    """

    sid: Bytes32
    view: Annotated[int, Range(0, COORDINATORS - 1)]
    results: Annotated[tuple[Annotated[bytes, Length(2, RESULT_CAP)], ...], Count(0, MAX_COHORTS)]
    signers: Annotated[tuple[U16, ...], Count(0, MAX_PEERS)]
    signatures: Annotated[tuple[Bytes64, ...], Count(0, MAX_PEERS)]


@message(tag=0x23, cap=128)
@dataclass(frozen=True, slots=True)
class InclusionVote:
    """A committee member's one vote of this roster: the digest over the results' frames."""

    sid: Bytes32
    value: Bytes32


@message(tag=0x24, cap=280_000)
@dataclass(frozen=True, slots=True)
class Included:
    """The cohorts that are in the sum, and a quorum's votes for them. Proves itself, whoever sends it."""

    sid: Bytes32
    results: Annotated[tuple[Annotated[bytes, Length(2, RESULT_CAP)], ...], Count(0, MAX_COHORTS)]
    signers: Annotated[tuple[U8, ...], Count(1, MAX_MEMBERS)]
    signatures: Annotated[tuple[Bytes64, ...], Count(1, MAX_MEMBERS)]


@message(tag=0x25, cap=128)
@dataclass(frozen=True, slots=True)
class TotalHash:
    """SHA-256 of a chunk's total across cohorts, signed by who added it up. It travels before the total's words."""

    sid: Bytes32
    chunk: U32
    hash: Bytes32


@message(tag=0x26, cap=200_000)
@dataclass(frozen=True, slots=True)
class Wanted:
    """I lack these totals; or, as who adds them up, your cohort's sums of these chunks."""

    sid: Bytes32
    totals: Annotated[tuple[U32, ...], Count(0, 16384)]
    parts: Annotated[tuple[U32, ...], Count(0, 16384)]
