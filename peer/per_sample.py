"""Gradients of single records, through opacus, and the check that they are right for this very model.

opacus hangs hooks on every layer with trained parameters and gets the gradient of each record from the layer's inputs
and output gradients, by a rule per kind of layer, else by running the layer alone under torch.func. That is wrong, at
times silently, for a layer whose output for one record depends on others (batch norm), whose input has no batch
dimension, or that takes its weights from elsewhere. So nothing is believed: at start a batch of two is compared with
two batches of one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch

from dht.errors import ConfigError
from peer.dp import opacus_module
from peer.precision import Precision

_REMEDY = "train without --dp, or take a model of Linear, Embedding and norm layers such as Llama's or GPT-2's"
_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""Relative difference of a gradient computed alone and in a batch; what is wrong differs by its whole size."""
_PROBE_LENGTH = 16


class PerSample:
    """A model whose `losses` leave a gradient per record. Raises ConfigError, naming layers, where that fails."""

    def __init__(self, model: torch.nn.Module, precision: Precision) -> None:
        self._model, self._precision = model, precision
        self._named = [(name, entry) for name, entry in model.named_parameters() if entry.requires_grad]
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                # torch keeps the padding token's row as it is, opacus does not. Here no token is padding: sequences are
                # full, and end-of-text often has the same number.
                module.padding_idx = None
        _check_independent(model, precision)
        ids = _probe(model, precision)
        with _without_dropout(model):
            alone = [self._alone(ids[record : record + 1]) for record in range(len(ids))]
        self._hooks = self._hang_hooks()
        try:
            with _without_dropout(model):
                wrong = self._differences(self.gradients(ids), alone)
        except Exception as error:  # opacus and torch.func fail in many ways on layers that they do not understand
            self.close()
            cause = f"{type(error).__name__}: {_first_line(error)}"
            raise ConfigError(f"--dp: opacus has no gradients per record here: {cause}", remedy=_REMEDY) from error
        self.clear()
        if wrong:
            self.close()
            shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
            raise ConfigError(f"--dp: gradients per record are wrong for {shown}", remedy=_REMEDY)

    def _hang_hooks(self) -> Any:
        make = opacus_module("grad_sample").GradSampleModule
        try:
            # In opacus "sum" means that the loss adds up over records, so that nothing is to be multiplied back.
            return make(self._model, batch_first=True, loss_reduction="sum", strict=True)
        except NotImplementedError as error:
            raise ConfigError(f"--dp cannot train this model: {_first_line(error)}", remedy=_REMEDY) from None

    def gradients(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """The gradient of each record's mean loss, [batch, *shape] for each trained parameter in model order.

        `ids`: int64[batch, length], batch >= 1. They are views that the next call frees.
        """
        self.clear()
        with self._precision.autocast():
            loss = _loss(self._model, ids)
        with warnings.catch_warnings():
            # Of the embeddings, whose inputs are integers: opacus knows, and needs the output's gradient alone.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            (loss * len(ids)).backward()  # the mean over records times their number: the sum
        return [cast(Any, entry).grad_sample for _, entry in self._named]

    def clear(self) -> None:
        """Free the gradients, also after a pass that was cut off."""
        for _, entry in self._named:
            entry.grad = None
            cast(Any, entry).grad_sample = None
            cast(Any, entry)._forward_counter = 0
            if hasattr(entry, "_current_grad_sample"):
                del entry._current_grad_sample
        for module in self._model.modules():
            for name in ("activations", "max_batch_len"):
                if name in module.__dict__:
                    delattr(module, name)

    def close(self) -> None:
        """Take the hooks off the model again."""
        self.clear()
        self._hooks.remove_hooks()

    def _alone(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Plain gradients of a batch, before there are hooks."""
        with self._precision.autocast():
            loss = _loss(self._model, ids)
        entries = [entry for _, entry in self._named]
        found: Sequence[torch.Tensor | None] = torch.autograd.grad(loss, entries, allow_unused=True)
        return [torch.zeros_like(e) if value is None else value for e, value in zip(entries, found, strict=True)]

    def _differences(self, together: Sequence[Any], alone: list[list[torch.Tensor]]) -> list[str]:
        """Names of the parameters whose gradients in a batch are not those of its records."""
        wrong = []
        for index, ((name, entry), found) in enumerate(zip(self._named, together, strict=True)):
            fits = isinstance(found, torch.Tensor) and found.shape == (len(alone), *entry.shape)
            if not fits or not all(
                _close(found[record], gradients[index], self._precision) for record, gradients in enumerate(alone)
            ):
                wrong.append(name)
        return wrong


def _close(found: torch.Tensor, alone: torch.Tensor, precision: Precision) -> bool:
    off = float((found - alone.float()).norm())
    return off <= _TOLERANCE[precision.dtype] * float(alone.float().norm()) + 1e-6


def _loss(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    # Positions for each record: GPT-2 would look one row up for all, and the batch dimension would be lost there.
    positions = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
    return cast(torch.Tensor, model(input_ids=ids, labels=ids, position_ids=positions, use_cache=False).loss)


def _probe(model: torch.nn.Module, precision: Precision) -> torch.Tensor:
    """Two records that differ, int64[2, length]."""
    config = cast(Any, model).config
    length = min(_PROBE_LENGTH, getattr(config, "max_position_embeddings", None) or _PROBE_LENGTH)
    rows = cast(Any, model).get_input_embeddings().weight.shape[0]
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, rows, (2, length), generator=random).to(precision.torch_device)


def _check_independent(model: torch.nn.Module, precision: Precision) -> None:
    """Raise ConfigError if, in training, the loss of one record depends on another one's input."""
    seen: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    ids = _probe(model, precision)
    hook = cast(Any, model).get_input_embeddings().register_forward_hook(keep)
    try:
        with precision.autocast(), _keeping_buffers(model):
            logits = model(input_ids=ids, use_cache=False).logits
            (reach,) = torch.autograd.grad(logits[0].float().square().sum(), seen[0])
    finally:
        hook.remove()
    if bool(reach[1].abs().max() > 0):
        kind = torch.nn.modules.batchnorm._NormBase
        guilty = [name for name, module in model.named_modules() if isinstance(module, kind)]
        where = f" (probably {', '.join(guilty[:5])})" if guilty else ""
        raise ConfigError(f"--dp: in this model one record's loss depends on another's input{where}", remedy=_REMEDY)


@contextmanager
def _keeping_buffers(model: torch.nn.Module) -> Iterator[None]:
    """Running statistics and the like as they were before."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


@contextmanager
def _without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """In evaluation, except layers with parameters of their own, whose hooks work in training only."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.training = True
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
