"""Evidence: what proves a peer's lie to anybody who has the file and nothing else.

Four kinds. A *contradiction* is two messages that one peer signed for one place (`claims`), where only one may stand.
A *wrong sum* shows all that a reducer's sum of one chunk follows from, and the hash that it signed instead; a *wrong
total* the same of a sum across cohorts. A *wrong
seed* shows shares that a dealer committed to and that open another seed than the one it published. Each is one frame,
canonical like every message, so that its digest is its name. An honest peer's guard keeps it from ever signing what
could stand here; see `docs/decisions/0012-audits-and-evidence.md` for why publishing this harms nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, TypeAlias, TypeVar

from averaging import shamir
from averaging.ballots import KIND_NAMES, Ballot, Proposal
from averaging.bulk import MAX_CHUNK_BYTES, MAX_WIDE_BYTES
from averaging.certificate import draw_committee
from averaging.dealing import SHARE_BYTES, Seed, fits, share_digest
from averaging.inclusion import check_included
from averaging.layout import RING_DTYPES, RingArray
from averaging.masking import unmask
from averaging.messages import (
    Attest,
    Included,
    Inclusion,
    InclusionVote,
    Manifest,
    Ready,
    Receipt,
    Result,
    Roster,
    Seating,
    Shares,
    SumHashes,
    Survivors,
    TotalHash,
    Unmask,
    Vote,
)
from averaging.packing import LEAST_PACK, MOST_PACK
from averaging.params import MAX_COHORTS, MAX_MEMBERS, threshold
from averaging.parts import open_part
from averaging.record import RECORD_CAP, Record, void_record
from averaging.reducing import add_masked, mask_keys
from averaging.roster import CheckedRoster, read_roster, read_seating
from averaging.shamir import SECRET_BYTES
from averaging.survivors import SurvivorCertificate
from averaging.wide import add_up, add_up_packed
from dht.envelope import Envelope
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from dht.transport import Part
from dht.wire import U8, U16, U32, Count, Length, Range, decode, decode_as, digest, encode, message

EVIDENCE_CAP = 48 << 20
"""Most bytes of one piece: 64 masked chunks of half a MiB, and what binds them."""
WRONG_SUM, WRONG_TOTAL, WRONG_SEED, TWO_ROSTERS = "wrong sum", "wrong total", "wrong seed", "two rosters"
_SID_CLAIMS = (Manifest, Receipt, Ready, Vote, Unmask, Result, InclusionVote)
_NAMES = {
    Inclusion: "inclusions",
    InclusionVote: "votes on inclusions",
    TotalHash: "totals",
    Attest: "attestations",
    SumHashes: "sums",
    Survivors: "survivor sets",
    Shares: "sets of shares",
}

Place: TypeAlias = tuple[bytes | int | str, ...]
_Signed = TypeVar("_Signed", Manifest, Vote, SumHashes, Shares)


@message(tag=0x2C, cap=(2 << 20) + 4096, framed=False)
@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two messages of one peer of which at most one may exist; the one with the lesser body first."""

    first: Envelope
    second: Envelope


@dataclass(frozen=True, slots=True)
class CohortIndex:
    """Which of a roster's cohorts: number `index` of `count`."""

    index: U16
    count: U16


@message(tag=0x2D, cap=EVIDENCE_CAP, framed=False)
@dataclass(frozen=True, slots=True)
class WrongSum:
    """All that the sum of one chunk follows from, and the signed hash of another one."""

    seating: Seating
    cohort: CohortIndex
    votes: Annotated[tuple[Envelope, ...], Count(1, MAX_MEMBERS)]  # equal ones, as many as certify
    manifests: Annotated[tuple[Envelope, ...], Count(1, MAX_MEMBERS)]  # the survivors', in index order
    seeds: Annotated[tuple[Annotated[bytes, Length(SECRET_BYTES, SECRET_BYTES)], ...], Count(1, MAX_MEMBERS)]
    hashes: Envelope  # the accused's SumHashes
    chunk: U32
    inputs: Annotated[tuple[Annotated[bytes, Length(1, MAX_CHUNK_BYTES)], ...], Count(1, MAX_MEMBERS)]


@dataclass(frozen=True, slots=True)
class HeldShare:
    """One member's share of a dealer's seed."""

    holder: U16
    share: Annotated[bytes, Length(SHARE_BYTES, SHARE_BYTES)]


