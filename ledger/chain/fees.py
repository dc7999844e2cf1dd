"""What to bid for a transaction (EIP-1559), and how to outbid oneself."""

from __future__ import annotations

from dataclasses import dataclass

from dht.errors import UnreachableError
from ledger.chain.errors import RefusedError
from ledger.chain.rpc import RpcPool

GWEI = 10**9
BUMP = (9, 8)
"""A replacement bids an eighth more, in both caps: nodes ask for at least 10 %, some for 12.5 %."""


@dataclass(frozen=True, slots=True)
class Bid:
    """`tip` and `most` (tip and base fee together), in wei per gas."""

    tip: int
    most: int

    def outbid(self, market: Bid) -> Bid:
        """The least bid that replaces this one and is no lower than the market's."""
        return Bid(max(market.tip, _more(self.tip)), max(market.most, _more(self.most)))


def _more(value: int) -> int:
    return max(value + 1, -(-value * BUMP[0] // BUMP[1]))


async def market(rpc: RpcPool) -> tuple[Bid, int]:
    """What gets mined soon even if the base fee doubles, and the newest block's base fee."""
    block = await rpc.call("eth_getBlockByNumber", ["latest", False])
    if not isinstance(block, dict):
        raise UnreachableError("the node has no newest block", remedy="wait until it has synchronised")
    base = int(block.get("baseFeePerGas") or "0x0", 16)
    try:
        tip = int(await rpc.call("eth_maxPriorityFeePerGas"), 16)
    except RefusedError:
        tip = GWEI
    return Bid(tip, 2 * base + tip), base
