"""What peers tell the DHT about themselves: small, signed, expiring. A hint where to knock, never a fact.

A record is stored under a key derived from the run, with the peer id as subkey, as the frame of an envelope that
the peer signed. Nothing else may be stored, so a node serves any run without knowing it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dht.clock import Clock
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId
from dht.wire import U64, Bytes32, Count, Length, PeerIdBytes, decode_as, encode, message

MAX_TTL = 600
"""Seconds that a record may live at most."""
CLOCK_SKEW = 30
"""Seconds that an honest clock may be off."""
RECORD_CAP = 6000
"""Bytes of a sealed record at most."""
MAX_PER_KEY = 4096
"""Records kept under one key at most: strangers can make peer ids for free."""


@message(tag=0x02, cap=5500)
@dataclass(frozen=True, slots=True)
class PeerRecord:
    """Where a peer can be dialled and how far it is; times in Unix seconds, `capacity` in bytes per second."""

    run: Bytes32
    peer: PeerIdBytes
    addresses: Annotated[tuple[Annotated[str, Length(1, 256)], ...], Count(0, 16)]
    head_round: U64
    head_hash: Bytes32
    capacity: U64
    issued: U64
    expires: U64

    @property
    def peer_id(self) -> PeerId:
        """Whom the record speaks of. Raises ProtocolError for bytes that are no peer id."""
        return PeerId(self.peer)


def key_text(run_id: bytes) -> str:
    """The DHT key of a run, before the DHT hashes it."""
    return f"murmuration/1/peers/{run_id.hex()}"


def seal_record(identity: Identity, record: PeerRecord) -> bytes:
    """The signed frame that goes into the DHT."""
    return encode(seal(identity, record.run, record.head_round, record))


def open_record(frame: bytes, clock: Clock) -> PeerRecord:
    """Check everything about a record that can be checked alone. Raises ProtocolError.

    A record that ended is still well-formed: `current` tells whether to use it.
    """
    if len(frame) > RECORD_CAP:
        raise ProtocolError(Refusal.OVERSIZED, f"a record of {len(frame)} bytes")
    envelope = decode_as(Envelope, frame)
    record = decode_as(PeerRecord, envelope.body)
    if envelope.sender != record.peer or envelope.round != record.head_round:
        raise ProtocolError(Refusal.WRONG_SENDER, "a record about somebody else")
    if not record.issued < record.expires <= record.issued + MAX_TTL:
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"a record for {record.expires - record.issued} s")
    if record.issued > clock.wall() + CLOCK_SKEW:
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, "a record from the future")
    envelope.check(record.run)  # last, as it costs most
    return record


def current(record: PeerRecord, clock: Clock) -> bool:
    """Whether the record has not ended yet."""
    return record.expires > clock.wall()


class RecordGate:
    """Decides what may be stored under which key: only current-looking, signed records in their right place.

    Works on what the DHT shows: hashed key, subkey, frame, and the expiration that the DHT will keep it for.
    """

    def __init__(self, clock: Clock, *, most: int = MAX_PER_KEY) -> None:
        self._clock, self._most = clock, most
        self._seen: dict[bytes, dict[bytes, float]] = {}

    def admit(self, key: bytes, subkey: bytes, frame: bytes, expiration: float) -> PeerRecord:
        """The record, if it may be stored there. Raises ProtocolError.

        `key` is not compared here: the caller hashes `key_text(record.run)` the DHT's way.
        """
        record = open_record(frame, self._clock)
        if subkey != record.peer:
            raise ProtocolError(Refusal.WRONG_SENDER, "a record under another peer's name")
        if expiration != record.expires:
            # Were it free, an old record could be made to outlive a newer one.
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, "the DHT was told another end than the record says")
        return record

    def make_room(self, key: bytes, subkey: bytes, expiration: float) -> None:
        """Count a record about to be kept under `key`. Raises ProtocolError (RATE_LIMITED) when the key is full."""
        seen = self._seen.setdefault(key, {})
        if subkey not in seen and len(seen) >= self._most:
            now = self._clock.wall()
            self._seen[key] = seen = {name: end for name, end in seen.items() if end > now}
            if len(seen) >= self._most:
                raise ProtocolError(Refusal.RATE_LIMITED, f"{self._most} peers under one key")
        seen[subkey] = max(expiration, seen.get(subkey, 0.0))
