"""What the indexed events say: epochs, peers, slashes, usage. Plain rows out of an index; nothing here asks a node."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dht.errors import ProtocolError
from dht.identity import PeerId
from ledger.checkpoint import Checkpoint
from ledger.indexer.abi import snake
from ledger.indexer.store import Index

_PEER_ID_HEADER = bytes([0x00, 0x25, 0x08, 0x02, 0x12, 0x21])  # identity multihash of a secp256k1 public key
_MEMBERS = tuple(member.partition(" ")[2] for member in Checkpoint.TYPE[len("Checkpoint(") : -1].split(","))


@dataclass(frozen=True)
class Epoch:
    """A checkpoint that was proposed. Times in Unix seconds; `status` is how final its block is."""

    number: int
    hash: bytes
    header: Checkpoint
    bitmap: int
    active_at: int
    proposed_at: int
    block: int
    log_index: int
    tx: str
    status: str
    rolled_back: bool = False

    def state(self, now: float) -> str:
        """`pending` while it may still be rolled back, then `active`, or `rolled back`."""
        return "rolled back" if self.rolled_back else "active" if now >= self.active_at else "pending"

    def signers(self) -> list[int]:
        """Indices of the attestors that signed it."""
        return [place for place in range(self.bitmap.bit_length()) if self.bitmap >> place & 1]

    def as_json(self, now: float) -> dict[str, Any]:
        """All of it, hashes as 0x text, the reward as decimal text."""
        header = self.header
        return {
            "epoch": self.number,
            "state": self.state(now),
            "status": self.status,
            "hash": f"0x{self.hash.hex()}",
            "parent": f"0x{header.parent.hex()}",
            "first_round": header.first_round,
            "last_round": header.last_round,
            "model_root": f"0x{header.model_root.hex()}",
            "data_root": f"0x{header.data_root.hex()}",
            "tally_root": f"0x{header.tally_root.hex()}",
            "cumulative_reward": str(header.cumulative_reward),
            "peers": header.peers,
            "tokens": header.tokens,
            "fork_nonce": header.fork_nonce,
            "signers": self.signers(),
            "proposed_at": self.proposed_at,
            "active_at": self.active_at,
            "block": self.block,
            "tx": self.tx,
        }


def epochs(index: Index) -> list[Epoch]:
    """All checkpoints in the order of the chain, those that were rolled back included and marked."""
    undone = [(row["block"], row["log_index"], row["epoch"]) for row in index.events("CheckpointRolledBack")]
    found = []
    for row in index.events("CheckpointProposed"):
        place = (row["block"], row["log_index"])
        gone = any(place < (block, log_index) and row["epoch"] >= epoch for block, log_index, epoch in undone)
        values = [
            _bytes(v) if str(v).startswith("0x") else int(v)
            for v in (row[f"header_{snake(name)}"] for name in _MEMBERS)
        ]
        found.append(
            Epoch(
                row["epoch"],
                _bytes(row["hash"]),
                Checkpoint(*values),  # type: ignore[arg-type]
                int(row["bitmap"]),
                int(row["active_at"]),
                row["timestamp"],
                row["block"],
                row["log_index"],
                row["tx"],
                row["status"],
                gone,
            )
        )
    return found


def standing(found: Iterable[Epoch]) -> list[Epoch]:
    """Those that were not rolled back, by number."""
    return sorted((epoch for epoch in found if not epoch.rolled_back), key=lambda epoch: epoch.number)


def attestors_at(index: Index, epoch: Epoch, now: Sequence[tuple[str, int]] | None) -> list[tuple[str, int]] | None:
    """(address, weight) of the attestors when an epoch was proposed; None when neither events nor `now` say.

    `now` is the hub's present set, which holds for all time if there was no rotation.
    """
    rotations = index.events("AttestorsRotated")
    before = [row for row in rotations if (row["block"], row["log_index"]) < (epoch.block, epoch.log_index)]
    if before:
        last = before[-1]
        return list(zip(json.loads(last["attestors"]), json.loads(last["weights"]), strict=True))
    return list(now) if now is not None and not rotations else None


@dataclass
class Enrolment:
    """What the registry's events say of one wallet. Amounts in units of 1e-18 tokens."""

    wallet: str
    key: str
    peer: PeerId | None
    stake: int
    metadata: str
    since: int
    unbonding: int = 0
    unlock_at: int = 0
    slashed: int = 0
    former_keys: list[str] = field(default_factory=list)


