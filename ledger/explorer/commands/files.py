"""What leaves the explorer: tables as CSV or JSON, pictures."""

from __future__ import annotations

import csv
import json as encode
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dht.errors import ConfigError, StorageError
from ledger.explorer import show
from ledger.explorer.options import Common, CommonOptions
from ledger.explorer.session import Session, with_session

What = Literal["epochs", "peers", "slashes", "usage", "claims", "rounds", "events"]


def export(
    what: Annotated[What, Parameter(help="Which table; events are all indexed events as they are.")] = "epochs",
    /,
    *,
    csv: Annotated[Path | None, Parameter(help="Write CSV here; - is stdout.", allow_leading_hyphen=True)] = None,
    out: Annotated[Path | None, Parameter(help="With --json: write it here instead of on stdout.")] = None,
    common: CommonOptions = None,
) -> int:
    """Write a table for other programs: --csv FILE, or --json."""
    common = common or Common()
    if csv is None and not common.json:
        raise ConfigError("export writes CSV or JSON", remedy="give --csv FILE, --csv - for stdout, or --json")
    rows = with_session(common, lambda session: _rows(session, what))
    if csv is not None:
        _written(csv, lambda file: _write_csv(file, rows))
    else:
        _written(out or Path("-"), lambda file: file.write(encode.dumps(rows, indent=2) + "\n"))
    return 0


async def _rows(session: Session, what: What) -> list[dict[str, Any]]:
    from ledger.explorer import facts, people

    if what == "epochs":
        return [epoch.as_json(session.now) for epoch in facts.epochs(session.index)]
    if what == "peers":
        return [peer.as_json() for peer in people.peers(session)]
    if what == "slashes":
        return facts.slashes(session.index)
    if what == "usage":
        return facts.usage(session.index)
    if what == "claims":
        return session.index.events("Claimed")
    if what == "rounds":
        from ledger.explorer.commands.records import describe_round

        return [describe_round(session, number) for number in range(session.records.chain.head.round + 1)]
    rows = [{"event": name, **row} for name in session.index.tables for row in session.index.events(name)]
    return sorted(rows, key=lambda row: (row["block"], row["log_index"]))


def _write_csv(file: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: encode.dumps(v) if isinstance(v, list | dict) else v for name, v in row.items()})


def _written(path: Path, write: Any) -> None:
    """Write to stdout for `-`, else to a file that appears whole or not at all."""
    if str(path) == "-":
        write(sys.stdout)
        return
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            write(file)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {path}: {error.strerror}", remedy="give another file, or free space"
        ) from None
    show.remark(f"written to {path}")


def plot(
    path: Annotated[Path, Parameter(name="FILE", help="Where to write the PNG.")] = Path("murmuration.png"),
    /,
    *,
    common: CommonOptions = None,
) -> int:
    """Draw loss, tokens, and each peer's share, epoch by epoch."""
    from ledger.explorer import draw, series

    common = common or Common()
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{path} is no PNG", remedy="give a name that ends with .png")

    async def work(session: Session) -> list[series.Panel]:
        return series.panels(session)

    panels = with_session(common, work)
    try:
        draw.write_png(path, panels)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror}", remedy="give another file, or free space"
        ) from None
    found = {"file": str(path), "panels": [panel.title for panel in panels]}
    show.emit(found, as_json=common.json, human=lambda: [f"{path}: {', '.join(found['panels'])}"])
    return 0
