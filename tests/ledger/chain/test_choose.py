"""Which chain it is, and anvil as a child."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from dht.errors import ConfigError, LockedError, UnreachableError
from ledger.chain import anvil
from ledger.chain.choose import CHAIN_ID, chain, decide
from ledger.chain.rpc import RpcPool
from tests.ledger.chains import ALLOC, FUNDED, anvil_binary


@pytest.fixture
def no_anvil(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(anvil, "_CONTRACTS", tmp_path)
    monkeypatch.chdir(tmp_path)


def put_anvil(folder, name=".bin/anvil"):
    binary = folder / "node_modules" / name
    binary.parent.mkdir(parents=True)
    binary.write_text("#!/bin/sh\nexit 3\n")
    binary.chmod(0o755)
    return binary


def test_given_nodes_come_first_then_anvil_then_the_embedded_chain(no_anvil, tmp_path):
    assert decide("auto", ["http://x"]) == "rpc"
    assert decide("auto", []) == "embedded"
    put_anvil(tmp_path)
    assert decide("auto", []) == "anvil"
    assert decide("embedded", ["http://x"]) == "embedded"


def test_what_is_asked_for_must_be_there(no_anvil):
    with pytest.raises(ConfigError, match="npm install"):
        decide("anvil", [])
    with pytest.raises(ConfigError, match="--rpc"):
        decide("rpc", [])


@pytest.mark.parametrize("name", [".bin/anvil", f"{anvil.PACKAGE}/bin/anvil"])
def test_where_anvil_is_found(no_anvil, tmp_path, monkeypatch, name):
    binary = put_anvil(tmp_path, name)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert anvil.find() == binary


async def test_an_anvil_that_does_not_start_is_told(tmp_path):
    with pytest.raises(UnreachableError, match="ended before it listened"):
        async with anvil.running(put_anvil(tmp_path)):
            pass


@pytest.mark.parametrize("kind", ["anvil", "embedded"])
async def test_a_chain_of_ones_own_is_kept_between_runs(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("PATH", f"{anvil_binary().parent}:{os.environ['PATH']}")
    for height in range(2):
        async with (
            chain(kind, tmp_path / "chain", alloc=ALLOC, dev=True) as running,
            RpcPool(running.urls, running.chain_id) as rpc,
        ):
            assert (running.kind, await rpc.check()) == (kind, CHAIN_ID)
            assert int(await rpc.call("eth_blockNumber"), 16) == height
            for address in ALLOC:
                assert int(await rpc.call("eth_getBalance", ["0x" + address.hex(), "latest"]), 16) == FUNDED
            await rpc.call("evm_mine")


async def test_given_nodes_are_left_alone(tmp_path):
    async with chain("auto", tmp_path, urls=["http://127.0.0.1:1"]) as running:
        assert (running.kind, running.urls, running.chain_id) == ("rpc", ("http://127.0.0.1:1",), None)
    assert list(tmp_path.iterdir()) == []


async def test_one_process_per_chain(tmp_path):
    async with chain("embedded", tmp_path):
        with pytest.raises(LockedError):
            async with chain("embedded", tmp_path):
                pass


async def test_anvil_dies_with_whoever_started_it(tmp_path):
    """A process starts anvil and is killed; the port must close."""
    import sys
    from pathlib import Path

    program = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom ledger.chain import anvil\n"
        "async def main():\n"
        "    async with anvil.running(Path(sys.argv[1])) as url:\n"
        "        print(url, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        str(anvil_binary().resolve()),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert parent.stdout is not None
    url = (await parent.stdout.readline()).decode().strip()
    async with RpcPool([url]) as rpc:
        assert await rpc.call("eth_blockNumber") == "0x0"
        parent.send_signal(signal.SIGKILL)
        await parent.wait()
        async with asyncio.timeout(30):
            while True:
                try:
                    await rpc.call("eth_blockNumber")
                except UnreachableError:
                    break
                await asyncio.sleep(0.02)
