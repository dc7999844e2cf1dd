"""What one peer may cost us: frames per second, streams at once, and a time out for breaking the rules."""

from __future__ import annotations

from collections import Counter

from dht.clock import Clock
from dht.identity import PeerId


class TokenBucket:
    """Allows `rate` events per second on average and `burst` at once."""

    def __init__(self, clock: Clock, rate: float, burst: float) -> None:
        self._clock, self._rate, self._burst = clock, rate, burst
        self._tokens, self._then = burst, clock.now()

    def take(self, count: float = 1.0) -> float:
        """Account for `count` events; returns the seconds to wait before the next one is welcome (0: none)."""
        now = self._clock.now()
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate) - count
        self._then = now
        return max(0.0, -self._tokens / self._rate)


class BanList:
    """Peers that we do not listen to for a while. Remembers at most `capacity` of them, the newest."""

    def __init__(
        self, clock: Clock, *, strikes: int = 3, seconds: float = 60.0, longest: float = 3600.0, capacity: int = 4096
    ) -> None:
        self._clock, self._strikes, self._seconds, self._longest = clock, strikes, seconds, longest
        self._capacity = capacity
        self._until: dict[PeerId, float] = {}
        self._faults: dict[PeerId, int] = {}

    def ban(self, peer: PeerId, seconds: float) -> None:
        """Refuse `peer` for `seconds` from now; never shortens a ban."""
        until = max(self._clock.now() + seconds, self._until.pop(peer, 0.0))
        self._until[peer] = until
        if len(self._until) > self._capacity:
            del self._until[next(iter(self._until))]

    def banned(self, peer: PeerId) -> float:
        """Seconds that `peer` stays banned; 0 if it is not."""
        left = self._until.get(peer, 0.0) - self._clock.now()
        if left <= 0:
            self._until.pop(peer, None)
        return max(0.0, left)

    def strike(self, peer: PeerId) -> bool:
        """Count a broken rule; every `strikes` of them earn a ban, each twice as long. Returns whether it is one."""
        faults = self._faults.pop(peer, 0) + 1
        self._faults[peer] = faults
        if len(self._faults) > self._capacity:
            del self._faults[next(iter(self._faults))]
        if faults % self._strikes:
            return False
        self.ban(peer, min(self._longest, self._seconds * 2 ** min(faults // self._strikes - 1, 32)))
        return True


class StreamQuota:
    """How many streams each peer has open with us, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: Counter[PeerId] = Counter()

    @property
    def total(self) -> int:
        """Streams of all peers together."""
        return self._open.total()

    def acquire(self, peer: PeerId) -> bool:
        """Count one more stream; False (and not counted) when `peer` has its share already."""
        if self._open[peer] >= self._limit:
            return False
        self._open[peer] += 1
        return True

    def release(self, peer: PeerId) -> None:
        """Count one stream less."""
        self._open[peer] -= 1
        if self._open[peer] <= 0:
            del self._open[peer]
