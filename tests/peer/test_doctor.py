"""Every check finds what it is for, and says what to do about it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dht.identity import Identity
from peer import doctor
from peer.config import PeerConfig
from peer.doctor import Finding, as_json, describe, examine
from peer.manifest import Manifest
from peer.status import StatusReporter

Check = Callable[[PeerConfig], Iterator[Finding]]


@pytest.fixture
def config(tmp_path: Path) -> PeerConfig:
    identity = Identity.load_or_create(tmp_path / "identity.key")
    (tmp_path / "run.toml").write_text(Manifest.demo(str(identity.peer_id)).dumps())
    (tmp_path / "text.txt").write_text("some text")
    return PeerConfig(run=tmp_path / "run.toml", data_dir=tmp_path, data=str(tmp_path / "text.txt"))


def only(check: Check, config: PeerConfig) -> Finding:
    (finding,) = check(config)
    return finding


@pytest.mark.parametrize(
    "check",
    [
        doctor.check_python,
        doctor.check_import_shadowing,
        doctor.check_identity,
        doctor.check_data_folder,
        doctor.check_listen,
        doctor.check_manifest,
        doctor.check_data,
    ],
)
def test_all_is_well(config: PeerConfig, check: Check) -> None:
    assert only(check, config).verdict == "ok"


def test_a_foreign_module_of_our_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "ledger.py").write_text("")
    home = str(Path(doctor.__file__).resolve().parents[1])
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {home!r}]; from peer.config import PeerConfig\n"
    code += "from peer.doctor import *\nprint(*check_import_shadowing(PeerConfig()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'fail'" in out and str(tmp_path / "ledger.py") in out


def test_a_package_of_the_wrong_version_is_found(config: PeerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["msgpack>=1", "numpy>=999", "no-such-package", "also-missing; extra == 'dev'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: wanted)
    finding = only(doctor.check_packages, config)
    assert finding.verdict == "fail"
    assert "numpy is" in finding.cause and "no-such-package is missing" in finding.cause
    assert "msgpack" not in finding.cause and "also-missing" not in finding.cause


def test_an_identity_open_to_others_is_found(config: PeerConfig) -> None:
    config.identity_path.chmod(0o644)
    finding = only(doctor.check_identity, config)
    assert finding.verdict == "fail" and "chmod 600" in finding.remedy


def test_no_identity_yet_is_fine(config: PeerConfig) -> None:
    config.identity_path.unlink()
    assert only(doctor.check_identity, config).verdict == "ok"


def test_too_little_room_for_three_states_is_found(config: PeerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    StatusReporter(config.status_path).event("round", round=1, state_bytes=1000)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2999))
    assert only(doctor.check_data_folder, config).verdict == "fail"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(3000))
    assert only(doctor.check_data_folder, config).verdict == "ok"


def test_a_folder_that_cannot_be_written_is_found(config: PeerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert only(doctor.check_data_folder, config).verdict == "fail"


@pytest.mark.parametrize(("limit", "verdict"), [(64, "fail"), (256, "warn"), (1024, "ok")])
def test_a_low_file_limit_is_found(
    config: PeerConfig, monkeypatch: pytest.MonkeyPatch, limit: int, verdict: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert only(doctor.check_file_limit, config).verdict == verdict


def test_a_port_in_use_is_found_unless_this_peer_holds_it(config: PeerConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = replace(config, listen=(f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}",))
        assert only(doctor.check_listen, config).verdict == "fail"
        StatusReporter(config.status_path).event("joined", round=1, members=["a"])
        assert only(doctor.check_listen, config).verdict == "ok"


def test_a_clock_that_lies_is_found(config: PeerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_kernel_clock", lambda: (True, 0.001))
    assert only(doctor.check_clock, config).verdict == "ok"
    monkeypatch.setattr(doctor, "_kernel_clock", lambda: (False, 16.0))
    assert only(doctor.check_clock, config).verdict == "warn"
    readings = iter([time.time(), time.time(), time.time() + 5])
    monkeypatch.setattr(time, "time", lambda: next(readings))
    assert "moved by" in only(doctor.check_clock, config).cause
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert only(doctor.check_clock, config).verdict == "fail"


def test_the_kernel_tells_of_its_clock() -> None:
    synchronised, error = doctor._kernel_clock()
    assert synchronised is None or (error is not None and error >= 0)


def test_an_orphaned_daemon_is_found(config: PeerConfig, tmp_path: Path) -> None:
    # A copy of `sleep` under the daemon's name, whose parent ends at once.
    fake = tmp_path / "p2pd"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", fake)
    code = f"import subprocess; print(subprocess.Popen([{str(fake)!r}, '600'], stdout=-3, stderr=-3).pid)"
    orphan = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    try:
        deadline = time.monotonic() + 30
        while Path(f"/proc/{orphan}/stat").read_text().rpartition(")")[2].split()[1] != "1":
            if time.monotonic() > deadline:
                pytest.skip("orphans are not handed to process 1 here")
        finding = only(doctor.check_orphans, config)
        assert finding.verdict == "warn" and str(orphan) in finding.remedy
    finally:
        os.kill(orphan, 9)


def test_missing_or_broken_manifests_are_found(config: PeerConfig, tmp_path: Path) -> None:
    assert only(doctor.check_manifest, replace(config, run=tmp_path / "gone.toml")).verdict == "fail"
    config.run.write_text("[run]\n")
    (finding, *_) = [entry for entry in run_one(doctor.check_manifest, config)]
    assert finding.verdict == "fail" and finding.cause


def run_one(check: Check, config: PeerConfig) -> list[Finding]:
    before, doctor.CHECKS = doctor.CHECKS, (check,)
    try:
        return examine(config)
    finally:
        doctor.CHECKS = before


@pytest.mark.parametrize(("name", "verdict"), [("", "fail"), ("org/dataset", "warn"), ("empty", "fail")])
def test_data_that_cannot_be_read_is_found(config: PeerConfig, tmp_path: Path, name: str, verdict: str) -> None:
    (tmp_path / "empty").mkdir()
    data = str(tmp_path / "empty") if name == "empty" else name
    assert only(doctor.check_data, replace(config, data=data)).verdict == verdict


def test_no_bootstrap_is_worth_a_warning(config: PeerConfig) -> None:
    assert only(doctor.check_bootstrap, config).verdict == "warn"


def test_each_bootstrap_address_gets_its_verdict(config: PeerConfig) -> None:
    peer = Identity.generate().peer_id
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    config = replace(config, bootstrap=(f"/ip4/127.0.0.1/tcp/{closed}/p2p/{peer}",))
    finding = only(doctor.check_bootstrap, config)
    assert finding.verdict == "fail" and "refused" in finding.cause and finding.remedy


def test_a_check_that_crashes_is_a_finding(config: PeerConfig) -> None:
    def check_broken(config: PeerConfig) -> Iterator[Finding]:
        raise RuntimeError("torn")
        yield

    (finding,) = run_one(check_broken, config)
    assert (finding.check, finding.verdict) == ("broken", "fail") and "torn" in finding.cause


def test_findings_as_text_and_json() -> None:
    findings = [Finding("a", "ok", "fine", "unused"), Finding("b", "fail", "bad", "mend it")]
    text = describe(findings)
    assert "mend it" in text and "unused" not in text
    assert json.loads(json.dumps(as_json(findings))) == {"verdict": "fail", "checks": [asdict(f) for f in findings]}
    assert as_json(findings[:1])["verdict"] == "ok"