def enrolments(index: Index) -> dict[str, Enrolment]:
    """Everybody who ever enrolled, by wallet, as of the newest scanned block."""
    found: dict[str, Enrolment] = {}
    for name, row in _in_order(
        index, ("Enrolled", "StakeAdded", "UnbondRequested", "Withdrawn", "KeyRotated", "MetadataSet", "Slashed")
    ):
        wallet = row["wallet"]
        if name == "Enrolled":
            peer = peer_of(row["x"], row["prefix"])
            found[wallet] = Enrolment(wallet, row["key"], peer, int(row["stake"]), row["metadata"], row["timestamp"])
        elif wallet in found:
            _apply(found[wallet], name, row)
    return found


def _apply(entry: Enrolment, name: str, row: Mapping[str, Any]) -> None:
    amount = int(row.get("amount", 0))
    if name == "StakeAdded":
        entry.stake = int(row["stake"])
    elif name == "UnbondRequested":
        entry.stake, entry.unbonding = entry.stake - amount, entry.unbonding + amount
        entry.unlock_at = int(row["unlock_at"])
    elif name == "Withdrawn":
        entry.unbonding = max(0, entry.unbonding - amount)
    elif name == "KeyRotated":
        entry.former_keys.append(entry.key)
        entry.key, entry.peer = row["new_key"], peer_of(row["x"], row["prefix"])
    elif name == "MetadataSet":
        entry.metadata = row["metadata"]
    elif name == "Slashed":
        entry.slashed += amount
        # The same part of what is staked and of what is unbonding; the event gives the sum.
        from_stake = amount * entry.stake // max(1, entry.stake + entry.unbonding)
        entry.stake, entry.unbonding = entry.stake - from_stake, entry.unbonding - (amount - from_stake)


def claims(index: Index) -> dict[str, int]:
    """Units claimed so far by account (key address)."""
    claimed: dict[str, int] = {}
    for row in index.events("Claimed"):
        claimed[row["account"]] = claimed.get(row["account"], 0) + int(row["amount"])
    return claimed


def slashes(index: Index) -> list[dict[str, Any]]:
    """Every slash, and what proved it: the name of the evidence, or None for a verdict."""
    proofs = {(row["tx"], row["wallet"]): row for row in index.events("EquivocationProven")}
    rows = []
    for row in index.events("Slashed"):
        proof = proofs.get((row["tx"], row["wallet"]))
        rows.append(
            {
                "time": row["timestamp"],
                "wallet": row["wallet"],
                "key": row["key"],
                "amount": str(row["amount"]),
                "reward": str(row["reward"]),
                "reporter": row["reporter"],
                "evidence": proof["evidence"] if proof else None,
                "kind": proof["kind"] if proof else None,
                "tx": row["tx"],
                "block": row["block"],
                "status": row["status"],
            }
        )
    return rows


def verdicts(index: Index, now: float) -> list[dict[str, Any]]:
    """Every verdict that was proposed: `open` during its delay, then `due`, at last `vetoed` or `executed`."""
    vetoed = {row["id"] for row in index.events("VerdictVetoed")}
    executed = {row["id"]: row for row in index.events("VerdictExecuted")}
    rows = []
    for row in index.events("VerdictProposed"):
        name, since = row["id"], int(row["executable_at"])
        done = executed.get(name)
        state = "executed" if done else "vetoed" if name in vetoed else "due" if now >= since else "open"
        rows.append(
            {"id": name, "state": state, "key": row["key"], "bps": int(row["bps"]), "epoch": int(row["epoch"])}
            | {"evidence": row["evidence"], "time": row["timestamp"], "executable_at": since}
            | {"wallet": done and done["wallet"], "amount": done and str(done["amount"])}
            | {"tx": row["tx"], "block": row["block"], "status": row["status"]}
        )
    return rows


def usage(index: Index) -> list[dict[str, Any]]:
    """Every usage fee and where its parts went."""
    parts = ("amount", "contributors", "data_providers", "attestors", "treasury")
    return [
        {"time": row["timestamp"], "payer": row["payer"], "model": row["model"]}
        | {part: str(row[part]) for part in parts}
        | {"tx": row["tx"], "block": row["block"], "status": row["status"]}
        for row in index.events("UsagePaid")
    ]


def peer_of(x: str, prefix: int) -> PeerId | None:
    """The peer id of a registered key; None for what is no compressed point's prefix."""
    try:
        return PeerId(_PEER_ID_HEADER + bytes([prefix]) + _bytes(x))
    except (ProtocolError, ValueError):
        return None


def _in_order(index: Index, names: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    rows = [(name, row) for name in names for row in index.events(name)]
    return sorted(rows, key=lambda entry: (entry[1]["block"], entry[1]["log_index"]))


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])
