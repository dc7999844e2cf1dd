"""Signatures that the contracts check: ECDSA by a peer's libp2p key, compact, low s; many of them in a bitmap's order.

EIP-2098: r, then s with the recovery bit in its highest bit, 64 bytes (https://eips.ethereum.org/EIPS/eip-2098).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import coincurve

from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId
from ledger.eip712 import ADDRESS_BYTES, WORD, keccak

COMPACT_BYTES = 64
_HALF_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 // 2
_PARITY = 1 << 255


@functools.lru_cache(maxsize=65536)
def key_address(peer: PeerId) -> bytes:
    """The EVM address of a peer's key, 20 bytes: the end of Keccak-256 over its uncompressed public key."""
    return _address(coincurve.PublicKey(peer.public_key))


def _address(key: coincurve.PublicKey) -> bytes:
    return keccak(key.format(compressed=False)[1:])[-ADDRESS_BYTES:]


def sign(identity: Identity, digest: bytes) -> bytes:
    """64-byte compact signature over a 32-byte digest; the same bytes each time (RFC 6979)."""
    signature = identity.sign_recoverable(digest)
    s = int.from_bytes(signature[WORD : 2 * WORD], "big") | _PARITY * signature[2 * WORD]
    return signature[:WORD] + s.to_bytes(WORD, "big")


def recover(digest: bytes, signature: bytes) -> bytes | None:
    """The address that signed, 20 bytes; None for what is no compact low-s signature."""
    if len(signature) != COMPACT_BYTES:
        return None
    vs = int.from_bytes(signature[WORD:], "big")
    s = vs & (_PARITY - 1)
    if not 0 < s <= _HALF_ORDER:
        return None
    serialized = signature[:WORD] + s.to_bytes(WORD, "big") + bytes([vs >> 255])
    try:
        return _address(coincurve.PublicKey.from_signature_and_message(serialized, digest, hasher=None))
    except Exception:  # coincurve raises a bare Exception where no point has this r
        return None


def pack(signatures: Mapping[int, bytes]) -> tuple[int, tuple[bytes, ...]]:
    """(bitmap, rvs) of compact signatures by attestor index: r and vs of each, lowest bit first."""
    bitmap = sum(1 << index for index in signatures)
    ordered = (signatures[index] for index in sorted(signatures))
    return bitmap, tuple(half for signature in ordered for half in (signature[:WORD], signature[WORD:]))


def unpack(bitmap: int, rvs: Sequence[bytes]) -> dict[int, bytes]:
    """Signatures by attestor index. Raises ProtocolError (BAD_CERTIFICATE) unless there are two words for each bit."""
    indices = [index for index in range(bitmap.bit_length()) if bitmap >> index & 1]
    if len(rvs) != 2 * len(indices) or any(len(word) != WORD for word in rvs):
        raise ProtocolError(Refusal.BAD_CERTIFICATE, f"{len(rvs)} words for {len(indices)} signatures")
    return {index: rvs[2 * at] + rvs[2 * at + 1] for at, index in enumerate(indices)}
