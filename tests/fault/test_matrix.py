"""The parts of the fault matrix that are not faults: shared histories, and the journal of a long run."""

from __future__ import annotations

from pathlib import Path

from tests.fault.branches import alone
from tests.fault.journal import Journal
from tests.fault.matrix import all_of
from tests.sim.cases import Outcome
from tests.sim.cheap import memoised
from tests.sim.cohort_cases import play

ONE = [Outcome("a fault", 1, 2, 1, ("void",), (), 0, 1, -0.1, "ab"), Outcome("another", 1, 1)]
FAULTS = ["a fault", "another"]


def test_kills_that_share_a_history_end_as_each_alone():
    faults = ["kill: R1 ready half said", "kill: R0 join", "kill: apply", "power cut"]
    outcomes = {outcome.fault: outcome for outcome in all_of(4, faults)}
    with memoised():
        assert outcomes == {fault: play(fault, 4) for fault in faults}
    assert all(outcome.fired and outcome.trace for outcome in outcomes.values())


def test_a_case_that_cannot_run_counts_as_hung():
    def broken() -> Outcome:
        raise AssertionError("no first round")

    outcome = alone("a fault", 1, broken)
    assert outcome.hangs == 1 and not outcome.good
    assert "no first round" in outcome.divergent[0]


def test_a_journal_of_the_same_code_goes_on(tmp_path: Path):
    path = tmp_path / "log"
    Journal(path, "c1", FAULTS).add(1, ONE)
    again = Journal(path, "c1", FAULTS)
    assert again.known == {1: ONE}
    again.add(2, ONE[:1])
    assert Journal(path, "c1", FAULTS).known == {1: ONE, 2: ONE[:1]}


def test_a_line_that_was_cut_off_is_forgotten(tmp_path: Path):
    path = tmp_path / "log"
    Journal(path, "c1", FAULTS).add(1, ONE)
    path.write_text(path.read_text() + '{"seed": 2, "outc')
    journal = Journal(path, "c1", FAULTS)
    assert journal.known == {1: ONE}
    journal.add(3, ONE)
    assert sorted(Journal(path, "c1", FAULTS).known) == [1, 3]


def test_a_journal_of_other_code_or_faults_is_begun_anew(tmp_path: Path):
    path = tmp_path / "log"
    for before, after, faults in (("c1", "c2", FAULTS), (None, None, FAULTS), ("c1", "c1", FAULTS[:1])):
        path.unlink(missing_ok=True)
        Journal(path, before, FAULTS).add(1, ONE)
        journal = Journal(path, after, faults)
        assert journal.known == {}
        assert "begun anew" in journal.news
        assert len(path.read_text().splitlines()) == 1
