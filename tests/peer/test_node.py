"""A whole peer from start to leave, with libp2p and the DHT replaced by what fits in memory."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from averaging.guard import SqliteGuard
from averaging.work import Decided, Joined
from dht.addresses import parse
from dht.dial import Dial, Verdict
from dht.errors import DataError, IncompatibleRunError, LockedError, Refusal, StorageError, UnreachableError
from dht.identity import Identity, PeerId
from dht.link import RefusedError
from peer import node as nodes
from peer import set_up
from peer.batching import fit
from peer.config import PeerConfig
from peer.data import TokenData
from peer.manifest import Manifest
from peer.node import Node, _assemble, state_folder
from peer.run_params import run_params
from tests.peer.swarm_in_process import (
    SEQUENCE,
    TEXT,
    Events,
    Network,
    Port,
    Swarm,
    founded,
    grow,
    identity,
    make_trainer,
    tiny_manifest,
    until,
)

PEERS = [identity(index).peer_id for index in range(3)]


class Street:
    """Where the peers of a test find each other: instead of the DHT."""

    def __init__(self) -> None:
        self.network = Network()
        self.announced: dict[PeerId, Any] = {}

    async def start(self, host: Any, run: bytes, mine: Identity, clock: Any, **options: Any) -> Any:
        street = self

        class Discovery:
            clock_offset = 0.0
            twin: tuple[str, ...] = ()

            def keep_announcing(self, head: Any) -> None:
                street.announced[mine.peer_id] = head

            async def find(self) -> list[Any]:
                others = [peer for peer in street.announced if peer != mine.peer_id]
                return [SimpleNamespace(peer_id=peer, addresses=(address(peer),)) for peer in others]

            async def stop(self) -> None:
                street.announced.pop(mine.peer_id, None)

        return Discovery()


class Host(Port):
    """A port with the rest of what a node asks of its host."""

    def __init__(self, network: Network, peer: PeerId) -> None:
        super().__init__(network, peer)
        self.daemon_died, self.death = asyncio.Event(), "the libp2p daemon died (signal 9)"
        self.dialled: list[str] = []
        network.ports[peer] = self

    def addresses(self) -> tuple[str, ...]:
        return (address(self.peer_id),)

    async def dial(self, place: str, **options: Any) -> Dial:
        self.dialled.append(place)
        peer = parse(place).peer
        assert peer is not None
        there = peer in self.network.ports
        return Dial(place, Verdict.OK if there else Verdict.REFUSED, peer=peer if there else None)


def address(peer: PeerId) -> str:
    return f"/ip4/127.0.0.1/tcp/4001/p2p/{peer}"


class House:
    """Nodes on one street."""

    def __init__(self, folder: Path, manifest: Manifest, street: Street) -> None:
        self.folder, self.manifest, self.street = folder, manifest, street
        self.guards: list[SqliteGuard] = []
        self.stops: dict[int, asyncio.Event] = {}
        self.events: dict[int, Events] = {}
        self.nodes: dict[int, Node] = {}
        self.running: dict[int, asyncio.Task[None]] = {}

    def make(self, index: int, *, text: bool = True, **settings: Any) -> Node:
        home = self.folder / str(index)
        home.mkdir(exist_ok=True)
        guard = SqliteGuard(home / "guard.sqlite")
        self.guards.append(guard)
        self.events[index], self.stops[index] = Events(), asyncio.Event()
        heldout = TokenData(np.frombuffer(TEXT[:800], np.uint8), SEQUENCE, "heldout") if text else None
        host: Any = Host(self.street.network, identity(index).peer_id)
        config = PeerConfig(data_dir=home, threads=1, **settings)
        trainer = make_trainer(self.manifest, index)
        parts = (config, self.manifest, identity(index), trainer, heldout, host, guard, self.events[index])
        self.nodes[index] = _assemble(*parts)
        return self.nodes[index]

    def start(self, index: int, **settings: Any) -> asyncio.Task[None]:
        node = self.make(index, **settings)

        async def life() -> None:
            try:
                await node.run(self.stops[index])
            finally:
                await node.close()

        self.running[index] = asyncio.ensure_future(life())
        return self.running[index]

    async def close(self) -> None:
        for stop in self.stops.values():
            stop.set()
        await asyncio.gather(*self.running.values(), return_exceptions=True)
        for guard in self.guards:
            guard.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for it; raises what ended a peer meanwhile."""
        await until(condition, list(self.running.values()))

    def named(self, index: int, event: str) -> list[dict[str, Any]]:
        return self.events[index].named(event)


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    street = Street()
    monkeypatch.setattr(nodes, "Discovery", SimpleNamespace(start=street.start))
    monkeypatch.setattr(nodes, "_SEARCH_SOON", 0.01)
    monkeypatch.setattr(nodes, "_LINGER", 0.5)
    house = House(tmp_path, tiny_manifest(3), street)
    yield house
    await house.close()


