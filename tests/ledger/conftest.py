from __future__ import annotations

from collections.abc import Iterator

import pytest

from ledger.attestor_guard import SqliteAttestorGuard
from ledger.explorer import wiring
from ledger.indexer.abi import Interface
from tests.ledger.net import Net, running_net


@pytest.fixture(scope="session")
def interface() -> Interface:
    return wiring.interface()


@pytest.fixture(scope="module")
def devnet(tmp_path_factory: pytest.TempPathFactory, interface: Interface) -> Iterator[Net]:
    with running_net(tmp_path_factory.mktemp("devnet"), interface) as net:
        yield net


@pytest.fixture
def net(devnet: Net, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Net:
    monkeypatch.setenv("XDG_DATA_HOME", str(devnet.folder / "data"))
    monkeypatch.setattr(wiring, "_POLL", 0.05)
    devnet.capsys = capsys
    return devnet


@pytest.fixture
def guard() -> Iterator[SqliteAttestorGuard]:
    """An attestor's promises, in memory."""
    guard = SqliteAttestorGuard(":memory:")
    yield guard
    guard.close()
