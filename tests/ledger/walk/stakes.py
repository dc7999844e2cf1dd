"""Calls of Token and PeerRegistry."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from benchmarks.contracts import DAY, UNIT, Key
from tests.ledger.contract_driver import PEER_KEYS, compact, read
from tests.ledger.model.token import EVER
from tests.ledger.walk.base import EVM, Walk, accounts, amounts, flaws, peers, refuses


class Stakes(Walk):
    """Tokens, keys and stakes."""

    @initialize()
    def four_are_enrolled(self) -> None:
        """Else most calls say no more than that nobody is."""
        for account in range(4):
            self.enrol_with(account, PEER_KEYS[account], 5000 * UNIT, "")

    @rule(account=accounts, to=accounts, amount=amounts)
    def transfer(self, account: int, to: int, amount: int) -> None:
        owner, other = EVM.accounts[account], EVM.accounts[to]
        self.both.do(account, "Token", "transfer", (other, amount), lambda: self.both.token.move(owner, other, amount))

    @rule(account=accounts, to=st.sampled_from(["PeerRegistry", "RewardPool", 1]), amount=st.just(EVER) | amounts)
    def approve(self, account: int, to: str | int, amount: int) -> None:
        owner, spender = EVM.accounts[account], EVM.accounts[to] if isinstance(to, int) else EVM.at[to]
        model = self.both.token.approve
        self.both.do(account, "Token", "approve", (spender, amount), lambda: model(owner, spender, amount))

    @rule(account=accounts, of=accounts, to=accounts, amount=amounts, burns=st.booleans(), enough=st.booleans())
    def take(self, account: int, of: int, to: int, amount: int, burns: bool, enough: bool) -> None:
        """From somebody who may have allowed it."""
        owner, spender, token = EVM.accounts[of], EVM.accounts[account], self.both.token
        if enough:
            self.both.do(of, "Token", "approve", (spender, amount), lambda: token.approve(owner, spender, amount))
        other = None if burns else EVM.accounts[to]
        function, values = ("burnFrom", (owner, amount)) if burns else ("transferFrom", (owner, other, amount))
        self.both.do(account, "Token", function, values, lambda: token.take(owner, other, amount, spender))

    @rule(account=accounts, amount=amounts)
    def burn_tokens(self, account: int, amount: int) -> None:
        owner = EVM.accounts[account]
        self.both.do(account, "Token", "burn", (amount,), lambda: self.both.token.move(owner, None, amount))

    @rule(account=accounts, key=peers, amount=amounts, flaw=flaws)
    def enrol(self, account: int, key: Key, amount: int, flaw: str) -> None:
        self.enrol_with(account, key, amount, flaw)

    def enrol_with(self, account: int, key: Key, amount: int, flaw: str) -> None:
        words, proof = self.binding(account, key, flaw)
        sender, values = EVM.accounts[account], (key.x, key.y, *words, amount, bytes(32))
        self.both.do(
            account,
            "PeerRegistry",
            "enrol",
            values,
            lambda: self.both.registry.enrol(sender, key.address, proof, amount),
        )

    @rule(account=accounts, key=peers, flaw=flaws)
    def rotate_key(self, account: int, key: Key, flaw: str) -> None:
        words, proof = self.binding(account, key, flaw)
        sender, values = EVM.accounts[account], (key.x, key.y, *words)
        self.both.do(
            account,
            "PeerRegistry",
            "rotateKey",
            values,
            lambda: self.both.registry.rotate_key(sender, key.address, proof, self.now),
        )

    def binding(self, account: int, key: Key, flaw: str) -> Any:
        digest = EVM.call("PeerRegistry", "bindingDigest", EVM.accounts[account])
        words = compact(key, digest, flaw)
        return words, read(digest, words)

    @rule(account=accounts, amount=amounts)
    def add_stake(self, account: int, amount: int) -> None:
        sender = EVM.accounts[account]
        self.both.do(
            account, "PeerRegistry", "addStake", (amount,), lambda: self.both.registry.add_stake(sender, amount)
        )

    @rule(account=accounts, amount=amounts)
    def request_unbond(self, account: int, amount: int) -> None:
        self.unbond(account, amount)

    @rule(account=accounts, amount=amounts, pause=st.sampled_from([0, DAY - 1, DAY]))
    def leave(self, account: int, amount: int, pause: int) -> None:
        self.unbond(account, amount)
        EVM.wait(pause)
        self.take_out(account)

    def unbond(self, account: int, amount: int) -> None:
        sender = EVM.accounts[account]
        model = self.both.registry.request_unbond
        self.both.do(account, "PeerRegistry", "requestUnbond", (amount,), lambda: model(sender, amount, self.now))

    @rule(account=accounts)
    def withdraw(self, account: int) -> None:
        self.take_out(account)

    def take_out(self, account: int) -> None:
        sender = EVM.accounts[account]
        self.both.do(account, "PeerRegistry", "withdraw", (), lambda: self.both.registry.withdraw(sender, self.now))

    @rule(account=accounts)
    def set_metadata(self, account: int) -> None:
        sender = EVM.accounts[account]
        self.both.do(
            account, "PeerRegistry", "setMetadata", (b"m" * 32,), lambda: self.both.registry.set_metadata(sender)
        )

    @rule(account=accounts)
    def burn(self, account: int) -> None:
        self.both.do(account, "PeerRegistry", "burn", (), self.both.registry.burn)

    @rule(account=accounts, amount=amounts)
    def what_only_contracts_may(self, account: int, amount: int) -> None:
        sender = EVM.accounts[account]
        self.both.do(account, "Token", "mint", (sender, amount), refuses("NotThePool", sender))
        self.both.do(account, "PeerRegistry", "slash", (sender, 1, sender), refuses("NotSlashing", sender))
