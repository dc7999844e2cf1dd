"""A run's five contracts, deployed in one order from one wallet.

Their constructors need each other, so addresses are computed before anything is sent: that of a creation is the last
20 bytes of Keccak-256 over RLP(sender, nonce) (Yellow Paper, section 7). Each constructor checks how it is wired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import rlp
from eth_hash.auto import keccak

from dht.errors import ChainError, ConfigError
from ledger.chain.artifacts import CONTRACTS, Artifact, load
from ledger.chain.deployments import Deployment
from ledger.chain.journal import Intent
from ledger.chain.rpc import RpcPool
from ledger.chain.sender import Sender

UNIT = 10**18
# Whatever an earlier one is, it must not be called by a later constructor before it exists.
ORDER = ("Token", "CheckpointHub", "PeerRegistry", "RewardPool", "Slashing")
assert set(ORDER) == set(CONTRACTS)


@dataclass(frozen=True)
class Terms:
    """What a run's contracts are made with, for ever. Amounts in 1e-18 tokens, times in seconds, parts of 10,000.

    `attestors`: weight by 0x-prefixed key address. `genesis`: amount by 0x-prefixed address, minted once.
    """

    run_id: bytes
    attestors: Mapping[str, int]
    treasury: str
    data_providers: str
    name: str = "Murmuration"
    symbol: str = "MURM"
    cap: int = 1_000_000_000 * UNIT
    emission: int = 1_000 * UNIT
    genesis: Mapping[str, int] = field(default_factory=dict)
    splits: tuple[int, int, int, int] = (7_000, 1_000, 1_000, 1_000)
    """Of usage fees: contributors, data providers, attestors, treasury."""
    window: int = 3600
    min_interval: int = 60
    unbond_delay: int = 14 * 86_400
    equivocation_bps: int = 5_000
    most_verdict_bps: int = 1_000
    verdict_delay: int = 3 * 86_400
    verdict_period: int = 30 * 86_400

    def arguments(self, at: Mapping[str, str]) -> dict[str, tuple[Any, ...]]:
        """Constructor arguments of each contract, the contracts being at the addresses `at`."""
        return {
            "Token": (self.name, self.symbol, self.cap, at["RewardPool"]),
            "CheckpointHub": (
                self.run_id,
                list(self.attestors),
                list(self.attestors.values()),
                self.window,
                self.min_interval,
                at["RewardPool"],
            ),
            "PeerRegistry": (at["Token"], at["Slashing"], self.unbond_delay),
            "RewardPool": (
                at["Token"],
                at["CheckpointHub"],
                at["PeerRegistry"],
                self.treasury,
                self.data_providers,
                self.emission,
                self.splits,
                list(self.genesis),
                list(self.genesis.values()),
            ),
            "Slashing": (
                at["PeerRegistry"],
                at["CheckpointHub"],
                self.run_id,
                self.equivocation_bps,
                self.most_verdict_bps,
                self.verdict_delay,
                self.verdict_period,
            ),
        }


def created_address(sender: str, nonce: int) -> str:
    """The address of what `sender` creates with that nonce, in lower case."""
    number = nonce.to_bytes((nonce.bit_length() + 7) // 8, "big")
    return "0x" + keccak(rlp.encode([bytes.fromhex(sender[2:]), number]))[12:].hex()


async def deploy(rpc: RpcPool, sender: Sender, terms: Terms, artifacts: Sequence[Artifact] | None = None) -> Deployment:
    """Deploy what is not there yet, and check what is. Raises ConfigError, ChainError.

    The wallet must send nothing else meanwhile: the addresses follow from its nonces. Ask again after a crash, with the
    same journal: what was deployed stays, what was sent is not sent twice.
    """
    if len(terms.run_id) != 32:
        raise ConfigError("a run id has 32 bytes", remedy="take the run manifest's")
    found = {artifact.name: artifact for artifact in artifacts or [load(name) for name in ORDER]}
    chain_id = int(await rpc.call("eth_chainId"), 16)
    first = await _first_nonce(rpc, sender, f"deploy/{terms.run_id.hex()}")
    at = _places(sender.address, first)
    arguments = terms.arguments(at)
    block = None
    for name in ORDER:
        intent = Intent(f"deploy/{terms.run_id.hex()}/{first}/{name}", None, found[name].creation(*arguments[name]))
        receipt = await sender.land(intent)
        if receipt is None or receipt["contractAddress"].lower() != at[name]:
            raise ChainError(
                f"{name} is not at {at[name]}: the wallet {sender.address} has sent something else meanwhile",
                remedy="deploy again, from a wallet that does nothing else",
            )
        block = int(receipt["blockNumber"], 16) if block is None else block
        code = bytes.fromhex((await rpc.call("eth_getCode", [at[name], "latest"]))[2:])
        if not found[name].is_code(code):
            raise ChainError(f"the chain keeps other code of {name} than was sent", remedy="use another node")
    assert block is not None
    return Deployment(chain_id, at, block, tuple(rpc.urls), terms.run_id)


async def planned(rpc: RpcPool, wallet: str) -> dict[str, str]:
    """Where `deploy` would put the contracts if this wallet (0x address) did it now."""
    return _places(wallet, await _next_nonce(rpc, wallet))


def _places(wallet: str, first: int) -> dict[str, str]:
    return {name: created_address(wallet, first + index) for index, name in enumerate(ORDER)}


async def _next_nonce(rpc: RpcPool, wallet: str) -> int:
    return int(await rpc.call("eth_getTransactionCount", [wallet, "latest"]), 16)


async def _first_nonce(rpc: RpcPool, sender: Sender, prefix: str) -> int:
    """The nonce with which an earlier call began, else the wallet's next."""
    begun = sender.begun_with(prefix)
    if begun is not None:
        return begun
    return await _next_nonce(rpc, sender.address)
