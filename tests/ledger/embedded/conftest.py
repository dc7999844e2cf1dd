from __future__ import annotations

import pytest

from ledger.embedded.methods import Methods
from ledger.embedded.server import Server
from tests.ledger.chains import START, Time, open_chain


@pytest.fixture
def clock():
    return Time(wall=START)


@pytest.fixture
def chain(tmp_path, clock):
    chain = open_chain(tmp_path / "chain.sqlite", clock)
    yield chain
    chain.store.close()


@pytest.fixture(scope="module")
def embedded_server(tmp_path_factory):
    chain = open_chain(tmp_path_factory.mktemp("chain") / "chain.sqlite", Time(wall=START))
    yield Server(Methods(chain))
    chain.store.close()
