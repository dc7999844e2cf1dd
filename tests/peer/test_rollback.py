"""Rolling back: what a peer holds, keeps and brings again when another branch of the run stands."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from averaging.ballots import Certificate
from averaging.chain import Chain
from averaging.record import Record
from averaging.recovery import Recover, recovery_record
from averaging.survivors import bitmap
from dht.envelope import seal
from dht.identity import PeerId
from peer import durable
from peer.fragments import Fragments
from peer.history import ChainFrames, certify, open_chain
from peer.learner import Learner
from peer.manifest import Outer
from peer.outer import OuterStep
from peer.rollback import bring_again, part_in, pinned_rounds, shares, state_round
from peer.store import StateStore
from tests.peer.learner_table import TOKENS, Table, fetch
from tests.peer.swarm_in_process import grow, identity, tiny_manifest

OUTERS = [Outer(learning_rate=1.0, momentum=0.0), Outer(learning_rate=0.7, momentum=0.6)]


def recover(chain: Chain, members: list[PeerId]) -> None:
    """Append the recovery that these members of the committee sign."""
    committee = chain.committee()
    keys = {identity(index).peer_id: identity(index) for index in range(16)}
    chosen = tuple(sorted(committee.index(peer) for peer in members))
    record = recovery_record(chain.head, tuple(members))
    frame = Recover(record.round, chain.head.hash(), bitmap(chosen))
    signatures = tuple(seal(keys[committee[i]], chain.run, record.round, frame).signature for i in chosen)
    chain.append(record, Certificate(record.round, 0, record.hash(), chosen, signatures))


class Forked:
    """Six learners that went through one round together and then on two branches, three on each."""

    def __init__(self, folder: Path, outer: Outer = OUTERS[1], fragments: int = 1, **train: Any) -> None:
        manifest = tiny_manifest(6, **train)
        codec = replace(manifest.codec, fragments=fragments)
        self.table = Table(folder, 6, manifest.replace(outer=outer, codec=codec))
        self.learners, self.ids = self.table.learners, self.table.ids
        self.means: list[np.ndarray] = []

    async def grow(self, right: tuple[list[int], ...] = ([0, 1, 2], [0, 1]), left: int = 2) -> None:
        """One common round; `left` rounds of the left three; a round of the right three per list of survivors."""
        await self.table.round()
        base = self.table.chain
        self.left, self.right = base.branch(1), base.branch(1)
        recover(self.left, self.ids[:3])
        recover(self.right, self.ids[3:])
        self._seat(self.left, slice(0, 3))
        for _ in range(left):
            await self.table.round()
        self._seat(self.right, slice(3, 6))
        for survivors in right:
            views = await self.table.upload()
            self.table.add_up(views, survivors)
            seated = zip(self.table.learners, views, strict=True)
            applied = {(await learner.apply(view.aggregate))[0] for learner, view in seated}
            first = self.table.learners[0]
            assert first._prepared is not None
            outcome, mean = first._outcome(first._prepared), np.zeros_like(first._residual)
            gradient = np.concatenate(list(outcome.gradient()))
            mean[outcome.part] = gradient[: len(mean[outcome.part])]
            self.means.append(mean)
            record = self.table.certify(views, survivors, applied.pop())
            for learner in self.table.learners:
                await learner.commit(record, self.right)

    def _seat(self, chain: Chain, who: slice) -> None:
        self.table.chain, self.table.learners, self.table.ids = chain, self.learners[who], self.ids[who]

    def seat_all(self) -> None:
        """Everybody is on the left branch now."""
        self._seat(self.left, slice(0, 6))

    async def change(self, index: int) -> Learner:
        """Learner `index` goes over to the left branch."""
        assert await fetch(self.learners[index], self.learners[0], self.left.head, self.left)
        return self.learners[index]


@pytest.mark.parametrize("outer", OUTERS)
async def test_who_rolls_back_brings_the_branch_again_in_proportion_to_its_part(tmp_path: Path, outer: Outer):
    forked = Forked(tmp_path, outer)
    await forked.grow()
    progress = sum(forked.means)
    for index, share, tokens in ((3, 1.0, 2 * TOKENS), (5, 0.5, 2 * TOKENS)):  # the last one was in one of two sums
        learner = forked.learners[index]
        before = learner._residual.copy()
        learner = await forked.change(index)
        assert learner.state.root() == forked.left.head.state_root and learner.round == forked.left.head.round
        np.testing.assert_allclose(learner._residual, before + share * progress, rtol=0, atol=2e-6)
        assert np.abs(share * progress).max() > 1e-4, "there was something to bring"
        assert learner._tokens == tokens
    # What was learned on the abandoned branch reaches everybody in the next sum.
    await forked.change(4)
    forked.seat_all()
    start = forked.learners[0].state.parameters.copy()
    for learner in forked.learners:
        learner._trainer.train = lambda *_: _nothing()  # type: ignore[method-assign]
    updates = [learner._residual.copy() for learner in forked.learners]
    momentum = forked.learners[0].state.momentum.copy()
    await forked.table.round(tokens=[TOKENS] * 6)
    mean = sum(updates) / 6
    step = outer.learning_rate * (outer.momentum * (outer.momentum * momentum + mean) + mean)
    moved = start - forked.learners[0].state.parameters
    left_over = sum(learner._residual for learner in forked.learners) / 6
    np.testing.assert_allclose(moved + outer.learning_rate * (1 + outer.momentum) * left_over, step, atol=2e-5)


def _nothing() -> Any:
    return SimpleNamespace(steps=0, tokens=0, loss_mean=float("nan"))


async def test_training_that_was_not_summed_yet_is_kept_as_well(tmp_path: Path):
    forked = Forked(tmp_path)
    await forked.grow()
    learner = forked.learners[3]
    await learner.train(5)
    own = learner.state.parameters - learner._trainer.local()
    assert np.abs(own).max() > 1e-4
    learner._unfold()
    await forked.change(3)
    np.testing.assert_allclose(learner._residual, own + sum(forked.means), rtol=0, atol=2e-6)
    assert np.array_equal(learner._trainer.local(), learner.state.parameters)


async def test_a_failed_fetch_brings_nothing_twice(tmp_path: Path):
    forked = Forked(tmp_path)
    await forked.grow()
    learner = forked.learners[3]
    before = learner._residual.copy()
    assert not await learner.fetch(forked.left.head, forked.left, [])
    once = learner._residual.copy()
    np.testing.assert_allclose(once, before + sum(forked.means), rtol=0, atol=2e-6)
    await forked.change(3)
    assert np.array_equal(learner._residual, once)


async def test_an_update_on_its_way_when_the_branch_was_left_is_not_taken_out(tmp_path: Path):
    """It was sent in a round of the abandoned branch; the same round of the other one certified another sum."""
    forked = Forked(tmp_path)
    await forked.grow(left=3)
    forked._seat(forked.right, slice(3, 6))
    views = await forked.table.upload()
    learner = forked.learners[3]
    before = learner._residual.copy()
    assert views and learner._sent is not None and learner._sent.round == forked.left.head.round
    await forked.change(3)
    assert learner._sent is None
    np.testing.assert_allclose(learner._residual, before + sum(forked.means), rtol=0, atol=2e-6)


async def test_a_restart_on_the_abandoned_branch_rolls_back_all_the_same(tmp_path: Path):
    forked = Forked(tmp_path)
    await forked.grow()
    before = forked.learners[3]._residual.copy()
    forked.seat_all()
    forked.learners[3] = again = forked.table.make(3)
    stored = again.store.load_newest()
    assert stored is not None and stored.round == forked.right.head.round
    again.follow(open_chain(stored.frames, forked.right.run, forked.right.founder))
    assert np.array_equal(again._residual, before)
    await forked.change(3)
    np.testing.assert_allclose(again._residual, before + sum(forked.means), rtol=0, atol=2e-6)
    # And after another restart it is on the branch that stands, with what it brings.
    kept = again._residual.copy()
    last = forked.table.make(3)
    assert last.state.root() == forked.left.head.state_root
    assert np.array_equal(last._residual, kept)


async def test_without_the_state_where_the_branch_began_the_rest_is_kept_and_said(tmp_path: Path, caplog: Any):
    forked = Forked(tmp_path)
    await forked.grow()
    learner = forked.learners[3]
    before = learner._residual.copy()
    durable.discard(learner.store.folder / "rounds" / "00000001")
    with caplog.at_level(logging.WARNING, logger="peer.learner"):
        await forked.change(3)
    assert "what the branch after it learned is lost" in caplog.text
    np.testing.assert_allclose(learner._residual, before, rtol=0, atol=1e-7)
    assert learner.state.root() == forked.left.head.state_root


async def test_who_only_followed_brings_nothing(tmp_path: Path):
    forked = Forked(tmp_path)
    await forked.grow(right=([0, 1], [0, 1]))
    before = forked.learners[5]._residual.copy()
    await forked.change(5)
    np.testing.assert_allclose(forked.learners[5]._residual, before, rtol=0, atol=1e-7)


async def test_the_state_where_the_last_recovery_began_stays_on_disk(tmp_path: Path):
    forked = Forked(tmp_path)
    await forked.grow(left=4)
    winner, loser = forked.learners[0], forked.learners[3]
    assert winner.store.rounds() == [1, 5, 6] and loser.store.rounds() == [1, 3, 4]
    await forked.change(3)
    assert loser.store.rounds() == [1, 6], "no state of the abandoned branch is left"
    stored = loser.store.load_newest(lambda found: certify(found, forked.left.run, forked.left.founder))
    assert stored is not None and stored.root == forked.left.head.state_root
    assert StateStore(winner.store.folder, winner.store.schema).load_newest() is not None
    assert winner.store.rounds() == [1, 5, 6], "not cleared away on loading either"
    forked.left.finalize(6)
    forked.seat_all()
    for index in (4, 5):
        await forked.change(index)
    await forked.table.round()
    assert winner.store.rounds() == [6, 7], "nothing goes back behind a final round"


async def test_kill_9_at_any_moment_of_a_roll_back_leaves_one_branch_whole(tmp_path: Path):
    """A child process saves the other branch's state over its own and is killed at its first, second, ... write."""
    forked = Forked(tmp_path / "table")
    await forked.grow(right=([0, 1, 2],) * 3, left=2)
    source, target = forked.learners[3].store, forked.learners[0].store
    heads = {forked.right.head.state_root: forked.right, forked.left.head.state_root: forked.left}
    ends: list[bytes] = []
    for kill_at in range(1, 200):
        folder = tmp_path / f"kill-{kill_at}"
        shutil.copytree(source.folder, folder)
        finished = _killed(folder, kill_at, target, forked)
        store = StateStore(folder, source.schema)
        stored = store.load_newest(lambda found: certify(found, forked.left.run, forked.left.founder))
        assert stored is not None and stored.root in heads
        assert store.load_state(stored).root() == heads[stored.root].head.state_root
        ends.append(stored.root)
        if finished:
            break
    assert finished and len(ends) > 8
    assert ends[0] == forked.right.head.state_root and ends[-1] == forked.left.head.state_root
    assert ends == sorted(ends, key=lambda root: root == forked.left.head.state_root), "never back again"


