"""Finding the peers of a run on the Kademlia DHT (hivemind's `DHTNode`, in-process on the host's daemon)."""

from __future__ import annotations

import asyncio
import logging
import math
import statistics
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from hivemind.dht import DHTNode, node, protocol, routing
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer, timed_storage

from dht.clock import Clock, CorrectedClock
from dht.errors import ProtocolError, UnreachableError
from dht.host import Host
from dht.identity import Identity
from dht.records import LARGEST_THROUGHPUT, PeerRecord, RecordGate, current, fitting, key_text, open_record, seal_record

TTL = 120
"""Seconds that an announcement lives; it is renewed at a third of that."""
DHT_TIMEOUT = 10.0
START_TIMEOUT = 30.0
_STOP_TIMEOUT = 3.0
CLOCK_TOLERANCE = 2.0
"""Seconds that our clock may differ from the others' before it is corrected."""
_ASKED_FOR_TIME = 8
_log = logging.getLogger(__name__)
_searching: ContextVar[bool] = ContextVar("searching", default=False)


@dataclass(frozen=True, slots=True)
class Head:
    """What a peer announces about itself: last certified round, its hash, bytes per second that it can carry, tokens
    per second that it trains on, and its claim of epsilon (`dht.records.claimed`); 0 for what it does not say.
    """

    round: int = 0
    hash: bytes = bytes(32)
    capacity: int = 0
    throughput: int = 0
    epsilon: int = 0


class SignedRecords(RecordValidatorBase):  # type: ignore[misc]
    """Lets the DHT store and return nothing but signed peer records in their right place."""

    def __init__(self, clock: Clock, run_id: bytes | None = None) -> None:
        self._gate = RecordGate(clock, b"" if run_id is None else _dht_key(run_id))

    def validate(self, record: DHTRecord) -> bool:
        """Called for every record before it is stored here and again for every record that a search returns."""
        try:
            frame, subkey = MSGPackSerializer.loads(record.value), MSGPackSerializer.loads(record.subkey)
            if not isinstance(frame, bytes) or not isinstance(subkey, bytes):
                return False
            found = self._gate.admit(record.key, subkey, frame, record.expiration_time)
            if record.key != _dht_key(found.run):
                return False
            if not _searching.get():  # what a search meets is not kept here
                self._gate.make_room(record.key, subkey, record.expiration_time, len(record.value))
        except ProtocolError as error:
            _log.debug("a DHT record was refused: %s", error.message)
            return False
        except Exception as error:  # strangers' msgpack fails in many ways
            _log.debug("a DHT record was refused: %r", error)
            return False
        return True


