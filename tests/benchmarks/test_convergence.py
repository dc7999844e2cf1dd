"""The convergence benchmark measures what peers do: the same bytes; and its figures follow from losses and bytes."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.convergence_methods import GradientSwarm, LowRankSwarm, OverlappedSwarm, RandomPartSwarm
from benchmarks.convergence_picture import draw
from benchmarks.convergence_presets import FULL, quick, reference_of
from benchmarks.convergence_run import Spec
from benchmarks.convergence_swarm import Swarm
from benchmarks.convergence_table import efficiency, rows_of, seconds_to, tokens_for
from dht.wire import digest
from peer.data import TokenData
from peer.init import recommended
from peer.manifest import Codec, Manifest, Outer
from peer.run_params import run_params
from tests.peer.learner_table import TOKENS, Table
from tests.peer.swarm_in_process import BATCH, SEQUENCE, TEXT, identity, tiny_manifest

PACKED = Codec(ring_bits=32, chunk_elements=4096, pack=10)


def manifest_of(codec: Codec = PACKED, **train: object) -> Manifest:
    manifest = tiny_manifest(3, **{"tokens_per_round": TOKENS, "decay_rounds": 4} | train)
    return manifest.replace(codec=codec, outer=Outer(learning_rate=0.8, momentum=0.6))


def swarm_of(manifest: Manifest, kind: type[Swarm] = Swarm) -> Swarm:
    shards = [TokenData(np.frombuffer(TEXT[index * 7 :], np.uint8), SEQUENCE, "text") for index in range(3)]
    swarm = kind(manifest, shards, BATCH, seed=0)
    for index, trainer in enumerate(swarm.trainers):  # the order of data that the table's learners have
        trainer.batches.seed = index  # type: ignore[attr-defined]
        trainer.batches._order = trainer.batches._shuffled()  # type: ignore[attr-defined]
    return swarm


@pytest.mark.parametrize(("optimizer", "fragments"), [("adamw", 1), ("muon", 1), ("muon", 2)])
async def test_it_comes_to_the_same_bytes_as_whole_learners(tmp_path: Path, optimizer: str, fragments: int) -> None:
    """Packed digits are rounded without dither, so that every bit of the state must agree."""
    manifest = manifest_of(dataclasses.replace(PACKED, fragments=fragments), optimizer=optimizer)
    table, swarm = Table(tmp_path, manifest=manifest), swarm_of(manifest)
    for number in range(1, 4):
        record = await table.round()
        swarm.train()
        swarm.aggregate(digest("sid", b"", number.to_bytes(4, "big")))
        assert swarm.state.root() == record.state_root
    for learner, residual in zip(table.learners, swarm.residuals, strict=True):
        assert np.array_equal(learner._residual, residual)
        assert residual.any()


def test_what_was_not_sent_stays_in_the_model_unless_told_otherwise() -> None:
    kept, beside = swarm_of(manifest_of()), swarm_of(manifest_of())
    beside.restart = True
    roots = []
    for swarm in (kept, beside):
        swarm.round()
        swarm.round()
        roots.append(swarm.state.root())
    assert roots[0] != roots[1]


def test_fragments_send_the_same_bytes_in_smaller_rounds() -> None:
    whole = next(row.spec for row in FULL if row.name == "home line")
    parts = next(row.spec for row in FULL if row.name == "four fragments")
    assert dataclasses.replace(parts, preset=whole.preset, local_steps=12, fragments=1, rate=whole.rate) == whole
    sizes = [run_params(spec.manifest(), 357_120).layout for spec in (whole, parts)]
    assert sizes[1].parameters == pytest.approx(sizes[0].parameters / 4, rel=0.02)
    assert parts.rounds == pytest.approx(4 * whole.rounds, abs=4)
    rotating = swarm_of(manifest_of(dataclasses.replace(PACKED, fragments=2)))
    assert -(-rotating.state.schema.elements // 4096) == 3  # blocks, of which the larger half has two
    assert rotating.payload() == pytest.approx(swarm_of(manifest_of()).payload() * 2 / 3, rel=0.01)


def test_methods_send_what_they_say() -> None:
    plain = swarm_of(manifest_of()).payload()
    part, rank = swarm_of(manifest_of(), RandomPartSwarm), swarm_of(manifest_of(), LowRankSwarm)
    part.part, rank.rank = 0.1, 2
    assert part.payload() == pytest.approx(plain / 10, abs=1)
    assert plain / 20 < rank.payload() < plain / 2
    for swarm in (part, rank):
        before = swarm.state.parameters.copy()
        swarm.round()
        assert np.isfinite(swarm.state.parameters).all()
        assert not np.array_equal(swarm.state.parameters, before)
    moved = swarm_of(manifest_of(), RandomPartSwarm)
    moved.part = 0.1
    before = moved.state.parameters.copy()
    moved.round()
    chosen = moved._chosen()
    # Ring words of rotated blocks spread rounding, so what was not chosen moves by no more than that.
    change = np.abs(moved.state.parameters - before)
    assert change[chosen].mean() > 2 * change[~chosen].mean()


def test_summed_gradients_take_one_step_for_all() -> None:
    swarm = swarm_of(manifest_of(Codec(ring_bits=32, chunk_elements=4096), local_steps=1, warmup=1), GradientSwarm)
    losses = [swarm.round() for _ in range(12)]
    assert losses[-1] < losses[0] - 0.2
    states = [trainer.local() for trainer in swarm.trainers]
    assert all(np.array_equal(states[0], other) for other in states[1:])
    assert swarm.outer.learning_rate == 0.8  # its swarm is made with the manifest's, whose rate must be 1 in the table
    assert all(row.spec.outer_rate == 1.0 for row in FULL if row.spec.method == "gradients")


def test_tokens_for_a_loss_lie_between_the_runs() -> None:
    curve = [(100, 2.0), (200, 1.5), (400, 1.2)]
    assert tokens_for(2.0, curve) == pytest.approx(100)
    assert tokens_for(1.2, curve) == pytest.approx(400)
    assert tokens_for(1.75, curve) == pytest.approx(100 * math.sqrt(2))
    assert tokens_for(2.1, curve) is None and tokens_for(1.1, curve) is None
    assert efficiency(1.5, 400, curve) == (0.5, "")
    assert efficiency(1.1, 400, curve) == (1.0, "at least")
    assert efficiency(2.1, 400, curve) == (None, "under 0.25")
    assert efficiency(math.nan, 400, curve) == (None, "unknown")


def test_seconds_count_training_bytes_and_round_trips() -> None:
    row = {"steps": 100, "curve": [(0.5, 2.0), (1.0, 1.0)]}
    assert seconds_to(1.0, row, 0.0, 0) == pytest.approx(25.0)
    assert seconds_to(1.5, row, 0.0, 0) == pytest.approx(18.75)
    assert seconds_to(1.0, row, 25e6, 10) == pytest.approx(45.0)
    assert seconds_to(0.9, row, 0.0, 0) is None


def result(spec: Spec, loss: float, bytes_: int) -> dict[str, object]:
    facts = dataclasses.asdict(spec) | {"steps": spec.steps, "rounds": spec.rounds, "parameters": 1000}
    return facts | {"loss": loss, "bytes_per_peer": bytes_, "cpu_seconds": 1.0, "curve": [(0.5, loss + 1), (1.0, loss)]}


def test_rows_are_measured_against_the_central_run_of_their_kind(tmp_path: Path) -> None:
    presets = quick()
    central = presets[0]
    losses = {central.name: 1.0}
    found = {p.name: [result(p.spec, losses.get(p.name, 1.25), 10**9 if p is central else 10**6)] for p in presets}
    tokens = central.spec.tokens
    table = rows_of(presets, found, {central.name: [(tokens // 2, 1.5), (tokens, 1.0)]})
    assert [row["efficiency"] for row in table][:2] == [None, None]  # AdamW's curve is of the standard size only
    assert [row["efficiency_muon"] for row in table][:2] == [1.0, pytest.approx(2**-0.5, abs=1e-3)]
    assert table[1]["bytes_ratio"] == 1000.0
    draw(tmp_path / "picture.png", table)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_asks_what_it_must() -> None:
    names = {row.name for row in FULL}
    assert len(names) == len(FULL)
    assert all(reference_of(row.spec) in names for row in FULL)
    assert all(row.spec.tokens >= 2_000_000 for row in FULL)
    headline = next(row for row in FULL if row.name == "home line")
    assert len(headline.seeds) == 3
    assert {row.spec.split for row in FULL} == {"iid", "kinds"}
    assert {row.spec.start for row in FULL} == {"scratch", "warm"}
    assert len({row.spec.size for row in FULL}) == 3


def test_init_writes_a_row_of_the_table_with_a_hundred_times_less_traffic() -> None:
    table = Path(__file__).parents[2] / "benchmarks" / "results" / "convergence.json"
    row = next(row for row in json.loads(table.read_text())["rows"] if row["preset"] == "home line, 4.6 bits")
    made = recommended(str(identity(0).peer_id), name="run", genesis_peers=4)
    assert (made.train.optimizer, made.train.local_steps) == (row["optimizer"], row["local_steps"])
    assert made.train.learning_rate == row["rate"]
    assert (made.outer.learning_rate, made.outer.momentum) == (row["outer_rate"], row["outer_momentum"])
    assert (made.codec.ring_bits, made.codec.pack) == (row["ring_bits"], row["pack"])
    assert row["bytes_ratio"] >= 100
    assert row["efficiency"] >= 0.85  # of one place with AdamW


def test_overlapped_peers_that_are_never_late_are_blocking_ones() -> None:
    late, blocking = (swarm_of(manifest_of(), kind) for kind in (OverlappedSwarm, Swarm))
    for swarm in (late, blocking):
        for _ in range(3):
            swarm.round()
    np.testing.assert_allclose(late.state.parameters, blocking.state.parameters, atol=2e-3)
    later = swarm_of(manifest_of(), OverlappedSwarm)
    later.late = 1
    for _ in range(3):
        later.round()
    steps = [trainer.step for trainer in later.trainers]
    assert steps == [trainer.step + 1 for trainer in blocking.trainers]
    assert not np.allclose(later.state.parameters, blocking.state.parameters, atol=2e-3)