@message(tag=0x2E, cap=1 << 20, framed=False)
@dataclass(frozen=True, slots=True)
class WrongSeed:
    """Shares that a dealer committed to, enough to open a seed, which is not the one that its Join names."""

    seating: Seating
    cohort: CohortIndex
    shares: Envelope  # the accused's Shares message, for its list of hashes
    seed: Annotated[U8, Range(0, 2)]
    held: Annotated[tuple[HeldShare, ...], Count(1, MAX_MEMBERS)]


@message(tag=0x27, cap=EVIDENCE_CAP, framed=False)
@dataclass(frozen=True, slots=True)
class WrongTotal:
    """The cohorts' sums of one chunk, each with its proof under the root that was included, and another total's hash.

    `electors` is the last record before the round that is not void, `voids` how many void ones followed: from it
    come the roster's head and the committee whose votes are in `included`.
    """

    roster: Annotated[bytes, Length(64, 480_256)]
    cohorts: U16
    electors: Annotated[bytes, Length(2, RECORD_CAP)]
    voids: U16
    included: Included
    total: Envelope  # the accused's TotalHash
    parts: Annotated[tuple[Annotated[bytes, Length(1, MAX_WIDE_BYTES)], ...], Count(1, MAX_COHORTS)]


Evidence: TypeAlias = Contradiction | WrongSum | WrongTotal | WrongSeed


@dataclass(frozen=True, slots=True)
class Proof:
    """What a piece of evidence proves: who did what, in which run, round and attempt (sid; empty when in none)."""

    kind: str
    accused: PeerId
    run: bytes
    round: int
    sid: bytes
    text: str


def name_of(frame: bytes) -> bytes:
    """32 bytes that name a piece of evidence: the digest of its frame."""
    return digest("evidence", frame)


def claims(frame: bytes, body: object) -> dict[Place, bytes]:
    """What a message (with its frame) states that its signer may state only once: value by place; else nothing."""
    kind = type(body).__name__
    if isinstance(body, _SID_CLAIMS):
        return {(kind, body.sid): frame}
    if isinstance(body, SumHashes):
        return {(kind, body.sid, chunk): value for chunk, value in zip(body.chunks, body.hashes, strict=False)}
    if isinstance(body, Shares):  # sealed for each holder differently; the list is one
        return {(kind, body.sid): b"".join(body.commitments)}
    if isinstance(body, Survivors | Inclusion):
        return {(kind, body.sid, body.view): frame}
    if isinstance(body, TotalHash):
        return {(kind, body.sid, body.chunk): body.hash}
    if isinstance(body, Roster):
        return {(kind, body.round, body.attempt, body.head): frame}
    if isinstance(body, Attest):
        return {(kind, body.round): body.value}
    if isinstance(body, Proposal):
        return {(kind, body.round, body.view): frame}
    if isinstance(body, Ballot):
        return {(kind, body.round, body.view, body.kind): body.value}
    return {}


def contradiction(one: Envelope, other: Envelope) -> Contradiction | None:
    """The evidence that two envelopes of one signer are, or None when both may stand."""
    if (one.run, one.round, one.sender) != (other.run, other.round, other.sender):
        return None
    said, again = claims(one.body, one.message()), claims(other.body, other.message())
    if not any(place in again and again[place] != value for place, value in said.items()):
        return None
    return Contradiction(*sorted((one, other), key=lambda envelope: envelope.body))


def verify(frame: bytes, run: bytes | None = None, ring_bits: int | None = None, pack: int = 1) -> Proof:
    """Check a piece of evidence from its bytes alone; what it proves.

    `run`: it must be of this run. `ring_bits`, `pack`: the run's; without them a sum counts as wrong only if no ring
    and no packing that exist make it right. Raises ProtocolError when it proves nothing, naming the first thing that
    does not hold.
    """
    evidence = decode(frame)
    if isinstance(evidence, Contradiction):
        proof = _contradicts(evidence)
    elif isinstance(evidence, WrongSum):
        proof = _sums_wrong(evidence, ring_bits)
    elif isinstance(evidence, WrongTotal):
        proof = _totals_wrong(evidence, ring_bits, pack)
    elif isinstance(evidence, WrongSeed):
        proof = _deals_wrong(evidence)
    else:
        raise ProtocolError(Refusal.UNEXPECTED, f"{type(evidence).__name__} is no evidence")
    if run is not None and proof.run != run:
        raise ProtocolError(Refusal.WRONG_RUN, f"evidence of run {proof.run.hex()[:8]}")
    return proof


