from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from dht.clock import ManualClock
from ledger.chain.journal import Intent, Journal
from ledger.chain.sender import Policy, Sender
from tests.ledger.chains import ALICE, CAROL, deploy_counter, node


@dataclass
class Steps:
    """Stands for `asyncio.sleep`: time is virtual, and what is planned for a step happens in it."""

    clock: ManualClock = field(default_factory=ManualClock)
    plan: list = field(default_factory=list)
    """Coroutine functions; one for each sleep, in order. None does nothing."""
    taken: int = 0
    most: int = 200

    async def sleep(self, seconds: float) -> None:
        self.taken += 1
        assert self.taken <= self.most, "it never lands"
        self.clock.advance_to(self.clock.now() + seconds)
        if self.plan and (action := self.plan.pop(0)) is not None:
            await action()


class Faulty:
    """A pool that fails as told: `faults` is called with method and parameters before and after each call."""

    def __init__(self, rpc) -> None:
        self._rpc, self.chain_id = rpc, rpc.chain_id
        self.sent: list[bytes] = []
        self.before = self.after = None

    async def call(self, method, params=()):
        if self.before is not None:
            self.before(method, params)
        if method == "eth_sendRawTransaction":
            self.sent.append(bytes.fromhex(params[0][2:]))
        try:
            return await self._rpc.call(method, params)
        finally:
            if self.after is not None:
                self.after(method, params)


@pytest.fixture(params=["embedded", "anvil"])
async def rpc(request, tmp_path):
    async with node(request.param, tmp_path / "chain") as found:
        yield Faulty(found)


@pytest.fixture
async def embedded(tmp_path):
    async with node("embedded", tmp_path / "chain") as found:
        yield Faulty(found)


@pytest.fixture
async def counter(rpc):
    return await deploy_counter(rpc, CAROL)


@pytest.fixture
def steps():
    return Steps()


@pytest.fixture
def open_sender(tmp_path, steps):
    """Opens senders over one journal, as one process after another would, or over journals of their own."""
    journals = []

    def open_(rpc, *, name="journal", wallet=ALICE, **policy) -> Sender:
        journal = Journal(tmp_path / name)
        journals.append(journal)
        return Sender(rpc, wallet, journal, Policy(**policy), steps.clock, steps.sleep)

    open_.journals = journals
    yield open_
    for journal in journals:
        journal.close()


def count_up(counter: str, key: str = "count/1") -> Intent:
    return Intent(key, bytes.fromhex(counter[2:]), b"")
