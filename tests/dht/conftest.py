"""Real libp2p hosts for the tests that need them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dht.host import Host
from dht.identity import Identity, PeerId

StartHost = Callable[..., Awaitable[Host]]
Until = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture
def until() -> Until:
    """`await until(condition)`: returns once it holds; TimeoutError after 20 s."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110  (for what other processes do there is no event)
                await asyncio.sleep(0.005)

    return wait


@pytest.fixture
async def start_host(tmp_path: Path) -> AsyncIterator[StartHost]:
    """`await start_host("name", **options)`: a host with an identity of that name, stopped at the end."""
    hosts: list[Host] = []

    async def start(name: str, **options: Any) -> Host:
        path = tmp_path / f"{name}.key"
        Identity.load_or_create(path)
        hosts.append(await Host.start(path, **options))
        return hosts[-1]

    yield start
    for host in hosts:
        await host.stop()


async def echo(peer: PeerId, frame: memoryview) -> Sequence[bytes]:
    """A request handler that answers what it was asked."""
    return [bytes(frame)]


async def visited(start_host: StartHost, *names: str) -> tuple[Host, list[Host], list[bytes]]:
    """A host that echoes requests, hosts of these names that are connected to it, and the frames that it got."""
    host, guests = await start_host("host"), [await start_host(name) for name in names]
    got: list[bytes] = []
    host.serve(lambda peer, frame: got.append(bytes(frame)), echo)
    for guest in guests:
        await guest.connect(host.addresses()[0])
    return host, guests, got
