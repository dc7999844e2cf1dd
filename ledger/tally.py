"""The tally of a run, epoch after epoch: who did what, who earned what, and the leaves under the hub's root."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from dht.identity import PeerId
from ledger.points import Points, Row, add_up
from ledger.rewards import Constants, split
from ledger.signatures import key_address
from ledger.standard_merkle import StandardMerkleTree


@dataclass(frozen=True, slots=True)
class Account:
    """One peer's points and what it earned for them, in 1e-18 tokens."""

    points: Points = field(default_factory=Points)
    earned: int = 0

    def __add__(self, other: Account) -> Account:
        return Account(self.points + other.points, self.earned + other.earned)


_NOBODY: Mapping[bytes, Account] = MappingProxyType({})


@dataclass(frozen=True)
class EpochTally:
    """An immutable tally after `epoch` epochs; `EpochTally()` is that of the founding.

    `added` is what this epoch gave by peer id, `accounts` everything since the founding, both in the order of peer ids.
    `paid` is the epoch's pot, `emitted` how much of all pots was minted, `carried` the usage fees that wait for an
    epoch in which somebody earns a point.
    """

    epoch: int = 0
    paid: int = 0
    emitted: int = 0
    carried: int = 0
    added: Mapping[bytes, Account] = field(default_factory=lambda: _NOBODY)
    accounts: Mapping[bytes, Account] = field(default_factory=lambda: _NOBODY)

    def following(self, rounds: Iterable[Iterable[Row]], fees: int, constants: Constants) -> EpochTally:
        """The tally after one more epoch with these rows and usage fees. Raises ValueError for negative fees."""
        if fees < 0:
            raise ValueError(f"usage fees of {fees}")
        points = add_up(rounds)
        fees += self.carried
        if not any(each.tokens or each.chunks for each in points.values()):
            added = {peer: Account(each) for peer, each in points.items()}
            return self._with(added, paid=0, emitted=self.emitted, carried=fees)
        minted = min(constants.emission, constants.emission_cap - self.emitted)
        earned = split(minted + fees, points, constants.tokens_bps)
        added = {peer: Account(each, earned[peer]) for peer, each in points.items()}
        return self._with(added, paid=minted + fees, emitted=self.emitted + minted, carried=0)

    def _with(self, added: Mapping[bytes, Account], *, paid: int, emitted: int, carried: int) -> EpochTally:
        grown = dict(self.accounts)
        for peer, account in added.items():
            grown[peer] = grown.get(peer, Account()) + account
        accounts = {peer: grown[peer] for peer in sorted(grown)}
        return EpochTally(
            self.epoch + 1, paid, emitted, carried, MappingProxyType(dict(added)), MappingProxyType(accounts)
        )

    @cached_property
    def cumulative_reward(self) -> int:
        """All that was ever earned: the sum of the leaves."""
        return sum(account.earned for account in self.accounts.values())

    @cached_property
    def tokens(self) -> int:
        """Training tokens counted since the founding."""
        return sum(account.points.tokens for account in self.accounts.values())

    @cached_property
    def leaves(self) -> Mapping[bytes, int]:
        """Cumulative reward by key address, of all who ever earned something."""
        earned = ((peer, account.earned) for peer, account in self.accounts.items())
        return MappingProxyType({key_address(PeerId(peer)): amount for peer, amount in earned if amount})

    @cached_property
    def tree(self) -> StandardMerkleTree:
        """The tree whose root a checkpoint carries, and whose proofs the pool takes."""
        return StandardMerkleTree(self.leaves.items())
