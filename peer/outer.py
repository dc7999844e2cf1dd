"""The outer optimizer: SGD with Nesterov momentum on the mean pseudo-gradient, the same bytes on every machine.

Each element goes through separate IEEE 754 float32 multiplications and additions, rounded one by one. Nothing is
fused, nothing is summed over elements, so the result depends neither on the machine nor on how vectors are cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dht.errors import ConfigError, RoundError

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class OuterStep:
    """`m' = momentum * m + g`, `p' = p - learning_rate * (momentum * m' + g)` (without Nesterov: `... * m'`).

    The form is that of `torch.optim.SGD` without dampening (Sutskever et al. 2013); as the outer optimizer of
    local training it is DiLoCo's (arXiv 2311.08105). `g` is the mean pseudo-gradient, global minus local.
    """

    learning_rate: float
    momentum: float
    nesterov: bool = True
    momentum_rounds: int = 0

    def at(self, round_: int) -> OuterStep:
        """The step of a round: over the first `momentum_rounds` the momentum rises from 0 in equal parts."""
        if round_ >= self.momentum_rounds:
            return self
        return replace(self, momentum=self.momentum * round_ / self.momentum_rounds)

    def apply_slice(self, parameters: Vector, momentum: Vector, gradient: Vector) -> tuple[Vector, Vector]:
        """New parameters and momentum of any slice, three float32 arrays of one length; inputs stay as they are.

        Raises RoundError when a result is not finite: then it is not finite for anyone, and the round is void.
        """
        rate, decay = np.float32(self.learning_rate), np.float32(self.momentum)
        with np.errstate(over="ignore", invalid="ignore"):
            velocity = momentum * decay
            velocity += gradient
            step = velocity * decay if self.nesterov else velocity.copy()
            if self.nesterov:
                step += gradient
            step *= rate
            np.subtract(parameters, step, out=step)
        # A NaN's sign and payload differ from machine to machine, so none may enter the state.
        if not (np.isfinite(step).all() and np.isfinite(velocity).all()):
            raise RoundError("the outer step left the range of float32", remedy="lower outer.learning_rate")
        return step, velocity


def require_ieee() -> None:
    """Raise ConfigError when this thread flushes subnormal numbers, as some fast-math libraries make it do."""
    if np.multiply(np.float32(2.0**-126), np.float32(0.5)) == 0.0:
        raise ConfigError(
            "this process rounds subnormal numbers to zero, so its model would differ from everyone else's",
            remedy="do not call torch.set_flush_denormal and remove libraries built with -ffast-math",
        )