def _killed(folder: Path, kill_at: int, donor: StateStore, forked: Forked) -> bool:
    """Whether a child that saves the left branch's head in `folder` came to its end before its `kill_at`-th write."""
    schema, head = donor.schema, forked.left.head
    leaves = donor.leaves(head.round)
    assert leaves is not None
    chunks = [donor.chunk(head.round, index) or b"" for index in range(len(leaves))]
    frames = ChainFrames().up_to(forked.left, head.round)
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    count = 0

    def counted(real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    try:
        store = StateStore(folder, schema)
        os.write, os.fsync, os.rename = (counted(call) for call in (os.write, os.fsync, os.rename))  # type: ignore[assignment]
        os.replace, os.unlink, os.rmdir = (counted(call) for call in (os.replace, os.unlink, os.rmdir))  # type: ignore[assignment]
        store.save(head.round, head.state_root, leaves, chunks, frames, pinned_rounds(forked.left, head.round))
    finally:
        os._exit(0 if count < kill_at else 1)


@pytest.mark.parametrize("outer", OUTERS)
async def test_each_fragment_is_brought_again_in_proportion_to_the_part_in_its_own_rounds(tmp_path: Path, outer: Outer):
    forked = Forked(tmp_path, outer, fragments=2)
    await forked.grow(right=([0, 1, 2], [0, 1], [0, 1]))  # the first fragment of the branch had two turns of its three
    numbers = [record.round for record in map(forked.right.record, range(3, 6))]
    first, second = (Fragments(len(forked.means[0]), 2).elements(number) for number in numbers[:2])
    assert first != second and forked.means[0][first].any() and not forked.means[0][second].any()
    progress = sum(forked.means)
    for index, share in ((3, {"first": 1.0, "second": 1.0}), (5, {"first": 0.5, "second": 0.0})):
        before = forked.learners[index]._residual.copy()
        learner = await forked.change(index)
        brought = learner._residual - before
        np.testing.assert_allclose(brought[first], share["first"] * progress[first], rtol=0, atol=2e-6)
        np.testing.assert_allclose(brought[second], share["second"] * progress[second], rtol=0, atol=2e-6)


# --- the parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("rate", "decay"), [(1.0, 0.0), (0.7, 0.7), (0.1, 0.95)])
def test_the_sum_of_mean_updates_follows_from_both_ends(nesterov: bool, rate: float, decay: float):
    rng = np.random.default_rng(4)
    outer = OuterStep(rate, decay, nesterov)
    state = first = (rng.standard_normal(3000).astype(np.float32), rng.standard_normal(3000).astype(np.float32))
    updates = [rng.standard_normal(3000).astype(np.float32) for _ in range(5)]
    for update in updates:
        state = outer.apply_slice(*state, update)
    residual = np.full(3000, 0.25, np.float32)
    bring_again(residual, outer, 0.5, first, state)
    np.testing.assert_allclose(residual, 0.25 + 0.5 * sum(updates), atol=2e-4)
    still = residual.copy()
    bring_again(residual, OuterStep(0.0, decay), 1.0, first, state)  # a rate of 0 moves nothing
    bring_again(residual, outer, 0.0, first, state)
    assert np.array_equal(residual, still)


def test_who_had_which_part(tmp_path: Path):
    table = Table(tmp_path)
    one, two = table.ids[:2]
    records: list[Record] = [grow(table.chain, survivors={one: 5, two: 1}), grow(table.chain)]
    records += [grow(table.chain, survivors={one: 7}), grow(table.chain, survivors={two: 2})]
    assert part_in(records, one) == (2 / 3, 12)
    assert part_in(records[1:2], one) == (0.0, 0)
    assert part_in([], one) == (0.0, 0)
    halves = Fragments(10_000, 2)
    assert list(shares(records, one, halves)) == [(slice(0, 8192), 1.0), (slice(8192, 10_000), 0.0)]
    assert list(shares(records, two, halves)) == [(slice(0, 8192), 0.5), (slice(8192, 10_000), 1.0)]
    assert list(shares(records, two, Fragments(10_000, 1))) == [(slice(0, 10_000), 2 / 3)]
    assert [state_round(table.chain, number) for number in range(5)] == [0, 1, 1, 3, 4]
    assert pinned_rounds(table.chain, 4) == ()
    grow(table.chain, survivors=dict.fromkeys(table.ids, 1))
    grow(table.chain)
    recover(table.chain, table.ids[:2])
    grow(table.chain, survivors={one: 1, two: 1})
    assert pinned_rounds(table.chain, 6) == ()
    assert pinned_rounds(table.chain, 7) == pinned_rounds(table.chain, 8) == (5,)
    table.chain.finalize(7)
    assert pinned_rounds(table.chain, 8) == ()
