"""The attestors: whose signatures count how much, and who of them submits a checkpoint first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from dht.wire import digest
from ledger.checkpoint import Checkpoint, Rollback


@dataclass(frozen=True)
class Electorate:
    """Key addresses (20 bytes) and weights, in the hub's order: a bit of a bitmap is an index into them."""

    addresses: tuple[bytes, ...]
    weights: tuple[int, ...]

    @cached_property
    def _indices(self) -> Mapping[bytes, int]:
        return {address: index for index, address in enumerate(self.addresses)}

    def index(self, address: bytes) -> int | None:
        """The bit of an attestor; None for anybody else."""
        return self._indices.get(address)

    def enough(self, indices: Iterable[int]) -> bool:
        """Whether these attestors have more than two thirds of all weight."""
        return 3 * sum(self.weights[index] for index in set(indices)) > 2 * sum(self.weights)

    def needed(self, indices: Iterable[int]) -> bool:
        """Whether nothing is enough without one of these: while less than a third lies, one of them is honest."""
        return 3 * sum(self.weights[index] for index in set(indices)) >= sum(self.weights)

    def fewest(self, indices: Iterable[int]) -> tuple[int, ...]:
        """Of attestors that are enough, as few as are: each signature more costs gas. The heaviest come first."""
        chosen: list[int] = []
        for index in sorted(indices, key=lambda each: (-self.weights[each], each)):
            if self.enough(chosen):
                break
            chosen.append(index)
        return tuple(sorted(chosen))

    def leaders(self, header: Checkpoint) -> tuple[bytes, ...]:
        """Who submits a checkpoint: the first at once, each next one a while later; nobody chooses the order."""
        return self._order("checkpoint leader", header.epoch.to_bytes(8, "big"), header.parent)

    def rollback_leaders(self, rollback: Rollback) -> tuple[bytes, ...]:
        """Who submits a rollback, in the same way."""
        numbers = (rollback.fork_nonce, rollback.epoch)
        return self._order("rollback leader", *(number.to_bytes(8, "big") for number in numbers))

    def _order(self, label: str, *seed: bytes) -> tuple[bytes, ...]:
        return tuple(sorted(self.addresses, key=lambda address: digest(label, *seed, address)))
