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

from averaging import state_chunks
from averaging.state_chunks import ChunkRequest, Leaves, LeavesRequest, StateChunk, ask_chunk, ask_leaves
from dht import merkle
from dht.errors import IncompatibleRunError, MurmurationError, ProtocolError, Refusal
from dht.identity import PeerId
from dht.transport import Part, Transport
from dht.wire import decode, encode
from peer.state import CanonicalState
from peer.store import StateStore

log = logging.getLogger(__name__)

_PER_DONOR = 2
"""Chunks asked of one donor at a time: a small peer must not drown under a crowd that joins."""


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
        return Leaves(request.root, len(leaves), leaves[request.start : request.start + state_chunks.LEAVES_PER_REPLY])

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
                return await ask_leaves(self._transport, donor, self._root)
            except MurmurationError as error:
                self._ban(donor, error)
        return None

    async def _worker(
        self, donor: PeerId, state: CanonicalState, leaves: Sequence[bytes], queue: asyncio.Queue[int]
    ) -> None:
        while donor not in self.haul.banned and not queue.empty():
            index = queue.get_nowait()
            try:
                data = await ask_chunk(self._transport, donor, self._root, index, len(leaves))
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

    def _ban(self, donor: PeerId, error: MurmurationError) -> None:
        if self.haul.banned.setdefault(donor, error.message) == error.message:
            log.info("catching up without %s: %s", donor.short, error.message)
