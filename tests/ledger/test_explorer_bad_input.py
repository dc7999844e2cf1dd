"""What people get wrong, and what goes wrong around them: one clear line and an exit code, and nothing is sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ledger.chain.wallet import Wallet
from tests.ledger.fake_chain import RUN
from tests.ledger.net import Net, checkpoint, propose
from tests.ledger.world import PEERS

UNFUNDED = Wallet(bytes([9]) * 32)


class Busy(BaseHTTPRequestHandler):
    """A node that has had enough of us."""

    asked: list[str]

    def do_POST(self) -> None:
        self.asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(429)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def busy() -> Iterator[tuple[str, list[str]]]:
    """The URL of a node that answers 429, and what it was asked."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Busy,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def unfunded(tmp_path: Path) -> str:
    path = tmp_path / "unfunded.json"
    UNFUNDED.save(path, "devnet", iterations=1024)
    return str(path)


def refused(net: Net, arguments: tuple[str, ...], code: int) -> str:
    """The line that a command ends with; the same as JSON, and no data. A sender says before what it is about to do."""
    found, out, err = net.run(*arguments)
    said = err.splitlines()[-1]
    assert (found, out) == (code, ""), err
    assert said.startswith("error: [MUR-") and len(err.splitlines()) == 1 + err.count(" …\n")
    found, out, err = net.run(*arguments, "--json")
    row = json.loads(err.splitlines()[-1])
    assert (found, out, row["exit"]) == (code, "", code) and row["remedy"]
    return said


def test_a_node_that_has_had_enough_is_named(net: Net, busy: tuple[str, list[str]]):
    url, asked = busy
    err = refused(net, ("status", "--rpc", url), 69)
    assert "too many requests (429)" in err and url in err and asked


def test_another_node_is_asked_instead(net: Net, busy: tuple[str, list[str]]):
    url, asked = busy
    code, out, err = net.run("status", "--json", "--rpc", url, "--rpc", net.url)
    assert code == 0 and asked, err
    assert json.loads(out)["chain"] == net.ready["chain_id"]


def test_a_wallet_without_money_is_said_so(net: Net, unfunded: str):
    made, _ = checkpoint(net)
    propose(net, made)
    net.rpc("evm_increaseTime", 3600)
    net.rpc("evm_mine")
    height = net.rpc("eth_blockNumber")
    sending = ("--keystore", unfunded, "--password-file", str(net.folder / "password"))
    # Anybody may claim for a peer: only the money for gas is missing.
    err = refused(net, ("rewards", "claim", str(PEERS[1]), *sending), 71)
    assert f"{UNFUNDED.address} cannot pay for the transaction" in err and "the chain's currency" in err
    assert net.rpc("eth_blockNumber") == height
    err = refused(net, ("stake", "add", "1", *sending), 2)
    assert "has 0 tokens" in err


WALLETS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "a wrong password": (("--keystore", "{wallet}", "--password-file", "{folder}/wrong"), 77, "wrong password"),
    "no password file": (("--keystore", "{wallet}", "--password-file", "{folder}/none"), 2, "none"),
    "no keystore file": (("--keystore", "{folder}/none.json", "--password-file", "{password}"), 77, "none.json"),
    "a torn keystore": (("--keystore", "{folder}/torn.json", "--password-file", "{password}"), 77, "no keystore"),
    "no wallet": ((), 2, "no wallet"),
    "a sender without its key": (("--from", "{sender}"), 2, "no wallet"),
    "a trial by nobody": (("--dry-run",), 2, "no wallet"),
    "a short address": (("--dry-run", "--from", "0x12"), 2, "no address"),
    "an address of other letters": (("--dry-run", "--from", "0x" + "zz" * 20), 2, "no address"),
    "a mistyped address": (("--dry-run", "--from", "0xC0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0"), 2, "checksum"),
}


@pytest.mark.parametrize("name", WALLETS)
def test_what_is_wrong_with_a_wallet_is_said(net: Net, tmp_path: Path, name: str):
    (tmp_path / "wrong").write_text("guess\n")
    (tmp_path / "torn.json").write_text("{")
    places = {"wallet": net.keystore(0), "password": net.folder / "password", "sender": net.wallet(1)}
    arguments, code, words = WALLETS[name]
    filled = tuple(each.format(folder=tmp_path, **places) for each in arguments)
    assert words in refused(net, ("stake", "unbond", "1", *filled), code)


def test_a_run_that_the_contracts_do_not_know(net: Net, tmp_path: Path):
    deployment = json.loads(Path(net.ready["deployment"]).read_text()) | {"run_id": "0x" + "99" * 32}
    (tmp_path / "other.json").write_text(json.dumps(deployment))
    err = refused(net, ("status", "--deployment", str(tmp_path / "other.json"), "--index", str(tmp_path / "i.db")), 65)
    assert "9999999999999999" in err and RUN.hex()[:16] in err


def test_records_and_manifests_of_no_run(net: Net, tmp_path: Path):
    (tmp_path / "state" / "9999999999999999" / "rounds").mkdir(parents=True)
    assert "no records of run" in refused(net, ("round", "1", "--records", str(tmp_path)), 66)
    assert "there are no records" in refused(net, ("round", "1", "--records", str(tmp_path / "none")), 2)
    assert "nowhere.json" in refused(net, ("status", "--deployment", "nowhere.json"), 2)
