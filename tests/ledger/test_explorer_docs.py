"""The explorer's page in docs/ shows what the commands print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "explorer.md").read_text()
_EXAMPLE = re.compile(r"^\$ contribution-explorer (\w+)[^\n]*\n(.*?)(?=^\$ |^```)", re.MULTILINE | re.DOTALL)
SHOWN = dict(_EXAMPLE.findall(PAGE))


def test_something_is_shown():
    assert {"status", "epochs", "epoch", "leaderboard", "peer", "verify"} <= SHOWN.keys()


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_what_is_shown_is_what_is_printed(name: str):
    assert SHOWN[name] == (ROOT / "tests" / "vectors" / "explorer" / f"{name}.txt").read_text()
