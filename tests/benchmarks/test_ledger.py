"""The ledger's benchmark with tiny numbers: what it measures is all there, and the aims on gas hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import ledger, report
from benchmarks.ledger_gas import AIMS
from benchmarks.ledger_speed import EVENTS_AIM, SIGNERS

TINY = ["--runs", "2", "--checkpoints", "1", "--events", "26", "--eth-usd", "1000"]


def test_everything_is_measured_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "OUT", tmp_path)
    path = ledger.run(ledger.arguments(TINY))
    assert path == tmp_path / "ledger.json"
    found = json.loads(path.read_text())
    assert set(found) == {"gas", "cost", "prices", "speed", "memory", "machine"}

    gas = {row["operation"]: row["gas"] for row in found["gas"]}
    assert len(gas) == len(found["gas"]) and all(isinstance(value, int) for value in gas.values())
    assert {name: gas[name] for name in AIMS if gas[name] > AIMS[name]} == {}
    assert gas["checkpoint_3_million_peers"] == pytest.approx(gas["checkpoint_3"], abs=100)

    assert found["prices"]["eth_usd"] == 1000
    assert {row["operation"] for row in found["cost"]} == {f"checkpoint_{signers}" for signers in SIGNERS}
    for row in found["cost"]:
        # Two words of 32 bytes for each signer, twelve of the header, and what every transaction has.
        assert 0 < row["bytes"] - 64 * int(row["operation"].removeprefix("checkpoint_")) - 384 < 250
        assert row["gas"] == gas[row["operation"]] and row["compressed"] < row["bytes"]

    speed = {(row["operation"], row["chain"]): row for row in found["speed"]}
    for chain in ("embedded", "anvil"):
        for operation in ("checkpoints by the sender", "checkpoints as raw transactions", "walk back 5 blocks"):
            row = speed.pop((operation, chain))
            assert row["runs"] == 2 and 0 < row["least"] <= row["median"] <= row["most"]
    assert {chain for _, chain in speed} == {"embedded", "anvil"}
    assert {row["aim"] for row in speed.values()} == {EVENTS_AIM}
    assert 50 < found["memory"]["peak_mb"] < found["memory"]["aim_mb"]


def test_a_quick_look_says_so_and_changes_nothing_else() -> None:
    quick, full = ledger.arguments(["--quick"]), ledger.arguments([])
    assert quick.runs == full.runs == 5
    assert (quick.checkpoints, quick.events) < (full.checkpoints, full.events)
