"""Points: what peers did, as integers that anybody adds up from the rows of certified rounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Row(NamedTuple):
    """One peer's part in one round: its id, the tokens it trained on, the chunks it reduced for everybody."""

    peer: bytes
    tokens: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Points:
    """What one peer did in some rounds."""

    tokens: int = 0
    rounds: int = 0
    chunks: int = 0

    def __add__(self, other: Points) -> Points:
        return Points(self.tokens + other.tokens, self.rounds + other.rounds, self.chunks + other.chunks)

    def served(self, chunk_bytes: int) -> int:
        """Bytes of sums that the peer made for others, with so many bytes in a chunk."""
        return self.chunks * chunk_bytes


def add_up(rounds: Iterable[Iterable[Row]]) -> dict[bytes, Points]:
    """Points by peer over some rounds, in the order of peer ids: the canonical order of all that follows."""
    found: dict[bytes, Points] = {}
    for rows in rounds:
        for peer, tokens, chunks in rows:
            found[peer] = found.get(peer, Points()) + Points(tokens, 1, chunks)
    return {peer: found[peer] for peer in sorted(found)}
