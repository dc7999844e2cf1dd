"""Step R5: summed chunks, each bound by a hash that its author signed before it saw another's."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from averaging.layout import Layout
from averaging.messages import SumHashes
from averaging.reducing import Duties
from dht import merkle
from dht.envelope import Envelope
from dht.errors import ProtocolError, Refusal
from dht.transport import Part
from dht.wire import decode_as


class Sums:
    """The sums of one sid as one member knows them."""

    def __init__(self, layout: Layout, duties: Duties) -> None:
        self._layout, self._duties = layout, duties
        self._hashes: dict[tuple[int, int], bytes] = {}  # (author, chunk)
        self._frames: dict[tuple[int, int], bytes] = {}  # the envelope that signs it
        self._authors: set[int] = set()
        self._data: dict[int, tuple[int, Part]] = {}
        self._early: dict[tuple[int, int], Part] = {}
        self._signed: set[int] = set()
        self._unpublished: list[int] = []
        self.lost: tuple[int, ...] = ()

    @staticmethod
    def hash(data: Part) -> bytes:
        """SHA-256 of a chunk's bytes."""
        return sha256(data).digest()

    def computed(self, chunk: int, author: int, ring: npt.NDArray[np.unsignedinteger]) -> None:
        """Keep a sum that I reduced myself."""
        data = memoryview(ring).cast("B")
        self._hashes[author, chunk] = self.hash(data)
        self._data[chunk] = (author, data)
        self._unpublished.append(chunk)

    def digest_of(self, chunk: int) -> bytes:
        """Hash of a sum that I hold."""
        author, _ = self._data[chunk]
        return self._hashes[author, chunk]

    def add_hashes(self, author: int, message: SumHashes, frame: bytes) -> None:
        """Keep an author's signed hashes. Raises ProtocolError (EQUIVOCATION) if it contradicts itself."""
        if len(message.chunks) != len(message.hashes):
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, "as many hashes as chunks are due")
        for chunk, digest in zip(message.chunks, message.hashes, strict=True):
            if chunk >= self._layout.total_chunks:
                raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"chunk {chunk} does not exist")
            if self._hashes.setdefault((author, chunk), digest) != digest:
                raise ProtocolError(Refusal.EQUIVOCATION, f"two sums of chunk {chunk}")
            self._frames[author, chunk] = frame
        self._signed.update(message.chunks)
        self._authors.add(author)
        for early_author, chunk in [key for key in self._early if key[0] == author and key in self._hashes]:
            self.add(chunk, early_author, self._early.pop((author, chunk)), from_author=True)

    def add(self, chunk: int, author: int, data: Part, *, from_author: bool) -> None:
        """Keep a sum that arrived. Raises ProtocolError (BAD_HASH) unless its author signed exactly this."""
        if chunk in self._data:
            return
        if not 0 <= chunk < self._layout.total_chunks or len(data) != self._layout.chunk_bytes(chunk):
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"a sum of chunk {chunk} with {len(data)} bytes")
        expected = self._hashes.get((author, chunk))
        if expected is None:
            # The bulk lane may overtake the control lane: an author's early copy waits for its hash. Memory is
            # bounded by one aggregate for the due authors and one for those who stand in.
            spare = author == self._duties.reducers[chunk] or len(self._early) < 2 * self._layout.total_chunks
            if not from_author or not spare:
                raise ProtocolError(Refusal.UNEXPECTED, f"a sum of chunk {chunk} that nobody signed")
            self._early[author, chunk] = data
            return
        if self.hash(data) != expected:
            raise ProtocolError(Refusal.BAD_HASH, f"the sum of chunk {chunk} is not what its author signed")
        self._data[chunk] = (author, data)

    def signed_by(self, author: int) -> bool:
        """Whether this member signed hashes of sums."""
        return author in self._authors

    @property
    def all_signed(self) -> bool:
        """Whether every chunk's sum is bound by somebody's signature."""
        return len(self._signed) == self._layout.total_chunks

    def provable(self, chunk: int) -> bool:
        """Whether I hold this sum and its author's signature, so that I can pass it on."""
        return chunk in self._data and (self._data[chunk][0], chunk) in self._frames

    def get(self, chunk: int) -> tuple[int, Part]:
        """(author, bytes) of a sum that I hold."""
        return self._data[chunk]

    def frames_for(self, chunks: Iterable[int]) -> list[Envelope]:
        """The signed hash lists that cover these sums, each once."""
        frames = {self._frames[self._data[c][0], c]: None for c in chunks}
        return [decode_as(Envelope, frame) for frame in frames]

    def take_unpublished(self, author: int) -> tuple[int, ...]:
        """My sums that were not sent yet; each is given once."""
        chunks = tuple(c for c in self._unpublished if self._data[c][0] == author)
        self._unpublished.clear()
        return chunks

    @property
    def published(self) -> bool:
        """Whether nothing of mine waits to be sent."""
        return not self._unpublished

    @property
    def missing(self) -> tuple[int, ...]:
        """Chunks whose sum I neither hold nor gave up."""
        return tuple(c for c in range(self._layout.total_chunks) if c not in self._data and c not in self.lost)

    def give_up(self) -> None:
        """The missing chunks are lost for good: zero for everyone, and the record says so."""
        self.lost = self.missing

    @property
    def complete(self) -> bool:
        """Whether every chunk is here or lost."""
        return len(self._data) + len(self.lost) == self._layout.total_chunks

    def ring(self, chunk: int) -> npt.NDArray[np.unsignedinteger]:
        """The sum of a chunk as ring words; zeros for a lost one."""
        if chunk in self.lost:
            return self._layout.zeros(chunk)
        return np.frombuffer(self._data[chunk][1], dtype=self._layout.dtype(chunk))

    def root(self) -> bytes:
        """Merkle root over the sums' hashes; a lost chunk is the leaf of nothing."""
        leaves = [
            merkle.leaf_hash(b"" if c in self.lost else self.digest_of(c)) for c in range(self._layout.total_chunks)
        ]
        return merkle.root(leaves)
