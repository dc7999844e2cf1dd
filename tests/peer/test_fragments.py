"""Rotating fragments: every element has its turn, the rest keeps its bits, and nothing that was learned is lost."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging.layout import BLOCK
from averaging.scales import UNKNOWN
from dht.errors import ConfigError
from peer.fragments import Fragments
from peer.manifest import Codec, Manifest, Outer
from peer.overlapped import OverlappedLearner
from peer.plan import describe, plan
from peer.prepared import Prepared
from peer.run_params import run_params
from peer.state import SLICE
from tests.peer.learner_oracle import remember_states
from tests.peer.learner_table import TOKENS, Table
from tests.peer.swarm_in_process import Swarm, grow, tiny_manifest

SIZES = {"hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


@given(st.integers(1, 100 * BLOCK), st.integers(1, 64))
def test_every_element_is_in_exactly_one_fragment(parameters: int, count: int) -> None:
    try:
        fragments = Fragments(parameters, count)
    except ConfigError:
        assert count > 1 and parameters <= (count - 1) * -(-parameters // (count * BLOCK)) * BLOCK
        return
    assert fragments.size == parameters or fragments.size % BLOCK == 0
    parts = [fragments.elements(round_) for round_ in range(1, count + 1)]
    assert parts[0].start == 0 and parts[-1].stop == parameters
    assert all(one.stop == other.start for one, other in pairwise(parts))
    assert all(0 < part.stop - part.start <= fragments.size for part in parts)
    assert fragments.elements(count + 1) == parts[0]


def test_parts_are_padded_and_put_back() -> None:
    fragments = Fragments(3 * BLOCK - 100, 2)
    vector = np.arange(1, 3 * BLOCK - 99, dtype=np.float32)
    second = fragments.part(vector, 2)
    assert len(second) == fragments.size == 2 * BLOCK
    assert second[0] == 2 * BLOCK + 1 and second[BLOCK - 101] == 3 * BLOCK - 100 and not second[BLOCK - 100 :].any()
    clips = np.ones(3, np.float32)
    part = fragments.scales(clips, 2)
    assert len(part) == 2 and part[0] == 1 and 0 < part[1] < 1e-9
    back = fragments.put_back(clips, np.full(2, 5, np.float32), 2)
    assert back.tolist() == [1, 1, 5] and clips.tolist() == [1, 1, 1]
    whole = Fragments(100, 1)
    assert whole.part(vector[:100], 7).base is not None and np.shares_memory(whole.part(vector[:100], 7), vector)


def test_too_many_fragments_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"codec.fragments = 4 .* set codec.fragments = 3"):
        Fragments(6 * BLOCK, 4)  # three parts of two blocks are all of it
    Fragments(6 * BLOCK, 3), Fragments(6 * BLOCK, 6)
    with pytest.raises(ConfigError, match=r"set codec.fragments = 6"):
        run_params(manifest_of(7), 6 * BLOCK)


def manifest_of(fragments: int, **train: object) -> Manifest:
    manifest = tiny_manifest(3, **{"tokens_per_round": TOKENS} | train)
    config = manifest.model.config | SIZES
    codec = Codec(ring_bits=32, chunk_elements=65536, pack=10, fragments=fragments)
    model = type(manifest.model)(config=config, seed=3)
    return manifest.replace(model=model, codec=codec, outer=Outer(learning_rate=0.8, momentum=0.6))


def small(fragments: int) -> Manifest:
    """A model of three blocks."""
    manifest = tiny_manifest(3)
    return manifest.replace(codec=replace(manifest.codec, fragments=fragments))


async def test_a_round_moves_its_fragment_alone_and_all_have_their_turn(tmp_path: Path) -> None:
    table = Table(tmp_path, manifest=manifest_of(3))
    learner = table.learners[0]
    elements = learner.state.schema.elements
    fragments = Fragments(elements, 3)
    assert table.layout.parameters == fragments.size < SLICE < elements - SLICE  # fragments begin within chunks
    for number in range(1, 5):
        before = [vector.copy() for vector in (learner.state.parameters, learner.state.momentum, learner.state.scales)]
        await table.round()
        part, blocks = fragments.elements(number), fragments.blocks(number)
        after = (learner.state.parameters, learner.state.momentum, learner.state.scales)
        for old, new, here in zip(before, after, (part, part, blocks), strict=True):
            changed = np.nonzero(old != new)[0]
            assert len(changed) > 0.9 * (here.stop - here.start)
            assert here.start <= changed.min() and changed.max() < here.stop
        # What has not had its turn is in everybody's residual, and trains on in its own model.
        waiting = np.ones(elements, bool)
        waiting[part] = False
        assert np.abs(learner._residual[waiting]).mean() > 0
    roots = {one.state.root() for one in table.learners}
    assert len(roots) == 1


async def test_nothing_that_was_learned_is_lost(tmp_path: Path) -> None:
    """With plain averaging, what all peers learned together is where the certified model went and what still waits."""
    table = Table(tmp_path, manifest=manifest_of(2).replace(outer=Outer(learning_rate=1.0, momentum=0.0)))
    first, learned = table.learners[0].state.parameters.copy(), 0.0
    for _ in range(3):
        begun = [one.state.parameters - one._residual for one in table.learners]
        views = await table.upload()
        learned = learned + np.mean([b - one._trainer.local() for b, one in zip(begun, table.learners, strict=True)], 0)
        table.add_up(views, [0, 1, 2])
        roots = {(await one.apply(view.aggregate))[0] for one, view in zip(table.learners, views, strict=True)}
        record = table.certify(views, [0, 1, 2], roots.pop())
        for one in table.learners:
            await one.commit(record, table.chain)
    moved = first - table.learners[0].state.parameters
    waiting = np.mean([one._residual for one in table.learners], axis=0)
    assert np.abs(moved).max() > 1e-3 and np.abs(waiting).max() > 1e-3
    np.testing.assert_allclose(moved + waiting, learned, atol=1e-5)


async def test_a_restart_before_the_decision_takes_out_what_was_sent(tmp_path: Path) -> None:
    table = Table(tmp_path, manifest=manifest_of(2))
    await table.round()
    views = await table.upload()
    update = table.learners[1]._residual.copy()
    table.add_up(views, [0, 1, 2])
    await table.learners[1].leave()
    again = table.make(1)
    again.follow(table.chain)
    applied = {(await one.apply(view.aggregate))[0] for one, view in zip(table.learners, views, strict=True)}
    record = table.certify(views, [0, 1, 2], applied.pop())
    await table.learners[0].commit(record, table.chain)
    part = Fragments(again.state.schema.elements, 2).elements(2)
    await again.apply(views[1].aggregate)
    await again.commit(record, table.chain)
    assert again.state.root() == table.learners[0].state.root()
    np.testing.assert_allclose(again._residual[: part.start], update[: part.start], rtol=0, atol=1e-6)
    left, had = np.linalg.norm(again._residual[part]), np.linalg.norm(update[part])
    assert 0 < left < 0.8 * had


async def test_a_peer_back_after_its_attestation_goes_on_from_its_sums(tmp_path: Path) -> None:
    table = Table(tmp_path, manifest=small(2))
    await table.round()
    views = await table.upload()
    table.add_up(views, [0, 1, 2])
    roots = {(await one.apply(view.aggregate))[0] for one, view in zip(table.learners, views, strict=True)}
    back = table.make(1)  # killed right after it attested
    record = table.certify(views, [0, 1, 2], roots.pop())
    assert not roots
    assert await back.fetch(record, table.chain, []) and back.haul is None
    await table.learners[0].commit(record, table.chain)
    assert (back.round, back.state.root()) == (2, record.state_root) == (2, table.learners[0].state.root())


async def test_a_void_round_is_a_turn_and_its_part_waits_for_the_next(tmp_path: Path) -> None:
    table = Table(tmp_path, manifest=small(3))
    learner = table.learners[0]
    first, turns = learner.state.parameters.copy(), Fragments(learner.state.schema.elements, 3)
    await table.round()
    await table.upload()
    grow(table.chain)
    await table.round()
    waits = turns.elements(2)
    moved = np.abs(learner.state.parameters - first)
    assert not moved[waits].any() and moved[turns.elements(1)].any() and moved[turns.elements(3)].any()
    assert np.abs(learner._residual[waits]).max() > 10 * np.abs(learner._residual[turns.elements(3)]).max()
    await table.round()
    await table.round()
    assert table.chain.head.round == 5 and (learner.state.parameters != first)[waits].mean() > 0.9


async def test_padding_says_nothing_about_the_clips(tmp_path: Path) -> None:
    """Three blocks, two at a time: the second fragment has one of padding, whose clip is nobody's."""
    table = Table(tmp_path, manifest=small(2))
    for known in (2, 1):
        learner, before = table.learners[0], table.learners[0].state.scales.copy()
        await table.round()
        prepared = Prepared.load(learner._prepared_path, table.layout)
        assert prepared is not None
        energies = learner._outcome(prepared).energies()
        assert len(energies) == table.layout.blocks == 2
        assert [energy > 0 for energy in energies] == [True, known == 2] and (energies == UNKNOWN).sum() == 2 - known
        changed = np.nonzero(learner.state.scales != before)[0]
        assert changed.tolist() == ([0, 1] if known == 2 else [2]) and len(learner.state.scales) == 3


