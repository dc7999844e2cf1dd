"""Local steps that somebody else's training loop takes: the model passes between that loop and the round, like a baton.

The learner asks for local steps with `train` and, while it waits, the loop may change the model. Between two calls
the loop is at rest: the parameters are folded, encoded and replaced by certified ones, and nobody else touches them.
So at any moment one of the two threads has the model, which is what `peer.local_training.LocalTraining` promises.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from peer.batching import Fit, Pace
from peer.manifest import Manifest
from peer.model import ParameterVector
from peer.outer import Vector
from peer.personal import PersonalParameters, personal_names
from peer.trainer import OverVector, TrainerState, TrainResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NO_MORE = 0.05
"""Seconds that `train` takes once nobody takes steps any more: who asks again and again shall not spin."""
_KIND = "transformers.Trainer"


@dataclass(slots=True)
class _Window:
    """One call of `train`: what was asked for, and what the loop has done since."""

    wanted: int
    deadline: Callable[[], bool]
    steps: int = 0
    skipped: int = 0
    tokens: int = 0
    loss_sum: float = 0.0
    loss_tokens: int = 0
    trouble: str = ""
    over: bool = False

    def is_full(self) -> bool:
        return self.steps + self.skipped >= self.wanted or bool(self.trouble) or self.deadline()

    def result(self) -> TrainResult:
        loss = self.loss_sum / self.loss_tokens if self.loss_tokens else math.nan
        return TrainResult(self.steps, self.tokens, loss, self.skipped, self.trouble)


class Baton(OverVector):
    """A `peer.local_training.LocalTraining` for the learner; `at_rest`, `stepped` and `close` are for the loop."""

    def __init__(self, model: PreTrainedModel, manifest: Manifest, forget: Callable[[], None] = lambda: None) -> None:
        """Takes over the memory of the trained parameters, as `ParameterVector` does.

        `forget` drops the moments of the loop's optimizer.
        """
        self.model = model
        own = personal_names(model, manifest)
        self.vector = ParameterVector(model, own)
        self.personal = PersonalParameters(model, own)
        self.step = 0
        self.rounds = 0.0  # told by the learner; the loop has a schedule of its own
        self.pace = Pace()
        self.measured: Fit | None = None
        self.notes: list[str] = []
        self.report: Callable[..., None] = lambda name, **fields: None
        self.claim: float | None = None
        self._max_bad_steps, self._forget = manifest.train.max_bad_steps, forget
        self._bad_in_a_row = 0
        self._turn = threading.Condition()
        self._window: _Window | None = None
        self._closed = False

    # --- the loop's side ----------------------------------------------------------------------------------------

    def at_rest(self) -> bool:
        """Between two steps: gives the model away if the window is over, and blocks until it is the loop's again.

        False once the baton is closed: no more steps are wanted.
        """
        with self._turn:
            if self._window is not None and self._window.is_full():
                self._end_window()
            self._turn.wait_for(lambda: self._window is not None or self._closed)
            return not self._closed

    def stepped(self, tokens: int, loss: float) -> None:
        """The loop took an optimizer step on so many tokens. `loss`: their mean in nats; NaN where nobody knows it."""
        with self._turn:
            self.step += 1
            self._bad_in_a_row = 0
            if (window := self._window) is not None:
                window.steps += 1
                window.tokens += tokens
                if math.isfinite(loss):
                    window.loss_sum += loss * tokens
                    window.loss_tokens += tokens

    def skipped(self, norm: float) -> None:
        """The loop left a step out, because the norm of its gradient was not finite."""
        with self._turn:
            self._bad_in_a_row += 1
            bad = self._bad_in_a_row
            if (window := self._window) is not None:
                window.skipped += 1
                if bad >= self._max_bad_steps:
                    window.trouble = f"gradient not finite in {bad} local steps in a row"
        self.report("skipped", loss=None, norm=norm, in_a_row=bad)

    def close(self) -> None:
        """No more local steps, from either side; whoever waits goes on. Any thread, any number of times."""
        with self._turn:
            self._closed = True
            self._end_window()
            self._turn.notify_all()

    def _end_window(self) -> None:
        if self._window is not None:
            self._window.over = True
            self._window = None
            self._turn.notify_all()

    # --- the learner's side -------------------------------------------------------------------------------------

    def train(self, steps: int, deadline: Callable[[], bool] = lambda: False) -> TrainResult:
        """Wait until the loop has taken `steps` steps, or is between two of them when `deadline()` holds."""
        window, began = _Window(steps, deadline), time.monotonic()
        with self._turn:
            if self._closed:
                time.sleep(_NO_MORE)
            elif not window.is_full():
                self._window = window
                self._turn.notify_all()
                self._turn.wait_for(lambda: window.over)
        self.pace.took(window.tokens, time.monotonic() - began)
        return window.result()

    def evaluate(self, batches: Iterable[NDArray[np.int64]]) -> float:
        """Mean loss in nats per token over the batches; NaN if there are none. The loop must be at rest."""
        total = tokens = 0.0
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                for batch in batches:
                    ids = torch.from_numpy(batch).to(self.model.device)
                    total += float(self.model(input_ids=ids, labels=ids, use_cache=False).loss) * batch.size
                    tokens += batch.size
        finally:
            self.model.train(was_training)
        return total / tokens if tokens else math.nan

    def start_over(self, flat: Vector) -> None:
        """Go on from these parameters, float32[D], without the optimizer's moments, which may be poisoned."""
        self.set_parameters(flat)
        self.personal.settle()
        self._forget()
        self._bad_in_a_row = 0

    def state(self) -> TrainerState:
        """Steps and personal parameters. Moments, schedule and data position are in the script's own checkpoints."""
        self.personal.settle()
        return TrainerState(self.personal.arrays(), {"step": self.step, "optimizer": _KIND})

    def restore(self, state: TrainerState) -> None:
        """Go on from `state`. What another kind of trainer saved besides is of no use here and left alone."""
        self.personal.restore(state.arrays)
        self.step = int(state.facts.get("step", 0))


class LossMeter:
    """The mean loss of one optimizer step, read from what the model's forward passes return while it trains."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._sum: torch.Tensor | None = None
        self._passes = 0
        self._scaled = False
        self._hook = model.register_forward_hook(self._after_forward, with_kwargs=True)

    def _after_forward(self, model: torch.nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
        loss = getattr(output, "loss", None)
        if not model.training or loss is None:
            return
        # With gradient accumulation Trainer has the model divide by the tokens of the whole step: then losses add up.
        self._scaled = named.get("num_items_in_batch") is not None
        self._passes += 1
        part = loss.detach().mean()
        self._sum = part if self._sum is None else self._sum + part

    def take(self) -> float:
        """The loss since the last call, nats per token; NaN if the model returned none."""
        total, passes = self._sum, self._passes
        self._sum, self._passes = None, 0
        if total is None:
            return math.nan
        return float(total) / (1 if self._scaled else passes)

    def close(self) -> None:
        """Leave the model alone."""
        self._hook.remove()
