"""Catching up: a certified state from several donors, chunk by chunk, each checked against the root.

No donor is believed. The joiner asks for the leaf hashes of the state (they must have the certified root), fetches
only the chunks that differ from what it holds, spread over the donors, and refuses every chunk whose proof does not
lead to the root. A donor that gave a wrong chunk is not asked again for this state.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from dht import merkle
from dht.errors import IncompatibleRunError, MurmurationError, ProtocolError, Refusal, UnreachableError
from dht.identity import PeerId
from dht.transport import Part, Transport
from dht.wire import U32, Bytes32, Count, Length, decode, decode_as, encode, message
from peer.state import CHUNK_BYTES, CanonicalState, check_chunk
from peer.store import StateStore

log = logging.getLogger(__name__)

_LEAVES_PER_REPLY = 16384
_MOST_LEAVES = 1 << 20
"""A state of 256 GiB. A donor could announce any number, and what it sends is checked only when all is here."""
_REQUEST_SECONDS = 30.0
_PER_DONOR = 2
"""Chunks asked of one donor at a time: a small peer must not drown under a crowd that joins."""


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
    hashes: Annotated[tuple[Bytes32, ...], Count(0, _LEAVES_PER_REPLY)]


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


class Donor:
    """Answers requests for the states that are on disk."""

    def __init__(self, store: StateStore, round_of: Callable[[bytes], int | None]) -> None:
        """`round_of` maps a state root to the kept round that has it."""
        self._store, self._round_of = store, round_of

    async def answer(self, peer: PeerId, frame: memoryview) -> Sequence[Part]:
        """The reply frame to a request frame. Raises ProtocolError for anything else."""
        request = decode(frame)
        if isinstance(request, LeavesRequest):
            return (encode(self._leaves(request)),)
        if isinstance(request, ChunkRequest):
            return (encode(await asyncio.to_thread(self._chunk, request)),)
        raise ProtocolError(Refusal.UNEXPECTED, f"{type(request).__name__} is no request")

    def _leaves(self, request: LeavesRequest) -> Leaves:
        leaves = self._find(request.root)
        if leaves is None:
            return Leaves(request.root, 0, ())
        return Leaves(request.root, len(leaves), leaves[request.start : request.start + _LEAVES_PER_REPLY])

    def _chunk(self, request: ChunkRequest) -> StateChunk:
        leaves = self._find(request.root)
        round_ = self._round_of(request.root)
        data = self._store.chunk(round_, request.index) if round_ is not None else None
        if leaves is None or data is None:
            return StateChunk(request.root, request.index, 0, (), b"")
        path = merkle.proof(leaves, request.index)
        return StateChunk(request.root, request.index, len(leaves), path, bytes(data))

    def _find(self, root: bytes) -> tuple[bytes, ...] | None:
        round_ = self._round_of(root)
        return None if round_ is None else self._store.leaves(round_)


@dataclass
class Haul:
    """What a catch-up brought: counts for the status view."""

    chunks: int = 0
    size: int = 0
    donors: set[PeerId] = field(default_factory=set)
    banned: dict[PeerId, str] = field(default_factory=dict)


class CatchUp:
    """One download of the state with a certified root into a `CanonicalState`."""

    def __init__(self, transport: Transport, root: bytes, donors: Sequence[PeerId]) -> None:
        self._transport, self._root = transport, root
        self._donors = list(dict.fromkeys(donors))
        self.haul = Haul()

    async def run(self, state: CanonicalState) -> bool:
        """Make `state` the certified one; False when no donor is left that can. Chunks already right are kept.

        Raises IncompatibleRunError when the certified state belongs to another model.
        """
        leaves = await self._find_leaves()
        if leaves is None:
            return False
        wanted = state.differing(leaves)
        queue: asyncio.Queue[int] = asyncio.Queue()
        for index in wanted:
            queue.put_nowait(index)
        while not queue.empty() and (live := self._live()):
            workers = [self._worker(donor, state, leaves, queue) for donor in live for _ in range(_PER_DONOR)]
            await asyncio.gather(*workers)
        return state.root() == self._root

    def _live(self) -> list[PeerId]:
        return [donor for donor in self._donors if donor not in self.haul.banned]

    async def _find_leaves(self) -> tuple[bytes, ...] | None:
        for donor in list(self._donors):
            try:
                leaves = await self._leaves_of(donor)
            except MurmurationError as error:
                self._ban(donor, error)
                continue
            if leaves is not None:
                return leaves
        return None

    async def _leaves_of(self, donor: PeerId) -> tuple[bytes, ...] | None:
        collected: list[bytes] = []
        while True:
            request = LeavesRequest(self._root, len(collected))
            reply = decode_as(
                Leaves, await self._transport.request(donor, (encode(request),), timeout=_REQUEST_SECONDS)
            )
            if reply.count == 0:
                self._ban(donor, UnreachableError("it does not hold that state"))
                return None
            if reply.count > _MOST_LEAVES:
                raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"a state of {reply.count} chunks")
            # Full pages only: a donor that gives one hash at a time would hold everybody up.
            if len(reply.hashes) != min(_LEAVES_PER_REPLY, reply.count - len(collected)):
                raise ProtocolError(Refusal.OUT_OF_BOUNDS, "leaf hashes that do not add up")
            collected += reply.hashes
            if len(collected) == reply.count:
                break
        if merkle.root(collected) != self._root:
            raise ProtocolError(Refusal.BAD_HASH, "leaf hashes that do not have the certified root")
        return tuple(collected)

    async def _worker(
        self, donor: PeerId, state: CanonicalState, leaves: Sequence[bytes], queue: asyncio.Queue[int]
    ) -> None:
        while donor not in self.haul.banned and not queue.empty():
            index = queue.get_nowait()
            try:
                data = await self._fetch(donor, index, len(leaves))
                await asyncio.to_thread(state.replace_chunk, index, data, leaves[index])
            except IncompatibleRunError:
                raise
            except MurmurationError as error:
                queue.put_nowait(index)
                self._ban(donor, error)
            else:
                self.haul.chunks += 1
                self.haul.size += len(data)
                self.haul.donors.add(donor)

    async def _fetch(self, donor: PeerId, index: int, count: int) -> bytes:
        request = (encode(ChunkRequest(self._root, index)),)
        reply = decode_as(StateChunk, await self._transport.request(donor, request, timeout=_REQUEST_SECONDS))
        if reply.count == 0:
            raise UnreachableError("it does not hold that state any more")
        if (reply.root, reply.index, reply.count) != (self._root, index, count):
            raise ProtocolError(Refusal.UNEXPECTED, "another chunk than the one asked for")
        check_chunk(reply.data, index, count, reply.path, self._root)
        return reply.data

    def _ban(self, donor: PeerId, error: MurmurationError) -> None:
        if self.haul.banned.setdefault(donor, error.message) == error.message:
            log.info("catching up without %s: %s", donor.short, error.message)
