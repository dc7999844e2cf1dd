"""Records and states from one peer over a transport, each byte of them checked. The peer is a stranger.

Records are asked for as peers ask each other (docs/protocol.md, "Chain and tally"): `ChainRequest` in an envelope; the
answer, a `ChainSegment` in the peer's envelope, comes on a stream that the peer opens. Peers ration such answers, and
do not answer who asks too often: the question is repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from averaging.chain import Chain, ChainRequest, ChainSegment
from averaging.record import Record
from averaging.state_chunks import ask_chunk, ask_leaves
from dht.envelope import Envelope, frame_of, seal
from dht.errors import DataError, ProtocolError, Refusal, UnreachableError
from dht.host import Host
from dht.identity import Identity, PeerId
from dht.transport import Part, Transport
from dht.wire import decode_as
from ledger.explorer.states import StateHash

REPEAT_SECONDS = (2.0, 4.0, 8.0, 16.0)
"""How long each repetition of a question for records waits; a segment has up to a mebibyte."""
MOST_RECORD_BYTES = 1 << 30
_AT_ONCE = 2
"""Chunks under way: as many as a peer that catches up asks of one donor."""


class RecordsOf:
    """Asks one peer for records over a host that serves nothing else."""

    def __init__(self, host: Host, me: Identity, peer: PeerId, run: bytes) -> None:
        self._host, self._me, self._peer, self._run = host, me, peer, run
        self._after = 0
        self._answer: asyncio.Future[ChainSegment] = asyncio.get_running_loop().create_future()
        host.on_refused = self._refused
        host.serve(self._on_frame, _refuse)

    async def chain(self, founder: PeerId, round_: int) -> tuple[Chain, int]:
        """The certified chain from the founding to `round_` at least, and its size in bytes.

        Raises ProtocolError for what is not certified or breaks a bound, DataError when the peer has less,
        UnreachableError when it does not answer.
        """
        segment = await self._ask(0)
        chain, size = Chain(self._run, founder, segment.founding), 0
        while True:
            size += sum(len(link.record) + len(link.certificate) for link in segment.links)
            if size > MOST_RECORD_BYTES:
                raise ProtocolError(Refusal.OVERSIZED, f"more than {MOST_RECORD_BYTES} bytes of records")
            added = chain.extend(segment)
            if chain.head.round >= round_:
                return chain, size
            if not added:
                raise DataError(f"it has records up to round {chain.head.round}, not {round_}")
            segment = await self._ask(chain.head.round)

    async def _ask(self, after: int) -> ChainSegment:
        self._after, self._answer = after, asyncio.get_running_loop().create_future()
        question = frame_of(seal(self._me, self._run, 0, ChainRequest(after)))
        for seconds in REPEAT_SECONDS:
            await self._host.send(self._peer, [question])
            done, _ = await asyncio.wait([self._answer], timeout=seconds)
            if done:
                return self._answer.result()
        raise UnreachableError(f"it gave no records in {sum(REPEAT_SECONDS):g} s")

    def _on_frame(self, sender: PeerId, frame: memoryview) -> None:
        envelope = decode_as(Envelope, frame)
        if envelope.check(self._run) != sender or sender != self._peer:
            raise ProtocolError(Refusal.WRONG_SENDER, "an envelope of somebody else")
        message = envelope.message()
        # Peers may say more than they were asked. A repeated question may be answered twice, the second time too late.
        if isinstance(message, ChainSegment) and not self._answer.done() and self._continues(message):
            self._answer.set_result(message)

    def _continues(self, segment: ChainSegment) -> bool:
        return not segment.links or decode_as(Record, segment.links[0].record).round == self._after + 1

    def _refused(self, peer: PeerId, error: ProtocolError) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)


async def _refuse(peer: PeerId, frame: memoryview) -> Sequence[Part]:
    raise ProtocolError(Refusal.UNEXPECTED, "nothing is served here")


class StateFetch:
    """The state with one root, hashed chunk by chunk and not kept; several peers may bring parts of it."""

    def __init__(self, run: bytes, root: bytes) -> None:
        self._run, self._root = run, root
        self._state: StateHash | None = None

    @property
    def size(self) -> int:
        """Bytes hashed so far."""
        return self._state.size if self._state else 0

    async def go_on(self, transport: Transport, peer: PeerId) -> bytes:
        """Fetch what is missing from `peer`; the root over all chunks, recomputed.

        Raises ProtocolError for a wrong answer, UnreachableError, NotHeldError if the peer does not hold that state,
        and StorageError if what has this root is no state of the run.
        """
        if self._state is None:
            self._state = StateHash(self._run, len(await ask_leaves(transport, peer, self._root)))
        state = self._state
        while state.taken < state.count:
            places = range(state.taken, min(state.taken + _AT_ONCE, state.count))
            questions = (ask_chunk(transport, peer, self._root, index, state.count) for index in places)
            for data in await asyncio.gather(*questions):
                state.take(data)
        return state.root
