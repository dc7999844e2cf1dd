"""The canonical state: the bytes that every peer of a run must hold after a round, and their Merkle root.

    header      canonical msgpack: magic, version, run id, parameter names and shapes, sections
    parameters  float32[D], trained parameters flattened in name order
    momentum    float32[D], of the outer optimizer
    scales      float32[ceil(D / 4096)], the codec's clip per Hadamard block
    domains     float32[number of data domains], how badly the model knows each; where the run has such domains

Little-endian throughout. Each section starts a new chunk, chunks have 256 KiB (the last of a section what is
left), and the chunks in this order are the leaves of the tree. The root of the next round is computed slice by
slice before anybody applies it, so a peer never holds two models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import msgpack
import numpy as np
from numpy.typing import NDArray

from averaging.state_chunks import CHUNK_BYTES
from averaging.weights import first_ratios
from dht import merkle
from dht.errors import ConfigError, IncompatibleRunError, ProtocolError, Refusal
from peer.outer import OuterStep, Vector, require_ieee
from peer.paging import PagedVector

SLICE = CHUNK_BYTES // 4  # float32 elements in one chunk
SCALE_BLOCK = 4096
_RELEASE_EVERY = 64  # slices, 2 x 16 MiB
_FLOAT = np.dtype("<f4")


@dataclass(frozen=True)
class StateSchema:
    """What the header says: the run, names and shapes of its trained parameters, sorted by name, and how many data
    domains it tells apart."""

    run_id: bytes
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    domains: int = 0

    def __post_init__(self) -> None:
        """Check the order that makes the flat vector one and the same for everyone. Raises ConfigError."""
        if len(self.run_id) != 32 or not self.names or len(self.names) != len(self.shapes):
            raise ConfigError("a state needs a 32-byte run id and one shape per parameter")
        if list(self.names) != sorted(set(self.names)):
            raise ConfigError("parameter names must be unique and sorted")
        if any(size < 1 for shape in self.shapes for size in shape):
            raise ConfigError("a trained parameter is empty")

    @cached_property
    def elements(self) -> int:
        """D: trained elements."""
        return sum(int(np.prod(shape, dtype=np.int64)) for shape in self.shapes)

    @property
    def blocks(self) -> int:
        """Hadamard blocks, each with one scale."""
        return -(-self.elements // SCALE_BLOCK)

    @cached_property
    def header(self) -> bytes:
        """The header's canonical bytes: the same in every round of a run."""
        counts = {"parameters": self.elements, "momentum": self.elements, "scales": self.blocks}
        if self.domains:
            counts["domains"] = self.domains
        fields = {
            "magic": "murmuration/state",
            "version": 1,
            "run": self.run_id,
            "names": list(self.names),
            "shapes": [list(shape) for shape in self.shapes],
            "sections": [[name, "<f4", count] for name, count in counts.items()],
        }
        return cast(bytes, msgpack.packb(fields, use_bin_type=True))

    @cached_property
    def sections(self) -> tuple[int, int, int, int, int]:
        """Bytes of header, parameters, momentum, scales, domains."""
        return len(self.header), 4 * self.elements, 4 * self.elements, 4 * self.blocks, 4 * self.domains

    @cached_property
    def chunks(self) -> tuple[tuple[int, int, int], ...]:
        """(section, first byte, byte after the last) of every chunk."""
        return tuple(
            (section, start, min(start + CHUNK_BYTES, size))
            for section, size in enumerate(self.sections)
            for start in range(0, size, CHUNK_BYTES)
        )

    def chunk_length(self, index: int) -> int:
        """Bytes of chunk `index`. Raises IndexError."""
        _, start, stop = self.chunks[index]
        return stop - start

    def offset(self, index: int) -> int:
        """First byte of chunk `index` when all sections are written one after the other."""
        section, start, _ = self.chunks[index]
        return sum(self.sections[:section]) + start


