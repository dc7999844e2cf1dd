"""A peer's identity: one secp256k1 libp2p key, its peer id, and signatures that the EVM can verify too.

The key file holds the libp2p `PrivateKey` protobuf (type Secp256k1, 32 raw bytes), which p2pd accepts as its
identity. It is created once, mode 0600, and never overwritten. libp2p peer ids of secp256k1 keys are the
identity multihash of the public key, so a signature is checked against the peer id alone
(https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import base58
import coincurve
from coincurve.ecdsa import cdata_to_der, deserialize_compact

from dht.errors import IdentityError, ProtocolError, Refusal
from dht.files import create
from dht.wire import PEER_ID_BYTES

_PRIVATE_HEADER = bytes([0x08, 0x02, 0x12, 0x20])  # field 1: type 2 (Secp256k1); field 2: 32 bytes
_PUBLIC_HEADER = bytes([0x00, 0x25, 0x08, 0x02, 0x12, 0x21])  # identity multihash of 37 bytes, then the protobuf
SIGNATURE_BYTES = 64


class PeerId(bytes):
    """A libp2p peer id in binary form (39 bytes); `str()` gives the base58 text people paste."""

    __slots__ = ()

    def __new__(cls, value: bytes) -> PeerId:
        """Check the form. Raises ProtocolError (OUT_OF_BOUNDS) unless it is a secp256k1 peer id."""
        if len(value) != PEER_ID_BYTES or value[:6] != _PUBLIC_HEADER:
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, "not a secp256k1 peer id")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, text: str) -> PeerId:
        """From base58 text. Raises ProtocolError (OUT_OF_BOUNDS)."""
        try:
            return cls(base58.b58decode(text))
        except ValueError:
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"{text!r} is not a peer id") from None

    @property
    def public_key(self) -> bytes:
        """33-byte compressed secp256k1 public key."""
        return bytes(self[6:])

    @property
    def short(self) -> str:
        """The last eight characters of the text: enough to tell peers of one run apart."""
        return str(self)[-8:]

    def __str__(self) -> str:
        return _text(bytes(self))

    def __repr__(self) -> str:
        return f"PeerId({self})"


@lru_cache(maxsize=4096)
def _text(raw: bytes) -> str:
    return base58.b58encode(raw).decode()


class Identity:
    """A private key with its peer id. Signatures are 64-byte compact ECDSA, low-s, RFC 6979 nonces."""

    def __init__(self, secret: bytes) -> None:
        self._key = coincurve.PrivateKey(secret)
        self.peer_id = PeerId(_PUBLIC_HEADER + self._key.public_key.format(compressed=True))

    @classmethod
    def generate(cls) -> Identity:
        """A fresh key from the operating system's randomness."""
        return cls(coincurve.PrivateKey().secret)

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read a key file. Raises IdentityError if it is missing, open to others, or not a secp256k1 key."""
        try:
            mode = path.stat().st_mode & 0o777
            data = path.read_bytes()
        except OSError as error:
            raise IdentityError(f"cannot read the identity {path}: {error.strerror}") from error
        if mode & 0o077:
            raise IdentityError(
                f"the identity {path} is readable by others (mode {mode:04o})", remedy=f"chmod 600 {path}"
            )
        try:
            if len(data) == 36 and data[:4] == _PRIVATE_HEADER:
                return cls(data[4:])
        except ValueError:  # zero, or not below the order of the group
            pass
        raise IdentityError(
            f"{path} does not hold a secp256k1 libp2p private key", remedy="restore it from a backup, or move it away"
        )

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """Read the key file, or create it (0600) when there is none. An existing file is never overwritten."""
        if path.exists():
            return cls.load(path)
        identity = cls.generate()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            create(path, identity.protobuf())
        except FileExistsError:
            return cls.load(path)
        except OSError as error:
            raise IdentityError(f"cannot create the identity {path}: {error.strerror}") from error
        return identity

    def protobuf(self) -> bytes:
        """The libp2p private key protobuf, 36 bytes, as p2pd reads it."""
        return _PRIVATE_HEADER + self._key.secret

    def sign(self, digest: bytes) -> bytes:
        """64-byte compact signature over a 32-byte digest."""
        return self.sign_recoverable(digest)[:SIGNATURE_BYTES]

    def sign_recoverable(self, digest: bytes) -> bytes:
        """The same signature and its recovery id (0 or 1), 65 bytes: contracts know a signer by its address only."""
        return self._key.sign_recoverable(digest, hasher=None)


def verify(peer: PeerId, digest: bytes, signature: bytes) -> bool:
    """Whether `signature` is `peer`'s over the 32-byte `digest`. High-s forms are refused."""
    return _verify(bytes(peer), bytes(digest), bytes(signature))


@lru_cache(maxsize=65536)
def _verify(peer: bytes, digest: bytes, signature: bytes) -> bool:
    # A signed broadcast is checked again inside certificates and records: remember the verdict.
    if len(signature) != SIGNATURE_BYTES or len(digest) != 32:
        return False
    try:
        # libsecp256k1's verify accepts only low-s signatures, so one message has one valid (r, s) form.
        der = cdata_to_der(deserialize_compact(signature))
        return _point(peer).verify(der, digest, hasher=None)
    except ValueError:
        return False


@lru_cache(maxsize=4096)
def _point(peer: bytes) -> coincurve.PublicKey:
    return coincurve.PublicKey(peer[6:])  # taking the root of a compressed point costs a tenth of checking a signature
