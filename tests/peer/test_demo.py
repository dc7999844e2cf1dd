"""The demo's parts: what counts as kept promises, what is shown, and children that never outlive it."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from peer.demo.__main__ import summary
from peer.demo.processes import Swarm
from peer.demo.swarm import SCRIPT, Demo, Plan
from peer.demo.tracker import Death, Losses, Tracker, verdicts
from peer.demo.view import View, final_table, summary_lines

NAMES = ("peer-1", "peer-2", "peer-3")
LOSSES = Losses(start=5.5, swarm=2.5, alone=2.9)


def tracker() -> Tracker:
    made = Tracker(NAMES, "peer-3")
    for name in NAMES:
        made.take(name, {"event": "started", "peer": f"id-{name}", "run": "r", "addresses": [], "round": 0})
    return made


def certify(of: Tracker, number: int, root: str, names: tuple[str, ...] = NAMES, without: str = "") -> None:
    survivors = [f"id-{name}" for name in NAMES if name != without]
    for name in names:
        fields = {"survivors": survivors, "members": survivors, "heldout_loss": 3.0, "tokens": 10 * number}
        of.take(name, {"event": "round", "round": number, "void": False, "root": root, **fields})


def played() -> Tracker:
    made = tracker()
    certify(made, 1, "a")
    made.death = Death(2, "upload")
    made.take("peer-3", {"event": "ended", "code": -9})
    certify(made, 2, "b", names=("peer-1", "peer-2"), without="peer-3")
    made.take("peer-3", {"event": "started", "peer": "id-peer-3", "run": "r", "addresses": [], "round": 1})
    certify(made, 3, "c")
    made.take("peer-1", {"event": "checkpoint", "epoch": 1, "last_round": 3, "root": "c"})
    made.verified, made.claimed, made.slashed = {1}, 7, 500
    return made


def test_all_promises_kept() -> None:
    kept = verdicts(played(), LOSSES)
    assert all(kept.values()) and len(kept) == 7
    assert played().back_in == 3


def test_a_checkpoint_that_nobody_recomputed_is_not_enough() -> None:
    made = played()
    assert made.checkpoints == {1: "c"}
    made.verified = set()
    assert not verdicts(made, LOSSES)["anchored, and recomputed"]
    made.verified = {1}
    made.take("peer-1", {"event": "checkpoint", "epoch": 2, "last_round": 6, "root": "d"})
    assert not verdicts(made, LOSSES)["anchored, and recomputed"]


def test_nothing_claimed_or_nobody_slashed_is_not_enough() -> None:
    made = played()
    made.claimed = made.slashed = 0
    kept = verdicts(made, LOSSES)
    assert not kept["earned, and claimed"] and not kept["who signed two checkpoints was slashed"]


def test_a_fork_in_any_round_is_seen() -> None:
    made = played()
    made.roots[1]["peer-2"] = "other"
    assert made.forks() == [1] and not verdicts(made, LOSSES)["one root"]


def test_a_peer_that_did_not_reach_the_last_round_is_seen() -> None:
    made = played()
    certify(made, 4, "d", names=("peer-1", "peer-2"))
    assert not verdicts(made, LOSSES)["one root"]
    made.take("peer-3", {"event": "caught_up", "round": 4, "root": "d"})
    assert verdicts(made, LOSSES)["one root"]


def test_back_means_survivor_with_the_root_of_another() -> None:
    made = tracker()
    made.death = Death(2, "upload")
    certify(made, 2, "b")
    assert made.back_in is None  # the round of its death does not count
    certify(made, 3, "c", without="peer-3")
    assert made.back_in is None  # it only watched
    certify(made, 4, "d", names=("peer-3",))
    assert made.back_in is None  # nobody else has said so yet
    certify(made, 4, "d", names=("peer-1",))
    assert made.back_in == 4


def test_a_loss_that_rose_or_a_missing_death_fails() -> None:
    assert not verdicts(played(), Losses(2.0, 2.1, 1.0))["the loss fell"]
    assert not verdicts(tracker(), LOSSES)["killed in the middle of a round"]
    assert not verdicts(tracker(), LOSSES)["came back"]


def test_tokens_of_both_lives_count() -> None:
    made = played()
    assert made.tokens("peer-1") == 30
    assert made.tokens("peer-3") == 10 + 30


def shown(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_final_tables_name_every_peer_and_the_loner() -> None:
    text = shown(final_table(played(), LOSSES))
    assert all(name in text for name in NAMES) and "(killed)" in text
    assert "5.500 → 2.500" in text and "5.500 → 2.900" in text
    text = shown(summary_lines({"one root": True, "came back": False}, "def main():"))
    assert "yes one root" in text and "NO  came back" in text and "def main():" in text


def test_the_summary_is_json_with_everything() -> None:
    made = played()
    text = json.dumps(summary(made, LOSSES, verdicts(made, LOSSES), "sample", 1.0))
    read = json.loads(text)
    assert read["ok"] and read["round"] == 3 and read["killed"]["back_in"] == 3
    assert {entry["root"] for entry in read["peers"].values()} == {"c"}
    assert read["checkpoints"] == {"1": "c"}
    assert (read["claimed"], read["slashed"]) == ("7", "500")


def test_without_a_terminal_each_round_is_a_line() -> None:
    console = Console(file=io.StringIO(), width=160)
    made = tracker()
    view = View(made, console)
    with view.running():
        view.event(SCRIPT, {"event": "killed", "peer": "peer-3", "round": 2, "step": "upload"})
        for name in NAMES:
            view.event(name, {"event": "round", "round": 1, "root": "a", "survivors": [], "members": []})
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count("round 1 ·") == 1 and "killed peer-3 with SIGKILL in round 2 (upload)" in text


def test_the_live_view_shows_peers_and_rounds() -> None:
    made = played()
    certify(made, 4, "e" * 64)
    view = View(made, Console(file=io.StringIO(), force_terminal=True, width=160))
    text = shown(view.render())
    assert all(name in text for name in NAMES) and "eeeeeeee…" in text


def test_only_the_victim_in_the_middle_of_a_late_round_is_killed(tmp_path: Path) -> None:
    demo = Demo(Plan(tmp_path), tracker(), lambda *_: None)
    step = {"event": "step", "round": 3, "attempt": 0, "step": "upload"}
    assert demo._is_the_moment(step)
    assert not demo._is_the_moment({**step, "step": "train"})
    assert not demo._is_the_moment({**step, "round": 1})
    assert not demo._is_the_moment({**step, "event": "round"})
    demo._dying = Death(3, "upload")
    assert not demo._is_the_moment(step)


# A child that ignores what can be ignored and has a child of its own in its group.
STUBBORN = """
import json, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("not json")
print(json.dumps({"event": "ready", "pids": [grandchild.pid]}), flush=True)
time.sleep(600)
"""


def gone(pids: list[int]) -> bool:
    """Whether all these processes end, waiting for each if need be."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        readable, _, _ = select.select([descriptor], [], [], 30)
        os.close(descriptor)
        if not readable:
            return False
    return True


