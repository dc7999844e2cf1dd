"""Models: any transformers causal LM, and its trained parameters as one flat float32 vector in name order.

What is trained is `named_parameters()`, not the state dict: tied weights appear once. The vector *is* the model's
memory on a CPU (each parameter becomes a view into it), so an update can be read without a second copy.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from dht.errors import ConfigError, MurmurationError
from peer.adapter import plain_name, with_adapter
from peer.manifest import Manifest
from peer.outer import Vector
from peer.pretrained import load_pretrained
from peer.state import StateSchema
from peer.tokenizer import check_same_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_COPY_ELEMENTS = 1 << 20  # elements converted at a time when model and vector differ in dtype or device


def build_model(manifest: Manifest, *, quantized: bool = True) -> PreTrainedModel:
    """The model that the manifest names, with its adapter, float32, on the CPU. The same seed draws the same weights.

    Weights drawn from a seed can differ in the last bit between CPU families; the founding record's root decides,
    and who differs fetches what differs. `quantized=False` loads a base in float32 that the manifest wants in 4 bits,
    as merging an adapter needs it; trained parameters are the same. Raises ConfigError when the model cannot be made
    or loaded, IncompatibleRunError when its weights are not those that the run is bound to.
    """
    quiet_without_terminal()
    choice = manifest.model
    try:
        model = _new_model(dict(choice.config), choice.seed) if choice.config else load_pretrained(choice, quantized)
        return cast("PreTrainedModel", with_adapter(model, manifest))
    except MurmurationError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, TypeError, ImportError, its own
        first = (str(error).splitlines() or [type(error).__name__])[0]
        where = f"model {choice.hub or choice.path}" if not choice.config else "model of [model] config"
        raise ConfigError(f"cannot make the {where}: {first}", remedy="check [model] in the manifest") from error


def quiet_without_terminal() -> None:
    """Turn off transformers' progress bars where they would fill a log file."""
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()


def _new_model(config: dict[str, Any], seed: int) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(config.pop("model_type"), **config)
    # The generator is restored afterwards: building a model must not steer whoever else draws from it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cast("PreTrainedModel", AutoModelForCausalLM.from_config(settings, dtype=torch.float32))


def check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, manifest: Manifest) -> None:
    """Raise ConfigError when the model has too few embeddings or positions for the tokenizer and sequences.

    Also when its folder holds a tokenizer of another vocabulary.
    """
    rows = cast(torch.Tensor, model.get_input_embeddings().weight).shape[0]
    if len(tokenizer) > rows:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {rows} embeddings",
            remedy=f"set vocab_size = {len(tokenizer)} or more in model.config",
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and manifest.data.sequence_length > positions:
        raise ConfigError(
            f"data.sequence_length = {manifest.data.sequence_length} is over the model's {positions} positions",
            remedy="shorten the sequences or set max_position_embeddings in model.config",
        )
    check_same_tokens(tokenizer, manifest)


def trained_parameters(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Names and parameters that are trained, sorted by name."""
    named = ((plain_name(name), entry) for name, entry in model.named_parameters() if entry.requires_grad)
    return sorted(named, key=lambda pair: pair[0])


class ParameterVector:
    """A model's trained parameters as one flat vector of D elements, sorted by name; those in `personal` stay out.

    Takes over the memory of the parameters, so make it after the model is on its device. The model's dtype may be
    bfloat16 as well; numpy sees float32 in every case. Raises ConfigError for a model with mixed dtypes or devices.
    """

    def __init__(self, model: torch.nn.Module, personal: Collection[str] = ()) -> None:
        named = [(name, entry) for name, entry in trained_parameters(model) if name not in personal]
        if not named:
            raise ConfigError("the model has no trained parameter")
        if len({(entry.dtype, entry.device) for _, entry in named}) > 1:
            raise ConfigError("the model's trained parameters differ in dtype or device")
        self.names = tuple(name for name, _ in named)
        self.shapes = tuple(tuple(entry.shape) for _, entry in named)
        self.elements = sum(entry.numel() for _, entry in named)
        first = named[0][1]
        self._flat = torch.empty(self.elements, dtype=first.dtype, device=first.device)
        start = 0
        for _, entry in named:
            view = self._flat[start : start + entry.numel()].view(entry.shape)
            view.copy_(entry.data)
            entry.data = view
            start += entry.numel()

    def schema(self, run_id: bytes, domains: int = 0) -> StateSchema:
        """Header of the canonical state of this model in a run that tells so many data domains apart."""
        return StateSchema(run_id, self.names, self.shapes, domains)

    def view(self) -> Vector:
        """The parameters as float32[D]: the model's own memory where it is float32 on a CPU, else a copy."""
        if self._is_shared:
            return cast(Vector, self._flat.numpy())
        out = np.empty(self.elements, np.float32)
        self.copy_out(out)
        return out

    def copy_in(self, values: Vector) -> None:
        """Set all parameters from float32[D]. Raises ValueError for another length or dtype."""
        self._check(values)
        if self._is_shared:
            np.copyto(self._flat.numpy(), values)
            return
        for part in self._parts():
            # A copy, since torch will not wrap the read-only pages of a memory-mapped state.
            self._flat[part].copy_(torch.from_numpy(values[part].copy()))

    def copy_out(self, out: Vector) -> None:
        """Write all parameters into float32[D]. Raises ValueError for another length or dtype."""
        self._check(out)
        if self._is_shared:
            np.copyto(out, self._flat.numpy())
            return
        for part in self._parts():
            out[part] = self._flat[part].float().cpu().numpy()

    def is_finite(self) -> bool:
        """Whether every parameter is a finite number."""
        low, high = torch.aminmax(self._flat)  # both are NaN where one parameter is
        return bool(torch.isfinite(low) and torch.isfinite(high))

    @property
    def _is_shared(self) -> bool:
        return self._flat.dtype == torch.float32 and self._flat.device.type == "cpu"

    def _parts(self) -> Iterator[slice]:
        return (slice(start, start + _COPY_ELEMENTS) for start in range(0, self.elements, _COPY_ELEMENTS))

    def _check(self, values: Vector) -> None:
        if values.dtype != np.float32 or values.shape != (self.elements,):
            raise ValueError(f"expected float32[{self.elements}], got {values.dtype}{list(values.shape)}")
