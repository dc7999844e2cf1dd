"""The command line: help, exit codes, errors in one line, signals; with a stand-in for the node, in real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dht.errors import LockedError, MurmurationError, RoundError, UnreachableError
from dht.identity import Identity
from ledger.signatures import key_address
from peer.cli import parse
from peer.manifest import Manifest

FOUNDER = Identity(bytes([1] * 32)).peer_id
# A node that does one thing when it runs; the command line around it is the real one.
NODE = """
import asyncio, os, signal, sys, types
from peer import supervise
async def run_peer(config, manifest, reporter, stop):
    reporter.event("started", peer="p", addresses=["/a"], run=manifest.run_id, round=0)
    {body}
node = types.ModuleType("peer.node")
node.run_peer = run_peer
sys.modules["peer.node"] = node
from peer.cli import main
main(sys.argv[1:])
"""
UNTIL_STOPPED = "await stop.wait(); reporter.event('stopped', round=3, root=b'r')"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(Manifest.demo(str(FOUNDER)).dumps())
    return tmp_path


def start(*argv: str, node: str = UNTIL_STOPPED) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", NODE.format(body=node), "--data-dir", "data", *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    with process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def events(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def started(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"] == "started"


def cli(*argv: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "peer.cli", *argv]
    return finish(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, peer.cli\ntry:\n peer.cli.main(['--help'])\nexcept SystemExit as end:\n assert not end.code\n"
        "heavy = {'torch', 'hivemind', 'transformers', 'datasets', 'bitsandbytes', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("init", "status", "doctor", "export", "--bootstrap", "MURMURATION_DATA"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("argv", "name"),
    [([], "join"), (["init"], "init"), (["status"], "status"), (["doctor"], "doctor"), (["export", "x"], "export")],
)
def test_every_command_is_found(folder: Path, argv: Sequence[str], name: str) -> None:
    assert parse(argv)[0].__name__ == name


def test_an_unknown_flag_is_one_line_with_a_suggestion_and_exit_code_2(folder: Path) -> None:
    code, out, err = cli("--bootsrap", "x")
    assert (code, out) == (2, "")
    assert "MUR-100" in err and "Did you mean --bootstrap?" in err and len(err.splitlines()) == 1


def test_no_manifest_says_where_one_comes_from(tmp_path: Path) -> None:
    code, _, err = cli("--run", str(tmp_path / "gone.toml"))
    assert code == 2 and "run-peer init" in err


def test_json_reports_the_error_as_json(folder: Path) -> None:
    code, _, err = cli("--json", "--seed", "x")
    assert code == 2 and json.loads(err)["code"] == "MUR-100"


def test_a_run_creates_identity_status_and_log(folder: Path) -> None:
    code, out, err = finish(start("--json", node="import logging; logging.warning('a word')"))
    assert (code, err) == (0, "")
    assert [event["event"] for event in events(out)] == ["started"]
    Identity.load(folder / "data" / "identity.key")
    assert json.loads((folder / "data" / "status.json").read_text())["peer"] == "p"
    assert "a word" in (folder / "data" / "peer.log").read_text()


def test_without_json_lines_go_to_stderr_and_stdout_stays_empty(folder: Path) -> None:
    code, out, err = finish(start(node="pass"))
    assert (code, out) == (0, "")
    assert "peer p" in err and "listening on /a" in err


def test_the_environment_is_set_before_torch_could_be_imported(folder: Path) -> None:
    node = "reporter.event('seen', policy=os.environ['OMP_WAIT_POLICY'], torch='torch' in sys.modules)"
    code, out, _ = finish(start("--json", "--threads", "1", node=node))
    assert code == 0
    assert events(out)[1] | {"time": 0} == {"event": "seen", "time": 0, "policy": "PASSIVE", "torch": False}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_leaves_in_good_order(folder: Path, number: signal.Signals) -> None:
    process = start("--json")
    started(process)
    process.send_signal(number)
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    assert [event["event"] for event in events(out)] == ["leaving", "stopped"]
    assert json.loads((folder / "data" / "status.json").read_text())["state"] == "stopped"


def test_a_signal_while_python_is_busy_is_not_lost(folder: Path) -> None:
    # The node gets no event loop turn before the signal, as during a long import.
    node = "os.kill(os.getpid(), signal.SIGINT); " + UNTIL_STOPPED
    code, out, _ = finish(start("--json", node=node))
    assert code == 0 and events(out)[-1]["event"] == "stopped"


def test_the_second_interrupt_ends_at_once_with_130(folder: Path) -> None:
    process = start("--json", node="await stop.wait(); reporter.event('stuck'); await asyncio.sleep(600)")
    started(process)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    while json.loads(process.stdout.readline())["event"] != "stuck":
        pass
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130


def test_a_peer_that_does_not_leave_in_time_is_ended(folder: Path) -> None:
    # The thread would keep Python from ending for ten minutes.
    stuck = "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()"
    node = f"supervise.GRACE = 0.1; {stuck}; os.kill(os.getpid(), signal.SIGTERM); await asyncio.sleep(600)"
    code, out, _ = finish(start("--json", node=node))
    assert code == RoundError.exit_code
    assert events(out)[-1]["code"] == "MUR-700"


def test_errors_of_the_node_set_the_exit_code(folder: Path) -> None:
    node = "from dht.errors import UnreachableError; raise UnreachableError('nobody', remedy='wait')"
    code, out, err = finish(start(node=node))
    assert (code, out) == (UnreachableError.exit_code, "")
    assert err.splitlines()[-1] == "error [MUR-300] nobody (wait)"
    assert json.loads((folder / "data" / "status.json").read_text())["state"] == "failed"


def test_quiet_still_tells_errors(folder: Path) -> None:
    node = "from dht.errors import UnreachableError; raise UnreachableError('nobody', remedy='wait')"
    assert finish(start("--quiet", node=node))[1:] == ("", "error [MUR-300] nobody (wait)\n")


def test_a_crash_is_70_and_its_traceback_is_in_the_log(folder: Path) -> None:
    code, out, _ = finish(start("--json", node="raise ZeroDivisionError('oops')"))
    assert code == MurmurationError.exit_code == 70
    error = events(out)[-1]
    assert error["event"] == "error" and "ZeroDivisionError: oops" in error["message"] and "peer.log" in error["remedy"]
    assert "Traceback" in (folder / "data" / "peer.log").read_text()


def test_two_peers_cannot_share_a_folder(folder: Path) -> None:
    first = start("--json")
    started(first)
    code, _, err = finish(start())
    first.send_signal(signal.SIGTERM)
    assert finish(first)[0] == 0
    assert code == LockedError.exit_code and str(first.pid) in err
    # The loser left the winner's status alone.
    assert json.loads((folder / "data" / "status.json").read_text())["pid"] == first.pid


def test_sigusr1_writes_all_stacks_to_the_log(folder: Path) -> None:
    process = start("--json", node="os.kill(os.getpid(), signal.SIGUSR1); " + UNTIL_STOPPED)
    started(process)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 0
    assert "run_peer" in (folder / "data" / "peer.log").read_text()


@pytest.fixture
def running(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = start("--json")
    started(process)
    yield process
    process.send_signal(signal.SIGTERM)
    finish(process)


def test_status_tells_of_a_running_peer_and_then_of_a_dead_one(running: subprocess.Popen[str]) -> None:
    code, out, _ = cli("status", "--data-dir", "data", "--json")
    assert code == 0
    assert json.loads(out)["alive"] is True and json.loads(out)["pid"] == running.pid
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    code, out, _ = cli("status", "--data-dir", "data")
    assert code == UnreachableError.exit_code and "DEAD" in out


def test_identity_says_what_a_chain_needs_to_know(folder: Path) -> None:
    code, out, err = cli("identity", "--data-dir", "data", "--json")
    assert code == 0, err
    said = json.loads(out)
    me = Identity.load(folder / "data" / "identity.key").peer_id
    assert said == {
        "peer": str(me),
        "key_address": f"0x{key_address(me).hex()}",
        "run_id": Manifest.load(folder / "run.toml").run_id.hex(),
    }
    code, out, _ = cli("identity", "--data-dir", "data", "--run", "none.toml")
    assert code == 0 and said["key_address"] in out and "run id" not in out


def test_status_of_nothing_says_so(folder: Path) -> None:
    code, _, err = cli("status", "--data-dir", "none")
    assert code == 74 and "no peer has run" in err