class Discovery:
    """Our node of the DHT. `await Discovery.start(...)` makes one; bootstrap servers run it without a run."""

    def __init__(self, node: DHTNode, host: Host, clock: CorrectedClock) -> None:
        self._node, self._host, self._clock = node, host, clock
        self.twin: tuple[str, ...] = ()
        """Where a current record under our own id, as of the last search, says that we are, and we are not."""
        self._run_id = bytes(32)
        self._identity: Identity | None = None
        self._announcing: asyncio.Task[None] | None = None
        self._places = set(host.addresses())

    @classmethod
    async def start(
        cls,
        host: Host,
        run_id: bytes | None,
        identity: Identity | None,
        clock: Clock,
        *,
        bootstrap: Sequence[str] = (),
        client_mode: bool = False,
    ) -> Discovery:
        """Join the DHT through `bootstrap` (dial them first; those that do not answer are left out).

        Without a run id and identity the node serves others only. A clock that differs from theirs is corrected here
        (`clock_offset`), as records tell by Unix time when they end. Raises UnreachableError.
        """
        corrected = CorrectedClock(clock)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                dht_node = await DHTNode.create(
                    p2p=host.p2p,
                    initial_peers=list(bootstrap) or None,
                    client_mode=client_mode,
                    record_validator=SignedRecords(corrected, run_id),
                    ensure_bootstrap_success=False,
                    strict=False,
                    cache_refresh_before_expiry=0,
                )
        except TimeoutError:
            raise UnreachableError("the DHT node did not start", remedy="try again") from None
        _distrust(dht_node.protocol)
        discovery = cls(dht_node, host, corrected)
        discovery._run_id, discovery._identity = run_id or bytes(32), identity
        offsets = await asyncio.gather(*(discovery._offset_of(address) for address in bootstrap[:_ASKED_FOR_TIME]))
        if known := [offset for offset in offsets if offset is not None]:
            discovery._correct(statistics.median(known))
        return discovery

    @property
    def clock_offset(self) -> float:
        """Seconds that the others' clocks are ahead of ours; 0 when that is too little to matter."""
        return self._clock.offset

    async def _offset_of(self, address: str) -> float | None:
        """How far ahead of ours the clock of a DHT node is; None if it does not say."""
        peer = PeerID.from_base58(address.rsplit("/p2p/", 1)[1])
        mine, before = self._node.protocol, self._clock.wall()
        try:
            request = dht_pb2.PingRequest(peer=mine.node_info, validate=False)
            answer = await mine.get_stub(peer).rpc_ping(request, timeout=DHT_TIMEOUT)
        except Exception as error:  # what a stranger's daemon answers becomes many kinds of error
            _log.debug("%s does not tell the time: %r", address, error)
            return None
        return float(answer.dht_time) - (before + self._clock.wall()) / 2 if answer.dht_time else None

    def _correct(self, offset: float) -> None:
        if abs(offset) > CLOCK_TOLERANCE:
            self._clock.offset = offset
            # hivemind's nodes all read one function for the time that records are about; it is meant to be common.
            for module in (timed_storage, routing, protocol, node):
                module.get_dht_time = self._clock.wall

    async def join(self, addresses: Sequence[str]) -> int:
        """Make more peers known to our node; returns how many answered. Addresses must have been dialled."""
        peers = [PeerID.from_base58(address.rsplit("/p2p/", 1)[1]) for address in addresses]
        answers = await asyncio.gather(*(self._node.protocol.call_ping(peer) for peer in peers))
        return sum(answer is not None for answer in answers)

    async def announce(self, head: Head, *, ttl: int = TTL) -> bool:
        """Store our record once, for `ttl` seconds; returns whether any node keeps it. Raises UnreachableError."""
        if self._identity is None:
            raise ValueError("a node without an identity has nothing to announce")
        now = int(self._clock.wall())
        addresses = fitting(await self._host.refresh_addresses())
        self._places.update(addresses)
        record = PeerRecord(
            run=self._run_id,
            peer=bytes(self._identity.peer_id),
            addresses=addresses,
            head_round=head.round,
            head_hash=head.hash,
            capacity=head.capacity,
            throughput=min(head.throughput, LARGEST_THROUGHPUT),
            epsilon=head.epsilon,
            issued=now,
            expires=now + ttl,
        )
        try:
            async with asyncio.timeout(DHT_TIMEOUT):
                stored: bool = await self._node.store(
                    key_text(self._run_id),
                    seal_record(self._identity, record),
                    expiration_time=float(record.expires),
                    subkey=bytes(self._identity.peer_id),
                )
        except TimeoutError:
            return False
        return stored

    def keep_announcing(self, head: Callable[[], Head], *, ttl: int = TTL) -> None:
        """Announce now and again at every third of `ttl`, until `stop`."""

        async def work() -> None:
            while True:
                try:
                    if not await self.announce(head(), ttl=ttl):
                        _log.info("nobody keeps our announcement yet")
                except UnreachableError as error:
                    _log.warning("cannot announce: %s", error.message)
                await asyncio.sleep(ttl / 3)

        self._announcing = asyncio.get_running_loop().create_task(work())

    async def find(self) -> tuple[PeerRecord, ...]:
        """Valid, current records of the run's other peers, newest first. Their addresses are told to the host.

        Nodes say themselves until when their answer is good, and hivemind ends a search with the first answer that is
        good for long enough. Nothing compares as later than NaN, so here all the nearest nodes are asked.
        """
        key = key_text(self._run_id)
        try:
            async with asyncio.timeout(DHT_TIMEOUT):
                found = (await self._node.get_many([key], sufficient_expiration_time=math.nan))[key]
        except TimeoutError:
            return ()
        records = [] if found is None or not isinstance(found.value, dict) else list(self._valid(found.value))
        for record in records:
            self._host.learn(record.peer_id, record.addresses)
        return tuple(sorted(records, key=lambda record: (-record.issued, record.peer)))

    async def stop(self) -> None:
        """Leave the DHT; the host stays. Safe to call twice."""
        if self._announcing is not None:
            self._announcing.cancel()
            await asyncio.gather(self._announcing, return_exceptions=True)
            self._announcing = None
        if not self._host.daemon_died.is_set():  # hivemind would wait for the dead daemon's answer
            with suppress(TimeoutError):
                async with asyncio.timeout(_STOP_TIMEOUT):
                    await self._node.shutdown()

    def _valid(self, values: dict[Any, Any]) -> list[PeerRecord]:
        records = []
        for subkey, (frame, _) in values.items():
            try:
                record = open_record(frame, self._clock)
            except (ProtocolError, TypeError):
                continue
            if record.peer == subkey and record.run == self._run_id and current(record, self._clock):
                records.append(record)
        mine = [record for record in records if record.peer == self._host.peer_id]
        self.twin = tuple(place for record in mine for place in record.addresses if place not in self._places)
        return [record for record in records if record.peer != self._host.peer_id]


def _dht_key(run_id: bytes) -> bytes:
    return bytes(DHTID.generate(source=key_text(run_id)).to_bytes())


def _distrust(protocol: DHTProtocol) -> None:
    """Make a node survive answers that hivemind believes: of a dictionary with one bad record only that record is
    dropped (or one record that is from the future on one clock would hide all others), and numbers must be numbers."""
    find, validate = protocol.call_find, protocol._validate_record

    async def call_find(peer: PeerID, keys: Collection[DHTID]) -> Any:
        token = _searching.set(True)
        try:
            return await find(peer, keys)
        finally:
            _searching.reset(token)

    def keep_valid(key: bytes, dictionary: DictionaryDHTValue) -> bool:
        numbers = (dictionary.maxsize, dictionary.latest_expiration_time)
        if not all(isinstance(number, int | float) for number in numbers):
            return False
        with dictionary.freeze():
            for subkey, (value, expiration) in list(dictionary.items()):
                sane = isinstance(value, bytes) and isinstance(expiration, int | float)
                if not sane or not validate(key, MSGPackSerializer.dumps(subkey), value, expiration):
                    del dictionary[subkey]
        return True

    protocol.call_find, protocol._validate_dictionary = call_find, keep_valid
