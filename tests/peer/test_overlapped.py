"""Training that goes on while its update is aggregated: nothing is counted twice, nothing is lost, nothing waits."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peer.learner import Learner
from peer.manifest import Outer
from peer.overlapped import MOST_AHEAD, OverlappedLearner, learner_kind
from tests.peer.learner_table import Table, fetch
from tests.peer.swarm_in_process import BATCH, SEQUENCE, STEPS, Swarm, grow, tiny_manifest, until
from tests.peer.test_rollback import Forked

MEAN = Outer(learning_rate=1.0, momentum=0.0)
STEP = BATCH * SEQUENCE
"""Tokens of one step. As the cap, it gives every update the same weight, so that a sum is a plain sum."""


class Watched:
    """A table of overlapping learners that adds up what each of them learns, step by step."""

    def __init__(self, folder: Path, count: int = 3, fragments: int = 1, **train: Any) -> None:
        manifest = tiny_manifest(count, **({"overlap": True, "tokens_per_round": STEP} | train))
        codec = replace(manifest.codec, fragments=fragments)
        self.table = Table(folder, count, manifest.replace(outer=MEAN, codec=codec))
        elements = self.table.learners[0].state.schema.elements
        self.learned = [np.zeros(elements) for _ in range(count)]
        self.moved = np.zeros(elements)
        """What certified sums have taken up: the mean's movement times the survivors, over all rounds."""
        for index in range(count):
            self.watch(index)

    def learner(self, index: int) -> OverlappedLearner:
        learner = self.table.learners[index]
        assert isinstance(learner, OverlappedLearner)
        return learner

    def watch(self, index: int) -> None:
        trainer = self.learner(index)._trainer
        train = trainer.train

        def watched(*arguments: Any) -> Any:
            before = trainer.local().copy()
            result = train(*arguments)
            self.learned[index] += before - trainer.local().astype(np.float64)
            return result

        trainer.train = watched  # type: ignore[method-assign]

    async def ahead(self, index: int, steps: int) -> None:
        """Wait until this learner is so many steps ahead of its last update."""
        await until(lambda: self.learner(index)._stepper.done.tried >= steps)

    async def round(self, survivors: list[int], absent: tuple[int, ...] = (), ahead: tuple[int, ...] = ()) -> None:
        """A round of everybody's updates, during whose aggregation they train on. `absent` fetch its state afterwards
        from the first survivor."""
        table = self.table
        views = await table.upload()
        table.add_up(views, survivors)
        for index, steps in enumerate(ahead):
            await self.ahead(index, steps)
        before = table.learners[survivors[0]].state.parameters.astype(np.float64)
        present = [i for i in range(len(table.learners)) if i not in absent]
        roots = {(await table.learners[i].apply(views[i].aggregate))[0] for i in present}
        record = table.certify(views, survivors, roots.pop())
        assert not roots
        for index in present:
            await table.learners[index].commit(record, table.chain)
        for index in absent:
            assert await fetch(table.learners[index], table.learners[survivors[0]], record, table.chain)
        self.moved += (before - table.learners[survivors[0]].state.parameters) * len(survivors)

    async def restart(self, index: int) -> None:
        """Leave while training runs, and come back from the disk."""
        await self.learner(index).leave()
        self.table.learners[index] = self.table.make(index)
        self.watch(index)

    def kept(self, index: int) -> np.ndarray:
        """Residual and local progress, of one moment."""
        learner = self.learner(index)
        with learner._stepper.paused():
            return learner._residual + learner._progress.made(learner._trainer.local()).astype(np.float64)

    def check(self) -> None:
        """Everything learned has moved the certified state, or is in a residual, or is local progress: in one place."""
        count = len(self.table.learners)
        for index in range(count):  # still, so that all numbers are of one moment
            self.learner(index)._stepper._pauses += 1
            with self.learner(index)._stepper.paused():
                pass
        total = sum(self.learned)
        here = self.moved + sum(self.kept(index) for index in range(count))
        for index in range(count):
            self.learner(index)._stepper._pauses -= 1
            self.learner(index)._stepper.wake()
        assert np.abs(total).max() > 1e-3
        np.testing.assert_allclose(here, total, rtol=0, atol=2e-5)


@contextmanager
def watched(folder: Path, count: int = 3, **train: Any) -> Iterator[Watched]:
    here = Watched(folder, count, **train)
    try:
        yield here
    finally:
        for index in range(count):
            here.learner(index)._stepper.stop()


