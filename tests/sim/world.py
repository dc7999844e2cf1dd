"""A swarm spread over the globe: who has which line, how long a frame takes, and who is switched off when.

The figures are drawn from the seed. Their shape follows what measurements of home connections agree on, not one data
set: access rates are about log-normal (median 100 Mbit/s down and 40 up, 10 Mbit/s to 1 Gbit/s), one in twenty has two
fifths of that; one peer in six sits behind a router that lets nobody in, so that frames between two of those go through
a relay. Peers are scattered around population centres. A frame takes the last miles of both ends (5 to 30 ms), the
great circle at two thirds of the speed of light with a detour of a half, and up to a fifth more by chance. Bulk frames
queue for both ends' lines; control frames go first, and wait only for each other.

A model is simulated by few short chunks, and counted as a model of `parameters`: bulk frames are as long as their share
of that. One simulated chunk stands for `batch` real ones, whose heads would be that many peers: of a frame to or from
a head only that part goes over the one head's line.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from averaging.layout import Layout
from dht.identity import PeerId

MEGABIT = 125_000.0
"""Bytes per second."""
_LIGHT = 200_000.0  # kilometres per second in glass
_DETOUR = 1.5
_EARTH = 6371.0
_CENTRES = (
    # latitude, longitude, spread in degrees, weight
    (40.0, -95.0, 15.0, 0.30),
    (50.0, 10.0, 10.0, 0.34),
    (33.0, 118.0, 12.0, 0.18),
    (20.0, 78.0, 8.0, 0.06),
    (-20.0, -50.0, 10.0, 0.07),
    (-30.0, 145.0, 8.0, 0.05),
)
RING_BYTES, WIDE_BYTES = 2, 3
REAL_CHUNK = 65536
"""Elements of a chunk in a real run (`Layout.chunk_elements`)."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where a peer sits. Rates in bytes per second, times in seconds."""

    point: tuple[float, float, float]
    last_mile: float
    up: float
    down: float
    reachable: bool
    training: float

    @property
    def capacity(self) -> int:
        """What it declares of its line, in Mbit/s; 0 if nobody can dial it."""
        return max(1, round(min(self.up, self.down) / MEGABIT)) if self.reachable else 0


def draw_home(chance: random.Random) -> Home:
    """One peer's place, line and machine."""
    latitude, longitude, spread, _ = chance.choices(_CENTRES, [centre[3] for centre in _CENTRES])[0]
    latitude = math.radians(max(-65.0, min(65.0, chance.gauss(latitude, spread))))
    longitude = math.radians(chance.gauss(longitude, spread))
    point = (
        math.cos(latitude) * math.cos(longitude),
        math.cos(latitude) * math.sin(longitude),
        math.sin(latitude),
    )
    slow = 0.4 if chance.random() < 0.05 else 1.0
    down = slow * _between(10.0, 100.0 * math.exp(chance.gauss(0.0, 0.9)), 1000.0)
    up = min(down, slow * _between(10.0, 40.0 * math.exp(chance.gauss(0.0, 0.9)), 1000.0))
    training = _between(10.0, 18.0 * math.exp(chance.gauss(0.0, 0.3)), 30.0)
    return Home(point, chance.uniform(0.005, 0.030), up * MEGABIT, down * MEGABIT, chance.random() >= 1 / 6, training)


def _between(low: float, value: float, high: float) -> float:
    return max(low, min(value, high))


def distance(a: Home, b: Home) -> float:
    """Seconds that light takes along the cable between two homes, last miles included."""
    cosine = sum(x * y for x, y in zip(a.point, b.point, strict=True))
    kilometres = _EARTH * math.acos(max(-1.0, min(1.0, cosine)))
    return a.last_mile + b.last_mile + _DETOUR * kilometres / _LIGHT


@dataclass(frozen=True)
class Model:
    """The model that frames are counted for, and the few chunks that stand for it."""

    parameters: int
    layout: Layout

    @property
    def scale(self) -> float:
        """Real elements for each simulated one."""
        return self.parameters / self.layout.parameters

    @property
    def batch(self) -> int:
        """Real chunks for each simulated one."""
        return max(1, round(self.parameters / REAL_CHUNK / self.layout.chunks))

    @property
    def state_bytes(self) -> float:
        """Bytes of the state that a latecomer fetches: float32 parameters and momentum."""
        return 8.0 * self.parameters

    def frame_bytes(self, index: int, words: int, wide: bool) -> float:
        """Bytes of a bulk frame on the wire, headers of its `batch` real frames included."""
        if index == self.layout.trailer:
            return 55.0 + words * 5
        size = words * self.scale * (WIDE_BYTES if wide else RING_BYTES)
        return size + self.batch * (55.0 + (200.0 if wide else 0.0))


class Lines:
    """When frames get through. Every peer's line is two queues each way: control and bulk."""

    def __init__(self, homes: dict[PeerId, Home], seed: int) -> None:
        self.homes = homes
        self._chance = random.Random(f"lines {seed}")
        self._apart: dict[tuple[PeerId, PeerId], float] = {}
        self._free: dict[tuple[PeerId, str], float] = {}
        self._relay = draw_home(random.Random(f"relay {seed}"))
        self.sent: dict[str, float] = {"bulk": 0.0, "control": 0.0, "state": 0.0}

    def latency(self, a: PeerId, b: PeerId) -> float:
        """Seconds for an empty frame, jitter included."""
        key = (a, b) if a < b else (b, a)
        known = self._apart.get(key)
        if known is None:
            home, other = self.homes[a], self.homes[b]
            if home.reachable or other.reachable:
                known = distance(home, other)
            else:
                known = distance(home, self._relay) + distance(self._relay, other)
            self._apart[key] = known
        return known * (1.0 + 0.2 * self._chance.random())

    def carry(
        self, now: float, a: PeerId, b: PeerId, size: float, lane: str, split: float = 1
    ) -> tuple[float, float, float]:
        """When the sender's line is done with a frame, and when its first and its last byte are at the other's line.

        `split`: lines like `a`'s over which it goes.
        """
        self.sent[lane] += size
        first = max(now, self._free.get((a, f"up {lane}"), 0.0))
        left = first + size / self.homes[a].up / split
        self._free[a, f"up {lane}"] = left
        latency = self.latency(a, b)
        return left, first + latency, left + latency

    def land(self, now: float, b: PeerId, first: float, size: float, lane: str, split: float = 1) -> float:
        """When a frame whose last byte is at the receiver's line by now is through. Frames queue in the order in which
        they come: what a slow line sends for a minute does not keep others out for so long."""
        begun = max(first, self._free.get((b, f"down {lane}"), 0.0))
        there = self._free[b, f"down {lane}"] = max(now, begun + size / self.homes[b].down / split)
        return there

    def idle_at(self, peer: PeerId, lane: str) -> float:
        """When all that a peer has handed over so far will have left it."""
        return self._free.get((peer, f"up {lane}"), 0.0)
