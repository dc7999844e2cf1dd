"""Messages that came before their time: a faster peer may be in the next round already."""

from __future__ import annotations

from dht.envelope import Envelope
from dht.identity import PeerId

_AHEAD = 2
_SENDERS = 128
_PER_SENDER = 256
_BYTES_PER_SENDER = 256 << 10
"""With the number of senders, 32 MiB at most; what an honest peer sends ahead of time is far less."""


class Mailbox:
    """Envelopes of the current and the next rounds, bounded in number and bytes per sender."""

    def __init__(self) -> None:
        self._kept: dict[int, list[tuple[PeerId, Envelope, bytes]]] = {}
        self._count: dict[PeerId, tuple[int, int]] = {}

    def keep(self, sender: PeerId, envelope: Envelope, frame: bytes, current: int, *, trusted: bool = False) -> bool:
        """Keep a message of round `current` or soon after; whether there was room for it.

        `trusted`: of the committee (64 at most), which strangers with free identities must not crowd out.
        """
        count, size = self._count.get(sender, (0, 0))
        fits = count < _PER_SENDER and size + len(frame) <= _BYTES_PER_SENDER
        crowded = not trusted and sender not in self._count and len(self._count) >= _SENDERS
        if crowded or not fits or not current <= envelope.round <= current + _AHEAD:
            return False
        self._count[sender] = (count + 1, size + len(frame))
        self._kept.setdefault(envelope.round, []).append((sender, envelope, frame))
        return True

    def take(self, round_: int) -> list[tuple[PeerId, Envelope, bytes]]:
        """The messages of a round, in order of arrival; older ones are forgotten."""
        taken = self._kept.pop(round_, [])
        self._kept = {number: kept for number, kept in self._kept.items() if number > round_}
        self._count = {}
        for kept in self._kept.values():
            for sender, _, frame in kept:
                count, size = self._count.get(sender, (0, 0))
                self._count[sender] = (count + 1, size + len(frame))
        return taken
