"""Verdicts through the commands, against the real contracts on the embedded chain of `devnet up`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dht.identity import Identity
from dht.wire import digest
from ledger.explorer.people import text_address
from tests.ledger.net import Net, identity_file
from tests.ledger.world import IDENTITIES, PEERS, UNIT

ACCUSED = 3
"""Place of the accused peer, and number of its wallet."""


@pytest.fixture(autouse=True)
def enrolled(net: Net) -> None:
    """The accused has a stake."""
    if net.run("peer", net.wallet(ACCUSED))[0] == 66:
        key = identity_file(net.folder, IDENTITIES[ACCUSED])
        assert net.run("enrol", "100", "--identity", key, by=ACCUSED)[0] == 0


def saved(path: Path, said: tuple[int, str, str]) -> str:
    """What a command printed, in a file."""
    code, out, err = said
    assert code == 0, err
    path.write_text(out)
    return str(path)


def drafted(net: Net, folder: Path, evidence: str, bps: int = 500) -> str:
    arguments = ("verdict", "draft", str(PEERS[ACCUSED]), f"--bps={bps}", "--evidence", evidence, "--epoch=1")
    return saved(folder / "draft.json", net.run(*arguments))


def signed(net: Net, folder: Path, draft: str, places: tuple[int, ...], *more: str) -> list[str]:
    """Each attestor signs the draft by itself, with its peer's key file."""
    files = []
    for place in places:
        key = identity_file(net.folder, IDENTITIES[place])
        said = net.run("verdict", "sign", draft, *more, "--identity", key)
        files.append(saved(folder / f"{place}{''.join(more)}.json", said))
    return files


def proposed(net: Net, folder: Path, name: str) -> str:
    """A verdict on the chain; its id."""
    draft = drafted(net, folder, "0x" + name * 32)
    assert net.run("verdict", "propose", *signed(net, folder, draft, (0, 1, 2, 4)), by=5)[0] == 0
    return str(json.loads(Path(draft).read_text())["id"])


def listed(net: Net, id_: str) -> dict[str, Any]:
    code, out, err = net.run("verdict", "list", "--json")
    assert code == 0, err
    return next(row for row in json.loads(out) if row["id"] == id_)


def stake(net: Net) -> int:
    return int(net.view("PeerRegistry", "peer", net.wallet(ACCUSED))["stake"])


def test_a_verdict_by_quorum_costs_a_part_of_the_stake_after_its_delay(net: Net, tmp_path: Path):
    evidence = tmp_path / "sum.evidence"
    evidence.write_bytes(b"what the attestors published")
    draft = drafted(net, tmp_path, str(evidence))
    content = json.loads(Path(draft).read_text())
    assert content["evidence"] == f"0x{digest('evidence', evidence.read_bytes()).hex()}"
    assert content["key"] == text_address(PEERS[ACCUSED]) and content["signatures"] == []

    files = signed(net, tmp_path, draft, (0, 1, 2))
    code, out, err = net.run("verdict", "propose", *files, by=5)
    assert (code, out) == (66, "") and "3 of 5 weight signed" in err
    files += signed(net, tmp_path, draft, (4,))
    code, out, err = net.run("verdict", "propose", *files, "--dry-run", "--from", net.wallet(5), "--json")
    assert code == 0 and json.loads(out)[0]["gas"] > 50_000, err
    code, out, err = net.run("verdict", "propose", *files, "--json", by=5)
    assert code == 0, err
    assert [row["call"] for row in json.loads(out)] == ["Slashing.proposeVerdict"]
    row = listed(net, content["id"])
    assert (row["state"], row["key"], row["bps"]) == ("open", content["key"], 500)

    code, out, err = net.run("verdict", "execute", content["id"], by=6)
    assert (code, out) == (66, "") and "can be executed from" in err
    net.rpc("evm_increaseTime", row["executable_at"] - row["time"])
    net.rpc("evm_mine")
    assert listed(net, content["id"])["state"] == "due"
    before = stake(net)
    code, out, err = net.run("verdict", "execute", content["id"], by=6)
    assert code == 0, err
    row = listed(net, content["id"])
    assert (row["state"], row["wallet"], row["amount"]) == ("executed", net.wallet(ACCUSED), str(5 * UNIT))
    assert before - stake(net) == 5 * UNIT
    _, out, _ = net.run("slashes", "--json")
    assert [(each["amount"], each["reward"]) for each in json.loads(out)] == [(str(5 * UNIT), "0")]
    code, out, err = net.run("verdict", "execute", content["id"], by=6)
    assert (code, out) == (66, "") and "was executed" in err


def test_a_third_of_the_weight_closes_a_verdict(net: Net, tmp_path: Path):
    id_ = proposed(net, tmp_path, "a1")
    fetched = saved(tmp_path / "fetched.json", net.run("verdict", "fetch", id_))
    assert json.loads(Path(fetched).read_text())["id"] == id_
    (alone,) = signed(net, tmp_path, fetched, (3,), "--veto")  # the accused, who is an attestor too
    code, out, err = net.run("verdict", "veto", alone, by=5)
    assert (code, out) == (66, "") and "1 of 5 weight signed, a third is needed" in err
    (second,) = signed(net, tmp_path, alone, (0,), "--veto")  # one file that is handed on does as well
    before = stake(net)
    code, _, err = net.run("verdict", "veto", second, by=5)
    assert code == 0, err
    assert listed(net, id_)["state"] == "vetoed"
    net.rpc("evm_increaseTime", 4 * 86400)
    net.rpc("evm_mine")
    code, out, err = net.run("verdict", "execute", id_, by=5)
    assert (code, out) == (66, "") and "was vetoed" in err
    assert stake(net) == before


