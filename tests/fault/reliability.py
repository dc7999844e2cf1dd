"""`docs/reliability.md`: the page around the figures that the fault matrix found."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_HEAD = """| fault | runs | fired in | divergent survivors | wrong sums | hangs | rounds lost |
|---|---:|---:|---:|---:|---:|---:|"""
_REAL_HEAD = """| fault | runs | fired in | divergent roots | never came back | rounds lost | back after (longest) |
|---|---:|---:|---:|---:|---:|---:|"""


@dataclass(frozen=True, slots=True)
class Row:
    """Runs of one fault: in how many it fired, and in how many each promise broke. `lost`: void rounds in all."""

    fault: str
    runs: int
    fired: int
    divergent: int
    wrong: int
    hangs: int
    lost: int
    bad: tuple[int, ...] = ()

    @property
    def good(self) -> bool:
        """Whether every run fired and kept every promise."""
        return not self.bad and self.fired == self.runs

    def line(self) -> str:
        """Its line of the table."""
        figures = (self.runs, self.fired, self.divergent, self.wrong, self.hangs, self.lost)
        return f"| {self.fault} | {' | '.join(map(str, figures))} |"


def table(rows: Sequence[Row], seeds: int) -> str:
    """The simulator's part of the page."""
    total = Row("**all**", *(sum(getattr(row, name) for row in rows) for name in Row.__slots__[1:7]))
    lines = [row.line() for row in (*rows, total)]
    return "\n".join([f"Seeds 0 to {seeds - 1}.", "", _HEAD, *lines])


def write(rows: Sequence[Row], seeds: int, page: Path = PAGE) -> None:
    """Put the simulator's figures into the page. Raises ValueError when it has no place for them."""
    _put("simulator", table(rows, seeds), page)


def write_real(lines: Sequence[str], page: Path = PAGE) -> None:
    """Put the figures of real processes into the page. Raises ValueError when it has no place for them."""
    _put("processes", "\n".join([_REAL_HEAD, *lines]), page)


def write_net(lines: Sequence[str], page: Path = PAGE) -> None:
    """Put the figures of network namespaces into the page. Raises ValueError when it has no place for them."""
    _put("namespaces", "\n".join([_REAL_HEAD, *lines]), page)


def options(module: str, doc: str, times: int) -> argparse.ArgumentParser:
    """The command line of a matrix of real processes."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=doc.splitlines()[0])
    parser.add_argument("--times", type=int, default=times, help=f"repetitions of each fault ({times})")
    parser.add_argument("--write", action="store_true", help=f"write the rows to {PAGE.name}")
    parser.add_argument("--folder", type=Path, help="an empty folder that keeps the peers' events and files")
    return parser


def _put(name: str, text: str, page: Path) -> None:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = page.read_text().split(begin)
    _, after = rest.split(end)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
