"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) by peft: made alike on every peer, named without peft's words.

peft draws the A matrices with torch, whose random numbers may change from one version or CPU to another. With
`freeze_a` (FFA-LoRA, Sun et al., arXiv 2403.12313) A is not part of the agreed state, so nothing would show that two
peers add up factors of different matrices. So A is drawn here, from integers, by exact steps.
"""

from __future__ import annotations

import logging
import math
import warnings
from hashlib import sha256
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dht.errors import ConfigError
from peer.manifest import Manifest
from peer.outer import Vector

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

_PREFIX = "base_model.model."
_MARK = ".lora_"


def plain_name(name: str) -> str:
    """A parameter's name as the model itself has it, or its adapter's beside it; what peft adds is left out."""
    if not name.startswith(_PREFIX):
        return name
    return name.removeprefix(_PREFIX).replace(".base_layer.", ".").replace(".default.", ".")


def is_adapters(name: str) -> bool:
    """Whether a parameter of this (plain) name belongs to an adapter."""
    return _MARK in name


def with_adapter(model: PreTrainedModel, manifest: Manifest) -> PreTrainedModel | PeftModel:
    """The model with the manifest's adapter, or as it is without one. B is zero: nothing has changed yet.

    Trained are the adapter's parameters alone, or the model's as well where the adapter is each peer's own.
    Raises ConfigError when no module has a target's name.
    """
    choice = manifest.adapter
    if choice.kind == "none":
        return model
    import torch

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it; it warns of kernels nobody asked for
    from peft import LoraConfig, get_peft_model

    _check_targets(model, choice.targets)
    config = LoraConfig(
        r=choice.rank,
        lora_alpha=choice.alpha,  # type: ignore[arg-type]  # peft only multiplies with it
        target_modules=list(choice.targets),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft reads an attribute of the model that transformers is about to rename.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(manifest.model.seed)
        adapted = get_peft_model(model, config)
    for name, entry in adapted.named_parameters():
        if ".lora_A." in name:
            drawn = draw(tuple(entry.shape), manifest.model.seed, plain_name(name))
            entry.data.copy_(torch.from_numpy(drawn))
        entry.requires_grad_(_is_trained(name, entry.is_floating_point(), manifest))
    return cast("PeftModel", adapted)


def _is_trained(name: str, floating: bool, manifest: Manifest) -> bool:
    if not is_adapters(name):
        return manifest.personal.adapter and floating
    return not (manifest.adapter.freeze_a and ".lora_A." in name)


def _check_targets(model: nn.Module, targets: tuple[str, ...]) -> None:
    names = [name for name, _ in model.named_modules()]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            matrices = {name.rpartition(".")[2] for name, module in model.named_modules() if _is_matrix(module)}
            raise ConfigError(
                f"adapter.targets names {target!r}, which this model does not have",
                remedy=f"it has {', '.join(sorted(matrices))}",
            )


def _is_matrix(module: nn.Module) -> bool:
    return bool(getattr(getattr(module, "weight", None), "ndim", 0) == 2)


def draw(shape: tuple[int, ...], seed: int, name: str) -> Vector:
    """float32 uniform on [-1, 1) / sqrt(columns), LoRA's own start, the same bits on every machine.

    24 bits of a PCG64 word make each element; what follows is exact up to one multiplication.
    """
    key = int.from_bytes(sha256(f"{seed}/{name}".encode()).digest())
    words = np.random.PCG64(key).random_raw(math.prod(shape)) >> np.uint64(40)
    unit = words.astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)
    return cast(Vector, unit.reshape(shape) * np.float32(1.0 / math.sqrt(shape[-1])))


def merged(model: Any) -> PreTrainedModel:
    """The plain model with its adapters added in; one without adapters as it is."""
    return cast("PreTrainedModel", model.merge_and_unload() if hasattr(model, "merge_and_unload") else model)


def without_adapter(model: Any) -> PreTrainedModel:
    """The plain model without its adapters."""
    return cast("PreTrainedModel", model.unload() if hasattr(model, "unload") else model)
