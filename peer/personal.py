"""Personal parameters: trained by this peer with the others' ones, and its alone (FedPer, arXiv 1912.00818).

They are no part of the vector that is encoded and hashed, so no update holds them and no root depends on them. They
are saved with the peer's own training and outlive everything that replaces the common state.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dht.errors import ConfigError
from peer.adapter import is_adapters
from peer.manifest import Manifest
from peer.model import trained_parameters
from peer.store import StateStore

_PREFIX = "personal/"
_STORED = f"trainer/{_PREFIX}"  # the learner's name for what a trainer saves


def personal_names(model: torch.nn.Module, manifest: Manifest) -> frozenset[str]:
    """Names of the model's trained parameters that stay with the peer.

    Raises ConfigError for a pattern that matches none of them, and when nothing would be left to train together.
    """
    trained = [name for name, _ in trained_parameters(model)]
    found = {name for name in trained if manifest.personal.adapter and is_adapters(name)}
    for pattern in manifest.personal.patterns:
        matching = {name for name in trained if fnmatchcase(name, pattern)}
        if not matching:
            raise ConfigError(
                f"personal.patterns: {pattern!r} matches no trained parameter",
                remedy=f"names look like {trained[0]} and {trained[-1]}; tied weights have one name, the embedding's",
            )
        found |= matching
    if len(found) == len(trained):
        raise ConfigError("all trained parameters are personal: nothing is left to train together")
    return frozenset(found)


class PersonalParameters:
    """The personal parameters of one model, in its own memory."""

    def __init__(self, model: torch.nn.Module, names: Collection[str]) -> None:
        self._entries = {name: entry for name, entry in trained_parameters(model) if name in names}
        self._good = {name: entry.detach().clone() for name, entry in self._entries.items()}

    def __len__(self) -> int:
        return sum(entry.numel() for entry in self._entries.values())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """float32 arrays as a trainer saves them; on a CPU views of the model's memory."""
        return {f"{_PREFIX}{name}": entry.detach().cpu().numpy() for name, entry in self._entries.items()}

    def is_finite(self) -> bool:
        """Whether all of them are finite numbers."""
        return all(bool(torch.isfinite(entry).all()) for entry in self._entries.values())

    @torch.no_grad()
    def settle(self) -> None:
        """Remember them as they are, or go back to what was remembered last when they are not all finite.

        No other peer could give them back, so they are never saved as anything but numbers.
        """
        source, target = (self._entries, self._good) if self.is_finite() else (self._good, self._entries)
        for name, entry in target.items():
            entry.copy_(source[name])

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what `arrays` or `stored` returned. Raises ConfigError when it is another model's."""
        for name, entry in self._entries.items():
            value = arrays.get(f"{_PREFIX}{name}")
            if value is None or value.shape != tuple(entry.shape):
                raise ConfigError(f"the saved personal parameters do not fit the model: {name}")
            with torch.no_grad():
                entry.copy_(torch.from_numpy(np.array(value)))
        self.settle()

    def resume(self, store: StateStore) -> None:
        """Go on with what was saved last, if there is anything."""
        if self._entries and (saved := stored(store)):
            self.restore(saved)


def is_personal(key: str) -> bool:
    """Whether a trainer's saved array is one of `PersonalParameters.arrays`."""
    return key.startswith(_PREFIX)


def stored(store: StateStore) -> dict[str, NDArray[Any]]:
    """The personal parameters that were saved last, whatever the round: a newer common state does not undo them."""
    local = store.newest_local()
    names = [] if local is None else [name for name in local.arrays if name.startswith(_STORED)]
    return {name.removeprefix("trainer/"): local.arrays[name] for name in names if local is not None}
