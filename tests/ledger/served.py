"""The page of `serve` over a world, and what it answers."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ledger.explorer.page import Site
from tests.ledger.test_verify import session_of
from tests.ledger.world import World


@asynccontextmanager
async def serving(world: World, folder: Path, port: int = 0) -> AsyncIterator[Site]:
    """A page that answers until the block ends."""
    session = session_of(world, folder)
    await session.sync()
    await session.learn()
    made, stop, ready = Site(session, port), asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(made.run(stop, ready.set))
    try:
        await asyncio.wait_for(ready.wait(), 20)
        yield made
    finally:
        stop.set()
        await asyncio.wait_for(task, 20)
        session.index.close()


async def get(site: Site, path: str, host: str | None = None, method: str = "GET") -> tuple[int, Any, bytes]:
    """Status, headers and body of an answer."""

    def ask() -> tuple[int, Any, bytes]:
        request = urllib.request.Request(site.url + path.lstrip("/"), method=method)
        if host is not None:
            request.add_header("Host", host)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    return await asyncio.to_thread(ask)


async def get_json(site: Site, name: str) -> Any:
    """One of the page's facts as JSON."""
    code, headers, body = await get(site, f"/api/{name}")
    assert code == 200 and headers["Content-Type"] == "application/json"
    return json.loads(body)


async def served_epoch(site: Site, number: int) -> None:
    """Wait until the page's newest epoch is this one."""
    async with asyncio.timeout(20):
        while (await get_json(site, "status"))["epoch"] != number:
            pass  # each look is an answer of the server, which goes on meanwhile
