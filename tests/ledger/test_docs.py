"""docs/ledger.md agrees with the code: messages, caps, refusals, and the numbers of the attestors' protocol."""

from __future__ import annotations

import re
from pathlib import Path

from dht.errors import Refusal
from dht.wire import REGISTRY
from ledger import attestor, checkpointer, messages, quorum, rollbacks
from tests.test_docs import fields_of, table

PAGE = Path(__file__).parents[2] / "docs" / "ledger.md"


def test_every_message_of_the_ledger_is_documented():
    rows = [row for _, row in sorted(REGISTRY.items()) if row.cls.__module__ == messages.__name__]
    documented = [cells[:4] for cells in table(PAGE, "tag")]
    assert documented == [
        [f"`{row.tag:#04x}`", f"`{row.cls.__name__}`", fields_of(row.cls), str(row.cap)] for row in rows
    ]
    assert all(0x60 <= row.tag <= 0x6F for row in rows)


def test_refusals_are_numbers_that_exist():
    for cells in table(PAGE, "tag"):
        numbers = re.findall(r"(?:^|; |: | or )(\d+) ", cells[5])
        assert numbers and set(map(int, numbers)) <= set(map(int, Refusal)), cells[1]


def test_the_protocol_has_the_documented_times():
    text = PAGE.read_text()
    assert f"again every {quorum.ASK_EVERY:.0f} s" in text
    assert f"each next one {quorum.TAKE_OVER:.0f} s later" in text
    assert f"every {checkpointer.POLL:.0f} s" in text
    assert f"before it has lasted {rollbacks.PATIENCE:.0f} s" in text
    assert rollbacks.FRESH == 6 and "not said again six times in a row" in text
    assert f"remembered for {attestor.REMEMBERED} epochs" in text