def _contradicts(evidence: Contradiction) -> Proof:
    first, second = evidence.first, evidence.second
    accused = first.check(first.run)
    second.check(first.run)
    if contradiction(first, second) != evidence:
        raise ProtocolError(Refusal.UNEXPECTED, "the two messages do not contradict each other, or are out of order")
    body = first.message()
    kind = f"two {_plural(body)}"
    sid = getattr(body, "sid", b"")
    text = f"{accused.short} signed {kind} where one may be, in round {first.round}"
    return Proof(kind, accused, first.run, first.round, sid, text)


def _plural(body: object) -> str:
    if isinstance(body, Ballot):
        return f"{KIND_NAMES[body.kind]}s"
    return _NAMES.get(type(body), f"{type(body).__name__.lower()}s")


def _sums_wrong(evidence: WrongSum, ring_bits: int | None) -> Proof:
    run, roster = read_seating(evidence.seating, evidence.cohort.index, evidence.cohort.count)
    chunk = evidence.chunk
    r3 = SurvivorCertificate(run, roster, threshold(len(roster.members)))
    manifests = []
    for envelope in evidence.manifests:
        manifests.append(_of(Manifest, envelope, roster, run))
        r3.add_manifest(roster.peers.index(PeerId(envelope.sender)), manifests[-1], encode(envelope))
    for envelope in evidence.votes:
        vote = _of(Vote, envelope, roster, run)
        r3.add_vote(roster.peers.index(PeerId(envelope.sender)), vote)
    certified = r3.certified()
    signers = tuple(roster.peers.index(PeerId(envelope.sender)) for envelope in evidence.manifests)
    if certified is None or certified.survivors != signers or len(certified.voters) != len(evidence.votes):
        raise ProtocolError(Refusal.BAD_CERTIFICATE, "the votes do not certify these manifests")
    signed = _of(SumHashes, evidence.hashes, roster, run)
    accused = PeerId(evidence.hashes.sender)
    stated = claims(evidence.hashes.body, signed).get(("SumHashes", roster.sid, chunk))
    if roster.peers.index(accused) not in certified.reducers or stated is None:
        raise ProtocolError(Refusal.UNEXPECTED, f"{accused.short} signed no sum of chunk {chunk} that counts")
    total = {len(manifest.hashes) for manifest in manifests}
    if len(total) != 1 or chunk >= min(total) or len(evidence.inputs) != len(manifests):
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, "not one input of this chunk for each survivor")
    for manifest, data in zip(manifests, evidence.inputs, strict=True):
        if sha256(data).digest() != manifest.hashes[chunk]:
            raise ProtocolError(Refusal.BAD_HASH, "a masked input differs from its signed manifest")
    keys = mask_keys(roster, certified.survivors, _checked_seeds(evidence.seeds, roster, certified.survivors))
    last = chunk == min(total) - 1
    for bits in (32,) if last else (ring_bits,) if ring_bits else RING_DTYPES:
        if sha256(recompute(chunk, evidence.inputs, bits, *keys).data).digest() == stated:
            raise ProtocolError(Refusal.UNEXPECTED, f"the sum that {accused.short} signed is right")
    text = f"{accused.short} signed a wrong sum of chunk {chunk} in round {roster.round}"
    return Proof(WRONG_SUM, accused, run, roster.round, roster.sid, text)


def _totals_wrong(evidence: WrongTotal, ring_bits: int | None, pack: int) -> Proof:
    run, roster = read_roster(evidence.roster, evidence.cohorts)
    electors = head = decode_as(Record, evidence.electors)
    for _ in range(evidence.voids):
        head = void_record(head)
    if head.hash() != roster.head or electors.void:
        raise ProtocolError(Refusal.BAD_HASH, "the roster follows from another record")
    committee = draw_committee(electors.members(), roster.head)
    results = check_included(evidence.included, roster, run, committee)
    accused, said = evidence.total.check(run), decode_as(TotalHash, evidence.total.body)
    if (evidence.total.round, said.sid, evidence.included.sid) != (roster.round, roster.round_sid, roster.round_sid):
        raise ProtocolError(Refusal.STALE, "the total belongs to another roster")
    if len(evidence.parts) != len(results) or len({result.chunks for result in results}) != 1:
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, "not one sum of this chunk for each included cohort")
    parts = [open_part(result, said.chunk, part) for result, part in zip(results, evidence.parts, strict=True)]
    last = said.chunk == results[0].chunks - 1
    for words in _possible_totals(parts, ring_bits, pack, last=last):
        if sha256(words).digest() == said.hash:
            raise ProtocolError(Refusal.UNEXPECTED, f"the total that {accused.short} signed is right")
    text = f"{accused.short} signed a wrong total of chunk {said.chunk} in round {roster.round}"
    return Proof(WRONG_TOTAL, accused, run, roster.round, roster.round_sid, text)


