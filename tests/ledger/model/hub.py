"""CheckpointHub: the chain of checkpoints and who signs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.contracts import Settings
from tests.ledger.model.refused import ZERO, Refused, Signature

RING = 64


@dataclass(frozen=True)
class Slot:
    """A checkpoint that the hub still knows. `leaves`: cumulative reward by account, what the tally root stands for."""

    hash: bytes
    proposed_at: int
    last_round: int
    reward: int
    leaves: Mapping[str, int]


@dataclass
class Hub:
    """CheckpointHub. `kept`: by epoch; `attestors`: weight by key, in order."""

    run: bytes
    settings: Settings
    attestors: dict[str, int]
    epoch: int = 0
    fork_nonce: int = 0
    rotation_nonce: int = 0
    kept: dict[int, Slot] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rotation_nonce = 1  # the constructor's own

    @property
    def last(self) -> Slot:
        """What the next checkpoint follows."""
        return self.kept.get(self.epoch, Slot(bytes(32), 0, 0, 0, {}))

    def propose(
        self, header: Mapping[str, Any], slot: Slot, funded: int, bits: int, signatures: Sequence[Signature], odd: bool
    ) -> None:
        """The next checkpoint; `slot` is what will be known of it."""
        last, now = self.last, slot.proposed_at
        if header["runId"] != self.run:
            raise Refused("WrongRun", header["runId"])
        if header["forkNonce"] != self.fork_nonce:
            raise Refused("WrongFork", self.fork_nonce)
        if header["epoch"] != self.epoch + 1:
            raise Refused("WrongEpoch", self.epoch + 1)
        if header["parent"] != last.hash:
            raise Refused("WrongParent", last.hash)
        if header["firstRound"] != last.last_round + 1 or not header["firstRound"] <= header["lastRound"] < 2**48:
            raise Refused("WrongRounds", last.last_round + 1)
        if now < last.proposed_at + self.settings.min_interval:
            raise Refused("TooSoon", last.proposed_at + self.settings.min_interval)
        if header["cumulativeReward"] < last.reward:
            raise Refused("RewardFalls", last.reward)
        if header["cumulativeReward"] > funded:
            raise Refused("NotFunded", funded)
        self._quorum(bits, signatures, odd)
        self.epoch += 1
        self.kept[self.epoch] = slot
        self.kept.pop(self.epoch - RING, None)

    def rollback(self, epoch: int, now: int, bits: int, signatures: Sequence[Signature], odd: bool) -> None:
        """Forget this epoch and later ones."""
        if not 1 <= epoch <= self.epoch + 1:
            raise Refused("WrongEpoch", self.epoch + 1)
        if self.is_active(epoch, now):
            raise Refused("AlreadyActive", epoch)
        self._quorum(bits, signatures, odd)
        self.kept = {number: slot for number, slot in self.kept.items() if number < epoch}
        self.epoch, self.fork_nonce = epoch - 1, self.fork_nonce + 1

    def rotate(self, to: Sequence[tuple[str, int]], bits: int, signatures: Sequence[Signature], odd: bool) -> None:
        """Other attestors."""
        self._quorum(bits, signatures, odd)
        if not 1 <= len(to) <= 64:
            raise Refused("BadAttestorCount", len(to), len(to))
        for index, (key, weight) in enumerate(to):
            if key == ZERO or weight == 0 or key in [earlier for earlier, _ in to[:index]]:
                raise Refused("BadAttestor", index)
        self.attestors, self.rotation_nonce = dict(to), self.rotation_nonce + 1

    def is_active(self, epoch: int, now: int) -> bool:
        """Whether claims may be made against it."""
        slot = self.kept.get(epoch)
        return slot is not None and now >= slot.proposed_at + self.settings.window

    def signed(self, bits: int, signatures: Sequence[Signature], odd: bool) -> tuple[int, int]:
        """Weight that signed, and of all. `odd`: half a signature is left over at the end."""
        attestors, left = list(self.attestors.items()), list(signatures)
        words, weight = 2 * len(left) + odd, 0
        for index in (index for index in range(64) if bits >> index & 1):
            if index >= len(attestors):
                raise Refused("UnknownSigner", index)
            if not left:
                raise Refused("WrongSignatureCount", words)
            if left.pop(0).recovered() != attestors[index][0]:
                raise Refused("BadSigner", index)
            weight += attestors[index][1]
        if left or odd:
            raise Refused("WrongSignatureCount", words)
        return weight, sum(self.attestors.values())

    def _quorum(self, bits: int, signatures: Sequence[Signature], odd: bool) -> None:
        weight, total = self.signed(bits, signatures, odd)
        if 3 * weight <= 2 * total:
            raise Refused("NoQuorum", weight, total)
