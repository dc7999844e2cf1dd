"""Commands that change something, against the real contracts on the embedded chain of `devnet up`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from averaging.evidence import contradiction
from averaging.messages import Vote
from dht.envelope import seal
from dht.identity import Identity
from dht.wire import encode
from ledger import evidence, signatures
from ledger.explorer.people import text_address
from tests.ledger.fake_chain import RUN
from tests.ledger.net import Net, checkpoint, identity_file, propose
from tests.ledger.world import IDENTITIES, PEERS, UNIT


def test_a_peer_enrols_and_moves_its_stake(net: Net):
    key = identity_file(net.folder, IDENTITIES[0])
    code, out, err = net.run("enrol", "100", "--identity", key, "--json", by=0)
    assert code == 0, err
    assert [row["call"] for row in json.loads(out)] == ["Token.approve", "PeerRegistry.enrol"]
    _, out, _ = net.run("peer", str(PEERS[0]), "--json")
    found = json.loads(out)
    assert (found["wallet"], found["stake"], found["bound_on_chain"]) == (net.wallet(0), str(100 * UNIT), True)

    assert net.run("stake", "add", "12.5", by=0)[0] == 0
    assert net.run("stake", "unbond", "30", by=0)[0] == 0
    _, out, _ = net.run("peer", net.wallet(0), "--json")
    found = json.loads(out)
    assert (found["stake"], found["unbonding"]) == (str(82 * UNIT + UNIT // 2), str(30 * UNIT))
    _, out, _ = net.run("peers", "--json")  # what the events add up to is what the registry says
    row = next(row for row in json.loads(out) if row["wallet"] == net.wallet(0))
    assert (row["stake"], row["unbonding"]) == (found["stake"], found["unbonding"])

    code, out, err = net.run("stake", "withdraw", by=0)
    assert (code, out) == (71, "") and "Locked(" in err
    net.rpc("evm_increaseTime", 30 * 86400)
    assert net.run("stake", "withdraw", by=0)[0] == 0
    _, out, _ = net.run("peer", net.wallet(0), "--json")
    assert json.loads(out)["unbonding"] == "0"


def test_a_wallet_takes_another_key_and_says_what_its_peer_is(net: Net):
    first, second = (Identity(bytes([9]) * 31 + bytes([place])) for place in (1, 2))
    old, new = (text_address(each.peer_id) for each in (first, second))
    metadata = "0x" + "6d" * 32
    keys = [identity_file(net.folder, each) for each in (first, second)]
    assert net.run("enrol", "10", "--identity", keys[0], "--metadata", metadata, by=7)[0] == 0
    rotate = ("rotate-key", "--identity", keys[1])
    code, out, _ = net.run(*rotate, "--dry-run", "--from", net.wallet(7), "--json")
    assert code == 0 and json.loads(out)[0]["gas"] > 40_000
    code, out, err = net.run(*rotate, "--json", by=7)
    assert code == 0, err
    assert [row["call"] for row in json.loads(out)] == ["PeerRegistry.rotateKey"]
    _, out, _ = net.run("peer", net.wallet(7), "--json")
    found = json.loads(out)
    assert (found["key"], found["peer"], found["bound_on_chain"]) == (new, str(second.peer_id), True)
    assert (found["stake"], found["metadata"]) == (str(10 * UNIT), metadata)
    # The wallet is still paid what the key earned that it had, which is what the registry says.
    _, out, _ = net.run("rewards", "show", old, "--json")
    assert json.loads(out)["paid_to"] == net.wallet(7) == net.view("PeerRegistry", "walletOf", old)
    code, out, _ = net.run("peer", old)
    assert code == 0 and "which now has another key" in out

    code, out, err = net.run("rotate-key", "--identity", keys[0], by=7)
    assert (code, out) == (71, "") and "KeyTaken" in err
    assert net.run("set-metadata", "0x" + "6e" * 32, by=7)[0] == 0
    _, out, _ = net.run("peer", net.wallet(7), "--json")
    assert json.loads(out)["metadata"] == "0x" + "6e" * 32
    code, out, err = net.run("set-metadata", "0x6e", by=7)
    assert (code, out) == (2, "") and "METADATA" in err
    code, out, err = net.run("set-metadata", metadata, by=8)
    assert (code, out) == (71, "") and "NotEnrolled" in err
    code, out, _ = net.run("set-metadata", metadata, "--calldata", "--json")
    read = net.world.interface.read_call(bytes.fromhex(json.loads(out)[0]["data"][2:]))
    assert read is not None and list(read[1].values()) == [bytes.fromhex(metadata[2:])]


def test_a_checkpoint_is_verified_and_claimed(net: Net):
    made, _ = checkpoint(net)
    propose(net, made)

    code, out, err = net.run("verify", "1", "--strict", "--json")
    report = json.loads(out)
    assert code == 0 and report["good"] and report["complete"], (out, err)
    assert [row["peer"] for row in report["signatures"]] == [str(PEERS[place]) for place in (0, 1, 2, 4)]

    code, out, err = net.run("rewards", "claim", str(PEERS[1]), by=2)
    assert (code, out) == (66, "") and "active from" in err
    net.rpc("evm_increaseTime", 3600)
    net.rpc("evm_mine")
    code, out, err = net.run("rewards", "show", str(PEERS[1]), "--json")
    before = json.loads(out)
    assert before["active_epoch"] == 1 and int(before["claimable"]) > 0

    code, out, _ = net.run("rewards", "claim", str(PEERS[1]), "--dry-run", "--from", net.wallet(2), "--json")
    assert code == 0 and json.loads(out)[0]["gas"] > 50_000
    code, out, err = net.run("rewards", "claim", str(PEERS[1]), "--json", by=2)
    assert code == 0, err
    _, out, _ = net.run("tx", json.loads(out)[0]["tx"], "--json")
    event = next(event for event in json.loads(out)["events"] if event["event"] == "Claimed")
    assert event["arguments"]["amount"] == before["claimable"]
    _, out, _ = net.run("rewards", "show", str(PEERS[1]), "--json")
    assert json.loads(out)["claimable"] == "0"
    code, out, err = net.run("rewards", "claim", str(PEERS[1]), by=2)
    assert (code, out) == (66, "") and "claimed all" in err


def test_usage_is_paid_and_listed(net: Net):
    code, _, err = net.run("usage", "pay", "10", "--model", "0x" + "ab" * 32, by=3)
    assert code == 0, err
    _, out, _ = net.run("usage", "history", "--json")
    (row,) = json.loads(out)
    assert (row["payer"], row["model"], row["amount"]) == (net.wallet(3), "0x" + "ab" * 32, str(10 * UNIT))
    assert sum(int(row[part]) for part in ("contributors", "data_providers", "attestors", "treasury")) == 10 * UNIT


def test_two_checkpoints_of_one_attestor_cost_its_stake(net: Net, tmp_path: Path):
    key = identity_file(net.folder, IDENTITIES[3])
    assert net.run("enrol", "100", "--identity", key, by=4)[0] == 0
    first, _ = checkpoint(net)
    second = replace(first, tokens=first.tokens + 1)
    signed = [
        evidence.SignedCheckpoint(each, signatures.sign(IDENTITIES[3], each.digest(net.domain)))
        for each in (first, second)
    ]
    frame = evidence.equivocation(net.domain, *signed)
    assert frame is not None
    path = tmp_path / "lie.evidence"
    path.write_bytes(frame)
    code, out, _ = net.run("report", str(path), "--json")
    assert code == 0 and json.loads(out)["key"] == text_address(PEERS[3]) and json.loads(out)["reportable"]
    code, _, err = net.run("report", str(path), by=5)
    assert code == 0, err
    _, out, _ = net.run("slashes", "--json")
    (row,) = [row for row in json.loads(out) if row["wallet"] == net.wallet(4)]
    assert int(row["amount"]) > 0 and row["reporter"] == net.wallet(5) and row["evidence"]
    code, out, err = net.run("report", str(path), by=5)
    assert (code, out) == (71, "") and "AlreadyPunished" in err


def test_two_votes_of_one_peer_cost_its_stake(net: Net, tmp_path: Path):
    key = identity_file(net.folder, IDENTITIES[4])
    assert net.run("enrol", "50", "--identity", key, by=6)[0] == 0
    votes = [Vote(bytes([1]) * 32, survivors, survivors, bytes(32)) for survivors in (3, 7)]
    found = contradiction(*(seal(IDENTITIES[4], RUN, 2, vote) for vote in votes))
    assert found is not None
    path = tmp_path / "votes.evidence"
    path.write_bytes(encode(found))
    code, out, err = net.run("report", str(path), "--json", by=5)
    assert code == 0, err
    assert json.loads(out)["evidence"]["accused"] == str(PEERS[4])
    _, out, _ = net.run("slashes", "--json")
    assert net.wallet(6) in {row["wallet"] for row in json.loads(out)}


def test_calldata_is_what_somebody_else_can_sign(net: Net):
    code, out, _ = net.run("stake", "add", "5", "--calldata", "--json")
    rows = json.loads(out)
    assert code == 0 and [row["call"] for row in rows] == ["Token.approve", "PeerRegistry.addStake"]
    read = net.world.interface.read_call(bytes.fromhex(rows[1]["data"][2:]))
    assert read is not None and list(read[1].values()) == [5 * UNIT]
    _, out, _ = net.run("stake", "add", "5", "--calldata")
    assert [line.split() for line in out.splitlines()] == [[row["to"], row["data"]] for row in rows]


def test_a_dry_run_says_why_it_would_fail(net: Net):
    code, out, err = net.run("stake", "unbond", "5", "--dry-run", "--from", net.wallet(8))
    assert (code, out) == (71, "") and "NotEnrolled" in err


@pytest.mark.parametrize("amount", ["0", "-1", "1e3", "1.0000000000000000001", "x", "", "0x10"])
def test_amounts_that_are_none(net: Net, amount: str):
    code, out, err = net.run("stake", "add", "--calldata", "--", amount)
    assert (code, out) == (2, ""), err


def test_evidence_that_proves_nothing(net: Net, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"\x2c\x80")
    code, out, err = net.run("report", str(tmp_path / "file"))
    assert (code, out) == (1, "") and "proves nothing" in err
    assert net.run("report", str(tmp_path / "missing"))[0] == 74
