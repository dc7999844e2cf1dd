"""What strangers may cost: identities are free, so everything that anybody may ask for is rationed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from dht.identity import PeerId

EACH, ALL = 4, 256
MOST_BYTES = 256 << 10
"""A second's answers to all together, so that a home line is left for the round; a single one may be longer."""
_LONGEST_REST = 15
_KNOCKED_PEERS = 8


class Courtesy:
    """Long answers to short questions: so many a second for each peer, and so many for all together.

    A segment of the chain has up to a mebibyte, the question for it 300 bytes. Who asks too often is not answered.
    """

    def __init__(self, each: int = EACH, together: int = ALL) -> None:
        self._each, self._together = each, together
        self._given: Counter[PeerId] = Counter()
        self._bytes = 0

    def tick(self) -> None:
        """A second is over."""
        self._given.clear()
        self._bytes = 0

    def spent(self, size: int) -> None:
        """An answer has so many bytes."""
        self._bytes += size

    def allows(self, peer: PeerId) -> bool:
        """Whether `peer` gets another answer in this second; counts it."""
        many = self._given[peer] >= self._each or self._given.total() >= self._together
        if many or self._bytes >= MOST_BYTES:
            return False
        self._given[peer] += 1
        return True


class Welcome:
    """Whether conveners wait for peers that knocked.

    A newcomer that has to fetch the state joins later than the others, so the window stays open for it. Who knocks and
    never joins would cost every round that wait. So after a round that waited in vain the next ones do not wait: one,
    then 3, 7, and 15 at most. A Join that is there in time counts in any case.
    """

    def __init__(self) -> None:
        self._rest = self._penalty = 0

    @property
    def waits(self) -> bool:
        """Whether the round that begins waits for newcomers."""
        return self._rest == 0

    def round_over(self, waited: Collection[PeerId], came: Collection[PeerId]) -> None:
        """A round that is not void had these survivors; the convener would have waited for `waited`."""
        if set(waited) & set(came):
            self._penalty = self._rest = 0
        elif self._rest:
            self._rest -= 1
        elif waited:
            self._penalty = self._rest = min(2 * self._penalty + 1, _LONGEST_REST)


class Knocks:
    """When a peer that is in no roster knocks: at every tick of a second, but not in the beginning of a round in whose
    roster it is expected.
    """

    def __init__(self) -> None:
        self._quiet = 0.0

    def rest(self, ticks: float) -> None:
        """A round begins: no knock for so long."""
        self._quiet = ticks

    @property
    def resting(self) -> bool:
        """Whether it is not time yet."""
        return self._quiet > 0

    def due(self) -> bool:
        """A tick is over; whether it is time to knock."""
        self._quiet -= 1
        return not self.resting


def nearest(committee: Sequence[PeerId], me: PeerId) -> list[PeerId]:
    """The committee in an order of my own, lest everybody knocks at its first members."""
    first = int.from_bytes(me[-4:], "big") % len(committee)
    return [*committee[first:], *committee[:first]]


def doors(targets: Iterable[PeerId], me: PeerId, gone: Collection[PeerId]) -> list[PeerId]:
    """The first eight whom I do not take for gone; if there is none, the first of all."""
    chosen: dict[PeerId, None] = {}
    others: dict[PeerId, None] = {}
    for peer in targets:  # thousands may be known
        if peer != me:
            (others if peer in gone else chosen)[peer] = None
            if len(chosen) == _KNOCKED_PEERS:
                break
    return list(chosen or others)[:_KNOCKED_PEERS]
