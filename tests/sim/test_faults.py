"""A fixed sample of the fault matrix (`tests/fault/matrix.py` runs all of it), and what its oracle must see."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fault.reliability import Row, table, write
from tests.sim.cases import DELTA, PEERS, USUAL, Case, started
from tests.sim.cheap import memoised
from tests.sim.cohort_cases import ALL_FAULTS, play
from tests.sim.faults import FaultSwarm, longest_round

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with memoised():
        yield


@pytest.mark.parametrize(("fault", "seed"), [(fault, k % 7) for k, fault in enumerate(ALL_FAULTS)])
def test_survivors_agree_on_exact_sums_in_time(fault, seed):
    outcome = play(fault, seed)
    assert outcome.fired, "the fault never happened"
    assert outcome.good, outcome
    if fault.startswith("kill"):
        assert outcome.victims == outcome.fired
        assert outcome.lost <= (outcome.victims > DELTA)


def test_a_case_is_the_same_history_again():
    assert play("split 3/13", 5) == play("split 3/13", 5)
    assert play("split 3/13", 5).trace != play("split 3/13", 6).trace


def test_more_deaths_than_a_quorum_can_spare_are_seen_as_a_hang():
    it = Case("six of sixteen die", 3)
    first = it.swarm.height() + 1
    for peer in it.some(6):
        it.swarm.crash(peer)
        it.fires()
    outcome = it.finish(first, limit=200)
    assert outcome.fired == 6
    assert outcome.hangs == 1
    assert not outcome.good and not outcome.divergent


def test_the_oracle_sees_wrong_sums_and_two_records():
    swarm = started(4)
    assert swarm.verdict() == ([], [])
    sid, results = next(iter(swarm.sums.items()))
    peer, aggregate = next(iter(results.items()))
    wrong = (aggregate.sums[0] + aggregate.sums[0].dtype.type(1), *aggregate.sums[1:])
    swarm.sums[sid][peer] = replace(aggregate, sums=wrong)
    assert len(swarm.verdict()[1]) == 1
    swarm.sums[sid][peer] = aggregate
    (record,) = swarm.records[1].values()
    other = replace(record, loss=record.loss + 1)
    swarm.records[1][other.hash()] = other
    assert "2 ways" in swarm.verdict()[0][0]


def test_a_fault_that_never_fires_is_not_a_success():
    outcome = Case("nothing", 1).finish(2)
    assert not outcome.good and not outcome.divergent and not outcome.hangs
    assert Row("nothing", 1, 0, 0, 0, 0, 0).good is False


def test_a_frozen_peer_takes_nothing_in_and_everything_afterwards():
    swarm = started(2)
    peer = swarm.order[3]
    swarm.freeze(peer, 10)
    frozen_at = swarm.now
    before = swarm.peers[peer].participant.round
    swarm.run(lambda: swarm.now > frozen_at + 9.9, 20)
    assert swarm.peers[peer].participant.round == before
    assert swarm.height() > before
    assert swarm.run(lambda: swarm.reached(swarm.height()), 60)
    assert swarm.fired["frozen"] == 1 and swarm.fired["late after the freeze"] > 10


def test_a_slow_link_carries_its_rate_and_no_more():
    swarm = FaultSwarm(PEERS, 1)
    one, two = swarm.order[:2]
    swarm.rate[one] = 1000.0
    swarm._size = 500
    delays = [swarm._transit(one, two) for _ in range(4)]
    assert delays == pytest.approx([0.5, 1.0, 1.5, 2.0], abs=0.06)


def test_the_deadline_counts_what_a_round_went_through():
    swarm = FaultSwarm(PEERS, 1, deadlines=USUAL)
    params, limits = swarm.params, USUAL
    plain = longest_round(params, PEERS, 1, 1, 0)
    assert longest_round(params, PEERS, 2, 1, 0) == pytest.approx(plain + 9)
    assert longest_round(params, PEERS, 2, 2, 0) == pytest.approx(plain + 9 + limits.total(PEERS))
    assert longest_round(params, PEERS, 1, 1, 2) > plain


def test_the_protocol_reads_no_clock():
    """So skewed clocks cannot touch it: time comes in as timers, and only the driver binds them to the event loop."""
    for path in sorted((ROOT / "averaging").glob("*.py")):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
        assert not names & {"time", "datetime"}, path.name


def test_the_page_gets_its_figures(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- simulator: begin -->\nold\n<!-- simulator: end -->\nafter\n")
    rows = [Row("a fault", 3, 3, 0, 0, 0, 1), Row("another", 3, 2, 0, 1, 0, 0, (2,))]
    write(rows, 3, page)
    text = page.read_text()
    assert "old" not in text and text.startswith("before\n") and text.endswith("after\n")
    assert "| a fault | 3 | 3 | 0 | 0 | 0 | 1 |" in text
    assert "| **all** | 6 | 5 | 0 | 1 | 0 | 1 |" in table(rows, 3)
