"""A driver with everything around it scripted: participant, transport, learner and observer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from averaging.bulk import Chunk
from averaging.driver import Driver
from averaging.messages import Knock
from dht.envelope import Envelope, seal
from dht.errors import UnreachableError
from dht.identity import PeerId
from tests.peer.swarm_in_process import identity, until

RUN = b"r" * 32
ME, OTHER, THIRD = (identity(index).peer_id for index in range(3))


def envelope(round_: int = 0) -> Envelope:
    return seal(identity(0), RUN, round_, Knock(round_, bytes(32)))


class Script:
    """A participant that does what the test says: returns `answers[name]`, or raises it when it is an error."""

    def __init__(self) -> None:
        self.peer_id, self.round, self.capacity = ME, 1, 100
        self.current: Any = None
        self.previous: Any = None
        self.chain: Any = None
        self.cohorts: dict[bytes, Any] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.answers: dict[str, Any] = {}

    def _answer(self, name: str, *arguments: Any) -> list[Any]:
        self.calls.append((name, *arguments))
        answer = self.answers.get(name, [])
        if isinstance(answer, Exception):
            raise answer
        return list(answer)

    def __getattr__(self, name: str) -> Callable[..., list[Any]]:
        known = {"start", "learned", "receive", "receive_chunk", "timeout", "trained", "uploaded", "reduced"}
        if name not in known | {"applied", "checked", "findings", "holds", "fetch_failed", "suspect"}:
            raise AttributeError(name)
        return lambda *arguments: self._answer(name, *arguments)

    def cohort(self, sid: bytes) -> Any:
        return self.cohorts.get(sid)

    def across(self, sid: bytes) -> Any:
        return None

    def aggregate(self, sid: bytes) -> Any:
        return SimpleNamespace(sid=sid, round=self.round, attempt=0) if sid in self.cohorts else None

    def works_on(self, sid: bytes, kind: Any) -> bool:
        cohort = self.cohort(sid)
        return cohort is not None and not cohort.failed

    def payload(self, sid: bytes, kind: Any, chunk: int) -> Any:
        cohort = self.cohort(sid)
        return cohort.payload(kind, chunk) if cohort is not None else None

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] == name]


class Line:
    """A transport that reaches nobody in `dead`, and holds back what goes to `stuck` until it is let go."""

    def __init__(self) -> None:
        self.dead: set[PeerId] = set()
        self.stuck: dict[PeerId, asyncio.Event] = {}
        self.tried: list[tuple[PeerId, bytes, bool]] = []
        self.arrived: list[tuple[PeerId, bytes, bool]] = []

    async def send(self, to: PeerId, parts: Sequence[Any], *, bulk: bool = False) -> None:
        frame = (to, b"".join(parts), bulk)
        self.tried.append(frame)
        if to in self.dead:
            raise UnreachableError("nobody there")
        if to in self.stuck:
            await self.stuck[to].wait()
        self.arrived.append(frame)


class Work:
    """A learner that keeps a list, and waits or raises where the test says."""

    def __init__(self) -> None:
        self.did: list[Any] = []
        self.errors: dict[str, Exception] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.found = True
        self.busy = 0

    async def _do(self, *what: Any) -> None:
        assert self.busy == 0, "two works at once"
        self.busy += 1
        try:
            self.did.append(what)
            if gate := self.gates.get(what[0]):
                await gate.wait()
            if error := self.errors.get(what[0]):
                raise error
        finally:
            self.busy -= 1

    async def train(self, round_: int) -> int:
        await self._do("train", round_)
        return 7

    def interrupt(self) -> None:
        self.did.append(("interrupt",))

    async def prepare(self, cohort: Any) -> None:
        await self._do("prepare", cohort.sid)

    def encode(self, cohort: Any, chunk: int) -> Any:
        return ("ring", chunk)

    async def apply(self, aggregate: Any) -> tuple[bytes, float]:
        await self._do("apply", aggregate.sid)
        return b"root", 1.5

    async def commit(self, record: Any, chain: Any) -> None:
        await self._do("commit", record.round)

    async def fetch(self, record: Any, chain: Any, donors: Any) -> bool:
        await self._do("fetch", record.round, tuple(donors))
        return self.found


class Watcher:
    """An observer with a memory."""

    def __init__(self) -> None:
        self.saw: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.saw.append((name, *arguments))

    def notes(self) -> list[tuple[str, PeerId | None]]:
        return [(call[1], call[2]) for call in self.saw if call[0] == "note"]


class Bench:
    """One driver with everything around it scripted."""

    def __init__(self) -> None:
        self.script, self.line, self.work, self.watcher = Script(), Line(), Work(), Watcher()
        self.driver = Driver(self.script, self.line, self.work, self.watcher, threads=2)  # type: ignore[arg-type]
        self.lost: list[PeerId] = []
        self.driver.on_unreachable = lambda peer, reason: self.lost.append(peer)

    def do(self, *actions: Any) -> None:
        """Let the participant ask for these actions now."""
        self.script.answers["start"] = actions
        self.driver.start()
        self.script.answers["start"] = []

    async def settle(self) -> None:
        """Until all work is done."""
        await until(lambda: not self.driver._errands.tasks, [self.driver.failed])

    def cohort(self, sid: bytes = b"sid", **facts: Any) -> Any:
        roster = SimpleNamespace(round=1, attempt=0)
        masked: list[Any] = []
        cohort = SimpleNamespace(sid=sid, roster=roster, failed=None, certified=None, masked=masked, **facts)
        cohort.mask = lambda chunk, ring: masked.append((chunk, ring))
        cohort.payload = lambda kind, chunk: Chunk(kind, bytes(32), 0, chunk, b"data%d" % chunk)
        cohort.reduce = lambda chunk: masked.append(("reduced", chunk))
        self.script.cohorts[sid] = cohort
        return cohort
