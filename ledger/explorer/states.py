"""The root of a model's state, recomputed from its bytes alone: from a file, or from chunks as peers bring them.

A state is a header, then sections of float32; each begins a new chunk, and the root is over all chunks
(docs/protocol.md, "Canonical state").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgpack

from averaging.state_chunks import CHUNK_BYTES
from dht import merkle
from dht.errors import StorageError

_SECTIONS = ("parameters", "momentum", "scales")
_OPTIONAL = "domains"
"""A run that tells kinds of data apart has this one, too."""
_HEADER_CAP = 64 << 20


def model_root(path: Path, run: bytes) -> bytes:
    """Root of a state's file. Raises StorageError for a file of another form, or of another run."""
    try:
        with path.open("rb") as file:
            sizes = section_sizes(file.read(_HEADER_CAP), run)
        size = path.stat().st_size
        if sizes is None or sum(sizes) != size:
            raise StorageError(f"it has {size} bytes, not {sum(sizes) if sizes else 'even a whole header'}")
        return merkle.root(list(_leaves(path, sizes)))
    except (OSError, StorageError) as error:
        cause = error.message if isinstance(error, StorageError) else error
        raise StorageError(f"the model file {path}: {cause}", remedy="download or copy it again") from None


def section_sizes(data: bytes, run: bytes) -> list[int] | None:
    """Bytes of the header and of each section, by a state's first bytes; None if the header goes on after them.

    Raises StorageError for another form, or another run.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=_HEADER_CAP)
    try:
        unpacker.feed(data)
        header = unpacker.unpack()
        names = tuple(name for name, _, _ in header["sections"])
        counts = [int(count) for _, kind, count in header["sections"] if kind == "<f4"]
        known = names in (_SECTIONS, (*_SECTIONS, _OPTIONAL)) and len(counts) == len(names)
        if header["magic"] != "murmuration/state" or header["run"] != run or not known:
            raise ValueError("it is no state of this run")
    except msgpack.OutOfData:
        return None
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise StorageError(str(error)) from None
    return [unpacker.tell(), *(4 * count for count in counts)]


def chunk_lengths(sizes: Sequence[int]) -> Iterator[int]:
    """Bytes of every chunk of a state whose header and sections have these sizes."""
    for size in sizes:
        for start in range(0, size, CHUNK_BYTES):
            yield min(CHUNK_BYTES, size - start)


class StateHash:
    """Hashes a state of `count` chunks, given in order; keeps a hash of each, and of the bytes only the header."""

    def __init__(self, run: bytes, count: int) -> None:
        self._run, self.count = run, count
        self._header = b""
        self._lengths: list[int] = []
        self._leaves: list[bytes] = []
        self.size = 0
        """Bytes so far."""

    @property
    def taken(self) -> int:
        """Chunks so far."""
        return len(self._leaves)

    @property
    def root(self) -> bytes:
        """Root over all chunks so far."""
        return merkle.root(self._leaves)

    def take(self, data: bytes) -> None:
        """The next chunk. Raises StorageError when it cannot be one of a state of this run."""
        if self._lengths and len(data) != self._lengths[self.taken]:
            raise StorageError(f"chunk {self.taken} has {len(data)} bytes, not {self._lengths[self.taken]}")
        self._leaves.append(merkle.leaf_hash(data))
        self.size += len(data)
        if not self._lengths:
            self._header += data
            self._read_header(last=len(data) < CHUNK_BYTES or self.taken == self.count)

    def _read_header(self, *, last: bool) -> None:
        sizes = section_sizes(self._header, self._run)
        if sizes is None:
            if last or len(self._header) > _HEADER_CAP:
                raise StorageError("its header is cut off")
            return
        if sizes[0] != len(self._header) or sum(-(-size // CHUNK_BYTES) for size in sizes) != self.count:
            raise StorageError(f"its header is not that of {self.count} chunks")
        self._lengths = list(chunk_lengths(sizes))


def _leaves(path: Path, sizes: Sequence[int]) -> Iterator[bytes]:
    with path.open("rb") as file:
        for length in chunk_lengths(sizes):
            yield merkle.leaf_hash(file.read(length))
