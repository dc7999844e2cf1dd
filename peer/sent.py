"""What a learner remembers of an update on its way, to see later what of it really arrived."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from averaging.encoding import Encoder
from dht.wire import digest
from peer.outer import Vector


@dataclass(frozen=True, slots=True)
class Sent:
    """How the update of one sid was encoded, so that it can be encoded again to see what was sent."""

    round: int
    sid: bytes
    members: int
    update: Vector  # the residual itself, which stays as it is until the round is decided; a copy after a restart
    encoder: Encoder
    dither: bytes
    weight: float
    idle: bool = False  # nothing but zeros: this peer sat the round out

    def facts(self) -> dict[str, Any] | None:
        """What makes it again from the residual and the scales of its time; None where nothing was sent."""
        if self.idle:
            return None
        secret = {"sid": self.sid.hex(), "dither": self.dither.hex()}
        return {"round": self.round, "members": self.members, "weight": self.weight, **secret}


def signs(sid: bytes) -> bytes:
    """Seed of the random signs of a round's rotation."""
    return digest("signs", sid)
