from __future__ import annotations

import math
import threading
from typing import Any

import pytest

from peer.stepper import Done, Stepper
from peer.trainer import TrainResult

PATIENCE = 60.0


class Slow:
    """A trainer whose steps are let through one by one, and which notices when two threads are inside."""

    def __init__(self, free: int = 0) -> None:
        self.gate = threading.Semaphore(free)
        self.begun = threading.Semaphore(0)
        self.inside = 0
        self.steps = 0
        self.error: BaseException | None = None

    def train(self, steps: int) -> TrainResult:
        self.inside += 1
        assert (steps, self.inside) == (1, 1)
        self.begun.release()
        assert self.gate.acquire(timeout=PATIENCE)
        if self.error is not None:
            raise self.error
        self.steps += 1
        self.inside -= 1
        return TrainResult(1, 10, float(self.steps), 0)


def make(trainer: Any, most: int = 100) -> Stepper:
    stepper = Stepper(trainer, most)
    stepper.start()
    stepper.start()  # once is enough
    return stepper


def never() -> bool:
    return False


def test_an_update_is_taken_after_so_many_steps_and_none_begins_meanwhile():
    trainer = Slow()
    stepper = make(trainer)

    def awaited() -> bool:  # asked once somebody waits: only now steps get through, as many as the stepper lets
        trainer.gate.release(100)
        return False

    for number in range(1, 6):
        with stepper.after(3 * number, PATIENCE, awaited):
            assert trainer.inside == 0
            assert (stepper.done.steps, stepper.done.tokens) == (3 * number, 30 * number)
            assert stepper.done.result.loss_mean == (1 + 3 * number) / 2
            while trainer.gate.acquire(blocking=False):
                pass
    assert stepper.take().steps == 15
    assert stepper.done.steps == 0
    trainer.gate.release(1000)
    stepper.stop()


def test_training_pauses_when_it_is_too_far_ahead():
    trainer = Slow(free=1000)
    stepper = make(trainer, most=7)
    stepper._thread.join(0.2)  # type: ignore[union-attr]  # time in which it could go on too far
    with stepper.after(7, PATIENCE, never):
        assert trainer.steps == 7
        stepper.take()
    with stepper.after(7, PATIENCE, never):
        assert trainer.steps == 14
    stepper.stop()


def test_a_pause_waits_for_the_step_that_runs():
    trainer = Slow()
    stepper = make(trainer)
    assert trainer.begun.acquire(timeout=PATIENCE)
    inside = threading.Event()

    def pause() -> None:
        with stepper.paused(), stepper.paused():
            assert trainer.inside == 0
            inside.set()

    other = threading.Thread(target=pause)
    other.start()
    assert not inside.wait(0.05)
    trainer.gate.release()
    assert inside.wait(PATIENCE)
    other.join(PATIENCE)
    assert trainer.begun.acquire(timeout=PATIENCE), "it goes on afterwards"
    trainer.gate.release(1000)
    stepper.stop()


@pytest.mark.parametrize("timeout", [0.01, PATIENCE])
def test_what_is_there_is_taken_at_the_deadline_or_when_woken(timeout: float):
    trainer = Slow(free=2)
    stepper = make(trainer)
    for _ in range(3):
        assert trainer.begun.acquire(timeout=PATIENCE)
    asked = threading.Event()
    threading.Timer(0.05, lambda: (asked.set(), stepper.wake(), trainer.gate.release(1000))).start()
    with stepper.after(50, timeout, asked.is_set):
        assert trainer.inside == 0 and 3 <= stepper.take().steps <= 50  # some may go by before this thread runs
    trainer.gate.release(1000)
    stepper.stop()


def test_what_ends_training_is_raised_where_its_update_is_awaited():
    trainer = Slow()
    trainer.error = MemoryError("too large")
    stepper = make(trainer)
    trainer.gate.release()
    with pytest.raises(MemoryError, match="too large"), stepper.after(3, PATIENCE, never):
        pass
    with stepper.paused():  # whoever only wants the trainer to be still gets that
        pass
    stepper.stop()


def test_after_the_end_no_step_begins():
    trainer = Slow(free=1000)
    stepper = make(trainer, most=4)
    stepper.stop()
    before = trainer.steps
    stepper.start()
    with stepper.after(10, PATIENCE, never):
        assert trainer.steps == before <= 4


def test_skipped_steps_count_as_tried_and_as_nothing_else():
    done = Done()
    done.add(TrainResult(0, 0, math.nan, 1), 0.5)
    assert (done.tried, done.tokens) == (1, 0) and math.isnan(done.result.loss_mean)
    done.add(TrainResult(1, 8, 2.0, 0), 0.5)
    done.add(TrainResult(1, 24, 4.0, 0), 0.5)
    assert done.result == TrainResult(2, 32, 3.5, 1)
    assert (done.tried, done.seconds) == (3, 1.5)
