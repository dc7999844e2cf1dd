"""The driver: on an event loop, over an in-memory network, against a chain that comes and goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import asynccontextmanager

import pytest

from dht.errors import StorageError, UnreachableError
from dht.wire import encode
from ledger.attestation_log import SqliteAttestationLog
from ledger.attestor import Attestor
from ledger.attestor_guard import SqliteAttestorGuard
from ledger.books import Books
from ledger.checkpoint import NOTHING, Checkpoint
from ledger.checkpointer import Checkpointer
from ledger.electorate import Electorate
from ledger.evidence import verify
from ledger.files import write_once
from ledger.messages import Attestations
from ledger.signatures import key_address, sign
from tests.ledger.attestor_net import CONSTANTS, all_running
from tests.ledger.fake_hub import DOMAIN, FakeChain, Hub, landed
from tests.ledger.headers import header
from tests.ledger.records import KEYS, RUN, add_round, new_chain

POLL = 0.005


class View:
    """A window on a fake chain whose next block comes with a transaction."""

    def __init__(self, chain: FakeChain) -> None:
        self.chain, self.down, self.looks, self.broken = chain, False, 0, 0

    async def head(self):
        self.looks += 1
        if self.down:
            raise UnreachableError("no RPC answers", remedy="wait")
        return self.chain.tip.head(1000.0)

    async def submit(self, intent):
        if self.broken:
            self.broken -= 1
            raise StorageError("the journal is full", remedy="free disk space")
        self.chain.send(intent)
        self.chain.mine(float(len(self.chain.blocks)))


class Lane:
    """Delivers frames at once, or not at all."""

    def __init__(self, swarm: Swarm, me) -> None:
        self.swarm, self.me = swarm, me

    async def send(self, to, parts, *, bulk=False):
        if to in self.swarm.unreachable:
            self.swarm.failed += 1
            raise UnreachableError(f"{to} is away")
        self.swarm.runners[to].receive(self.me, b"".join(parts))


class Swarm:
    """Four attestors with their records and files."""

    def __init__(self, tmp_path) -> None:
        self.keys = KEYS[:4]
        electorate = Electorate(tuple(key_address(key.peer_id) for key in self.keys), (1, 1, 1, 1))
        self.chain = FakeChain(Hub(RUN, electorate, CONSTANTS, window=1.0, interval=0.0))
        self.records = new_chain(4)
        self.unreachable, self.failed = set(), 0
        self.views, self.runners, self.final, self.files = {}, {}, {}, []
        self.evidence = tmp_path / "evidence"
        for key in self.keys:
            guard, log = SqliteAttestorGuard(":memory:"), SqliteAttestationLog(":memory:")
            self.files += [guard, log]
            attestor = Attestor(key, DOMAIN, Books(CONSTANTS), lambda: self.records, guard, log)
            self.views[key.peer_id] = View(self.chain)
            self.runners[key.peer_id] = Checkpointer(
                attestor,
                self.views[key.peer_id],
                Lane(self, key.peer_id),
                self.evidence / str(key.peer_id),
                lambda round_, peer=key.peer_id: self.final.__setitem__(peer, round_),
                poll=POLL,
            )

    def rounds(self, count: int) -> None:
        for _ in range(count):
            add_round(self.records)
            for runner in self.runners.values():
                runner.advanced()


@asynccontextmanager
async def running(tmp_path):
    swarm = Swarm(tmp_path)
    try:
        async with all_running(swarm.runners.values()):
            yield swarm
    finally:
        for file in swarm.files:
            file.close()


async def until(condition: Callable[[], object]) -> None:
    """Wait for something, at most twenty seconds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for is a fake chain's state, which has no event
            await asyncio.sleep(POLL)


async def test_checkpoints_land_and_rounds_become_final(tmp_path):
    async with running(tmp_path) as swarm:
        swarm.rounds(3)
        await until(lambda: landed(swarm.chain) == [1])
        swarm.rounds(3)
        await until(lambda: landed(swarm.chain) == [1, 2])
        await until(lambda: set(swarm.final.values()) == {6} and len(swarm.final) == 4)
    assert swarm.chain.reverted == []


