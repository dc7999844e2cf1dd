"""Time as a value that is passed in, so that a test can own it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from. Protocol code never calls `time` itself."""

    def now(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""
        ...

    def wall(self) -> float:
        """Unix time in seconds, for expirations that other machines read."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wall(self) -> float:
        """Unix seconds."""
        return time.time()


class CorrectedClock:
    """Another clock whose wall time is corrected by `offset` seconds, once that is known."""

    def __init__(self, clock: Clock, offset: float = 0.0) -> None:
        self._clock, self.offset = clock, offset

    def now(self) -> float:
        """Monotonic seconds of the other clock."""
        return self._clock.now()

    def wall(self) -> float:
        """Corrected Unix seconds."""
        return self._clock.wall() + self.offset


class ManualClock:
    """A clock that moves only when told to. The simulator and unit tests own one."""

    def __init__(self, start: float = 0.0, wall: float = 1_800_000_000.0) -> None:
        self._now = start
        self._wall_offset = wall - start

    def now(self) -> float:
        """Virtual seconds since the start."""
        return self._now

    def wall(self) -> float:
        """Virtual Unix seconds."""
        return self._now + self._wall_offset

    def advance_to(self, moment: float) -> None:
        """Move to `moment`; raises ValueError if that lies in the past."""
        if moment < self._now:
            raise ValueError(f"time cannot go back from {self._now} to {moment}")
        self._now = moment
