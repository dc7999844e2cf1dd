"""The commands over a small run: what they print, and how they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.explorer import cli, wiring
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
    monkeypatch.setattr(wiring, "interface", lambda: world.interface)
    monkeypatch.setattr(wiring, "connect", lambda urls: world.chain)
    monkeypatch.setattr("time.time", lambda: float(world.chain.blocks[-1].timestamp + 10))

    def call(*arguments: str, records: bool = True) -> tuple[int, str, str]:
        more = ("--records", str(world.folder)) if records else ()
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, *more])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call