def _possible_totals(parts: Sequence[Part], ring_bits: int | None, pack: int, *, last: bool) -> Iterator[memoryview]:
    """The total of these parts, in every format that it may have by what is known of the run; `last`: the trailer's."""
    packs = (pack,) if ring_bits else (1, *range(LEAST_PACK, MOST_PACK + 1))
    for digits in (1,) if last else packs:
        if digits > 1:
            yield add_up_packed(parts, digits)
            continue
        for bits in (32,) if last else (ring_bits,) if ring_bits else RING_DTYPES:
            yield add_up(parts, bits, counts=last)


def recompute(
    chunk: int,
    inputs: tuple[bytes | memoryview, ...],
    ring_bits: int,
    self_keys: list[bytes],
    dead: list[tuple[int, int, bytes]],
) -> RingArray:
    """Sum masked inputs of one chunk and take the masks off. Raises ProtocolError (OUT_OF_BOUNDS) for odd lengths."""
    dtype = RING_DTYPES[ring_bits]
    if len({len(data) for data in inputs}) != 1 or len(inputs[0]) % dtype.itemsize:
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, "masked inputs of different or odd lengths")
    ring = add_masked(inputs, dtype)
    unmask(chunk, ring, self_keys, dead)
    return ring


def _checked_seeds(seeds: tuple[bytes, ...], roster: CheckedRoster, survivors: tuple[int, ...]) -> dict[int, bytes]:
    if len(seeds) != len(roster.members):
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, "not one opened seed for each member")
    for i, seed in enumerate(seeds):
        if not fits(Seed.SELF if i in survivors else Seed.MASK, seed, roster.members[i].join):
            raise ProtocolError(Refusal.BAD_SHARE, f"the opened seed of member {i} is not the one it published")
    return dict(enumerate(seeds))


def _deals_wrong(evidence: WrongSeed) -> Proof:
    run, roster = read_seating(evidence.seating, evidence.cohort.index, evidence.cohort.count)
    count, kind = len(roster.members), Seed(evidence.seed)
    dealt = _of(Shares, evidence.shares, roster, run)
    accused = PeerId(evidence.shares.sender)
    dealer = roster.peers.index(accused)
    holders = [held.holder for held in evidence.held]
    if len(holders) != threshold(count) or holders != sorted(set(holders)) or holders[-1] >= count:
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, "not as many members' shares as open a seed")
    for held in evidence.held:
        stated = dealt.commitments[kind * count + held.holder] if len(dealt.commitments) == 3 * count else b""
        if share_digest(roster.sid, kind, dealer, held.holder, held.share) != stated:
            raise ProtocolError(Refusal.BAD_SHARE, f"not the share that was dealt to member {held.holder}")
    try:
        right = fits(
            kind, shamir.combine({held.holder: held.share for held in evidence.held}), roster.members[dealer].join
        )
    except ValueError:
        right = False
    if right:
        raise ProtocolError(Refusal.UNEXPECTED, f"the shares that {accused.short} dealt are right")
    text = f"{accused.short} dealt shares of another seed than it published, in round {roster.round}"
    return Proof(WRONG_SEED, accused, run, roster.round, roster.sid, text)


def _of(cls: type[_Signed], envelope: Envelope, roster: CheckedRoster, run: bytes) -> _Signed:
    """A member's signed message of the roster's sid. Raises ProtocolError."""
    body = decode_as(cls, envelope.body)
    if envelope.check(run) not in roster.peers or body.sid != roster.sid or envelope.round != roster.round:
        raise ProtocolError(Refusal.NOT_A_MEMBER, f"{cls.__name__} of another cohort")
    return body
