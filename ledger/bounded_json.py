"""JSON from strangers, with a bound on how deep it nests.

Python's parser recurses in C. Its own guard is the interpreter's recursion limit, which a dependency of eth-account
raises to 100,000 when it is imported: then a few hundred kilobytes of brackets end the process.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MOST_DEPTH = 64
_NO_BRACKETS = re.compile(rb"[^\[\]{}]+")


def loads(data: bytes, most_depth: int = MOST_DEPTH) -> Any:
    """The value. Raises ValueError when it is no JSON, or when it could nest deeper than `most_depth`.

    Brackets within strings count, too: no text of these protocols has them.
    """
    depth = 0
    for bracket in _NO_BRACKETS.sub(b"", data):
        depth += 1 if bracket in b"[{" else -1
        if depth > most_depth:
            raise ValueError(f"nested deeper than {most_depth}")
    return json.loads(data)


@contextmanager
def same_recursion_limit() -> Iterator[None]:
    """Around an import that raises the recursion limit of the whole process."""
    limit = sys.getrecursionlimit()
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)
