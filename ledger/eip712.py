"""EIP-712 typed data for structs whose members are one 32-byte word each: what the contracts hash, and how.

A struct is a frozen dataclass whose `TYPE` is its EIP-712 type; the dataclass has the same members in the same order.
Its ABI encoding is then its words one after the other, so the bytes that travel between peers, the bytes of calldata
and the bytes under the hash are the same (https://eips.ethereum.org/EIPS/eip-712).
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from eth_hash.auto import keccak as _keccak

from dht.errors import ProtocolError, Refusal

WORD = 32
ADDRESS_BYTES = 20
NAME, VERSION = "Murmuration", "1"
_DOMAIN_TYPE = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"

S = TypeVar("S", bound="Struct")


def keccak(data: bytes) -> bytes:
    """Keccak-256 (not NIST's SHA-3) of some bytes, 32 bytes."""
    return _keccak(data)


@dataclass(frozen=True, slots=True)
class Domain:
    """Which contract on which chain a signature is for: `contract` is the hub's 20-byte address."""

    chain_id: int
    contract: bytes

    def separator(self) -> bytes:
        """The EIP-712 domain separator, 32 bytes. Raises ValueError for an address of another length."""
        return _separator(self.chain_id, self.contract)


@functools.lru_cache(maxsize=64)
def _separator(chain_id: int, contract: bytes) -> bytes:
    if len(contract) != ADDRESS_BYTES:
        raise ValueError(f"an address has 20 bytes, not {len(contract)}")
    texts = (_DOMAIN_TYPE, NAME, VERSION)
    head = b"".join(keccak(text.encode()) for text in texts)
    return keccak(head + chain_id.to_bytes(WORD, "big") + contract.rjust(WORD, b"\0"))


@functools.cache
def _members(type_: str) -> tuple[tuple[str, str], ...]:
    """(Solidity type, name) of each member of an EIP-712 type."""
    inside = type_[type_.index("(") + 1 : -1]
    return tuple((kind, name) for kind, _, name in (member.partition(" ") for member in inside.split(",")))


@functools.cache
def _type_hash(type_: str) -> bytes:
    return keccak(type_.encode())


@dataclass(frozen=True, slots=True)
class Struct:
    """Base of the signed structs. `bytes32` and `address` members are bytes (32, 20), `uintN` members are ints."""

    TYPE: ClassVar[str]

    @classmethod
    def type_hash(cls) -> bytes:
        """Keccak-256 of the EIP-712 type, 32 bytes."""
        return _type_hash(cls.TYPE)

    @classmethod
    def size(cls) -> int:
        """Bytes of the encoding."""
        return WORD * len(_members(cls.TYPE))

    def encode(self) -> bytes:
        """ABI encoding: one word for each member. Raises ValueError when a member does not fit its type."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return b"".join(_word(kind, value) for (kind, _), value in zip(_members(self.TYPE), values, strict=True))

    @classmethod
    def decode(cls: type[S], data: bytes) -> S:
        """The struct of an encoding. Raises ProtocolError (MALFORMED, OUT_OF_BOUNDS) for anything else."""
        if len(data) != cls.size():
            raise ProtocolError(Refusal.MALFORMED, f"{cls.__name__} of {len(data)} bytes, not {cls.size()}")
        words = (data[at : at + WORD] for at in range(0, len(data), WORD))
        return cls(*[_value(kind, word, name) for (kind, name), word in zip(_members(cls.TYPE), words, strict=True)])

    def abi(self) -> tuple[bytes | int, ...]:
        """The members as web3 takes a tuple argument."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def hash(self) -> bytes:
        """EIP-712 hashStruct, 32 bytes."""
        return keccak(self.type_hash() + self.encode())

    def digest(self, domain: Domain) -> bytes:
        """What is signed, 32 bytes."""
        return keccak(b"\x19\x01" + domain.separator() + self.hash())


_BYTES = {"bytes32": WORD, "address": ADDRESS_BYTES}


def _word(kind: str, value: bytes | int) -> bytes:
    if (size := _BYTES.get(kind)) is not None:
        if not isinstance(value, bytes) or len(value) != size:
            raise ValueError(f"{value!r} is not {size} bytes")
        return value.rjust(WORD, b"\0")
    if isinstance(value, bytes) or not 0 <= value < 1 << int(kind.removeprefix("uint")):
        raise ValueError(f"{value!r} is not a {kind}")
    return value.to_bytes(WORD, "big")


def _value(kind: str, word: bytes, name: str) -> bytes | int:
    if (size := _BYTES.get(kind)) is not None:
        if any(word[:-size]):
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"{name} is no {kind}")
        return word[-size:]
    value = int.from_bytes(word, "big")
    if value >> int(kind.removeprefix("uint")):
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"{name} is no {kind}")
    return value
