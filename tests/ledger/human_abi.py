"""Contract interfaces for tests, written as Solidity writes them: what docs/ledger.md says, line by line."""

from __future__ import annotations

import re
from typing import Any

from ledger.indexer.abi import Interface

CHECKPOINT = (
    "(bytes32 runId, uint64 forkNonce, uint64 epoch, bytes32 parent, uint64 firstRound, uint64 lastRound, "
    "bytes32 modelRoot, bytes32 dataRoot, bytes32 tallyRoot, uint128 cumulativeReward, uint64 peers, uint128 tokens)"
)
CONTRACTS = {
    "Token": """
        function approve(address spender, uint256 value) returns (bool)
        function balanceOf(address account) returns (uint256)
        function allowance(address owner, address spender) returns (uint256)
        function symbol() returns (string)
        event Transfer(address indexed from, address indexed to, uint256 value)
    """,
    "PeerRegistry": """
        function enrol(bytes32 x, bytes32 y, bytes32 r, bytes32 vs, uint128 stake, bytes32 metadata)
        function addStake(uint128 amount)
        function requestUnbond(uint128 amount)
        function withdraw()
        function walletOf(address key) returns (address)
        function peer(address wallet) returns (address key, bytes32 x, uint8 prefix, uint128 stake, uint128 unbonding, \
uint64 unlockAt, bool jailed, bytes32 metadata)
        function unbondDelay() returns (uint64)
        event Enrolled(address indexed wallet, address indexed key, bytes32 x, uint8 prefix, uint128 stake, \
bytes32 metadata)
        event StakeAdded(address indexed wallet, uint128 amount, uint128 stake)
        event UnbondRequested(address indexed wallet, uint128 amount, uint64 unlockAt)
        event Withdrawn(address indexed wallet, uint128 amount)
        event KeyRotated(address indexed wallet, address indexed oldKey, address indexed newKey, bytes32 x, \
uint8 prefix)
        event MetadataSet(address indexed wallet, bytes32 metadata)
        event Slashed(address indexed wallet, address indexed key, uint128 amount, address indexed reporter, \
uint128 reward)
    """,
    "CheckpointHub": """
        function propose(CHECKPOINT header, uint64 bitmap, bytes32[] rvs)
        function rollback(uint64 epoch, uint64 bitmap, bytes32[] rvs)
        function head() returns (uint64 epoch, bytes32 hash, uint64 lastRound, uint64 forkNonce)
        function slot(uint64 epoch) returns (bytes32 hash, bytes32 tallyRoot, uint64 epoch, uint64 activeAt, \
uint128 cumulativeReward)
        function attestors() returns (address[] attestors, uint16[] weights)
        function isActive(uint64 epoch) returns (bool)
        function window() returns (uint64)
        function minInterval() returns (uint64)
        event CheckpointProposed(uint64 indexed epoch, bytes32 indexed hash, CHECKPOINT header, uint64 bitmap, \
uint64 activeAt)
        event CheckpointRolledBack(uint64 indexed epoch, uint64 forkNonce)
        event AttestorsRotated(uint64 nonce, address[] attestors, uint16[] weights)
        error BadEpoch(uint64 epoch)
    """,
    "RewardPool": """
        function claim(uint64 epoch, address account, uint256 cumulative, bytes32[] proof)
        function claimed(address account) returns (uint256)
        function payUsage(bytes32 model, uint128 amount)
        function funded(uint64 epoch) returns (uint128)
        function emission() returns (uint128)
        event Claimed(address indexed account, address indexed recipient, uint256 amount, uint256 cumulative, \
uint64 epoch)
        event UsagePaid(address indexed payer, bytes32 indexed model, uint128 amount, uint128 contributors, \
uint128 dataProviders, uint128 attestors, uint128 treasury)
        error NothingToClaim()
    """,
    "Slashing": """
        function reportCheckpoints(CHECKPOINT first, CHECKPOINT second, bytes32[4] rvs)
        function reportMessages(bytes32 x, bytes32 y, uint64 round, bytes bodyA, bytes bodyB, bytes32[4] rs)
        event EquivocationProven(address indexed wallet, address indexed key, bytes32 indexed evidence, uint8 kind)
    """,
}


def parameters(text: str) -> list[dict[str, Any]]:
    """Entries of `type [indexed] [name], …`; a struct is `(…) name`."""
    found, depth, start = [], 0, 0
    for place, sign in enumerate(f"{text},"):
        depth += (sign == "(") - (sign == ")")
        if sign == "," and not depth:
            if part := text[start:place].strip():
                found.append(parameter(part))
            start = place + 1
    return found


def parameter(text: str) -> dict[str, Any]:
    if text.startswith("("):
        inner, _, name = text[1:].rpartition(")")
        return {"type": "tuple", "components": parameters(inner), "name": name.strip()}
    kind, *rest = text.split()
    return {"type": kind, "indexed": "indexed" in rest, "name": rest[-1] if rest and rest[-1] != "indexed" else ""}


def abi(text: str) -> list[dict[str, Any]]:
    rows = []
    for line in text.replace("CHECKPOINT", CHECKPOINT).replace("\\\n", "").strip().splitlines():
        kind, name, inputs, _, outputs = re.fullmatch(r"\s*(\w+) (\w+)\((.*?)\)( returns \((.*)\))?\s*", line).groups()  # type: ignore[union-attr]
        rows.append({"type": kind, "name": name, "inputs": parameters(inputs), "outputs": parameters(outputs or "")})
    return rows


def interface() -> Interface:
    return Interface({name: abi(text) for name, text in CONTRACTS.items()})