async def test_overlapped_learners_agree(tmp_path: Path) -> None:
    table = Table(tmp_path, manifest=manifest_of(2, overlap=True))
    try:
        assert all(isinstance(one, OverlappedLearner) for one in table.learners)
        for _ in range(2):
            await table.round()
        assert len({one.state.root() for one in table.learners}) == 1
    finally:
        for one in table.learners:
            one._stepper.stop()  # type: ignore[attr-defined]


async def test_whole_peers_in_two_cohorts_take_turns(tmp_path: Path) -> None:
    async with Swarm(7, tmp_path, target=4, codec=Codec(chunk_elements=4096, fragments=2)) as swarm:
        learner = swarm.peers[0].learner
        turns = Fragments(learner.state.schema.elements, 2)
        states = remember_states(learner)
        await swarm.reach(3)
        chain = swarm.peers[0].participant.chain
        assert chain is not None
        for number in (1, 2, 3):
            record = chain.record(number)
            assert not record.void and len(record.survivors) == 7
            assert set(swarm.peers[0].encoded[record.sid]) <= {0, 1, 2}  # two blocks and the trailer
            changed = np.nonzero(states[number].parameters != states[number - 1].parameters)[0]
            part = turns.elements(number)
            assert len(changed) > 0.9 * (part.stop - part.start)
            assert part.start <= changed.min() and changed.max() < part.stop
            assert states[number].root == record.state_root
        assert len({peer.learner.store.chunk(3, 1) for peer in swarm.peers}) == 1
        assert swarm.network.refused == []


def test_the_plan_of_a_fragmented_run_sends_less() -> None:
    given = {"peers": 3, "line_mbit": 20.0, "latency": 0.1, "tokens_per_second": None}
    whole, parts = (plan(manifest_of(p), 10**7, 10**7, 1, **given) for p in (1, 4))  # type: ignore[arg-type]
    assert parts.up == pytest.approx(whole.up / 4, rel=0.05)
    assert parts.dense_ratio == pytest.approx(4 * whole.dense_ratio, rel=0.05)
    assert "1 of 4 fragments" in describe(parts) and "fragments" not in describe(whole)
