"""An embedded chain as one object: folder, lock, store, chain and server together."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from dht.lock import FolderLock
from ledger.embedded.chain import Chain
from ledger.embedded.methods import Methods
from ledger.embedded.server import Server
from ledger.embedded.store import Genesis, Store

FILE = "chain.sqlite"
DEFAULT_CHAIN_ID = 77_347


@dataclass(frozen=True)
class Node:
    """A chain that is being served."""

    url: str
    chain: Chain


@asynccontextmanager
async def serving(
    folder: Path,
    *,
    chain_id: int = DEFAULT_CHAIN_ID,
    alloc: Mapping[bytes, int] | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    dev: bool = False,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Node]:
    """Open or found the chain in `folder` and serve it. `alloc` (wei per address) counts only when it is founded.

    Raises LockedError when another process serves it, IncompatibleRunError when it has another chain id, StorageError.
    """
    with FolderLock(folder):
        store = Store(folder / FILE, Genesis(chain_id, int(clock()), dict(alloc or {})))
        try:
            chain = Chain(store, clock)
            server = Server(Methods(chain, dev=dev), host, port)
            url = await server.start()
            try:
                yield Node(url, chain)
            finally:
                await server.stop()
        finally:
            store.close()
