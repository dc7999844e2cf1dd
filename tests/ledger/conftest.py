from __future__ import annotations

import pytest

from ledger.explorer import wiring
from ledger.indexer.abi import Interface


@pytest.fixture(scope="session")
def interface() -> Interface:
    return wiring.interface()
