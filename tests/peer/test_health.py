"""A peer whose training breaks adds nothing to the round, keeps nobody waiting, and goes on or gives up."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dht.errors import ConfigError
from peer.health import ROUNDS, Health
from tests.peer.learner_oracle import signed
from tests.peer.learner_table import TOKENS, Table
from tests.peer.swarm_in_process import BATCH, SEQUENCE, STEPS, Swarm, tiny_manifest

BAD = {"max_bad_steps": 2}


def poison(learner: Any, while_: Callable[[], bool] = lambda: True) -> list[int]:
    """Make a learner's loss NaN as long as `while_`; returns the list that counts how often it was."""
    trainer, poisoned = learner._trainer, []
    real = trainer._loss

    def loss(batch: Any) -> Any:
        if not while_():
            return real(batch)
        poisoned.append(1)
        return real(batch) * math.nan

    trainer._loss = loss
    return poisoned


async def test_who_sits_out_adds_zeros_and_starts_over_from_the_certified_model(tmp_path: Path):
    table = Table(tmp_path, manifest=tiny_manifest(3, **BAD))
    sick = table.learners[1]
    told: list[tuple[str, dict[str, Any]]] = []
    sick.listen(lambda name, **fields: told.append((name, fields)))
    await table.round(survivors=[0, 2])  # its update of this round was late: it waits in the residual
    kept = sick._residual.copy()
    assert kept.any()
    turns = [False]  # one good step, then none
    poisoned = poison(sick, lambda: bool(turns.pop()) if turns else True)
    views = await table.upload()
    assert len(poisoned) == 2 < STEPS + 1
    assert views[1].tokens == 1
    assert not any(signed(table.rings[1][c]).any() for c in range(table.layout.chunks))
    assert np.array_equal(sick._trainer.local(), sick.state.parameters - kept)
    moments = [name for name in sick._trainer.state().arrays if name.startswith("optimizer/")]
    assert moments == [] and sick._trainer.step == 0
    fields = next(fields for name, fields in told if name == "sat_out")
    assert fields["round"] == 2 and "2 local steps in a row" in fields["reason"]
    assert [fields["in_a_row"] for name, fields in told if name == "skipped"] == [1, 2]
    # The sum has it as a member, and what it had learned before is still there for the next round.
    table.add_up(views, [0, 1, 2])
    applied = [await learner.apply(view.aggregate) for learner, view in zip(table.learners, views, strict=True)]
    record = table.certify(views, [0, 1, 2], applied[0][0])
    for learner in table.learners:
        await learner.commit(record, table.chain)
    np.testing.assert_allclose(sick._residual, kept, rtol=0, atol=1e-6)
    turns = [False] * STEPS
    poison(sick, lambda: False)
    assert await sick.train(3) == TOKENS
    assert not sick._health.idle and np.abs(sick._residual - kept).max() > 1e-4


async def test_what_was_not_sent_is_not_taken_out_after_a_restart(tmp_path: Path):
    table = Table(tmp_path, manifest=tiny_manifest(3, **BAD))
    await table.round(survivors=[0, 2])
    poison(table.learners[1])
    views = await table.upload()
    sick = table.learners[1]
    assert sick._sent is not None and sick._sent.idle
    await sick.leave()
    again = table.make(1)
    assert again._sent is None
    assert np.array_equal(again._residual, sick._residual) and again._residual.any()
    assert views[1].tokens == 1


async def test_steps_that_are_bad_now_and_then_are_only_skipped(tmp_path: Path):
    table = Table(tmp_path, manifest=tiny_manifest(3, **BAD))
    turns = [False, True, False]
    poisoned = poison(table.learners[0], lambda: turns.pop(0))
    assert await table.learners[0].train(1) == 2 * BATCH * SEQUENCE
    assert len(poisoned) == 1 and not table.learners[0]._health.idle


async def test_bad_steps_are_counted_over_rounds(tmp_path: Path):
    table = Table(tmp_path, manifest=tiny_manifest(3, max_bad_steps=STEPS + 1))
    learner = table.learners[0]
    poison(learner)
    await learner.train(1)
    assert not learner._health.idle
    await learner.train(2)
    assert learner._health.idle


async def test_the_third_round_in_a_row_ends_the_peer(tmp_path: Path):
    table = Table(tmp_path, manifest=tiny_manifest(3, **BAD))
    poison(table.learners[0])
    for round_ in range(1, ROUNDS):
        assert await table.learners[0].train(round_) == 1
    with pytest.raises(ConfigError, match="3 rounds in a row") as caught:
        await table.learners[0].train(ROUNDS)
    assert "lower train.learning_rate" in caught.value.remedy


def test_a_good_round_in_between_begins_the_count_again():
    health = Health()
    for cause in ("nan", "nan", "", "nan", "nan"):
        health.trained(cause)
        assert health.idle is bool(cause)
    with pytest.raises(ConfigError):
        health.trained("nan")


async def test_nobody_waits_for_who_sits_out(tmp_path: Path):
    # Three members bear no dropout: were it not in the sum, the round would be void,
    # after all deadlines (20 s each).
    swarm = Swarm(3, tmp_path, **BAD)
    sick = swarm.peers[2].learner
    poisoned = poison(sick, lambda: sick.round == 0)
    async with swarm, asyncio.timeout(60):
        await swarm.reach(2)
        chain = swarm.peers[0].participant.chain
        assert chain is not None
        tokens = [{entry.peer: entry.tokens for entry in chain.record(number).survivors} for number in (1, 2)]
        assert poisoned and not any(chain.record(number).void for number in (1, 2))
        assert tokens[0][bytes(swarm.peers[2].id)] == 1
        assert tokens[1] == {bytes(peer.id): TOKENS for peer in swarm.peers}
        assert np.isfinite(sick.state.parameters).all()
