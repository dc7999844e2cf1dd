"""Nodes that fail as told: JSON-RPC over HTTP in front of one chain, with a URL of its own for each peer."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from aiohttp import web


@dataclass
class Hold:
    """A peer waits for the answer to its next call of `method`, which the chain got ("after") or not, and gets none."""

    method: str
    when: Literal["before", "after"]
    caught: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    answer: dict[str, object] = field(default_factory=dict)
    """What the chain said, if it was asked."""


class Gateway:
    """Passes calls on to the node at `target`. `down`: nobody gets an answer.

    `answered` counts calls by peer and method, `dropped` those without an answer by peer.
    """

    def __init__(self, target: str) -> None:
        self.target, self.base = target, ""
        self.down = False
        self.answered: Counter[tuple[int, str]] = Counter()
        self.dropped: Counter[int] = Counter()
        self.holds: dict[int, Hold] = {}
        self._session: aiohttp.ClientSession

    def url(self, peer: int) -> str:
        """Where a peer finds its node."""
        return f"{self.base}/{peer}"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Gateway]:
        """Serve on a free port of 127.0.0.1."""
        app = web.Application()
        app.router.add_post("/{peer}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as self._session:
            await runner.setup()
            try:
                site = web.TCPSite(runner, "127.0.0.1", 0)
                await site.start()
                self.base = "http://{}:{}".format(*runner.addresses[0][:2])
                yield self
            finally:
                for hold in self.holds.values():
                    hold.done.set()
                await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        peer, body = int(request.match_info["peer"]), await request.read()
        if self.down:
            return self._drop(request, peer)
        hold, method = self.holds.get(peer), json.loads(body)["method"]
        if hold is not None and (hold.caught.is_set() or method != hold.method):
            hold = None
        if hold is not None and hold.when == "before":
            hold.caught.set()
            await hold.done.wait()
            return self._drop(request, peer)
        async with self._session.post(self.target, data=body) as response:
            answer = await response.read()
        self.answered[peer, method] += 1
        if hold is not None:
            hold.answer = json.loads(answer)
            hold.caught.set()
            await hold.done.wait()
            return self._drop(request, peer)
        return web.Response(body=answer, content_type="application/json")

    def _drop(self, request: web.Request, peer: int) -> web.StreamResponse:
        """The connection breaks."""
        self.dropped[peer] += 1
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=503)
