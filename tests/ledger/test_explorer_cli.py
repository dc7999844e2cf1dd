"""The commands over a small run: what they print, and how they end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ledger.explorer import cli, session, wiring
from ledger.indexer.abi import Interface
from tests.ledger.fake_chain import ADDRESSES, CHAIN_ID, RUN
from tests.ledger.world import CONSTANTS, PEERS, WALLETS, World, small_run

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, interface: Interface) -> World:
    return small_run(tmp_path_factory.mktemp("peer"), interface)


@pytest.fixture
def run(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command over the world: exit code, stdout, stderr."""
    constants = {name: getattr(CONSTANTS, name) for name in CONSTANTS.__dataclass_fields__}
    deployment = {"chain_id": CHAIN_ID, "contracts": ADDRESSES, "block": 1, "rpc": ["http://127.0.0.1:1"]}
    deployment |= {"run_id": RUN.hex(), "constants": constants}
    (tmp_path / "devnet.json").write_text(json.dumps(deployment))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(wiring, "connect", lambda urls, deployment: world.chain)
    monkeypatch.setattr(session, "wall_clock", lambda: float(world.chain.blocks[-1].timestamp + 10))

    def call(*arguments: str, records: bool = True) -> tuple[int, str, str]:
        more = ("--records", str(world.folder)) if records else ()
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, *more])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


GOLDEN = {
    "status": ("status",),
    "epochs": ("epochs",),
    "epoch": ("epoch", "2"),
    "peers": ("peers", "--sort", "stake"),
    "peer": ("peer", WALLETS[PEERS[1]]),
    "leaderboard": ("leaderboard",),
    "slashes": ("slashes",),
    "round": ("round", "4"),
    "void": ("round", "5"),
    "founding": ("round", "0"),
    "proof": ("proof", str(PEERS[1])),
    "verify": ("verify", "1"),
    "params": ("params",),
    "fees": ("fees",),
    "watch": ("watch",),
}
FOLDER = Path(__file__).parent.parent / "vectors" / "explorer"


def golden(name: str, out: str) -> str:
    """What the file holds. With REWRITE_VECTORS set it is written first: look at the difference before a commit."""
    if os.environ.get("REWRITE_VECTORS"):
        (FOLDER / name).write_text(out)
    return (FOLDER / name).read_text()


@pytest.mark.parametrize("name", GOLDEN)
def test_what_people_read(run: Run, name: str):
    code, out, err = run(*GOLDEN[name])
    assert (code, err) == (0, "")
    assert out == golden(f"{name}.txt", out)


