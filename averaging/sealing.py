"""Shares sealed from one member to another: X25519, HKDF-SHA256, ChaCha20-Poly1305 (RFC 8439).

The key depends on sid, sender and receiver, so a sealed share opens for one purpose only. The nonce is derived from
the plaintext (as in SIV, RFC 5297): sealing twice, even with other contents after a restart, never repeats a nonce
with another message.
"""

from __future__ import annotations

import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from averaging.keys import hkdf, shared_secret
from dht.errors import ProtocolError, Refusal

NONCE_BYTES = 12
OVERHEAD_BYTES = NONCE_BYTES + 16


def seal_shares(share_private: bytes, their_share_public: bytes, sid: bytes, i: int, j: int, plaintext: bytes) -> bytes:
    """Seal `plaintext` from member i (whose private key this is) to member j: 28 bytes longer than it.

    Raises ProtocolError (BAD_SHARE) for a degenerate public key.
    """
    context = _context(sid, i, j)
    key, nonce_key = _keys(share_private, their_share_public, sid, context)
    nonce = hmac.digest(nonce_key, plaintext, "sha256")[:NONCE_BYTES]
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plaintext, context)


def open_shares(share_private: bytes, their_share_public: bytes, sid: bytes, i: int, j: int, sealed: bytes) -> bytes:
    """Open what member i sealed to member j; here `share_private` is j's and the public key i's.

    Raises ProtocolError (BAD_SHARE) when anything was altered or belongs to another sid, sender or receiver.
    """
    context = _context(sid, i, j)
    key, _ = _keys(share_private, their_share_public, sid, context)
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context)
    except (InvalidTag, ValueError):  # ValueError: shorter than a nonce
        raise ProtocolError(Refusal.BAD_SHARE, f"the shares from member {i} to {j} cannot be opened") from None


def _context(sid: bytes, i: int, j: int) -> bytes:
    return sid + i.to_bytes(2, "big") + j.to_bytes(2, "big")


def _keys(private: bytes, public: bytes, sid: bytes, context: bytes) -> tuple[bytes, bytes]:
    material = hkdf(shared_secret(private, public), sid, b"murmuration/1/shares" + context[len(sid) :], 64)
    return material[:32], material[32:]
