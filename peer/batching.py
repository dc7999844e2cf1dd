"""How a local step's batch goes through the model: all at once, or in micro-batches whose gradients add up.

The size of a step decides how well the model learns, so the run fixes it (`train.tokens_per_step`); the size of a
micro-batch decides only memory and speed, so each peer measures its own: it takes more sequences at a time as long as
memory lasts and that makes it faster. As in DyLU (arXiv 2401.09135), the measured speed tells how many steps fit into a
round's deadline; here nobody is told a number of steps, since a round ends at its deadline and weights count tokens.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from peer.manifest import Manifest
from peer.memory import Gauge, gauge, give_back, is_out_of_memory, too_little

if TYPE_CHECKING:
    from peer.local_training import LocalTraining
    from peer.trainer import Trainer

log = logging.getLogger(__name__)

DEFAULT_SEQUENCES = 8
"""Of a local step, where neither the run nor the peer says."""
PASSES = 3
_WORTH_IT = 1.1
_SHARE = 0.8
"""Of the free memory; the rest is for what a short trial does not show."""
_NEWEST = 0.3
_LEARNER_BYTES = 12
"""Residual, masked copy and decoding of an update, per trained parameter, in main memory."""

Clock = Callable[[], float]


def step_sequences(manifest: Manifest, batch_size: int) -> int:
    """Sequences of one local step: the run's, else the peer's own `--batch-size`."""
    return manifest.train.tokens_per_step // manifest.data.sequence_length or batch_size or DEFAULT_SEQUENCES


def parts(batch: NDArray[np.int64], micro: int) -> Iterator[NDArray[np.int64]]:
    """A batch int64[sequences, length] in micro-batches, the last one smaller where it must be; 0: in one piece."""
    size = min(micro or len(batch), len(batch))
    return (batch[start : start + size] for start in range(0, len(batch), size))


def halved(micro: int, length: int) -> int:
    """The micro-batch after one of `micro` sequences did not fit. Raises ConfigError when there is none."""
    if micro <= 1:
        raise too_little(f"one sequence of {length} tokens")
    return micro // 2


@dataclass(frozen=True, slots=True)
class Trial:
    """One size, measured: median seconds of a forward and backward pass, bytes at its peak (gradients included)."""

    micro: int
    seconds: float
    bytes: int

    @property
    def rate(self) -> float:
        """Sequences per second; infinite on a clock too coarse to tell."""
        return self.micro / self.seconds if self.seconds > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Fit:
    """How a step of `sequences` goes through the model here, and what that takes."""

    sequences: int
    length: int
    micro: int
    seconds: float  # of one micro-batch

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step."""
        return math.ceil(self.sequences / self.micro)

    @property
    def step_seconds(self) -> float:
        """Of one local step, the optimizer's own work left out."""
        return self.seconds * self.sequences / self.micro

    @property
    def tokens_per_second(self) -> float:
        """While training; 0 on a clock too coarse to tell."""
        return self.sequences * self.length / self.step_seconds if self.step_seconds > 0 else 0.0

    def steps_within(self, seconds: float, wanted: int) -> int:
        """Local steps that fit, of those wanted; one at least, as a step begun is finished."""
        return max(1, min(wanted, int(seconds / self.step_seconds))) if self.step_seconds > 0 else wanted


class Pace:
    """Tokens per second of local training: a moving average over rounds."""

    def __init__(self) -> None:
        self.tokens_per_second = 0.0

    def took(self, tokens: int, seconds: float) -> None:
        """So many tokens were trained on in so many seconds. Nothing trained says nothing."""
        if tokens > 0 and seconds > 0:
            rate, before = tokens / seconds, self.tokens_per_second
            self.tokens_per_second = before + _NEWEST * (rate - before) if before else rate


def search(attempt: Callable[[int], Trial], most: int, free: float, fixed_bytes: int, length: int) -> Trial:
    """The micro-batch to use, of 1, 2, 4, ... `most` sequences.

    `attempt` measures one size and may run out of memory; `free` is what all may take at once; `fixed_bytes` of a
    trial's bytes do not grow with its size. Raises ConfigError when not even one sequence fits.
    """
    best: Trial | None = None
    micro = 1
    while True:
        try:
            trial = attempt(micro)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if best is None:
                raise too_little(f"one sequence of {length} tokens") from error
            return best
        if best is not None and trial.rate < _WORTH_IT * best.rate:
            return best
        best = trial
        micro = min(2 * micro, most)
        growing = max(0, trial.bytes - fixed_bytes)
        if micro == trial.micro or fixed_bytes + growing * micro / trial.micro > free:
            return best


def fit(trainer: Trainer, sequences: int, micro: int = 0, *, clock: Clock = time.monotonic) -> Fit:
    """Measure on the trainer's own next batch and set `trainer.micro`; `micro` fixes it, 0 finds it.

    Model, optimizer, gradients, random numbers and the place in the data stay as they were. Raises ConfigError when
    not even one sequence fits into memory.
    """
    device = trainer.precision.torch_device
    memory, place, buffers = gauge(device), trainer.batches.state(), [b.clone() for b in trainer.model.buffers()]
    batch = trainer.batches.next()
    length, elements = batch.shape[1], trainer.vector.elements
    later = elements * (trainer.moment_bytes + (_LEARNER_BYTES if device.type == "cpu" else 0))

    def attempt(size: int) -> Trial:
        return _attempt(trainer, batch[:size], memory, clock)

    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if micro:
                found = _descend(attempt, min(micro, sequences), length)
            else:
                found = search(attempt, sequences, _SHARE * memory.free() - later, 4 * elements, length)
    finally:
        trainer.batches.restore(place)
        for buffer, before in zip(trainer.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        give_back(device)
    trainer.micro = found.micro
    result = trainer.measured = Fit(sequences, length, found.micro, found.seconds)
    trainer.pace.took(sequences * length, result.step_seconds)
    return result


def introduce(trainer: LocalTraining, manifest: Manifest, report: Callable[..., None]) -> None:
    """Tell what was measured, and how many of the round's steps that lets this peer take before the deadline."""
    for text in trainer.notes:
        report("warning", text=text)
    if (measured := trainer.measured) is not None:
        wanted = manifest.train.local_steps
        report(
            "batch",
            sequences=measured.sequences,
            sequence_length=measured.length,
            micro=measured.micro,
            accumulation=measured.accumulation,
            tokens_per_second=measured.tokens_per_second,
            steps=measured.steps_within(manifest.cohort.deadlines.train, wanted),
            local_steps=wanted,
        )


def _descend(attempt: Callable[[int], Trial], micro: int, length: int) -> Trial:
    """Measure the size that was asked for; where it does not fit, half of it, and so on."""
    while True:
        try:
            return attempt(micro)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        log.warning("a micro-batch of %d sequences does not fit into memory: halving it", micro)
        micro = halved(micro, length)


def _attempt(trainer: Trainer, part: NDArray[np.int64], memory: Gauge, clock: Clock) -> Trial:
    device = trainer.precision.torch_device
    seconds: list[float] = []
    memory.start()
    try:
        for _ in range(PASSES):
            began = clock()
            trainer.accumulate(part, len(part))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(clock() - began)
        # The median: the first pass allocates and compiles, and another program may take one of them its time.
        return Trial(len(part), statistics.median(seconds), memory.grown())
    finally:
        trainer.drop_gradients()
