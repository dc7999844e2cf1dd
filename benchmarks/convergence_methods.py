"""Methods that were tried beside the one that peers run; they stay in the table, so that nobody tries them again."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.convergence_swarm import Swarm
from dht.wire import digest
from peer.data import TokenData
from peer.inner import rate_at
from peer.outer import Vector
from peer.progress import Progress


class GradientSwarm(Swarm):
    """Every step, the masked sum of the peers' gradients; each takes the same step of the inner optimizer."""

    def round(self) -> float:
        """One step."""
        self.round_number += 1
        before = self.state.parameters.copy()
        losses = []
        for trainer, residual in zip(self.trainers, self.residuals, strict=True):
            trainer.rounds = float(self.round_number - 1)
            loss = trainer._loss(trainer.batches.next())
            loss.backward()
            grads = [entry.grad.reshape(-1) for _, entry in trainer._named if entry.grad is not None]
            residual += torch.cat(grads).numpy()
            trainer._optimizer.zero_grad()
            losses.append(float(loss.detach()))
        self.aggregate(digest("benchmark", self.round_number.to_bytes(4, "big")))
        mean = before - self.state.parameters  # the outer step has rate 1 and no momentum
        self._step_everywhere(mean)
        np.copyto(self.state.parameters, self.trainers[0].local())
        return float(np.mean(losses))

    def _step_everywhere(self, mean: Vector) -> None:
        start = 0
        first = self.trainers[0]
        for _, entry in first._named:
            entry.grad = torch.from_numpy(mean[start : start + entry.numel()].copy()).view(entry.shape)
            start += entry.numel()
        torch.nn.utils.clip_grad_norm_([entry for _, entry in first._named], first._settings.clip_norm)
        first._optimizer.step(rate_at(first._settings, first.step, first.rounds))
        first.step += 1
        first._optimizer.zero_grad()
        for other in self.trainers[1:]:
            other.set_parameters(first.local())


class RandomPartSwarm(Swarm):
    """Only a part of the coordinates, drawn from a shared seed each round, is sent; the rest waits in the residual."""

    def _chosen(self) -> np.ndarray:
        source = np.random.Generator(np.random.PCG64(self.round_number))
        return source.random(self.state.schema.elements) < self.part

    def payload(self) -> int:
        """Bytes of the chosen part."""
        return round(super().payload() * self.part)

    def aggregate(self, sid: bytes, weight: float = 1.0) -> None:
        """Hide what was not chosen from the sum, then put it back."""
        chosen = self._chosen()
        kept = [np.where(chosen, np.float32(0), residual) for residual in self.residuals]
        for residual in self.residuals:
            residual[~chosen] = 0
        super().aggregate(sid, weight)
        for residual, rest in zip(self.residuals, kept, strict=True):
            residual += rest


class LowRankSwarm(Swarm):
    """Matrices travel as a projection onto few directions that turn from round to round; the rest waits.

    One phase of PowerSGD: everybody sends M q with the same orthonormal q from a shared seed, which adds up under
    masks; the mean's part in that subspace is applied. Vectors travel in full.
    """

    def aggregate(self, sid: bytes, weight: float = 1.0) -> None:
        """Keep of each residual's matrices only their part in the round's subspace; the rest comes back after."""
        projectors = self._projectors()
        kept = []
        for residual in self.residuals:
            rest = np.zeros_like(residual)
            for (start, stop, shape), q in projectors:
                matrix = residual[start:stop].reshape(shape)
                part = (matrix @ q) @ q.T
                rest[start:stop] = (matrix - part).reshape(-1)
                residual[start:stop] = part.reshape(-1)
            kept.append(rest)
        super().aggregate(sid, weight)
        for residual, rest in zip(self.residuals, kept, strict=True):
            residual += rest

    def _projectors(self) -> list[tuple[tuple[int, int, tuple[int, ...]], np.ndarray]]:
        source = np.random.Generator(np.random.PCG64(self.round_number))
        found: list[tuple[tuple[int, int, tuple[int, ...]], np.ndarray]] = []
        start = 0
        for shape in self.state.schema.shapes:
            stop = start + int(np.prod(shape))
            if len(shape) == 2 and min(shape) > self.rank:
                q = np.linalg.qr(source.standard_normal((shape[1], self.rank)))[0].astype(np.float32)
                found.append(((start, stop, shape), q))
            start = stop
        return found

    def payload(self) -> int:
        """Bytes of the factors and of the vectors."""
        elements = self.state.schema.elements
        matrices = sum(stop - start for (start, stop, _), _ in self._projectors())
        factors = sum(shape[0] * self.rank for (_, _, shape), _ in self._projectors())
        return round(super().payload() * (elements - matrices + factors) / elements)


class OverlappedSwarm(Swarm):
    """Peers train on while a round is aggregated, which lasts `late` steps (`train.overlap`, decision 19)."""

    progress: list[Progress]

    def train(self) -> float:
        """The rest of a round's local steps; the update is taken, and training goes on from where it is."""
        first, steps = self.round_number == 0, self.manifest.train.local_steps
        if first:
            for trainer in self.trainers:
                trainer.set_parameters(self.state.parameters)
            self.progress = [Progress(trainer.local()) for trainer in self.trainers]
        self.round_number += 1
        losses = []
        for trainer, residual, progress in zip(self.trainers, self.residuals, self.progress, strict=True):
            trainer.rounds = float(self.round_number - 1)
            losses.append(trainer.train(steps if first else steps - self.late).loss_mean)
            progress.take(trainer.local(), residual)
            trainer.train(self.late)
        return float(np.mean(losses))

    def aggregate(self, sid: bytes, weight: float = 1.0) -> None:
        """The certified state lands in models that have gone on."""
        super().aggregate(sid, weight)
        for trainer, residual, progress in zip(self.trainers, self.residuals, self.progress, strict=True):
            trainer.set_parameters(progress.land(self.state.parameters, trainer.local(), residual))

    def evaluate(self, heldout: TokenData) -> float:
        """Loss of the certified parameters, which are lent the first peer's model."""
        local = np.array(self.trainers[0].local())
        loss = super().evaluate(heldout)
        self.trainers[0].set_parameters(local)
        return loss
