"""What commands print: JSON for programs, tables for people; data on stdout, remarks on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from shutil import get_terminal_size
from typing import Any

from ledger.explorer.options import terminal

UNIT = 10**18
_WIDE = 4000
"""Columns where nobody looks: nothing is cut off in a pipe."""
STYLES = {"active": "green", "final": "green", "ok": "green", "pending": "yellow", "bad": "bold red", "jailed": "red"}


def emit(value: object, *, as_json: bool, human: Any) -> None:
    """Print `value` as JSON, or what `human()` gives: renderables of rich, or text."""
    if as_json:
        print(json.dumps(value, indent=2, default=str))
        return
    output = console()
    for part in human() if callable(human) else human:
        if terminal():
            output.print(part)
            continue
        with output.capture() as captured:
            output.print(part)
        for line in captured.get().splitlines():
            print(line.rstrip())


def console(*, stderr: bool = False) -> Any:
    """A console of rich: plain and wide where no person looks."""
    from rich.console import Console

    if terminal() and not stderr:
        return Console(highlight=False)
    return Console(
        file=sys.stderr if stderr else sys.stdout,
        width=None if terminal() else _WIDE,
        color_system=None,
        highlight=False,
        emoji=False,
        legacy_windows=False,
    )


def remark(text: str) -> None:
    """Something for people, not data."""
    print(text, file=sys.stderr, flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> Any:
    """A table; columns of numbers are aligned to the right."""
    from rich.table import Table
    from rich.text import Text

    cells = [[cell if isinstance(cell, Text) else str(cell) for cell in row] for row in rows]
    made = Table(box=None, title=title or None, title_justify="left", pad_edge=False, header_style="bold")
    for place, name in enumerate(columns):
        texts = [str(row[place]) for row in cells]
        numeric = bool(texts) and all(is_numeric(text) for text in texts)
        made.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in cells:
        made.add_row(*row)
    return made


def facts(pairs: Iterable[tuple[str, object]], *, title: str = "") -> Any:
    """Names and values, one a line."""
    from rich.table import Table

    made = Table(box=None, show_header=False, title=title or None, title_justify="left", pad_edge=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(name, value if hasattr(value, "__rich_console__") else str(value))
    return made


def state(word: str) -> Any:
    """A word in the colour of what it means."""
    from rich.text import Text

    return Text(word, style=next((style for key, style in STYLES.items() if word.startswith(key)), ""))


def amount(units: int | str, symbol: str = "") -> str:
    """Token units (1e-18) in tokens, exact to 6 decimals: `1,250.5`."""
    value = int(units)
    whole, part = divmod(abs(value), UNIT)
    decimals = f"{part * 10**6 // UNIT:06d}".rstrip("0")
    text = f"{'-' if value < 0 else ''}{whole:,}{'.' + decimals if decimals else ''}"
    if not whole and not decimals and value:
        text = "<0.000001"
    return f"{text} {symbol}".strip()


def count(number: int | str) -> str:
    """A count with thousands separated."""
    return f"{int(number):,}"


def share(part: int, whole: int) -> str:
    """A percentage with two decimals."""
    return f"{100 * part / whole:.2f}%" if whole else "–"


def when(timestamp: int | None) -> str:
    """UTC time of Unix seconds."""
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S") if timestamp else "–"


def short(text: str) -> str:
    """The ends of an address, hash or peer id: enough to tell one from another."""
    return f"{text[:8]}…{text[-6:]}" if len(text) > 18 else text


def fit(text: str, wide: int = 160) -> str:
    """The whole address or peer id, or its ends on a terminal of fewer than `wide` columns."""
    return short(text) if terminal() and get_terminal_size().columns < wide else text


def bar(part: float, width: int = 24) -> str:
    """A bar of `part` in 0..1, for terminals only."""
    filled = round(max(0.0, min(1.0, part)) * width)
    return "█" * filled + "░" * (width - filled)


def plain(value: Any) -> Any:
    """Decoded contract values for JSON: bytes as 0x text, large integers as decimal text."""
    if isinstance(value, bytes):
        return f"0x{value.hex()}"
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 53:
        return str(value)
    return value


def is_numeric(text: str) -> bool:
    """Whether a cell holds a number, a range of them, or a dash: such columns are aligned to the right."""
    return bool(text) and text.strip("<%,.-–0123456789") == ""
