"""Gas of what the ledger does, as real transactions on anvil.

Steady state: the ring of checkpoints is warm and whoever is paid for a report holds tokens already, unless a row says
otherwise. A tally of n accounts is stood for by a leaf and random siblings, as many as n leaves give: to a contract
it is the same.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from eth_abi.abi import encode
from eth_utils.crypto import keccak

from averaging.messages import Roster, Seat, SumHashes, Vote
from benchmarks.contracts import RUN, UNIT, Deployment, Key, Receipt, Settings, reverted, signed
from dht.envelope import seal
from dht.identity import Identity
from ledger.build import MODULES, install

AIMS = {
    "checkpoint_3": 85_000,
    "checkpoint_7": 110_000,
    "checkpoint_16": 160_000,
    "enrol": 115_000,
    "claim_10k": 110_000,
    "claim_1m": 120_000,
    "slash_equivocation": 120_000,
}
KEYS = [Key(f"attestor {i}") for i in range(64)]


class Anvil(Deployment):
    """The contracts on an anvil."""

    def __init__(self, url: str) -> None:
        self.url = url
        super().__init__(self.rpc("eth_accounts"), int(self.rpc("eth_chainId"), 16))

    def rpc(self, method: str, *params: Any) -> Any:
        """One JSON-RPC call. Raises RevertedError when that is the answer, else RuntimeError."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = json.load(answer)
        if "error" in content:
            data = content["error"].get("data")
            raise reverted(bytes.fromhex(data[2:])) if data else RuntimeError(f"{method}: {content['error']}")
        return content["result"]

    def transact(self, sender: str, to: str | None, data: bytes) -> Receipt:
        """Send it and read the receipt; what reverts is asked for its reason."""
        transaction = {"from": sender, "gas": hex(16_000_000), "data": "0x" + data.hex()} | ({"to": to} if to else {})
        name = self.rpc("eth_sendTransaction", transaction)
        self.rpc("evm_mine")
        receipt = self.rpc("eth_getTransactionReceipt", name)
        if int(receipt["status"], 16) != 1:
            self.rpc("eth_call", transaction, "latest")
            raise RuntimeError("reverted, but not when asked again")
        return Receipt(int(receipt["gasUsed"], 16), created=receipt["contractAddress"] or "")

    def view(self, to: str, data: bytes) -> bytes:
        """An eth_call."""
        return bytes.fromhex(self.rpc("eth_call", {"to": to, "data": "0x" + data.hex()}, "latest")[2:])


