"""What attestors sign: checkpoints, and the two rarer things that take the same quorum (docs/ledger.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ledger.eip712 import WORD, Struct, keccak

NOTHING = bytes(WORD)
"""The parent of the first checkpoint."""


@dataclass(frozen=True, slots=True)
class Checkpoint(Struct):
    """One epoch as the hub takes it. `epoch` counts from 1, `parent` is the hash of the checkpoint before (or zeros).

    `model_root` is the state root of the record of `last_round`, `data_root` the Merkle root over the hashes of the
    records `first_round` to `last_round`, `tally_root` the root over (key address, cumulative reward); rewards in 1e-18
    tokens. It has no block data: signatures stay good when the chain is reorganised.
    """

    TYPE: ClassVar[str] = (
        "Checkpoint(bytes32 runId,uint64 forkNonce,uint64 epoch,bytes32 parent,uint64 firstRound,uint64 lastRound,"
        "bytes32 modelRoot,bytes32 dataRoot,bytes32 tallyRoot,uint128 cumulativeReward,uint64 peers,uint128 tokens)"
    )

    run: bytes
    fork_nonce: int
    epoch: int
    parent: bytes
    first_round: int
    last_round: int
    model_root: bytes
    data_root: bytes
    tally_root: bytes
    cumulative_reward: int
    peers: int
    tokens: int

    @property
    def place(self) -> tuple[int, int]:
        """(fork nonce, epoch): an attestor signs one checkpoint there, ever."""
        return self.fork_nonce, self.epoch


@dataclass(frozen=True, slots=True)
class Rollback(Struct):
    """Remove this epoch, and later ones, from the hub while it is not active; its fork nonce rises by one."""

    TYPE: ClassVar[str] = "Rollback(bytes32 runId,uint64 forkNonce,uint64 epoch)"

    run: bytes
    fork_nonce: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Rotation(Struct):
    """Another set of attestors; `attestors` is `attestors_hash`, `nonce` counts rotations."""

    TYPE: ClassVar[str] = "Rotation(bytes32 runId,uint64 nonce,bytes32 attestors)"

    run: bytes
    nonce: int
    attestors: bytes


def attestors_hash(addresses: Sequence[bytes], weights: Sequence[int]) -> bytes:
    """`keccak256(abi.encode(address[], uint16[]))`, 32 bytes. Raises ValueError for lists of different lengths."""
    if len(addresses) != len(weights):
        raise ValueError(f"{len(addresses)} attestors with {len(weights)} weights")
    count = len(addresses).to_bytes(WORD, "big")
    second = 3 * WORD + WORD * len(addresses)  # where the second list begins: after two offsets and the first one
    words = [(2 * WORD).to_bytes(WORD, "big"), second.to_bytes(WORD, "big")]
    words += [count, *(address.rjust(WORD, b"\0") for address in addresses)]
    words += [count, *(weight.to_bytes(WORD, "big") for weight in weights)]
    return keccak(b"".join(words))
