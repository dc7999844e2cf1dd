"""A picture of the convergence table: token efficiency over how many times less is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

_WIDTH, _HEIGHT, _LEFT, _BELOW = 1000, 560, 70, 60
_INK, _GRID, _GOAL = (40, 40, 40), (225, 225, 225), (0, 130, 80)
_MOST = 1000.0
_LEAST = 0.2


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a PNG: a dot for each row that has both figures, its name beside it; lines at 0.85 and 100 times."""
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        height = _y(share)
        pen.line((_LEFT, height, _WIDTH - 20, height), fill=_GRID)
        pen.text((_LEFT - 35, height - 6), f"{share:.0%}", fill=_INK)
    for ratio in (1, 10, 100, 1000):
        pen.line((_x(ratio), 20, _x(ratio), _HEIGHT - _BELOW), fill=_GRID)
        pen.text((_x(ratio) - 12, _HEIGHT - _BELOW + 8), f"{ratio}x", fill=_INK)
    pen.line((_x(100), _y(0.85), _WIDTH - 20, _y(0.85)), fill=_GOAL, width=2)
    pen.line((_x(100), 20, _x(100), _y(0.85)), fill=_GOAL, width=2)
    for row in rows:
        if row.get("efficiency") and row.get("bytes_ratio") and row["start"] == "scratch":
            x, y = _x(row["bytes_ratio"]), _y(row["efficiency"])
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_GOAL if row["efficiency"] >= 0.85 else _INK)
            pen.text((x + 8, y - 6), str(row["preset"]), fill=_INK)
    pen.text((_LEFT, _HEIGHT - 25), "times less sent than a float32 all-reduce of every step (log)", fill=_INK)
    pen.text((_LEFT, 4), "tokens the best centralized run needs for the same loss / tokens used", fill=_INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _x(ratio: float) -> float:
    share = math.log10(max(ratio, 1.0)) / math.log10(_MOST)
    return _LEFT + share * (_WIDTH - _LEFT - 160)


def _y(share: float) -> float:
    return 20 + (1.1 - max(share, _LEAST)) / (1.1 - _LEAST) * (_HEIGHT - _BELOW - 20)
