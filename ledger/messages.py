"""What attestors say to each other about checkpoints and rollbacks: tags 0x60 to 0x6F. Nothing here needs an envelope.

A signature is over the EIP-712 digest of its header, so it says for itself which key made it, whoever passes it on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dht.wire import U64, Bytes32, Bytes64, Count, Length, message
from ledger.eip712 import ADDRESS_BYTES

MAX_ATTESTORS = 64
HEADER_BYTES = 384
"""The ABI encoding of a `Checkpoint`: twelve words."""

HeaderBytes = Annotated[bytes, Length(HEADER_BYTES, HEADER_BYTES)]


@message(tag=0x60, cap=5120)
@dataclass(frozen=True, slots=True)
class Attestations:
    """Compact signatures (EIP-2098) by attestors over one header, each of another attestor."""

    header: HeaderBytes
    signatures: Annotated[tuple[Bytes64, ...], Count(1, MAX_ATTESTORS)]


@message(tag=0x61, cap=128)
@dataclass(frozen=True, slots=True)
class CheckpointStatus:
    """My records give the header with this hash, and I would sign it, or have.

    Bitmaps of attestor indices: `heard` of whom I know that theirs give the same, `have` whose signatures I have. Who
    is not in them, or has more, answers.
    """

    fork_nonce: U64
    epoch: U64
    hash: Bytes32
    heard: U64
    have: U64


@message(tag=0x62, cap=1024, framed=False)
@dataclass(frozen=True, slots=True)
class TwoCheckpoints:
    """Evidence, kept in a file: two headers for one place that one key signed; the lesser encoding first."""

    chain_id: U64
    hub: Annotated[bytes, Length(ADDRESS_BYTES, ADDRESS_BYTES)]
    first: HeaderBytes
    first_signature: Bytes64
    second: HeaderBytes
    second_signature: Bytes64


@message(tag=0x63, cap=96)
@dataclass(frozen=True, slots=True)
class RollbackStatus:
    """I want this epoch, and later ones, rolled back. That binds nobody, and is forgotten unless it is said again.

    `have`: bitmap of the attestors whose signatures over a rollback to epoch `chosen` I have; who has more, answers.
    """

    fork_nonce: U64
    epoch: U64
    chosen: U64
    have: U64


@message(tag=0x64, cap=4608)
@dataclass(frozen=True, slots=True)
class RollbackSignatures:
    """Compact signatures (EIP-2098) by attestors over one `Rollback` of the run, each of another attestor."""

    fork_nonce: U64
    epoch: U64
    signatures: Annotated[tuple[Bytes64, ...], Count(1, MAX_ATTESTORS)]
