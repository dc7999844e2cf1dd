"""A picture of simulated rounds: how long each took, who was in it, what it cost; a line for each number of peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from tests.sim.globe import Round

_WIDTH, _PANEL, _MARGIN = 1000, 260, 60
_INK, _GRID, _VOID = (40, 40, 40), (225, 225, 225), (200, 30, 30)
_LINES = ((0, 90, 160), (220, 120, 0), (0, 130, 80), (120, 60, 150), (90, 90, 90))
_PANELS: tuple[tuple[str, Callable[[Round], float]], ...] = (
    ("seconds per round (red: void)", lambda row: row.seconds),
    ("% of the living peers whose update is in the sum", lambda row: 100 * row.survivors / row.alive),
    ("MB per living peer", lambda row: (row.bulk + row.control) / row.alive / 1e6),
)


def draw(path: Path, series: Mapping[int, Sequence[Round]]) -> None:
    """Write a PNG with one panel for each figure. `series`: the decided rounds by number of peers."""
    image = Image.new("RGB", (_WIDTH, _PANEL * len(_PANELS) + 30), "white")
    pen = ImageDraw.Draw(image)
    rounds = max((row.number for rows in series.values() for row in rows), default=1)
    for place, (title, figure) in enumerate(_PANELS):
        _panel(pen, place * _PANEL, title, figure, series, rounds)
    for place, (size, colour) in enumerate(zip(series, _LINES, strict=False)):
        pen.text((_MARGIN + 130 * place, _PANEL * len(_PANELS) + 8), f"{size} peers", fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")


def _panel(
    pen: ImageDraw.ImageDraw,
    top: int,
    title: str,
    figure: Callable[[Round], float],
    series: Mapping[int, Sequence[Round]],
    rounds: int,
) -> None:
    highest = max((figure(row) for rows in series.values() for row in rows), default=1.0) or 1.0
    bottom, height, width = top + _PANEL - 30, _PANEL - 70, _WIDTH - 2 * _MARGIN

    def at(row: Round) -> tuple[float, float]:
        share = (row.number - 1) / max(1, rounds - 1)
        return _MARGIN + width * share, bottom - height * figure(row) / highest

    pen.text((_MARGIN, top + 12), title, fill=_INK)
    for part in range(5):
        level = bottom - height * part / 4
        pen.line([(_MARGIN, level), (_WIDTH - _MARGIN, level)], fill=_GRID)
        pen.text((8, level - 6), f"{highest * part / 4:.4g}", fill=_INK)
    for rows, colour in zip(series.values(), _LINES, strict=False):
        if len(rows) > 1:
            pen.line([at(row) for row in rows], fill=colour, width=2)
        for row in rows:
            x, y = at(row)
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=_VOID if row.void else colour)
