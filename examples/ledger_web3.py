"""A run's contracts through web3.py: where the hub is, its attestors and last checkpoints, what an account has claimed.

contribution-explorer devnet up --data-dir chain
python examples/ledger_web3.py chain/devnet.json 0x…
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from dht.errors import MurmurationError
from ledger.chain.deploy import UNIT
from ledger.chain.deployments import Deployment
from ledger.chain.web3_provider import connected

MOST_BLOCKS = 2_000


async def show(file: Path, account: str) -> None:
    """Print it. Raises ConfigError, UnreachableError, IncompatibleRunError."""
    deployment = Deployment.load(file)
    async with connected(deployment) as run:
        hub, pool, token = (run.contracts[name] for name in ("CheckpointHub", "RewardPool", "Token"))
        epoch, _, last_round, fork_nonce = await hub.functions.head().call()
        print(f"epoch {epoch} up to round {last_round}, fork nonce {fork_nonce}")
        for attestor, weight in zip(*await hub.functions.attestors().call(), strict=True):
            print(f"attestor {attestor} of weight {weight}")
        first = max(deployment.block, await run.web3.eth.block_number - MOST_BLOCKS)
        for event in await hub.events.CheckpointProposed.get_logs(from_block=first):
            header = event["args"]["header"]
            print(
                f"checkpoint {header['epoch']}: {header['peers']} peers, {header['tokens']} tokens, model root", end=" "
            )
            print(header["modelRoot"].hex())
        claimed = await pool.functions.claimed(run.web3.to_checksum_address(account)).call()
        print(f"{account} has claimed {claimed / UNIT:g} {await token.functions.symbol().call()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("deployment", type=Path, help="devnet.json, or the run's deployment file")
    parser.add_argument("account", help="a peer's key address")
    given = parser.parse_args()
    try:
        asyncio.run(show(given.deployment, given.account))
    except MurmurationError as error:
        parser.exit(error.exit_code, f"{error}\n")
