"""Token: what moves, and what may be moved."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.ledger.model.refused import Refused

EVER = 2**256 - 1


@dataclass
class Token:
    """ERC-20. `allowances`: by (owner, spender); what is not there is zero."""

    balances: dict[str, int]
    allowances: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def supply(self) -> int:
        """Units that exist."""
        return sum(self.balances.values())

    def approve(self, owner: str, spender: str, amount: int) -> None:
        """Allow so much, whatever was allowed before."""
        self.allowances[owner, spender] = amount

    def take(self, owner: str, to: str | None, amount: int, spender: str) -> None:
        """Move what somebody else was allowed to; an allowance of `EVER` does not shrink."""
        self.check(owner, amount, spender)
        if (allowed := self.allowances.get((owner, spender), 0)) != EVER:
            self.allowances[owner, spender] = allowed - amount
        self.move(owner, to, amount)

    def check(self, owner: str, amount: int, spender: str | None = None) -> None:
        """Whether so much can be taken."""
        allowed = EVER if spender is None else self.allowances.get((owner, spender), 0)
        if allowed < amount:
            raise Refused("ERC20InsufficientAllowance", spender, allowed, amount)
        if (have := self.balances.get(owner, 0)) < amount:
            raise Refused("ERC20InsufficientBalance", owner, have, amount)

    def move(self, owner: str, to: str | None, amount: int) -> None:
        """Take from one, give to another, or burn."""
        self.check(owner, amount)
        self.balances[owner] = self.balances.get(owner, 0) - amount
        if to is not None:
            self.mint(to, amount)

    def mint(self, to: str, amount: int) -> None:
        """Create."""
        self.balances[to] = self.balances.get(to, 0) + amount
