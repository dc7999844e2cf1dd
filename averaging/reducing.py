"""What a reducer holds: masked chunks of its own range (and copies), checked against their manifests, then summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from averaging.dealing import Dealing, Seed
from averaging.keys import mask_private_from_seed, pair_key, self_key
from averaging.layout import Layout, RingArray
from averaging.masking import unmask
from averaging.messages import Manifest
from averaging.roster import CheckedRoster
from dht.errors import ProtocolError, Refusal
from dht.transport import Part


@dataclass(frozen=True, slots=True)
class Duties:
    """Which member reduces which chunk, and who stands in for whom."""

    reducers: tuple[int, ...]  # chunk index -> member index
    members: int
    copies: int

    def of(self, member: int) -> tuple[int, ...]:
        """Chunks that a member reduces, the trailer among them where it is its turn."""
        return tuple(c for c, reducer in enumerate(self.reducers) if reducer == member)

    def copy_holders(self, member: int) -> tuple[int, ...]:
        """Later members that hold a copy of the member's own masked chunks of its own range."""
        return tuple((member + k) % self.members for k in range(1, self.copies + 1))

    def heirs(self, member: int, reducers: tuple[int, ...], gone: set[int]) -> list[int]:
        """Two certified reducers that keep copies of a member's sums until these are added up across cohorts.

        The next after it, but rather those that reduce something: the others have poor lines.
        """
        able = [i for i in self._after(member, reducers) if i not in gone]
        return sorted(able, key=lambda i: i not in self.reducers)[:2]

    def stand_in(self, member: int, reducers: tuple[int, ...], gone: set[int], turn: int) -> int | None:
        """Who takes a dead reducer's chunks over: the first certified reducer after it (which holds its copies), from
        the `turn`-th on, that is not known to be gone; None when none is left."""
        return next((i for i in self._after(member, reducers)[turn:] if i not in gone), None)

    def _after(self, member: int, reducers: tuple[int, ...]) -> list[int]:
        order = [(member + k) % self.members for k in range(1, self.members)]
        return [i for i in order if i in reducers]


class Inputs:
    """Masked chunks received, by (uploader, chunk)."""

    def __init__(self, layout: Layout, duties: Duties, me: int) -> None:
        self._layout, self._duties, self._me = layout, duties, me
        self._data: dict[tuple[int, int], Part] = {}
        self._hashes: dict[tuple[int, int], bytes] = {}
        self._counts = [0] * duties.members
        self._mine = duties.of(me)
        self._copied = {i: duties.of(i) for i in range(duties.members) if me in duties.copy_holders(i)}

    def add(self, uploader: int, chunk: int, data: Part) -> None:
        """Keep one masked chunk. Raises ProtocolError: wrong size, or different from what it sent before."""
        if not 0 <= chunk < self._layout.total_chunks or len(data) != self._layout.chunk_bytes(chunk):
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"chunk {chunk} with {len(data)} bytes")
        digest = sha256(data).digest()
        self._counts[uploader] += (uploader, chunk) not in self._hashes
        if self._hashes.setdefault((uploader, chunk), digest) != digest:
            raise ProtocolError(Refusal.EQUIVOCATION, f"two versions of masked chunk {chunk}")
        self._data[uploader, chunk] = data

    def expected(self, uploader: int, chunk: int) -> bool:
        """Whether I take this chunk from this member before the receipts: my range, or a copy of its own."""
        if not 0 <= chunk < len(self._duties.reducers):
            return False
        reducer = self._duties.reducers[chunk]
        return reducer == self._me or (reducer == uploader and self._me in self._duties.copy_holders(uploader))

    def holds(self, uploader: int, chunks: tuple[int, ...], manifest: Manifest) -> bool:
        """Whether I hold all these chunks of a member, each equal to its manifest's hash."""
        return self._counts[uploader] >= len(chunks) and all(
            self._hashes.get((uploader, c)) == manifest.hashes[c] for c in chunks
        )

    def get(self, uploader: int, chunk: int, manifest: Manifest) -> Part | None:
        """A masked chunk, if I hold it and it equals its manifest's hash."""
        same = self._hashes.get((uploader, chunk)) == manifest.hashes[chunk]
        return self._data.get((uploader, chunk)) if same else None

    def owed(self, uploader: int) -> tuple[int, ...]:
        """Chunks that a member must bring me before my receipt covers it."""
        return self._mine + self._copied.get(uploader, ())

    def full(self, uploader: int) -> bool:
        """Whether as many chunks of a member are here as it owes me."""
        return self._counts[uploader] >= len(self._mine) + len(self._copied.get(uploader, ()))

    def sum(self, chunk: int, survivors: tuple[int, ...]) -> npt.NDArray[np.unsignedinteger]:
        """Ring sum of the survivors' masked chunk. Raises KeyError when one is not here."""
        return add_masked([self._data[i, chunk] for i in survivors], self._layout.dtype(chunk))

    def clear(self) -> None:
        """Free the memory once the round is over."""
        self._data.clear()


