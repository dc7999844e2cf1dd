from __future__ import annotations

import pytest

from ledger.indexer.abi import Interface
from tests.ledger import human_abi


@pytest.fixture(scope="session")
def interface() -> Interface:
    return human_abi.interface()
