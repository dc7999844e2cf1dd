"""A TCP proxy in front of a peer: what goes through can be delayed, capped, stalled, or cut, in each direction.

The peer listens on a port of its own and announces the proxy's. libp2p's traffic is opaque to it; a connection that
is cut looks like a host that went away.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

_READ = 1 << 16


@dataclass
class Way:
    """One direction. `delay` in seconds, `rate` in bytes per second (0: as fast as it goes)."""

    delay: float = 0.0
    rate: float = 0.0
    open: asyncio.Event = field(default_factory=asyncio.Event)
    carried: int = 0
    held: int = 0
    """Reads that waited because this way was stalled."""


class Proxy:
    """Listens on `port` of 127.0.0.1 and forwards to `target`. Faults may be set from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target: int) -> None:
        self.target, self._loop = target, loop
        self.inward, self.outward = Way(), Way()
        self.connections = self.cuts = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

    async def serve(self) -> None:
        """Begin to accept."""
        self.inward.open.set()
        self.outward.open.set()
        self._server = await asyncio.start_server(self._accept, sock=self._socket)

    async def close(self) -> None:
        """End everything."""
        self._server.close()
        await self._cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Close every connection that is open now."""
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(10)

    def stall(self, *ways: Way) -> None:
        """Carry nothing more on these ways, with connections open, until `flow`."""
        for way in ways or (self.inward, self.outward):
            self._loop.call_soon_threadsafe(way.open.clear)

    def flow(self) -> None:
        """Carry again what waits."""
        for way in (self.inward, self.outward):
            self._loop.call_soon_threadsafe(way.open.set)

    async def _cut(self) -> None:
        for writer in list(self._open):
            self.cuts += 1
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self.connections += 1
        self._open |= {writer, far_writer}
        pumps = [self._pump(reader, far_writer, self.inward), self._pump(far_reader, writer, self.outward)]
        tasks = [asyncio.create_task(pump) for pump in pumps]
        self._tasks.update(tasks)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.difference_update(tasks)
        self._open -= {writer, far_writer}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        """Carry one direction. A delay holds each piece back but does not add up over pieces."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)

        async def deliver() -> None:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if not way.open.is_set():
                    way.held += 1
                    await way.open.wait()
                if not data:
                    writer.close()
                    return
                way.carried += len(data)  # first: whoever gets the data may look at once
                writer.write(data)
                await writer.drain()
                if way.rate:
                    await asyncio.sleep(len(data) / way.rate)

        delivering = asyncio.create_task(deliver())
        try:
            with suppress(OSError):
                while data := await reader.read(_READ):
                    await waiting.put((self._loop.time() + way.delay, data))
            await waiting.put((self._loop.time() + way.delay, b""))
            with suppress(OSError):
                await delivering
        finally:
            delivering.cancel()
            writer.transport.abort()


class Proxies:
    """Proxies on an event loop in a thread of their own; `with` ends them all."""

    def __init__(self) -> None:
        self.all: list[Proxy] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Proxies:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self.all:
            self._call(proxy.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def before(self, target: int) -> Proxy:
        """A new proxy in front of a port of 127.0.0.1."""

        async def make() -> Proxy:
            proxy = Proxy(self._loop, target)
            await proxy.serve()
            return proxy

        proxy: Proxy = self._call(make())
        self.all.append(proxy)
        return proxy

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody used a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
