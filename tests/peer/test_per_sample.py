from __future__ import annotations

import pytest
import torch

from dht.errors import ConfigError
from peer.per_sample import PerSample
from peer.precision import Precision
from tests.peer.private_models import KINDS, model

FP32 = Precision("cpu", "fp32")


class Wrapped(torch.nn.Module):
    """A layer after the output projection."""

    def __init__(self, inner: torch.nn.Module, after: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.after = inner, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.inner(x))


class Channels(torch.nn.BatchNorm1d):
    """Batch norm over the last dimension."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Centred(torch.nn.Module):
    """Takes the mean over the batch away, in training alone, with no parameter or buffer that shows it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True) if self.training else x


class Shifted(torch.nn.Module):
    """A bias that is looked up once for all records."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(1, 257)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table(torch.zeros(1, x.shape[1], dtype=torch.int64))


def altered(after: torch.nn.Module) -> torch.nn.Module:
    changed = model("llama, untied")
    changed.lm_head = Wrapped(changed.lm_head, after)
    return changed


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_a_batch_are_those_of_records_alone(kind):
    ids = torch.randint(0, 257, (3, 12), generator=torch.Generator().manual_seed(1))
    # A model that hooks never touched says what is right.
    plain, hooked = model(kind).eval(), model(kind)
    ids[:, -1] = 256
    plain.get_input_embeddings().padding_idx = None
    per_sample = PerSample(hooked, FP32)
    for module in hooked.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    hooked.config.attn_pdrop = 0.0
    together = {
        name: value for (name, _), value in zip(hooked.named_parameters(), per_sample.gradients(ids), strict=True)
    }
    for record in range(3):
        one = ids[record : record + 1]
        loss = plain(input_ids=one, labels=one).loss
        found = torch.autograd.grad(loss, list(plain.parameters()))
        for (name, _), right in zip(plain.named_parameters(), found, strict=True):
            torch.testing.assert_close(together[name][record], right, rtol=1e-3, atol=1e-5)


def test_bf16_arithmetic_passes_its_own_tolerance():
    gradients = PerSample(model(), Precision("cpu", "bf16")).gradients(torch.ones(2, 8, dtype=torch.int64))
    assert all(len(value) == 2 and bool(torch.isfinite(value).all()) for value in gradients)


def test_what_is_frozen_gets_no_gradient():
    some = model("llama, untied")
    for name, entry in some.named_parameters():
        entry.requires_grad_("q_proj" in name)
    gradients = PerSample(some, FP32).gradients(torch.ones(2, 8, dtype=torch.int64))
    assert [value.shape for value in gradients] == [(2, 24, 24)]


@pytest.mark.parametrize(
    ("layer", "named"),
    [(Channels(257), "lm_head.after"), (Centred(), "another's input"), (Shifted(), r"lm_head\.after\.table\.weight")],
)
def test_layers_that_do_not_allow_it_are_refused_by_name(layer, named):
    with pytest.raises(ConfigError, match=named) as caught:
        PerSample(altered(layer), FP32)
    assert "without --dp" in caught.value.remedy


def test_looking_leaves_batch_statistics_as_they_were():
    layer = Channels(257)
    with pytest.raises(ConfigError):
        PerSample(altered(layer), FP32)
    assert int(layer.num_batches_tracked) == 0
    assert float(layer.running_mean.abs().sum()) == 0.0


def test_evaluation_in_between_and_broken_passes_leave_nothing_behind():
    some = model()
    per_sample = PerSample(some, FP32)
    ids = torch.ones(2, 8, dtype=torch.int64)
    first = [value.clone() for value in per_sample.gradients(ids)]
    some.eval()
    with torch.inference_mode():
        some(input_ids=ids, labels=ids)
    some.train()
    some(input_ids=torch.ones(5, 8, dtype=torch.int64))  # forward only: activations of five records wait
    for before, after in zip(first, per_sample.gradients(ids), strict=True):
        torch.testing.assert_close(before, after)
    per_sample.clear()
    assert all(entry.grad is None and entry.grad_sample is None for entry in some.parameters())
