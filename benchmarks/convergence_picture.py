"""A picture of the convergence table: token efficiency over how many times less is sent, of all rows with both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

_WIDTH, _HEIGHT, _LEFT, _BELOW = 1000, 640, 70, 60
_INK, _GRID, _GOAL = (40, 40, 40), (225, 225, 225), (0, 130, 80)
_MOST = 1000.0
_LEAST, _UTMOST = 0.5, 1.05
_LABEL = 12  # pixels of a line of text


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a PNG: a dot for each row that has both figures, its name beside it; lines at 0.85 and 100 times."""
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    for share in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        height = _y(share)
        pen.line((_LEFT, height, _WIDTH - 20, height), fill=_GRID)
        pen.text((_LEFT - 35, height - 6), f"{share:.0%}", fill=_INK)
    for ratio in (1, 10, 100, 1000):
        pen.line((_x(ratio), 20, _x(ratio), _HEIGHT - _BELOW), fill=_GRID)
        pen.text((_x(ratio) - 12, _HEIGHT - _BELOW + 8), f"{ratio}x", fill=_INK)
    pen.line((_x(100), _y(0.85), _WIDTH - 20, _y(0.85)), fill=_GOAL, width=2)
    pen.line((_x(100), 20, _x(100), _y(0.85)), fill=_GOAL, width=2)
    placed: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: float(row.get("efficiency_muon") or 0.0), reverse=True):
        worth = row.get("efficiency_muon")
        if worth and row.get("bytes_ratio"):
            x, y = _x(row["bytes_ratio"]), _y(worth)
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_GOAL if worth >= 0.85 else _INK)
            text = (x + 8, _free(placed, x, y))
            placed.append(text)
            pen.text((text[0], text[1] - 6), str(row["preset"]), fill=_INK)
    pen.text((_LEFT, _HEIGHT - 25), "times less sent than a float32 all-reduce of every step (log)", fill=_INK)
    pen.text((_LEFT, 4), "tokens one place with Muon needs for the same loss / tokens used", fill=_INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _x(ratio: float) -> float:
    share = math.log10(max(ratio, 1.0)) / math.log10(_MOST)
    return _LEFT + share * (_WIDTH - _LEFT - 160)


def _y(share: float) -> float:
    return 20 + (_UTMOST - max(share, _LEAST)) / (_UTMOST - _LEAST) * (_HEIGHT - _BELOW - 20)


def _free(placed: Sequence[tuple[float, float]], x: float, y: float) -> float:
    """Where a label fits below those that are there, from above; dots of about one ratio share a column."""
    for other, taken in placed:
        if abs(other - x - 8) < 150:
            y = max(y, taken + _LABEL)
    return y
