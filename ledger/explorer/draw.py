"""Panels as a picture: PNG for files, SVG for pages. One geometry, two pens."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Protocol

from ledger.explorer.series import Panel

WIDTH, PANEL, MARGIN = 960, 260, 64
NARROW = 520
"""Width of a panel on a page: its text can still be read where a telephone shows it in 340 pixels."""
_INK, _GRID = "#282828", "#dcdcdc"
_LEGEND = 108
"""Pixels for each name of the legend."""
# Okabe and Ito's colours: told apart by the colour-blind, too.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")


class Pen(Protocol):
    """Something that draws lines, dots and text; coordinates in pixels from the top left."""

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: int) -> None:
        """A line through points."""

    def dot(self, x: float, y: float, colour: str) -> None:
        """A small disc."""

    def text(self, x: float, y: float, text: str, colour: str) -> None:
        """Text whose top left is here."""


def write_png(path: Path, panels: Sequence[Panel]) -> None:
    """Write a PNG file. Raises OSError."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, PANEL * len(panels)), "white")
    canvas = ImageDraw.Draw(image)

    class Bitmap:
        def line(self, points: Sequence[tuple[float, float]], colour: str, width: int) -> None:
            canvas.line(list(points), fill=colour, width=width)

        def dot(self, x: float, y: float, colour: str) -> None:
            canvas.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)

        def text(self, x: float, y: float, text: str, colour: str) -> None:
            canvas.text((x, y), text, fill=colour, font_size=13)

    for place, panel in enumerate(panels):
        _draw(Bitmap(), panel, place * PANEL, WIDTH)
    image.save(path, "PNG")


def svg(panel: Panel) -> str:
    """One panel as an SVG element with its title as a name for screen readers; its ink is the page's, light or dark."""
    parts: list[str] = []
    on_page = {_INK: "currentColor", _GRID: "#8886", "#000000": "currentColor"}

    class Vector:
        def line(self, points: Sequence[tuple[float, float]], colour: str, width: int) -> None:
            through = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            stroke = on_page.get(colour, colour)
            parts.append(f'<polyline points="{through}" fill="none" stroke="{stroke}" stroke-width="{width}"/>')

        def dot(self, x: float, y: float, colour: str) -> None:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{on_page.get(colour, colour)}"/>')

        def text(self, x: float, y: float, text: str, colour: str) -> None:
            fill = on_page.get(colour, colour)
            parts.append(f'<text x="{x:.1f}" y="{y + 10:.1f}" fill="{fill}">{escape(text)}</text>')

    _draw(Vector(), panel, 0, NARROW)
    label = escape(panel.title)
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {NARROW} {PANEL}" font-size="14" '
        f'font-family="sans-serif" xmlns="http://www.w3.org/2000/svg"><title>{label}</title>{"".join(parts)}</svg>'
    )


def _draw(pen: Pen, panel: Panel, top: int, across: int) -> None:
    xs = [x for line in panel.lines for x, _ in line.points]
    ys = [y for line in panel.lines for _, y in line.points]
    left, right, highest = min(xs, default=0.0), max(xs, default=1.0), max(ys, default=1.0) or 1.0
    names = [line.name for line in panel.lines] if len(panel.lines) > 1 else []
    a_row = (across - MARGIN) // _LEGEND
    foot = 30 + 18 * (-(-len(names) // a_row))
    bottom, height, width = top + PANEL - foot, PANEL - foot - 36, across - 2 * MARGIN

    def at(x: float, y: float) -> tuple[float, float]:
        return MARGIN + width * ((x - left) / (right - left) if right > left else 0.5), bottom - height * y / highest

    pen.text(MARGIN, top + 10, panel.title, _INK)
    for part in range(5):
        level = bottom - height * part / 4
        pen.line([(MARGIN, level), (across - MARGIN, level)], _GRID, 1)
        pen.text(6, level - 6, f"{highest * part / 4:.4g}", _INK)
    for x in sorted({left, right, (left + right) // 2} if xs else ()):
        pen.text(at(x, 0)[0] - 4, bottom + 6, f"{x:g}", _INK)
    for place, line in enumerate(panel.lines):
        colour = _COLOURS[place % len(_COLOURS)]
        points = [at(x, y) for x, y in line.points]
        if len(points) > 1:
            pen.line(points, colour, 2)
        for x, y in points if len(points) <= 100 else ():
            pen.dot(x, y, colour)
    for place, name in enumerate(names):
        x, y = MARGIN + _LEGEND * (place % a_row), bottom + 26 + 18 * (place // a_row)
        # Names in ink beside a dot: not every colour can be read as text.
        pen.dot(x, y + 6, _COLOURS[place % len(_COLOURS)])
        pen.text(x + 8, y, name, _INK)