@contextmanager
def anvil() -> Iterator[Anvil]:
    """A fresh chain on a free port of this machine."""
    install()
    binary = MODULES / "@foundry-rs" / "anvil-linux-amd64" / "bin" / "anvil"
    command = [str(binary), "--host", "127.0.0.1", "--port", "0", "--no-mining", "--hardfork", "prague"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            listening = next((line for line in process.stdout if line.startswith("Listening on ")), "")
            if not listening:
                raise RuntimeError("anvil ended before it listened")
            yield Anvil("http://" + listening.split()[-1])
        finally:
            process.kill()


def measure() -> list[dict[str, Any]]:
    """Each operation, the gas of its transaction, and what it should cost at most."""
    with anvil() as chain:
        return [{"operation": name, "gas": receipt.gas, "aim": AIMS.get(name)} for name, receipt in _operations(chain)]


def _operations(chain: Anvil) -> Iterator[tuple[str, Receipt]]:
    for name, receipt in chain.found(KEYS[:3], Settings()).items():
        yield f"deploy_{name}", receipt
    yield from _checkpoints(chain)
    yield from _staking(chain)
    yield from _claims(chain)
    yield from _slashes(chain)


def _checkpoints(chain: Anvil) -> Iterator[tuple[str, Receipt]]:
    chain.propose(KEYS[:3])
    yield "checkpoint_3_cold_ring", chain.propose(KEYS[:3])
    for _ in range(64):
        chain.propose(KEYS[:3])
    yield "checkpoint_3", chain.propose(KEYS[:3])
    yield "checkpoint_3_million_peers", chain.propose(KEYS[:3], peers=1_000_000)
    before = 3
    for count in (7, 16, 32, 64):
        yield f"rotate_{before}_to_{count}", _rotate(chain, before, count)
        yield f"checkpoint_{count}", chain.propose(KEYS[:count])
        before = count
    _rotate(chain, 64, 3)


def _rotate(chain: Anvil, before: int, count: int) -> Receipt:
    addresses, weights = [key.address for key in KEYS[:count]], [1] * count
    digest = keccak(encode(["address[]", "uint16[]"], [addresses, weights]))
    values = {"runId": RUN, "nonce": chain.call("CheckpointHub", "rotationNonce"), "attestors": digest}
    signatures = signed(KEYS[:before], chain.digest("Rotation", values))
    return chain.send("CheckpointHub", "rotate", addresses, weights, *signatures)


def _staking(chain: Anvil) -> Iterator[tuple[str, Receipt]]:
    for account in (1, 2, 3):
        chain.send("Token", "transfer", chain.accounts[account], 1000 * UNIT)
        chain.send("Token", "approve", chain.at["PeerRegistry"], 2**256 - 1, sender=account)
        binding = chain.binding(KEYS[account], account)
        receipt = chain.send("PeerRegistry", "enrol", *binding, 100 * UNIT, RUN, sender=account)
    yield "enrol", receipt
    yield "add_stake", chain.send("PeerRegistry", "addStake", UNIT, sender=3)
    yield "request_unbond", chain.send("PeerRegistry", "requestUnbond", UNIT, sender=3)
    binding = chain.binding(Key("another"), 3)
    yield "rotate_key", chain.send("PeerRegistry", "rotateKey", *binding, sender=3)
    chain.rpc("evm_increaseTime", Settings().unbond_delay)
    yield "withdraw", chain.send("PeerRegistry", "withdraw", sender=3)


def _claims(chain: Anvil) -> Iterator[tuple[str, Receipt]]:
    chain.send("Token", "approve", chain.at["RewardPool"], 2**256 - 1)
    chain.send("RewardPool", "payUsage", RUN, UNIT)
    yield "pay_usage", chain.send("RewardPool", "payUsage", RUN, UNIT)
    for peers, name in ((100, "100"), (10_000, "10k"), (1_000_000, "1m")):
        for again, suffix in ((1, ""), (2, "_again")):
            # What it takes to mint for all others is in a row of its own.
            _claim(chain, peers, f"another {peers}", 1, mint=True)
            yield f"claim_{name}{suffix}", _claim(chain, peers, f"account {peers}", again)
    yield "claim_1m_and_mint", _claim(chain, 1_000_000, "one that mints", 1, mint=True)


def _claim(chain: Anvil, peers: int, label: str, times: int, *, mint: bool = False) -> Receipt:
    """A new checkpoint, and a claim of `times` units against it; or of one more than the pool has."""
    account = Key(label).address
    paid = chain.call("RewardPool", "claimed", account)
    balance = chain.call("Token", "balanceOf", chain.at["RewardPool"])
    cumulative = paid + balance + UNIT if mint else times * UNIT
    root, proof = _tally(account, cumulative, peers)
    chain.propose(KEYS[:3], tallyRoot=root)
    return chain.send("RewardPool", "claim", chain.call("CheckpointHub", "head")[0], account, cumulative, proof)


def _tally(account: str, cumulative: int, peers: int) -> tuple[bytes, list[bytes]]:
    """Root of a tree as deep as one of `peers` leaves, and the proof of one account."""
    node = keccak(keccak(encode(["address", "uint256"], [account, cumulative])))
    proof = [os.urandom(32) for _ in range(math.ceil(math.log2(peers)))]
    for sibling in proof:
        node = keccak(min(node, sibling) + max(node, sibling))
    return node, proof


def _slashes(chain: Anvil) -> Iterator[tuple[str, Receipt]]:
    # The first report also opens the account of what waits to be burned.
    for reporter, suffix in ((2, "_first_ever"), (2, ""), (9, "_new_reporter")):
        header = chain.next_header(epoch=1000 + len(suffix), cumulativeReward=1)
        pair = [header, header | {"dataRoot": bytes(32)}]
        signatures = [word for lie in pair for word in KEYS[1].compact(chain.digest("Checkpoint", lie))]
        arguments = [tuple(lie.values()) for lie in pair]
        receipt = chain.send("Slashing", "reportCheckpoints", *arguments, signatures, sender=reporter)
        yield f"slash_equivocation{suffix}", receipt
    yield "burn", chain.send("PeerRegistry", "burn")
    liar = Identity(KEYS[2].secret)
    seats = [Seat(Identity.generate().peer_id, bytes(32), 100) for _ in range(64)]
    lies: dict[str, list[object]] = {
        "votes": [Vote(RUN, 3, survivors, RUN) for survivors in (5, 7)],
        "rosters_64": [Roster(7, 0, RUN, tuple(listed)) for listed in (seats, seats[::-1])],
        "sums_64": [SumHashes(RUN, tuple(range(64)), (RUN,) * 63 + (last,)) for last in (RUN, bytes(32))],
    }
    for name, messages in lies.items():
        sealed = [seal(liar, RUN, 7, message) for message in messages]
        signatures = [word for envelope in sealed for word in (envelope.signature[:32], envelope.signature[32:])]
        bodies = [envelope.body for envelope in sealed]
        yield (
            f"slash_{name}",
            chain.send("Slashing", "reportMessages", KEYS[2].x, KEYS[2].y, 7, *bodies, signatures, sender=1),
        )
