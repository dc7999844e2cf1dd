"""Who said what: the first message by which each peer claimed a place where it may say one thing only."""

from __future__ import annotations

from averaging.evidence import Contradiction, Place, claims, contradiction
from dht.envelope import Envelope
from dht.errors import ProtocolError
from dht.identity import PeerId
from dht.wire import decode_as


class Statements:
    """Signed messages by signer and place, of one sid or one round. Kept are references to frames, not copies."""

    def __init__(self) -> None:
        self._first: dict[tuple[PeerId, Place], bytes] = {}

    def keep(self, signer: PeerId, body: object, frame: bytes) -> None:
        """Remember an accepted message; `frame` is its envelope's."""
        for place in claims(b"", body):
            self._first.setdefault((signer, place), frame)

    def find(self, signer: PeerId, *place: bytes | int | str) -> bytes | None:
        """The envelope's frame by which a peer claimed this place first."""
        return self._first.get((signer, place))

    def contradicted(self, signer: PeerId, body: object, frame: bytes) -> Contradiction | None:
        """The evidence that a message and an earlier one of its signer make, if they do."""
        for place in claims(b"", body):
            first = self._first.get((signer, place))
            if first is None or first == frame:
                continue
            try:
                found = contradiction(decode_as(Envelope, first), decode_as(Envelope, frame))
            except ProtocolError:
                continue
            if found is not None:
                return found
        return None
