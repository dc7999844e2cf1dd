"""Training that does not wait: a thread of its own takes step after step, and pauses between two when asked."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from peer.local_training import LocalTraining
from peer.trainer import TrainResult


@dataclass
class Done:
    """Steps that are in no update yet, those skipped apart; `loss` is the sum over tokens, in nats."""

    steps: int = 0
    skipped: int = 0
    tokens: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    trouble: str = ""  # why training stopped, until somebody has taken it

    def add(self, result: TrainResult, seconds: float) -> None:
        """One more step."""
        self.steps += result.steps
        self.skipped += result.skipped
        self.tokens += result.tokens
        self.loss += result.loss_mean * result.tokens if result.tokens else 0.0
        self.seconds += seconds
        self.trouble = result.trouble

    @property
    def tried(self) -> int:
        """Steps, skipped ones included."""
        return self.steps + self.skipped

    @property
    def result(self) -> TrainResult:
        """The same as one call of `Trainer.train` would have returned it."""
        loss = self.loss / self.tokens if self.tokens else math.nan
        return TrainResult(self.steps, self.tokens, loss, self.skipped, self.trouble)


class Stepper:
    """Trains on until `most` steps are in no update; the trainer is touched by others only while `paused`.

    Pauses of different threads do not exclude each other: whoever changes the model sees to that. The lock is never
    held during a step, so `wake` may be called on an event loop.
    """

    def __init__(self, trainer: LocalTraining, most: int) -> None:
        self.done = Done()
        self._trainer, self._most = trainer, most
        self._change = threading.Condition()
        self._enough: int | None = None
        self._pauses = 0
        self._stepping = self._stopped = False
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to train, unless it has begun."""
        if self._thread is None and not self._stopped:
            # A daemon: what ends the process without `stop` must not wait for steps that nobody will use.
            self._thread = threading.Thread(target=self._run, name="training", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End training after the step that runs, for good."""
        with self._change:
            self._stopped = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()

    def wake(self) -> None:
        """Let `after` look at its `until` again."""
        with self._change:
            self._change.notify_all()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Between two steps: the trainer is nobody else's inside."""
        with self._change:
            self._hold()
        try:
            yield
        finally:
            self._let_go()

    @contextmanager
    def after(self, steps: int, timeout: float, until: Callable[[], bool]) -> Iterator[None]:
        """Paused as soon as so many steps are done since `take`, `timeout` seconds are over, or `until()` is true.

        No step is begun in between. Raises what ended training, if something did.
        """

        def over() -> bool:
            return (
                self._failure is not None
                or self._stopped
                or self.done.trouble != ""
                or self.done.tried >= steps
                or until()
            )

        with self._change:
            self._enough = steps
            self._change.wait_for(over, timeout)
            self._enough = None
            if self._failure is not None:
                raise self._failure
            self._hold()
        try:
            yield
        finally:
            self._let_go()

    def _hold(self) -> None:
        """With the lock held: no step begins from here on, and the one that runs is over when it returns."""
        self._pauses += 1
        self._change.wait_for(lambda: not self._stepping)

    def _let_go(self) -> None:
        with self._change:
            self._pauses -= 1
            self._change.notify_all()

    def take(self) -> Done:
        """While paused: what was done since the last call; counting begins anew."""
        done, self.done = self.done, Done()
        return done

    def _run(self) -> None:
        try:
            while self._may_step():
                started = time.monotonic()
                result = self._trainer.train(1)
                with self._change:
                    self._stepping = False
                    self.done.add(result, time.monotonic() - started)
                    self._change.notify_all()
        except BaseException as error:
            with self._change:
                self._stepping, self._failure = False, error
                self._change.notify_all()

    def _may_step(self) -> bool:
        """Wait until nothing is in the way of another step; False when there shall be none."""

        def free() -> bool:
            enough = self._most if self._enough is None else min(self._enough, self._most)
            return self._stopped or (self._pauses == 0 and not self.done.trouble and self.done.tried < enough)

        with self._change:
            self._change.wait_for(free)
            self._stepping = not self._stopped
            return self._stepping
