"""The console command, as a real process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.eip712 import keccak

COMMAND = [sys.executable, "-m", "bootstrap.cli"]


class Process:
    """A running command, its output read line by line."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self, *signals: signal.Signals) -> tuple[int, str, str]:
        for number in signals:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Process]:
    process = Process("--port", "0", "--data-dir", str(tmp_path / "data"), "--json")
    yield process
    process.process.kill()
    process.process.communicate()


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def vanished(pid: int) -> bool:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def call(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_it_serves_keeps_its_identity_and_stops_cleanly(started: Process, tmp_path: Path) -> None:
    ready = json.loads(started.line())
    assert ready["event"] == "ready"
    assert all(address.endswith(f"/p2p/{ready['peer']}") for address in ready["addresses"])
    port = int(ready["addresses"][0].split("/")[4])
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    (daemon,) = children(started.process.pid)

    code, out, err = call("--port", "0", "--data-dir", str(tmp_path / "data"))
    assert code == 73
    assert f"in use by process {started.process.pid}" in err
    assert "Traceback" not in err

    code, out, err = call("--port", str(port), "--data-dir", str(tmp_path / "other"))
    assert code == 2
    assert f"port {port} is in use" in err

    code, out, err = started.end(signal.SIGTERM)
    assert code == 0, err
    assert [json.loads(line) for line in out.splitlines()] == [{"event": "stopped"}]
    assert vanished(daemon)

    again = Process("--port", "0", "--data-dir", str(tmp_path / "data"), "--join", ready["addresses"][0])
    address = again.line()
    assert address.endswith(f"/p2p/{ready['peer']}")
    code, out, err = again.end(signal.SIGINT)
    assert code == 0, err
    assert "refused" in err  # the address that it was told to join is its own old one
    assert "Traceback" not in err


def test_a_killed_server_leaves_no_daemon(started: Process) -> None:
    json.loads(started.line())
    (daemon,) = children(started.process.pid)
    assert started.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert vanished(daemon)


def test_a_dead_daemon_ends_the_server_with_a_reason(started: Process) -> None:
    json.loads(started.line())
    (daemon,) = children(started.process.pid)
    os.kill(daemon, signal.SIGKILL)
    code, _, err = started.end()
    assert code == 69
    assert "daemon died" in err
    assert "Traceback" not in err


def test_an_impatient_user_gets_out(tmp_path: Path, started: Process) -> None:
    json.loads(started.line())
    (daemon,) = children(started.process.pid)
    os.kill(daemon, signal.SIGSTOP)  # so that a clean stop cannot finish
    started.process.send_signal(signal.SIGINT)
    assert started.process.stderr is not None
    while "stopping" not in (line := started.process.stderr.readline()):
        assert line, "the server ended on its own"
    code, _, _ = started.end(signal.SIGINT)
    assert code == 130
    assert vanished(daemon)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--listen", "example.org:1"], 2, "not a multiaddr"),
        (["--port", "99999"], 2, "--port 99999"),
        (["--join", "/ip4/127.0.0.1/tcp/1"], 2, "which peer"),
        (["--prot", "1"], 2, "--port"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments: list[str], code: int, text: str) -> None:
    got, out, err = call(*arguments)
    assert got == code
    assert text in err
    assert out == ""
    assert "Traceback" not in err


def test_a_key_open_to_others_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "identity.key"
    key.write_bytes(b"\x08\x02\x12\x20" + bytes(31) + b"\x01")
    key.chmod(0o644)
    code, _, err = call("--port", "0", "--data-dir", str(tmp_path))
    assert code == 77
    assert f"chmod 600 {key}" in err


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; import bootstrap.cli; sys.exit(any(m in sys.modules for m in ('torch', 'hivemind', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
    code, out, _ = call("--help")
    assert code == 0
    assert "--data-dir" in out


def rpc(url: str, method: str, *params: object) -> dict[str, Any]:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def test_it_starts_a_chain_with_the_runs_contracts_and_goes_on_with_it(tmp_path: Path) -> None:
    run, attestors = "ab" * 32, ["11" * 20, "22" * 20]
    flags = [part for key in attestors for part in ("--attestor", key)]
    place = ("--port", "0", "--data-dir", str(tmp_path), "--json", "--chain", "embedded", "--chain-port", "0")
    heads = []
    for _ in range(2):
        server = Process(*place, "--run-id", run, *flags)
        try:
            chain = json.loads(server.line())["chain"]
            assert chain["kind"] == "embedded" and chain["run_id"] == f"0x{run}"
            assert json.loads(Path(chain["deployment"]).read_text())["contracts"] == chain["contracts"]
            (url,) = chain["rpc"]
            code = rpc(url, "eth_getCode", chain["contracts"]["CheckpointHub"], "latest")["result"]
            assert all(key in rpc(url, "eth_call", _attestors(chain), "latest")["result"] for key in attestors)
            assert "error" in rpc(url, "evm_increaseTime", 60)  # nobody moves the clock of a run's chain
            heads.append((int(rpc(url, "eth_blockNumber")["result"], 16), code, chain["contracts"]))
        finally:
            ended = server.end(signal.SIGTERM)
        assert ended[0] == 0, ended[2]
    assert heads[0] == heads[1] and heads[0][0] > 0


def _attestors(chain: dict[str, Any]) -> dict[str, str]:
    return {"to": chain["contracts"]["CheckpointHub"], "data": "0x" + keccak(b"attestors()")[:4].hex()}


def test_terms_of_a_chain_are_for_a_chain(tmp_path: Path) -> None:
    place = ("--port", "0", "--data-dir", str(tmp_path))
    for arguments, said in (
        (("--run-id", "ab" * 32), "are for a chain"),
        (("--chain", "auto", "--run-id", "ab"), "is not 32 bytes of hex"),
        (("--chain", "auto", "--attestor", "nobody"), "is not 20 bytes of hex"),
        (("--chain", "auto", "--chain-port", "70000"), "is no port"),
    ):
        code, out, err = call(*place, *arguments)
        assert (code, out) == (2, "") and said in err, err
