"""Local training: inner AdamW steps on this peer's own batches, between two rounds.

The optimizer's moments stay with the peer over rounds, as in DiLoCo (arXiv 2311.08105); only parameters are averaged.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from dht.errors import ConfigError
from peer.batching import Fit, Pace, halved, parts
from peer.inner import InnerOptimizer, rate_at
from peer.manifest import Manifest
from peer.memory import give_back, is_out_of_memory, too_little
from peer.model import ParameterVector, trained_parameters
from peer.outer import Vector
from peer.personal import PersonalParameters, is_personal, personal_names
from peer.precision import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
_LIKE_PARAMETERS = ("exp_avg", "momentum_buffer")


class Batches(Protocol):
    """Endless training data that can be put back to where it was (`peer.data.TokenBatches`)."""

    def next(self) -> NDArray[np.int64]:
        """The next batch of token ids, int64[batch, sequence_length]."""
        ...

    def state(self) -> dict[str, Any]:
        """Position, as plain values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a position that `state` returned."""
        ...


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What one call of `train` did. Skipped steps (loss or gradient not finite) count in neither steps nor tokens."""

    steps: int
    tokens: int
    loss_mean: float  # nats per token over the steps taken; NaN if there was none
    skipped: int
    trouble: str = ""  # why training stopped: too many skipped steps in a row


@dataclass(frozen=True, slots=True)
class TrainerState:
    """What a trainer needs to go on: `arrays` are views of its memory (copy or write them out at once)."""

    arrays: dict[str, NDArray[Any]]
    facts: dict[str, Any] = field(default_factory=dict)  # plain values for JSON


class OverVector:
    """A model's local parameters as one vector, beside those that are this peer's own."""

    vector: ParameterVector
    personal: PersonalParameters

    def set_parameters(self, flat: Vector) -> None:
        """Start from these parameters, float32[D]. The optimizer's moments stay."""
        self.vector.copy_in(flat)

    def get_parameters(self, out: Vector) -> None:
        """Write the local parameters into float32[D]."""
        self.vector.copy_out(out)

    def local(self) -> Vector:
        """The local parameters, float32[D]: on a CPU the model's own memory, which the next step changes."""
        return self.vector.view()

    def is_finite(self) -> bool:
        """Whether every local parameter is a finite number, the peer's own included."""
        return self.vector.is_finite() and self.personal.is_finite()