class CanonicalState:
    """One state with its leaf hashes, which are always those of the bytes held. Not safe to share while it changes."""

    def __init__(
        self, schema: StateSchema, parameters: Vector, momentum: Vector, scales: Vector, domains: Vector | None = None
    ) -> None:
        """Take over float32 arrays of D, D and ceil(D / 4096) elements without copying them, and one with an element
        for each data domain (`averaging.weights.first_ratios` by default).
        """
        self.schema = schema
        self.parameters = _vector(parameters, schema.elements)
        self.momentum = _vector(momentum, schema.elements)
        self.scales = _vector(scales, schema.blocks)
        self.domains = _vector(first_ratios(schema.domains) if domains is None else domains, schema.domains)
        self._pages: tuple[PagedVector, ...] = ()
        self._header = memoryview(schema.header)
        self._leaves = self._hashed()

    @classmethod
    def genesis(cls, schema: StateSchema, parameters: Vector, clip: float) -> CanonicalState:
        """The state before round 0: first weights, no momentum, one clip for every block (`Manifest.first_clip`)."""
        if not np.isfinite(parameters).all():
            raise ConfigError("the model's first weights are not all finite")
        return cls(schema, parameters, np.zeros_like(parameters), np.full(schema.blocks, clip, _FLOAT))

    @classmethod
    def empty(cls, schema: StateSchema) -> CanonicalState:
        """A state of zeros, to be filled chunk by chunk."""
        zeros = [np.zeros(count, _FLOAT) for count in (schema.elements, schema.elements, schema.blocks)]
        return cls(schema, *zeros)

    @classmethod
    def from_chunks(cls, schema: StateSchema, chunks: Iterable[bytes | memoryview], root: bytes) -> CanonicalState:
        """From all chunks in order. Raises ProtocolError (BAD_HASH) unless they have this root."""
        state = cls.empty(schema)
        count = 0
        for count, data in enumerate(chunks, 1):
            if count > len(schema.chunks):
                raise ProtocolError(Refusal.BAD_HASH, "more chunks than the state has")
            state.replace_chunk(count - 1, data, merkle.leaf_hash(data))
        if count != len(schema.chunks) or state.root() != root:
            raise ProtocolError(Refusal.BAD_HASH, "the chunks do not have the root they should have")
        return state

    def page_out(self, folder: Path) -> None:
        """Move parameters and momentum into unlinked files in `folder`, so that `release` can free their memory.

        Arrays taken from this state before are no longer its own. Raises StorageError.
        """
        self._pages = tuple(PagedVector(vector, folder) for vector in (self.parameters, self.momentum))
        self.parameters, self.momentum = (pages.array for pages in self._pages)
        self.release()

    def release(self) -> None:
        """Give back memory that the state does not need until it is next read; does nothing before `page_out`."""
        for pages in self._pages:
            pages.release()

    def chunk(self, index: int) -> memoryview:
        """The bytes of one chunk, a view that later changes show through. Raises IndexError."""
        section, start, stop = self.schema.chunks[index]
        if section == 0:
            return self._header[start:stop]
        array = (self.parameters, self.momentum, self.scales, self.domains)[section - 1]
        return array.data.cast("B")[start:stop]

    def chunks(self) -> Iterator[memoryview]:
        """All chunks in order."""
        for index in range(len(self.schema.chunks)):
            yield self.chunk(index)
            if index % _RELEASE_EVERY == 0:
                self.release()
        self.release()

    def leaves(self) -> tuple[bytes, ...]:
        """Leaf hash of every chunk."""
        return tuple(self._leaves)

    def root(self) -> bytes:
        """32-byte Merkle root."""
        return merkle.root(self._leaves)

    def proof(self, index: int) -> tuple[bytes, ...]:
        """Sibling hashes from chunk `index` to the root."""
        return merkle.proof(self._leaves, index)

    def differing(self, leaves: Sequence[bytes]) -> list[int]:
        """Indices of the chunks that must be fetched to hold the state with these leaves.

        Raises IncompatibleRunError when their number or the header differs: that is another model or run.
        """
        head = -(-len(self._header) // CHUNK_BYTES)
        if len(leaves) != len(self._leaves) or list(leaves[:head]) != self._leaves[:head]:
            raise IncompatibleRunError(
                "the peers' state has another header than ours", remedy="use the run.toml and model that they use"
            )
        return [index for index, leaf in enumerate(leaves) if leaf != self._leaves[index]]

    def replace_chunk(self, index: int, data: bytes | memoryview, leaf: bytes) -> None:
        """Overwrite one chunk. Raises ProtocolError (BAD_HASH) unless `data` has the right size and this leaf hash.

        Until the last differing chunk is in, `root` is that of no round; compare before using the state.
        """
        if not 0 <= index < len(self._leaves) or len(data) != self.schema.chunk_length(index):
            raise ProtocolError(Refusal.BAD_HASH, f"chunk {index} does not have the size it should have")
        if merkle.leaf_hash(data) != leaf:
            raise ProtocolError(Refusal.BAD_HASH, f"chunk {index} does not have the hash it should have")
        if self.schema.chunks[index][0] == 0:
            if leaf != self._leaves[index]:
                raise ProtocolError(Refusal.BAD_HASH, "the header belongs to another run")
            return
        self.chunk(index)[:] = data
        self._leaves[index] = leaf

    def root_after(
        self,
        gradient: Iterable[Vector],
        outer: OuterStep,
        scales: Vector,
        domains: Vector | None = None,
        *,
        part: slice | None = None,
    ) -> bytes:
        """Root of the state that `advance` with the same arguments would make; nothing is changed or copied.

        `gradient`: the mean pseudo-gradient as consecutive float32 arrays of any lengths, in all at least D elements;
        what follows the first D is padding. With `part` it is for these elements alone, and all others keep their bits.
        Without `domains` those stay as they are. Raises RoundError when the step leaves the range of float32.
        """
        new_domains = _vector(self.domains if domains is None else domains, self.schema.domains)
        leaves = self._step(gradient, outer, part, apply=False)
        return merkle.root([*leaves, *_leaves(_vector(scales, self.schema.blocks)), *_leaves(new_domains)])

    def advance(
        self,
        gradient: Iterable[Vector],
        outer: OuterStep,
        scales: Vector,
        domains: Vector | None = None,
        *,
        part: slice | None = None,
    ) -> bytes:
        """Become the next state, in place; returns its root. Call it only for a round that is certified.

        If `gradient` raises half-way, the state is neither old nor new: `root` says so, and `differing` with
        `replace_chunk` or the state on disk repair it.
        """
        new_scales = _vector(scales, self.schema.blocks)
        new_domains = _vector(self.domains if domains is None else domains, self.schema.domains)
        try:
            leaves = self._step(gradient, outer, part, apply=True)
        except BaseException:
            self._leaves = self._hashed()
            raise
        self.scales[:] = new_scales
        self.domains[:] = new_domains
        self._leaves = [*leaves, *_leaves(new_scales), *_leaves(new_domains)]
        return self.root()

    def _hashed(self) -> list[bytes]:
        return [merkle.leaf_hash(chunk) for chunk in self.chunks()]

    def _step(self, gradient: Iterable[Vector], outer: OuterStep, part: slice | None, *, apply: bool) -> list[bytes]:
        """Leaves of header, parameters and momentum after the outer step of these elements."""
        require_ieee()
        first, last = (part.start, part.stop) if part else (0, self.schema.elements)
        if not 0 <= first < last <= self.schema.elements:
            raise ValueError(f"a step of elements {first} to {last}, of {self.schema.elements}")
        head, count = -(-len(self._header) // CHUNK_BYTES), -(-self.schema.elements // SLICE)
        parameters, momentum = self._leaves[head : head + count], self._leaves[head + count : head + 2 * count]
        for start, piece in _slices(gradient, first, last):
            here = slice(start, start + len(piece))
            new_parameters, new_momentum = outer.apply_slice(self.parameters[here], self.momentum[here], piece)
            parameters[start // SLICE] = _leaf_with(self.parameters, start, new_parameters)
            momentum[start // SLICE] = _leaf_with(self.momentum, start, new_momentum)
            if apply:
                self.parameters[here] = new_parameters
                self.momentum[here] = new_momentum
            if start % (_RELEASE_EVERY * SLICE) == 0:
                self.release()
        self.release()
        return [*self._leaves[:head], *parameters, *momentum]


def _leaves(array: Vector) -> list[bytes]:
    view = array.data.cast("B")
    return [merkle.leaf_hash(view[start : start + CHUNK_BYTES]) for start in range(0, len(view), CHUNK_BYTES)]


def _leaf_with(vector: Vector, start: int, new: Vector) -> bytes:
    """Leaf of the chunk that holds element `start`, as if `new` were there already."""
    first = start // SLICE * SLICE
    chunk = vector[first : first + SLICE]
    if len(new) < len(chunk):
        chunk = chunk.copy()
        chunk[start - first : start - first + len(new)] = new
        new = chunk
    return merkle.leaf_hash(new.data.cast("B"))


def _slices(gradient: Iterable[Vector], first: int, last: int) -> Iterator[tuple[int, Vector]]:
    """Cut consecutive arrays of any lengths anew, where state chunks end; (first element, slice)."""
    start, filled = first, 0
    buffer = np.empty(min(SLICE, last - first), _FLOAT)
    piece = buffer[: SLICE - start % SLICE]
    for part in gradient:
        part = _vector(part, len(part))[: last - start - filled]
        while len(part):
            taken = min(len(piece) - filled, len(part))
            piece[filled : filled + taken] = part[:taken]
            filled, part = filled + taken, part[taken:]
            if filled == len(piece):
                yield start, piece
                start, filled = start + filled, 0
                piece = buffer[: min(SLICE, last - start)]
    if start != last:
        raise ValueError(f"the gradient has {start + filled - first} of {last - first} elements")


def _vector(array: NDArray[np.float32], length: int) -> Vector:
    if array.dtype != _FLOAT or array.shape != (length,) or not array.flags.c_contiguous:
        raise ValueError(f"expected {length} contiguous float32, got {array.dtype}{list(array.shape)}")
    return array
