"""A peer on a real libp2p daemon that answers for records and states, and may lie."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from averaging.actions import Send
from averaging.guard import MemoryGuard
from averaging.layout import Layout
from averaging.params import RunParams
from averaging.participant import Participant
from dht.envelope import Envelope, frame_of, seal
from dht.host import CONTROL, Host
from dht.identity import Identity, PeerId
from dht.wire import decode, decode_as, encode
from peer.catch_up import Donor
from tests.ledger.fake_chain import RUN
from tests.ledger.world import IDENTITIES, SCHEMA, World, states

Change = Callable[[Any], Any]


class ServingPeer:
    """Attestor `place` of a world: the protocol's own participant and donor behind a host. `told` counts answers."""

    def __init__(self, world: World, host: Host, place: int) -> None:
        self.host, self.me = host, IDENTITIES[place]
        self.change: Change = lambda message: message
        """What is said instead of a message: another one, bytes to be written raw, or None for nothing."""
        self.told: list[Any] = []
        self.asked: list[Any] = []
        params = RunParams(RUN, world.records.founder, Layout(SCHEMA.elements, 32, 4096))
        self.guard = MemoryGuard()
        head = world.records.head.round
        self._participant = Participant(params, self.me, self.guard, os.urandom, states(0).root(), world.records, head)
        kept = {root: round_ for round_ in world.store.rounds() if (root := world.store.root(round_))}
        self._donor = Donor(world.store, kept.get)
        self._tasks: set[asyncio.Task[None]] = set()
        host.serve(self._on_frame, self._answer)

    @property
    def address(self) -> str:
        return self.host.addresses()[0]

    def _on_frame(self, sender: PeerId, frame: memoryview) -> None:
        self.asked.append(decode_as(Envelope, frame).message())
        for action in self._participant.receive(sender, frame):
            assert isinstance(action, Send)
            task = asyncio.get_running_loop().create_task(self._tell(action.to, action.message.message()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _tell(self, to: PeerId, message: object) -> None:
        said = self._changed(message)
        if isinstance(said, bytes):
            sock = await self.host.p2p.open_stream(to, CONTROL)
            with sock:
                await asyncio.get_running_loop().sock_sendall(sock, said)
                await asyncio.get_running_loop().sock_recv(sock, 1)  # until it is refused
        elif said is not None:
            envelope = said if isinstance(said, Envelope) else seal(self.me, RUN, 0, said)
            await self.host.send(to, [frame_of(envelope)])

    async def _answer(self, peer: PeerId, frame: memoryview) -> Sequence[bytes]:
        self.asked.append(decode(frame))
        reply = decode(b"".join(bytes(part) for part in await self._donor.answer(peer, frame)))
        said = self._changed(reply)
        return [encode(said)]

    def _changed(self, message: Any) -> Any:
        said = self.change(message)
        if said is not message:
            self.told.append(message)
        return said


@asynccontextmanager
async def serving_peer(world: World, folder: Path, place: int) -> AsyncIterator[ServingPeer]:
    """Attestor `place` of the world, listening on this machine."""
    path = folder / f"identity-{place}.key"
    path.touch(mode=0o600)
    path.write_bytes(IDENTITIES[place].protobuf())
    host = await Host.start(path)
    peer = ServingPeer(world, host, place)
    try:
        yield peer
    finally:
        await host.stop()
        peer.guard.close()


def address_as(address: str, other: Identity) -> str:
    """The same place, under another peer's name."""
    return f"{address.rsplit('/', 1)[0]}/{other.peer_id}"
