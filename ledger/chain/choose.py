"""`--chain auto`: the given nodes, else anvil if it is found, else the embedded chain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from dht.errors import ConfigError
from ledger.chain import anvil

Kind: TypeAlias = Literal["auto", "rpc", "anvil", "embedded"]
CHAIN_ID = 77_347
"""Of chains that this machine runs itself."""


@dataclass(frozen=True)
class Running:
    """A chain to talk to. `chain_id` is None for given nodes: they are asked."""

    kind: Literal["rpc", "anvil", "embedded"]
    urls: tuple[str, ...]
    chain_id: int | None


def decide(kind: Kind, urls: Sequence[str]) -> Literal["rpc", "anvil", "embedded"]:
    """Which chain it will be. Raises ConfigError when what was asked for is not there."""
    if kind == "rpc" and not urls:
        raise ConfigError("no node is given", remedy="--rpc URL")
    if kind == "anvil" and anvil.find() is None:
        raise ConfigError("anvil is neither on PATH nor in node_modules", remedy=f"npm install {anvil.PACKAGE}")
    if kind != "auto":
        return kind
    if urls:
        return "rpc"
    return "anvil" if anvil.find() else "embedded"


@asynccontextmanager
async def chain(
    kind: Kind,
    folder: Path,
    *,
    urls: Sequence[str] = (),
    port: int = 0,
    alloc: Mapping[bytes, int] | None = None,
    dev: bool = False,
    chain_id: int = CHAIN_ID,
) -> AsyncIterator[Running]:
    """Start what `decide` says, or nothing for given nodes. `alloc`: wei per address, when a chain is founded.

    Raises ConfigError, LockedError, IncompatibleRunError, StorageError, UnreachableError.
    """
    decided = decide(kind, urls)
    if decided == "rpc":
        yield Running("rpc", tuple(urls), None)
    elif decided == "anvil":
        binary = anvil.find()
        assert binary is not None
        state = _made(folder) / "anvil.json"
        options = ["--hardfork", "prague", "--accounts", "1"]
        async with anvil.running(binary, port=port, chain_id=chain_id, state=state, options=options) as url:
            await _fund(url, alloc or {})
            yield Running("anvil", (url,), chain_id)
    else:
        from ledger.embedded.node import serving

        async with serving(folder, chain_id=chain_id, alloc=alloc, port=port, dev=dev) as node:
            yield Running("embedded", (node.url,), chain_id)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def _fund(url: str, alloc: Mapping[bytes, int]) -> None:
    """anvil takes no allocation at its start; accounts that have something keep it."""
    from ledger.chain.rpc import RpcPool

    async with RpcPool([url]) as rpc:
        for address, wei in alloc.items():
            place = "0x" + address.hex()
            if int(await rpc.call("eth_getBalance", [place, "latest"]), 16) == 0:
                await rpc.call("anvil_setBalance", [place, hex(wei)])
