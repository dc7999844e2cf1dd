"""Local training with record-level differential privacy (`--dp`): DP-SGD in place of the inner step.

What leaves this class is made of noised sums and of what was public before: the step of the optimizer works on noised
gradients alone, tokens are counted as expected, not as drawn, no loss of a training record is reported, and no step is
skipped for what a record did.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from dht.errors import ConfigError
from peer.config import PeerConfig
from peer.data import TokenData
from peer.dp import CLAIM_DELTA, Account, Guarantee, PoissonBatches, PrivacyBudgetError, Spent
from peer.inner import rate_at
from peer.manifest import Manifest
from peer.per_sample import PerSample
from peer.trainer import Trainer, TrainerState, TrainResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
_NOISE_PIECE = 1 << 18


class PrivateTrainer(Trainer):
    """A `Trainer` whose steps are DP-SGD, and which stops for good when its budget is spent.

    Gradients are clipped by record alone: `train.clip_norm` of the manifest does not apply. At most `micro` records (by
    default those of an average batch) go through the model at a time, each with a gradient as large as the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batches: PoissonBatches,
        manifest: Manifest,
        guarantee: Guarantee,
        account: Account,
        device: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Raises ConfigError for a model without gradients per record, PrivacyBudgetError when nothing is left."""
        super().__init__(model, batches, manifest, device, precision, threads)
        self.guarantee, self._account, self._poisson = guarantee, account, batches
        if guarantee.delta >= 1 / batches.data.sequences:
            raise ConfigError(
                f"dp-delta = {guarantee.delta:g} allows one of {batches.data.sequences} records to be published",
                remedy=f"it must be below {1 / batches.data.sequences:.1g}",
            )
        self._step_cost = Spent(batches.data.fingerprint, guarantee.noise, batches.sample_rate, 1)
        self.check_budget()
        self._publish()
        self._per_sample = PerSample(self.model, self.precision)
        self._parameters = [entry for entry in self.model.parameters() if entry.requires_grad]

    def check_budget(self) -> None:
        """Raises PrivacyBudgetError when not one more step is affordable."""
        if self._account.affordable(self._step_cost, self.guarantee) == 0:
            spent, most = self._account.epsilon(self.guarantee.delta), self.guarantee.epsilon
            raise PrivacyBudgetError(
                f"the privacy budget is spent: epsilon {spent:.3f}, and one more step would exceed {most:g}",
                remedy="the state is kept and can be exported; to go on, raise --dp-epsilon, or train on other "
                "people's text in a new --data-dir",
            )

    def train(self, steps: int, deadline: Callable[[], bool] = lambda: False) -> TrainResult:
        """At most `steps` steps, and no more than the budget has; `loss_mean` is NaN, tokens are the expected ones.

        Steps are on the account, on disk, before they are taken. Raises PrivacyBudgetError when there is none left.
        """
        self.check_budget()
        if steps <= 0 or deadline():
            return TrainResult(0, 0, math.nan, 0)
        reserved = replace(self._step_cost, steps=steps)
        reserved = replace(reserved, steps=self._account.affordable(reserved, self.guarantee))
        self._account.add(reserved)
        taken = 0
        try:
            while taken < reserved.steps and not deadline():
                taken += 1  # before it is over: a step that fails half-way may have been seen
                self._private_step(self._poisson.next())
        finally:
            self._per_sample.clear()
            self._optimizer.zero_grad()
            self._account.add(replace(reserved, steps=taken - reserved.steps))
            self._publish()
            self.report("privacy", **self.privacy)
        tokens = taken * self._poisson.expected * self._poisson.data.sequence_length
        return TrainResult(taken, tokens, math.nan, 0)

    def _publish(self) -> None:
        epsilon, delta = self._account.epsilon(self.guarantee.delta), self.guarantee.delta
        self.privacy: dict[str, float] = {"epsilon": epsilon, "delta": delta, "budget": self.guarantee.epsilon}
        self.claim = self._account.epsilon(CLAIM_DELTA)

    def state(self) -> TrainerState:
        """As of any trainer, marked as trained under `--dp` alone."""
        state = super().state()
        return TrainerState(state.arrays, state.facts | {"dp": True})

    def restore(self, state: TrainerState) -> None:
        """Raises ConfigError for training that was done without `--dp`: its update is not private."""
        if not state.facts.get("dp"):
            raise ConfigError(
                "the saved local training was done without --dp, and goes into the next update",
                remedy="start with a new --data-dir, or go on without --dp",
            )
        super().restore(state)

    def _private_step(self, batch: NDArray[np.int64]) -> None:
        gradient = self.clipped_sum(batch)
        self._per_sample.clear()
        noise = Noise(self.guarantee.noise * self.guarantee.clip)
        for entry, total in zip(self._parameters, gradient, strict=True):
            noise.add_to(total)
            entry.grad = total.div_(self._poisson.expected).to(entry.dtype)
        self._optimizer.step(rate_at(self._settings, self.step, self.rounds))
        self.step += 1
        self.rounds += 1 / self._settings.local_steps

    def clipped_sum(self, batch: NDArray[np.int64]) -> list[torch.Tensor]:
        """Sum over a batch of gradients clipped to the guarantee's norm, float32, one tensor per trained parameter.

        A gradient that is not finite counts as zero, so a single record can do nothing else.
        """
        sums = [torch.zeros_like(entry, dtype=torch.float32) for entry in self._parameters]
        at_once = self.micro or self._poisson.expected
        for start in range(0, len(batch), at_once):
            ids = torch.from_numpy(batch[start : start + at_once]).to(self.precision.torch_device)
            gradients = self._per_sample.gradients(ids)
            squares = [value.float().flatten(1).norm(dim=1).double().square() for value in gradients]
            norms = torch.stack(squares).sum(0).sqrt()
            factors = (self.guarantee.clip / (norms + 1e-6)).clamp(max=1.0).float()
            finite = torch.isfinite(norms)
            for total, value in zip(sums, gradients, strict=True):
                total += torch.einsum("i,i...->...", factors[finite], value.float()[finite])
        return sums


def private_trainer(
    config: PeerConfig, manifest: Manifest, model: PreTrainedModel, data: TokenData, sequences: int
) -> PrivateTrainer:
    """The trainer that `--dp` asks for, with so many sequences a step on average.

    Raises as PrivateTrainer does, and StorageError for a damaged account.
    """
    guarantee = Guarantee(config.dp_epsilon, config.dp_delta, config.dp_noise, config.dp_clip)
    batches = PoissonBatches(data, sequences)
    account = Account.load(config.data_dir)
    precision = None if config.precision == "auto" else config.precision
    device, threads = config.device, config.threads or None
    trainer = PrivateTrainer(model, batches, manifest, guarantee, account, device, precision, threads)
    trainer.micro = min(config.batch_size or sequences, sequences)
    return trainer


def unprotected(data_dir: Path, fingerprint: str) -> None:
    """Training without `--dp` begins: a folder that promised something says from now on that it promises nothing."""
    account = Account.load(data_dir)
    if not account.empty and math.isfinite(account.epsilon(CLAIM_DELTA)):
        log.warning("training without --dp: what was promised about this folder's data ends here")
        account.add(Spent(fingerprint, 0.0, 1.0, 1))


class Noise:
    """Normal variates by Box-Muller in float64 from an AES-128-CTR keystream under a fresh key of the system.

    torch's own CPU generator takes 32 bits of its seed: who sees a sum could try them all. Each variate is the mean of
    four, times two, which hides the gaps between the floats that one could hit (Holohan and Braghin 2021, 2107.10138).
    """

    def __init__(self, deviation: float, key: bytes | None = None) -> None:
        """`key`: 16 bytes, for tests alone."""
        self._deviation = deviation
        counter = modes.CTR(bytes(16))
        self._cipher = Cipher(algorithms.AES(key or os.urandom(16)), counter).encryptor()

    def add_to(self, values: torch.Tensor) -> None:
        """Add independent noise to each element of a contiguous float32 tensor, in place."""
        flat = values.view(-1)
        for start in range(0, len(flat), _NOISE_PIECE):
            part = flat[start : start + _NOISE_PIECE]
            part += torch.from_numpy(self._normal(len(part)) * self._deviation).to(part.device, torch.float32)

    def _normal(self, count: int) -> NDArray[np.float64]:
        words = np.frombuffer(self._cipher.update(bytes(32 * count)), "<u8").reshape(4, count)
        # 53 bits, moved by half a step so that no logarithm of zero is taken.
        uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        radius, angle = np.sqrt(-2.0 * np.log(uniform[:2])), 2.0 * np.pi * uniform[2:]
        result: NDArray[np.float64] = (radius * (np.cos(angle) + np.sin(angle))).sum(0) / 2.0
        return result
