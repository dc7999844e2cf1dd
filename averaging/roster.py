"""Who takes part in an attempt: convener ranking, how the roster cuts cohorts, and the checks of a signed roster."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise

from averaging.certificate import quorum
from averaging.keys import check_public
from averaging.layout import Layout
from averaging.messages import Join, Roster, Seat, Seating
from averaging.params import MAX_COHORTS, MAX_MEMBERS, RunParams
from dht.envelope import Envelope
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from dht.wire import decode_as, digest, encode


def ranking(beacon: bytes, members: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """Conveners of a round, first in line first. Nobody can choose a place: the beacon is the last record's hash."""
    return _ranking(beacon, tuple(members))


@lru_cache(maxsize=8)
def _ranking(beacon: bytes, members: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
    # Asked for at each Join, of which there may be thousands, and the same all through a round.
    return tuple(sorted(members, key=lambda peer: digest("convener", beacon, peer)))


def convener(beacon: bytes, members: Iterable[PeerId], attempt: int) -> PeerId:
    """Who signs the roster of an attempt: the ranking, one place further per attempt, round and round."""
    order = ranking(beacon, members)
    return order[attempt % len(order)]


def cohort_order(beacon: bytes, round_: int, peers: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """Peers in the order that cuts cohorts and numbers members."""
    return tuple(sorted(peers, key=lambda peer: digest("cohort", beacon, round_.to_bytes(8, "big"), peer)))


def cut(members: int, target: int, minimum: int) -> tuple[range, ...]:
    """Cohorts of a roster of so many members, as ranges of its order; sizes differ by one at most.

    As near to `target` as their number allows, none below `minimum` unless all together are, none above 64.
    """
    wanted = max(1, (2 * members + target) // (2 * target))  # rounds halves up
    most = min(max(1, members // minimum), MAX_COHORTS)
    count = max(min(wanted, most), -(-members // MAX_MEMBERS))
    return _ranges(members, count)


def largest_cohort(target: int, minimum: int) -> int:
    """The most members that a cohort can have, whatever the size of the roster."""
    most = max(2 * target, 2 * minimum)  # larger rosters are cut into parts that are nearer to the target
    return max(len(part) for members in range(1, most + 1) for part in cut(members, target, minimum))


def _ranges(members: int, count: int) -> tuple[range, ...]:
    size, longer = divmod(members, count)
    starts = [k * size + min(k, longer) for k in range(count + 1)]
    return tuple(range(start, end) for start, end in pairwise(starts))


@dataclass(frozen=True, slots=True)
class Member:
    """One line of a cohort: a peer and its round keys."""

    peer: PeerId
    join: Join


@dataclass(frozen=True)
class CheckedRoster:
    """One cohort of a roster whose signatures, order and heads hold, and who is in the others.

    `sid` names this cohort's aggregation, `round_sid` the whole roster's; they are equal while there is one cohort.
    `seats` are all members in order, `cohorts` the ranges that cut them, `index` which of them `members` are.
    `everybody` are the peer ids of the seats.
    """

    round: int
    attempt: int
    head: bytes
    digest: bytes
    sid: bytes
    members: tuple[Member, ...]
    round_sid: bytes
    seats: tuple[Seat, ...]
    cohorts: tuple[range, ...]
    index: int
    everybody: tuple[PeerId, ...]

    @cached_property
    def peers(self) -> tuple[PeerId, ...]:
        """The cohort's peer ids in index order."""
        return tuple(member.peer for member in self.members)

    @cached_property
    def domains(self) -> tuple[int, ...]:
        """The data domains that the cohort's members have declared, in index order."""
        return tuple(member.join.domain for member in self.members)

    @cached_property
    def present(self) -> frozenset[PeerId]:
        """All cohorts' peer ids, to look one up."""
        return frozenset(self.everybody)

    @cached_property
    def places(self) -> Mapping[PeerId, tuple[int, int]]:
        """Everybody's cohort, and its index in there."""
        return {peer: (k, i) for k in range(len(self.cohorts)) for i, peer in enumerate(self.cohort(k))}

    @property
    def alone(self) -> bool:
        """Whether this cohort is the only one."""
        return len(self.cohorts) == 1

    @property
    def largest(self) -> int:
        """Members of the largest cohort, which fixes the codec's levels for all."""
        return max(len(part) for part in self.cohorts)

    def cohort(self, index: int) -> tuple[PeerId, ...]:
        """The peer ids of a cohort."""
        part = self.cohorts[index]
        return self.everybody[part.start : part.stop]

    def cohort_sid(self, index: int) -> bytes:
        """The sid of a cohort's aggregation."""
        return cohort_sid(self.round_sid, index, len(self.cohorts))

    def reducers(self, layout: Layout, index: int) -> tuple[int, ...]:
        """Member index that reduces each chunk in a cohort, by the capacities that its members declare."""
        return _reducers(layout, tuple(self.seats[i].capacity for i in self.cohorts[index]))


@lru_cache(maxsize=MAX_COHORTS)
def _reducers(layout: Layout, capacities: tuple[int, ...]) -> tuple[int, ...]:
    # Asked for in several places, for all cohorts of a roster.
    return layout.reducers(len(capacities), capacities if any(capacities) else None)


def cohort_sid(round_sid: bytes, index: int, count: int) -> bytes:
    """The sid of one of `count` cohorts of a roster."""
    return round_sid if count == 1 else digest("cohort-sid", round_sid, index.to_bytes(2, "big"))


def check_join(envelope: Envelope, run: bytes, round_: int, attempt: int, head: bytes) -> Member:
    """A Join for exactly this attempt, signed by whom it speaks of. Raises ProtocolError."""
    peer = envelope.check(run)
    join = decode_as(Join, envelope.body)
    if (envelope.round, join.round, join.attempt) != (round_, round_, attempt):
        raise ProtocolError(Refusal.STALE, f"a Join for round {join.round} attempt {join.attempt}")
    for key in (join.mask_key, join.share_key):
        check_public(key)  # a key of low order would make everybody's pair key with its owner fail, one step later
    if join.head != head:
        raise ProtocolError(Refusal.UNEXPECTED, f"{peer.short} joins on another head")
    return Member(peer, join)


def check_roster(
    seating: Seating, params: RunParams, round_: int, head: bytes, committee: tuple[PeerId, ...], mine: Envelope
) -> CheckedRoster:
    """Check a convener's roster and my cohort's Joins; `mine` is my Join, which must be in it unchanged.

    Raises ProtocolError: wrong convener, head, order, a bad, repeated or exchanged Join, too few members.
    """
    roster, name, everybody = open_roster(seating.roster, params, round_, head, committee)
    me = PeerId(mine.sender)
    place = everybody.index(me) if me in everybody else -1
    if place < 0 or roster.seats[place].join != join_digest(encode(mine)):
        raise ProtocolError(Refusal.NOT_A_MEMBER, "my Join is not in the roster as I signed it")
    cohorts = cut(len(everybody), params.target, params.minimum)
    index = next(k for k, part in enumerate(cohorts) if place in part)
    members = _check_members(seating, tuple(roster.seats[i] for i in cohorts[index]), params.run, roster)
    if any(member.join.domain > params.layout.domains for member in members):
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, "a Join with a data domain that this run does not have")
    sid = digest("sid", params.run, round_.to_bytes(8, "big"), roster.attempt.to_bytes(4, "big"), name)
    own = cohort_sid(sid, index, len(cohorts))
    return CheckedRoster(round_, roster.attempt, head, name, own, members, sid, roster.seats, cohorts, index, everybody)


def open_roster(
    frame: bytes, params: RunParams, round_: int, head: bytes, committee: tuple[PeerId, ...]
) -> tuple[Roster, bytes, tuple[PeerId, ...]]:
    """What holds for a signed roster whoever looks at it: the roster, its digest, and who is in it, in order.

    Raises ProtocolError.
    """
    envelope = decode_as(Envelope, frame)
    sender = envelope.check(params.run)
    roster = decode_as(Roster, envelope.body)
    if (envelope.round, roster.round, roster.head) != (round_, round_, head):
        raise ProtocolError(Refusal.STALE, f"a roster for round {roster.round}")
    if sender != convener(head, committee, roster.attempt):
        raise ProtocolError(Refusal.WRONG_SENDER, f"{sender.short} does not convene attempt {roster.attempt}")
    peers = tuple(PeerId(seat.peer) for seat in roster.seats)
    if peers != cohort_order(head, round_, set(peers)):
        raise ProtocolError(Refusal.UNEXPECTED, "the roster repeats a peer or is out of order")
    if len(peers) < params.minimum:
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"{len(peers)} members, at least {params.minimum} needed")
    if not decisive(peers, committee):
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, "fewer than a quorum of the committee: its record would not stand")
    return roster, digest("roster", envelope.body), peers


def read_seating(seating: Seating, index: int, count: int) -> tuple[bytes, CheckedRoster]:
    """The run and one of the `count` cohorts of a roster, from its bytes alone: what evidence is about.

    Whether it was its signer's turn does not matter there: who took part in a sid checked it, and nobody else can have
    signed what names that sid. Raises ProtocolError.
    """
    run, bare = read_roster(seating.roster, count)
    if index >= count:
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"no cohort {index} of {count} in this roster")
    roster = decode_as(Roster, decode_as(Envelope, seating.roster).body)
    members = _check_members(seating, tuple(roster.seats[i] for i in bare.cohorts[index]), run, roster)
    return run, replace(bare, sid=cohort_sid(bare.round_sid, index, count), members=members, index=index)


def read_roster(frame: bytes, count: int) -> tuple[bytes, CheckedRoster]:
    """As `read_seating`, from the signed roster alone: who is in which cohort, without their keys (no `members`)."""
    envelope = decode_as(Envelope, frame)
    run, roster = envelope.run, decode_as(Roster, envelope.body)
    envelope.check(run)
    if envelope.round != roster.round or not 1 <= count <= len(roster.seats):
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"no {count} cohorts in this roster")
    name = digest("roster", envelope.body)
    sid = digest("sid", run, roster.round.to_bytes(8, "big"), roster.attempt.to_bytes(4, "big"), name)
    cohorts = _ranges(len(roster.seats), count)
    everybody = tuple(PeerId(seat.peer) for seat in roster.seats)
    return run, CheckedRoster(
        roster.round, roster.attempt, roster.head, name, sid, (), sid, roster.seats, cohorts, 0, everybody
    )


def _check_members(seating: Seating, seats: tuple[Seat, ...], run: bytes, roster: Roster) -> tuple[Member, ...]:
    """My cohort's members, once each Join is the one that its seat names. Raises ProtocolError."""
    if len(seating.joins) != len(seats):
        raise ProtocolError(Refusal.NOT_A_MEMBER, f"{len(seating.joins)} Joins for a cohort of {len(seats)}")
    members = []
    for seat, frame in zip(seats, seating.joins, strict=True):
        member = check_join(decode_as(Envelope, frame), run, roster.round, roster.attempt, roster.head)
        if (seat.peer, seat.join, seat.capacity) != (bytes(member.peer), join_digest(frame), member.join.capacity):
            raise ProtocolError(Refusal.BAD_HASH, f"the seat of {member.peer.short} names another Join")
        members.append(member)
    keys = {key for member in members for key in (member.join.mask_key, member.join.share_key)}
    if len(keys) != 2 * len(members):
        raise ProtocolError(Refusal.EQUIVOCATION, "two members use one key")
    return tuple(members)


def decisive(peers: Collection[PeerId], committee: Collection[PeerId]) -> bool:
    """Whether these peers can have their record certified: a quorum of the committee must have computed it.

    So there are never two rosters at work in one round that could both succeed.
    """
    return len(set(peers) & set(committee)) >= quorum(len(committee))


def join_digest(frame: bytes) -> bytes:
    """What a seat keeps of a Join's frame, 32 bytes."""
    return digest("join", frame)


def make_roster(round_: int, attempt: int, head: bytes, joins: Mapping[PeerId, Envelope]) -> Roster:
    """The roster of these Joins."""
    seats = []
    for peer in cohort_order(head, round_, joins):
        capacity = decode_as(Join, joins[peer].body).capacity
        seats.append(Seat(bytes(peer), join_digest(encode(joins[peer])), capacity))
    return Roster(round_, attempt, head, tuple(seats))


def make_seatings(
    params: RunParams, roster: Envelope, joins: Mapping[PeerId, Envelope]
) -> list[tuple[tuple[PeerId, ...], Seating]]:
    """For every cohort its members and what they get: the signed roster with their Joins."""
    peers = [PeerId(seat.peer) for seat in decode_as(Roster, roster.body).seats]
    frame = encode(roster)
    seatings = []
    for part in cut(len(peers), params.target, params.minimum):
        members = tuple(peers[i] for i in part)
        seatings.append((members, Seating(frame, tuple(encode(joins[peer]) for peer in members))))
    return seatings