class Trainer(OverVector):
    """Trains one model. Not thread-safe: call its methods one at a time (from any thread)."""

    def __init__(
        self,
        model: PreTrainedModel,
        batches: Batches,
        manifest: Manifest,
        device: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        """`precision`: "fp32" or "bf16", by default the manifest's. `threads`: CPU threads of torch, process-wide.

        Raises ConfigError when the device is not there.
        """
        self.precision = Precision.resolve(device, precision or manifest.model.dtype)
        if threads is not None:
            torch.set_num_threads(threads)
        self.model = model.to(self.precision.torch_device)  # type: ignore[arg-type]
        self.model.train()
        own = personal_names(self.model, manifest)
        self.vector = ParameterVector(self.model, own)
        self.personal = PersonalParameters(self.model, own)
        self.batches = batches
        self.claim: float | None = None  # epsilon at `peer.dp.CLAIM_DELTA`, where there is a promise
        self.step = 0  # inner steps since this peer joined, or since `start_over`; drives the warm-up
        self.rounds = 0.0  # how far the run is; drives the decay
        self.micro = 0  # sequences that go through the model at a time; 0: a whole batch
        self.measured: Fit | None = None
        self.pace = Pace()
        self.clock: Callable[[], float] = time.monotonic
        self.report: Callable[..., None] = lambda name, **fields: None  # takes events, as `Reporter.event` does
        self._bad_in_a_row = 0
        self._settings = manifest.train
        self._named = trained_parameters(self.model)
        self._optimizer = InnerOptimizer(self._named, manifest.train, self.precision.torch_device)
        self.notes = self._optimizer.notes

    def train(self, steps: int, deadline: Callable[[], bool] = lambda: False) -> TrainResult:
        """At most `steps` inner steps; before each one `deadline()` is asked whether to stop.

        `rounds` moves on by one for `local_steps` of the manifest; set it where the run is. Stops with
        `TrainResult.trouble` after `train.max_bad_steps` steps in a row that had to be skipped, counted over calls.
        Raises ConfigError when not even one sequence at a time fits into memory.
        """
        taken = skipped = tokens = seen = 0
        loss_sum, began = 0.0, self.clock()
        try:
            while taken + skipped < steps and self._bad_in_a_row < self._settings.max_bad_steps and not deadline():
                batch = self.batches.next()
                loss = self._inner_step(batch)
                seen += batch.size
                if loss is None:
                    skipped += 1
                    continue
                taken += 1
                tokens += batch.size
                loss_sum += loss * batch.size
        finally:
            self.drop_gradients()  # they would stay resident through the aggregation
        self.pace.took(seen, self.clock() - began)
        bad = self._bad_in_a_row
        trouble = f"loss or gradient not finite in {bad} local steps in a row"
        over = bad >= self._settings.max_bad_steps
        return TrainResult(taken, tokens, loss_sum / tokens if tokens else math.nan, skipped, trouble if over else "")

    def _inner_step(self, batch: NDArray[np.int64]) -> float | None:
        """One optimizer step; its loss, or None when the step was skipped because something was not finite."""
        value = self._gradient(batch)
        norm = float(torch.nn.utils.clip_grad_norm_([entry for _, entry in self._named], self._settings.clip_norm))
        if not (math.isfinite(value) and math.isfinite(norm)):
            self._bad_in_a_row += 1
            log.warning("skipped an inner step: loss %s, gradient norm %s", value, norm)
            self.report("skipped", loss=value, norm=norm, in_a_row=self._bad_in_a_row)
            return None
        self._bad_in_a_row = 0
        try:
            self._optimizer.step(rate_at(self._settings, self.step, self.rounds))
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):  # its moments are made at the first step; smaller batches do not help
                raise too_little("the inner optimizer") from error
            raise
        self.step += 1
        self.rounds += 1 / self._settings.local_steps
        return value

    def _gradient(self, batch: NDArray[np.int64]) -> float:
        """Leave the gradient of a batch's mean loss, which is returned; in smaller parts where memory runs out."""
        self.drop_gradients()
        while True:
            try:
                return self.accumulate(batch, self.micro)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Here the exception is gone, and with it what its traceback kept alive.
            before = min(self.micro or len(batch), len(batch))
            self.micro = halved(before, batch.shape[1])
            self.drop_gradients()
            give_back(self.precision.torch_device)
            log.warning(
                "out of memory with %d sequences at a time: the step is taken again with %d", before, self.micro
            )
            self.report("out_of_memory", before=before, micro=self.micro)

    def accumulate(self, batch: NDArray[np.int64], micro: int) -> float:
        """Add a batch's gradient to what is there, `micro` sequences at a time; its mean loss in nats per token.

        Each part counts by its tokens, so how the batch is cut changes nothing but rounding. May run out of memory.
        """
        total = torch.zeros((), device=self.precision.torch_device)
        for part in parts(batch, micro):
            loss = self._loss(part) * (part.size / batch.size)
            loss.backward()
            total += loss.detach()
        return float(total)

    def drop_gradients(self) -> None:
        """Free the gradients."""
        self._optimizer.zero_grad()

    def _loss(self, batch: NDArray[np.int64]) -> torch.Tensor:
        ids = torch.from_numpy(batch).to(self.precision.torch_device)
        with self.precision.autocast():
            return cast(torch.Tensor, self.model(input_ids=ids, labels=ids, use_cache=False).loss)

    def evaluate(self, batches: Iterable[NDArray[np.int64]]) -> float:
        """Mean loss in nats per token over the batches; NaN if there are none. Training is not disturbed."""
        total = tokens = 0.0
        self.model.eval()
        try:
            with torch.inference_mode():
                for part in (part for batch in batches for part in parts(batch, self.micro)):
                    total += float(self._loss(part)) * part.size
                    tokens += part.size
        finally:
            self.model.train()
        return total / tokens if tokens else math.nan

    def start_over(self, flat: Vector) -> None:
        """Go on from these parameters, float32[D], without moments, which may be poisoned: the warm-up begins again."""
        self.set_parameters(flat)
        self.personal.settle()
        self._optimizer.forget()
        self.step = self._bad_in_a_row = 0

    @property
    def moment_bytes(self) -> int:
        """Bytes that the optimizer remembers per trained parameter, at most."""
        return 2 if self._optimizer.name == "AdamW8bit" else 8

    def state(self) -> TrainerState:
        """Optimizer moments, step count, data position and personal parameters; not the common ones."""
        self.personal.settle()
        arrays = self.personal.arrays()
        scalars: dict[str, float] = {}
        for name, entry in self._named:
            for what, value in self._optimizer.moments(entry).items():
                if isinstance(value, torch.Tensor):
                    arrays[f"optimizer/{what}/{name}"] = value.detach().cpu().numpy()
                else:
                    scalars[f"optimizer/{what}/{name}"] = value
        facts = {"step": self.step, "optimizer": self._optimizer.name, "scalars": scalars}
        return TrainerState(arrays, facts | {"data": self.batches.state()})

    def restore(self, state: TrainerState) -> None:
        """Go on from `state`; its arrays are copied. Raises ConfigError when it is another optimizer's or model's."""
        if state.facts.get("optimizer") != self._optimizer.name:
            raise ConfigError("the saved local training used another inner optimizer")
        parameters = dict(self._named)
        moments: dict[str, dict[str, Any]] = {name: {} for name in parameters}
        self.personal.restore(state.arrays)
        values: dict[str, Any] = {**state.arrays, **state.facts["scalars"]}
        for key, value in values.items():
            if is_personal(key):
                continue
            _, what, name = key.split("/", 2)
            if name not in moments or (what.startswith(_LIKE_PARAMETERS) and value.shape != parameters[name].shape):
                raise ConfigError("the saved local training belongs to another model")
            moments[name][what] = self._restored(value, what) if isinstance(value, np.ndarray) else value
        self._optimizer.remember([(parameters[name], found) for name, found in moments.items()])
        self.step = int(state.facts["step"])
        self.batches.restore(state.facts["data"])

    def _restored(self, array: NDArray[Any], what: str) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(array))
        return (
            tensor
            if what == "step" and not self._optimizer.counts_on_device
            else tensor.to(self.precision.torch_device)
        )
