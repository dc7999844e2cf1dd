"""Totals across cohorts: who owns and who adds up a chunk, the frames between them, and what has arrived.

Each chunk has an owner in every cohort, its reducer there. The owners of one chunk send their cohort's sum to one of
them, the *head*; it adds them up, signs the hash of the total and sends it to the owner in every cohort, who passes it
on to the cohort. So every peer sends and receives about the model's size, however many cohorts there are. Heads are
spread over the included cohorts by chunk index; if one is gone the next cohort's owner takes its place.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

import numpy as np

from averaging import wide
from averaging.aggregate import IntegerArray
from averaging.layout import Layout
from averaging.messages import TotalHash
from averaging.parts import open_total
from averaging.reducing import Duties
from averaging.roster import CheckedRoster
from dht import merkle
from dht.envelope import Envelope
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from dht.transport import Part
from dht.wire import decode_as


class Owners:
    """Who owns which chunk in which cohort, and who adds it up."""

    def __init__(self, layout: Layout, roster: CheckedRoster) -> None:
        self._peers = [roster.cohort(k) for k in range(len(roster.cohorts))]
        self.duties = [Duties(roster.reducers(layout, k), len(peers), 0) for k, peers in enumerate(self._peers)]
        self.included: tuple[int, ...] = ()
        self._heads: dict[tuple[tuple[int, ...], int], tuple[PeerId, ...]] = {}

    def owner(self, cohort: int, chunk: int) -> PeerId:
        """The member of a cohort that owns a chunk."""
        return self._peers[cohort][self.duties[cohort].reducers[chunk]]

    def everywhere(self, chunk: int) -> tuple[PeerId, ...]:
        """The owners of a chunk, by cohort."""
        return tuple(self.owner(k, chunk) for k in range(len(self._peers)))

    def heads(self, chunk: int) -> tuple[PeerId, ...]:
        """Who adds a chunk up, first in line first: its owners in the included cohorts, in all before these are known.

        So the first in line stays the same unless its cohort is left out, and can be sent sums beforehand.
        """
        known = self._heads.get((self.included, chunk))
        if known is None:
            count, chosen = len(self._peers), set(self.included) or set(range(len(self._peers)))
            turns = ((chunk + j) % count for j in range(count))
            known = tuple(self.owner(k, chunk) for k in turns if k in chosen)
            self._heads[self.included, chunk] = known
        return known

    def of(self, cohort: int, peer: PeerId) -> tuple[int, ...]:
        """The chunks that a peer owns in its cohort."""
        return self.duties[cohort].of(self._peers[cohort].index(peer)) if peer in self._peers[cohort] else ()


class Totals:
    """The totals of one roster as one member knows them."""

    def __init__(self, layout: Layout, run: bytes, roster: CheckedRoster, owners: Owners) -> None:
        self._layout, self._run, self._roster, self._owners = layout, run, roster, owners
        self._frames: dict[int, tuple[int, Part]] = {}  # chunk -> (the head's cohort, payload)
        self._words: dict[int, tuple[bytes, Part]] = {}  # chunk -> (hash, wide words)
        self._parts: dict[int, dict[int, Part]] = {}
        self._proven: dict[tuple[int, int], Part] = {}  # (cohort, chunk) -> sum and proof
        self.lost: tuple[int, ...] = ()

    # --- parts, at the head -------------------------------------------------------------------------------------

    def add_part(self, cohort: int, chunk: int, data: Part, payload: Part) -> bool:
        """Keep a cohort's checked sum, and the payload it came in; whether all included cohorts' are here now."""
        kept = self._parts.setdefault(chunk, {})
        self._proven.setdefault((cohort, chunk), payload)
        fresh = kept.setdefault(cohort, data) is data
        return fresh and len(kept) == len(self._owners.included)

    def lacking(self, chunk: int) -> tuple[int, ...]:
        """Included cohorts whose sum of a chunk is not here."""
        kept = self._parts.get(chunk, {})
        return tuple(k for k in self._owners.included if k not in kept)

    @property
    def begun(self) -> tuple[int, ...]:
        """Chunks of which some sum but not the total is here."""
        return tuple(c for c in self._parts if c not in self._words)

    def add_up(self, chunk: int) -> tuple[bytes, memoryview]:
        """(hash, wire bytes) of the total of the parts. Any thread."""
        words = wide.total_of(list(self._parts[chunk].values()), self._layout, chunk)
        return sha256(words).digest(), words

    def drop_parts(self, chunk: int) -> None:
        """The total of this chunk is here: its parts are not needed any more."""
        for cohort in self._parts.pop(chunk, {}):
            self._proven.pop((cohort, chunk), None)

    # --- totals, at everybody -----------------------------------------------------------------------------------

    def add(self, cohort: int, chunk: int, payload: Part) -> bool:
        """Keep a total that arrived; whether it is new. Raises ProtocolError unless one who may add it up signed it."""
        layout = self._layout
        if not 0 <= chunk < layout.total_chunks or cohort not in self._owners.included:
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"a total of chunk {chunk} by cohort {cohort}")
        if chunk in self._words or chunk in self.lost:
            return False
        signed, words = open_total(payload)
        if len(words) not in [layout.coordinates(chunk) * size for size in layout.wide_sizes(chunk)]:
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"a total of chunk {chunk} with {len(words)} bytes")
        said = decode_as(TotalHash, signed.body)
        if signed.check(self._run) != self._owners.owner(cohort, chunk) or signed.round != self._roster.round:
            raise ProtocolError(Refusal.WRONG_SENDER, f"a total of chunk {chunk} by nobody who may add it up")
        digest = sha256(words).digest()
        if said != TotalHash(self._roster.round_sid, chunk, digest):
            raise ProtocolError(Refusal.BAD_HASH, f"the total of chunk {chunk} is not what its author signed")
        self._frames[chunk], self._words[chunk] = (cohort, payload), (digest, words)
        return True

    def frame(self, chunk: int) -> tuple[int, Part]:
        """(the head's cohort, payload) of a total that is here."""
        return self._frames[chunk]

    def payloads(self, chunk: int) -> list[Part]:
        """The parts of a chunk that are here, with their proofs, in order of the included cohorts."""
        kept = self._parts.get(chunk, {})
        return [self._proven[k, chunk] for k in self._owners.included if k in kept]

    def said(self, chunk: int) -> tuple[bytes, Envelope]:
        """The hash of a total that is here, and the signed TotalHash that came with it."""
        return self._words[chunk][0], open_total(self._frames[chunk][1])[0]

    def holds(self, chunk: int) -> bool:
        """Whether the total of a chunk is here."""
        return chunk in self._words

    @property
    def missing(self) -> tuple[int, ...]:
        """Chunks whose total is neither here nor given up."""
        every = range(self._layout.total_chunks)
        return tuple(c for c in every if c not in self._words and c not in self.lost)

    def give_up(self) -> None:
        """The missing totals are lost for good: zero for everyone, and the record says so."""
        self.lost = self.missing

    def sums(self) -> Iterable[IntegerArray]:
        """The integers of every chunk, zeros for a lost one."""
        for c in range(self._layout.total_chunks):
            if c in self.lost:
                yield np.zeros(self._layout.coordinates(c), wide.wide_dtype(self._layout, c))
            else:
                yield wide.unpack(self._layout, c, self._words[c][1])

    def root(self) -> bytes:
        """Merkle root over the totals' hashes; a lost chunk is the leaf of nothing."""
        every = range(self._layout.total_chunks)
        return merkle.root([merkle.leaf_hash(b"" if c in self.lost else self._words[c][0]) for c in every])
