"""Whether a model that somebody's own script made is the model of a run, and its first weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from dht.errors import ConfigError, IncompatibleRunError
from peer.adapter import plain_name
from peer.manifest import Manifest
from peer.model import build_model, trained_parameters
from peer.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

_PROBE = "The flock\tturns as one:  naïve café, 北京 🐦\n  return {'x': 1_000}  # <|endoftext|>\r\n"


def check_arguments(arguments: TrainingArguments) -> None:
    """Raise ConfigError for settings of transformers' Trainer under which one process does not hold the whole model."""
    if arguments.world_size > 1:
        raise ConfigError(
            f"Trainer runs in {arguments.world_size} processes; a peer is one process",
            remedy="start the script without torchrun or accelerate launch, on one GPU or with several visible ones",
        )
    for name in ("deepspeed", "fsdp"):
        if getattr(arguments, name, None):
            raise ConfigError(f"{name} splits the model, and a peer needs it whole", remedy=f"leave out {name}")
    if arguments.load_best_model_at_end:
        raise ConfigError(
            "load_best_model_at_end would end with weights that no round certified",
            remedy="leave it out; after training the model holds the last certified round",
        )


def take_first_weights(model: PreTrainedModel, manifest: Manifest) -> None:
    """Check that the model's parameters are those of the manifest's model, then give them the run's first weights.

    Raises ConfigError where trained weights are not float32, and IncompatibleRunError where names or shapes differ.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ConfigError(
                f"the trained weight {name} is {str(parameter.dtype).removeprefix('torch.')}, a run trains float32",
                remedy="load the model with dtype=torch.float32; bf16=True in TrainingArguments still computes in bf16",
            )
    runs_own = build_model(manifest)
    _check_same(_trained(runs_own), _trained(model))
    mine = {plain_name(name): entry for name, entry in model.named_parameters()}
    with torch.no_grad():
        for long_name, parameter in runs_own.named_parameters():
            name = plain_name(long_name)
            # Frozen weights as well, as long as the script has not quantized them: updates only add up on one base.
            if name in mine and (mine[name].shape, mine[name].dtype) == (parameter.shape, parameter.dtype):
                mine[name].copy_(parameter)


def _trained(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(entry.shape) for name, entry in trained_parameters(model)}


def _check_same(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    remedy = "make the model from what [model] in the run's manifest names"
    if missing := sorted(wanted.keys() - found.keys()):
        raise IncompatibleRunError(f"the run trains {_some(missing)}, which this model does not train", remedy=remedy)
    if more := sorted(found.keys() - wanted.keys()):
        also = "; freeze what the run does not train with requires_grad_(False)"
        raise IncompatibleRunError(f"this model trains {_some(more)}, which the run does not", remedy=remedy + also)
    for name in sorted(wanted):
        if wanted[name] != found[name]:
            shapes = f"{list(found[name])} in this model and {list(wanted[name])} in the run"
            raise IncompatibleRunError(f"the weight {name} is {shapes}", remedy=remedy)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, manifest: Manifest) -> None:
    """Raise IncompatibleRunError when the tokenizer does not give the token ids that the run's own gives.

    Compared are vocabularies and a probe text, not files: how a script pads or cuts is its own business.
    """
    runs_own = load_tokenizer(manifest)
    same = tokenizer.get_vocab() == runs_own.get_vocab() and _ids(tokenizer) == _ids(runs_own)
    if not same:
        choice = manifest.tokenizer
        remedy = "use the tokenizer that [tokenizer] in the run's manifest names: "
        remedy += "peer.tokenizer.byte_tokenizer()" if choice.kind == "bytes" else choice.source
        raise IncompatibleRunError("the Trainer's tokenizer is not the run's", remedy=remedy)


def _ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(_PROBE, add_special_tokens=False, truncation=False, padding=False)["input_ids"])
