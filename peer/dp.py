"""Record-level differential privacy: what `--dp` promises, and the account of what has been spent of it.

A record is one training sequence. A step takes each of the N sequences with probability q = batch size / N (Poisson
sampling), clips the gradient of each to norm C, adds Gaussian noise of standard deviation z C to their sum (DP-SGD,
Abadi et al. 2016, arXiv 1607.00133), and divides by the expected batch size. Neighbouring data sets differ by one
sequence that is there or not; N counts as public. The accountant is opacus' for the sampled Gaussian mechanism in Renyi
divergence (Mironov et al. 2019, arXiv 1908.10530), and Poisson sampling is what it assumes.

The account is one file of the data folder. It is written before the steps that it counts are taken, and entries never
leave it: a crash, other data, or another run with the same folder can make epsilon too large, never too small.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dht.errors import ConfigError, StorageError
from peer.data import TokenData
from peer.durable import storage_errors, sync_folder, write_file

ACCOUNT_FILE = "privacy.json"
CLAIM_DELTA = 1e-6
"""The delta at which a peer announces its epsilon, the same for all, so that the figures compare."""
_UNPROTECTED = 0.0
_INSTALL = "install murmuration[dp], which brings opacus"


class PrivacyBudgetError(ConfigError):
    """One more step would exceed the epsilon that this peer may spend."""

    code = "MUR-120"


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What a peer promises about each of its records: (epsilon, delta), by noise and clip; bounds: `PeerConfig`."""

    epsilon: float = 8.0
    delta: float = 1e-6
    noise: float = 1.0  # z: standard deviation of the noise over the clip
    clip: float = 1.0  # C: norm that the gradient of one record is clipped to


@dataclass(frozen=True, slots=True)
class Spent:
    """So many steps on data of this fingerprint; `noise` 0 stands for training without protection."""

    data: str
    noise: float
    sample_rate: float
    steps: int


