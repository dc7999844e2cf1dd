"""The round record: what a round changed, in one canonical message whose hash the committee signs.

Records form a chain through `parent`. Round 0 is the founding: who the first members are and which state they
start from, signed by the founder that the run's manifest names. A *void* record says that a round changed
nothing; it follows from its parent alone, so every peer computes the same one without asking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, TypeVar

from averaging.params import MAX_COHORTS, MAX_PEERS
from averaging.tally import Tally
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId
from dht.wire import U16, U32, U64, Bytes32, Count, PeerIdBytes, decode_as, digest, encode, message

Item = TypeVar("Item", int, bytes)
RECORD_CAP = 352 << 10
"""Most bytes of a record's frame."""
MAX_SURVIVORS = MAX_PEERS
MAX_LOST_CHUNKS = 4096
LOSS_SCALE = 4096
"""A record's `loss` counts in 1/4096."""
ZERO = bytes(32)


@dataclass(frozen=True, slots=True)
class Survivor:
    """One peer whose update is in the sum: the tokens it trained on and the chunks that it reduced for everyone."""

    peer: PeerIdBytes
    tokens: U64
    chunks: U32


@message(tag=0x41, cap=RECORD_CAP)
@dataclass(frozen=True)
class Record:
    """The outcome of one round.

    `attempt`, `roster` (digest of the signed roster), `sid` and `aggregate_root` (Merkle root over the hashes of the
    summed chunks) bind the record to the aggregation it came from. `survivors` are sorted by peer id. `left_out` are
    the cohorts of the roster whose sums are not in it: they aborted, or came too late; their members keep their
    updates. `lost_chunks` are counted as zero by everyone. `loss` is the public mean training loss in units of
    1/4096. `state_root` and `tally_root` hold after the round. A void record with survivors is a recovery
    (`averaging.recovery`): nothing changed but the committee, which is its survivors from here on.
    """

    run: Bytes32
    round: U64
    parent: Bytes32
    void: bool
    attempt: U32
    roster: Bytes32
    sid: Bytes32
    aggregate_root: Bytes32
    survivors: Annotated[tuple[Survivor, ...], Count(0, MAX_SURVIVORS)]
    left_out: Annotated[tuple[U16, ...], Count(0, MAX_COHORTS)]
    lost_chunks: Annotated[tuple[U32, ...], Count(0, MAX_LOST_CHUNKS)]
    loss: U32
    state_root: Bytes32
    tally_root: Bytes32

    def hash(self) -> bytes:
        """32 bytes that stand for this record in ballots, certificates and the next record's `parent`."""
        return self._hash

    @cached_property
    def _hash(self) -> bytes:
        return record_hash(encode(self))  # once: with a thousand survivors it takes milliseconds

    @property
    def recovery(self) -> bool:
        """Whether this is a recovery: part of a committee goes on without the rest."""
        return self.void and bool(self.survivors)

    def names(self, peer: PeerId) -> bool:
        """Whether a peer is among the survivors."""
        mine = bytes(peer)
        return any(survivor.peer == mine for survivor in self.survivors)

    def members(self) -> tuple[PeerId, ...]:
        """The survivors' peer ids, in record order. Raises ProtocolError (OUT_OF_BOUNDS) on a malformed one."""
        return tuple(PeerId(survivor.peer) for survivor in self.survivors)


@message(tag=0x40, cap=176 << 10)
@dataclass(frozen=True, slots=True)
class Founding:
    """How a run begins: its first members (sorted by peer id) and the state they start from.

    It travels in an `Envelope` of round 0 signed by the founder. `nonce` is random, so that two foundings of one
    manifest are two chains and never one by accident.
    """

    run: Bytes32
    members: Annotated[tuple[PeerIdBytes, ...], Count(1, MAX_SURVIVORS)]
    state_root: Bytes32
    nonce: Bytes32

    def record(self) -> Record:
        """The record of round 0; its `sid` commits to the founding message. Nobody has earned tokens yet."""
        survivors = tuple(Survivor(member, 0, 0) for member in self.members)
        sid = digest("founding", encode(self))
        return Record(
            self.run, 0, self.run, False, 0, ZERO, sid, ZERO, survivors, (), (), 0, self.state_root, Tally().root()
        )


def record_hash(frame: bytes | memoryview) -> bytes:
    """Hash of a record from its canonical frame, 32 bytes."""
    return digest("record", frame)


def found(founder: Identity, run: bytes, members: tuple[PeerId, ...], state_root: bytes, nonce: bytes) -> Envelope:
    """Sign the founding of a run. `members` in any order, without duplicates; `nonce` is 32 random bytes."""
    return seal(founder, run, 0, Founding(run, tuple(sorted(members)), state_root, nonce))


def check_founding(envelope: Envelope, run: bytes, founder: PeerId) -> Founding:
    """The founding message, once signature, run and form are checked. Raises ProtocolError."""
    if envelope.check(run) != founder:
        raise ProtocolError(Refusal.NOT_A_MEMBER, "the founding record is not signed by the run's founder")
    if envelope.round != 0:
        raise ProtocolError(Refusal.STALE, f"a founding record of round {envelope.round}")
    founding = decode_as(Founding, envelope.body)
    if founding.run != run:
        raise ProtocolError(Refusal.WRONG_RUN, "the founding record names another run")
    check_sorted([PeerId(member) for member in founding.members], "founding members")
    return founding


def void_record(head: Record) -> Record:
    """The one record that says: the round after `head` changed nothing."""
    return Record(
        run=head.run,
        round=head.round + 1,
        parent=head.hash(),
        void=True,
        attempt=0,
        roster=ZERO,
        sid=ZERO,
        aggregate_root=ZERO,
        survivors=(),
        left_out=(),
        lost_chunks=(),
        loss=0,
        state_root=head.state_root,
        tally_root=head.tally_root,
    )


def check_successor(record: Record, head: Record, tally: Tally) -> Tally:
    """The tally after `record`, once it is a well-formed successor of `head` whose tally is `tally`.

    Everything about a record that follows from the chain is checked here; what follows from the aggregation
    (sums, state root, weights) is not. Raises ProtocolError.
    """
    if record.run != head.run:
        raise ProtocolError(Refusal.WRONG_RUN, "the record belongs to another run")
    if record.round != head.round + 1:
        raise ProtocolError(Refusal.STALE, f"record of round {record.round} where {head.round + 1} is due")
    if record.parent != head.hash():
        raise ProtocolError(Refusal.BAD_HASH, f"the record of round {record.round} has another parent")
    if record.void:
        if record != void_record(head):
            raise ProtocolError(Refusal.BAD_HASH, f"the void record of round {record.round} is not the one")
        return tally
    if not record.survivors:
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, "a record without survivors must be void")
    check_sorted(record.members(), "survivors")
    check_sorted(record.left_out, "cohorts left out")
    check_sorted(record.lost_chunks, "lost chunks")
    after = tally.apply(record)
    if record.tally_root != after.root():
        raise ProtocolError(Refusal.BAD_HASH, f"the tally root of round {record.round} is wrong")
    return after


def check_sorted(items: Sequence[Item], what: str) -> None:
    """Raises ProtocolError (OUT_OF_BOUNDS) unless the items strictly increase: one form, no duplicate."""
    if list(items) != sorted(set(items)):
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"{what} are not strictly increasing")