def test_the_manifest_sets_the_protocol():
    manifest = tiny_manifest(4)
    params = run_params(manifest, 12_345)
    assert (params.run, params.founder) == (manifest.run_id, manifest.founder)
    assert (params.layout.parameters, params.layout.ring_bits, params.layout.chunk_elements) == (12_345, 16, 4096)
    assert (params.genesis_peers, params.target, params.minimum) == (4, 4, 3)
    assert params.weight_cap == manifest.train.tokens_per_round
    assert params.reducer_copies == manifest.cohort.reducer_copies
    distinct = {field.name: 2.0 + i for i, field in enumerate(dataclasses.fields(manifest.cohort.deadlines))}
    limits = dataclasses.replace(manifest.cohort.deadlines, **distinct)
    changed = manifest.replace(cohort=dataclasses.replace(manifest.cohort, deadlines=limits))
    theirs = run_params(changed, 12_345).deadlines
    assert {name: getattr(theirs, name) for name in distinct} == distinct


async def test_peers_meet_train_and_leave_after_their_last_round(house: House):
    lives = [house.start(index, rounds=2) for index in range(3)]
    async with asyncio.timeout(60):
        await asyncio.gather(*lives)  # nobody told them to stop
    roots = {house.nodes[index]._learner.state.root() for index in range(3)}
    assert len(roots) == 1
    for index in range(3):
        started = house.named(index, "started")[0]
        assert started["peer"] == str(identity(index).peer_id)
        assert started["run"] == house.manifest.run_id.hex() and started["round"] == 0
        reports = {report["round"]: report for report in house.named(index, "round")}
        assert set(reports) == {1, 2}
        last = reports[2]
        assert last["root"] == roots.copy().pop().hex() == house.named(index, "stopped")[0]["root"]
        assert len(last["survivors"]) == len(last["members"]) == 3 and not last["void"]
        assert last["heldout_loss"] < reports[1]["heldout_loss"] < np.log(257) * 1.05
        assert set(last["seconds"]) == {"train", "aggregate", "wait"} and min(last["seconds"].values()) >= 0
        assert last["tokens"] > 0 and last["state_bytes"] == sum(house.nodes[index]._learner.state.schema.sections)
        steps = [event["step"] for event in house.named(index, "step") if event["round"] == 2]
        assert [name for name in steps if name in ("train", "upload", "commit")] == ["train", "upload", "commit"]
        assert {"shares", "survivors", "unmask", "sum"} <= set(steps)
        assert {joined["round"] for joined in house.named(index, "joined")} == {1, 2}
        assert house.named(index, "refused") == []
        book = (house.folder / str(index) / "addresses.json").read_text()
        assert all(str(identity(other).peer_id) in book for other in range(3) if other != index)
    assert house.street.announced == {}


