"""The keys of one attempt at a round: three shared seeds, two X25519 keys, and what follows from them.

Double masking (Bonawitz et al. 2017, https://eprint.iacr.org/2017/281): seed `a` gives the X25519 mask key, from which
every pair derives its mask key; seed `b` gives the self mask; seed `r` opens the audit. All three are Shamir-shared,
so each has 31 bytes and a public value that a reconstructed seed is checked against. The share-encryption key comes
from its own seed `e`, which is never shared. Everything is fresh for each attempt.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from averaging.shamir import SECRET_BYTES
from dht.errors import ProtocolError, Refusal
from dht.wire import digest

MASK_KEY_BYTES = 16
# Low-order points are those that every private key maps to zero, so any one tells.
_ANY_PRIVATE = bytes(range(32))


@dataclass(frozen=True, slots=True)
class PublicKeys:
    """What the others see of `MemberSecrets`; each part has 32 bytes."""

    mask_key: bytes
    share_key: bytes
    self_commitment: bytes
    audit_commitment: bytes


@dataclass(frozen=True)
class MemberSecrets:
    """A member's seeds for one attempt: `a` mask key, `b` self mask, `r` audit (31 bytes each), `e` sealing (32)."""

    a: bytes
    b: bytes
    r: bytes
    e: bytes

    @classmethod
    def generate(cls, urandom: Callable[[int], bytes] = os.urandom) -> MemberSecrets:
        """Fresh seeds; `urandom(n)` returns n uniform bytes."""
        return cls(urandom(SECRET_BYTES), urandom(SECRET_BYTES), urandom(SECRET_BYTES), urandom(32))

    def __repr__(self) -> str:
        return "MemberSecrets(...)"  # never into a log

    @cached_property
    def mask_private(self) -> bytes:
        """32-byte X25519 private key of the pairwise masks."""
        return mask_private_from_seed(self.a)

    @cached_property
    def share_private(self) -> bytes:
        """32-byte X25519 private key that opens shares sent to this member."""
        return hkdf(self.e, b"", b"murmuration/1/share-key", 32)

    def public(self) -> PublicKeys:
        """The public parts, for the signed key bundle."""
        return PublicKeys(
            public_key(self.mask_private),
            public_key(self.share_private),
            self_commitment(self.b),
            audit_commitment(self.r),
        )


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869) in one step."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(secret)


def mask_private_from_seed(a: bytes) -> bytes:
    """32-byte X25519 private mask key of seed `a`."""
    return hkdf(a, b"", b"murmuration/1/mask-key", 32)


def public_key(private: bytes) -> bytes:
    """32-byte X25519 public key (RFC 7748) of a 32-byte private key."""
    return _private_key(private).public_key().public_bytes_raw()


def _private_key(private: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(private)


def self_commitment(b: bytes) -> bytes:
    """32-byte commitment to the self-mask seed."""
    return digest("self-mask", b)


def audit_commitment(r: bytes) -> bytes:
    """32-byte commitment to the audit seed."""
    return digest("audit-seed", r)


def check_mask_seed(a: bytes, mask_public: bytes) -> bool:
    """Whether a reconstructed seed `a` belongs to a member's public mask key."""
    return len(a) == SECRET_BYTES and hmac.compare_digest(public_key(mask_private_from_seed(a)), mask_public)


def check_self_seed(b: bytes, commitment: bytes) -> bool:
    """Whether a reconstructed seed `b` opens a member's self-mask commitment."""
    return len(b) == SECRET_BYTES and hmac.compare_digest(self_commitment(b), commitment)


def check_audit_seed(r: bytes, commitment: bytes) -> bool:
    """Whether a reconstructed seed `r` opens a member's audit commitment."""
    return len(r) == SECRET_BYTES and hmac.compare_digest(audit_commitment(r), commitment)


def shared_secret(private: bytes, their_public: bytes) -> bytes:
    """32-byte X25519 shared secret. Raises ProtocolError (BAD_SHARE) if it is zero (RFC 7748 section 6.1)."""
    try:
        peer = X25519PublicKey.from_public_bytes(their_public)
        return _private_key(private).exchange(peer)
    except ValueError:
        raise ProtocolError(Refusal.BAD_SHARE, "a public key of low order or wrong length") from None


def check_public(key: bytes) -> None:
    """Raises ProtocolError (BAD_SHARE) for a public key with which no secret can be shared."""
    shared_secret(_ANY_PRIVATE, key)


def pair_key(my_mask_private: bytes, their_mask_public: bytes, sid: bytes, my_index: int, their_index: int) -> bytes:
    """16-byte AES key that two members share for one sid; the same from either side.

    Raises ProtocolError (BAD_SHARE) for a degenerate public key, ValueError if both indices are equal.
    """
    if my_index == their_index:
        raise ValueError("a member has no pair key with itself")
    low, high = sorted((my_index, their_index))
    info = b"murmuration/1/pair" + low.to_bytes(2, "big") + high.to_bytes(2, "big")
    return hkdf(shared_secret(my_mask_private, their_mask_public), sid, info, MASK_KEY_BYTES)


def self_key(b: bytes, sid: bytes) -> bytes:
    """16-byte AES key of a member's self mask for one sid."""
    return hkdf(b, sid, b"murmuration/1/self", MASK_KEY_BYTES)
