"""One command's view of the world: deployment, node, an index that is up to date, and the records if there are any."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from time import time as wall_clock
from typing import TYPE_CHECKING, Any, TypeVar

from dht.errors import DataError, IncompatibleRunError, MurmurationError, UnreachableError
from ledger.chain.deployments import Deployment
from ledger.explorer import facts, show, wiring
from ledger.explorer.options import Common, cache_folder, terminal
from ledger.indexer.abi import Interface
from ledger.indexer.node import address_of, check_chain
from ledger.indexer.store import Index

if TYPE_CHECKING:
    from ledger.books import Books
    from ledger.explorer.history import History
    from ledger.indexer.sync import Progress
    from ledger.tally import EpochTally

T = TypeVar("T")


@dataclass
class Session:
    """What commands read. `node` is None when offline; `events` is what of `interface` is indexed."""

    common: Common
    found: wiring.Found
    interface: Interface
    events: Interface
    node: wiring.ClosableNode | None
    index: Index
    books: Books | None = None
    """Keeps what was recomputed of each epoch; None where the run's constants are not known."""

    @property
    def deployment(self) -> Deployment:
        """Where the contracts are."""
        return self.found.deployment

    @property
    def now(self) -> float:
        """Unix seconds: of this machine, or of the chain where that is ahead."""
        last = self.index.last()
        return max(wall_clock(), last.timestamp if last else 0)

    async def sync(self) -> Progress | None:
        """Bring the index up to date; None when offline."""
        from ledger.indexer.sync import Indexer

        if self.node is None:
            return None
        await check_chain(self.node, self.deployment, wiring.is_ours)
        if (run := await self.view("CheckpointHub", "runId")) != self.deployment.run_id:
            raise IncompatibleRunError(
                f"the contracts are of run {run.hex()[:16]}, not of {self.deployment.run_id.hex()[:16]}",
                remedy="use the deployment file that came with the run",
            )
        indexer = Indexer(self.node, self.index, self.events)
        progress = await indexer.step()
        if not progress.behind:
            return progress
        start = progress.block
        while progress.behind:
            if terminal():
                show.remark(f"indexing: block {progress.block:,} of {progress.head:,}")
            progress = await indexer.step()
        show.remark(f"indexed {progress.block - start:,} blocks")
        return progress

    async def learn(self) -> None:
        """Find the run's constants: what cannot be recomputed without them stays unknown."""
        from ledger.books import Books
        from ledger.explorer.recompute import constants_of

        constants = await constants_of(self)
        if constants is not None and (self.books is None or self.books.constants != constants):
            self.books = Books(constants)

    async def view(self, contract: str, name: str, *values: Any) -> Any:
        """What a view function says now. Raises UnreachableError when offline."""
        if self.node is None:
            raise UnreachableError(f"{contract}.{name} is asked of a node", remedy="leave out --offline")
        data = self.interface.call(contract, name, *values)
        call = {"to": address_of(self.deployment, contract), "data": f"0x{data.hex()}"}
        answer = await self.node.call("eth_call", [call, "latest"])
        return self.interface.result(contract, name, bytes.fromhex(answer[2:]))

    async def view_or_none(self, contract: str, name: str, *values: Any) -> Any:
        """`view`, or None when there is no such function or nobody answers: for what is only nice to know."""
        if (contract, name) not in self.interface.functions or self.node is None:
            return None
        try:
            return await self.view(contract, name, *values)
        except MurmurationError:
            return None

    async def attestors(self) -> list[tuple[str, int]] | None:
        """(address, weight) of the hub's present attestors; None when nobody can be asked."""
        found = await self.view_or_none("CheckpointHub", "attestors")
        if found is None:
            return None
        addresses, weights = found.values() if isinstance(found, dict) else found
        return list(zip(addresses, weights, strict=True))

    @cached_property
    def history(self) -> History | None:
        """The checked records of this run; None when there are none on this machine and none were named."""
        from ledger.explorer import history

        folder = self.common.records_folder()
        if folder is None:
            return None
        founder = history.founder_of(self.common.run) if self.common.run else None
        try:
            return history.open_history(folder, self.deployment.run_id, founder)
        except MurmurationError as error:
            if self.common.records is not None:
                raise
            if not isinstance(error, DataError):  # else this machine's peer is of another run
                show.remark(f"the records in {folder} cannot be used: {error}")
            return None

    @property
    def records(self) -> History:
        """`history`, which there must be. Raises DataError."""
        if self.history is None:
            raise DataError(
                "this needs a peer's records", remedy="give --records a peer's data folder, or a file of them"
            )
        return self.history

    @cached_property
    def epochs(self) -> list[facts.Epoch]:
        """Checkpoints that stand, by number."""
        return facts.standing(facts.epochs(self.index))

    def epoch(self, number: int) -> facts.Epoch:
        """A checkpoint that stands. Raises DataError when there is none of this number."""
        for epoch in self.epochs:
            if epoch.number == number:
                return epoch
        reach = f"the last one is {self.epochs[-1].number}" if self.epochs else "there is none yet"
        raise DataError(f"epoch {number} has no checkpoint; {reach}", remedy="contribution-explorer epochs lists them")

    def tally(self, epoch: int) -> EpochTally | None:
        """Everybody's points and rewards after an epoch, recomputed from records; None without records or constants."""
        from ledger.explorer.recompute import fees_of

        if self.history is None or self.books is None or epoch < 1:
            return None
        if self.books.constants.last_round(epoch) > self.history.chain.head.round:
            return None
        return self.books.tally(self.history.chain, epoch, fees_of(self))

    def refresh(self) -> None:
        """Look at records and epochs anew: for commands that stay open."""
        self.__dict__.pop("epochs", None)
        if self.history is None:
            self.__dict__.pop("history", None)
        else:
            self.__dict__["history"] = self.history.refreshed()


def open_session(common: Common) -> Session:
    """Deployment, index and node of these options; nothing is asked yet. Raises ConfigError, StorageError."""
    found = wiring.find_deployment(common.deployment)
    deployment = found.deployment
    if common.run is not None:
        wiring.check_manifest(common.run, deployment)
    name = f"{deployment.chain_id}-{address_of(deployment, 'CheckpointHub')[2:12]}.db"
    node = None if common.offline else wiring.connect(common.rpc or deployment.rpc, deployment)
    events = wiring.interface(wiring.INDEXED)
    index = Index(common.index or cache_folder() / name, deployment, events)
    return Session(common, found, wiring.interface(), events, node, index)


def with_session(common: Common | None, work: Callable[[Session], Awaitable[T]], *, sync: bool = True) -> T:
    """Open a session, bring its index up to date, do the work, close."""
    session = open_session(common or Common())

    async def run() -> T:
        try:
            if sync:
                await session.sync()
                await session.learn()
            return await work(session)
        finally:
            if session.node is not None:
                await session.node.close()

    try:
        return asyncio.run(run())
    finally:
        session.index.close()
