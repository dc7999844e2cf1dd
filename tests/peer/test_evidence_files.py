"""Evidence on disk and on the command line: whole or not there, bounded, verified by one command without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from averaging.evidence import verify
from averaging.messages import Vote
from dht.errors import EvidenceError
from dht.wire import digest, encode
from peer import cli, evidence_files
from peer.evidence_files import EvidenceFiles, prove
from peer.manifest import Manifest
from tests.averaging.cohort_net import identity
from tests.averaging.lies import two, wrong_sum

SID = digest("sid")
VOTES = encode(two(Vote(SID, 7, 7, bytes(32)), Vote(SID, 7, 7, SID)))


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_what_is_saved_is_read_and_saved_once(tmp_path: Path):
    files = EvidenceFiles(tmp_path)
    assert list(files.frames()) == []
    path = files.save(VOTES)
    assert path is not None
    assert files.save(VOTES) == path
    assert list(files.frames()) == [VOTES]
    assert prove(path).accused == identity(0).peer_id
    assert [entry.name for entry in files.folder.iterdir()] == [path.name]


def test_a_full_folder_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evidence_files, "MAX_HELD", 1)
    files = EvidenceFiles(tmp_path)
    assert files.save(VOTES) is not None
    assert files.save(encode(wrong_sum(3, 0))) is None
    assert list(files.frames()) == [VOTES]


def test_an_oversized_file_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = EvidenceFiles(tmp_path)
    files.save(VOTES)
    monkeypatch.setattr(evidence_files, "EVIDENCE_CAP", 10)
    assert list(files.frames()) == []


def test_one_command_verifies_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    frame = encode(wrong_sum(3, 0))
    (tmp_path / "a.evidence").write_bytes(frame)
    proof = verify(frame)
    code, out, _ = run(capsys, "evidence", "verify", "a.evidence")
    assert code == 0
    assert str(proof.accused) in out and "wrong sum" in out
    code, out, _ = run(capsys, "evidence", "verify", "a.evidence", "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["proven"], facts["accused"], facts["round"]) == ("wrong sum", str(proof.accused), 1)
    assert facts["run"] == proof.run.hex()


@pytest.mark.parametrize("damage", ["cut", "altered", "empty", "missing"])
def test_a_file_that_proves_nothing_is_a_clear_error(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    altered = VOTES[:-1] + bytes([VOTES[-1] ^ 1])
    content = {"cut": VOTES[:-10], "altered": altered, "empty": b""}.get(damage)
    if content is not None:
        (tmp_path / "a.evidence").write_bytes(content)
    code, out, err = run(capsys, "evidence", "verify", "a.evidence", "--json")
    assert (code, out) == (EvidenceError.exit_code, "")
    assert json.loads(err)["code"] == "MUR-650"


def test_evidence_of_another_run_than_the_manifests_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.evidence").write_bytes(VOTES)
    (tmp_path / "run.toml").write_text(Manifest.demo(str(identity(0).peer_id)).dumps())
    code, _, err = run(capsys, "evidence", "verify", "a.evidence", "--run", "run.toml")
    assert code == EvidenceError.exit_code
    assert "evidence of run" in err


def test_the_list_verifies_every_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "evidence", "list", "--data-dir", "data")
    assert (code, out.strip()) == (0, "no evidence against anybody")
    files = EvidenceFiles(tmp_path / "data")
    files.save(VOTES)
    code, out, _ = run(capsys, "evidence", "list", "--data-dir", "data", "--json")
    assert code == 0
    assert [row["proven"] for row in json.loads(out)] == ["two votes"]
    (files.folder / "b.evidence").write_bytes(b"nothing")
    code, out, _ = run(capsys, "evidence", "list", "--data-dir", "data")
    assert code == EvidenceError.exit_code
    assert "two votes" in out and "proves nothing" in out
