"""What the learner asks of whoever takes the local steps, be it the project's own trainer or somebody else's loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from peer.batching import Fit, Pace
from peer.model import ParameterVector
from peer.outer import Vector
from peer.personal import PersonalParameters
from peer.trainer import TrainerState, TrainResult


class LocalTraining(Protocol):
    """What the learner asks of whoever takes the local steps: `Trainer`, or `peer.baton.Baton` for a foreign loop."""

    vector: ParameterVector
    step: int  # inner steps so far
    rounds: float  # how far the run is; drives the decay of the rate, where the manifest's schedule is followed
    personal: PersonalParameters
    pace: Pace
    measured: Fit | None
    notes: list[str]  # what its owner should know
    report: Callable[..., None]  # takes events, as `Reporter.event` does
    claim: float | None  # epsilon at `peer.dp.CLAIM_DELTA`, where there is a promise

    def train(self, steps: int, deadline: Callable[[], bool] = ...) -> TrainResult:
        """At most `steps` inner steps; before each one `deadline()` is asked whether to stop."""
        ...

    def evaluate(self, batches: Iterable[NDArray[np.int64]]) -> float:
        """Mean loss in nats per token over the batches."""
        ...

    def set_parameters(self, flat: Vector) -> None:
        """Start from these parameters, float32[D]."""
        ...

    def is_finite(self) -> bool:
        """Whether every local parameter is a finite number."""
        ...

    def start_over(self, flat: Vector) -> None:
        """Go on from these parameters, float32[D], without the optimizer's moments, which may be poisoned."""
        ...

    def get_parameters(self, out: Vector) -> None:
        """Write the local parameters into float32[D]."""
        ...

    def local(self) -> Vector:
        """The local parameters, float32[D]; they stay as they are between two calls of `train`."""
        ...

    def state(self) -> TrainerState:
        """What it needs to go on after a restart, besides the parameters."""
        ...

    def restore(self, state: TrainerState) -> None:
        """Go on from what `state` returned."""
        ...
