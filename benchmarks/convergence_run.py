"""One training run of the convergence table, from its description to its loss and its traffic.

central    one place, all data, a batch of four peers' sequences; AdamW or Muon
gradients  the same, but every step's gradient is a masked sum of four peers' (an upper bound with much traffic)
local      local steps, then the masked sum of the updates: what peers do
alone      one of the four peers, by itself
random-k   local steps; of each update a shared random part is sent, the rest waits (with `restart` beside the
           model, else in each peer's own weights, a sparse averaging as in SPARTA)
overlapped local steps that go on while a round is aggregated, which lasts `late` of them
low-rank   local steps; matrices are sent as factors of low rank (PowerSGD, arXiv 1905.13727), the rest in full
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from benchmarks.convergence_methods import GradientSwarm, LowRankSwarm, OverlappedSwarm, RandomPartSwarm
from benchmarks.convergence_swarm import Swarm
from benchmarks.convergence_task import PEERS, SEQUENCE, base_manifest, task
from peer.data import TokenBatches
from peer.manifest import Codec, Cohort, Manifest, Outer, Train
from peer.model import build_model
from peer.outer import Vector
from peer.trainer import Trainer

_CHECKS = 8
"""Points of a run at which the held-out loss is taken."""
_WARM = 0.4
"""Part of a run's tokens that the common start of warm runs was trained on: AdamW, one place, another seed."""
_SWARMS: dict[str, type[Swarm]] = {
    "local": Swarm,
    "gradients": GradientSwarm,
    "random-k": RandomPartSwarm,
    "low-rank": LowRankSwarm,
    "overlapped": OverlappedSwarm,
}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A run. `tokens` are all peers' together; `batch` is a peer's inner step in sequences."""

    preset: str
    method: str = "local"
    optimizer: str = "muon"
    rate: float = 5e-3
    tokens: int = 2_097_152
    batch: int = 4
    local_steps: int = 1
    outer_rate: float = 1.0
    outer_momentum: float = 0.0
    momentum_rounds: int = 0
    final_rate: float = 0.1
    ring_bits: int = 32
    pack: int = 1
    fragments: int = 1
    part: float = 1.0
    rank: int = 0
    late: int = 0
    restart: bool = False
    size: str = "0.36M"
    split: str = "iid"
    start: str = "scratch"
    seed: int = 1

    @property
    def steps(self) -> int:
        """Inner steps, of each peer at the same time."""
        return self.tokens // (PEERS * self.batch * SEQUENCE)

    @property
    def rounds(self) -> int:
        """Rounds, the last one shorter where the steps do not divide."""
        return -(-self.steps // self.local_steps)

    def manifest(self) -> Manifest:
        """The run manifest of this run."""
        per_round = self.local_steps * self.batch * SEQUENCE
        return base_manifest(self.size, self.seed).replace(
            train=Train(
                optimizer=self.optimizer,
                learning_rate=self.rate,
                local_steps=self.local_steps,
                tokens_per_round=per_round,
                decay_rounds=self.rounds,
                final_rate=self.final_rate,
            ),
            outer=Outer(
                learning_rate=self.outer_rate, momentum=self.outer_momentum, momentum_rounds=self.momentum_rounds
            ),
            cohort=Cohort(target=PEERS, minimum=3),
            codec=Codec(ring_bits=self.ring_bits, chunk_elements=32768, pack=self.pack, fragments=self.fragments),
        )


def run(spec: Spec) -> dict[str, Any]:
    """The row of a run: its description, held-out loss, loss curve, bytes that each peer sends, seconds per step."""
    began = time.process_time()
    made = _central(spec) if spec.method in ("central", "alone") else _swarm(spec)
    curve, sent, parameters = [], 0, 0
    for share, loss, sent, parameters in made:  # noqa: B007
        curve.append((round(share, 4), round(loss, 5)))
    seconds = time.process_time() - began
    dense = round(2 * (PEERS - 1) / PEERS * 4 * parameters) * spec.steps
    return asdict(spec) | {
        "parameters": parameters,
        "steps": spec.steps,
        "rounds": spec.rounds if spec.method != "central" else spec.steps,
        "loss": curve[-1][1],
        "curve": curve,
        "bytes_per_peer": sent if spec.method != "central" else dense,
        "cpu_seconds": round(seconds, 1),
    }


def _checks(total: int) -> set[int]:
    return {math.ceil(total * (k + 1) / _CHECKS) for k in range(_CHECKS)}


def _swarm(spec: Spec) -> Iterator[tuple[float, float, int, int]]:
    deal = task(spec.split)
    kind = _SWARMS[spec.method]
    swarm = kind(spec.manifest(), [deal.data(peer) for peer in range(PEERS)], spec.batch, spec.seed)
    swarm.part, swarm.rank, swarm.late, swarm.restart = spec.part, spec.rank, spec.late, spec.restart
    if spec.start == "warm":
        swarm.start_from(warm_start(spec.size, spec.tokens))
    checks, sent = _checks(spec.rounds), 0
    for number in range(1, spec.rounds + 1):
        swarm.round()
        sent += swarm.payload()
        if number in checks:
            yield number / spec.rounds, swarm.evaluate(deal.evaluation()), sent, swarm.state.schema.elements


def _central(spec: Spec) -> Iterator[tuple[float, float, int, int]]:
    deal, manifest = task(spec.split), replace(spec, local_steps=1).manifest()
    alone = spec.method == "alone"
    data = deal.data(0 if alone else None)
    batches = TokenBatches(data, spec.batch * (1 if alone else PEERS), spec.seed * 1000)
    trainer = Trainer(build_model(manifest), batches, manifest, "cpu", threads=1)
    if spec.start == "warm":
        trainer.set_parameters(warm_start(spec.size, spec.tokens))
    done = 0
    for check in sorted(_checks(spec.steps)):
        trainer.train(check - done)
        done = check
        yield check / spec.steps, trainer.evaluate(deal.evaluation().evaluation(32)), 0, trainer.vector.elements


@cache
def warm_start(size: str, tokens: int) -> Vector:
    """Weights that all warm runs begin with."""
    spec = Spec(
        preset="warm", method="central", optimizer="adamw", rate=3e-3, size=size, tokens=int(tokens * _WARM), seed=99
    )
    manifest = spec.manifest()
    batches = TokenBatches(task("iid").data(None), spec.batch * PEERS, spec.seed * 1000)
    trainer = Trainer(build_model(manifest), batches, manifest, "cpu", threads=1)
    trainer.train(spec.steps)
    return np.array(trainer.local())