def test_approvals_are_no_vetoes(net: Net, tmp_path: Path):
    draft = drafted(net, tmp_path, "0x" + "a2" * 32)
    files = signed(net, tmp_path, draft, (0, 1, 2, 4))
    code, out, err = net.run("verdict", "veto", *files, by=5)
    assert (code, out) == (66, "") and "0 of 5" in err


def test_calldata_of_a_verdict_is_what_the_contract_reads(net: Net, tmp_path: Path):
    draft = drafted(net, tmp_path, "0x" + "a3" * 32)
    files = signed(net, tmp_path, draft, (0, 1, 2, 4))
    code, out, _ = net.run("verdict", "propose", *files, "--calldata", "--json")
    (row,) = json.loads(out)
    read = net.world.interface.read_call(bytes.fromhex(row["data"][2:]))
    assert code == 0 and read is not None and read[1]["bitmap"] == 0b10111
    assert (read[1]["verdict"]["key"], read[1]["verdict"]["bps"]) == (text_address(PEERS[ACCUSED]), 500)


def test_who_is_no_attestor_cannot_sign(net: Net, tmp_path: Path):
    stranger = identity_file(net.folder, Identity(b"s" * 32))
    draft = drafted(net, tmp_path, "0x" + "a4" * 32)
    code, out, err = net.run("verdict", "sign", draft, "--identity", stranger)
    assert (code, out) == (77, "") and "no attestor" in err


def test_the_key_in_the_data_folder_signs_unasked(net: Net, tmp_path: Path):
    home = net.folder / "data" / "murmuration"
    home.mkdir(parents=True, exist_ok=True)
    path = home / "identity.key"
    path.touch(mode=0o600)
    path.write_bytes(IDENTITIES[1].protobuf())
    draft = drafted(net, tmp_path, "0x" + "a5" * 32)
    code, out, err = net.run("verdict", "sign", draft)
    assert code == 0 and len(json.loads(out)["signatures"]) == 1
    assert text_address(PEERS[1]) in err and "weight 1 of 5" in err
    path.unlink()
    assert net.run("verdict", "sign", draft)[0] == 77


def test_a_verdict_of_another_chain_is_refused(net: Net, tmp_path: Path):
    content = json.loads(Path(drafted(net, tmp_path, "0x" + "a6" * 32)).read_text()) | {"chain_id": 1}
    (tmp_path / "other.json").write_text(json.dumps(content))
    key = identity_file(net.folder, IDENTITIES[0])
    for command in (
        ("sign", str(tmp_path / "other.json"), "--identity", key),
        ("propose", str(tmp_path / "other.json")),
    ):
        code, out, err = net.run("verdict", *command, by=5 if command[0] == "propose" else None)
        assert (code, out) == (66, "") and "another run, chain or contract" in err


DRAFT = ("verdict", "draft", str(PEERS[0]))
EVIDENCE = ("--evidence", "0x" + "a7" * 32)
BAD: dict[str, tuple[tuple[str, ...], int]] = {
    "over the cap": ((*DRAFT, "--bps=1001", *EVIDENCE), 2),
    "nothing of the stake": ((*DRAFT, "--bps=0", *EVIDENCE), 2),
    "a negative epoch": ((*DRAFT, "--bps=1", "--epoch=-1", *EVIDENCE), 2),
    "evidence that is no hash": ((*DRAFT, "--bps=1", "--evidence=0x12"), 2),
    "evidence that is not there": ((*DRAFT, "--bps=1", "--evidence=nowhere.evidence"), 74),
    "an accused that is none": (("verdict", "draft", "0x12", "--bps=1", *EVIDENCE), 2),
    "no file": (("verdict", "propose"), 2),
    "a file that is not there": (("verdict", "sign", "nowhere.json"), 74),
    "an id that is none": (("verdict", "execute", "0x12"), 2),
    "an unknown id": (("verdict", "execute", "0x" + "ff" * 32), 66),
    "to fetch an unknown id": (("verdict", "fetch", "0x" + "ff" * 32), 66),
}


@pytest.mark.parametrize("name", BAD)
def test_what_can_be_wrong_is_said(net: Net, name: str):
    arguments, expected = BAD[name]
    code, out, err = net.run(*arguments)
    assert (code, out) == (expected, ""), err
    assert err.startswith("error: [MUR-") and err.count("\n") == 1


def test_two_drafts_are_not_one_verdict(net: Net, tmp_path: Path):
    (tmp_path / "other").mkdir()
    one = drafted(net, tmp_path, "0x" + "a8" * 32)
    two = drafted(net, tmp_path / "other", "0x" + "a8" * 32, bps=400)
    code, out, err = net.run("verdict", "propose", one, two, by=5)
    assert (code, out) == (66, "") and "two verdicts" in err
