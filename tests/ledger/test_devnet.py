"""`devnet up`: a chain with the contracts and funded accounts, that goes on where it stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from dht.errors import ConfigError
from ledger.chain.artifacts import CONTRACTS, selector
from ledger.chain.deploy import UNIT
from ledger.chain.deployments import Deployment
from ledger.chain.rpc import RpcPool
from ledger.chain.wallet import Wallet
from ledger.devnet import PASSWORD, app, devnet
from tests.ledger.chains import anvil_binary

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", ["embedded", "anvil"])
async def test_it_goes_on_where_it_stopped(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("PATH", f"{anvil_binary().parent}:{os.environ['PATH']}")
    seen = []
    for _ in range(2):
        async with devnet(tmp_path, kind, accounts=5) as network:
            deployment = network.deployment
            assert Deployment.load(tmp_path / "devnet.json") == deployment
            assert (network.kind, set(deployment.contracts)) == (kind, set(CONTRACTS))
            async with RpcPool(deployment.rpc, deployment.chain_id) as rpc:
                for address, keystore in network.keystores.items():
                    assert Wallet.load(keystore, PASSWORD).address == address
                    balance = "0x70a08231" + address[2:].lower().rjust(64, "0")
                    call = {"to": deployment.contracts["Token"], "data": balance}
                    assert int(await rpc.call("eth_call", [call, "latest"]), 16) == 100_000 * UNIT
                    assert int(await rpc.call("eth_getBalance", [address, "latest"]), 16) > 0
                height = await rpc.call("eth_blockNumber")
            seen.append((deployment.contracts, deployment.block, list(network.keystores), height))
    assert seen[0] == seen[1]


async def test_attestors_and_run_are_taken(tmp_path):
    run, attestor = b"\x07" * 32, "0x" + "ab" * 20
    async with devnet(tmp_path, "embedded", run_id=run, attestors={attestor: 3}, accounts=5) as network:
        assert network.deployment.run_id == run
        async with RpcPool(network.deployment.rpc) as rpc:
            called = selector({"name": "attestors", "inputs": []})
            hub = network.deployment.contracts["CheckpointHub"]
            attestors = await rpc.call("eth_call", [{"to": hub, "data": "0x" + called.hex()}, "latest"])
    assert attestor[2:] in attestors


async def test_the_command_prints_json_and_stops_on_sigint(tmp_path):
    command = ["up", "--data-dir", str(tmp_path), "--chain", "embedded", "--port", "0", "--accounts", "5", "--json"]
    program = "import sys; from ledger.devnet import app; from dht.exits import run; run(app)"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    ready = json.loads(await process.stdout.readline())
    assert ready["event"] == "ready"
    assert (ready["kind"], len(ready["accounts"]), ready["password"]) == ("embedded", 5, PASSWORD)
    async with RpcPool(ready["rpc"], ready["chain_id"]) as rpc:
        assert await rpc.check() == ready["chain_id"]
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 0


@pytest.mark.parametrize("words", [["--chain", "rpc"], ["--accounts", "2"], ["--run-id", "0x12"], ["--attestor", "me"]])
def test_bad_settings_are_told(tmp_path, words):
    with pytest.raises(ConfigError):
        app(["up", "--data-dir", str(tmp_path), *words], exit_on_error=False)
    assert list(tmp_path.iterdir()) == []
