"""Methods that move time, fees and history, under the names that anvil gives them: for throw-away networks only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ledger.embedded.chain import Chain
from ledger.embedded.jsonrpc import invalid, number_hex, quantity

MOST_MINED_AT_ONCE = 10_000


def dev_methods(chain: Chain) -> dict[str, Callable[..., Any]]:
    """Name and function of each."""
    snapshots: dict[int, int] = {}

    def mine(timestamp: Any = None) -> str:
        if timestamp is not None:
            chain.set_next_timestamp(quantity(timestamp, "timestamp"))
        chain.mine()
        return "0x0"

    def mine_many(blocks: Any = 1, interval: Any = 0) -> None:
        count, seconds = quantity(blocks, "blocks"), quantity(interval, "interval")
        if count > MOST_MINED_AT_ONCE:
            raise invalid(f"at most {MOST_MINED_AT_ONCE} blocks at once")
        for at in range(count):
            if at and seconds:
                chain.set_next_timestamp(chain.head.timestamp + seconds)
            chain.mine()

    def snapshot() -> str:
        snapshots[len(snapshots) + 1] = chain.head.number
        return number_hex(len(snapshots))

    def revert(snapshot_id: Any) -> bool:
        wanted = quantity(snapshot_id, "snapshot id")
        number = snapshots.get(wanted)
        if number is None or number > chain.head.number:
            return False
        chain.take_back(number)
        for later in [found for found in snapshots if found >= wanted]:
            snapshots[later] = MOST_NUMBER
        return True

    def reorg(depth: Any, blocks: Any = ()) -> None:
        """Replace the newest blocks by empty ones."""
        count = quantity(depth, "depth")
        if blocks:
            raise invalid("only empty blocks can take the place of those removed")
        if not 0 < count <= chain.head.number:
            raise invalid(f"depth must be 1 to {chain.head.number}")
        chain.take_back(chain.head.number - count)
        for _ in range(count):
            chain.mine_empty()

    def set_automine(on: Any) -> bool:
        chain.automine = bool(on)
        if chain.automine:
            chain.mine_waiting()
        return True

    def next_base_fee(fee: Any) -> None:
        chain.forced_base_fee = quantity(fee, "base fee")

    return {
        "evm_mine": mine,
        "anvil_mine": mine_many,
        "evm_snapshot": snapshot,
        "evm_revert": revert,
        "anvil_reorg": reorg,
        "evm_setAutomine": set_automine,
        "evm_increaseTime": lambda seconds: chain.advance(quantity(seconds, "seconds")),
        "evm_setNextBlockTimestamp": lambda at: chain.set_next_timestamp(quantity(at, "timestamp")),
        "anvil_setNextBlockBaseFeePerGas": next_base_fee,
    }


MOST_NUMBER = 2**63
"""A block that no chain reaches: a snapshot that was used up."""
