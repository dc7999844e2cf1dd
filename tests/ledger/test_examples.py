"""The examples do what they say."""

from __future__ import annotations

import asyncio
import os
import sys
from hashlib import sha256
from pathlib import Path

from benchmarks.ledger_run import RUN_ID, Attestors
from dht.identity import Identity
from ledger.chain.journal import Intent, Journal
from ledger.chain.rpc import RpcPool
from ledger.chain.sender import Policy, Sender
from ledger.chain.wallet import Wallet
from ledger.devnet import PASSWORD, Devnet, devnet
from ledger.eip712 import Domain
from ledger.indexer.abi import Interface
from ledger.signatures import key_address

ROOT = Path(__file__).parents[2]
KEYS = [Identity(sha256(f"example {number}".encode()).digest()) for number in range(4)]
ADDRESSES = [key_address(key.peer_id) for key in KEYS]


async def example(name: str, *arguments: object) -> tuple[int, str, str]:
    """Run a script as a user does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "examples" / name), *map(str, arguments)),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def use(network: Devnet, interface: Interface, folder: Path) -> Attestors:
    """Two checkpoints, and a claim of the first attestor's earnings."""
    deployment = network.deployment
    hub, pool = (bytes.fromhex(deployment.contracts[name][2:]) for name in ("CheckpointHub", "RewardPool"))
    attestors = Attestors(KEYS, Domain(deployment.chain_id, hub))
    journal = Journal(folder)
    async with RpcPool(deployment.rpc, deployment.chain_id) as rpc:
        wallet = Wallet.load(next(iter(network.keystores.values())), PASSWORD)
        sender = Sender(rpc, wallet, journal, Policy(poll=0.01))
        for epoch in (1, 2):
            data = interface.call("CheckpointHub", "propose", *attestors.propose().abi())
            await sender.land(Intent(f"checkpoint/{epoch}", hub, data))
            await rpc.call("evm_increaseTime", [120])
            await rpc.call("evm_mine", [])
        tree, account = attestors.tally.tree, ADDRESSES[0]
        amount = attestors.tally.leaves[account]
        claim = (2, "0x" + account.hex(), amount, list(tree.proof(account)))
        await sender.land(Intent("claim", pool, interface.call("RewardPool", "claim", *claim)))
    journal.close()
    return attestors


async def test_a_devnet_is_read_through_web3(tmp_path: Path, interface: Interface) -> None:
    weights = {"0x" + address.hex(): 1 for address in ADDRESSES}
    async with devnet(tmp_path, "embedded", run_id=RUN_ID, attestors=weights, accounts=5) as network:
        attestors = await use(network, interface, tmp_path / "journal")
        code, out, err = await example("ledger_web3.py", network.file, "0x" + ADDRESSES[0].hex())
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "epoch 2 up to round 40, fork nonce 0"
    assert [line.lower() for line in lines[1:5]] == [f"attestor {address} of weight 1" for address in weights]
    assert [line.partition(":")[0] for line in lines[5:7]] == ["checkpoint 1", "checkpoint 2"]
    assert f"4 peers, {attestors.tally.tokens} tokens" in lines[6]
    amount = attestors.tally.leaves[ADDRESSES[0]] / 10**18
    assert lines[7:] == [f"0x{ADDRESSES[0].hex()} has claimed {amount:g} MURM"]


async def test_a_run_whose_node_is_gone_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    async with devnet(tmp_path, "embedded", accounts=5) as network:
        pass
    code, out, err = await example("ledger_web3.py", network.file, "0x" + "11" * 20)
    assert (code, out) == (69, "") and "no node answers" in err and "Traceback" not in err