class Account:
    """The privacy spent by one data folder. Not thread-safe."""

    def __init__(self, path: Path, entries: tuple[Spent, ...] = ()) -> None:
        self._path, self._entries = path, entries
        self._per_step: dict[tuple[float, float], NDArray[np.float64]] = {}

    @classmethod
    def load(cls, data_dir: Path) -> Account:
        """The folder's account; an empty one if there is none. Raises StorageError when it cannot be read."""
        path = data_dir / ACCOUNT_FILE
        try:
            found = json.loads(path.read_bytes())
            return cls(path, tuple(_entry(row) for row in found["spent"]))
        except FileNotFoundError:
            return cls(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            # What was spent is not known any more, and nothing may be promised on a guess.
            remedy = "restore the file from a copy; without it nobody knows what was spent on this folder's data"
            raise StorageError(f"the privacy account {path} cannot be read: {error}", remedy=remedy) from error

    @property
    def empty(self) -> bool:
        """Whether nothing was ever trained under `--dp` here."""
        return not self._entries

    @property
    def steps(self) -> int:
        """Steps taken under protection, over all data."""
        return sum(entry.steps for entry in self._entries if entry.noise)

    def epsilon(self, delta: float, more: Spent | None = None) -> float:
        """Epsilon of all that was spent (and `more`), as if each record had been in all data ever used here.

        Infinite after training without protection; 0 when nothing was spent.
        """
        entries = [entry for entry in (*self._entries, *([more] if more else [])) if entry.steps]
        if not entries:
            return 0.0
        if any(entry.noise == _UNPROTECTED for entry in entries):
            return math.inf
        rdp = sum((entry.steps * self._rdp(entry.noise, entry.sample_rate) for entry in entries), np.zeros(1))
        return _epsilon(rdp, delta)

    def add(self, spent: Spent) -> None:
        """Count steps, on disk when it returns. Raises StorageError, and then nothing was counted."""
        same = [entry for entry in self._entries if replace(entry, steps=spent.steps) == spent]
        others = tuple(entry for entry in self._entries if entry not in same)
        steps = spent.steps + sum(entry.steps for entry in same)
        entries = (*others, replace(spent, steps=steps))
        partial = self._path.with_suffix(".partial")
        with storage_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(partial, [json.dumps({"spent": [asdict(entry) for entry in entries]}, indent=1).encode()])
            partial.replace(self._path)
            sync_folder(self._path.parent)
        self._entries = entries

    def affordable(self, spent: Spent, guarantee: Guarantee) -> int:
        """How many of the steps of `spent` fit into the budget, from 0 to all of them."""
        low, high = 0, spent.steps
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.epsilon(guarantee.delta, replace(spent, steps=middle)) <= guarantee.epsilon
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def _rdp(self, noise: float, sample_rate: float) -> NDArray[np.float64]:
        found = self._per_step.get((noise, sample_rate))
        if found is None:
            found = self._per_step[noise, sample_rate] = _rdp(noise, sample_rate)
        return found


def _entry(row: Mapping[str, Any]) -> Spent:
    entry = Spent(str(row["data"]), float(row["noise"]), float(row["sample_rate"]), int(row["steps"]))
    if not (entry.noise >= 0.0 and 0.0 < entry.sample_rate <= 1.0 and entry.steps >= 0):
        raise ValueError(f"{row} is no entry")
    return entry


def _rdp(noise: float, sample_rate: float) -> NDArray[np.float64]:
    """Renyi divergence of one step at each of opacus' orders."""
    accountants = opacus_module("accountants")
    rdp = opacus_module("accountants.analysis.rdp")
    orders = accountants.RDPAccountant.DEFAULT_ALPHAS
    return np.atleast_1d(rdp.compute_rdp(q=sample_rate, noise_multiplier=noise, steps=1, orders=orders))


def _epsilon(rdp: NDArray[np.float64], delta: float) -> float:
    import warnings

    orders = opacus_module("accountants").RDPAccountant.DEFAULT_ALPHAS
    with warnings.catch_warnings():
        # At the edge of the orders the bound is loose, but it is a bound.
        warnings.simplefilter("ignore", UserWarning)
        epsilon, _ = opacus_module("accountants.analysis.rdp").get_privacy_spent(orders=orders, rdp=rdp, delta=delta)
    return max(0.0, float(epsilon))


def opacus_module(name: str) -> Any:
    """A module of opacus. Raises ConfigError when it is not installed."""
    import importlib

    try:
        return importlib.import_module(f"opacus.{name}")
    except ImportError as error:
        raise ConfigError(f"--dp needs opacus, which cannot be imported: {error}", remedy=_INSTALL) from error


class PoissonBatches:
    """Batches int64[k, sequence_length] that take each sequence with the same probability, whatever came before.

    k is random, and may be 0. Drawn from the system's randomness, since who can predict the draw knows who was not in
    it: so no seed, and no position to go back to.
    """

    def __init__(self, data: TokenData, expected: int) -> None:
        """`expected`: sequences that a batch has on average. Raises ConfigError when there are fewer in the data."""
        if expected > data.sequences:
            raise ConfigError(
                f"batches of {expected} sequences from data of {data.sequences}",
                remedy="lower --batch-size: --dp lives off taking few records at a time",
            )
        self.data, self.expected = data, expected
        self.sample_rate = expected / data.sequences
        self._random = np.random.default_rng()

    def next(self) -> NDArray[np.int64]:
        """The next batch, in no order."""
        # A binomial number of distinct sequences is one coin per sequence, without tossing them all.
        count = int(self._random.binomial(self.data.sequences, self.sample_rate))
        chosen = self._random.choice(self.data.sequences, count, replace=False, shuffle=False)
        return self.data.gather(chosen) if count else np.empty((0, self.data.sequence_length), np.int64)

    def state(self) -> dict[str, Any]:
        """Which data it was; there is no position."""
        return {"data": self.data.fingerprint}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to go back to."""
