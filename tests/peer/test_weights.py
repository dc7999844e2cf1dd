"""What weights and data domains do to real learners: who is heard, which domain gains, and that all agree on it."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from averaging.aggregate import Aggregate
from averaging.plausible import ImplausibleSumError
from averaging.trailer import unpack
from peer.data import TokenBatches, TokenData
from peer.learner import Learner
from peer.manifest import Outer, Weights
from peer.prepared import Prepared
from tests.peer.learner_oracle import frozen
from tests.peer.learner_table import TOKENS, Table, fetch
from tests.peer.swarm_in_process import BATCH, SEQUENCE, Swarm, tiny_manifest

_SOURCE = random.Random(5)
_WORDS = [bytes(_SOURCE.choices(b"abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(40)]
EASY = b"the flock turns; " * 200
HARD = b" ".join(_SOURCE.choice(_WORDS) for _ in range(600))
CODE = b"def turn(flock): return [bird.turn(flock.near(bird)) for bird in flock if not bird.leads]\n" * 40
PROSE = b"starlings have no leader; each bird minds a few neighbours, and the flock turns as one. " * 40
DOMAINS = Weights(domains=("easy", "hard"), importance=1.0)


def text(data: bytes) -> TokenData:
    return TokenData(np.frombuffer(data, np.uint8), SEQUENCE, "text")


def table_of(folder: Path, texts: Sequence[bytes], weights: Weights, steps: Sequence[int]) -> Table:
    """A learner for each text, which gets so many local steps done before the deadline."""
    settings = {"learning_rate": 1e-2, "local_steps": max(steps), "tokens_per_round": max(steps) * BATCH * SEQUENCE}
    manifest = tiny_manifest(len(texts), weights=weights, **settings)
    table = Table(folder, len(texts), manifest.replace(outer=Outer(learning_rate=1.0, momentum=0.0)))
    for index, learner in enumerate(table.learners):
        learner._trainer.batches = TokenBatches(text(texts[index]), BATCH, index)
        train = dataclasses.replace(manifest.train, local_steps=steps[index])
        learner.manifest = table.manifest.replace(train=train)
    return table


def losses(learner: Learner, *texts: bytes) -> list[float]:
    return [learner._trainer.evaluate(text(data).evaluation(16, 64)) for data in texts]


@pytest.mark.parametrize(("by", "weights"), [("tokens", [4, 8, 2]), ("root", [32**0.5, 8, 4]), ("equal", [8, 8, 8])])
async def test_weights_follow_from_tokens_as_the_manifest_says(tmp_path: Path, by: str, weights: list[float]):
    table = Table(tmp_path, manifest=tiny_manifest(3).replace(weights=Weights(by=by, floor=0.25)))
    for learner in table.learners:
        await learner.train(1)
    before = frozen(table.learners[0].state)
    updates = [learner._residual.copy() for learner in table.learners]
    little = TOKENS // 4 if by == "tokens" else TOKENS // 2
    tokens = [TOKENS, 2 * TOKENS, little]
    record = await table.round(tokens=tokens)
    assert sorted(survivor.tokens for survivor in record.survivors) == sorted(tokens)  # the tally has tokens
    mean = sum(u * w for u, w in zip(updates, weights, strict=True)) / sum(weights)
    moved = before.parameters - table.learners[0].state.parameters
    np.testing.assert_allclose(moved, mean, atol=float(before.scales[0]) / 1000)
    if by != "equal":  # an unweighted mean would be far off
        assert np.abs(moved - sum(updates) / 3).max() > 20 * np.abs(moved - mean).max()


async def test_a_slow_peer_with_data_of_its_own_is_not_drowned(tmp_path: Path):
    prose = {}
    for by in ("tokens", "root"):
        table = table_of(tmp_path / by, (CODE, CODE, CODE, PROSE), Weights(by=by), (8, 8, 8, 2))
        for _ in range(7):
            record = await table.round()
        assert {survivor.tokens for survivor in record.survivors} == {8 * BATCH * SEQUENCE, 2 * BATCH * SEQUENCE}
        shares = table.chain.tally.shares
        slow = shares[bytes(table.ids[3])].tokens
        assert [shares[bytes(peer)].tokens for peer in table.ids[:3]] == [4 * slow] * 3  # whatever the weights
        prose[by] = losses(table.learners[0], PROSE)[0]
    assert prose["root"] < prose["tokens"] - 0.1


async def test_the_worst_domain_gains_by_importance(tmp_path: Path):
    worst = {}
    for importance in (0.0, 1.0):
        weights = dataclasses.replace(DOMAINS, importance=importance)
        table = table_of(tmp_path / str(importance), [EASY] * 5 + [HARD] * 3, weights, [4] * 8)
        table.domains = (1,) * 5 + (2,) * 3
        for _ in range(8):
            await table.round()
        easy, hard = table.learners[0].state.domains
        assert easy < 0.9 and hard > 1.2, "the domains' losses are known apart"
        worst[importance] = max(losses(table.learners[0], EASY, HARD))
    assert worst[1.0] < worst[0.0] - 0.2


async def test_domains_weigh_by_the_ratio_of_the_last_round(tmp_path: Path):
    table = table_of(tmp_path, [EASY] * 4 + [HARD] * 4, DOMAINS, [4] * 8)
    table.domains = (1,) * 4 + (2,) * 4
    for _ in range(3):
        await table.round()
    trailer = sum(ring[table.layout.trailer].astype(np.int64) for ring in table.rings)
    assert trailer[8::2].tolist() == [4, 4] and trailer[9] + trailer[11] == trailer[3]
    mean = trailer[3] / 8
    ratios = [min(max(trailer[9 + 2 * k] / 4 / mean, 0.5), 2.0) for k in range(2)]
    before = frozen(table.learners[0].state)
    known = table.learners[0].state.domains.copy()
    np.testing.assert_allclose(known, ratios, atol=2**-15)
    assert known[1] > known[0]
    for learner in table.learners:
        await learner.train(4)
    updates = [learner._residual.copy() for learner in table.learners]
    tokens = [4 * BATCH * SEQUENCE] * 7 + [BATCH * SEQUENCE]
    await table.round(tokens=tokens)
    weights = [math.sqrt(n / tokens[0]) * known[d - 1] for n, d in zip(tokens, table.domains, strict=True)]
    expected = sum(u * w for u, w in zip(updates, weights, strict=True)) / sum(weights)
    moved = before.parameters - table.learners[0].state.parameters
    error = np.abs(moved - expected).max()
    assert error < float(before.scales.max()) / 1000
    unweighted = sum(updates) / 8
    assert np.abs(moved - unweighted).max() > 20 * error


async def test_a_peer_back_before_the_decision_has_the_same_state(tmp_path: Path):
    table = table_of(tmp_path, [EASY] * 3 + [HARD] * 3, DOMAINS, [3] * 6)
    table.domains = (1,) * 3 + (2,) * 3
    await table.round()
    await table.round()
    assert table.learners[0].state.domains[1] != 1.0
    views = await table.upload()
    survivors = [0, 1, 3, 4, 5]
    table.add_up(views, survivors)
    roots = [(await learner.apply(view.aggregate))[0] for learner, view in zip(table.learners, views, strict=True)]
    assert len(set(roots)) == 1
    prepared = Prepared.load(table.learners[1]._prepared_path, table.layout)
    assert prepared is not None and sorted(prepared.domains) == [1, 1, 2, 2, 2] and prepared.survivors == 5
    back = table.make(1)
    record = table.certify(views, survivors, roots[1])
    assert await back.fetch(record, table.chain, [])
    await table.learners[0].commit(record, table.chain)
    assert back.state.root() == table.learners[0].state.root() == record.state_root
    assert back.state.domains.tobytes() == table.learners[0].state.domains.tobytes()


async def test_a_latecomer_fetches_the_ratios_with_the_state(tmp_path: Path):
    table = table_of(tmp_path, [EASY] * 3 + [HARD] * 3, DOMAINS, [3] * 6)
    table.domains = (1,) * 3 + (2,) * 3
    record = await table.round()
    table.folder = tmp_path / "late"
    late = table.make(5)
    assert late.state.domains.tolist() == [1.0, 1.0]
    assert await fetch(late, table.learners[0], record, table.chain)
    assert late.state.domains.tolist() == table.learners[0].state.domains.tolist() != [1.0, 1.0]


async def test_a_domain_with_too_few_peers_stays_untold(tmp_path: Path):
    table = table_of(tmp_path, [EASY] * 5 + [HARD], DOMAINS, [3] * 6)
    table.domains = (1,) * 5 + (2,)
    await table.round()
    trailer = sum(ring[table.layout.trailer] for ring in table.rings)
    assert trailer[8:].tolist() == [0, 0, 0, 0]  # the sixth peer's loss is not the difference of two sums
    assert table.learners[0].state.domains.tolist() == [1.0, 1.0]


async def test_a_weight_beyond_ones_tokens_is_bound_as_before(tmp_path: Path):
    """The trailer has the weighted update's norm: who multiplies by more is longer than it said."""
    table = table_of(tmp_path, [EASY] * 3, Weights(), [3] * 3)
    for learner in table.learners:
        await learner.train(1)
    views = await table.upload([BATCH * SEQUENCE // 16] * 3)
    liar = table.learners[0]
    assert liar._sent is not None and liar._sent.weight < 0.2
    liar._sent = dataclasses.replace(liar._sent, weight=1.0)
    table.rings[0] = {c: liar.encode(views[0], c).copy() for c in range(table.layout.total_chunks)}
    table.add_up(views, [0, 1, 2])
    with pytest.raises(ImplausibleSumError, match="clips long"):
        await table.learners[1].apply(views[1].aggregate)


async def test_two_cohorts_know_the_domains_of_all_survivors(tmp_path: Path):
    async with Swarm(7, tmp_path, target=4, weights=dataclasses.replace(DOMAINS, importance=0.5)) as swarm:
        chosen = {peer.id: k % 3 for k, peer in enumerate(swarm.peers)}
        found: list[Aggregate] = []
        for peer in swarm.peers:
            listen_in(peer.learner, found)
        record = await swarm.reach(2)
        assert not record.void and len(record.survivors) >= 6
        assert len(found) >= 14
        for aggregate in found:
            assert aggregate.domains == tuple(chosen[survivor.peer] for survivor in aggregate.survivors)
            totals = unpack(aggregate.sums[-1], len(aggregate.survivors))
            assert totals.plausible and len(totals.domains) == 2
        assert (
            len({peer.learner.store.chunk(2, len(peer.learner.state.schema.chunks) - 1) for peer in swarm.peers}) == 1
        )
        assert swarm.network.refused == []


def listen_in(learner: Learner, found: list[Aggregate]) -> None:
    apply = learner._apply

    def listen(aggregate: Aggregate) -> tuple[bytes, float]:
        found.append(aggregate)
        return apply(aggregate)

    learner._apply = listen  # type: ignore[method-assign]