async def test_while_no_rpc_answers_nothing_waits_but_the_anchor(tmp_path, caplog):
    caplog.set_level(logging.INFO, "ledger")
    async with running(tmp_path) as swarm:
        for view in swarm.views.values():
            view.down = True
        swarm.rounds(9)
        looks = {view: view.looks for view in swarm.views.values()}
        await until(lambda: all(view.looks > before + 3 for view, before in looks.items()))
        assert landed(swarm.chain) == []
        for view in swarm.views.values():
            view.down = False
        await until(lambda: landed(swarm.chain) == [1, 2, 3])
    warnings = [record for record in caplog.records if "training goes on" in record.message]
    assert len(warnings) == 4  # once each
    assert sum("answers again" in record.message for record in caplog.records) == 4


async def test_what_could_not_be_journalled_is_tried_again(tmp_path, caplog):
    async with running(tmp_path) as swarm:
        for view in swarm.views.values():
            view.broken = 2
        swarm.rounds(3)
        await until(lambda: landed(swarm.chain) == [1])
    assert "cannot submit the checkpoint of epoch 1 yet" in caplog.text


def away(swarm: Swarm):
    """An attestor that does not submit epoch 1."""
    books = Books(CONSTANTS)
    add = new_chain(4)
    for _ in range(3):
        add_round(add)
    leaders = swarm.chain.hub.electorate.leaders(books.contents(add, 1, [0]).checkpoint(0, NOTHING))
    return next(key for key in swarm.keys if key_address(key.peer_id) == leaders[-1])


async def test_who_cannot_be_reached_costs_nobody_else_anything(tmp_path):
    async with running(tmp_path) as swarm:
        await until(lambda: all(view.looks for view in swarm.views.values()))
        swarm.unreachable.add(away(swarm).peer_id)
        swarm.rounds(3)
        await until(lambda: swarm.failed >= 2)
        await until(lambda: landed(swarm.chain) == [1])
        swarm.unreachable.clear()


async def test_evidence_is_kept_in_a_file(tmp_path):
    async with running(tmp_path) as swarm:
        me, liar = (key.peer_id for key in swarm.keys[:2])
        await until(lambda: swarm.views[me].looks)
        for root in (b"1" * 32, b"2" * 32, b"2" * 32):
            head = Checkpoint.decode(header(root=root, run=RUN).encode())
            signature = sign(swarm.keys[1], head.digest(DOMAIN))
            swarm.runners[me].receive(liar, encode(Attestations(head.encode(), (signature,))))
        (path,) = (swarm.evidence / str(me)).iterdir()
        assert path.suffix == ".evidence"
        assert verify(path.read_bytes()).accused == key_address(liar)


async def test_records_that_contradict_what_is_final_are_warned_of(tmp_path, caplog):
    caplog.set_level(logging.INFO, "ledger")
    async with running(tmp_path) as swarm:
        swarm.rounds(3)
        await until(lambda: landed(swarm.chain) == [1])
        other = new_chain(4)
        for _ in range(3):
            add_round(other, salt=b"other")
        swarm.records = other
        for runner in swarm.runners.values():
            runner.advanced()
        looks = {view: view.looks for view in swarm.views.values()}
        await until(lambda: all(view.looks > before + 3 for view, before in looks.items()))
    warned = [record.levelno for record in caplog.records if "it is final" in record.message]
    assert warned == [logging.WARNING] * 4


async def test_nothing_happens_after_the_end(tmp_path):
    async with running(tmp_path) as swarm:
        pass
    swarm.rounds(3)
    runner = swarm.runners[swarm.keys[0].peer_id]
    runner.receive(swarm.keys[1].peer_id, b"nonsense")
    assert landed(swarm.chain) == [] and not runner._errands.timers and not runner._errands.tasks


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "folder" / "file"
    write_once(path, b"one")
    write_once(path, b"two")
    assert path.read_bytes() == b"one"
    assert [each.name for each in path.parent.iterdir()] == ["file"]
    with pytest.raises(StorageError) as failed:
        write_once(path / "below", b"x")
    assert failed.value.remedy