def test_the_manifest_chooses():
    assert learner_kind(tiny_manifest(3)) is Learner
    assert learner_kind(tiny_manifest(3, overlap=True)) is OverlappedLearner


# --- the identity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "fragments"), [(0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (1, 3)])
async def test_everything_learned_is_in_exactly_one_place(tmp_path: Path, seed: int, fragments: int):
    """Rounds with survivors by chance, members that miss one and fetch its state, void rounds, restarts."""
    dice = random.Random(seed)
    with watched(tmp_path, fragments=fragments) as swarm:
        await swarm.round([0, 1, 2])
        swarm.check()
        for _ in range(6):
            survivors = dice.choice([[0, 1, 2], [0, 1], [1, 2], [0, 2]])
            what = dice.choice(["round", "absent", "void", "restart"])
            ahead = tuple(dice.randrange(2 * STEPS) for _ in range(3))
            if what == "round":
                await swarm.round(survivors, ahead=ahead)
            elif what == "absent":  # with or without its update in the sum
                await swarm.round(survivors, absent=(dice.choice([i for i in range(3) if i != survivors[0]]),))
            elif what == "void":
                await swarm.table.upload()
                grow(swarm.table.chain)
            else:
                await swarm.restart(dice.randrange(3))
            swarm.check()
        await swarm.round([0, 1, 2])
        swarm.check()


async def test_progress_made_meanwhile_lands_on_the_new_state_with_the_moments(tmp_path: Path):
    with watched(tmp_path) as swarm:
        table, learner = swarm.table, swarm.learner(0)
        views = await table.upload()
        update, before = learner._residual.copy(), learner.state.parameters.copy()
        table.add_up(views, [0, 1, 2])
        await swarm.ahead(0, MOST_AHEAD * STEPS)  # as far as it goes: it stands still now
        made = learner._progress.made(learner._trainer.local())
        assert np.abs(made).max() > 1e-3
        np.testing.assert_allclose(before - learner._trainer.local(), update + made, atol=1e-6)
        roots = {(await one.apply(view.aggregate))[0] for one, view in zip(table.learners, views, strict=True)}
        record = table.certify(views, [0, 1, 2], roots.pop())
        step, moments = learner._trainer.step, _moments(learner)
        for one in table.learners:
            await one.commit(record, table.chain)
        assert learner.state.root() == record.state_root
        rest = learner._progress.made(learner._trainer.local()) - made  # what rounding lost of the update
        assert 0 < np.abs(rest).max() < 1e-4 < np.abs(made).max() / 10
        assert not learner._residual.any()
        np.testing.assert_allclose(learner._trainer.local(), learner.state.parameters - made - rest, atol=1e-6)
        assert learner._trainer.step == step == (1 + MOST_AHEAD) * STEPS
        assert all(np.array_equal(value, moments[name]) for name, value in _moments(learner).items())
        # The steps made meanwhile are the next update, at once and with their tokens; the rate's schedule knows them.
        assert learner._stepper.done.tokens == MOST_AHEAD * STEPS * STEP
        assert await learner.train(2) == MOST_AHEAD * STEPS * STEP
        np.testing.assert_allclose(learner._residual, rest + made, atol=1e-6)
        assert learner._trainer.rounds >= 1 + MOST_AHEAD


def _moments(learner: Learner) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in learner._trainer.state().arrays.items()}


async def test_the_update_is_local_steps_when_nothing_runs_ahead(tmp_path: Path):
    with watched(tmp_path) as swarm:
        learner = swarm.learner(0)
        assert await learner.train(1) == STEPS * STEP
        assert learner._statistics.steps == STEPS
        assert learner.train_seconds > 0


# --- what a round can come to -------------------------------------------------------------------------------------


async def test_a_missed_round_and_a_void_one_leave_the_update_for_the_next(tmp_path: Path):
    with watched(tmp_path) as swarm:
        late = swarm.learner(2)
        await swarm.round([0, 1])
        with late._stepper.paused():  # what it had sent in vain is its own progress again
            kept = late._progress.made(late._trainer.local())
            local = late._trainer.local().copy()
        tokens = late._tokens
        assert np.abs(kept).max() > 1e-3 and tokens >= STEPS * STEP and not late._residual.any()
        await swarm.table.upload()
        assert late._tokens >= tokens + STEPS * STEP
        assert float(np.dot(late._residual, kept)) > float(np.dot(kept, kept)) / 2
        grow(swarm.table.chain)
        both = late._residual.copy()
        await swarm.ahead(2, STEPS)
        assert np.array_equal(late._residual, both), "nobody touches an update between rounds"
        assert not np.array_equal(late._trainer.local(), local)
        await swarm.round([0, 1, 2])
        assert late._tokens == 0
        swarm.check()


