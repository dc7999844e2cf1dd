"""The driver alone with a scripted participant, and with real peers where a whole round is at stake."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from averaging import driver as drivers
from averaging.actions import CancelTimer, Note, Send, SetTimer
from averaging.bulk import BulkKind
from averaging.messages import Unmask
from averaging.work import Apply, Commit, FetchState, Reduce, RolledBack, Train, Transfer, Upload
from dht.errors import ProtocolError, Refusal, RoundError, StorageError
from dht.identity import PeerId
from dht.wire import encode
from tests.averaging.driver_bench import ME, OTHER, THIRD, Bench, envelope
from tests.peer.swarm_in_process import Swarm, until

BENIGN = {Refusal.STALE, Refusal.NOT_A_MEMBER, Refusal.UNEXPECTED, Refusal.EQUIVOCATION, Refusal.BAD_CERTIFICATE}


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(drivers, "_RETRIES", (0.001, 0.001))
    bench = Bench()
    yield bench
    await bench.driver.stop()
    if bench.driver.failed.done():
        bench.driver.failed.exception()


# --- frames -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", list(Refusal))
async def test_honest_mistakes_are_noted_and_hostile_frames_raised(bench: Bench, refusal: Refusal):
    for name, frame in (("receive", b"\x01frame"), ("receive_chunk", b"\xf0" + bytes(60))):
        bench.script.answers[name] = ProtocolError(refusal, "no")
        if refusal in BENIGN:
            bench.driver.on_frame(OTHER, memoryview(frame))
        else:
            with pytest.raises(ProtocolError) as caught:
                bench.driver.on_frame(OTHER, memoryview(frame))
            assert caught.value.refusal is refusal
    assert [peer for _, peer in bench.watcher.notes()] == [OTHER, OTHER]
    assert not bench.driver.failed.done()


async def test_frames_reach_the_participant(bench: Bench):
    bench.driver.on_frame(OTHER, memoryview(b"\x01abc"))
    assert bench.script.calls == [("receive", OTHER, memoryview(b"\x01abc"))]
    bench.driver.on_frame(OTHER, memoryview(b"\xf1" + b"s" * 32 + b"\x00\x03" + b"\x00\x00\x00\x09" + b"words"))
    (_, sender, chunk) = bench.script.named("receive_chunk")[0]
    assert (sender, chunk.kind, chunk.sid, chunk.member, chunk.index) == (OTHER, BulkKind.SUM, b"s" * 32, 3, 9)
    assert bytes(chunk.data) == b"words"
    with pytest.raises(ProtocolError):
        bench.driver.on_frame(OTHER, memoryview(b"\xf1short"))
    assert len(bench.script.named("receive_chunk")) == 1


async def test_a_full_disk_at_the_guard_ends_the_driver(bench: Bench):
    error = StorageError("the guard cannot write")
    bench.script.answers["receive"] = error
    bench.driver.on_frame(OTHER, memoryview(b"\x01"))  # no fault of the sender's: nothing is raised at it
    with pytest.raises(StorageError) as caught:
        await bench.driver.failed
    assert caught.value is error
    # What it was about to do is lost, so it does nothing more: it must not go on from the middle of a step.
    bench.script.answers["receive"] = [Train(1)]
    bench.driver.on_frame(OTHER, memoryview(b"\x01"))
    bench.driver.learned([OTHER])
    assert bench.script.calls == [("receive", OTHER, memoryview(b"\x01"))]


async def test_it_ends_the_driver_from_a_timer_too(bench: Bench):
    bench.script.answers["timeout"] = StorageError("full")
    bench.do(SetTimer(("a", 1, 0), 0.0))
    with pytest.raises(StorageError):
        await asyncio.wait_for(asyncio.shield(bench.driver.failed), 30)


# --- sending ------------------------------------------------------------------------------------------------------


async def test_messages_go_out_in_order_and_to_myself_without_a_network(bench: Bench):
    messages = [envelope(number) for number in range(5)]
    bench.do(*(Send(OTHER, message) for message in messages), Send(ME, messages[0]))
    await bench.settle()
    assert bench.line.arrived == [(OTHER, encode(message), False) for message in messages]
    assert bench.script.named("receive") == [("receive", ME, encode(messages[0]))]


async def test_who_is_not_reached_twice_is_suspected_and_when_heard_forgiven(bench: Bench):
    bench.line.dead.add(OTHER)
    suspects: list[int] = []
    answered = bench.script._answer

    def watch(name: str, *arguments: Any) -> list[Any]:
        if name == "suspect":
            suspects.append(len(bench.line.tried))
        return answered(name, *arguments)

    bench.script._answer = watch  # type: ignore[method-assign]
    bench.do(Send(OTHER, envelope(1)))
    await until(lambda: len(bench.line.tried) >= 4)
    assert suspects[0] == 2  # not after the first attempt
    assert bench.lost == [OTHER]  # said once
    assert ("suspect", OTHER) in bench.script.calls
    bench.line.dead.clear()
    await bench.settle()
    assert bench.line.arrived == [(OTHER, encode(envelope(1)), False)]
    assert bench.driver._unreachable == {}


async def test_an_answered_dial_is_a_new_chance(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    trusted: list[PeerId] = []
    bench.script.trust = trusted.append  # type: ignore[attr-defined]
    bench.line.dead.add(OTHER)
    bench.do(Send(OTHER, envelope(1)))
    await until(lambda: len(bench.script.named("suspect")) >= 1)
    monkeypatch.setattr(drivers, "_RETRIES", (60.0,))
    tried = len(bench.line.tried)
    await until(lambda: len(bench.line.tried) > tried)  # from now on it pauses
    bench.driver.reachable([OTHER, THIRD])
    assert trusted == [OTHER]  # nothing was held against the other one
    assert bench.driver._unreachable == {}


async def test_one_failure_before_a_sign_of_life_is_none(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(drivers, "_RETRIES", (60.0,))
    bench.line.dead.add(OTHER)
    bench.do(Send(OTHER, envelope(1)))
    await until(lambda: len(bench.line.tried) == 1)
    bench.driver.on_frame(OTHER, memoryview(b"\x01"))  # it lives
    bench.do(Send(OTHER, envelope(1)))
    await until(lambda: len(bench.line.tried) == 2)
    assert bench.script.named("suspect") == []
    bench.do(Send(OTHER, envelope(1)))  # but now two in a row
    await until(lambda: len(bench.script.named("suspect")) == 1)


async def test_messages_are_tried_again_only_while_they_matter(bench: Bench):
    bench.line.dead.add(OTHER)
    bench.script.round = 5
    bench.do(Send(OTHER, envelope(3)), Send(OTHER, envelope(0)))  # of rounds that are over: one attempt each
    await bench.settle()
    assert len(bench.line.tried) == 2
    bench.do(Send(OTHER, envelope(4)))  # the round before may still be asked for
    await until(lambda: len(bench.line.tried) >= 6)
    assert bench.driver._errands.tasks
    bench.script.round = 6
    await bench.settle()
    assert bench.line.arrived == []


async def test_nothing_is_tried_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(drivers, "_MATTERS", -1.0)
    bench.line.dead.add(OTHER)
    bench.do(Send(OTHER, envelope(1)))
    await bench.settle()
    assert len(bench.line.tried) == 1


async def test_chunks_of_a_failed_attempt_matter_no_more(bench: Bench):
    cohort = bench.cohort()
    bench.line.dead.add(OTHER)
    bench.do(Transfer(b"sid", BulkKind.SUM, (1, 2), (OTHER, THIRD)))
    await until(lambda: len(bench.line.tried) >= 6)
    assert sorted(frame[-5:] for to, frame, bulk in bench.line.arrived if bulk and to == THIRD) == [b"data1", b"data2"]
    cohort.failed = "reason"
    await bench.settle()
    bench.script.cohorts.clear()
    bench.do(Transfer(b"sid", BulkKind.SUM, (1,), (THIRD,)))  # of a sid that is gone
    await bench.settle()
    assert len(bench.line.arrived) == 2


async def test_a_lost_stream_is_probed_once_and_only_if_the_peer_counts(bench: Bench):
    bench.script.ping = lambda: envelope(1)  # type: ignore[attr-defined]
    bench.driver.check(OTHER)  # no round: nobody counts
    bench.script.current = SimpleNamespace(committee=(OTHER,), cohort=None)
    bench.driver.check(THIRD)
    assert not bench.driver._errands.tasks
    bench.script.current.cohort = SimpleNamespace(peers=(THIRD,), certified=None)
    bench.driver.check(THIRD)
    await bench.settle()
    assert bench.line.arrived == [(THIRD, encode(envelope(1)), False)]

    # A host says of every failed attempt, also a probe's, that a stream was lost: that must not breed probes.
    send, running = bench.line.send, []

    async def failing(to: PeerId, parts: Sequence[Any], *, bulk: bool = False) -> None:
        bench.driver.check(to)
        running.append(len(bench.driver._sending))
        await send(to, parts, bulk=bulk)

    bench.line.send = failing  # type: ignore[method-assign]
    bench.line.dead.add(OTHER)
    bench.driver.check(OTHER)
    await until(lambda: len(bench.line.tried) >= 10)
    assert set(running) == {1}
    assert ("suspect", OTHER) in bench.script.calls
    bench.line.dead.clear()
    await bench.settle()
    bench.driver.check(OTHER)  # and the next loss is looked into again
    await bench.settle()
    assert len(bench.line.arrived) == 3


# --- timers -------------------------------------------------------------------------------------------------------


async def test_timers_are_replaced_and_cancelled(bench: Bench):
    key, other, third = ("a", 1, 0), ("b", 1, 0), ("c", 1, 0)
    bench.do(SetTimer(key, 3600.0), SetTimer(other, 0.0), SetTimer(third, 0.0))
    bench.do(SetTimer(key, 0.0), CancelTimer(other), CancelTimer(("unknown", 0, 0)), SetTimer(third, 3600.0))
    await until(lambda: bench.script.named("timeout") != [])
    for _ in range(10):
        await asyncio.sleep(0)
    assert bench.script.named("timeout") == [("timeout", key)]
    assert bench.driver._errands.timers == {third}


async def test_a_timer_may_set_itself_again(bench: Bench):
    key = ("a", 1, 0)
    bench.script.answers["timeout"] = [SetTimer(key, 0.0)]
    bench.do(SetTimer(key, 0.0))
    await until(lambda: len(bench.script.named("timeout")) >= 3)
    bench.script.answers["timeout"] = [CancelTimer(key), Note("enough")]
    await until(lambda: not bench.driver._errands.timers)
    assert ("enough", None) in bench.watcher.notes()


# --- work ---------------------------------------------------------------------------------------------------------


async def test_training_reports_its_tokens(bench: Bench):
    bench.do(Train(1))
    await bench.settle()
    assert bench.work.did == [("train", 1)]
    assert bench.script.named("trained") == [("trained", 1, 7)]
    assert ("step", 1, 0, "train") in bench.watcher.saw


async def test_training_for_a_round_that_is_over_never_starts(bench: Bench):
    bench.work.gates["train"] = asyncio.Event()
    bench.do(Train(1), Train(2))
    await until(lambda: bench.work.did == [("train", 1)])
    bench.script.round = 3
    bench.work.gates["train"].set()
    await bench.settle()
    assert bench.work.did == [("train", 1)]
    assert bench.script.named("trained") == [("trained", 1, 7)]


async def test_an_upload_masks_every_chunk_once_then_says_so(bench: Bench):
    cohort = bench.cohort()
    plan = tuple((chunk, (OTHER, THIRD) if chunk == 3 else (OTHER,)) for chunk in range(20))
    bench.do(Upload(b"sid", plan))
    await bench.settle()
    assert sorted(cohort.masked) == [(chunk, ("ring", chunk)) for chunk in range(20)]
    assert bench.work.did == [("prepare", b"sid")]
    sent = [(to, frame[-5:].lstrip(b"\x00")) for to, frame, bulk in bench.line.arrived if bulk]
    assert len(sent) == 21 and (THIRD, b"data3") in sent
    assert bench.script.named("uploaded") == [("uploaded", b"sid")]
    steps = [call[3] for call in bench.watcher.saw if call[0] == "step"]
    assert steps == ["upload", "survivors"]


async def test_reducing_applying_and_committing(bench: Bench):
    cohort = bench.cohort()
    bench.script.chain = SimpleNamespace(head=SimpleNamespace(round=1))
    bench.do(Reduce(b"sid", (1, 2)))
    await bench.settle()
    assert sorted(cohort.masked) == [("reduced", 1), ("reduced", 2)]
    assert bench.script.named("reduced") == [("reduced", b"sid", (1, 2))]
    bench.do(Apply(b"sid"))
    await bench.settle()
    assert bench.script.named("applied") == [("applied", b"sid", b"root", 1.5)]
    record: Any = SimpleNamespace(round=1, sid=b"sid", state_root=b"root")
    bench.do(Commit(record, None, b"sid"))  # type: ignore[arg-type]
    await bench.settle()
    assert bench.work.did[-1] == ("commit", 1)
    assert bench.script.named("holds") == [("holds", 1, b"root")]
    assert ("settled", 1) in bench.watcher.saw
    # Of a sid that nobody knows any more nothing is done.
    bench.do(Reduce(b"old", (1,)), Apply(b"old"), Upload(b"old", ()))
    await bench.settle()
    assert len(bench.script.named("reduced")) == 1 == len(bench.script.named("applied"))


async def test_sums_that_are_in_end_training_that_came_too_late(bench: Bench):
    bench.cohort()
    bench.work.gates["train"] = asyncio.Event()
    bench.do(Train(1))
    await until(lambda: bench.work.did == [("train", 1)])
    bench.do(Apply(b"sid"))
    await until(lambda: ("interrupt",) in bench.work.did)
    bench.work.gates["train"].set()
    await bench.settle()
    assert [what[0] for what in bench.work.did] == ["train", "interrupt", "apply"]


async def test_a_fetch_that_finds_nothing_is_reported_after_a_while(bench: Bench):
    record: Any = SimpleNamespace(round=4, sid=b"sid", state_root=b"root")
    bench.script.chain = SimpleNamespace(head=record)
    bench.work.found = False
    bench.do(FetchState(record, (OTHER,)))
    await bench.settle()
    assert bench.work.did == [("interrupt",), ("fetch", 4, (OTHER,))]
    assert bench.script.named("fetch_failed") == [("fetch_failed", 4)]
    bench.work.found = True
    bench.do(FetchState(record, (OTHER,)))
    await bench.settle()
    assert bench.script.named("holds") == [("holds", 4, b"root")]


async def test_a_state_that_is_no_longer_the_newest_is_not_fetched(bench: Bench):
    older, newer = (SimpleNamespace(round=number, sid=b"", state_root=b"root") for number in (4, 5))
    bench.script.chain = SimpleNamespace(head=older)
    bench.work.gates["train"] = asyncio.Event()
    bench.do(Train(1))
    await until(lambda: bool(bench.work.did))
    bench.do(FetchState(older, ()))  # type: ignore[arg-type]
    bench.script.chain.head = newer
    bench.do(FetchState(newer, ()))  # type: ignore[arg-type]
    bench.work.gates["train"].set()
    await bench.settle()
    assert [what[1] for what in bench.work.did if what[0] == "fetch"] == [5]


async def test_work_for_a_branch_that_was_left_meanwhile_is_not_reported(bench: Bench):
    bench.cohort()
    left: Any = SimpleNamespace(round=7, sid=b"sid", state_root=b"left")
    stands: Any = SimpleNamespace(round=5, sid=b"", state_root=b"stands")
    bench.script.chain = SimpleNamespace(head=left)
    bench.work.gates["commit"] = asyncio.Event()
    bench.do(Commit(left, None, b"sid"))  # type: ignore[arg-type]
    await until(lambda: ("commit", 7) in bench.work.did)
    bench.do(FetchState(left, ()))
    bench.script.chain = SimpleNamespace(head=stands)
    bench.do(RolledBack(4, left, stands), FetchState(stands, (OTHER,)))
    bench.work.gates["commit"].set()
    await bench.settle()
    assert ("rolled_back", RolledBack(4, left, stands)) in bench.watcher.saw
    assert [call for call in bench.watcher.saw if call[0] == "settled"] == [("settled", 5)]
    # The participant is told which state that was, and takes no notice.
    assert bench.script.named("holds") == [("holds", 7, b"left"), ("holds", 5, b"stands")]
    assert [what[1] for what in bench.work.did if what[0] == "fetch"] == [5]


async def test_work_of_the_observer_waits_its_turn(bench: Bench):
    bench.work.gates["train"] = asyncio.Event()
    bench.do(Train(1))
    await until(lambda: bool(bench.work.did))
    bench.driver.run_alone(lambda: bench.work._do("measure"))
    bench.do(Train(1))
    for _ in range(10):
        await asyncio.sleep(0)
    assert bench.work.did == [("train", 1)]
    bench.work.gates["train"].set()
    await bench.settle()
    assert [what[0] for what in bench.work.did] == ["train", "measure", "train"]


async def test_work_that_cannot_finish_a_round_ends_only_the_round(bench: Bench):
    bench.cohort()
    bench.work.errors["apply"] = RoundError("the outer step left the range of float32")
    bench.do(Apply(b"sid"))
    await bench.settle()
    assert not bench.driver.failed.done()
    assert bench.script.named("applied") == []
    assert ("the outer step left the range of float32", None) in bench.watcher.notes()


@pytest.mark.parametrize("error", [StorageError("full"), ProtocolError(Refusal.BAD_HASH, "wrong"), KeyError("bug")])
async def test_other_failures_of_work_end_the_driver(bench: Bench, error: Exception):
    bench.work.errors["train"] = error
    bench.do(Train(1))
    with pytest.raises(type(error)) as caught:
        await asyncio.wait_for(asyncio.shield(bench.driver.failed), 30)
    assert caught.value is error


# --- the end ------------------------------------------------------------------------------------------------------


async def test_stop_ends_work_timers_and_retries(bench: Bench):
    bench.line.dead.add(OTHER)
    bench.work.gates["train"] = asyncio.Event()
    bench.do(Train(1), Send(OTHER, envelope(1)), SetTimer(("a", 1, 0), 0.0), SetTimer(("b", 1, 0), 3600.0))
    bench.driver._errands.cancel_timer(("a", 1, 0))
    await until(lambda: len(bench.line.tried) >= 2)
    await bench.driver.stop()
    calls, tried = list(bench.script.calls), len(bench.line.tried)
    assert not bench.driver._errands.tasks and not bench.driver._errands.timers and not bench.driver._sending
    # Whatever still arrives after that is left alone, and starts nothing.
    bench.script.answers["receive"] = [Train(1), Send(OTHER, envelope(1)), SetTimer(("c", 1, 0), 0.0)]
    bench.driver.on_frame(OTHER, memoryview(b"\x01"))
    bench.driver.learned([OTHER])
    bench.driver.start()
    for _ in range(10):
        await asyncio.sleep(0)
    assert bench.script.calls == calls and len(bench.line.tried) == tried
    assert not bench.driver._errands.tasks and not bench.driver._errands.timers
    assert not bench.driver.failed.done()
    assert bench.work.busy == 0
    await bench.driver.stop()


async def test_drain_waits_for_what_is_being_sent_and_for_nothing_else(bench: Bench):
    bench.work.gates["train"] = asyncio.Event()
    bench.line.stuck[OTHER] = asyncio.Event()
    bench.do(Train(1), Send(OTHER, envelope(1)), Send(THIRD, envelope(1)))
    draining = asyncio.ensure_future(bench.driver.drain(3600.0))
    await until(lambda: len(bench.line.arrived) == 1)
    assert not draining.done()
    bench.line.stuck[OTHER].set()
    await asyncio.wait_for(draining, 30)  # training goes on all the while
    assert len(bench.line.arrived) == 2
    assert bench.work.busy == 1
    await bench.driver.drain(3600.0)  # nothing to wait for

    bench.line.stuck[OTHER] = asyncio.Event()
    bench.do(Send(OTHER, envelope(1)))
    await bench.driver.drain(0.0)  # gives up
    assert bench.driver._sending


# --- with real peers ----------------------------------------------------------------------------------------------


async def test_with_a_full_disk_at_the_guard_nothing_is_released(tmp_path: Path):
    # Others notice by these deadlines that a reducer went silent after the certificate, or a proposer.
    async with Swarm(5, tmp_path, limits={"unmask": 1.0, "sums": 1.0, "commit": 2.0}) as swarm:
        await swarm.reach(1)
        poor = swarm.peers[3]
        fired: list[Any] = []

        def full(sid: bytes, choices: Any) -> None:
            fired.append(sid)
            raise StorageError("the guard cannot write") from sqlite3.OperationalError("database or disk is full")

        poor.guard.release = full  # type: ignore[method-assign]
        with pytest.raises(StorageError, match="cannot write"):
            await asyncio.wait_for(asyncio.shield(poor.driver.failed), 60)
        await poor.kill()
        assert len(fired) == 1
        mine = {message.sid for message in swarm.network.messages(poor.id, Unmask)}
        assert mine and fired[0] not in mine  # it gave shares away in rounds before, and none in this one
        # The others finish without it, this round too: its update is in the sum, and others reduce its chunks.
        await until(lambda: fired[0] in recorded(swarm))
        others = {message.sid for peer in swarm.living for message in swarm.network.messages(peer.id, Unmask)}
        assert fired[0] in others
        assert poor.id in recorded(swarm)[fired[0]]
        record = await swarm.reach(len(recorded(swarm)) + 1)
        assert poor.id not in record.members()


def recorded(swarm: Swarm) -> dict[bytes, tuple[PeerId, ...]]:
    """Survivors by sid, as the first peer's chain has them."""
    chain = swarm.peers[0].participant.chain
    assert chain is not None
    return {chain.record(r).sid: chain.record(r).members() for r in range(1, chain.head.round + 1)}


async def test_stopping_in_the_middle_of_a_round_leaves_no_task(tmp_path: Path):
    async with Swarm(4, tmp_path) as swarm:
        await swarm.reach(1)
        before = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
        assert before
        for peer in swarm.peers:
            await peer.leave()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.done()]
        assert left == []
        roots = {peer.learner.state.root() for peer in swarm.peers}
        assert len(roots) <= 2  # one round apart at most


def test_every_refusal_was_decided_upon() -> None:
    known: Iterable[Refusal] = Refusal
    assert drivers._BENIGN == BENIGN < set(known)
