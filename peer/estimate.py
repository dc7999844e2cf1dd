"""What training a model takes at least, told before the model is loaded: a process that Linux kills says nothing."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from dht.errors import ConfigError
from peer.manifest import Manifest
from peer.memory import REMEDY
from peer.model import quiet_without_terminal

log = logging.getLogger(__name__)

_FLOAT = 4
_MOMENT_BYTES = {"adamw": 8.0, "adamw8bit": 2.0, "muon": 4.0}  # Muon has one moment of a matrix, two of the rest


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that stay in memory while a peer trains, activations left out (their size is measured, `peer.batching`).

    The certified state and the outer momentum are mapped from disk, so they do not count.
    """

    parameters: int
    trained: int
    weight_bytes: float = _FLOAT  # of one parameter: half a byte in a base of 4 bits
    moment_bytes: float = 2 * _FLOAT

    @property
    def bytes(self) -> int:
        """Weights, and for each trained parameter its gradient, the optimizer's moments and the residual."""
        return round(self.parameters * self.weight_bytes + self.trained * (2 * _FLOAT + self.moment_bytes))

    def check(self, free: float) -> None:
        """Raises ConfigError when that is more than `free` bytes."""
        said = f"training {self.trained:,} of the model's {self.parameters:,} parameters takes {_gigabytes(self.bytes)}"
        if self.bytes > free:
            raise ConfigError(f"{said} before the first batch, and {_gigabytes(free)} are free", remedy=REMEDY)
        log.info("%s, and %s are free", said, _gigabytes(free))


def needs(manifest: Manifest) -> Needs:
    """What training all parameters of the manifest's model takes; nothing where its size cannot be told in advance."""
    count = count_parameters(manifest)
    return Needs(count, count, moment_bytes=_MOMENT_BYTES[manifest.train.optimizer])


def count_parameters(manifest: Manifest) -> int:
    """Parameters of the model, tied ones once, by its configuration alone; 0 where that does not tell.

    Takes no memory for weights (torch's meta device) and draws no random numbers.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_without_terminal()
    choice = manifest.model
    try:
        if choice.config:
            sizes = dict(choice.config)
            config = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
        else:
            source = {"revision": choice.revision} if choice.hub else {"local_files_only": True}
            config = AutoConfig.from_pretrained(choice.hub or choice.path, trust_remote_code=False, **source)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # what is wrong with the model is said when it is made
        log.info("the model's size is not known in advance: %s", error)
        return 0
    return sum(entry.numel() for entry in model.parameters())


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
