"""The inner optimizer, which each peer runs alone between two rounds, and its learning rate over a run.

AdamW, bitsandbytes' 8-bit AdamW, or Muon: momentum whose matrices are made orthogonal by Newton-Schulz steps (Jordan et
al. 2024; here torch's own, scaled as in arXiv 2502.16982 so that one rate serves matrices and the rest). Muon suits
local steps: its updates of different peers add up better, and bear coarser rounding, than AdamW's (MuLoCo, arXiv
2505.23725).
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch

from peer.sections import Train

log = logging.getLogger(__name__)
Named = Sequence[tuple[str, torch.nn.Parameter]]


def rate_at(settings: Train, step: int, rounds: float) -> float:
    """The learning rate: a linear rise over this peer's first inner steps, then a cosine over the run's rounds.

    `step`: inner steps that this peer has taken. `rounds`: how far the run is, in rounds and fractions of one; the same
    for peers that join late. The cosine ends at `final_rate` of the rate after `decay_rounds`, where it stays; without
    `decay_rounds` there is none.
    """
    risen = min(1.0, (step + 1) / max(1, settings.warmup))
    if not settings.decay_rounds:
        return settings.learning_rate * risen
    done = min(1.0, max(0.0, rounds / settings.decay_rounds))
    share = settings.final_rate + (1 - settings.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
    return settings.learning_rate * risen * share


class InnerOptimizer:
    """One or two torch optimizers that step together. `notes` says what had to be replaced."""

    def __init__(self, named: Named, settings: Train, device: torch.device) -> None:
        """`named`: the trained parameters in name order."""
        self.notes: list[str] = []
        self._made = self._make(named, settings, device)
        self._of = {id(entry): made for made in self._made for group in made.param_groups for entry in group["params"]}
        # torch keeps the step counter of its non-fused optimizers on the CPU, whatever the parameters' device.
        self.counts_on_device = all(group.get("fused", True) for made in self._made for group in made.param_groups)

    @property
    def name(self) -> str:
        """What saved moments are checked against."""
        return "+".join(type(made).__name__ for made in self._made)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all, in torch's form."""
        return [group for made in self._made for group in made.param_groups]

    def step(self, rate: float) -> None:
        """One step at this learning rate."""
        for made in self._made:
            for group in made.param_groups:
                group["lr"] = rate
            made.step()

    def zero_grad(self) -> None:
        """Free the gradients."""
        for made in self._made:
            made.zero_grad(set_to_none=True)

    def moments(self, entry: torch.nn.Parameter) -> dict[str, Any]:
        """What is remembered of a parameter; empty before its first step."""
        return dict(self._of[id(entry)].state.get(entry, {}))

    def remember(self, moments: Sequence[tuple[torch.nn.Parameter, dict[str, Any]]]) -> None:
        """Replace all that is remembered."""
        self.forget()
        for entry, found in moments:
            if found:
                self._of[id(entry)].state[entry] = found

    def forget(self) -> None:
        """Begin with fresh moments."""
        for made in self._made:
            made.state.clear()

    def _make(self, named: Named, settings: Train, device: torch.device) -> list[torch.optim.Optimizer]:
        if settings.optimizer == "muon":
            return _muon(named, settings)
        groups = _groups([entry for _, entry in named], settings.weight_decay)
        if settings.optimizer == "adamw8bit":
            made, reason = _adamw8bit(groups, settings, device)
            if made is not None:
                return [made]
            self.notes.append(f"8-bit AdamW does not run here ({reason}): using torch's AdamW")
            log.warning(self.notes[-1])
        return [_adamw(groups, settings)]


def _groups(entries: Sequence[torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, vectors (norms, biases) do not."""
    by_kind = (([e for e in entries if e.ndim >= 2], weight_decay), ([e for e in entries if e.ndim < 2], 0.0))
    return [{"params": params, "weight_decay": decay} for params, decay in by_kind if params]


def _adamw(groups: list[dict[str, Any]], settings: Train) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def _muon(named: Named, settings: Train) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between hidden states; AdamW for embeddings, output heads and vectors."""
    hidden = [entry for name, entry in named if entry.ndim == 2 and not _embeds(name)]
    others = [entry for name, entry in named if entry.ndim != 2 or _embeds(name)]
    made: list[torch.optim.Optimizer] = []
    if hidden:
        made.append(
            torch.optim.Muon(
                hidden,
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
                momentum=settings.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if others:
        made.append(_adamw(_groups(others, settings.weight_decay), settings))
    return made


def _embeds(name: str) -> bool:
    """Whether rows of this matrix belong to single tokens or positions: orthogonal updates make no sense there."""
    return any(part in name for part in ("embed", "lm_head", "wte", "wpe", "score"))


def _adamw8bit(
    groups: list[dict[str, Any]], settings: Train, device: torch.device
) -> tuple[torch.optim.Optimizer | None, str]:
    """bitsandbytes' AdamW8bit after one trial step on a throw-away tensor, or None and why not."""
    try:
        adamw8bit = importlib.import_module("bitsandbytes.optim").AdamW8bit
        trial = torch.nn.Parameter(torch.ones(8192, device=device))  # bitsandbytes leaves smaller tensors in 32 bits
        trial.grad = torch.ones_like(trial)
        adamw8bit([trial], lr=0.1).step()
        if not (trial < 1.0).all():
            return None, "its trial step changed nothing"
        return adamw8bit(groups, lr=settings.learning_rate, betas=settings.betas), ""
    except Exception as error:  # a missing native library shows as ImportError, RuntimeError, OSError, AttributeError
        return None, f"{type(error).__name__}: {error}"
