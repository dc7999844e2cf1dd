"""What a run costs, told in advance: the bytes are those of the layout, and the advice follows from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peer.cli import application
from peer.estimate import needs
from peer.manifest import Codec, Cohort, Manifest, Train
from peer.plan import Plan, describe, plan, traffic
from peer.run_params import run_params
from tests.peer.swarm_in_process import identity

PARAMETERS = 10_000_000


def manifest(**sections: object) -> Manifest:
    chosen: dict[str, object] = {"cohort": Cohort(target=8, minimum=5, reducer_copies=0, audit_share=0.0)}
    return Manifest.demo(str(identity(0).peer_id), **(chosen | sections))


def made(run: Manifest, peers: int = 8, line: float = 20.0, speed: float | None = None) -> Plan:
    return plan(run, PARAMETERS, PARAMETERS, 1, peers=peers, line_mbit=line, latency=0.1, tokens_per_second=speed)


def test_bytes_of_one_cohort_are_twice_the_vector_less_ones_own_part() -> None:
    run = manifest()
    layout = run_params(run, PARAMETERS).layout
    vector = sum(layout.chunk_bytes(c) for c in range(layout.total_chunks))
    assert traffic(layout, run, 8).up == round(2 * 7 / 8 * vector)
    copies = run.replace(cohort=Cohort(target=8, reducer_copies=1, audit_share=0.0))
    assert traffic(layout, copies, 8).up == round(2 * 7 / 8 * vector + vector / 8)


def test_packing_sends_a_fifth_of_sixteen_bits() -> None:
    packed = run_params(run := manifest(codec=Codec(ring_bits=32, pack=7)), PARAMETERS).layout
    plain = run_params(manifest(), PARAMETERS).layout
    assert traffic(plain, run, 8).up / traffic(packed, run, 8).up == pytest.approx(7 / 2, rel=0.01)


def test_many_cohorts_cost_about_a_models_size_more_and_no_more_with_their_number() -> None:
    run = manifest()
    layout = run_params(run, PARAMETERS).layout
    one, four, fifty = (traffic(layout, run, peers).up for peers in (8, 32, 400))
    assert one < four < 2 * one
    assert fifty == pytest.approx(four, rel=0.02)


def test_seconds_follow_from_the_line() -> None:
    slow, fast = made(manifest(), line=10.0), made(manifest(), line=1000.0)
    assert slow.line_seconds == pytest.approx(slow.up * 8e-7 + 1.0, abs=0.01)
    assert fast.line_seconds < 2
    assert slow.train_seconds is None and slow.training_share is None


def test_a_line_that_is_a_burden_gets_advice_that_helps() -> None:
    run = manifest(train=Train(local_steps=10, tokens_per_round=10_000))
    found = made(run, speed=1000.0)
    assert found.training_share is not None and found.training_share < 0.9
    advised = next(line for line in found.advice if "local_steps" in line)
    steps = int(advised.split("train.local_steps = ")[1].split()[0])
    longer = run.replace(train=Train(local_steps=steps, tokens_per_round=10_000 * steps // 10))
    after = made(longer, speed=1000.0)
    assert after.training_share is not None and after.training_share >= 0.899
    assert any("codec.pack = 7" in line for line in found.advice)
    assert any("train.overlap" in line for line in found.advice)
    assert made(run, line=10_000.0, speed=100.0).advice == ()


def test_too_short_deadlines_are_said() -> None:
    found = made(manifest(), line=1.0)
    assert any("deadlines" in line for line in found.advice)


def test_quality_is_said_where_it_was_measured() -> None:
    home = made(manifest(train=Train(optimizer="muon", local_steps=12)))
    assert "12 local steps" in home.quality and home.quality in describe(home)
    far = made(manifest(train=Train(optimizer="muon", local_steps=1000)))
    assert far.quality == "" and "quality" not in describe(far)


def test_the_words_name_the_numbers() -> None:
    text = describe(made(manifest(), speed=1000.0))
    assert "10,000,000 parameters" in text and "8 in 1 cohort" in text and "16 bits an element" in text


def test_the_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = manifest()
    (tmp_path / "run.toml").write_text(run.dumps())
    code = application([])(["plan", "--run", str(tmp_path / "run.toml"), "--line", "5", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert code == 0
    assert facts["parameters"] == needs(run).parameters
    assert facts["line_mbit"] == 5.0
