"""Following the chain: range after range into the index, and back to the common ancestor when it was reorganised.

What is read in several calls may be torn by a reorganisation between them. So a range counts only if the header of its
last block is the same before and after, the headers in it are linked to each other and to the block before, and every
log is in one of these very blocks; else it is read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dht.errors import MurmurationError, UnreachableError
from ledger.indexer.abi import Interface
from ledger.indexer.node import Block, Node, address_of, block_at, tagged, too_many
from ledger.indexer.store import KEPT_BLOCKS, Happened, Index

MOST_BLOCKS = 2000
"""Blocks in one range, at first; less where the node says that these are too many."""
_AT_ONCE = 32
_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class Progress:
    """After one step: the newest scanned block, the chain's head, blocks and events added, blocks undone."""

    block: int
    head: int
    added: int
    events: int
    undone: int

    @property
    def behind(self) -> int:
        """Blocks still to be scanned."""
        return max(0, self.head - self.block)


class _MovedError(Exception):
    """The chain was reorganised while a range was read."""


class Indexer:
    """Brings an index up to a chain's head, however often it is stopped, and whatever the chain takes back."""

    def __init__(self, node: Node, index: Index, interface: Interface, *, span: int = MOST_BLOCKS) -> None:
        self._node, self._index, self._interface = node, index, interface
        self._first = index.deployment.block
        self._addresses = sorted(address_of(index.deployment, name) for name in interface.contracts)
        self._most = self._span = span

    async def sync(self) -> Progress:
        """Step until the head is reached; totals over all steps. Raises what the node's errors are."""
        done = await self.step()
        while done.behind:
            more = await self.step()
            added, events = done.added + more.added, done.events + more.events
            done = Progress(more.block, more.head, added, events, done.undone + more.undone)
        return done

    async def step(self) -> Progress:
        """Scan one range, or only look whether what was scanned still stands. Raises UnreachableError and others."""
        for _ in range(_ATTEMPTS):
            try:
                return await self._step()
            except _MovedError:
                continue
        raise UnreachableError(
            "the chain changes faster than it can be read", remedy="use one node's URL instead of a balancer's, or wait"
        )

    async def _step(self) -> Progress:
        head = await block_at(self._node, "latest")
        if head is None:
            raise UnreachableError("the node has no blocks yet", remedy="wait until it has synchronised")
        before = self._index.last()
        ancestor = await self._ancestor(before)
        place = ancestor.number if ancestor else self._first - 1
        undone = before.number - place if before else 0
        blocks: Sequence[Block] = ()
        events: list[Happened] = []
        safe, finalized = await tagged(self._node, "safe"), await tagged(self._node, "finalized")
        if head.number > place:
            last = min(head.number, place + self._span)
            dense = max(finalized or 0, head.number - KEPT_BLOCKS) + 1
            try:
                blocks, events = await self._range(ancestor, place + 1, last, dense)
            except MurmurationError as error:
                if not too_many(error) or last == place + 1:
                    raise
                self._span = max(1, (last - place) // 2)
                return await self._step()
            self._span = min(self._most, self._span + self._span // 4 + 1)
        if undone or blocks:
            self._index.write(place, blocks, events)
        self._index.mark(safe, finalized)
        reached = blocks[-1].number if blocks else place
        return Progress(reached, head.number, reached - place, len(events), undone)

    async def _ancestor(self, last: Block | None) -> Block | None:
        """The newest scanned block that is still in the chain; None when nothing is left of what was scanned."""
        if last is None or await self._stands(last):
            return last
        kept = self._index.blocks()
        # Blocks stand up to some place and not after it: bisect, for a chain may have been taken far back.
        low, high = -1, len(kept) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if await self._stands(kept[middle]) else (low, middle)
        return kept[low] if low >= 0 else None

    async def _stands(self, block: Block) -> bool:
        found = await block_at(self._node, block.number)
        return found is not None and found.hash == block.hash

    async def _range(
        self, ancestor: Block | None, first: int, last: int, dense: int
    ) -> tuple[list[Block], list[Happened]]:
        """Headers and events from `first` to `last`: all headers from `dense` on, before it only where something is."""
        end = await block_at(self._node, last)
        criteria = {"fromBlock": hex(first), "toBlock": hex(last), "address": self._addresses}
        logs = await self._node.call("eth_getLogs", [criteria])
        numbers = {first, last, *range(max(first, dense), last + 1), *(int(log["blockNumber"], 16) for log in logs)}
        blocks = await self._headers(sorted(number for number in numbers if first <= number <= last))
        _check_links(ancestor, blocks, end)
        events = self._read(logs, {block.number: block.hash for block in blocks})
        return blocks, events

    async def _headers(self, numbers: Sequence[int]) -> list[Block]:
        blocks: list[Block] = []
        for start in range(0, len(numbers), _AT_ONCE):
            wanted = numbers[start : start + _AT_ONCE]
            for block in await asyncio.gather(*(block_at(self._node, number) for number in wanted)):
                if block is None:
                    raise _MovedError
                blocks.append(block)
        return blocks

    def _read(self, logs: Sequence[dict[str, Any]], hashes: dict[int, str]) -> list[Happened]:
        events = []
        for log in logs:
            number = int(log["blockNumber"], 16)
            if log.get("removed") or hashes.get(number) != log["blockHash"]:
                raise _MovedError
            if (read := self._interface.read_log(log)) is not None:
                entry, values = read
                place = int(log["logIndex"], 16)
                events.append(Happened(number, place, log["transactionHash"], log["address"].lower(), entry, values))
        return events


def _check_links(ancestor: Block | None, blocks: Sequence[Block], end: Block | None) -> None:
    """Raises _MovedError unless neighbours are parent and child, and the last one is the block that it was before."""
    for parent, child in zip([ancestor, *blocks], blocks, strict=False):
        if parent is not None and parent.number + 1 == child.number and parent.hash != child.parent:
            raise _MovedError
    if end is None or blocks[-1] != end:
        raise _MovedError