@pytest.mark.parametrize("name", sorted(GOLDEN.keys() - {"watch"}))
def test_what_programs_read(run: Run, name: str):
    code, out, err = run(*GOLDEN[name], "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(golden(f"{name}.json", out))


def test_no_output_for_pipes_has_colours_or_is_cut_off(run: Run):
    for arguments in GOLDEN.values():
        _, out, _ = run(*arguments)
        assert "\x1b" not in out and "…\n" not in out


def test_offline_says_the_same_from_the_index(run: Run):
    _, online, _ = run("epochs", "--json")
    code, offline, _ = run("epochs", "--json", "--offline")
    assert (code, json.loads(offline)) == (0, json.loads(online))


def test_without_records_points_are_unknown_and_not_zero(run: Run):
    code, out, _ = run("peers", "--json", records=False)
    rows = json.loads(out)
    assert code == 0 and {row["wallet"] for row in rows} == {WALLETS[peer] for peer in PEERS[:3]}
    assert all(row["tokens"] is None and row["earned"] is None for row in rows)


def test_a_peer_is_found_by_everything_that_names_it(run: Run):
    found = []
    _, out, _ = run("peer", str(PEERS[1]), "--json")
    key = json.loads(out)["key"]
    for name in (str(PEERS[1]), PEERS[1].short, WALLETS[PEERS[1]], key, key.upper().replace("0X", "0x")):
        _, out, _ = run("peer", name, "--json")
        found.append(json.loads(out))
    assert all(each == found[0] for each in found)


def test_a_proof_is_what_the_pool_takes(run: Run, world: World):
    from ledger.standard_merkle import verify

    for peer in PEERS:
        _, out, _ = run("proof", str(peer), "--epoch", "1", "--json")
        proof = json.loads(out)
        path = [bytes.fromhex(step[2:]) for step in proof["proof"]]
        root, account = world.checkpoints[0].tally_root, bytes.fromhex(proof["account"][2:])
        assert verify(root, account, int(proof["cumulative"]), path)
        assert not verify(root, account, int(proof["cumulative"]) + 1, path)


@pytest.mark.parametrize("what", ["epochs", "peers", "slashes", "claims", "events", "usage"])
def test_exports_hold_what_was_shown(run: Run, tmp_path: Path, what: str):
    import csv

    _, out, _ = run("export", what, "--json")
    rows = json.loads(out)
    code, out, err = run("export", what, "--csv", str(tmp_path / "table.csv"))
    assert (code, out) == (0, "") and "table.csv" in err
    with (tmp_path / "table.csv").open(newline="") as file:
        again = list(csv.DictReader(file))
    plain = [
        {name: json.dumps(v) if isinstance(v, list | dict) else "" if v is None else str(v) for name, v in row.items()}
        for row in rows
    ]
    assert [{name: cell for name, cell in row.items() if cell} for row in again] == [
        {name: cell for name, cell in row.items() if cell} for row in plain
    ]
    _, streamed, _ = run("export", what, "--csv", "-")
    assert streamed == (tmp_path / "table.csv").read_text()


def test_an_export_has_a_form(run: Run):
    code, out, err = run("export", "epochs")
    assert (code, out) == (2, "") and "--csv" in err


def test_the_export_of_rounds_is_every_record(run: Run):
    _, out, _ = run("export", "rounds", "--json")
    assert [row["round"] for row in json.loads(out)] == list(range(7))


def test_a_plot_is_a_picture_with_something_on_it(run: Run, tmp_path: Path):
    from PIL import Image

    code, _, _ = run("plot", str(tmp_path / "run.png"))
    with Image.open(tmp_path / "run.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or []}
        assert (code, image.format, image.size[0]) == (0, "PNG", 960)
    assert {(0, 114, 178), (213, 94, 0), (0, 158, 115)} <= colours  # a line for each of three peers


def test_a_transaction_is_decoded(run: Run, world: World):
    _, out, _ = run("epoch", "1", "--json")
    code, out, _ = run("tx", json.loads(out)["tx"], "--json")
    found = json.loads(out)
    assert (code, found["contract"], found["call"], found["succeeded"]) == (0, "CheckpointHub", "propose", True)
    assert found["arguments"]["header"]["modelRoot"] == f"0x{world.checkpoints[0].model_root.hex()}"
    assert [event["event"] for event in found["events"]] == ["CheckpointProposed"]


BAD = {
    "no such command": (("epok",), 2),
    "no such option": (("epochs", "--lasst", "3"), 2),
    "epoch that is none": (("epoch", "x"), 2),
    "epoch that is not there": (("epoch", "9"), 66),
    "verify what is not there": (("verify", "9"), 66),
    "round that is not there": (("round", "99"), 66),
    "negative round": (("round", "-1"), 66),
    "address too short": (("peer", "0x1234"), 2),
    "wrong checksum": (("peer", "0xC0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0"), 2),
    "unknown peer": (("peer", "16Uiu2HAmnobody"), 66),
    "peer too short": (("peer", "abc"), 2),
    "transaction that is none": (("tx", "0x12"), 2),
    "transaction that is not there": (("tx", "0x" + "ab" * 32), 66),
    "proof of nothing": (("proof", "0x" + "99" * 20), 66),
    "no such deployment": (("status", "--deployment", "nowhere.json"), 2),
    "plot of another kind": (("plot", "x.jpg"), 2),
    "plot to nowhere": (("plot", "no/where.png"), 74),
    "csv to nowhere": (("export", "epochs", "--csv", "no/where.csv"), 74),
    "no manifest": (("verify", "1", "--run", "nowhere.toml"), 66),
    "offline transaction": (("tx", "0x" + "ab" * 32, "--offline"), 69),
    "serve on no port": (("serve", "--port", "70000"), 2),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_said_and_has_its_code(run: Run, name: str):
    arguments, expected = BAD[name]
    code, out, err = run(*arguments)
    assert (code, out) == (expected, ""), err
    assert err.startswith("error: [MUR-") and err.count("\n") == 1
    code, out, err = run(*arguments, "--json")
    said = json.loads(err)
    assert (code, out, said["exit"]) == (expected, "", expected)
    assert said["remedy"], "an error says what to do"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"chain_id": 1}', '{"chain_id": 1, "contracts": [], "run_id": "00"}'],
)
def test_a_deployment_that_is_none_is_named(run: Run, tmp_path: Path, text: str):
    (tmp_path / "bad.json").write_text(text)
    code, _, err = run("status", "--deployment", "bad.json")
    assert code == 2 and "bad.json" in err


def test_another_chain_or_a_missing_contract_is_a_clear_end(run: Run, world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(world.chain, "chain_id", 5)
    code, _, err = run("status")
    assert code == 65 and "chain 5" in err


def test_help_names_every_command(run: Run, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    named = {arguments[0] for arguments in GOLDEN.values()} | {"runs", "export", "plot", "serve", "tx", "index"}
    assert all(f" {name} " in text for name in named)


def test_what_is_wrong_ends_with_one(run: Run, world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(world.chain.views, ("CheckpointHub", "slot"), lambda epoch: (b"x" * 32, bytes(32), epoch, 0, 0))
    code, out, _ = run("verify", "1")
    assert code == 1 and "SOMETHING IS WRONG" in out
    code, out, _ = run("verify", "1", "--json")
    assert code == 1 and json.loads(out)["good"] is False


def test_what_could_not_be_checked_is_wrong_only_if_strict(run: Run, world: World):
    run("index")
    code, out, _ = run("verify", "1", "--offline")  # the signatures are in a transaction, the hub is not asked
    assert code == 0 and "not everything could be checked" in out
    assert run("verify", "1", "--offline", "--strict")[0] == 1
    code, out, _ = run("verify", "1", records=False)
    assert code == 66 and "give --records" in out


def test_runs_are_found_unasked(run: Run):
    code, out, _ = run("runs", "--json")
    (row,) = json.loads(out)
    assert (code, row["run"], row["chain"], row["file"]) == (0, RUN.hex(), CHAIN_ID, "devnet.json")


def test_an_index_can_be_built_anew(run: Run):
    _, before, _ = run("index", "--json")
    code, after, _ = run("index", "--rebuild", "--json")
    assert (code, json.loads(before)) == (0, json.loads(after))
    assert json.loads(after)["events"] > 0


def test_variables_stand_for_options(run: Run, world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MURMURATION_EXPLORER_RECORDS", str(world.folder))
    code, out, _ = run("round", "4", "--json", records=False)
    assert code == 0 and json.loads(out)["round"] == 4


def test_a_terminal_gets_colours_and_bars(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, out, _ = run("leaderboard")
    assert "█" in out and "\x1b[" in out
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = run("leaderboard")
    assert "\x1b[" not in out