async def test_a_peer_comes_back_from_its_folder(house: House):
    phases = ("shares", "train", "upload", "survivors", "unmask", "sums", "commit")
    house.manifest = tiny_manifest(4, dict.fromkeys(phases, 2.0))  # one of four may be missing
    for index in range(4):
        house.start(index)
    await house.until(lambda: all(house.named(index, "round") for index in range(4)))
    house.stops[2].set()
    await house.running[2]
    left = house.named(2, "stopped")[0]
    assert left["round"] >= 1
    house.start(2)
    mine = str(identity(2).peer_id)
    await house.until(lambda: any(mine in report["survivors"] for report in house.named(2, "round")))
    assert house.named(2, "started")[0]["round"] == left["round"] + 1
    report = house.named(2, "round")[-1]
    assert report["round"] > left["round"]
    await house.until(lambda: any(other["round"] == report["round"] for other in house.named(0, "round")))
    assert report["root"] in {other["root"] for other in house.named(0, "round")}


async def test_patience_has_an_end(house: House):
    life = house.start(1, join_timeout=0.05)
    with pytest.raises(UnreachableError, match=r"no round was joined within 0\.05 s"):
        await asyncio.wait_for(life, 60)
    assert house.named(1, "stopped")  # it left in good order all the same


async def test_a_dead_daemon_ends_it_with_a_reason(house: House):
    life = house.start(1)
    await house.until(lambda: bool(house.named(1, "started")))
    house.street.network.ports[identity(1).peer_id].daemon_died.set()  # type: ignore[attr-defined]
    with pytest.raises(UnreachableError, match=r"daemon died \(signal 9\)"):
        await asyncio.wait_for(life, 60)


async def test_what_ends_the_driver_ends_the_peer(house: House, monkeypatch: pytest.MonkeyPatch):
    for index in range(3):
        house.start(index)
    await house.until(lambda: all(house.named(index, "round") for index in range(3)))

    def full(*arguments: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(house.nodes[1]._learner.store, "save", full)
    with pytest.raises(StorageError, match="disk is full"):
        await asyncio.wait_for(house.running[1], 60)
    # What is on disk is a certified state, whatever the memory held.
    again = house.make(1)
    assert again._learner.round >= 1


async def test_it_tries_bootstrap_and_address_book_and_says_how_it_went(house: House, monkeypatch: pytest.MonkeyPatch):
    book = house.folder / "1"
    book.mkdir()
    known = '{"version": 1, "peers": [{"peer": "%s", "addresses": ["%s"], "seen": 1.0}]}'
    other, dead = identity(0).peer_id, identity(5).peer_id
    (book / "addresses.json").write_text(known % (other, address(other)))
    answered: list[PeerId] = []
    monkeypatch.setattr(nodes.Driver, "reachable", lambda self, peers: answered.extend(peers))
    house.start(0)
    house.start(1, bootstrap=(address(dead),))
    await house.until(lambda: bool(house.named(1, "bootstrap")))
    assert [event["address"] for event in house.named(1, "bootstrap")] == [address(other)]
    assert other in answered  # whatever the first attempts to reach it said, it is there
    assert any(address(dead) in event["reason"] and "refused" in event["reason"] for event in house.named(1, "waiting"))


async def test_only_addresses_that_changed_clear_a_suspicion(house: House):
    node, moved, places = house.make(0), [], {PEERS[1]: ("one",), PEERS[2]: ("two",)}

    async def find() -> list[Any]:
        return [SimpleNamespace(peer_id=peer, addresses=found) for peer, found in places.items()]

    driver = SimpleNamespace(reachable=lambda peers: moved.append(list(peers)), learned=lambda peers: None)
    node._driver = driver  # type: ignore[assignment]
    street: Any = SimpleNamespace(find=find, twin=())
    await node._search(street)
    await node._search(street)
    places[PEERS[1]] = ("elsewhere",)
    await node._search(street)
    assert moved == [[PEERS[1], PEERS[2]], [], [PEERS[1]]]


async def test_a_twin_that_answers_ends_it(house: House):
    """The record of a process that is gone ends nobody."""
    node = house.make(1)
    async with await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0) as twin:
        place = f"/ip4/127.0.0.1/tcp/{twin.sockets[0].getsockname()[1]}/p2p/{PEERS[1]}"
        with pytest.raises(LockedError, match="another process runs under this identity at /ip4") as ended:
            await node._look_for_a_twin([address(PEERS[1]), place])
        assert ended.value.exit_code == 73
    await node._look_for_a_twin([place])
    await node._look_for_a_twin([])