def add_masked(inputs: Sequence[Part], dtype: np.dtype[Any]) -> RingArray:
    """Ring sum of members' masked chunks, all of one length; a new array."""
    total: RingArray = np.frombuffer(inputs[0], dtype).copy()
    for data in inputs[1:]:
        np.add(total, np.frombuffer(data, dtype), out=total)
    return total


def mask_keys(
    roster: CheckedRoster, survivors: tuple[int, ...], seeds: Mapping[int, bytes]
) -> tuple[list[bytes], list[tuple[int, int, bytes]]]:
    """The keys of the masks that do not cancel in the survivors' sum, as `averaging.masking.unmask` takes them."""
    sid, members = roster.sid, roster.members
    self_keys, dead = [], []
    for dealer, seed in sorted(seeds.items()):
        if dealer in survivors:
            self_keys.append(self_key(seed, sid))
            continue
        private = mask_private_from_seed(seed)
        dead += [(i, dealer, pair_key(private, members[i].join.mask_key, sid, dealer, i)) for i in survivors]
    return self_keys, dead


class Opening:
    """Step R4 at a reducer: collects shares, reconstructs seeds, and takes the masks off a sum."""

    def __init__(self, roster: CheckedRoster, dealing: Dealing, survivors: tuple[int, ...], threshold: int) -> None:
        self._roster, self._dealing, self._survivors, self._threshold = roster, dealing, survivors, threshold
        self._shares: dict[int, dict[int, bytes]] = {i: {} for i in range(len(roster.members))}
        self.seeds: dict[int, bytes] = {}
        """The opened seeds by member: of survivors the self mask's, of the rest the pair masks'."""
        self._self_keys: list[bytes] = []
        self._dead: list[tuple[int, int, bytes]] = []
        self.ready = False

    def kind(self, member: int) -> Seed:
        """Which seed of a member is opened: the self-mask's for survivors, the pair masks' for the rest."""
        return Seed.SELF if member in self._survivors else Seed.MASK

    def add(self, holder: int, shares: tuple[bytes, ...]) -> None:
        """Take one member's shares. Raises ProtocolError (BAD_SHARE), naming the holder's fault; keeps none then."""
        if len(shares) != len(self._shares):
            raise ProtocolError(Refusal.BAD_SHARE, f"{len(shares)} shares for {len(self._shares)} members")
        for dealer, share in enumerate(shares):
            if not self._dealing.is_share(self.kind(dealer), dealer, holder, share):
                raise ProtocolError(Refusal.BAD_SHARE, f"not the share that member {dealer} dealt")
        for dealer, share in enumerate(shares):
            self._shares[dealer][holder] = share

    def try_open(self) -> bool:
        """Reconstruct all seeds once t members answered. Raises ProtocolError naming a dealer at fault."""
        if self.ready or any(len(held) < self._threshold for held in self._shares.values()):
            return self.ready
        for dealer, held in self._shares.items():
            self.seeds[dealer] = self._dealing.open(self.kind(dealer), dealer, held)
        self._self_keys, self._dead = mask_keys(self._roster, self._survivors, self.seeds)
        self.ready = True
        return True

    def unmask(self, chunk: int, ring: npt.NDArray[np.unsignedinteger]) -> None:
        """Take the survivors' self masks and the dead members' pair masks off a sum, in place."""
        unmask(chunk, ring, self._self_keys, self._dead)
