"""A peer's learning: the next state against an oracle of its own, the residual, and what survives a restart."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dht.errors import StorageError
from peer.history import certify
from peer.trainer import TrainResult
from tests.peer.learner_oracle import (
    check_state,
    frozen,
    oracle_levels,
    oracle_state,
    remember_states,
    signed,
)
from tests.peer.learner_table import TOKENS, Table, fetch, sent
from tests.peer.swarm_in_process import (
    BATCH,
    SEQUENCE,
    STEPS,
    Swarm,
    founded,
    grow,
    until,
)

# --- a whole round over the network in memory ---------------------------------------------------------------------


async def test_the_next_state_is_what_the_survivors_integers_say(tmp_path: Path):
    async with Swarm(5, tmp_path) as swarm:
        states = remember_states(swarm.peers[0].learner)
        await swarm.reach(3)
        chain = swarm.peers[0].participant.chain
        assert chain is not None
        for number in (1, 2, 3):
            record = chain.record(number)
            assert len(record.survivors) == 5 and not record.void and not record.lost_chunks
            rings = [peer.encoded[record.sid] for peer in swarm.peers if peer.id in record.members()]
            expected = oracle_state(states[number - 1], rings, record, 5, swarm.manifest)
            check_state(states[number], expected, record)
            assert not np.array_equal(states[number].parameters, states[number - 1].parameters)
        assert swarm.network.refused == []
        assert len({peer.learner.store.chunk(3, 1) for peer in swarm.peers}) == 1


async def test_losses_fall_and_updates_average(tmp_path: Path):
    async with Swarm(4, tmp_path) as swarm:
        await swarm.reach(1)
        early = swarm.peers[0].participant.chain.record(1)  # type: ignore[union-attr]
        late = await swarm.reach(8)
        assert late.loss < early.loss
        assert {survivor.tokens for survivor in late.survivors} == {TOKENS}


# --- single learners, one sum after the other, by hand ------------------------------------------------------------


async def updates_of(table: Table) -> tuple[list[Any], list[np.ndarray]]:
    views = await table.upload()
    return views, [learner._residual.copy() for learner in table.learners]


async def test_what_was_sent_leaves_the_residual(tmp_path: Path):
    table = Table(tmp_path)
    views, updates = await updates_of(table)
    clips = table.learners[0].state.scales.copy()
    for learner, update in zip(table.learners, updates, strict=True):
        local = learner.state.parameters - learner._trainer.local()
        assert np.array_equal(update, local) and np.abs(local).max() > 1e-4
    table.add_up(views, [0, 1])
    roots = {(await learner.apply(view.aggregate))[0] for learner, view in zip(table.learners, views, strict=True)}
    record = table.certify(views, [0, 1], roots.pop())
    assert not roots
    for learner in table.learners:
        await learner.commit(record, table.chain)
    for i in (0, 1):
        said = sent(table, i, clips, views[0].sid)
        residual = table.learners[i]._residual
        np.testing.assert_allclose(residual, updates[i] - said, atol=1e-6)
        level = float(clips[0]) / (oracle_levels(3) * 0.5)
        assert 0 < np.linalg.norm(residual) < level * math.sqrt(len(residual))  # what rounding took, nothing more
        assert table.learners[i]._tokens == 0
    # Not included: nothing of it was summed, so all of it stays for the next round.
    assert np.array_equal(table.learners[2]._residual, updates[2])
    assert table.learners[2]._tokens == TOKENS
    for learner in table.learners:
        assert np.array_equal(learner._trainer.local(), learner.state.parameters)


async def test_a_late_update_arrives_one_round_later(tmp_path: Path):
    table = Table(tmp_path)
    await table.round(survivors=[0, 1])
    kept = table.learners[2]._residual.copy()
    views, updates = await updates_of(table)
    local = table.learners[2].state.parameters - table.learners[2]._trainer.local()
    # It trained on from its own model: what no sum had taken up was in there, and is in the update once.
    np.testing.assert_allclose(updates[2], local, atol=1e-7)
    assert float(np.dot(updates[2], kept)) > float(np.dot(kept, kept))
    assert views[2].tokens == 2 * TOKENS == table.manifest.train.tokens_per_round  # two rounds' work
    assert views[0].tokens == TOKENS


async def test_a_void_round_loses_nothing(tmp_path: Path):
    table, control = Table(tmp_path / "void"), Table(tmp_path / "control")
    views, first = await updates_of(table)
    grow(table.chain)
    tokens = [await learner.train(2) for learner in table.learners]
    # Training went on as if nothing had happened: the same model and optimizer as after twice the steps alone.
    for learner, other in zip(table.learners, control.learners, strict=True):
        await other.train(1)
        other._trainer.train(STEPS)
        assert np.array_equal(learner._trainer.local(), other._trainer.local())
        np.testing.assert_allclose(
            learner._residual, learner.state.parameters - other._trainer.local(), rtol=0, atol=1e-6
        )
        assert np.abs(learner._residual - first[0]).max() > 1e-4
    assert tokens == [2 * TOKENS] * 3
    # The residual of a round before is still behind it.
    late = Table(tmp_path / "late")
    await late.round(survivors=[0, 1])
    learner, begun = late.learners[2], late.learners[2].state.parameters - late.learners[2]._residual
    learner._unfold()
    assert np.array_equal(learner._trainer.local(), begun)
    await late.upload()
    trained = learner._trainer.local().copy()
    assert np.abs(trained - begun).max() > 1e-4
    grow(late.chain)
    learner._unfold()
    assert np.array_equal(learner._trainer.local(), trained)
    learner._fold()
    assert np.array_equal(learner._residual, learner.state.parameters - trained)
    assert views


async def test_the_part_in_a_lost_chunk_stays(tmp_path: Path):
    table = Table(tmp_path)
    views, updates = await updates_of(table)
    before = frozen(table.learners[0].state)
    table.add_up(views, [0, 1, 2], lost=(1,))
    roots = {(await learner.apply(view.aggregate))[0] for learner, view in zip(table.learners, views, strict=True)}
    record = table.certify(views, [0, 1, 2], roots.pop(), lost=(1,))
    assert not roots
    for learner in table.learners:
        await learner.commit(record, table.chain)
    for learner, update in zip(table.learners, updates, strict=True):
        assert np.array_equal(table.part(learner._residual, 1), table.part(update, 1))
        assert np.abs(table.part(learner._residual, 0)).max() < np.abs(table.part(update, 0)).max()
        assert np.array_equal(table.part(learner.state.parameters, 1), table.part(before.parameters, 1))
        assert not np.array_equal(table.part(learner.state.parameters, 0), table.part(before.parameters, 0))
        assert learner.state.scales[1] == before.scales[1]


async def test_without_the_trailer_scales_stay(tmp_path: Path):
    table = Table(tmp_path)
    before = table.learners[0].state.scales.copy()
    await table.round(lost=(table.layout.trailer,))
    assert np.array_equal(table.learners[0].state.scales, before)
    await table.round()
    assert not np.array_equal(table.learners[0].state.scales, before)


async def test_clipped_progress_is_not_lost(tmp_path: Path):
    # Clips far below the update: a round moves little, and error feedback brings the rest in later rounds.
    table = Table(tmp_path)
    for learner in table.learners:
        await learner.train(1)
        learner.state.scales[:] = 1e-4
        learner.state._leaves = learner.state._hashed()
    table.chain = founded(table.manifest, 3, table.learners[0].state.root())
    total = sum(learner._residual for learner in table.learners) / 3
    start = table.learners[0].state.parameters.copy()
    norm = float(np.linalg.norm(total))
    for learner in table.learners:
        learner._trainer.set_parameters(start)
        learner._trainer.train = lambda *_: TrainResult(0, 0, math.nan, 0)  # type: ignore
    left = []
    for _ in range(5):
        await table.round(tokens=[TOKENS] * 3)
        moved = start - table.learners[0].state.parameters
        left.append(float(np.linalg.norm(total - moved)) / norm)
        mean_residual = sum(learner._residual for learner in table.learners) / 3
        np.testing.assert_allclose(mean_residual + moved, total, atol=2e-5)
    assert left[0] > 0.3 and left[-1] < 0.05 and left == sorted(left, reverse=True)


@pytest.mark.parametrize(
    ("value", "said"), [(math.nan, "parameters are no longer finite"), (1e30, "MUR-710")], ids=["nan", "overflow"]
)
async def test_an_update_that_is_not_finite_is_dropped_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: float, said: str
):
    table = Table(tmp_path)
    sick = table.learners[1]
    real = sick._trainer.train

    def explode(*arguments: Any) -> Any:
        result = real(*arguments)
        sick._trainer.local()[5] = np.float32(value)
        return result

    sick._trainer.train = explode  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR, logger="peer.learner"):
        views = await table.upload()
    assert said in caplog.text and "sitting out round 1" in caplog.text
    assert views[1].tokens == 1  # the least weight there is
    assert not any(signed(table.rings[1][c]).any() for c in range(table.layout.chunks))
    assert not sick._residual.any()
    assert np.array_equal(sick._trainer.local(), sick.state.parameters)
    table.add_up(views, [0, 1, 2])
    roots = {(await learner.apply(view.aggregate))[0] for learner, view in zip(table.learners, views, strict=True)}
    record = table.certify(views, [0, 1, 2], roots.pop())
    assert not roots
    for learner in table.learners:
        await learner.commit(record, table.chain)
    assert np.isfinite(sick.state.parameters).all() and not sick._residual.any()
    # It goes on learning in the next round.
    sick._trainer.train = real  # type: ignore[method-assign]
    assert await sick.train(2) >= TOKENS
    assert sick._residual.any() and np.isfinite(sick._residual).all()


async def test_interrupted_training_keeps_what_it_did(tmp_path: Path):
    table = Table(tmp_path)
    learner = table.learners[0]
    real, taken = learner._trainer._inner_step, []

    def step(batch: Any) -> Any:
        taken.append(1)
        learner.interrupt()
        return real(batch)

    learner._trainer._inner_step = step  # type: ignore[method-assign]
    assert await learner.train(1) == BATCH * SEQUENCE
    assert len(taken) == 1
    assert learner._residual.any()
    learner._trainer._inner_step = real  # type: ignore[method-assign]
    assert await learner.train(2) == (1 + STEPS) * BATCH * SEQUENCE  # the flag was for that round only


async def test_memory_that_computes_another_state_is_not_adopted(tmp_path: Path):
    table = Table(tmp_path)
    views = await table.upload()
    table.add_up(views, [0, 1, 2])
    learner = table.learners[0]
    root, _ = await learner.apply(views[0].aggregate)
    record = table.certify(views, [0, 1, 2], root)
    learner._prepared.sums[0][7] ^= 1  # type: ignore[union-attr, index]
    with pytest.raises(StorageError, match="another state"):
        await learner.commit(record, table.chain)
    assert learner.store.rounds() == []


# --- catching up, restarts ----------------------------------------------------------------------------------------


async def test_an_update_that_was_summed_leaves_also_after_several_missed_rounds(tmp_path: Path):
    table = Table(tmp_path)
    views, updates = await updates_of(table)
    clips = table.learners[0].state.scales.copy()
    table.add_up(views, [0, 1, 2])
    sleeper = table.learners.pop()  # its update is in round 1; it sees nothing of that round's end
    roots = {(await learner.apply(view.aggregate))[0] for learner, view in zip(table.learners, views, strict=False)}
    record = table.certify(views, [0, 1, 2], roots.pop())
    for learner in table.learners:
        await learner.commit(record, table.chain)
    said = sent(table, 2, clips, views[0].sid)
    table.ids.pop()
    await table.round()
    grow(table.chain)
    donor, head = table.learners[0], table.chain.head
    assert head.round == 3 and head.void
    assert await fetch(sleeper, donor, head, table.chain)
    np.testing.assert_allclose(sleeper._residual, updates[2] - said, atol=1e-6)
    assert sleeper.state.root() == donor.state.root() == head.state_root
    assert sleeper.round == 3
    assert np.array_equal(sleeper._trainer.local(), sleeper.state.parameters)


async def test_who_was_not_in_the_sum_keeps_its_update_over_a_fetch(tmp_path: Path):
    table = Table(tmp_path)
    views, updates = await updates_of(table)
    table.add_up(views, [0, 1])
    root, _ = await table.learners[0].apply(views[0].aggregate)
    record = table.certify(views, [0, 1], root)
    await table.learners[0].commit(record, table.chain)
    late = table.learners[2]
    assert not await late.fetch(record, table.chain, [])  # nobody is there: nothing is lost
    assert late.round == 0
    assert await fetch(late, table.learners[0], record, table.chain)
    assert np.array_equal(late._residual, updates[2])
    assert late.haul is not None and late.haul.chunks > 0


async def test_a_restart_goes_on_where_it_was(tmp_path: Path):
    table = Table(tmp_path)
    for _ in range(2):
        await table.round()
    old = table.learners[0]
    new = table.make(0)
    assert (new.round, new.state.root(), new.total_tokens) == (2, old.state.root(), old.total_tokens)
    assert np.array_equal(new._residual, old._residual) and new._residual.any()
    assert new._trainer.step == old._trainer.step == 2 * STEPS
    assert new._trainer.batches.state() == old._trainer.batches.state()
    assert await new.train(3) == await old.train(3)
    assert np.array_equal(new._trainer.local(), old._trainer.local())
    assert np.array_equal(new._residual, old._residual)


async def test_leaving_in_the_middle_of_a_round_keeps_its_training(tmp_path: Path):
    table = Table(tmp_path)
    await table.round()
    learner = table.learners[0]
    await learner.train(2)
    update = learner._residual.copy()
    await learner.leave()
    new = table.make(0)
    assert np.array_equal(new._residual, update)
    assert new._tokens == learner._tokens == TOKENS
    assert await new.train(2) == 2 * TOKENS
    local = new.state.parameters - new._trainer.local()
    np.testing.assert_allclose(new._residual, local, atol=1e-7)
    assert float(np.dot(new._residual, update)) > float(np.dot(update, update))


@pytest.mark.parametrize("included", [True, False])
@pytest.mark.parametrize("trained", [True, False])
async def test_an_update_sent_before_leaving_is_not_summed_twice(tmp_path: Path, included: bool, trained: bool):
    table = Table(tmp_path)
    await table.round()
    views, updates = await updates_of(table)
    clips = table.learners[0].state.scales.copy()
    survivors = [0, 1, 2] if included else [0, 1]
    table.add_up(views, survivors)
    await table.learners[2].leave()
    root, _ = await table.learners[0].apply(views[0].aggregate)
    back = table.make(2)
    more = np.zeros_like(updates[2])
    if trained:  # it is back before that round is decided, and trains on
        await back.train(2)
        more = back._residual - updates[2]
        assert np.abs(more).max() > 1e-4
    record = table.certify(views, survivors, root)
    await table.learners[0].commit(record, table.chain)
    assert await fetch(back, table.learners[0], record, table.chain)
    said = sent(table, 2, clips, views[0].sid) if included else 0
    np.testing.assert_allclose(back._residual, updates[2] + more - said, atol=1e-6)


async def test_leaving_waits_for_the_thread_that_trains(tmp_path: Path):
    """A cancelled task leaves its thread at work: what is saved must be from after its end, not from between."""
    table = Table(tmp_path)
    await table.round()
    learner = table.learners[0]
    begun, go_on = threading.Event(), threading.Event()
    real = learner._trainer._inner_step

    def slow(batch: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return real(batch)

    learner._trainer._inner_step = slow  # type: ignore[method-assign]
    training = asyncio.ensure_future(learner.train(2))
    await until(begun.is_set)
    training.cancel()
    with pytest.raises(asyncio.CancelledError):
        await training
    leaving = asyncio.ensure_future(learner.leave())
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert not leaving.done()
    go_on.set()
    await leaving
    new = table.make(0)
    assert new._trainer.step == STEPS + 1  # the step that ran is in, the rest was given up
    assert np.array_equal(new._residual, learner._residual)


async def test_a_peer_back_after_its_attestation_needs_no_donor(tmp_path: Path):
    """State and sums are on disk before a peer attests: with the certificate they give the state, without anybody."""
    table = Table(tmp_path)
    await table.round()
    views = await table.upload()
    table.add_up(views, [0, 1, 2])
    roots = [(await learner.apply(view.aggregate))[0] for learner, view in zip(table.learners, views, strict=True)]
    back = table.make(1)  # killed right after it attested
    record = table.certify(views, [0, 1, 2], roots[1])
    assert back.state.root() != record.state_root
    assert await back.fetch(record, table.chain, [])
    assert back.haul is None
    assert (back.round, back.state.root()) == (2, record.state_root)
    await table.learners[0].commit(record, table.chain)
    assert bytes(back.state.parameters) == bytes(table.learners[0].state.parameters)
    newest = back.store.load_newest()
    assert newest is not None and (newest.round, newest.root) == (2, record.state_root)


async def test_prepared_sums_that_lead_elsewhere_are_not_used(tmp_path: Path):
    table = Table(tmp_path)
    await table.round()
    views = await table.upload()
    table.add_up(views, [0, 1, 2])
    root, _ = await table.learners[1].apply(views[1].aggregate)
    # The committee certified another survivor set than the one this peer prepared.
    table.add_up(views, [0, 1])
    other, _ = await table.learners[0].apply(views[0].aggregate)
    assert other != root
    record = table.certify(views, [0, 1], other)
    back = table.make(1)
    before = back.state.root()
    assert not await back.fetch(record, table.chain, [])
    assert back.state.root() == before
    damaged = back.store.folder / "prepared.bin"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert not await back.fetch(record, table.chain, [])


async def test_a_chain_ahead_of_the_state_does_not_spoil_what_is_saved(tmp_path: Path):
    """The next record may be certified while this state is still being written: the state's own chain is stored."""
    table = Table(tmp_path)
    views = await table.upload()
    table.add_up(views, [0, 1, 2])
    roots = [(await learner.apply(view.aggregate))[0] for learner, view in zip(table.learners, views, strict=True)]
    record = table.certify(views, [0, 1, 2], roots[0])
    grow(table.chain)
    await table.learners[0].commit(record, table.chain)
    store, manifest = table.learners[0].store, table.manifest
    stored = store.load_newest(lambda found: certify(found, manifest.run_id, manifest.founder))
    assert stored is not None and stored.round == 1


