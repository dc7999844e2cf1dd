"""A learner that trains on while its update is aggregated (decision 19).

The update of a round is taken between two steps, and training goes on from the local parameters. When the round is
certified, the new parameters land between two steps, with the progress that was made meanwhile and what the sum did not
take up: `certified - (since - local) - residual`. All that is in no update yet, and is in the next. So an update lands
late by as many steps as its aggregation lasted. Until then the model keeps its own update in full, in place of the
mean: close to what Kale, Douillard and Donchev (2025, arXiv 2502.12996) call eager updates; delayed landing is also in
arXiv 2501.18512.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from averaging.background import give_way
from peer.learner import Learner
from peer.manifest import Manifest
from peer.progress import Progress
from peer.stepper import Done, Stepper
from peer.store import LocalState

MOST_AHEAD = 4
"""Training pauses when it is so many times `local_steps` ahead of the last update: older work helps ever less."""
_EVALUATION_SHARE = 0.02
P = ParamSpec("P")
T = TypeVar("T")


class OverlappedLearner(Learner):
    """`Learner` whose trainer never waits for a round, as long as it is not too far ahead of it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._progress = Progress(self._trainer.local())
        self._stepper = Stepper(self._trainer, MOST_AHEAD * self.manifest.train.local_steps)
        self._thread = ThreadPoolExecutor(1, "learner", initializer=give_way)
        self._evaluate_from = 0.0

    async def _in_thread(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """As before, in a thread that leaves the processor to the trainer's."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *arguments, **named))

    # --- training -----------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """A round was decided: nobody waits for this update any more. Training goes on."""
        super().interrupt()
        self._stepper.wake()

    def _train(self, round_: int) -> int:
        """Take the update, once `local_steps` are done since the last one; they may be done already."""
        steps, limit = self.manifest.train.local_steps, self.params.deadlines.train
        with self._stepper.paused():
            self._trainer.rounds = round_ - 1 + self._stepper.done.tried / steps
        self._stepper.start()
        with self._stepper.after(steps, limit, lambda: self._stop_training):
            done = self._stepper.take()
            if not done.trouble and self._trainer.is_finite():
                self._progress.take(self._trainer.local(), self._residual)
            self.train_seconds = done.seconds
            return self._count(done.result, round_)

    def _fold(self) -> None:
        """Nothing: progress has a place of its own, and the update that was sent must stay as it is."""

    def _unfold(self) -> None:
        """Nothing: the model has gone on, whatever became of the round."""

    def _start_over(self) -> None:
        """Drop the progress, and the optimizer's moments with it; what earlier rounds left is kept."""
        self._trainer.start_over(self._progress.start_over(self.state.parameters, self._residual))
        self._tokens = 0

    def _evaluate(self, surely: bool) -> float | None:
        """Of the certified parameters, which are lent the model; as seldom as it takes to cost little time."""
        started = time.monotonic()
        if self._heldout is None or (started < self._evaluate_from and not surely):
            return None
        with self._stepper.paused():
            local = self._trainer.local().copy()
            self._trainer.set_parameters(self.state.parameters)
            try:
                loss = super()._evaluate(surely)
            finally:
                self._trainer.set_parameters(local)
        ended = time.monotonic()
        self._evaluate_from = ended + (ended - started) / _EVALUATION_SHARE
        return loss

    # --- adopting a state, and across restarts --------------------------------------------------------------------

    def _land(self) -> None:
        with self._stepper.paused():
            local = self._progress.land(self.state.parameters, self._trainer.local(), self._residual)
            self._trainer.set_parameters(local)

    def _leave(self) -> None:
        self._stepper.stop()
        super()._leave()
        self._thread.shutdown(wait=False)

    def _local_training(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Copies, of one moment between two steps: they are written out while training goes on."""
        with self._stepper.paused():
            arrays, facts = super()._local_training()
            arrays = {name: np.array(value) for name, value in arrays.items()}
            arrays["progress"] = self._progress.made(self._trainer.local())
            return arrays, facts | {"done": asdict(self._stepper.done)}

    def _train_on(self, local: LocalState) -> None:
        super()._train_on(local)
        self._stepper.done = Done(**local.facts["done"])
        made = np.asarray(local.arrays["progress"])
        self._trainer.set_parameters(self._progress.go_on(self.state.parameters, self._residual, made))


def learner_kind(manifest: Manifest) -> type[Learner]:
    """The learner that a run's manifest asks for."""
    return OverlappedLearner if manifest.train.overlap else Learner