async def test_a_twin_ends_it_before_it_announces_itself(house: House, monkeypatch: pytest.MonkeyPatch):
    async with await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0) as twin:
        start = house.street.start

        async def with_twin(*arguments: Any, **options: Any) -> Any:
            discovery = await start(*arguments, **options)
            discovery.twin = (f"/ip4/127.0.0.1/tcp/{twin.sockets[0].getsockname()[1]}/p2p/{PEERS[1]}",)
            return discovery

        monkeypatch.setattr(nodes, "Discovery", SimpleNamespace(start=with_twin))
        with pytest.raises(LockedError):
            await asyncio.wait_for(house.start(1), 60)
    assert house.street.announced == {}


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RefusedError(Refusal.WRONG_RUN), "the founder belongs to another run"),
        (UnreachableError("protocols not supported: [/x/2]"), "does not speak this version of the protocol"),
    ],
)
async def test_the_founders_word_for_another_run(house: House, error: UnreachableError, says: str):
    house.start(2)
    node = house.nodes[2]
    await house.until(lambda: node._incompatible is not None)
    assert node._incompatible is not None
    node._failed_to_send(PEERS[1], error)  # anybody's word but the founder's
    node._failed_to_send(PEERS[0], UnreachableError("nobody is there"))
    assert not node._incompatible.done()
    node._failed_to_send(PEERS[0], error)
    with pytest.raises(IncompatibleRunError, match=says) as ended:
        await asyncio.wait_for(house.running[2], 60)
    assert ended.value.exit_code == 65
    assert "run.toml" in ended.value.remedy


async def test_who_has_met_the_run_is_not_talked_out_of_it(house: House):
    house.start(2)
    node = house.nodes[2]
    await house.until(lambda: node._incompatible is not None)
    node._addresses = {PEERS[1]: (address(PEERS[1]),)}
    node._failed_to_send(PEERS[0], RefusedError(Refusal.WRONG_RUN))
    assert node._incompatible is not None
    assert not node._incompatible.done()


async def test_it_announces_the_head_of_its_chain(house: House):
    for index in range(3):
        house.start(index)
    await house.until(lambda: all(house.named(index, "round") for index in range(3)))
    head = house.street.announced[identity(0).peer_id]()
    chain = house.nodes[0]._participant.chain
    assert chain is not None and head.round >= 1
    assert head.hash == chain.record(head.round).hash()
    house.make(4)
    assert house.nodes[4]._head().round == 0


async def test_it_donates_only_what_the_chain_certifies(tmp_path: Path):
    async with Swarm(3, tmp_path) as swarm:
        await swarm.reach(2)
        for peer in swarm.peers:
            await peer.kill()
        node = swarm.peers[0].node
        chain = node._participant.chain
        assert chain is not None
        rounds = node._learner.store.rounds()
        for number in rounds:
            expected = number if number <= chain.head.round else None
            assert node._round_of(chain.record(number).state_root) == expected
        assert node._round_of(b"x" * 32) is None
        assert node._round_of(chain.record(0).state_root) in (None, 0)
        grow(chain)  # a void round: the head has the state of the round before
        assert node._round_of(chain.head.state_root) is not None


async def test_a_void_last_round_is_the_last_round_too(house: House):
    node = house.make(0, rounds=1)
    chain, _ = make_chain(house)
    record = grow(chain)
    node._participant.chain, node._participant.state_round = chain, 0
    node.joined(Joined(1, 0, ()))
    node.decided(Decided(record, None, False), None)  # type: ignore[arg-type]
    assert node._finished.is_set()
    assert [(report["round"], report["void"]) for report in house.named(0, "round")] == [(1, True)]
    # Of a state that is not here yet it waits for the adoption.
    waiting = house.make(1, rounds=1)
    waiting._participant.state_round = 0
    other, _ = make_chain(house)
    grow(other, survivors=dict.fromkeys(PEERS, 5), state_root=b"1" * 32)
    void = grow(other)
    waiting._participant.chain = other
    waiting.decided(Decided(void, None, False), None)  # type: ignore[arg-type]
    assert not waiting._finished.is_set()