async def test_what_was_sent_stays_as_it_was_until_the_round_is_decided(tmp_path: Path):
    """The update is encoded a second time to see what was sent: training on must not change it meanwhile."""
    with watched(tmp_path) as swarm:
        views = await swarm.table.upload()
        learner = swarm.learner(1)
        update = learner._residual.copy()
        await swarm.ahead(1, STEPS)
        ring = learner.encode(views[1], 0)
        assert np.array_equal(ring, swarm.table.rings[1][0])
        learner.interrupt()  # another round's decision hurries nobody, and takes nothing
        await swarm.ahead(1, 2 * STEPS)
        assert np.array_equal(learner._residual, update)


async def test_a_round_decided_while_the_update_is_awaited_ends_the_wait(tmp_path: Path):
    with watched(tmp_path, local_steps=10**6) as swarm:
        learner = swarm.learner(0)
        update = asyncio.ensure_future(learner.train(1))
        await swarm.ahead(0, 2)
        learner.interrupt()
        assert await update >= 2 * STEP
        await swarm.ahead(0, 1)  # and training goes on
        swarm.check()


async def test_leaving_while_training_runs_and_a_round_is_undecided(tmp_path: Path):
    """What was sent before is in the sum, and taken out after the return; what came later is brought along."""
    with watched(tmp_path) as swarm:
        table = swarm.table
        await swarm.round([0, 1, 2])
        views = await table.upload()
        table.add_up(views, [0, 1, 2])
        await swarm.ahead(2, 2)
        await swarm.restart(2)
        learner = swarm.learner(2)
        assert learner._stepper.done.steps >= 2, "the steps ahead count in the next update"
        made = learner._progress.made(learner._trainer.local())
        unseen = learner.state.parameters - learner._trainer.local()
        np.testing.assert_allclose(unseen, learner._residual + made, atol=1e-6)
        roots = {(await table.learners[i].apply(views[i].aggregate))[0] for i in (0, 1)}
        record = table.certify(views, [0, 1, 2], roots.pop())
        start = table.learners[0].state.parameters.astype(np.float64)
        for i in (0, 1):
            await table.learners[i].commit(record, table.chain)
        assert await fetch(learner, table.learners[0], record, table.chain)
        swarm.moved += (start - table.learners[0].state.parameters) * 3
        assert learner._tokens == 0
        swarm.check()


async def test_a_killed_peer_comes_back_as_its_last_round_left_it(tmp_path: Path):
    with watched(tmp_path) as swarm:
        old = swarm.learner(0)
        await swarm.round([0, 1, 2], ahead=(MOST_AHEAD * STEPS,) * 3)
        local, residual, step = old._trainer.local().copy(), old._residual.copy(), old._trainer.step
        new = swarm.table.make(0)  # nothing was saved since
        assert isinstance(new, OverlappedLearner)
        np.testing.assert_allclose(new._trainer.local(), local, atol=1e-6)
        assert np.array_equal(new._residual, residual)
        assert new._trainer.step == step and new._stepper.done.steps == MOST_AHEAD * STEPS
        assert new._trainer.batches.state() == old._trainer.batches.state()


async def test_rolling_back_keeps_the_branch_and_what_was_learned_since(tmp_path: Path):
    forked = Forked(tmp_path, overlap=True)
    learners = list(forked.learners)
    try:
        await forked.grow()
        learner = learners[3]
        assert isinstance(learner, OverlappedLearner)
        await until(lambda: learner._stepper.done.tried == MOST_AHEAD * STEPS)
        residual, made = learner._residual.copy(), learner._progress.made(learner._trainer.local())
        await forked.change(3)
        assert learner.state.root() == forked.left.head.state_root
        everything = made + residual + sum(forked.means)
        np.testing.assert_allclose(learner.state.parameters - learner._trainer.local(), everything, rtol=0, atol=4e-6)
        assert not learner._residual.any() and np.abs(sum(forked.means)).max() > 1e-3
        assert np.abs(made).max() > 1e-3
    finally:
        for one in learners:
            one._stepper.stop()  # type: ignore[attr-defined]


