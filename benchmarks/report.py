"""What every benchmark hands over: a table on the screen and JSON beside facts about the machine."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

OUT = Path(__file__).parent / "out"


def machine() -> dict[str, Any]:
    """Facts that a reader needs to compare rows: processor, cores, load, versions."""
    versions: dict[str, str | None] = {}
    for package in ("numpy", "torch", "cryptography", "hivemind"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def report(
    name: str, rows: Sequence[Mapping[str, Any]], *, title: str = "", columns: Sequence[str] | None = None
) -> Path:
    """Print `rows` (all columns, or these) and write `benchmarks/out/<name>.json` = {"rows": [...], "machine": {...}}.

    Returns the path.
    """
    show(rows, title=title or name, columns=columns)
    return write(name, {"rows": [dict(row) for row in rows]})


def show(rows: Sequence[Mapping[str, Any]], *, title: str, columns: Sequence[str] | None = None) -> None:
    """Print a table of `rows`: all columns, or these."""
    table = Table(title=title)
    columns = columns or list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        numeric = all(isinstance(row.get(column), (int, float, type(None))) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*[_cell(row.get(column)) for column in columns])
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def write(name: str, content: Mapping[str, Any]) -> Path:
    """Write `content` and the facts about the machine to `benchmarks/out/<name>.json`. Returns the path."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.json"
    path.write_text(json.dumps({**content, "machine": machine()}, indent=2) + "\n")
    return path


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