async def test_the_first_state_is_kept_for_those_who_need_it(tmp_path: Path):
    table = Table(tmp_path)
    learner = table.learners[0]
    learner.save_genesis(table.chain)
    assert learner.store.rounds() == [0]
    learner.save_genesis(table.chain)
    other = Table(tmp_path / "other")
    other.chain = founded(other.manifest, 3, b"x" * 32)  # founded from other first weights than mine
    other.learners[0].save_genesis(other.chain)
    assert other.learners[0].store.rounds() == []
    await learner.train(1)
    await learner.leave()
    assert table.make(0)._residual.any()


# --- peers over the network in memory: deaths and returns ---------------------------------------------------------


async def test_a_killed_peer_catches_up_and_survives_again(tmp_path: Path):
    async with Swarm(5, tmp_path) as swarm:
        await swarm.reach(1)
        victim = swarm.peers[4]
        await victim.kill()
        missed = await swarm.reach(victim.learner.round + 2)
        assert victim.id not in missed.members()
        back = await swarm.restart(4)
        assert back.learner.round >= 1  # from disk

        def survived() -> bool:
            chain = back.participant.chain
            assert chain is not None
            return any(back.id in chain.record(r).members() for r in range(missed.round, back.learner.round + 1))

        await until(survived, [peer.driver.failed for peer in swarm.peers])
        haul = back.events.named("caught_up")[0]
        assert haul["chunks"] > 0 and str(back.id) not in haul["donors"]
        goal = max(peer.learner.round for peer in swarm.peers) + 1
        await swarm.reach(goal)
        chain = swarm.peers[0].participant.chain
        assert chain is not None
        for peer in swarm.peers:
            theirs = peer.participant.chain
            assert theirs is not None
            assert all(theirs.record(r) == chain.record(r) for r in range(goal + 1))
            assert peer.learner.store.leaves(goal) in (None, swarm.peers[0].learner.store.leaves(goal))
