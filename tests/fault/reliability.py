"""`docs/reliability.md`: the page around the figures that the fault matrix found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_BEGIN, _END = "<!-- simulator: begin -->", "<!-- simulator: end -->"
_HEAD = """| fault | runs | fired in | divergent survivors | wrong sums | hangs | rounds lost |
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
    """The generated part of the page."""
    total = Row("**all**", *(sum(getattr(row, name) for row in rows) for name in Row.__slots__[1:7]))
    lines = [row.line() for row in (*rows, total)]
    return "\n".join([_BEGIN, f"Seeds 0 to {seeds - 1}.", "", _HEAD, *lines, _END])


def write(rows: Sequence[Row], seeds: int, page: Path = PAGE) -> None:
    """Put the figures into the page, between its two marks. Raises ValueError when it has none."""
    text = page.read_text()
    before, rest = text.split(_BEGIN)
    _, after = rest.split(_END)
    page.write_text(before + table(rows, seeds) + after)
