"""Who takes part in an attempt: convener ranking, cohort order, and the checks of a signed roster."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from averaging.certificate import quorum
from averaging.keys import check_public
from averaging.messages import Join, Roster
from averaging.params import RunParams
from dht.envelope import Envelope
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from dht.wire import decode_as, digest, encode


def ranking(beacon: bytes, members: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """Conveners of a round, first in line first. Nobody can choose a place: the beacon is the last record's hash."""
    return tuple(sorted(members, key=lambda peer: digest("convener", beacon, peer)))


def convener(beacon: bytes, members: Iterable[PeerId], attempt: int) -> PeerId:
    """Who signs the roster of an attempt: the ranking, one place further per attempt, round and round."""
    order = ranking(beacon, members)
    return order[attempt % len(order)]


def cohort_order(beacon: bytes, round_: int, peers: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """Peers in the order that cuts cohorts and numbers members."""
    return tuple(sorted(peers, key=lambda peer: digest("cohort", beacon, round_.to_bytes(8, "big"), peer)))


@dataclass(frozen=True, slots=True)
class Member:
    """One line of a checked roster."""

    peer: PeerId
    join: Join


@dataclass(frozen=True, slots=True)
class CheckedRoster:
    """A roster whose signatures, order and heads hold. All members form one cohort.

    Cutting `members` into several cohorts, and summing across them, is where networks beyond 64 peers will
    branch off: everything below works on the members of one cohort and its sid.
    """

    round: int
    attempt: int
    head: bytes
    digest: bytes
    sid: bytes
    members: tuple[Member, ...]

    @property
    def peers(self) -> tuple[PeerId, ...]:
        """Members' peer ids in index order."""
        return tuple(member.peer for member in self.members)


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
    envelope: Envelope, params: RunParams, round_: int, head: bytes, committee: tuple[PeerId, ...], mine: bytes
) -> CheckedRoster:
    """Check a convener's roster; `mine` is my Join envelope's frame, which must be in it unchanged.

    Raises ProtocolError: wrong convener, head, order, a bad or repeated Join, too few members.
    """
    sender = envelope.check(params.run)
    roster = decode_as(Roster, envelope.body)
    if (envelope.round, roster.round, roster.head) != (round_, round_, head):
        raise ProtocolError(Refusal.STALE, f"a roster for round {roster.round}")
    if sender != convener(head, committee, roster.attempt):
        raise ProtocolError(Refusal.WRONG_SENDER, f"{sender.short} does not convene attempt {roster.attempt}")
    if mine not in roster.joins:
        raise ProtocolError(Refusal.NOT_A_MEMBER, "my Join is not in the roster as I signed it")
    members = tuple(
        check_join(decode_as(Envelope, frame), params.run, round_, roster.attempt, head) for frame in roster.joins
    )
    peers = tuple(member.peer for member in members)
    if peers != cohort_order(head, round_, set(peers)):
        raise ProtocolError(Refusal.UNEXPECTED, "the roster repeats a peer or is out of order")
    if len(peers) < params.minimum:
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"{len(peers)} members, at least {params.minimum} needed")
    if not decisive(peers, committee):
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, "fewer than a quorum of the committee: its record would not stand")
    keys = {key for member in members for key in (member.join.mask_key, member.join.share_key)}
    if len(keys) != 2 * len(members):
        raise ProtocolError(Refusal.EQUIVOCATION, "two members use one key")
    name = digest("roster", envelope.body)
    sid = digest("sid", params.run, round_.to_bytes(8, "big"), roster.attempt.to_bytes(4, "big"), name)
    return CheckedRoster(round_, roster.attempt, head, name, sid, members)


def decisive(peers: Collection[PeerId], committee: Collection[PeerId]) -> bool:
    """Whether these peers can have their record certified: a quorum of the committee must have computed it.

    So there are never two rosters at work in one round that could both succeed.
    """
    return len(set(peers) & set(committee)) >= quorum(len(committee))


def make_roster(params: RunParams, round_: int, attempt: int, head: bytes, joins: dict[PeerId, Envelope]) -> Roster:
    """The roster of these Joins, in cohort order."""
    order = cohort_order(head, round_, joins)
    return Roster(round_, attempt, head, tuple(encode(joins[peer]) for peer in order))
