"""When local training breaks: a peer sits a round out, and gives up when that does not help.

A peer whose steps are not finite any more has nothing to say in the mean. It still takes part in the round with zeros
and the least weight there is, one token: in a cohort every member is waited for, and one that stays away uses up the
dropouts that the cohort can bear, of which one of three members bears none.
"""

from __future__ import annotations

from dht.errors import ConfigError

ROUNDS = 3


class Health:
    """Whether this peer's update of the current round is worth adding."""

    def __init__(self) -> None:
        self.idle = False
        """Whether this peer sits the round out."""
        self._in_a_row = 0

    def trained(self, cause: str) -> None:
        """Training for a round is over; `cause` is why its result is unusable, or empty.

        Raises ConfigError in the third such round in a row: starting over from the certified model did not help.
        """
        self.idle = bool(cause)
        self._in_a_row = self._in_a_row + 1 if cause else 0
        if self._in_a_row >= ROUNDS:
            raise ConfigError(
                f"training broke in {ROUNDS} rounds in a row: {cause}",
                remedy="lower train.learning_rate (a new run), or try --precision fp32; nothing certified is lost",
            )