async def test_children_and_their_children_end_with_the_swarm(tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []
    swarm = Swarm(lambda _, event: events.append(event), {}, tmp_path)
    async with swarm:
        child = await swarm.start("one", [sys.executable, "-c", STUBBORN])
        assert await swarm.wait_for(lambda: "ready" in child.last, 60)
        pids = [child.process.pid, *child.last["ready"]["pids"]]
        for pid in pids:
            os.kill(pid, 0)
    assert child.code == -signal.SIGKILL
    assert [event["event"] for event in events] == ["ready", "ended"]
    assert gone(pids)


def test_children_end_even_when_we_are_killed(tmp_path: Path) -> None:
    code = f"""
import asyncio, json, sys
from pathlib import Path
from peer.demo.processes import Swarm
async def main():
    async with Swarm(lambda *_: None, {{}}, Path({str(tmp_path)!r})) as swarm:
        child = await swarm.start("one", [sys.executable, "-c", "import time; time.sleep(600)"])
        print(child.process.pid, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        os.kill(parent.pid, signal.SIGKILL)
    assert gone([pid])


async def test_settings_of_the_users_own_peer_do_not_reach_the_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MURMURATION_RUN", "elsewhere.toml")
    code = "import json, os; print(json.dumps({'event': 'env', 'own': 'MURMURATION_RUN' in os.environ}))"
    async with Swarm(lambda *_: None, {}, tmp_path) as swarm:
        child = await swarm.start("one", [sys.executable, "-c", code])
        assert await swarm.wait_for(lambda: "ended" in child.last, 60)
    assert child.last["env"]["own"] is False and child.last["ended"]["code"] == 0
