"""What peers tell the DHT about themselves: small, signed, expiring. A hint where to knock, never a fact.

A record is stored under a key derived from the run, with the peer id as subkey, as the frame of an envelope that
the peer signed. Nothing else may be stored, so a node serves any run without knowing it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from dht.clock import Clock
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId
from dht.wire import U32, U64, Bytes32, Count, Length, PeerIdBytes, decode_as, encode, message

MAX_TTL = 600
"""Seconds that a record may live at most."""
CLOCK_SKEW = 30
"""Seconds that an honest clock may be off."""
RECORD_CAP = 1536
"""Bytes of a sealed record at most; an honest one has about 500."""
ADDRESS_BYTES = 1024
"""Bytes that a record's addresses may take together."""
LARGEST_THROUGHPUT = 2**32 - 1
"""Tokens per second that a record can say."""
BYTES_PER_KEY = 2 << 20
"""Bytes of records kept under one key at most: a search's answer must fit into one message of the DHT (4 MiB)."""
FOREIGN_BYTES = 32 << 20
"""Bytes kept for all other runs together: strangers can make runs and peer ids for free."""


@message(tag=0x02, cap=1400)
@dataclass(frozen=True, slots=True)
class PeerRecord:
    """Where a peer can be dialled and how far it is; times in Unix seconds, `capacity` in bytes per second.

    `throughput` is what the peer says of its training, in tokens per second, 0 if nothing: a hint that nobody checks.
    `epsilon` is what the peer says of the privacy that its own records lost so far: see `claimed`. Nobody can check it.
    """

    run: Bytes32
    peer: PeerIdBytes
    addresses: Annotated[tuple[Annotated[str, Length(1, 256)], ...], Count(0, 16)]
    head_round: U64
    head_hash: Bytes32
    capacity: U64
    throughput: U32
    epsilon: U32
    issued: U64
    expires: U64

    @property
    def peer_id(self) -> PeerId:
        """Whom the record speaks of. Raises ProtocolError for bytes that are no peer id."""
        return PeerId(self.peer)


def claimed(epsilon: float | None) -> int:
    """A peer's own epsilon, at delta 1e-6, as its record says it: thousandths, rounded up, 1 at least.

    0 says that it promises nothing (None, or infinite).
    """
    if epsilon is None or not epsilon < (2**32 - 1) / 1000:
        return 0
    return max(1, math.ceil(epsilon * 1000))


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
    record = _signed_record(frame)
    if record.issued > clock.wall() + CLOCK_SKEW:
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, "a record from the future")
    return record


@lru_cache(maxsize=4096)
def _signed_record(frame: bytes) -> PeerRecord:
    """What does not depend on the time. Every search meets the same records again, at each node that keeps them."""
    if len(frame) > RECORD_CAP:
        raise ProtocolError(Refusal.OVERSIZED, f"a record of {len(frame)} bytes")
    envelope = decode_as(Envelope, frame)
    record = decode_as(PeerRecord, envelope.body)
    if envelope.sender != record.peer or envelope.round != record.head_round:
        raise ProtocolError(Refusal.WRONG_SENDER, "a record about somebody else")
    if not record.issued < record.expires <= record.issued + MAX_TTL:
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"a record for {record.expires - record.issued} s")
    envelope.check(record.run)  # last, as it costs most
    return record


def fitting(addresses: Sequence[str]) -> tuple[str, ...]:
    """The first addresses that fit into a record."""
    chosen: list[str] = []
    for address in addresses[:16]:
        if (
            len(address.encode()) <= 256
            and sum(len(other.encode()) + 3 for other in (*chosen, address)) <= ADDRESS_BYTES
        ):
            chosen.append(address)
    return tuple(chosen)


def current(record: PeerRecord, clock: Clock) -> bool:
    """Whether the record has not ended yet."""
    return record.expires > clock.wall()


class RecordGate:
    """Decides what may be stored under which key: only current-looking, signed records in their right place.

    Works on what the DHT shows: hashed key, subkey, frame, and the expiration that the DHT will keep it for.
    """

    def __init__(
        self, clock: Clock, own: bytes = b"", *, most: int = BYTES_PER_KEY, foreign: int = FOREIGN_BYTES
    ) -> None:
        """`own`: the key of the run that this node is in, which no other runs' records crowd out."""
        self._clock, self._own, self._most, self._foreign = clock, own, most, foreign
        self._seen: dict[bytes, dict[bytes, tuple[float, int]]] = {}  # key -> subkey -> (end, bytes)
        self._bytes: Counter[bytes] = Counter()

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

    def make_room(self, key: bytes, subkey: bytes, expiration: float, size: int) -> None:
        """Count a record of `size` bytes about to be kept under `key`. Raises ProtocolError (RATE_LIMITED) when there
        is no room for it."""
        old = self._seen.get(key, {}).get(subkey, (0.0, 0))
        if not self._fits(key, size - old[1]):
            for name in list(self._seen):
                self._forget_ended(name)
            if not self._fits(key, size - old[1]):
                raise ProtocolError(Refusal.RATE_LIMITED, f"{self._bytes[key]} bytes of records under one key")
        kept = self._seen.setdefault(key, {})
        kept[subkey] = (max(expiration, old[0]), size)
        self._bytes[key] += size - old[1]

    def _fits(self, key: bytes, more: int) -> bool:
        foreign = sum(self._bytes.values()) - self._bytes[self._own] if key != self._own else 0
        return more <= 0 or (self._bytes[key] + more <= self._most and foreign + more <= self._foreign)

    def _forget_ended(self, key: bytes) -> None:
        now = self._clock.wall()
        kept = {name: entry for name, entry in self._seen[key].items() if entry[0] > now}
        self._bytes[key] = sum(size for _, size in kept.values())
        if kept:
            self._seen[key] = kept
        else:
            del self._seen[key], self._bytes[key]
