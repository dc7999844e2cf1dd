"""What is needed of an Ethereum node, and what its answers say: JSON-RPC, one method at a time.

https://ethereum.github.io/execution-apis/ describes the methods.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dht.errors import IncompatibleRunError, MurmurationError
from ledger.chain.deployments import Deployment

_TOO_MANY = re.compile(
    r"too many|more than \d|limit exceeded|exceeds? .*(limit|range|max)|response size|block range|range is too|"
    r"query returned|too large|max(imum)? .*(logs|blocks|results)",
    re.IGNORECASE,
)


class Node(Protocol):
    """Whoever answers JSON-RPC: one URL, a pool of them, or a chain in memory."""

    async def call(self, method: str, params: Sequence[Any]) -> Any:
        """The result. Raises one of the project's errors: UnreachableError, or what the node refused."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block's header, as far as it matters here. `timestamp` in Unix seconds."""

    number: int
    hash: str
    parent: str
    timestamp: int


def address_of(deployment: Deployment, contract: str) -> str:
    """Lower-case address of a contract. Raises IncompatibleRunError when the deployment has none of this name."""
    try:
        return deployment.contracts[contract].lower()
    except KeyError:
        raise IncompatibleRunError(
            f"the deployment has no {contract}", remedy="use the deployment file that came with the run"
        ) from None


async def block_at(node: Node, place: int | str) -> Block | None:
    """The header of a block number or tag; None when the chain does not have it."""
    found = await node.call("eth_getBlockByNumber", [hex(place) if isinstance(place, int) else place, False])
    if found is None:
        return None
    return Block(int(found["number"], 16), found["hash"], found["parentHash"], int(found["timestamp"], 16))


async def tagged(node: Node, tag: str) -> int | None:
    """Number of the `safe` or `finalized` block; None where the node knows no such thing, or does not say now."""
    try:
        found = await block_at(node, tag)
    except MurmurationError:
        return None
    return found.number if found else None


def too_many(error: MurmurationError) -> bool:
    """Whether a node refused a range of logs because it is too long or has too many of them.

    Providers agree on no code (-32005, -32602, -32000 are seen), so the words decide.
    """
    return _TOO_MANY.search(str(error)) is not None


async def check_chain(node: Node, deployment: Deployment, ours: Callable[[str, bytes], bool]) -> None:
    """Raises IncompatibleRunError when the node is of another chain, or an address has no code, or not our code.

    `ours` says whether code (as the chain has it) is that of a contract.
    """
    found = int(await node.call("eth_chainId", []), 16)
    if found != deployment.chain_id:
        raise IncompatibleRunError(
            f"the node is of chain {found}, the contracts are on chain {deployment.chain_id}",
            remedy="give --rpc the URL of a node of that chain, or another --deployment",
        )
    for name, address in deployment.contracts.items():
        code = bytes.fromhex((await node.call("eth_getCode", [address, "latest"]) or "0x")[2:])
        if not code:
            raise IncompatibleRunError(
                f"there is no contract at {address}, where {name} should be, on chain {found}",
                remedy="the chain was started anew, or the deployment file is of another one",
            )
        if not ours(name, code):
            raise IncompatibleRunError(
                f"the contract at {address} is not this version's {name}",
                remedy="use the deployment file of the run, and the version that it runs",
            )
