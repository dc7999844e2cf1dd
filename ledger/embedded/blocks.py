"""Blocks and receipts, and their canonical bytes: what a block's hash covers (Yellow Paper 4.4, Cancun's fields).

A block holds one transaction or none. The tries of one transaction and of one receipt are then single leaves,
so their roots are those that every other node would compute. `state_root` is `ledger.embedded.state.next_root`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import rlp
from eth_hash.auto import keccak

from ledger.embedded.engine import MOST_BLOCK_GAS, Log
from ledger.embedded.transactions import LEGACY, Transaction

ZERO_HASH = bytes(32)
COINBASE = bytes(20)
EMPTY_LIST_HASH = keccak(rlp.encode([]))
EMPTY_TRIE_ROOT = keccak(rlp.encode(b""))
BLOOM_BYTES = 256


@dataclass(frozen=True)
class Header:
    """What identifies a block. `timestamp` in Unix seconds, `base_fee` in wei per gas."""

    parent: bytes
    number: int
    timestamp: int
    state_root: bytes
    transactions_root: bytes
    receipts_root: bytes
    bloom: bytes
    gas_used: int
    base_fee: int
    randomness: bytes
    extra: bytes

    def encode(self) -> bytes:
        """RLP of the twenty fields of a Cancun header."""
        encoded: bytes = rlp.encode(
            [
                self.parent,
                EMPTY_LIST_HASH,
                COINBASE,
                self.state_root,
                self.transactions_root,
                self.receipts_root,
                self.bloom,
                *map(integer, (0, self.number, MOST_BLOCK_GAS, self.gas_used, self.timestamp)),
                self.extra,
                self.randomness,
                bytes(8),
                integer(self.base_fee),
                EMPTY_TRIE_ROOT,
                *map(integer, (0, 0)),
                ZERO_HASH,
            ]
        )
        return encoded

    @classmethod
    def decode(cls, data: bytes) -> Header:
        """The header behind `encode`'s bytes."""
        row = rlp.decode(data)
        number, gas_used, timestamp, base_fee = (int.from_bytes(row[at], "big") for at in (8, 10, 11, 15))
        return cls(
            parent=row[0],
            number=number,
            timestamp=timestamp,
            state_root=row[3],
            transactions_root=row[4],
            receipts_root=row[5],
            bloom=row[6],
            gas_used=gas_used,
            base_fee=base_fee,
            randomness=row[13],
            extra=row[12],
        )

    @cached_property
    def hash(self) -> bytes:
        """Keccak-256 of the encoded header."""
        return keccak(self.encode())


@dataclass(frozen=True, slots=True)
class Receipt:
    """How a block's transaction ended; its cumulative gas is its own."""

    kind: int
    success: bool
    gas_used: int
    price: int
    logs: tuple[Log, ...]
    created: bytes | None

    def encode(self) -> bytes:
        """The bytes under the receipts root (EIP-2718)."""
        logs = [[log.address, list(log.topics), log.data] for log in self.logs]
        body: bytes = rlp.encode([integer(self.success), integer(self.gas_used), bloom(self.logs), logs])
        return body if self.kind == LEGACY else bytes([self.kind]) + body

    def pack(self) -> bytes:
        """Everything, for the disk."""
        logs = [[log.address, list(log.topics), log.data] for log in self.logs]
        numbers = map(integer, (self.kind, self.success, self.gas_used, self.price))
        packed: bytes = rlp.encode([*numbers, logs, self.created or b""])
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> Receipt:
        """The receipt behind `pack`'s bytes."""
        *numbers, logs, created = rlp.decode(data)
        kind, success, gas_used, price = (int.from_bytes(number, "big") for number in numbers)
        events = tuple(Log(address, tuple(topics), data) for address, topics, data in logs)
        return cls(kind, bool(success), gas_used, price, events, created or None)


@dataclass(frozen=True, slots=True)
class Block:
    """A mined block."""

    header: Header
    transaction: Transaction | None = None
    receipt: Receipt | None = None


def leaf_root(value: bytes | None) -> bytes:
    """Root of the Merkle Patricia trie that holds `value` under index 0, or nothing (Yellow Paper, appendix D)."""
    if value is None:
        return EMPTY_TRIE_ROOT
    # Index 0 is the key 0x80; hex-prefix encoding of a leaf with that even path puts 0x20 before it.
    return keccak(rlp.encode([b"\x20\x80", value]))


def bloom(logs: Iterable[Log]) -> bytes:
    """The 2048-bit filter over the logs' addresses and topics (Yellow Paper 4.4.1)."""
    bits = 0
    for log in logs:
        for item in (log.address, *log.topics):
            digest = keccak(item)
            for at in (0, 2, 4):
                bits |= 1 << (int.from_bytes(digest[at : at + 2], "big") % (8 * BLOOM_BYTES))
    return bits.to_bytes(BLOOM_BYTES, "big")


def integer(value: Any) -> bytes:
    """An integer as RLP holds it: big-endian, no leading zeros."""
    number = int(value)
    return number.to_bytes((number.bit_length() + 7) // 8, "big")
