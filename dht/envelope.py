"""Signed messages. The signature covers a domain, the run, the round and the sender besides the body."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, Any

from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId, verify
from dht.wire import U64, Bytes32, Bytes64, Length, PeerIdBytes, decode, digest, encode, message

BODY_CAP = 1 << 20


@message(tag=0x01, cap=BODY_CAP + 256)
@dataclass(frozen=True, slots=True)
class Envelope:
    """A message frame (`body`) with who signed it, for which run and round."""

    run: Bytes32
    round: U64
    sender: PeerIdBytes
    body: Annotated[bytes, Length(2, BODY_CAP)]
    signature: Bytes64

    def signed_digest(self) -> bytes:
        """32 bytes that the signature covers."""
        return signed_digest(self.run, self.round, self.sender, self.body)

    def check(self, run: bytes) -> PeerId:
        """The signer, once run and signature are checked. Raises ProtocolError."""
        if self.run != run:
            raise ProtocolError(Refusal.WRONG_RUN, f"an envelope of run {self.run.hex()[:8]}")
        sender = PeerId(self.sender)
        if not verify(sender, self.signed_digest(), self.signature):
            raise ProtocolError(Refusal.BAD_SIGNATURE, f"not signed by {sender.short}")
        return sender

    def message(self) -> Any:
        """The decoded body. Raises ProtocolError."""
        return decode(self.body)


@functools.lru_cache(maxsize=2)
def frame_of(envelope: Envelope) -> bytes:
    """Its encoding; what goes to many is encoded once."""
    return encode(envelope)


def signed_digest(run: bytes, round_: int, sender: bytes, body: bytes) -> bytes:
    """What a signature covers, 32 bytes."""
    return digest("envelope", run, round_.to_bytes(8, "big"), sender, body)


def seal(identity: Identity, run: bytes, round_: int, body: object) -> Envelope:
    """Sign a message for one run and round."""
    frame = encode(body)
    signature = identity.sign(signed_digest(run, round_, identity.peer_id, frame))
    return Envelope(run, round_, bytes(identity.peer_id), frame, signature)
