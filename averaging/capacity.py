"""How much of the work this peer takes: what its owner declares, and no more than its uploads show."""

from __future__ import annotations

from collections import deque

DEFAULT_CAPACITY = 100
"""Mbit/s that a peer declares when its owner says nothing. Faster uploads than declared do not count, so that peers on
good lines share the work evenly and only slow ones get less."""
MAX_CAPACITY = 65535
_LEAST_BYTES = 4 << 20
_ROUNDS = 3


class Capacity:
    """Follows the uploads of the last rounds. Rates are in Mbit/s."""

    def __init__(self, declared: int) -> None:
        """`declared`: 1 to 65535, or 0 for a peer that cannot be dialled: it never takes work."""
        self._declared = declared
        self._rates: deque[float] = deque(maxlen=_ROUNDS)
        self._bytes, self._first, self._last = 0, 0.0, 0.0

    def started(self, now: float) -> None:
        """The upload of a round begins (seconds on any clock)."""
        self._bytes, self._first, self._last = 0, now, now

    def sent(self, size: int, now: float) -> None:
        """A chunk of so many bytes was acknowledged."""
        self._bytes, self._last = self._bytes + size, now

    def ended(self) -> int:
        """The round is over: what to declare in the next one. Too short an upload says nothing about the line."""
        if self._bytes >= _LEAST_BYTES and self._last > self._first:
            self._rates.append(8e-6 * self._bytes / (self._last - self._first))
        self._bytes = 0
        if not self._rates or not self._declared:
            return self._declared
        # The best of the last rounds: a receiver that is slow once does not make this line a slow one.
        return max(1, min(self._declared, int(max(self._rates))))
