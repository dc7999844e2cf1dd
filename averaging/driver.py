"""Binds a `Participant` to a transport, the event loop's clock, and the work of a learner.

All protocol state is touched on the event loop only. Encoding, masking and reducing run in executor threads, chunk
by chunk (hashing, AES and numpy release the interpreter lock), so that they overlap with sending.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from averaging.actions import CancelTimer, Note, Send, SetTimer, TimerKey
from averaging.aggregate import Aggregate
from averaging.background import give_way
from averaging.bulk import BulkKind, is_bulk, parse
from averaging.capacity import Capacity
from averaging.chain import Chain
from averaging.cohort import Cohort
from averaging.evidence import Proof
from averaging.layout import RingArray
from averaging.participant import Participant
from averaging.plausible import ImplausibleSumError
from averaging.record import Record
from averaging.work import (
    AddUp,
    Apply,
    Blame,
    Check,
    Commit,
    Decided,
    FetchState,
    Joined,
    ParticipantAction,
    Reduce,
    RolledBack,
    Show,
    Train,
    Transfer,
    Upload,
)
from dht.envelope import Envelope, frame_of
from dht.errands import Errands
from dht.errors import MurmurationError, ProtocolError, Refusal, RoundError, UnreachableError
from dht.identity import PeerId
from dht.transport import Part, Transport

_log = logging.getLogger(__name__)
_RETRIES = (0.2, 0.5, 1.0, 2.0)
"""Pauses between attempts to deliver a message, in seconds; the last one repeats while the message matters."""
_SUSPECT_AFTER = 2
_MATTERS = 60.0
_BATCH = 4
"""Chunks that a thread takes at a time: handing over costs as much as masking half a chunk."""
_BATCHES_AHEAD = 2
# Refusals that an honest but slow or restarted peer earns; its stream stays open.
_BENIGN = frozenset(
    (Refusal.STALE, Refusal.NOT_A_MEMBER, Refusal.UNEXPECTED, Refusal.EQUIVOCATION, Refusal.BAD_CERTIFICATE)
)


class Work(Protocol):
    """What a learner does for the protocol. Methods are awaited one at a time, except `encode`."""

    async def train(self, round_: int) -> int:
        """Have an update for this round, trained meanwhile or before; returns the tokens behind it."""
        ...

    def interrupt(self) -> None:
        """End local training soon: the round was decided meanwhile."""
        ...

    async def prepare(self, cohort: Cohort) -> None:
        """Fix the update that `encode` will encode for this cohort."""
        ...

    def encode(self, cohort: Cohort, chunk: int) -> RingArray:
        """Ring elements of one chunk of the update (the trailer included). Any thread."""
        ...

    async def apply(self, aggregate: Aggregate) -> tuple[bytes, float]:
        """(next state's root, public mean training loss) that the sums lead to; durable when it returns.

        Raises ImplausibleSumError for sums that nobody should apply: the round is given up.
        """
        ...

    async def commit(self, record: Record, chain: Chain) -> None:
        """Adopt the state that `apply` announced; on disk when it returns."""
        ...

    async def fetch(self, record: Record, chain: Chain, donors: Sequence[PeerId]) -> bool:
        """Get and adopt a certified state from donors; False when nobody gave it."""
        ...


class Observer(Protocol):
    """Who wants to know what happens (the status view, logs)."""

    def joined(self, joined: Joined) -> None:
        """I am in a roster."""
        ...

    def step(self, round_: int, attempt: int, name: str) -> None:
        """A step of the round begins: train, shares, upload, survivors, unmask, sum, commit."""
        ...

    def decided(self, decided: Decided, cohort: Cohort | None) -> None:
        """The committee has decided."""
        ...

    def settled(self, round_: int) -> None:
        """The state of this round is adopted."""
        ...

    def rolled_back(self, event: RolledBack) -> None:
        """Another branch of the run stands; its state is fetched next."""
        ...

    def blamed(self, proof: Proof, evidence: bytes) -> None:
        """Somebody is proven a liar; `evidence` is the frame to keep."""
        ...

    def note(self, text: str, peer: PeerId | None) -> None:
        """Something worth a log line."""
        ...


class Driver:
    """Runs one participant until `stop`. `failed` is done with the error when it cannot go on."""

    def __init__(
        self,
        participant: Participant,
        transport: Transport,
        work: Work,
        observer: Observer,
        *,
        threads: int = 1,
        background: bool = False,
    ) -> None:
        """`threads` for chunks; `background`: they leave the processor to whatever else this process does."""
        self.participant, self._transport, self._work, self._observer = participant, transport, work, observer
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(max(1, threads), "chunks", initializer=give_way if background else None)
        self._errands: Errands[TimerKey] = Errands()
        self._sending: set[asyncio.Task[None]] = set()
        self._working = asyncio.Lock()
        self._unreachable: dict[PeerId, int] = {}
        self._probed: set[PeerId] = set()
        self._stopped = False
        self._unmasking = b""
        self._capacity = Capacity(participant.capacity)
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self.on_unreachable: Callable[[PeerId, str], None] = lambda peer, reason: None
        self.on_failure: Callable[[PeerId, UnreachableError], None] = lambda peer, error: None

    def start(self) -> None:
        """Begin to take part."""
        self._feed(self.participant.start)

    def check(self, peer: PeerId) -> None:
        """A stream to this peer ended: if I count on it, see at once whether it is still there."""
        current = self.participant.current
        waited_for = current is not None and (
            peer in current.committee or (current.cohort is not None and peer in current.cohort.peers)
        )
        # One probe at a time: each of its failed attempts ends a stream, too, and would ask for the next.
        if waited_for and not self._over and peer not in self._probed and self._loop.is_running():
            self._probed.add(peer)
            task = self._spawn_send(self._deliver(peer, self.participant.ping()))
            task.add_done_callback(lambda _: self._probed.discard(peer))

    def learned(self, peers: list[PeerId]) -> None:
        """Discovery found these peers."""
        self._feed(lambda: self.participant.learned(peers))

    def reachable(self, peers: Iterable[PeerId]) -> None:
        """These peers answered a dial or have new addresses: that they could not be reached says nothing any more."""
        for peer in peers:
            if self._unreachable.pop(peer, 0):
                self.participant.trust(peer)

    def run_alone(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run some work of the observer while no other work of the learner runs; it waits its turn."""

        async def job() -> None:
            async with self._working:
                await work()

        self._spawn(job())

    async def drain(self, timeout: float) -> None:
        """Wait until what is being sent has arrived, at most `timeout` seconds: the others may need it."""
        if self._sending:
            await asyncio.wait(set(self._sending), timeout=timeout)

    async def stop(self) -> None:
        """End all work and timers. What is on disk stays as the last commit left it."""
        self._stopped = True
        await self._errands.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    # --- from the network ---------------------------------------------------------------------------------------

    def on_frame(self, sender: PeerId, frame: memoryview) -> None:
        """Handler of the transport. Raises ProtocolError for what only a broken or hostile peer sends."""
        if self._over:
            return
        self._unreachable.pop(sender, None)
        try:
            if is_bulk(frame):
                self._perform(self.participant.receive_chunk(sender, parse(frame)))
            else:
                self._perform(self.participant.receive(sender, frame))
        except ProtocolError as error:
            self._observer.note(error.message, sender)
            self._feed(self.participant.findings)
            if error.refusal not in _BENIGN:
                raise
        except MurmurationError as error:
            self._fail(error)

    @property
    def _over(self) -> bool:
        """After a failure the participant is in the middle of a step whose actions were lost: it gets no more input."""
        return self._stopped or self.failed.done()

    def _feed(self, call: Callable[[], Iterable[ParticipantAction]]) -> None:
        if self._over:
            return
        try:
            self._perform(call())
        except ProtocolError as error:
            # What I sent to myself, or late work of a round that is over: no reason to leave the run.
            self._observer.note(error.message, self.participant.peer_id)
        except MurmurationError as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    # --- actions ------------------------------------------------------------------------------------------------

    def _perform(self, actions: Iterable[ParticipantAction]) -> None:
        for action in actions:
            self._do(action)
        cohort = self.participant.current.cohort if self.participant.current else None
        if cohort is not None and cohort.certified is not None and cohort.sid != self._unmasking:
            self._unmasking = cohort.sid
            self._observer.step(cohort.roster.round, cohort.roster.attempt, "unmask")

    def _do(self, action: ParticipantAction) -> None:
        match action:
            case Send(to, message):
                assert isinstance(message, Envelope)
                self._spawn_send(self._deliver(to, message))
            case SetTimer(key, delay):
                self._errands.set_timer(key, delay, self._due)
            case CancelTimer(key):
                self._errands.cancel_timer(key)
            case Note(text, peer):
                self._observer.note(text, peer)
            case Blame(proof, evidence):
                self._observer.blamed(proof, evidence)
            case Joined():
                self._observer.joined(action)
                self._observer.step(action.round, action.attempt, "shares")
            case RolledBack():
                self._observer.rolled_back(action)
            case Decided():
                self.participant.capacity = self._capacity.ended()
                self._observer.decided(action, self.participant.cohort(action.record.sid))
            case _:
                self._spawn(self._job(action))

    async def _job(self, action: ParticipantAction) -> None:
        match action:
            case Train(round_):
                self._observer.step(round_, 0, "train")
                async with self._working:
                    if self.participant.round != round_:
                        return
                    tokens = await self._work.train(round_)
                self._feed(lambda: self.participant.trained(round_, tokens))
            case Upload(sid, plan):
                await self._upload(sid, plan)
            case Reduce(sid, chunks):
                await self._reduce(sid, chunks)
            case AddUp(sid, chunks):
                await self._add_up(sid, chunks)
            case Transfer(sid, kind, chunks, to):
                await self._transfer(sid, kind, chunks, to)
            case Show(sid, inputs, to):
                self._show(sid, inputs, to)
            case Check(sid, chunks):
                await self._check(sid, chunks)
            case Apply(sid):
                await self._apply(sid)
            case Commit(record, _, _):
                await self._commit(record)
            case FetchState(record, donors):
                await self._fetch(record, donors)

    def _due(self, key: TimerKey) -> None:
        self._feed(lambda: self.participant.timeout(key))

    # --- work ---------------------------------------------------------------------------------------------------

    async def _upload(self, sid: bytes, plan: Sequence[tuple[int, tuple[PeerId, ...]]]) -> None:
        cohort = self.participant.cohort(sid)
        if cohort is None:
            return
        self._observer.step(cohort.roster.round, cohort.roster.attempt, "upload")
        async with self._working:
            self._capacity.started(self._loop.time())
            await self._work.prepare(cohort)
            batches = [plan[i : i + _BATCH] for i in range(0, len(plan), _BATCH)]
            masked = [self._mask(cohort, batch) for batch in batches[:_BATCHES_AHEAD]]
            for i, batch in enumerate(batches):
                await masked[i]
                if i + _BATCHES_AHEAD < len(batches):
                    masked.append(self._mask(cohort, batches[i + _BATCHES_AHEAD]))
                for chunk, receivers in batch:
                    parts = cohort.payload(BulkKind.MASKED, chunk).parts()
                    for to in receivers:
                        self._spawn_send(self._send_bulk(to, parts, sid, BulkKind.MASKED))
        self._observer.step(cohort.roster.round, cohort.roster.attempt, "survivors")
        self._feed(lambda: self.participant.uploaded(sid))

    def _mask(self, cohort: Cohort, batch: Sequence[tuple[int, tuple[PeerId, ...]]]) -> asyncio.Future[None]:
        def run() -> None:
            for chunk, _ in batch:
                cohort.mask(chunk, self._work.encode(cohort, chunk))

        return self._loop.run_in_executor(self._pool, run)

    async def _reduce(self, sid: bytes, chunks: tuple[int, ...]) -> None:
        cohort = self.participant.cohort(sid)
        if cohort is None:
            return
        self._observer.step(cohort.roster.round, cohort.roster.attempt, "sum")
        await asyncio.gather(*(self._reduce_some(cohort, chunks[i::_BATCH]) for i in range(_BATCH)))
        self._feed(lambda: self.participant.reduced(sid, chunks))

    def _reduce_some(self, cohort: Cohort, chunks: Sequence[int]) -> asyncio.Future[None]:
        def run() -> None:
            for chunk in chunks:
                cohort.reduce(chunk)

        return self._loop.run_in_executor(self._pool, run)

    async def _add_up(self, sid: bytes, chunks: tuple[int, ...]) -> None:
        across = self.participant.across(sid)
        if across is None:
            return

        def run() -> None:
            for chunk in chunks:
                across.add_up(chunk)

        await self._loop.run_in_executor(self._pool, run)
        self._feed(lambda: self.participant.added_up(sid, chunks))

    async def _transfer(self, sid: bytes, kind: BulkKind, chunks: tuple[int, ...], to: tuple[PeerId, ...]) -> None:
        for chunk in chunks:
            frame = self.participant.payload(sid, kind, chunk)
            if frame is None:
                return
            parts = frame.parts()
            for peer in to:
                self._spawn_send(self._send_bulk(peer, parts, sid, kind))

    def _show(self, sid: bytes, inputs: Sequence[tuple[int, int]], to: PeerId) -> None:
        cohort = self.participant.cohort(sid)
        for member, chunk in inputs if cohort is not None else ():
            assert cohort is not None
            parts = cohort.shown(member, chunk).parts()
            self._spawn_send(self._send_bulk(to, parts, sid, BulkKind.AUDIT))

    async def _check(self, sid: bytes, chunks: tuple[int, ...]) -> None:
        cohort = self.participant.cohort(sid)
        if cohort is None:
            return
        await asyncio.gather(*(self._loop.run_in_executor(self._pool, cohort.check, chunk) for chunk in chunks))
        self._feed(lambda: self.participant.checked(sid, chunks))

    async def _apply(self, sid: bytes) -> None:
        aggregate = self.participant.aggregate(sid)
        if aggregate is None:
            return
        self._observer.step(aggregate.round, aggregate.attempt, "commit")
        self._work.interrupt()  # whoever still trains came too late for this round
        try:
            async with self._working:
                root, loss = await self._work.apply(aggregate)
        except ImplausibleSumError as error:
            self._observer.note(error.message, None)
            self._feed(lambda: self.participant.rejected(sid))
            return
        self._feed(lambda: self.participant.applied(sid, root, loss))

    async def _commit(self, record: Record) -> None:
        chain = self.participant.chain
        assert chain is not None
        self._work.interrupt()
        async with self._working:
            await self._work.commit(record, chain)
        self._settled(record, chain)
        self._feed(lambda: self.participant.holds(record.round, record.state_root))

    async def _fetch(self, record: Record, donors: Sequence[PeerId]) -> None:
        chain = self.participant.chain
        assert chain is not None
        self._work.interrupt()
        async with self._working:
            if self.participant.chain is not chain or chain.head.round != record.round:
                return  # while this waited its turn a newer head came, which is fetched instead
            found = await self._work.fetch(record, chain, donors)
        if found:
            self._settled(record, chain)
            self._feed(lambda: self.participant.holds(record.round, record.state_root))
            return
        await asyncio.sleep(_RETRIES[-1])
        self._feed(lambda: self.participant.fetch_failed(record.round))

    def _settled(self, record: Record, chain: Chain) -> None:
        if self.participant.chain is chain:  # else that branch was left while its state was being adopted
            self._observer.settled(record.round)

    # --- sending ------------------------------------------------------------------------------------------------

    async def _deliver(self, to: PeerId, message: Envelope) -> None:
        if to == self.participant.peer_id:
            frame = frame_of(message)
            self._feed(lambda: self.participant.receive(to, frame))
            return
        parts = (frame_of(message),)
        relevant = message.round
        await self._persist(to, lambda: self._transport.send(to, parts), lambda: self.participant.round <= relevant + 1)

    async def _send_bulk(self, to: PeerId, parts: Sequence[Part], sid: bytes, kind: BulkKind) -> None:
        send = lambda: self._transport.send(to, parts, bulk=True)  # noqa: E731
        delivered = await self._persist(to, send, lambda: self.participant.works_on(sid, kind))
        if delivered and kind is BulkKind.MASKED:
            self._capacity.sent(sum(map(len, parts)), self._loop.time())

    async def _persist(self, to: PeerId, send: Callable[[], Awaitable[None]], matters: Callable[[], bool]) -> bool:
        """Deliver while it matters; a peer that two attempts in a row do not reach is suspected of being gone."""
        started = self._loop.time()
        for attempt in range(1 << 30):
            try:
                await send()
            except UnreachableError as error:
                self.on_failure(to, error)
                count = self._unreachable[to] = self._unreachable.get(to, 0) + 1
                if count == _SUSPECT_AFTER:
                    self.on_unreachable(to, error.message)
                if count >= _SUSPECT_AFTER:
                    self._feed(lambda: self.participant.suspect(to))
                if not matters() or self._loop.time() - started > _MATTERS:
                    return False
                await asyncio.sleep(_RETRIES[min(attempt, len(_RETRIES) - 1)])
                if not matters():
                    return False  # the round went on meanwhile
            else:
                self._unreachable.pop(to, None)
                return True
        return False

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._errands.spawn(work)
        task.add_done_callback(self._ended)
        return task

    def _spawn_send(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._spawn(work)
        self._sending.add(task)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, ProtocolError) and error.refusal in _BENIGN:
                _log.info("dropped work: %s", error.message)
            elif isinstance(error, RoundError):
                # This peer has nothing to add to the round; the round ends without it, or void.
                self._observer.note(error.message, None)
            else:
                self._fail(error)
