"""Asking for the state with a certified root: its leaf hashes, then its chunks, each with a proof.

Nobody who answers is believed. The leaf hashes must have the root, and each chunk's proof must lead to it. What a state
holds is not looked at here: to this module it is a list of chunks (docs/protocol.md, "Canonical state").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from dht import merkle
from dht.errors import ProtocolError, Refusal, UnreachableError
from dht.identity import PeerId
from dht.transport import Transport
from dht.wire import U32, Bytes32, Count, Length, decode_as, encode, message

CHUNK_BYTES = 256 * 1024
LEAVES_PER_REPLY = 16384
MOST_LEAVES = 1 << 20
"""A state of 256 GiB. A peer could announce any number, and what it sends is checked only when all is here."""
REQUEST_SECONDS = 30.0


@message(tag=0x52, cap=128)
@dataclass(frozen=True, slots=True)
class LeavesRequest:
    """The leaf hashes of the state with this root, from this index on."""

    root: Bytes32
    start: U32


@message(tag=0x53, cap=600_000)
@dataclass(frozen=True, slots=True)
class Leaves:
    """Leaf hashes from `start`; `count` of the whole state, 0 when the sender does not hold it."""

    root: Bytes32
    count: U32
    hashes: Annotated[tuple[Bytes32, ...], Count(0, LEAVES_PER_REPLY)]


@message(tag=0x54, cap=128)
@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """One chunk of the state with this root."""

    root: Bytes32
    index: U32


@message(tag=0x55, cap=CHUNK_BYTES + 4096)
@dataclass(frozen=True, slots=True)
class StateChunk:
    """A chunk with its Merkle proof; `count` is the number of chunks, 0 when the sender does not hold the state."""

    root: Bytes32
    index: U32
    count: U32
    path: Annotated[tuple[Bytes32, ...], Count(0, 32)]
    data: Annotated[bytes, Length(0, CHUNK_BYTES)]


class NotHeldError(UnreachableError):
    """The peer answered that it does not hold that state: no lie, peers keep few of them."""

    code = "MUR-320"


async def ask_leaves(transport: Transport, peer: PeerId, root: bytes) -> tuple[bytes, ...]:
    """All leaf hashes of the state with this root, 32 bytes each.

    Raises NotHeldError, UnreachableError when no answer comes within `REQUEST_SECONDS`, and ProtocolError for hashes
    that do not have the root.
    """
    collected: list[bytes] = []
    while True:
        request = LeavesRequest(root, len(collected))
        reply = decode_as(Leaves, await transport.request(peer, (encode(request),), timeout=REQUEST_SECONDS))
        if reply.count == 0:
            raise NotHeldError("it does not hold that state")
        if reply.count > MOST_LEAVES:
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"a state of {reply.count} chunks")
        # Full pages only: a peer that gives one hash at a time would hold everybody up.
        if len(reply.hashes) != min(LEAVES_PER_REPLY, reply.count - len(collected)):
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, "leaf hashes that do not add up")
        collected += reply.hashes
        if len(collected) == reply.count:
            break
    if merkle.root(collected) != root:
        raise ProtocolError(Refusal.BAD_HASH, "leaf hashes that do not have the certified root")
    return tuple(collected)


async def ask_chunk(transport: Transport, peer: PeerId, root: bytes, index: int, count: int) -> bytes:
    """Chunk `index` of the `count` of a state, at most `CHUNK_BYTES`, proven to be under its root.

    Raises NotHeldError, UnreachableError when no answer comes within `REQUEST_SECONDS`, and ProtocolError.
    """
    request = (encode(ChunkRequest(root, index)),)
    reply = decode_as(StateChunk, await transport.request(peer, request, timeout=REQUEST_SECONDS))
    if reply.count == 0:
        raise NotHeldError("it does not hold that state any more")
    if (reply.root, reply.index, reply.count) != (root, index, count):
        raise ProtocolError(Refusal.UNEXPECTED, "another chunk than the one asked for")
    check_chunk(reply.data, index, count, reply.path, root)
    return reply.data


def check_chunk(data: bytes | memoryview, index: int, count: int, path: Sequence[bytes], root: bytes) -> bytes:
    """Leaf hash of a chunk that came with a proof. Raises ProtocolError (BAD_HASH) unless it leads to `root`."""
    leaf = merkle.leaf_hash(data)
    if merkle.root_from_proof(leaf, index, count, path) != root:
        raise ProtocolError(Refusal.BAD_HASH, f"the proof of chunk {index} does not lead to the certified root")
    return leaf