async def test_broken_training_sits_the_round_out_and_keeps_what_was_unseen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with watched(tmp_path) as swarm:
        learner = swarm.learner(0)
        await learner.train(1)
        update = learner._residual.copy()
        with learner._stepper.paused():
            learner._trainer.local()[5] = np.nan
        with caplog.at_level(logging.ERROR, logger="peer.learner"):
            assert await learner.train(2) == 1
        assert "sitting out round 2" in caplog.text and learner._health.idle
        assert np.array_equal(learner._residual, update)
        assert await learner.train(3) >= STEPS * STEP
        assert np.isfinite(learner._residual).all() and not np.array_equal(learner._residual, update)


async def test_steps_that_cannot_be_taken_end_the_wait(tmp_path: Path):
    """After so many bad steps in a row the trainer takes none: the learner must not wait for more, and starts over."""
    with watched(tmp_path, local_steps=10**6, max_bad_steps=2) as swarm:
        learner = swarm.learner(0)
        learner._trainer._gradient = lambda batch: float("nan")  # type: ignore[method-assign]
        assert await learner.train(1) == 1
        assert learner._health.idle and learner._trainer._bad_in_a_row < 3


async def test_an_error_in_training_reaches_who_waits_for_the_update(tmp_path: Path):
    with watched(tmp_path) as swarm:
        learner = swarm.learner(0)

        def explode(*_: Any) -> Any:
            raise MemoryError("no memory left")

        learner._trainer.train = explode  # type: ignore[method-assign]
        with pytest.raises(MemoryError, match="no memory left"):
            await learner.train(1)
        await learner.leave()


async def test_the_certified_parameters_are_measured_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with watched(tmp_path) as swarm:
        learner = swarm.learner(0)
        await learner.train(1)
        learner._heldout = learner._trainer.batches.data  # type: ignore[attr-defined]
        await swarm.ahead(0, MOST_AHEAD * STEPS)
        local = learner._trainer.local().copy()
        seen: list[np.ndarray] = []
        evaluate = learner._trainer.evaluate
        monkeypatch.setattr(
            learner._trainer, "evaluate", lambda b: seen.append(learner._trainer.local().copy()) or evaluate(b)
        )
        loss = await learner.evaluate(surely=False)
        assert loss is not None and np.array_equal(seen[0], learner.state.parameters)
        assert np.array_equal(learner._trainer.local(), local)
        assert await learner.evaluate(surely=False) is None, "so soon after the last time it would cost training"
        assert await learner.evaluate() == loss


# --- whole peers --------------------------------------------------------------------------------------------------


async def test_peers_agree_while_all_train_on(tmp_path: Path):
    async with Swarm(4, tmp_path, overlap=True) as swarm:
        record = await swarm.reach(5)
        assert len(record.survivors) == 4 and not record.void
        first = swarm.peers[0].participant.chain
        assert first is not None
        assert first.record(5).loss < first.record(1).loss
        for peer in swarm.peers:
            assert isinstance(peer.learner, OverlappedLearner)
            assert peer.learner.store.leaves(5) in (None, swarm.peers[0].learner.store.leaves(5))
        assert swarm.network.refused == []


async def test_a_peer_that_dies_and_one_that_leaves_come_back(tmp_path: Path):
    limits = {"join": 2.0, "shares": 5.0, "upload": 5.0, "survivors": 2.0, "unmask": 2.0, "sums": 3.0, "commit": 3.0}
    async with Swarm(5, tmp_path, limits, overlap=True) as swarm:
        await swarm.reach(1)
        await swarm.peers[4].kill()
        missed = await swarm.reach(swarm.peers[4].learner.round + 2)
        assert swarm.peers[4].id not in missed.members()
        back = await swarm.restart(4)

        def survived() -> bool:
            chain = back.participant.chain
            return chain is not None and any(
                back.id in chain.record(r).members() for r in range(missed.round + 1, back.learner.round + 1)
            )

        await until(survived, [peer.driver.failed for peer in swarm.living])
        learner = swarm.peers[3].learner
        await swarm.peers[3].leave()
        kept = learner._residual.copy()
        assert isinstance(learner, OverlappedLearner)
        made = learner._progress.made(learner._trainer.local())
        again = swarm.make(3)
        assert np.array_equal(again.learner._residual, kept)
        np.testing.assert_allclose(
            again.learner.state.parameters - again.learner._trainer.local(), made + kept, rtol=0, atol=1e-6
        )
        again.guard.close()
        swarm.network.gone.add(again.id)
        again = await swarm.restart(3)
        goal = max(peer.learner.round for peer in swarm.peers) + 2
        await swarm.reach(goal)
        heads = {peer.participant.chain.record(goal).hash() for peer in swarm.peers}  # type: ignore[union-attr]
        assert len(heads) == 1
