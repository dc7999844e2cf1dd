"""Local training: inner AdamW steps on this peer's own batches, between two rounds.

The optimizer's moments stay with the peer over rounds, as in DiLoCo (arXiv 2311.08105); only parameters are averaged.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from dht.errors import ConfigError
from peer.inner import InnerOptimizer, rate_at
from peer.manifest import Manifest
from peer.model import ParameterVector
from peer.outer import Vector
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


@dataclass(frozen=True, slots=True)
class TrainerState:
    """What a trainer needs to go on: `arrays` are views of its memory (copy or write them out at once)."""

    arrays: dict[str, NDArray[Any]]
    facts: dict[str, Any] = field(default_factory=dict)  # plain values for JSON


class Trainer:
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
        self.vector = ParameterVector(self.model)
        self.batches = batches
        self.step = 0  # inner steps since this peer joined; drives the warm-up
        self.rounds = 0.0  # how far the run is; drives the decay
        self._settings = manifest.train
        self._named = [(name, entry) for name, entry in sorted(model.named_parameters()) if entry.requires_grad]
        self._optimizer = InnerOptimizer(self._named, manifest.train, self.precision.torch_device)
        self.notes = self._optimizer.notes

    def train(self, steps: int, deadline: Callable[[], bool] = lambda: False) -> TrainResult:
        """At most `steps` inner steps; before each one `deadline()` is asked whether to stop.

        `rounds` moves on by one for `local_steps` of the manifest; set it where the run is.
        """
        taken = skipped = tokens = 0
        loss_sum = 0.0
        try:
            while taken + skipped < steps and not deadline():
                batch = self.batches.next()
                loss = self._inner_step(batch)
                if loss is None:
                    skipped += 1
                    continue
                taken += 1
                tokens += batch.size
                loss_sum += loss * batch.size
        finally:
            self._optimizer.zero_grad()  # gradients would stay resident through the aggregation
        return TrainResult(taken, tokens, loss_sum / tokens if tokens else math.nan, skipped)

    def _inner_step(self, batch: NDArray[np.int64]) -> float | None:
        """One optimizer step; its loss, or None when the step was skipped because something was not finite."""
        self._optimizer.zero_grad()
        loss = self._loss(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([entry for _, entry in self._named], self._settings.clip_norm)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            log.warning("skipped an inner step: loss %s, gradient norm %s", value, float(norm))
            return None
        self._optimizer.step(rate_at(self._settings, self.step, self.rounds))
        self.step += 1
        self.rounds += 1 / self._settings.local_steps
        return value

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
                for batch in batches:
                    total += float(self._loss(batch)) * batch.size
                    tokens += batch.size
        finally:
            self.model.train()
        return total / tokens if tokens else math.nan

    def set_parameters(self, flat: Vector) -> None:
        """Start from these parameters, float32[D]. The optimizer's moments stay."""
        self.vector.copy_in(flat)

    def get_parameters(self, out: Vector) -> None:
        """Write the local parameters into float32[D]."""
        self.vector.copy_out(out)

    def local(self) -> Vector:
        """The local parameters, float32[D]: on a CPU the model's own memory, which the next step changes."""
        return self.vector.view()

    def state(self) -> TrainerState:
        """Optimizer moments, step count and data position; not the parameters."""
        arrays: dict[str, NDArray[Any]] = {}
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
        values: dict[str, Any] = {**state.arrays, **state.facts["scalars"]}
        for key, value in values.items():
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
