"""A thousand forged records under a run's key, and a node that lies in its answers, on a real DHT."""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hivemind.dht import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.utils import MSGPackSerializer
from hivemind.utils.timed_storage import ValueWithExpiration

from dht.clock import SystemClock
from dht.discovery import Discovery, Head
from dht.host import Host
from dht.identity import Identity, PeerId
from dht.records import PeerRecord, fitting, key_text, seal_record
from dht.wire import digest

RUN = digest("a run that strangers attack")
KEY = DHTID.generate(source=key_text(RUN))
HONEST, FORGED, NODES = 50, 1000, 4
CLOCK = SystemClock()
StartHost = Callable[..., Awaitable[Host]]


def record_of(identity: Identity, seconds: int = 500, **changes: Any) -> PeerRecord:
    now = int(CLOCK.wall())
    addresses = (f"/ip4/203.0.113.1/tcp/1/p2p/{identity.peer_id}",)
    record = PeerRecord(RUN, bytes(identity.peer_id), addresses, 1, bytes(32), 0, 0, 0, now, now + seconds)
    return replace(record, **changes)


def forgeries(honest: list[PeerId]) -> Iterator[tuple[bytes, bytes, float]]:
    """(subkey, value, expiration) that a stranger sends to be stored: a quarter of them are true to its own keys."""
    loads = MSGPackSerializer.dumps
    mallory, far = Identity(digest("mallory")), CLOCK.wall() + 10_000
    for number in itertools.count():
        victim = bytes(honest[number % len(honest)])
        yield victim, loads(b"junk %d" % number), far
        name = replace(record_of(mallory), peer=victim)
        yield victim, loads(seal_record(mallory, name)), float(name.expires)
        own = record_of(Identity(digest("sybil", number.to_bytes(4, "big"))))
        long = fitting(["/dns4/" + "a" * 240 + "/tcp/1"] * 8)
        yield own.peer, loads(seal_record(mallory, replace(own, addresses=long))), float(own.expires)
        sybil = Identity(digest("sybil", number.to_bytes(4, "big")))
        yield own.peer, loads(seal_record(sybil, replace(own, addresses=long))), float(own.expires)


class Liar:
    """A node of the DHT that checks nothing and answers searches with what it likes."""

    def __init__(self, node: DHTNode) -> None:
        self.node, self.asked = node, 0
        storage = node.protocol.storage
        get = storage.get

        def counting(key: DHTID) -> Any:
            self.asked += key == KEY
            return get(key)

        storage.get = counting

    async def flood(self, target: Host, forged: list[tuple[bytes, bytes, float]]) -> int:
        """Ask a node to store all of these; how many it took."""
        taken = 0
        for start in range(0, len(forged), 50):
            batch = forged[start : start + 50]
            subkeys, values, ends = ([entry[k] for entry in batch] for k in range(3))
            answer = await self.node.protocol.call_store(target.p2p.peer_id, [KEY] * len(batch), values, ends, subkeys)
            taken += sum(answer or ())
        return taken

    def answer_with(self, entries: list[tuple[bytes, bytes, float]], **changes: Any) -> None:
        """Answer searches for the run's key with these entries, and say that nothing newer can come."""
        lie = DictionaryDHTValue()
        for subkey, value, end in entries:
            lie.store(subkey, value, end)
        for name, value in changes.items():
            setattr(lie, name, value)
        storage = self.node.protocol.storage
        storage.clear()
        storage.data[KEY] = ValueWithExpiration(lie, math.inf)


@pytest.mark.timeout(180)
async def test_a_thousand_forged_records_hide_no_honest_peer(start_host: StartHost, tmp_path: Path) -> None:
    """Fifty honest peers announce themselves on four nodes. A liar floods all four, and lies to who searches."""
    hosts = [await start_host(f"node{number}") for number in range(NODES)]
    nodes: list[Discovery] = []
    liar: Liar | None = None
    try:
        for host in hosts:
            for other in hosts[: len(nodes)]:
                await host.connect(other.addresses()[0])
            addresses = [other.addresses()[0] for other in hosts[: len(nodes)]]
            nodes.append(await Discovery.start(host, RUN, None, CLOCK, bootstrap=addresses))
        evil = await start_host("evil")
        for host in hosts:
            await evil.connect(host.addresses()[0])
        initial = [host.addresses()[0] for host in hosts]
        liar = Liar(await DHTNode.create(p2p=evil.p2p, initial_peers=initial, strict=False))

        peers: list[Discovery] = []
        identities = [Identity(digest("honest", number.to_bytes(2, "big"))) for number in range(HONEST)]
        for number, identity in enumerate(identities):
            peer = Discovery(nodes[number % NODES]._node, hosts[number % NODES], CLOCK)
            peer._run_id, peer._identity = RUN, identity
            peers.append(peer)
        for peer in peers[: HONEST // 2]:
            assert await peer.announce(Head(1), ttl=500)
        names = [identity.peer_id for identity in identities]
        forged = list(itertools.islice(forgeries(names), FORGED))
        for host in hosts:
            taken = await liar.flood(host, forged)
            assert taken == FORGED // 4  # those that speak of their own signer; no other one is stored
        for peer in peers[HONEST // 2 :]:
            assert await peer.announce(Head(1), ttl=500)

        valid = forged[3::4]
        lies: dict[str, Callable[[], None]] = {
            "one record for ever": lambda: liar.answer_with(valid[:1]),
            "bad among good": lambda: liar.answer_with(forged[:100]),
            "no number": lambda: liar.answer_with([], maxsize="many"),
            "ends never": lambda: liar.answer_with(valid[:2], latest_expiration_time=math.nan),
        }
        # Who keeps nothing itself has only the answers of the others.
        guest = await start_host("guest", client_mode=True)
        for host in (*hosts, evil):
            await guest.connect(host.addresses()[0])
        everywhere = [*initial, evil.addresses()[0]]
        nodes.append(await Discovery.start(guest, RUN, None, CLOCK, bootstrap=everywhere, client_mode=True))
        found = expected = 0
        for lie in lies.values():
            lie()
            asked = liar.asked
            for peer in (*[nodes[-1]] * 5, *peers[::10]):
                records = {record.peer_id: record for record in await peer.find()}
                found += sum(name in records and records[name].head_round == 1 for name in names)
                expected += HONEST
            assert liar.asked > asked
        assert found >= 0.99 * expected, f"{found} of {expected}"
    finally:
        if liar is not None:
            await liar.node.shutdown()
        for node in nodes:
            await node.stop()
