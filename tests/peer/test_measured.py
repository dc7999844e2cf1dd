"""What `run-peer plan` tells of quality is what the convergence benchmark measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peer.measured import ROWS, Measured, nearest, quality

TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "convergence.json"


@pytest.mark.parametrize("told", ROWS, ids=lambda row: row.row)
def test_each_row_is_the_tables(told: Measured) -> None:
    row = next(row for row in json.loads(TABLE.read_text())["rows"] if row["preset"] == told.row)
    assert (row["optimizer"], row["local_steps"]) == (told.optimizer, told.local_steps)
    assert (row["start"] == "warm", row["size"], row["split"]) == (told.warm, "0.36M", "iid")
    if told.under:
        assert (row["efficiency_muon"], row["efficiency_muon_bound"]) == (None, f"under {told.share:.2f}")
    else:
        assert told.share == row["efficiency_muon"]


def steps(optimizer: str, local_steps: int, *, warm: bool = False) -> list[int]:
    return [row.local_steps for row in nearest(optimizer, local_steps, warm=warm)]


def test_neighbours_below_and_above() -> None:
    assert steps("muon", 12) == [12]
    assert steps("muon", 30) == [18, 64]
    assert steps("muon", 4) == [12]
    assert steps("adamw8bit", 12) == steps("adamw", 12) == [12]
    assert steps("muon", 12, warm=True) == [12]


def test_what_is_far_from_all_that_was_measured_gets_no_figure() -> None:
    assert steps("muon", 2) == [] and steps("muon", 300) == [] and steps("muon", 5000) == []
    assert quality("muon", 2, warm=False) == ""
    assert quality("adamw", 12, warm=True) == ""


def test_the_words_tell_the_figure_and_its_setting() -> None:
    text = quality("muon", 14, warm=False)
    assert "76% at 12 local steps, 70% at 18 local steps" in text and "4 peers, a new model of 0.36M" in text
    assert "a trained model" in quality("muon", 12, warm=True)
    assert "under 40%" in quality("adamw", 12, warm=False)
