"""Who contributed what: integers that anyone can recompute by adding up the certified records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

from dht import merkle

if TYPE_CHECKING:
    from averaging.record import Record

_WIDTH = 16
_NOTHING: Mapping[bytes, Share] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Share:
    """What one peer has contributed since the founding."""

    tokens: int = 0
    rounds: int = 0
    chunks: int = 0

    def leaf(self, peer: bytes) -> bytes:
        """Canonical leaf, 87 bytes: peer id, then tokens, rounds and chunks as 16-byte big-endian integers."""
        return peer + b"".join(n.to_bytes(_WIDTH, "big") for n in (self.tokens, self.rounds, self.chunks))


@dataclass(frozen=True)
class Tally:
    """An immutable table peer -> share. Equal tables have equal roots."""

    shares: Mapping[bytes, Share] = field(default_factory=lambda: _NOTHING)

    def apply(self, record: Record) -> Tally:
        """The tally after `record`: each survivor gains its tokens, its reduced chunks and one round.

        A founding gives nobody anything, and neither does a void round.
        """
        if record.void or record.round == 0:
            return self
        table = dict(self.shares)
        for survivor in record.survivors:
            old = table.get(survivor.peer, Share())
            table[survivor.peer] = Share(old.tokens + survivor.tokens, old.rounds + 1, old.chunks + survivor.chunks)
        return Tally(MappingProxyType(table))

    def peers(self) -> list[bytes]:
        """Peer ids in leaf order."""
        return sorted(self.shares)

    def root(self) -> bytes:
        """Merkle root (RFC 6962 shape) over the leaves in peer id order, 32 bytes."""
        return self._root

    @cached_property
    def _root(self) -> bytes:
        return merkle.root(self._leaves())

    def proof(self, peer: bytes) -> tuple[int, tuple[bytes, ...]]:
        """(leaf index, sibling hashes) that prove `peer`'s share. Raises KeyError when it has none."""
        if peer not in self.shares:
            raise KeyError(peer)
        index = self.peers().index(peer)
        return index, merkle.proof(self._leaves(), index)

    def _leaves(self) -> list[bytes]:
        return [merkle.leaf_hash(self.shares[peer].leaf(peer)) for peer in self.peers()]
