"""What went over the network, for the status view: bytes per peer and in all, refusals by number."""

from __future__ import annotations

from collections import Counter

from dht.errors import Refusal
from dht.frames import Meter
from dht.identity import PeerId

_MOST_PEERS = 4096


class Counters:
    """Bytes up and down per peer; the least recently met peers are folded into the total only."""

    def __init__(self) -> None:
        self._peers: dict[PeerId, Meter] = {}
        self._gone = Meter()
        self.refusals: Counter[Refusal] = Counter()

    def of(self, peer: PeerId) -> Meter:
        """The running meter of one peer, which its streams add to."""
        meter = self._peers.pop(peer, None) or Meter()
        self._peers[peer] = meter
        if len(self._peers) > _MOST_PEERS:
            oldest = self._peers.pop(next(iter(self._peers)))
            self._gone = Meter(self._gone.up + oldest.up, self._gone.down + oldest.down)
        return meter

    def peers(self) -> dict[PeerId, Meter]:
        """A copy of all meters, the most recently met peer last."""
        return {peer: Meter(meter.up, meter.down) for peer, meter in self._peers.items()}

    def total(self) -> Meter:
        """Bytes over all peers since the start."""
        meters = (self._gone, *self._peers.values())
        return Meter(sum(meter.up for meter in meters), sum(meter.down for meter in meters))
