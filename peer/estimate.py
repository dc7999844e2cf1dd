"""What training a model takes at least, told before the model is loaded: a process that Linux kills says nothing."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from dht.errors import ConfigError
from peer.adapter import is_adapters, with_adapter
from peer.manifest import Manifest
from peer.memory import REMEDY
from peer.model import quiet_without_terminal, trained_parameters
from peer.personal import personal_names
from peer.pretrained import config_of

log = logging.getLogger(__name__)

_FLOAT = 4
_MOMENT_BYTES = {"adamw": 8.0, "adamw8bit": 2.0, "muon": 4.0}  # Muon has one moment of a matrix, two of the rest
_NF4 = 0.5 + _FLOAT / 64  # bytes of a weight: 4 bits, and one float32 scale for 64 of them


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that stay in memory while a peer trains, activations left out (their size is measured, `peer.batching`).

    `trained` of all `parameters` are trained, `shared` of these travel, and `quantized` of the others are held in 4
    bits. The certified state and the outer momentum are mapped from disk, so they do not count.
    """

    parameters: int
    trained: int
    shared: int
    quantized: int = 0
    moment_bytes: float = 2 * _FLOAT
    overlap: bool = False

    @property
    def weights(self) -> int:
        """Bytes of all parameters."""
        return round(_FLOAT * (self.parameters - self.quantized) + _NF4 * self.quantized)

    @property
    def ahead(self) -> int:
        """Bytes of training on during a round: where progress is counted from, and what is saved while steps go on."""
        return round(self.shared * 2 * _FLOAT + self.trained * self.moment_bytes) if self.overlap else 0

    @property
    def bytes(self) -> int:
        """Weights, gradients and moments of what is trained, the residual of what is shared, and what overlap takes."""
        trained = self.trained * (_FLOAT + self.moment_bytes)
        return round(self.weights + trained + self.shared * _FLOAT) + self.ahead

    def check(self, free: float) -> None:
        """Raises ConfigError when that is more than `free` bytes."""
        parts = {
            "weights": self.weights,
            "gradients": self.trained * _FLOAT,
            "moments": self.trained * self.moment_bytes,
            "residual": self.shared * _FLOAT,
            "state, on disk": self.shared * 2 * _FLOAT,
        } | ({"overlap": self.ahead} if self.overlap else {})
        said = f"training {self.trained:,} of the model's {self.parameters:,} parameters takes {_gigabytes(self.bytes)}"
        told = ", ".join(f"{name} {_gigabytes(size)}" for name, size in parts.items())
        if self.bytes > free:
            raise ConfigError(f"{said} before the first batch, and {_gigabytes(free)} are free ({told})", remedy=REMEDY)
        log.info("%s, and %s are free (%s)", said, _gigabytes(free), told)


def needs(manifest: Manifest) -> Needs:
    """What training takes, by the model's configuration alone; nothing where that does not tell its size.

    Takes no memory for weights (torch's meta device) and draws no random numbers.
    """
    quiet_without_terminal()
    try:
        model = _skeleton(manifest)
        own = personal_names(model, manifest)
    except Exception as error:  # what is wrong with the model is said when it is made
        log.info("the model's size is not known in advance: %s", error)
        return Needs(0, 0, 0)
    sizes = {name: entry.numel() for name, entry in trained_parameters(model)}
    return Needs(
        parameters=sum(entry.numel() for entry in model.parameters()),
        trained=sum(sizes.values()),
        shared=sum(size for name, size in sizes.items() if name not in own),
        quantized=_in_4_bits(model) if manifest.model.quantized == "nf4" else 0,
        moment_bytes=_MOMENT_BYTES[manifest.train.optimizer],
        overlap=manifest.train.overlap,
    )


def _skeleton(manifest: Manifest) -> Any:
    """The model with its adapter, without memory for either."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = dict(manifest.model.config)
    config = AutoConfig.for_model(sizes.pop("model_type"), **sizes) if sizes else config_of(manifest.model)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return with_adapter(AutoModelForCausalLM.from_config(config), manifest)


def _in_4_bits(model: Any) -> int:
    """Elements of the layers that bitsandbytes quantises: all linear ones but the output layer and the adapter."""
    output = model.get_output_embeddings()
    return sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not output and not is_adapters(name)
    )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
