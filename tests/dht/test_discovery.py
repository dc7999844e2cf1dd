"""Peers of a run find each other on a real DHT, and nobody can speak for another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dht.clock import Clock, SystemClock
from dht.discovery import Discovery, Head, SignedRecords
from dht.host import Host
from dht.identity import Identity
from dht.records import LARGEST_THROUGHPUT, PeerRecord, key_text, seal_record

RUN = bytes(range(32))

StartHost = Callable[..., Awaitable[Host]]
StartNode = Callable[..., Awaitable[tuple[Host, Identity, Discovery]]]


@pytest.fixture
async def start_node(start_host: StartHost, tmp_path: Path) -> AsyncIterator[StartNode]:
    nodes: list[Discovery] = []

    async def start(
        name: str, run: bytes | None = RUN, bootstrap: Sequence[str] = (), clock: Clock | None = None
    ) -> tuple[Host, Identity, Discovery]:
        host = await start_host(name)
        identity = Identity.load(tmp_path / f"{name}.key")
        for address in bootstrap:
            await host.connect(address)
        nodes.append(await Discovery.start(host, run, identity, clock or SystemClock(), bootstrap=bootstrap))
        return host, identity, nodes[-1]

    yield start
    for node in nodes:
        await node.stop()


async def test_peers_of_a_run_find_each_other_through_a_bootstrap_node(start_node: StartNode) -> None:
    entry, _, _ = await start_node("entry", run=None)
    alice, _, alice_node = await start_node("alice", bootstrap=entry.addresses())
    bob, bob_identity, bob_node = await start_node("bob", bootstrap=entry.addresses())
    _, _, stranger_node = await start_node("stranger", run=bytes(32), bootstrap=entry.addresses())

    assert await bob_node.announce(Head(round=3, hash=bytes(31) + b"\x07", capacity=5, throughput=1 << 40))
    assert await stranger_node.announce(Head())
    found = await alice_node.find()
    assert [record.peer_id for record in found] == [bob.peer_id]
    assert (found[0].head_round, found[0].head_hash[-1], found[0].capacity) == (3, 7, 5)
    assert found[0].throughput == LARGEST_THROUGHPUT
    assert found[0].addresses == bob.addresses()
    assert await bob_node.find() == ()  # its own record is no news

    # The address is enough to reach a peer that we never dialled.
    got: list[bytes] = []
    bob.serve(lambda peer, frame: got.append(bytes(frame)), lambda peer, frame: None)  # type: ignore[arg-type,return-value]
    await alice.send(bob.peer_id, [b"\xf0", b"hello"])
    assert got == [b"\xf0hello"]

    # A newer announcement takes the place of the older one.
    assert await bob_node.announce(Head(round=4), ttl=200)
    assert [record.head_round for record in await alice_node.find()] == [4]

    # Nobody else can announce in bob's name, and plain values are not stored at all.
    record = replace(found[0], expires=found[0].issued + 400)
    mallory = Identity.generate()
    for subkey, value in [
        (bytes(bob.peer_id), seal_record(mallory, record)),
        (bytes(mallory.peer_id), seal_record(bob_identity, record)),
        (bytes(bob.peer_id), b"junk"),
        (None, b"junk"),
    ]:
        assert not await alice_node._node.store(key_text(RUN), value, float(record.expires), subkey=subkey)
    assert [record.head_round for record in await alice_node.find()] == [4]


class FastClock(SystemClock):
    """A clock that is so many seconds fast."""

    def __init__(self, skew: float) -> None:
        self._skew = skew

    def wall(self) -> float:
        return super().wall() + self._skew


async def test_a_clock_is_measured_by_the_others(start_node: StartNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is 10 min off, either way, finds and is found all the same."""
    from hivemind.dht import node, protocol, routing
    from hivemind.utils import timed_storage

    for module in (timed_storage, routing, protocol, node):
        monkeypatch.setattr(module, "get_dht_time", module.get_dht_time)  # a correction replaces it: put it back
    entry, _, _ = await start_node("entry", run=None)
    _, _, right = await start_node("right", bootstrap=entry.addresses())
    assert right.clock_offset == 0.0
    assert await right.announce(Head(round=1))
    for name, skew in (("fast", 600.0), ("slow", -600.0)):
        host, _, wrong = await start_node(name, bootstrap=entry.addresses(), clock=FastClock(skew))
        assert wrong.clock_offset == pytest.approx(-skew, abs=20)  # as long as an answer may take
        assert await wrong.announce(Head(round=2))
        assert 1 in [record.head_round for record in await wrong.find()]
        assert host.peer_id in [record.peer_id for record in await right.find()]
    _, _, nearly = await start_node("nearly", bootstrap=entry.addresses(), clock=FastClock(1.0))
    assert nearly.clock_offset == 0.0


async def test_a_second_process_with_my_identity_is_seen(start_node: StartNode, tmp_path: Path) -> None:
    entry, _, _ = await start_node("entry", run=None)
    first, _, first_node = await start_node("mine", bootstrap=entry.addresses())
    assert await first_node.announce(Head())
    await first_node.find()
    assert first_node.twin == ()  # where it says it is, it is
    copy = (tmp_path / "mine.key").read_bytes()
    (tmp_path / "copy.key").write_bytes(copy)
    (tmp_path / "copy.key").chmod(0o600)
    second, _, second_node = await start_node("copy", bootstrap=entry.addresses())
    assert second.peer_id == first.peer_id
    assert await second_node.find() == ()
    assert second_node.twin == first.addresses()


def test_the_validator_survives_any_bytes() -> None:
    from hivemind.dht.routing import DHTID
    from hivemind.dht.validation import DHTRecord
    from hivemind.utils import MSGPackSerializer

    clock, identity = SystemClock(), Identity.generate()
    now = int(clock.wall())
    record = PeerRecord(RUN, bytes(identity.peer_id), (), 0, bytes(32), 0, 0, 0, now, now + 60)
    key = DHTID.generate(source=key_text(RUN)).to_bytes()
    good = DHTRecord(
        key,
        MSGPackSerializer.dumps(bytes(identity.peer_id)),
        MSGPackSerializer.dumps(seal_record(identity, record)),
        float(now + 60),
    )
    validator = SignedRecords(clock)
    assert validator.validate(good)
    assert not validator.validate(replace(good, key=DHTID.generate(source="elsewhere").to_bytes()))
    for junk in (b"", b"\xc1", MSGPackSerializer.dumps(None), MSGPackSerializer.dumps([1, 2]), bytes(100)):
        assert not validator.validate(replace(good, value=junk))
        assert not validator.validate(replace(good, subkey=junk))
