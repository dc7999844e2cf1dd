"""Commands that change something, against the real contracts on the embedded chain of `devnet up`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from averaging.evidence import contradiction
from averaging.messages import Vote
from dht.envelope import seal
from dht.identity import Identity
from dht.wire import encode
from ledger import evidence, signatures
from ledger.books import Books
from ledger.chain.rpc import RpcPool
from ledger.chain.wallet import Wallet
from ledger.checkpoint import NOTHING, Checkpoint
from ledger.eip712 import Domain
from ledger.explorer import cli, wiring
from ledger.explorer.people import text_address
from ledger.indexer.abi import Interface
from ledger.rewards import Constants
from tests.ledger.fake_chain import RUN
from tests.ledger.world import IDENTITIES, PEERS, UNIT, World

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Net:
    """A devnet of its own whose attestors are the world's peers, and how to run commands against it."""

    ready: dict[str, Any]
    folder: Path
    world: World
    capsys: Any = None

    @property
    def url(self) -> str:
        return str(self.ready["rpc"][0])

    @property
    def domain(self) -> Domain:
        return Domain(self.ready["chain_id"], bytes.fromhex(self.ready["contracts"]["CheckpointHub"][2:]))

    def keystore(self, number: int) -> str:
        return str(self.ready["accounts"][number]["keystore"])

    def wallet(self, number: int) -> str:
        return str(self.ready["accounts"][number]["address"]).lower()

    def rpc(self, method: str, *params: Any) -> Any:
        async def ask() -> Any:
            async with RpcPool([self.url]) as pool:
                return await pool.call(method, params)

        return asyncio.run(ask())

    def send(self, number: int, contract: str, data: bytes) -> None:
        async def work() -> None:
            async with RpcPool([self.url], self.ready["chain_id"]) as pool:
                found = wiring.read_deployment(Path(self.ready["deployment"])).deployment
                password = self.folder / "password"
                async with wiring.open_sender(pool, found, Path(self.keystore(number)), password) as sender:
                    await sender.send(found.contracts[contract], data)

        asyncio.run(work())

    def run(self, *arguments: str, by: int | None = None) -> tuple[int, str, str]:
        paths = ("--deployment", self.ready["deployment"], "--index", str(self.folder / "index.db"))
        manifest = ("--records", str(self.world.folder), "--run", str(self.folder / "run.toml"))
        password = ("--password-file", str(self.folder / "password"))
        wallet = ("--keystore", self.keystore(by), *password) if by is not None else ()
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, *paths, *manifest, *wallet])
        said = self.capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err


@pytest.fixture(scope="module")
def devnet(tmp_path_factory: pytest.TempPathFactory, interface: Interface) -> Iterator[Net]:
    folder = tmp_path_factory.mktemp("devnet")
    attestors = [word for peer in PEERS for word in ("--attestor", text_address(peer))]
    command = [sys.executable, "-m", "ledger.explorer.cli", "devnet", "up", "--json"]
    options = ("--chain=embedded", "--port=0", f"--data-dir={folder / 'net'}", f"--run-id={RUN.hex()}")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *options, *attestors],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline() or json.dumps((folder / "log").read_text()))
        (folder / "password").write_text("devnet\n")
        (folder / "run.toml").write_text(
            f'[run]\nfounder = "{PEERS[0]}"\n[ledger]\nrounds_per_checkpoint = 3\ntokens_bps = 8000\n'
        )
        yield Net(ready, folder, World(folder / "peer", interface))
    finally:
        process.terminate()
        process.wait(20)
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def net(devnet: Net, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Net:
    monkeypatch.setenv("XDG_DATA_HOME", str(devnet.folder / "data"))
    monkeypatch.setattr(wiring, "_POLL", 0.05)
    devnet.capsys = capsys
    return devnet


def identity_file(folder: Path, identity: Identity) -> str:
    path = folder / f"{identity.peer_id.short}.key"
    path.touch(mode=0o600)
    path.write_bytes(identity.protobuf())
    return str(path)


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


def checkpoint(net: Net) -> Checkpoint:
    """The world's first epoch as this devnet's hub takes it."""
    pool = net.ready["contracts"]["RewardPool"]
    calls = [{"to": pool, "data": view(name)} for name in ("emission", "mostEmitted")]
    emission, cap = (int(net.rpc("eth_call", call, "latest"), 16) for call in calls)
    while net.world.records.head.round < 3:
        net.world.train()
    net.world.save(3)
    books = Books(Constants(3, emission, cap, 8000, 1))
    return books.contents(net.world.records, 1, ()).checkpoint(0, NOTHING)


def view(name: str) -> str:
    return f"0x{wiring.interface().call('RewardPool', name).hex()}"


def test_a_checkpoint_is_verified_and_claimed(net: Net):
    made = checkpoint(net)
    signed = {place: signatures.sign(IDENTITIES[place], made.digest(net.domain)) for place in (0, 1, 2, 4)}
    bitmap, rvs = signatures.pack(signed)
    net.send(1, "CheckpointHub", net.world.interface.call("CheckpointHub", "propose", made.abi(), bitmap, list(rvs)))

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
    first = checkpoint(net)
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


def test_what_wallets_can_get_wrong(net: Net, tmp_path: Path):
    nobody = tmp_path / "nobody.json"
    Wallet(bytes([9]) * 32).save(nobody, "devnet", iterations=1024)
    (tmp_path / "wrong").write_text("guess\n")
    (tmp_path / "torn.json").write_text("{")
    password = str(net.folder / "password")
    bad: list[tuple[tuple[str, ...], int, str]] = [
        (("--keystore", net.keystore(0), "--password-file", str(tmp_path / "wrong")), 77, "wrong password"),
        (("--keystore", net.keystore(0), "--password-file", str(tmp_path / "none")), 2, "none"),
        (("--keystore", str(tmp_path / "none.json"), "--password-file", password), 77, "none.json"),
        (("--keystore", str(tmp_path / "torn.json"), "--password-file", password), 77, "no keystore"),
        (("--keystore", str(nobody), "--password-file", password), 71, "cannot pay|NotEnrolled|insufficient"),
        ((), 2, "no wallet"),
        (("--from", net.wallet(1)), 2, "no wallet"),
        (("--dry-run",), 2, "no wallet"),
        (("--dry-run", "--from", "0x12"), 2, "no address"),
    ]
    for arguments, expected, said in bad:
        code, out, err = net.run("stake", "unbond", "1", *arguments)
        assert (code, out) == (expected, ""), (arguments, err)
        assert any(words in err for words in said.split("|")), err
    code, _, err = net.run("stake", "add", "1", "--keystore", str(nobody), "--password-file", password)
    assert code == 2 and "has 0 tokens" in err


@pytest.mark.parametrize("amount", ["0", "-1", "1e3", "1.0000000000000000001", "x", "", "0x10"])
def test_amounts_that_are_none(net: Net, amount: str):
    code, out, err = net.run("stake", "add", "--calldata", "--", amount)
    assert (code, out) == (2, ""), err


def test_evidence_that_proves_nothing(net: Net, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"\x2c\x80")
    code, out, err = net.run("report", str(tmp_path / "file"))
    assert (code, out) == (1, "") and "proves nothing" in err
    assert net.run("report", str(tmp_path / "missing"))[0] == 74
