"""The snapshot follows the events, survives on disk, and becomes metrics."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from dht.errors import ConfigError, StorageError
from peer.status import LOSSES_KEPT, MetricsServer, Snapshot, StatusReporter, describe, is_alive, metrics, read

ROUND = {
    "round": 7,
    "void": False,
    "survivors": ["a", "b"],
    "members": ["a", "b", "c"],
    "heldout_loss": 3.5,
    "train_loss": 3.4,
    "tokens": 100,
    "bytes_up": 10,
    "bytes_down": 20,
    "seconds": {"train": 1.0, "aggregate": 0.5, "wait": 0.25},
    "root": b"\x09" * 32,
    "state_bytes": 1000,
}


def test_rounds_add_up() -> None:
    snapshot = (
        Snapshot()
        .apply("round", ROUND, 1.0)
        .apply("round", {**ROUND, "round": 8, "heldout_loss": 3.4, "tokens": 200}, 2.0)
    )
    assert (snapshot.round, snapshot.rounds, snapshot.tokens) == (8, 2, 200)
    assert (snapshot.bytes_up, snapshot.bytes_down) == (20, 40)
    assert snapshot.seconds == {"train": 2.0, "aggregate": 1.0, "wait": 0.5}
    assert snapshot.heldout_losses == (3.5, 3.4)
    assert (snapshot.survivors, snapshot.members, snapshot.root) == (2, 3, "09" * 32)


def test_a_void_round_counts_apart_and_keeps_the_root() -> None:
    before = Snapshot().apply("round", ROUND, 1.0)
    after = before.apply("round", {"round": 8, "void": True, "survivors": [], "members": ["a"]}, 2.0)
    assert (after.rounds, after.void_rounds, after.root, after.heldout_losses) == (1, 1, before.root, (3.5,))


def test_training_is_followed() -> None:
    measured = {"micro": 4, "tokens_per_second": 5000.4, "sequences": 8, "accumulation": 2}
    snapshot = Snapshot().apply("batch", measured, 1.0)
    assert (snapshot.micro_batch, snapshot.tokens_per_second) == (4, 5000.4)
    snapshot = snapshot.apply("out_of_memory", {"before": 4, "micro": 2}, 2.0)
    snapshot = snapshot.apply("round", {**ROUND, "tokens_per_second": 4000.0}, 3.0)
    assert (snapshot.micro_batch, snapshot.tokens_per_second) == (2, 4000.0)
    assert snapshot.apply("round", {**ROUND, "tokens_per_second": 0.0}, 4.0).tokens_per_second == 4000.0
    said = describe(snapshot, alive=True, now=4.0)
    assert "4000 tokens/s · micro-batches of 2" in said and "trouble" not in said
    for _ in range(2):
        snapshot = snapshot.apply("skipped", {"loss": float("nan"), "norm": 1.0, "in_a_row": 1}, 5.0)
    snapshot = snapshot.apply("sat_out", {"round": 8, "reason": "loss not finite"}, 6.0)
    said = describe(snapshot, alive=True, now=6.0)
    assert "2 local steps skipped, 1 rounds sat out (loss not finite)" in said
    values = {metric.name: metric.samples[0].value for metric in metrics(snapshot)}
    assert values["murmuration_tokens_per_second"] == 4000.0 and values["murmuration_micro_batch"] == 2
    assert values["murmuration_skipped_steps"] == 2 and values["murmuration_sat_out_rounds"] == 1
    assert "murmuration_tokens_per_second" not in {metric.name for metric in metrics(Snapshot())}


def test_state_follows_the_events() -> None:
    snapshot = Snapshot().apply("started", {"peer": "p", "run": b"\x01", "addresses": ["/a"], "round": 3}, 1.0)
    assert (snapshot.peer, snapshot.run, snapshot.addresses, snapshot.round) == ("p", "01", ("/a",), 3)
    waiting = snapshot.apply("waiting", {"reason": "alone"}, 2.0)
    assert (waiting.state, waiting.reason, waiting.updated) == ("waiting", "alone", 2.0)
    running = waiting.apply("joined", {"round": 4, "members": ["a", "b"]}, 3.0)
    assert (running.state, running.reason, running.members) == ("running", "", 2)
    stepping = running.apply("step", {"round": 4, "attempt": 0, "step": "upload"}, 4.0)
    assert stepping.step == "upload"
    assert stepping.apply("stopped", {"round": 4}, 5.0).state == "stopped"
    failed = stepping.apply("error", {"code": "MUR-300", "message": "nobody"}, 5.0)
    assert (failed.state, failed.reason) == ("failed", "[MUR-300] nobody")
    assert stepping.apply("something new", {"x": 1}, 9.0) == replace(stepping, updated=9.0)


def test_the_tail_of_losses_is_bounded() -> None:
    snapshot = Snapshot()
    for _ in range(LOSSES_KEPT + 5):
        snapshot = snapshot.apply("round", ROUND, 1.0)
    assert len(snapshot.heldout_losses) == LOSSES_KEPT


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    reporter = StatusReporter(tmp_path / "status.json")
    reporter.event("started", peer="p", run="r", addresses=("/a", "/b"), round=1)
    reporter.event("round", **ROUND)
    assert read(tmp_path / "status.json") == reporter.snapshot
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]


def test_a_folder_that_cannot_be_written_loses_the_snapshot_not_the_round(tmp_path: Path) -> None:
    reporter = StatusReporter(tmp_path / "gone" / "status.json")
    reporter.event("round", **ROUND)
    assert reporter.snapshot.rounds == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"addresses": [], "heldout_losses": [], "what": 1}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "status.json"
    path.write_text(text)
    with pytest.raises(StorageError, match=r"status\.json"):
        read(path)


def test_no_file_says_that_no_peer_has_run(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no peer has run"):
        read(tmp_path / "status.json")


def test_alive_means_this_very_process(tmp_path: Path) -> None:
    mine = StatusReporter(tmp_path / "status.json").snapshot
    assert is_alive(mine)
    # A process that began after the snapshot's is another one that got its pid.
    assert not is_alive(replace(mine, started=mine.started - 1e6))
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not is_alive(replace(mine, pid=child.pid))


def test_a_dead_peer_is_called_dead_unless_it_said_goodbye() -> None:
    running = Snapshot(pid=os.getpid(), state="running")
    assert "DEAD" in describe(running, alive=False, now=1.0)
    assert "ended" in describe(replace(running, state="stopped"), alive=False, now=1.0)
    assert "running" in describe(running, alive=True, now=1.0)


def test_metrics_are_the_snapshot(tmp_path: Path) -> None:
    reporter = StatusReporter(tmp_path / "status.json")
    server = MetricsServer(reporter, 0)
    try:
        reporter.event("round", **ROUND)
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
            text = answer.read().decode()
        with pytest.raises(ConfigError, match="not free"):
            MetricsServer(reporter, server.port)
    finally:
        server.close()
    for line in (
        "murmuration_round 7.0",
        "murmuration_rounds_total 1.0",
        "murmuration_heldout_loss 3.5",
        'murmuration_seconds_total{part="train"} 1.0',
        "murmuration_bytes_sent_total 10.0",
    ):
        assert line in text.splitlines()
