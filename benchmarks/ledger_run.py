"""A run's ledger on a fresh chain, for the benchmarks: a node in a process of its own, contracts, signed checkpoints.

Tally, header, signatures, calldata and transactions are all made by the product's own code.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from dht.identity import Identity
from ledger.books import Contents
from ledger.build import install
from ledger.chain import anvil
from ledger.chain.deploy import UNIT, Terms, deploy
from ledger.chain.deployments import Deployment
from ledger.chain.journal import Intent, Journal
from ledger.chain.rpc import RpcPool
from ledger.chain.sender import Policy, Sender
from ledger.chain.wallet import Wallet
from ledger.chain_view import Propose
from ledger.checkpoint import NOTHING
from ledger.eip712 import Domain
from ledger.explorer.wiring import interface
from ledger.points import Row
from ledger.rewards import Constants
from ledger.signatures import key_address, pack, sign
from ledger.tally import EpochTally

Kind = Literal["embedded", "anvil"]
RUN_ID = sha256(b"benchmark").digest()
CHAIN_ID = 77_347
ROUNDS = 20
POLL = 0.05
"""Seconds between two looks for a receipt, as in a devnet."""
_WALLET = Wallet(sha256(b"benchmark wallet").digest())
_TERMS = Terms(RUN_ID, {}, _WALLET.address, _WALLET.address, window=0, min_interval=0)
_CONSTANTS = Constants(ROUNDS, _TERMS.emission, _TERMS.cap, tokens_bps=8_000, chunk_bytes=262_144)
_GAS, _TIP, _MOST = 3_000_000, 10**9, 200 * 10**9


@dataclass
class Attestors:
    """What the attestors of a run sign, epoch after epoch. They are its peers, too: work of all of them is tallied."""

    identities: Sequence[Identity]
    domain: Domain
    tally: EpochTally = field(default_factory=EpochTally)
    parent: bytes = NOTHING

    def propose(self) -> Propose:
        """The next epoch's checkpoint with the signatures of all."""
        first = self.tally.epoch * ROUNDS + 1
        rounds = [
            [
                Row(bytes(each.peer_id), 1_000 + 17 * place * number, 1 + place % 3)
                for place, each in enumerate(self.identities)
            ]
            for number in range(first, first + ROUNDS)
        ]
        self.tally = self.tally.following(rounds, 0, _CONSTANTS)
        roots = [sha256(f"{name} {first}".encode()).digest() for name in ("model", "data")]
        header = Contents(RUN_ID, self.tally, first, first + ROUNDS - 1, *roots).checkpoint(0, self.parent)
        self.parent, digest = header.hash(), header.digest(self.domain)
        signatures = {place: sign(each, digest) for place, each in enumerate(self.identities)}
        return Propose(header, *pack(signatures))


@dataclass
class Ledger:
    """A chain with a run's contracts on it, and the wallet that pays."""

    kind: Kind
    rpc: RpcPool
    deployment: Deployment
    attestors: Attestors
    journal: Journal
    sender: Sender
    wallet: Wallet = _WALLET

    def checkpoint(self) -> Intent:
        """The next checkpoint as a transaction that shall be."""
        proposal = self.attestors.propose()
        data = interface().call("CheckpointHub", "propose", *proposal.abi())
        return Intent(f"checkpoint/{proposal.header.epoch}", self.address("CheckpointHub"), data)

    def address(self, contract: str) -> bytes:
        """20 bytes."""
        return bytes.fromhex(self.deployment.contracts[contract][2:])

    def signed(self, nonce: int, receiver: bytes, data: bytes) -> bytes:
        """A raw transaction, with gas and price that suffice for anything here."""
        fees = {"maxPriorityFeePerGas": _TIP, "maxFeePerGas": _MOST, "gas": _GAS}
        fixed = {"type": 2, "chainId": CHAIN_ID, "value": 0}
        return self.wallet.sign({**fixed, **fees, "nonce": nonce, "to": receiver, "data": data})[0]

    async def nonce(self) -> int:
        """The wallet's next."""
        return int(await self.rpc.call("eth_getTransactionCount", [self.wallet.address, "latest"]), 16)

    async def send(self, raw: bytes) -> str:
        """Send it; its hash."""
        return str(await self.rpc.call("eth_sendRawTransaction", ["0x" + raw.hex()]))

    async def mined(self, tx_hash: str) -> dict[str, Any]:
        """Its receipt, once there is one. Raises RuntimeError when it failed."""
        async with asyncio.timeout(30):
            while True:
                found = await self.rpc.call("eth_getTransactionReceipt", [tx_hash])
                if found is not None:
                    break
                await asyncio.sleep(0.001)
        if int(found["status"], 16) != 1:
            raise RuntimeError(f"{tx_hash} was refused by the contract")
        return dict(found)


@asynccontextmanager
async def ledger(kind: Kind, folder: Path, attestors: int = 3) -> AsyncIterator[Ledger]:
    """A fresh chain as a process of its own, with the contracts, so many attestors of weight 1, and a full wallet."""
    identities = [Identity(sha256(f"attestor {i}".encode()).digest()) for i in range(attestors)]
    weights = {"0x" + key_address(each.peer_id).hex(): 1 for each in identities}
    terms = replace(_TERMS, attestors=weights, genesis={_WALLET.address: 1_000_000 * UNIT})
    async with _node(kind, folder / "chain") as url, RpcPool([url], CHAIN_ID) as rpc:
        journal = Journal(folder / "journal")
        try:
            sender = Sender(rpc, _WALLET, journal, Policy(poll=POLL))
            deployment = await deploy(rpc, sender, terms)
            domain = Domain(CHAIN_ID, bytes.fromhex(deployment.contracts["CheckpointHub"][2:]))
            yield Ledger(kind, rpc, deployment, Attestors(identities, domain), journal, sender)
        finally:
            journal.close()


@asynccontextmanager
async def _node(kind: Kind, folder: Path) -> AsyncIterator[str]:
    wei = 10**24
    if kind == "anvil":
        install()
        binary = anvil.find()
        assert binary is not None
        async with anvil.running(binary, chain_id=CHAIN_ID, options=["--hardfork", "prague"]) as url:
            async with RpcPool([url]) as rpc:
                await rpc.call("anvil_setBalance", [_WALLET.address, hex(wei)])
            yield url
        return
    command = ["-m", "ledger.embedded", str(folder), "--chain-id", str(CHAIN_ID), "--dev"]
    command += ["--alloc", f"{_WALLET.address}={wei}"]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield json.loads(await process.stdout.readline())["rpc"]
    finally:
        process.terminate()
        await process.wait()
