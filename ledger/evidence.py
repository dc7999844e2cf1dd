"""Evidence against an attestor: two checkpoints that one key signed for one place. `Slashing` takes the same."""

from __future__ import annotations

from dataclasses import dataclass

from dht.errors import ProtocolError, Refusal
from dht.wire import decode_as, encode
from ledger.checkpoint import Checkpoint
from ledger.eip712 import Domain
from ledger.messages import TwoCheckpoints
from ledger.signatures import recover


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A header and one compact signature over its digest."""

    header: Checkpoint
    signature: bytes


@dataclass(frozen=True, slots=True)
class Equivocation:
    """What a piece of evidence proves: the key address that signed both headers, and the arguments for the contract."""

    accused: bytes
    domain: Domain
    first: SignedCheckpoint
    second: SignedCheckpoint

    @property
    def rvs(self) -> tuple[bytes, bytes, bytes, bytes]:
        """The four words of `Slashing.reportCheckpoints`: r and vs over the first header, then over the second."""
        one, other = self.first.signature, self.second.signature
        return one[:32], one[32:], other[:32], other[32:]


def equivocation(domain: Domain, one: SignedCheckpoint, other: SignedCheckpoint) -> bytes | None:
    """The evidence (a frame) that two signed headers are, or None when one key may have signed both."""
    first, second = sorted((one, other), key=lambda signed: signed.header.encode())
    evidence = TwoCheckpoints(
        domain.chain_id,
        domain.contract,
        first.header.encode(),
        first.signature,
        second.header.encode(),
        second.signature,
    )
    try:
        frame = encode(evidence)
        verify(frame)
    except ProtocolError:
        return None
    return frame


def verify(frame: bytes | memoryview) -> Equivocation:
    """Check a piece of evidence from its bytes alone; what it proves.

    Raises ProtocolError: BAD_SIGNATURE when not one key signed both, UNEXPECTED when both may stand, or they are out
    of order; and whatever makes a frame or header malformed.
    """
    evidence = decode_as(TwoCheckpoints, frame)
    domain = Domain(evidence.chain_id, evidence.hub)
    first = SignedCheckpoint(Checkpoint.decode(evidence.first), evidence.first_signature)
    second = SignedCheckpoint(Checkpoint.decode(evidence.second), evidence.second_signature)
    if (first.header.run, first.header.place) != (second.header.run, second.header.place):
        raise ProtocolError(Refusal.UNEXPECTED, "the two checkpoints are of different places: both may stand")
    if evidence.first >= evidence.second:
        raise ProtocolError(Refusal.UNEXPECTED, "the two checkpoints are the same, or out of order")
    signers = {recover(signed.header.digest(domain), signed.signature) for signed in (first, second)}
    accused = signers.pop()
    if accused is None or signers:
        raise ProtocolError(Refusal.BAD_SIGNATURE, "the two checkpoints are not signed by one key")
    return Equivocation(accused, domain, first, second)
