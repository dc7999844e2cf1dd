"""Outcomes of the fault matrix as JSON lines, so that a long run which was interrupted goes on where it stopped.

The first line says of which code and which faults; each other line holds a seed's outcomes. Figures of different code
never mix: a file of another commit, or of a tree with changes, is begun anew.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.sim.cases import Outcome

_ROOT = Path(__file__).parents[2]


def commit() -> str | None:
    """Hash of the commit that this tree is, None when tracked files have changed since or there is no repository."""
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no")
        return None if changed else _git("rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=_ROOT, check=True, capture_output=True, text=True).stdout.strip()


class Journal:
    """What is known of each seed (`known`), and `news`: what became of a file that was there before."""

    def __init__(self, path: Path, code: str | None, faults: Sequence[str]) -> None:
        """`code`: the `commit` that is played; None is like no other, so that nothing of it is ever kept."""
        self._path = path
        self.known: dict[int, list[Outcome]] = {}
        self.news = ""
        head = json.dumps({"commit": code, "faults": list(faults)})
        lines = path.read_text().split("\n") if path.exists() else []
        whole: list[str] = []
        if code is not None and lines[:1] == [head]:
            whole = lines[1:-1]  # each line ends with a newline: what comes after the last one was cut off
            for row in map(json.loads, whole):
                self.known[row["seed"]] = [_outcome(fields) for fields in row["outcomes"]]
            self.news = f"{path}: goes on after {len(self.known)} seeds"
        elif lines:
            self.news = f"{path}: begun anew, it is of another commit, of other faults, or of a tree with changes"
        path.write_text("".join(f"{line}\n" for line in (head, *whole)))

    def add(self, seed: int, outcomes: Sequence[Outcome]) -> None:
        """Keep a seed's outcomes."""
        row = json.dumps({"seed": seed, "outcomes": [asdict(outcome) for outcome in outcomes]})
        with self._path.open("a") as file:
            file.write(row + "\n")


def _outcome(fields: dict[str, Any]) -> Outcome:
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Outcome(**{**fields, **lists})
