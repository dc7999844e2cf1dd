"""How fast checkpoints land, how fast events are indexed, and how long a reorganisation holds the index up.

Every node is a process of its own on this machine, asked over HTTP. A row is the median of several runs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.ledger_run import Kind, Ledger, ledger
from ledger.chain.deploy import UNIT
from ledger.explorer import wiring
from ledger.indexer.store import Index
from ledger.indexer.sync import Indexer

SIGNERS = (3, 7, 16)
EVENTS_AIM = 2_000
REORG_DEPTH = 5
_IN_A_BLOCK = 25
_INDEXED = wiring.interface(wiring.INDEXED)


async def transactions() -> dict[str, bytes]:
    """The signed bytes of a checkpoint that has landed, by operation: one for each number of signers."""
    found = {}
    for signers in SIGNERS:
        with TemporaryDirectory() as folder:
            async with ledger("embedded", Path(folder), signers) as run:
                intent = run.checkpoint()
                await run.sender.land(intent)
                found[f"checkpoint_{signers}"] = run.journal.attempts(intent.key)[0].raw
    return found


async def measure(checkpoints: int, events: int, runs: int) -> AsyncIterator[dict[str, Any]]:
    """All rows. `checkpoints` in each run, `events` in the history that is indexed."""
    for kind in ("embedded", "anvil"):
        with TemporaryDirectory() as folder:
            async with ledger(kind, Path(folder)) as run:
                yield await _journalled(run, checkpoints, runs)
                yield await _raw(run, checkpoints, runs)
        # The embedded chain mines each transaction at once, in a block of its own.
        for in_a_block in (1,) if kind == "embedded" else (1, _IN_A_BLOCK):
            with TemporaryDirectory() as folder:
                async with ledger(kind, Path(folder)) as run:
                    usage = _Usage(run)
                    await usage.start()
                    yield await _indexing(usage, Path(folder), events, in_a_block, runs)
                    if in_a_block == 1:
                        yield await _reorganisation(usage, Path(folder), runs)


async def _journalled(run: Ledger, count: int, runs: int) -> dict[str, Any]:
    """Tallied, signed, journalled on disk, sent and mined, each before the next."""
    rates = []
    for _ in range(runs):
        started = time.perf_counter()
        for _ in range(count):
            await run.sender.land(run.checkpoint())
        rates.append(count / (time.perf_counter() - started))
    return _row("checkpoints by the sender", run.kind, "1/s", rates)


async def _raw(run: Ledger, count: int, runs: int) -> dict[str, Any]:
    """Bytes that were signed before: sent and mined, each before the next."""
    rates = []
    for _ in range(runs):
        first = await run.nonce()
        intents = [run.checkpoint() for _ in range(count)]
        raw = [run.signed(first + at, run.address("CheckpointHub"), intent.data) for at, intent in enumerate(intents)]
        started = time.perf_counter()
        for each in raw:
            await run.mined(await run.send(each))
        rates.append(count / (time.perf_counter() - started))
    return _row("checkpoints as raw transactions", run.kind, "1/s", rates)


class _Usage:
    """Makes events: checkpoints and usage fees in turn, one of each kind after the other."""

    def __init__(self, run: Ledger) -> None:
        self.run = run
        self._amounts = itertools.count(UNIT)

    async def start(self) -> None:
        """Let the pool take the wallet's tokens."""
        data = wiring.interface().call("Token", "approve", self.run.deployment.contracts["RewardPool"], 2**256 - 1)
        await self.run.mined(
            await self.run.send(self.run.signed(await self.run.nonce(), self.run.address("Token"), data))
        )

    def fee(self, nonce: int) -> bytes:
        """A raw transaction with one event; no two are the same."""
        data = wiring.interface().call("RewardPool", "payUsage", bytes(32), next(self._amounts))
        return self.run.signed(nonce, self.run.address("RewardPool"), data)

    async def make(self, events: int, in_a_block: int) -> None:
        """Mine so many events, with so many in each block."""
        first = await self.run.nonce()
        hub = self.run.address("CheckpointHub")
        raw = [
            self.fee(nonce) if nonce % 2 else self.run.signed(nonce, hub, self.run.checkpoint().data)
            for nonce in range(first, first + events)
        ]
        if in_a_block > 1:
            await self.run.rpc.call("evm_setAutomine", [False])
        for start in range(0, events, in_a_block):
            hashes = [await self.run.send(each) for each in raw[start : start + in_a_block]]
            if in_a_block > 1:
                await self.run.rpc.call("evm_mine")
            for tx_hash in hashes:
                await self.run.mined(tx_hash)


async def _indexing(usage: _Usage, folder: Path, events: int, in_a_block: int, runs: int) -> dict[str, Any]:
    """From an empty file to the head of the chain."""
    await usage.make(events, in_a_block)
    rates = []
    for number in range(runs):
        index = Index(folder / f"{number}.sqlite", usage.run.deployment, _INDEXED)
        started = time.perf_counter()
        await Indexer(usage.run.rpc, index, _INDEXED).sync()
        rates.append(index.count() / (time.perf_counter() - started))
        # The deployment has events of its own.
        if index.count() < events:
            raise RuntimeError(f"{index.count()} events of {events} were indexed")
        index.close()
    return _row(f"events indexed, {in_a_block} in a block", usage.run.kind, "1/s", rates, EVENTS_AIM)


async def _reorganisation(usage: _Usage, folder: Path, runs: int) -> dict[str, Any]:
    """From a reorganisation that has happened to an index that is right again."""
    run = usage.run
    index = Index(folder / "reorganised.sqlite", run.deployment, _INDEXED)
    indexer = Indexer(run.rpc, index, _INDEXED)
    milliseconds = []
    for _ in range(runs):
        for _ in range(REORG_DEPTH):
            await run.mined(await run.send(usage.fee(await run.nonce())))
        await indexer.sync()
        before = index.count()
        await run.rpc.call("anvil_reorg", [REORG_DEPTH, []])
        started = time.perf_counter()
        progress = await indexer.sync()
        milliseconds.append((time.perf_counter() - started) * 1e3)
        if (progress.undone, index.count()) != (REORG_DEPTH, before - REORG_DEPTH):
            raise RuntimeError(f"{progress.undone} blocks of {REORG_DEPTH} were undone")
    index.close()
    return _row(f"walk back {REORG_DEPTH} blocks", run.kind, "ms", milliseconds)


def _row(operation: str, chain: Kind, unit: str, values: Sequence[float], aim: float | None = None) -> dict[str, Any]:
    return {
        "operation": operation,
        "chain": chain,
        "unit": unit,
        "median": median(values),
        "least": min(values),
        "most": max(values),
        "runs": len(values),
        "aim": aim,
    }
