"""Sealed records: AES-128-GCM under keys that two peers agreed on, for a stream that nobody else protects.

The nonce of a record is its number in the stream, so one that is dropped, repeated, moved or changed fails to open, and
with it the stream. Each direction has a key of its own, made for one stream and never used again
(NIST SP 800-38D: a nonce must not repeat under one key).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dht.errors import UnreachableError
from dht.transport import Part

SEAL_BYTES = 16
"""How much longer a record is than what it carries."""
_KEY_BYTES = 16
_MOST_RECORDS = 1 << 32


class Seal:
    """One direction of a stream: `seal` on one side, `open` on the other, each record once and in order."""

    def __init__(self, key: bytes) -> None:
        """`key`: 16 bytes, used for nothing else."""
        self._aes, self._key, self._records = AESGCM(key), algorithms.AES(key), 0

    def seal(self, parts: Sequence[Part], out: memoryview) -> None:
        """Write the next record to `out`, which is `SEAL_BYTES` longer than the parts together.

        Several parts are encrypted one after the other from where they are: joining them would copy each chunk.
        """
        if len(parts) == 1:
            self._aes.encrypt_into(self._nonce(), parts[0], None, out)
            return
        gcm, have = Cipher(self._key, modes.GCM(self._nonce())).encryptor(), 0
        for part in parts:
            have += gcm.update_into(part, out[have:])
        gcm.finalize()
        out[have:] = gcm.tag

    def open(self, record: Part, out: memoryview) -> None:
        """Write what the next record carries to `out`, which is `SEAL_BYTES` shorter.

        Raises UnreachableError if it is not the next record of the peer that has the key: then nothing on this stream
        can be believed, and nobody can be blamed. What was written to `out` must not be looked at.
        """
        try:
            self._aes.decrypt_into(self._nonce(), record, None, out)
        except InvalidTag:
            raise UnreachableError("bytes on a direct stream are not those that its peer sealed") from None

    def _nonce(self) -> bytes:
        if self._records == _MOST_RECORDS:
            raise UnreachableError("a direct stream is at its end; the next frame opens another")
        self._records += 1
        return self._records.to_bytes(12, "big")


class Channel(NamedTuple):
    """The two directions of a sealed stream, as one of its ends sees them."""

    out: Seal
    into: Seal


def channel(secret: bytes, ticket: bytes, dialler: bytes, listener: bytes, *, dialling: bool) -> Channel:
    """The channel of one end. `secret`: 32 bytes only the two peers know; `ticket`: drawn for this stream alone."""
    info = b"murmuration/1/direct\0" + dialler + listener
    keys = HKDF(SHA256(), 2 * _KEY_BYTES, ticket, info).derive(secret)
    there, back = Seal(keys[:_KEY_BYTES]), Seal(keys[_KEY_BYTES:])
    return Channel(there, back) if dialling else Channel(back, there)
