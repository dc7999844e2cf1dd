"""How what is long reaches everybody: passed on in trees, since no home line carries a thousand copies.

The founding record goes from member to member (`branches`), a roster from cohort to cohort (`spread`): the convener
gives each of a few groups of cohorts to the first of them, with the Joins of all; two members there do the same with
the rest, each to its counterpart, so that one death cuts nobody off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from averaging.messages import MOST_ONWARD, Seating
from averaging.roster import CheckedRoster, join_digest
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId

BRANCHES = 8
"""Peers to whom each founding member passes the founding record on."""
SPREAD = 4
"""Cohorts to which one passes a roster on."""
_PREFIX = 2

Cohort: TypeAlias = tuple[tuple[PeerId, ...], tuple[bytes, ...]]
"""The members of a cohort and the frames of their Joins, in the roster's order."""


def branches(members: Sequence[PeerId], root: PeerId, me: PeerId) -> list[PeerId]:
    """To whom I pass on what comes from `root`: a tree in which everybody has BRANCHES successors, by their order.

    With a thousand members it is four deep, and nobody sends more than eight copies over its line.
    """
    order = [root, *(peer for peer in members if peer != root)]
    if me not in order:
        return []
    first = BRANCHES * order.index(me) + 1
    return order[first : first + BRANCHES]


def spread(roster: bytes, cohorts: Sequence[Cohort]) -> list[tuple[tuple[PeerId, ...], Seating]]:
    """The members of a few of these cohorts, with what the first of them get to keep and to pass on.

    More than SPREAD, if the Joins of a group would be too long for a message.
    """
    groups = SPREAD
    while True:
        size = max(1, -(-len(cohorts) // groups))
        parts = [cohorts[first : first + size] for first in range(0, len(cohorts), size)]
        packed = [_pack([join for _, joins in rest for join in joins]) for _, *rest in parts]
        if max(map(len, packed), default=0) <= MOST_ONWARD:
            first = [part[0] for part in parts]
            return [(to, Seating(roster, joins, rest)) for (to, joins), rest in zip(first, packed, strict=True)]
        groups *= 2


def onward(seating: Seating, roster: CheckedRoster) -> list[Cohort]:
    """The cohorts that a seating gives me to pass on. Raises ProtocolError unless the roster names these Joins."""
    places = {seat.join: place for place, seat in enumerate(roster.seats)}
    starts = {part.start: part for part in roster.cohorts}
    frames = list(_unpack(seating.onward))
    named = [places.get(join_digest(frame), -1) for frame in frames]
    cohorts: list[Cohort] = []
    at = 0
    while at < len(frames):
        part = starts.get(named[at], range(0))
        if not part or named[at : at + len(part)] != list(part):
            raise ProtocolError(Refusal.BAD_HASH, "a seating with Joins that are not those of whole cohorts")
        cohorts.append((roster.everybody[part.start : part.stop], tuple(frames[at : at + len(part)])))
        at += len(part)
    return cohorts


def _pack(frames: Sequence[bytes]) -> bytes:
    return b"".join(part for frame in frames for part in (len(frame).to_bytes(_PREFIX, "big"), frame))


def _unpack(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        start = at + _PREFIX
        at = start + int.from_bytes(data[at:start], "big")
        if at > len(data) or at == start:
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, "a seating with Joins that end too soon")
        yield data[start:at]
