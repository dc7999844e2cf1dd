"""Golden vectors of the ledger: `python -m tests.vectors.generate_ledger` rewrites the JSON files beside it.

Bytes are in hex, integers that may exceed 2**53 in decimal text. Keys: secret i is SHA-256 of 'vector i'.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256, shake_256
from pathlib import Path
from typing import Any

from dht.identity import Identity
from dht.wire import encode
from ledger.checkpoint import NOTHING, Checkpoint, Rollback, Rotation, attestors_hash
from ledger.eip712 import Domain, Struct
from ledger.electorate import Electorate
from ledger.evidence import SignedCheckpoint, equivocation
from ledger.messages import Attestations, CheckpointStatus, RollbackSignatures, RollbackStatus
from ledger.points import Row
from ledger.rewards import Constants, largest_remainder
from ledger.signatures import key_address, pack, sign
from ledger.standard_merkle import StandardMerkleTree
from ledger.tally import EpochTally

STRUCTS = (Checkpoint, Rollback, Rotation)
HERE = Path(__file__).parent
KEYS = [Identity(sha256(b"vector %d" % i).digest()) for i in range(7)]
RUN = sha256(b"vector run").digest()
DOMAINS = [Domain(31337, bytes.fromhex("5fbdb2315678afecb367f032d93f642f64180aa3")), Domain(8453, b"\xc0" + bytes(19))]


def stream(label: str, size: int) -> bytes:
    """`size` reproducible bytes."""
    return shake_256(label.encode()).digest(size)


def plain(value: Any) -> Any:
    """A value as JSON shows it."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def signed(struct: Struct, domain: Domain) -> dict[str, Any]:
    """A struct with all that is computed from it, and signatures by the first three keys."""
    digest = struct.digest(domain)
    signatures = {index: sign(key, digest) for index, key in enumerate(KEYS[:3])}
    bitmap, rvs = pack(signatures)
    return {
        "struct": asdict(struct),
        "chain_id": domain.chain_id,
        "contract": domain.contract,
        "domain_separator": domain.separator(),
        "encoded": struct.encode(),
        "hash": struct.hash(),
        "digest": digest,
        "bitmap": bitmap,
        "rvs": rvs,
    }


def checkpoints() -> list[Checkpoint]:
    """The first checkpoint of a run, the next one, the same after a rollback, and one with every member at its most."""
    roots = [stream(f"root {number}", 32) for number in range(6)]
    first = Checkpoint(RUN, 0, 1, NOTHING, 1, 5, *roots[:3], 1250 * 10**18, 4, 81_920)
    second = Checkpoint(RUN, 0, 2, first.hash(), 6, 10, *roots[3:], 2500 * 10**18 + 1, 5, 163_840)
    again = Checkpoint(RUN, 1, 2, first.hash(), 6, 10, *roots[3:], 2500 * 10**18 + 1, 5, 163_840)
    u64, u128, ones = (1 << 64) - 1, (1 << 128) - 1, b"\xff" * 32
    return [first, second, again, Checkpoint(ones, u64, u64, ones, u64, u64, ones, ones, ones, u128, u64, u128)]


def checkpoint_vectors() -> dict[str, Any]:
    """Everything that a quorum signs, under two domains."""
    addresses = tuple(key_address(key.peer_id) for key in KEYS)
    rollbacks = [Rollback(RUN, 0, 2), Rollback(RUN, (1 << 64) - 1, (1 << 64) - 1)]
    sets = [attestors_hash(addresses[:count], range(1, count + 1)) for count in (1, 4, 7)]
    rotations = [Rotation(RUN, nonce, each) for nonce, each in enumerate(sets)]
    electorate = Electorate(addresses, (1,) * len(addresses))
    return {
        "keys": [{"peer": str(key.peer_id), "address": key_address(key.peer_id)} for key in KEYS],
        "types": {each.__name__: {"type": each.TYPE, "hash": each.type_hash()} for each in STRUCTS},
        "checkpoints": [signed(each, domain) for domain in DOMAINS for each in checkpoints()],
        "rollbacks": [signed(each, domain) for domain in DOMAINS for each in rollbacks],
        "rotations": [signed(each, domain) for domain in DOMAINS for each in rotations],
        "leaders": [electorate.leaders(each) for each in checkpoints()],
        "rollback_leaders": [electorate.rollback_leaders(each) for each in rollbacks],
    }


