"""RewardPool: what is paid, to whom, out of what."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tests.ledger.model.hub import Hub
from tests.ledger.model.refused import BPS, ZERO, Refused
from tests.ledger.model.registry import Registry
from tests.ledger.model.token import Token


@dataclass
class Pool:
    """RewardPool."""

    at: str
    token: Token
    registry: Registry
    hub: Hub
    treasury: str
    providers: str
    fees: int = 0
    minted: int = 0
    attestors_due: int = 0
    claimed: dict[str, int] = field(default_factory=dict)

    def funded(self, epoch: int) -> int:
        """The most that may be promised."""
        settings = self.hub.settings
        return self.fees + min(epoch * settings.emission, settings.cap - settings.genesis)

    def claim(self, epoch: int, account: str, cumulative: int, proven: bool, now: int) -> None:
        """`proven`: the proof leads from this leaf to the epoch's root."""
        if not self.hub.is_active(epoch, now):
            raise Refused("NotActive", epoch)
        if not proven:
            raise Refused("BadProof")
        before = self.claimed.get(account, 0)
        if cumulative <= before:
            raise Refused("NothingToClaim", before)
        amount, have = cumulative - before, self.token.balances.get(self.at, 0)
        if have < amount:
            more = max(0, self.hub.kept[epoch].reward - self.minted)
            if have + more < amount:
                raise Refused("OverPromised", amount, have + more)
            self.minted = self.hub.kept[epoch].reward
            self.token.mint(self.at, more)
        self.claimed[account] = cumulative
        self.token.move(self.at, self._recipient(account), amount)

    def pay_usage(self, payer: str, amount: int) -> None:
        """A fee, split."""
        if amount == 0:
            raise Refused("NothingToDo")
        _, providers, attestors, treasury = (amount * part // BPS for part in self.hub.settings.splits)
        contributors = amount - providers - attestors - treasury
        after = replace(self.token, balances={**self.token.balances}, allowances={**self.token.allowances})
        after.take(payer, None, contributors + attestors, self.at)
        after.take(payer, self.providers, providers, self.at)
        after.take(payer, self.treasury, treasury, self.at)
        self.token.balances, self.token.allowances = after.balances, after.allowances
        self.fees += contributors
        self.attestors_due += attestors

    def pay_attestors(self) -> None:
        """What is due to them, by weight."""
        total = sum(self.hub.attestors.values())
        share = self.attestors_due // total
        if share == 0:
            raise Refused("NothingToDo")
        self.attestors_due -= share * total
        for key, weight in self.hub.attestors.items():
            self.token.mint(self._recipient(key), share * weight)

    def _recipient(self, account: str) -> str:
        wallet = self.registry.wallet_of(account)
        return account if wallet == ZERO else wallet
