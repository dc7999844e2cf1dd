"""Step R5: summed chunks, each bound by a hash that its author signed before it saw another's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
from dht.wire import decode_as, digest


class Sums:
    """The sums of one sid as one member knows them."""

    def __init__(self, layout: Layout, duties: Duties, counts: Callable[[int, int], bool]) -> None:
        """`counts(author, chunk)`: whether a member's sum of a chunk is one to go by. It may become so later."""
        self._layout, self._duties, self._counts = layout, duties, counts
        self._hashes: dict[tuple[int, int], bytes] = {}  # (author, chunk)
        self._frames: dict[tuple[int, int], bytes] = {}  # the envelope that signs it
        self._data: dict[int, tuple[int, Part]] = {}
        self._early: dict[tuple[int, int], Part] = {}
        self._signers: dict[int, set[int]] = {}
        self._unpublished: list[int] = []
        self.asked = False
        """Whether I asked the others for sums, so that they may pass on what they did not author."""
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
        for chunk, value in zip(message.chunks, message.hashes, strict=True):
            if chunk >= self._layout.total_chunks:
                raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"chunk {chunk} does not exist")
            if self._hashes.setdefault((author, chunk), value) != value:
                raise ProtocolError(Refusal.EQUIVOCATION, f"two sums of chunk {chunk}")
            self._frames[author, chunk] = frame
            self._signers.setdefault(chunk, set()).add(author)

    def add(self, chunk: int, author: int, data: Part, *, from_author: bool) -> None:
        """Keep a sum that arrived. Raises ProtocolError (BAD_HASH) unless its author signed exactly this."""
        if chunk in self._data or chunk in self.lost:
            return
        if not 0 <= chunk < self._layout.total_chunks or len(data) != self._layout.chunk_bytes(chunk):
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"a sum of chunk {chunk} with {len(data)} bytes")
        expected = self._hashes.get((author, chunk))
        if expected is None or not self._counts(author, chunk):
            self._keep_early(chunk, author, data, from_author=from_author)
        elif self.hash(data) != expected:
            raise ProtocolError(Refusal.BAD_HASH, f"the sum of chunk {chunk} is not what its author signed")
        else:
            self._data[chunk] = (author, data)

    def _keep_early(self, chunk: int, author: int, data: Part, *, from_author: bool) -> None:
        """The bulk lane may overtake the control lane: a sum waits for its hash, or for the time when it counts.

        Memory is bounded by one aggregate for the due authors and two for those who stand in.
        """
        if (author, chunk) in self._early and not from_author:
            return
        wanted = from_author or self.asked
        room = author == self._duties.reducers[chunk] or len(self._early) < 2 * self._layout.total_chunks
        if not wanted or not room:
            raise ProtocolError(Refusal.UNEXPECTED, f"a sum of chunk {chunk} that nobody signed")
        self._early[author, chunk] = data

    def settle(self) -> None:
        """Take what came early and counts by now; what its author did not sign is dropped."""
        for author, chunk in list(self._early):
            expected = self._hashes.get((author, chunk))
            if expected is not None and self._counts(author, chunk):
                data = self._early.pop((author, chunk))
                if chunk not in self._data and chunk not in self.lost and self.hash(data) == expected:
                    self._data[chunk] = (author, data)

    def signed(self) -> list[tuple[int, int]]:
        """All (author, chunk) whose hash its author signed."""
        return list(self._frames)

    def held(self) -> list[tuple[int, int]]:
        """(author, chunk) of all sums that I hold."""
        return [(author, chunk) for chunk, (author, _) in self._data.items()]

    def signed_hash(self, author: int, chunk: int) -> bytes:
        """The hash of a sum that its author signed. Raises KeyError."""
        return self._hashes[author, chunk]

    def frame_of(self, author: int, chunk: int) -> bytes:
        """The envelope by which an author signed this sum's hash. Raises KeyError."""
        return self._frames[author, chunk]

    def frames(self) -> tuple[bytes, ...]:
        """All signed hash lists, each once."""
        return tuple(dict.fromkeys(self._frames.values()))

    def signed_digest(self) -> bytes:
        """Digest over all signed hashes: equal at members that heard the same."""
        pairs = sorted(self._frames)
        parts = [
            author.to_bytes(2, "big") + chunk.to_bytes(4, "big") + self._hashes[author, chunk]
            for author, chunk in pairs
        ]
        return digest("sum-hashes", b"".join(parts))

    def signed_by(self, author: int) -> bool:
        """Whether this member signed hashes of all the sums that are its to make; of none there is nothing to sign."""
        return all((author, c) in self._frames for c in self._duties.of(author))

    @property
    def all_signed(self) -> bool:
        """Whether every chunk's sum is bound by the signature of somebody whose sum counts, or given up: then none will
        be taken any more.
        """
        return all(
            chunk in self.lost or any(self._counts(author, chunk) for author in self._signers.get(chunk, ()))
            for chunk in range(self._layout.total_chunks)
        )

    @property
    def unbound(self) -> tuple[int, ...]:
        """Chunks whose sum is bound by nobody's signature that counts."""
        return tuple(c for c in range(self._layout.total_chunks) if self._bound(c) is None)

    def _bound(self, chunk: int) -> bytes | None:
        """The hash of a chunk's sum that is signed by who counts, by its reducer if it signed one."""
        return self._hashes.get(self._binder(chunk))

    def _binder(self, chunk: int) -> tuple[int, int]:
        reducer = self._duties.reducers[chunk]
        signers = sorted(self._signers.get(chunk, ()), key=lambda author: (author != reducer, author))
        return next(((author, chunk) for author in signers if self._counts(author, chunk)), (-1, chunk))

    def signed_frames(self, chunks: Iterable[int]) -> list[Envelope]:
        """The signed hash lists that bind these sums, each once, whether the sums themselves are here or not."""
        frames = {self._frames[key]: None for key in (self._binder(c) for c in chunks) if key in self._frames}
        return [decode_as(Envelope, frame) for frame in frames]

    def bound(self) -> list[tuple[int, int]]:
        """(author, chunk) of all sums that are bound, whether they are here or not."""
        found = (self._binder(chunk) for chunk in range(self._layout.total_chunks))
        return [key for key in found if key in self._frames]

    def leaves(self) -> list[bytes]:
        """Merkle leaves over the signed hashes of all sums. Raises RuntimeError while one is unbound."""
        bound = [self._bound(c) for c in range(self._layout.total_chunks)]
        leaves = [merkle.leaf_hash(digest) for digest in bound if digest is not None]
        if len(leaves) < len(bound):
            raise RuntimeError("not every sum is signed")
        return leaves

    def bound_root(self) -> bytes:
        """Merkle root over the signed hashes of all sums, whether they are here or not."""
        return merkle.root(self.leaves())

    def authored(self, author: int) -> tuple[int, ...]:
        """Chunks whose sum by this member is here."""
        return tuple(c for c, (by, _) in self._data.items() if by == author)

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
