"""Signed transactions: decoded, their signer recovered.

Legacy (EIP-155), access lists (EIP-2930) and dynamic fees (EIP-1559). Anything else, and every signature with a high s
(EIP-2), is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import rlp
from coincurve import PublicKey
from eth_hash.auto import keccak
from rlp.exceptions import RLPException

from ledger.embedded.jsonrpc import RpcError, data, invalid, rejected

LEGACY, ACCESS_LIST, DYNAMIC_FEE = 0, 1, 2
AccessList: TypeAlias = tuple[tuple[bytes, tuple[int, ...]], ...]
MOST_BYTES = 128 * 1024
"""A transaction's most bytes; what public nodes take."""
MOST_INITCODE = 49_152
"""Bytes of a creation's code (EIP-3860)."""
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
_MOST_GAS = 2**64
# Fields before the signature, in each kind.
_FIELDS = {LEGACY: 6, ACCESS_LIST: 8, DYNAMIC_FEE: 9}


@dataclass(frozen=True, slots=True)
class Transaction:
    """A valid signature's transaction. Fees in wei per gas; `to` is None for a creation."""

    raw: bytes
    hash: bytes
    kind: int
    chain_id: int | None
    nonce: int
    tip_cap: int
    fee_cap: int
    gas: int
    to: bytes | None
    value: int
    data: bytes
    access_list: AccessList
    v: int
    r: int
    s: int
    sender: bytes

    def price(self, base_fee: int) -> int:
        """What one gas costs its sender in a block with that base fee (EIP-1559)."""
        return min(self.fee_cap, base_fee + self.tip_cap)

    @property
    def most_cost(self) -> int:
        """Wei that its sender must hold."""
        return self.gas * self.fee_cap + self.value

    @property
    def intrinsic_gas(self) -> int:
        """Gas that is due before the first instruction (EIP-2028, EIP-2930, EIP-3860)."""
        zeros = self.data.count(0)
        gas = 21_000 + 4 * zeros + 16 * (len(self.data) - zeros)
        gas += access_list_gas(self.access_list)
        return gas + (32_000 + 2 * ((len(self.data) + 31) // 32) if self.to is None else 0)


def access_list_gas(access_list: AccessList) -> int:
    """What listing addresses and slots costs (EIP-2930)."""
    return sum(2400 + 1900 * len(keys) for _, keys in access_list)


def decode(raw: bytes, chain_id: int) -> Transaction:
    """Read and check a raw transaction. Raises RpcError with the words that clients look for."""
    if len(raw) > MOST_BYTES:
        raise rejected(f"oversized data: transaction size {len(raw)}, limit {MOST_BYTES}")
    try:
        kind, fields = _fields(raw)
        found = _read(raw, kind, fields)
    except (RLPException, ValueError, TypeError, IndexError, RecursionError):
        raise rejected("failed to decode signed transaction") from None
    if found.chain_id not in (None, chain_id):
        raise rejected(f"invalid chain id for signer: have {found.chain_id} want {chain_id}")
    if found.tip_cap > found.fee_cap:
        raise rejected("max priority fee per gas higher than max fee per gas")
    return found


def _fields(raw: bytes) -> tuple[int, list[Any]]:
    if not raw:
        raise ValueError("empty")
    kind, body = (LEGACY, raw) if raw[0] >= 0xC0 else (raw[0], raw[1:])
    if kind not in (LEGACY, ACCESS_LIST, DYNAMIC_FEE) or (kind == LEGACY and body is not raw):
        raise RpcError(-32000, "transaction type not supported")
    fields = rlp.decode(body, strict=True)
    if not isinstance(fields, list) or len(fields) != _FIELDS[kind] + 3:
        raise ValueError("wrong number of fields")
    return kind, fields


def _read(raw: bytes, kind: int, fields: list[Any]) -> Transaction:
    content, (v, r, s) = fields[: _FIELDS[kind]], map(_integer, fields[_FIELDS[kind] :])
    if kind == LEGACY:
        chain_id, parity, signed = _legacy(content, v)
        nonce, tip, gas, to, value, payload = content
        fee, accesses = tip, []
    else:
        chain_id, parity, signed = _integer(content[0]), v, bytes([kind]) + rlp.encode(content)
        nonce, tip = content[1], content[2]
        fee = content[3] if kind == DYNAMIC_FEE else tip
        gas, to, value, payload, accesses = content[-5:]
    if parity not in (0, 1) or not 0 < s <= _HALF_ORDER:
        raise rejected("invalid transaction v, r, s values")
    if len(to) not in (0, 20) or not isinstance(payload, bytes) or _integer(gas) >= _MOST_GAS:
        raise ValueError("a field is out of bounds")
    return Transaction(
        raw=raw,
        hash=keccak(raw),
        kind=kind,
        chain_id=chain_id,
        nonce=_integer(nonce),
        tip_cap=_integer(tip),
        fee_cap=_integer(fee),
        gas=_integer(gas),
        to=to or None,
        value=_integer(value),
        data=payload,
        access_list=_access_list(accesses),
        v=v,
        r=r,
        s=s,
        sender=_recover(keccak(signed), parity, r, s),
    )


def _legacy(content: list[bytes], v: int) -> tuple[int | None, int, bytes]:
    """Chain id, parity and signed bytes of a legacy transaction, with EIP-155's replay protection or without."""
    if v in (27, 28):
        return None, v - 27, rlp.encode(content)
    if v < 35:
        raise ValueError("odd v")
    chain_id, parity = divmod(v - 35, 2)
    return chain_id, parity, rlp.encode([*content, _minimal(chain_id), b"", b""])


def _access_list(items: list[Any]) -> AccessList:
    found = tuple((address, tuple(int.from_bytes(_sized(key, 32), "big") for key in keys)) for address, keys in items)
    for address, _ in found:
        _sized(address, 20)
    return found


def _sized(value: Any, size: int) -> bytes:
    if not isinstance(value, bytes) or len(value) != size:
        raise ValueError("wrong size")
    return bytes(value)


def _integer(value: Any) -> int:
    if not isinstance(value, bytes) or value[:1] == b"\0" or len(value) > 32:
        raise ValueError("not a canonical integer")
    return int.from_bytes(value, "big")


def _minimal(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def _recover(digest: bytes, parity: int, r: int, s: int) -> bytes:
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([parity])
    try:
        key = PublicKey.from_signature_and_message(signature, digest, hasher=None)
    except Exception:
        raise rejected("invalid sender") from None
    return keccak(key.format(compressed=False)[1:])[12:]


def parse_access_list(value: Any) -> AccessList:
    """The access list of a call object. Raises RpcError."""
    try:
        return tuple(
            (
                data(entry["address"], "address", 20),
                tuple(int.from_bytes(data(key, "storage key", 32), "big") for key in entry["storageKeys"]),
            )
            for entry in value or ()
        )
    except (TypeError, KeyError):
        raise invalid("accessList must be a list of {address, storageKeys}") from None
