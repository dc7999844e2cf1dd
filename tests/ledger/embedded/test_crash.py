"""kill -9 of the chain's process, at any moment: what was answered is there, and executes to the same hashes."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import asynccontextmanager, suppress
from os import getpid
from pathlib import Path

import dht
from dht.errors import UnreachableError
from ledger.chain.rpc import RpcPool
from ledger.embedded.chain import replay
from ledger.embedded.node import FILE
from ledger.embedded.store import Genesis, Store
from tests.ledger.chains import ALICE, ALLOC, BOB, CHAIN_ID, FUNDED, START, receipt, send, signed

ROOT = Path(__file__).parents[3]
SHIM = Path(next(iter(dht.__path__))) / "die_with_parent.py"


@asynccontextmanager
async def process(folder: Path):
    """The embedded chain as a process; yields it and a pool over it. Killed at the end."""
    alloc = [f"0x{address.hex()}={FUNDED}" for address in ALLOC]
    command = [sys.executable, "-m", "ledger.embedded", str(folder), "--chain-id", str(CHAIN_ID), "--alloc", *alloc]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(SHIM), str(getpid()), *command, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(60):
            ready = json.loads(await child.stdout.readline())
        async with RpcPool([ready["rpc"]], CHAIN_ID) as rpc:
            yield child, rpc
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def check(folder: Path, name: str) -> Store:
    """The file replays to itself; returns the store."""
    store = Store(folder / FILE, Genesis(CHAIN_ID, START))
    copy = Store(folder / name, store.genesis)
    assert replay(store, copy) == store.height()
    copy.close()
    return store


async def test_blocks_survive_a_kill_between_them(tmp_path):
    seen = []
    for life in range(3):
        async with process(tmp_path) as (child, rpc):
            for nonce in range(3 * life, 3 * life + 3):
                mined = await receipt(rpc, signed(ALICE, nonce, BOB.address, value=1))
                seen.append((mined["blockNumber"], mined["blockHash"]))
            child.send_signal(signal.SIGKILL)
            assert await child.wait() == -signal.SIGKILL
        store = check(tmp_path, f"copy-{life}")
        for number, block_hash in seen:
            assert store.block(int(number, 16)).header.hash.hex() == block_hash[2:]
        store.close()


async def test_a_kill_under_load_loses_at_most_the_block_in_flight(tmp_path):
    confirmed = 0
    async with process(tmp_path) as (child, rpc):
        for nonce in range(200):
            if nonce == 30:
                # The signal falls somewhere into the blocks that follow.
                asyncio.get_running_loop().call_soon(child.kill)
            try:
                await send(rpc, signed(ALICE, nonce, BOB.address, value=1))
            except UnreachableError:
                break
            confirmed = nonce + 1
        assert await child.wait() == -signal.SIGKILL
    assert 30 <= confirmed < 200
    store = check(tmp_path, "copy")
    assert confirmed <= store.height() <= confirmed + 1
    state = store.load_state()
    store.close()
    assert state.account(bytes.fromhex(BOB.address[2:])).balance == FUNDED + store_height(state)


def store_height(state) -> int:
    """Transfers made, as the sender's nonce says."""
    return state.account(bytes.fromhex(ALICE.address[2:])).nonce


async def test_sigterm_ends_it_well(tmp_path):
    async with process(tmp_path) as (child, rpc):
        await receipt(rpc, signed(ALICE, 0, BOB.address))
        child.terminate()
        assert await child.wait() == 0
