"""The whole demo on real processes: it keeps its promises, and an interrupt at any moment leaves nobody behind."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ENDING = 60
SMALL = ("--peers", "4", "--rounds", "18", "--steps", "3")


def start(folder: Path, *flags: str) -> subprocess.Popen[str]:
    # Its folder lies in TMPDIR, so that every process of the swarm has this test's path on its command line.
    environment = {**os.environ, "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "peer.demo", "--json", *flags]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def swarm_of(folder: Path) -> list[int]:
    """Processes that name `folder` on their command line: peers, bootstrap, yardsticks, and their libp2p daemons."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder) in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def folders(of: Path) -> list[Path]:
    """What demos left of their files."""
    return list(of.glob("murmuration-demo-*"))


def all_end(pids: list[int]) -> bool:
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        readable, _, _ = select.select([descriptor], [], [], ENDING)
        os.close(descriptor)
        if not readable:
            return False
    return True


@pytest.mark.timeout(420)
def test_the_demo_keeps_its_promises(tmp_path: Path) -> None:
    process = start(tmp_path, *SMALL)
    with process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    told = json.loads(out)
    assert told["ok"] and all(told["promises"].values()) and len(told["promises"]) == 7
    assert len(told["checkpoints"]) >= 2 and int(told["claimed"]) > 0
    assert int(told["slashed"]) == 500 * 10**18  # half of its stake
    assert told["killed"]["peer"] == "peer-4" and told["killed"]["step"] in ("upload", "survivors")
    assert told["killed"]["round"] < told["killed"]["back_in"] <= told["round"] == 18
    assert len({peer["root"] for peer in told["peers"].values()}) == 1
    assert len(told["peers"]) == 4 and all(peer["bytes_up"] > 1e6 for peer in told["peers"].values())
    assert told["heldout_loss"]["swarm"] < told["heldout_loss"]["start"]
    assert len(told["sample"]) > 50
    assert swarm_of(tmp_path) == [] and not folders(tmp_path)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("training text", signal.SIGINT),
        ("starting a chain", signal.SIGINT),
        ("round 1 ", signal.SIGINT),
        ("round 1 ", signal.SIGKILL),
    ],
)
def test_an_interrupt_leaves_no_process_behind(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    process = start(tmp_path, *SMALL)
    with process:
        assert process.stderr is not None
        assert any(moment in line for line in process.stderr), "the demo ended before its moment"
        before = swarm_of(tmp_path)
        process.send_signal(number)
        process.communicate()
    if moment == "round 1 ":
        assert len(before) >= 10  # four peers, the bootstrap, and a daemon each
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert all_end(before)
    assert swarm_of(tmp_path) == []
    if number == signal.SIGINT:
        assert not folders(tmp_path)


def test_too_small_a_swarm_is_refused(tmp_path: Path) -> None:
    process = start(tmp_path, "--peers", "3")
    with process:
        _, err = process.communicate()
    assert process.returncode == 2 and json.loads(err)["code"] == "MUR-100"
    assert not folders(tmp_path)