def make_chain(house: House) -> Any:
    root = house.nodes[0]._learner.state.root()
    return founded(house.manifest, 3, root), root


async def test_first_weights_are_stored_once_the_run_is_founded(house: House):
    node = house.make(0)
    node._participant.chain, _ = make_chain(house)
    node._participant.state_round = 0
    node.joined(Joined(1, 0, tuple(PEERS)))
    assert node._learner.store.rounds() == [0]
    assert state_folder(house.folder / "0", house.manifest) == node._learner.store.folder


async def test_notes_become_events(house: House):
    node = house.make(0)
    node.note("something", None)
    node.note("refused (11 STALE)", PEERS[1])
    assert house.named(0, "waiting") == [{"reason": "something"}]
    assert house.named(0, "refused") == [{"peer": str(PEERS[1]), "reason": "refused (11 STALE)"}]


def test_without_data_it_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    manifest = tiny_manifest(3)
    with pytest.raises(DataError, match="no training data"):
        set_up.make_trainer(PeerConfig(data_dir=tmp_path), manifest)
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT)
    # One file of a run that holds out a split by name has no such split: training goes on without a held-out loss.
    split = manifest.replace(data=dataclasses.replace(manifest.data, heldout="hash:100000"))
    with caplog.at_level(logging.WARNING, logger="peer.node"):
        trainer, heldout = set_up.make_trainer(PeerConfig(data_dir=tmp_path, data=str(text), device="cpu"), split)
    assert heldout is None and "no held-out loss" in caplog.text
    assert trainer.train(1).steps == 1


def test_little_text_is_said_and_none_refused(tmp_path: Path):
    manifest = tiny_manifest(3)
    manifest = manifest.replace(data=dataclasses.replace(manifest.data, heldout="hash:100000"))
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT[: 3 * SEQUENCE])
    config = PeerConfig(data_dir=tmp_path, data=str(text), device="cpu", batch_size=4)
    trainer, _ = set_up.make_trainer(config, manifest)
    assert "3 sequences of 16 tokens, fewer than the 4 of one local step" in trainer.notes[0]
    assert trainer.measured is not None and (trainer.micro, trainer.measured.accumulation) == (4, 1)
    text.write_bytes(TEXT[: SEQUENCE - 2])
    with pytest.raises(DataError, match="too short: 15 tokens"):  # the last one ends the text
        set_up.make_trainer(config, manifest)


def test_the_runs_step_goes_through_in_the_peers_pieces(tmp_path: Path):
    manifest = tiny_manifest(3, tokens_per_step=6 * SEQUENCE)
    manifest = manifest.replace(data=dataclasses.replace(manifest.data, heldout="hash:100000"))
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT)
    for size, micro in ((4, 4), (64, 6)):
        config = PeerConfig(data_dir=tmp_path, data=str(text), device="cpu", batch_size=size)
        trainer, _ = set_up.make_trainer(config, manifest)
        assert trainer.notes == [] and trainer.micro == micro
        assert trainer.train(1).tokens == 6 * SEQUENCE


async def test_speed_and_trouble_are_told(house: House):
    node = house.make(0)
    fit(node._learner._trainer, 4, 2)
    node._learner._trainer.notes.append("little text")
    task = asyncio.ensure_future(node.run(house.stops.setdefault(0, asyncio.Event())))
    await until(lambda: bool(house.named(0, "batch")), [task])
    assert house.named(0, "warning") == [{"text": "little text"}]
    assert house.named(0, "batch")[0]["micro"] == 2
    assert node._head().throughput == round(node._learner.tokens_per_second) > 0
    await asyncio.to_thread(node._learner._trainer.report, "skipped", in_a_row=1)
    await until(lambda: house.named(0, "skipped") == [{"in_a_row": 1}], [task])
    house.stops[0].set()
    await task
    await node.close()
