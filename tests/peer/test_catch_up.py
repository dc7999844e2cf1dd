"""Catching up from donors that may lie, lack the state, or go away."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from averaging import state_chunks
from averaging.state_chunks import ChunkRequest, Leaves, LeavesRequest, StateChunk
from dht.errors import IncompatibleRunError, ProtocolError, UnreachableError
from dht.wire import decode, encode
from peer.catch_up import CatchUp, Donor
from peer.state import CanonicalState, StateSchema
from peer.store import StateStore
from tests.peer.swarm_in_process import Network, identity, until

SCHEMA = StateSchema(b"r" * 32, ("weight",), ((300_000,),))
PEERS = [identity(index).peer_id for index in range(5)]
ME, DONORS = PEERS[0], PEERS[1:]


def make_state(seed: int, schema: StateSchema = SCHEMA) -> CanonicalState:
    source = np.random.default_rng(seed)
    parts = [source.standard_normal(n, np.float32) for n in (schema.elements, schema.elements, schema.blocks)]
    return CanonicalState(schema, *parts)


def changed(state: CanonicalState, chunks: list[int]) -> CanonicalState:
    """A copy in which these chunks differ."""
    copy = CanonicalState(state.schema, state.parameters.copy(), state.momentum.copy(), state.scales.copy())
    for index in chunks:
        copy.chunk(index)[:4] = b"new!"
    return CanonicalState(state.schema, copy.parameters, copy.momentum, copy.scales)


class World:
    """A network on which some donors hold one state."""

    def __init__(self, folder: Path, state: CanonicalState, donors: list[Any] = DONORS) -> None:
        self.network, self.root = Network(), state.root()
        self.store = StateStore(folder, state.schema)
        self.store.save(3, self.root, state.leaves(), state.chunks(), [])
        self.donor = Donor(self.store, {self.root: 3}.get)
        for peer in donors:
            self.network.port(peer).serve(lambda sender, frame: None, self.donor.answer)
        self.catch_up = CatchUp(self.network.port(ME), self.root, donors)

    def again(self, donors: list[Any] = DONORS) -> CatchUp:
        self.catch_up = CatchUp(self.network.ports[ME], self.root, donors)
        return self.catch_up

    def asked(self, kind: type = ChunkRequest, of: Any = None) -> list[Any]:
        return [body for _, to, body in self.network.requests if isinstance(body, kind) and of in (None, to)]

    def lie(self, liar: Any, change: Callable[[Any], Any]) -> None:
        """`change` gets each reply of the liar, and returns what goes out instead (a message, bytes, or None)."""

        async def tamper(donor: Any, request: Any, reply: bytes) -> bytes:
            told = change(decode(reply)) if donor == liar else None
            return reply if told is None else told if isinstance(told, bytes) else encode(told)

        self.network.on_request = tamper


@pytest.fixture(scope="module")
def new() -> CanonicalState:
    return make_state(1)


async def test_only_chunks_that_differ_travel_and_every_donor_gives_some(new: CanonicalState, tmp_path: Path):
    world = World(tmp_path, new)
    differing = [1, 2, 4, 5, 6, 7, 9, 10, 11]
    state = changed(new, differing)
    assert await world.catch_up.run(state)
    assert bytes(state.parameters) == bytes(new.parameters) and bytes(state.momentum) == bytes(new.momentum)
    assert state.root() == new.root() == CanonicalState(SCHEMA, state.parameters, state.momentum, state.scales).root()
    assert sorted(request.index for request in world.asked()) == differing
    haul = world.catch_up.haul
    assert haul.donors == set(DONORS) and not haul.banned
    assert (haul.chunks, haul.size) == (9, sum(SCHEMA.chunk_length(index) for index in differing))


async def test_who_holds_the_state_already_fetches_nothing(new: CanonicalState, tmp_path: Path):
    world = World(tmp_path, new)
    assert await world.catch_up.run(changed(new, []))
    assert world.asked() == []


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


WRONG_CHUNKS = {
    "one bit": lambda chunk: replace(chunk, data=flipped(chunk.data)),
    "too short": lambda chunk: replace(chunk, data=chunk.data[:-4]),
    "a wrong proof": lambda chunk: replace(chunk, path=(*chunk.path[:-1], flipped(chunk.path[-1]))),
    "no proof": lambda chunk: replace(chunk, path=()),
    "another index": lambda chunk: replace(chunk, index=chunk.index ^ 1),
    "another count": lambda chunk: replace(chunk, count=chunk.count + 1),
    "another root": lambda chunk: replace(chunk, root=bytes(32)),
    "no message": lambda chunk: b"\x55garbage",
    "another message": lambda chunk: Leaves(chunk.root, 0, ()),
    "not there any more": lambda chunk: StateChunk(chunk.root, chunk.index, 0, (), b""),
}


@pytest.mark.parametrize("wrong", WRONG_CHUNKS)
async def test_one_wrong_chunk_bans_its_donor_and_comes_from_another(wrong: str, new: CanonicalState, tmp_path: Path):
    world, lies = World(tmp_path, new), []

    def once(reply: Any) -> Any:
        if isinstance(reply, StateChunk) and not lies:
            lies.append(reply.index)
            return WRONG_CHUNKS[wrong](reply)
        return None

    world.lie(DONORS[2], once)
    state = changed(new, list(range(1, 12)))
    assert await world.catch_up.run(state)
    assert bytes(state.parameters) == bytes(new.parameters) and bytes(state.momentum) == bytes(new.momentum)
    assert list(world.catch_up.haul.banned) == [DONORS[2]]
    times = Counter(request.index for request in world.asked())
    assert lies and times[lies[0]] == 2
    assert sum(times.values()) == 12  # nobody else was asked twice
    assert len(world.asked(of=DONORS[2])) <= 2  # only what was under way when the lie arrived


async def test_the_right_chunk_of_another_place_is_refused(new: CanonicalState, tmp_path: Path):
    # Chunk, index and proof fit each other and the root: only the question tells that it is the wrong one.
    world = World(tmp_path, new)
    other = world.donor._chunk(ChunkRequest(world.root, 2))
    world.lie(DONORS[0], lambda reply: other if isinstance(reply, StateChunk) and reply.index != 2 else None)
    state = changed(new, [3, 4, 5, 6, 7, 8])
    assert await world.catch_up.run(state)
    assert list(world.catch_up.haul.banned) == [DONORS[0]]
    assert state.root() == new.root()


WRONG_LEAVES = {
    "one hash": lambda leaves: replace(leaves, hashes=(flipped(leaves.hashes[0]), *leaves.hashes[1:])),
    "one too few": lambda leaves: replace(leaves, count=leaves.count - 1, hashes=leaves.hashes[:-1]),
    "half a page": lambda leaves: replace(leaves, hashes=leaves.hashes[:3]),
    "more than announced": lambda leaves: replace(leaves, count=leaves.count - 1),
    "no hashes": lambda leaves: replace(leaves, hashes=()),
    "endless": lambda leaves: replace(leaves, count=2**32 - 1, hashes=leaves.hashes[:1] * 16384),
    "not there": lambda leaves: replace(leaves, count=0, hashes=()),
    "no message": lambda leaves: b"",
}


@pytest.mark.parametrize("wrong", WRONG_LEAVES)
async def test_wrong_leaves_ban_their_donor(wrong: str, new: CanonicalState, tmp_path: Path):
    world = World(tmp_path, new)
    world.lie(DONORS[0], lambda reply: WRONG_LEAVES[wrong](reply) if isinstance(reply, Leaves) else None)
    state = changed(new, [1, 6])
    assert await world.catch_up.run(state)
    assert state.root() == new.root()
    assert list(world.catch_up.haul.banned) == [DONORS[0]]
    assert world.asked(LeavesRequest, DONORS[0]) == [LeavesRequest(new.root(), 0)]
    assert world.asked(ChunkRequest, DONORS[0]) == []


async def test_leaves_come_in_pages(new: CanonicalState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    encode(Leaves(bytes(32), 0, ()))  # the codec reads its bound once, and must not keep the small one
    monkeypatch.setattr(state_chunks, "LEAVES_PER_REPLY", 4)
    world = World(tmp_path, new)
    state = changed(new, [1, 11])
    assert await world.catch_up.run(state)
    assert state.root() == new.root()
    assert len(SCHEMA.chunks) == 12
    assert [request.start for request in world.asked(LeavesRequest)] == [0, 4, 8]

    changing = itertools.chain((12, 12), itertools.repeat(13))
    world.lie(DONORS[0], lambda reply: replace(reply, count=next(changing)) if isinstance(reply, Leaves) else None)
    assert await world.again().run(changed(new, [1]))
    assert list(world.catch_up.haul.banned) == [DONORS[0]]


async def test_donors_without_the_state_are_left_aside(new: CanonicalState, tmp_path: Path):
    world = World(tmp_path / "has", new)
    other = make_state(5)
    poor = World(tmp_path / "has not", other)
    for donor in DONORS[:3]:
        world.network.port(donor).serve(lambda sender, frame: None, poor.donor.answer)
    assert await world.catch_up.run(state := changed(new, [2, 3]))
    assert state.root() == new.root()
    assert world.catch_up.haul.donors == {DONORS[3]}
    # Nobody has it: nothing changes.
    before = (state := changed(new, [2, 3])).root()
    assert not await world.again(DONORS[:3]).run(state)
    assert state.root() == before
    assert not await world.again([]).run(state)


async def test_when_all_donors_are_gone_a_later_try_goes_on(new: CanonicalState, tmp_path: Path):
    world = World(tmp_path, new)
    served: list[int] = []

    async def dying(donor: Any, request: Any, reply: bytes) -> bytes:
        if isinstance(request, ChunkRequest):
            if len(served) >= 5:
                raise UnreachableError("gone")
            served.append(request.index)
        return reply

    world.network.on_request = dying
    state = changed(new, list(range(1, 12)))
    assert not await world.catch_up.run(state)
    assert set(world.catch_up.haul.banned) == set(DONORS)
    assert state.root() != new.root()
    world.network.on_request = None
    world.network.requests.clear()
    assert await world.again().run(state)
    assert state.root() == new.root()
    assert {request.index for request in world.asked()} == set(range(1, 12)) - set(served)
    assert world.catch_up.haul.chunks == 6


async def test_a_donor_that_hangs_holds_up_nobody_for_good(new: CanonicalState, tmp_path: Path):
    # Others take over its share; its own two chunks wait for the transport's deadline, which fires here by hand.
    world, stuck = World(tmp_path, new), asyncio.Event()

    async def hang(donor: Any, request: Any, reply: bytes) -> bytes:
        if donor == DONORS[0] and isinstance(request, ChunkRequest):
            await stuck.wait()
            raise UnreachableError("no reply in 30 s")
        return reply

    world.network.on_request = hang
    state = changed(new, list(range(1, 12)))
    running = asyncio.ensure_future(world.catch_up.run(state))
    await until(lambda: world.catch_up.haul.chunks == 9)
    assert not running.done()
    stuck.set()
    assert await running
    assert state.root() == new.root()
    assert list(world.catch_up.haul.banned) == [DONORS[0]]


async def test_the_state_of_another_model_is_named_as_such(new: CanonicalState, tmp_path: Path):
    world = World(tmp_path, new)
    mine = make_state(1, StateSchema(b"r" * 32, ("wait",), ((300_000,),)))
    before = mine.root()
    with pytest.raises(IncompatibleRunError, match="another header"):
        await world.catch_up.run(mine)
    shorter = make_state(1, StateSchema(b"r" * 32, ("weight",), ((100_000,),)))
    with pytest.raises(IncompatibleRunError):
        await world.again().run(shorter)
    assert mine.root() == before and world.asked() == []


@pytest.mark.parametrize("frame", [b"", b"\x54", b"\xf0" + bytes(64), encode(Leaves(bytes(32), 0, ())), bytes(200)])
async def test_a_donor_refuses_what_is_no_request(frame: bytes, new: CanonicalState, tmp_path: Path):
    world = World(tmp_path, new)
    with pytest.raises(ProtocolError):
        await world.donor.answer(ME, memoryview(frame))


async def test_a_donor_says_what_it_does_not_have(new: CanonicalState, tmp_path: Path):
    world = World(tmp_path, new)

    async def ask(request: Any) -> Any:
        return decode(b"".join(await world.donor.answer(ME, memoryview(encode(request)))))

    assert await ask(ChunkRequest(world.root, 12)) == StateChunk(world.root, 12, 0, (), b"")
    assert await ask(ChunkRequest(bytes(32), 1)) == StateChunk(bytes(32), 1, 0, (), b"")
    assert await ask(LeavesRequest(bytes(32), 0)) == Leaves(bytes(32), 0, ())
    assert await ask(LeavesRequest(world.root, 100)) == Leaves(world.root, 12, ())
    assert (await ask(LeavesRequest(world.root, 10))).hashes == new.leaves()[10:]
    chunk = await ask(ChunkRequest(world.root, 11))
    assert chunk.data == bytes(new.chunk(11)) and chunk.path == new.proof(11)
    # Pruned between two requests.
    world.store.save(4, world.root, new.leaves(), new.chunks(), [])
    world.store.save(5, world.root, new.leaves(), new.chunks(), [])
    assert (await ask(ChunkRequest(world.root, 11))).count == 0
    assert (await ask(LeavesRequest(world.root, 0))).count == 0


SMALL = StateSchema(b"r" * 32, ("weight",), ((5000,),))
TARGET = make_state(3, SMALL)


@settings(max_examples=60)
@given(st.data())
def test_no_single_changed_byte_gets_through(data: st.DataObject):
    """Whatever byte of a chunk's frame a donor changes: refused, or the frame says the same."""
    leaves = TARGET.leaves()
    index = data.draw(st.integers(1, len(leaves) - 1))
    reply = bytearray(
        encode(StateChunk(TARGET.root(), index, len(leaves), TARGET.proof(index), bytes(TARGET.chunk(index))))
    )
    at = data.draw(st.integers(0, len(reply) - 1) | st.integers(0, 200)) % len(reply)
    reply[at] ^= data.draw(st.integers(1, 255))
    network = Network()

    async def liar(sender: Any, frame: memoryview) -> Any:
        if isinstance(decode(frame), LeavesRequest):
            return (encode(Leaves(TARGET.root(), len(leaves), leaves)),)
        return (bytes(reply),)

    async def attempt() -> None:
        network.port(DONORS[0]).serve(lambda sender, frame: None, liar)
        state = changed(TARGET, [index])
        before = state.root()
        assert not await CatchUp(network.port(ME), TARGET.root(), DONORS[:1]).run(state)
        assert state.root() == before

    asyncio.run(attempt())