def merkle_vectors() -> list[dict[str, Any]]:
    """Trees of several sizes with all leaves, the root, and some proofs."""
    rows = []
    for count in (1, 2, 3, 5, 8, 13):
        leaves = [(stream(f"account {k}", 20), int.from_bytes(stream(f"amount {k}", 12), "big")) for k in range(count)]
        tree = StandardMerkleTree(leaves)
        chosen = sorted({0, count // 2, count - 1})
        proofs = [{"leaf": k, "proof": tree.proof(leaves[k][0])} for k in chosen]
        rows.append({"leaves": [list(leaf) for leaf in leaves], "root": tree.root, "proofs": proofs})
    return rows


def reward_vectors() -> dict[str, Any]:
    """Largest remainders, and a tally over four epochs: work, none but fees, work, the rest of the cap."""
    constants = Constants(2, 10**21, 2 * 10**21 + 7, 7000, 131072)
    peers = sorted(bytes(key.peer_id) for key in KEYS[:4])
    epochs: list[tuple[list[list[Row]], int]] = [
        ([[Row(peer, 1000 * k + 7, k) for k, peer in enumerate(peers)], [Row(peers[2], 40_000, 9)]], 0),
        ([[]], 3 * 10**18 + 1),
        ([[Row(peers[1], 1, 0), Row(peers[3], 2, 0)]], 10**18),
        ([[Row(peers[0], 0, 5)], [Row(peers[3], 0, 2)]], 0),
    ]
    tally, rows = EpochTally(), []
    for rounds, fees in epochs:
        tally = tally.following(rounds, fees, constants)
        row = {"rounds": [[list(each) for each in rows] for rows in rounds], "fees": fees}
        row |= {"paid": tally.paid, "emitted": tally.emitted, "carried": tally.carried}
        row |= {"added": {peer.hex(): [*_account(each)] for peer, each in tally.added.items()}}
        row |= {"cumulative": {peer.hex(): [*_account(each)] for peer, each in tally.accounts.items()}}
        rows.append({**row, "cumulative_reward": tally.cumulative_reward, "tally_root": tally.tree.root})
    splits = [(10, [1, 1, 1]), (101, [5, 0, 2, 9]), (10**27 + 1, [3, 3, 3, 7]), (2, [1, 5, 5])]
    return {
        "about": "accounts are [tokens, rounds, chunks, earned] by peer id; rows are [peer id, tokens, chunks]",
        "largest_remainder": [
            {"pot": pot, "weights": weights, "shares": largest_remainder(pot, weights)} for pot, weights in splits
        ],
        "constants": asdict(constants),
        "epochs": rows,
    }


def _account(account: Any) -> tuple[int, ...]:
    points = account.points
    return points.tokens, points.rounds, points.chunks, account.earned


def attestation_vectors() -> dict[str, Any]:
    """Frames of the messages between attestors, and a piece of evidence."""
    domain, (first, second, again, _) = DOMAINS[0], checkpoints()
    digest = first.digest(domain)
    message = Attestations(first.encode(), tuple(sign(key, digest) for key in KEYS[:3]))
    other = Checkpoint.decode(first.encode()[:-1] + b"\x01")
    one, two = (SignedCheckpoint(each, sign(KEYS[1], each.digest(domain))) for each in (first, other))
    rollback = Rollback(RUN, 1, 2)
    signatures = tuple(sign(key, rollback.digest(domain)) for key in KEYS[:3])
    return {
        "attestations": encode(message),
        "status": encode(CheckpointStatus(again.fork_nonce, second.epoch, again.hash(), 0b1111, 0b1011)),
        "rollback_status": encode(RollbackStatus(1, 3, 2, 0b0111)),
        "rollback_signatures": encode(RollbackSignatures(1, 2, signatures)),
        "accused": key_address(KEYS[1].peer_id),
        "evidence": equivocation(domain, one, two),
    }


VECTORS: dict[str, Callable[[], Any]] = {
    "checkpoint": checkpoint_vectors,
    "standard_merkle": merkle_vectors,
    "rewards": reward_vectors,
    "attestations": attestation_vectors,
}


def main() -> None:
    """Rewrite the files."""
    for name, make in VECTORS.items():
        (HERE / f"{name}.json").write_text(json.dumps(plain(make()), indent=1) + "\n")


if __name__ == "__main__":
    main()
