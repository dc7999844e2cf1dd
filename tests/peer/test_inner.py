"""Inner optimizers: the rate over a run, which parameters Muon takes, moments that survive a restart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from peer.inner import InnerOptimizer, rate_at
from peer.manifest import Train
from tests.peer.swarm_in_process import make_trainer, tiny_manifest


def test_the_rate_rises_with_my_steps_and_falls_with_the_runs_rounds() -> None:
    settings = Train(learning_rate=1.0, warmup=4, decay_rounds=10, final_rate=0.2)
    assert [rate_at(settings, step, 0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rate_at(settings, 9, 5.0) == pytest.approx(0.6)
    assert rate_at(settings, 9, 10.0) == rate_at(settings, 9, 1e9) == pytest.approx(0.2)
    # Who joins late warms up, too, but from where the run is.
    assert rate_at(settings, 0, 10.0) == pytest.approx(0.05)


def test_without_decay_the_rate_stays() -> None:
    settings = Train(learning_rate=0.5, warmup=1)
    assert rate_at(settings, 0, 0.0) == rate_at(settings, 10**6, 1e6) == 0.5


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    trainer = make_trainer(tiny_manifest(3, optimizer="muon"), 0)
    muon, adamw = trainer._optimizer._made
    names = {id(entry): name for name, entry in trainer.model.named_parameters()}
    taken = {names[id(entry)] for group in muon.param_groups for entry in group["params"]}
    rest = {names[id(entry)] for group in adamw.param_groups for entry in group["params"]}
    assert taken == {name for name in names.values() if "proj" in name}
    assert taken | rest == set(names.values())
    assert not taken & rest
    assert "model.embed_tokens.weight" in rest


def test_muons_steps_are_nearly_orthogonal() -> None:
    """All singular values of a step are near one another, whatever the gradient's."""
    weight = torch.nn.Parameter(torch.zeros(24, 24))
    optimizer = InnerOptimizer([("q_proj", weight)], Train(optimizer="muon", weight_decay=0.0), torch.device("cpu"))
    source = torch.Generator().manual_seed(0)
    weight.grad = torch.randn(24, 24, generator=source) @ torch.diag(torch.logspace(0, -1, 24))
    optimizer.step(0.1)
    values = torch.linalg.svdvals(weight.detach())
    assert float(values.max() / values.min()) < 4.0
    # Scaled to the root mean square of AdamW's steps: 0.2 times the rate.
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.02, rel=0.25)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_moments_survive_a_restart(optimizer: str) -> None:
    manifest = tiny_manifest(3, optimizer=optimizer)
    straight, first = make_trainer(manifest, 0), make_trainer(manifest, 0)
    straight.train(4)
    first.train(2)
    second = make_trainer(manifest, 0)
    second.set_parameters(first.local().copy())
    second.restore(first.state())
    second.rounds = first.rounds
    second.train(2)
    np.testing.assert_array_equal(second.local(), straight.local())


def test_moments_can_be_forgotten() -> None:
    trainer = make_trainer(tiny_manifest(3, optimizer="muon"), 0)
    trainer.train(1)
    entries = [entry for _, entry in trainer._named]
    assert all(trainer._optimizer.moments(entry) for entry in entries)
    trainer._optimizer.forget()
    assert not any(trainer._optimizer.moments(entry) for entry in entries)
