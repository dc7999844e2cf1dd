"""A founder's way through the commands: a wallet, where the contracts will be, the contracts, and their file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dht.errors import ConfigError, IdentityError, IncompatibleRunError
from ledger.chain.deployments import Deployment
from ledger.explorer import cli, wiring
from ledger.explorer.people import text_address
from tests.ledger.world import PEERS

ROOT = Path(__file__).parents[2]
RUN = "5a" * 32
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def keystore(call: Call, tmp_path: Path) -> Path:
    path, password = tmp_path / "wallet.json", tmp_path / "password"
    password.write_text("correct horse\n")
    code, out, _ = call("wallet", "new", str(path), "--json", f"--password-file={password}")
    assert code == 0 and path.stat().st_mode & 0o777 == 0o600
    address = json.loads(out)["address"]
    assert address[2:].lower() == json.loads(path.read_text())["address"].lower()
    return path


@pytest.fixture
def url(keystore: Path, tmp_path: Path) -> Iterator[str]:
    address = json.loads(keystore.read_text())["address"]
    command = [sys.executable, "-m", "ledger.embedded", str(tmp_path / "chain"), f"--alloc={address}={10**19}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["rpc"]
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def flags(url: str, keystore: Path) -> list[str]:
    places = [f"--treasury=0x{'11' * 20}", f"--data-providers=0x{'22' * 20}", f"--genesis=0x{'33' * 20}=1000"]
    attestors = [f"--attestor={text_address(peer)}" for peer in PEERS]
    password = f"--password-file={keystore.with_name('password')}"
    return [f"--rpc={url}", f"--keystore={keystore}", password, f"--run-id={RUN}", *places, *attestors]


def test_the_hub_is_where_the_dry_run_said(call: Call, url: str, keystore: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "deployment.json", [*flags(url, keystore), "--json"]
    code, said, err = call("deploy", str(out), *options, "--dry-run")
    planned = json.loads(said)
    assert code == 0 and not out.exists(), err
    code, said, err = call("deploy", str(out), *options)
    assert code == 0, err
    made = Deployment.load(out)
    assert (made.contracts, made.chain_id) == (planned["contracts"], planned["chain_id"])
    assert made.run_id.hex() == RUN and json.loads(said) == made.to_json()

    manifest = tmp_path / "run.toml"
    hub = f'hub = "{planned["contracts"]["CheckpointHub"]}"'
    manifest.write_text(f"[ledger]\nchain_id = {planned['chain_id']}\n{hub}\n")
    code, said, err = call("params", "--json", f"--deployment={out}", f"--run={manifest}")
    assert code == 0, err
    manifest.write_text(f"[ledger]\nchain_id = 1\n{hub}\n")
    with pytest.raises(IncompatibleRunError, match="on chain 1, the deployment has"):
        wiring.check_manifest(manifest, made)
    code, _, err = call("status", f"--deployment={out}", f"--run={manifest}")
    assert code == IncompatibleRunError.exit_code and "give the --deployment of this run" in err

    before = out.read_bytes()
    code, _, err = call("deploy", str(out), *options)
    assert code == ConfigError.exit_code and "exists" in err and out.read_bytes() == before


def test_a_wallet_says_its_address_without_the_password(call: Call, keystore: Path) -> None:
    code, out, _ = call("wallet", "address", str(keystore))
    assert code == 0 and out.strip()[2:].lower() == json.loads(keystore.read_text())["address"].lower()
    before = keystore.read_bytes()
    code, _, err = call("wallet", "new", str(keystore), f"--password-file={keystore.with_name('password')}")
    assert code == IdentityError.exit_code and "cannot create" in err and keystore.read_bytes() == before


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--run-id=12", "is not 32 bytes"),
        ("--attestor=me", "is not 20 bytes"),
        ("--treasury=0x12", "is no --treasury"),
        ("--genesis=0x12=5", "is no --genesis"),
        ("--emission=lots", "is no amount"),
        ("--window=999999", "62 times --min-interval"),
        ("--rpc=ftp://x", "is no node's URL"),
    ],
)
def test_bad_terms_are_told_before_anything_is_asked(
    flag: str, said: str, call: Call, keystore: Path, tmp_path: Path
) -> None:
    given = [
        each for each in flags("http://127.0.0.1:9", keystore) if not each.startswith(flag.partition("=")[0] + "=")
    ]
    code, out, err = call("deploy", str(tmp_path / "out.json"), *given, flag)
    assert (code, out) == (ConfigError.exit_code, "") and said in err, err
    assert not (tmp_path / "out.json").exists()
