"""The world state in memory, and the changes that lead from one block's state to the next, or back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import rlp
from eth_hash.auto import keccak


class Account(NamedTuple):
    """Balance in wei. An account that equals `NO_ACCOUNT` does not exist (EIP-161)."""

    balance: int = 0
    nonce: int = 0
    code: bytes = b""


NO_ACCOUNT = Account()


@dataclass(slots=True)
class Changes:
    """New values of accounts and storage slots; a slot that becomes 0 is gone."""

    accounts: dict[bytes, Account] = field(default_factory=dict)
    slots: dict[tuple[bytes, int], int] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Canonical bytes: RLP of both lists, sorted."""
        accounts = [
            [address, _minimal(account.balance), _minimal(account.nonce), account.code]
            for address, account in sorted(self.accounts.items())
        ]
        slots = [[address, _minimal(key), _minimal(value)] for (address, key), value in sorted(self.slots.items())]
        encoded: bytes = rlp.encode([accounts, slots])
        return encoded

    @classmethod
    def decode(cls, data: bytes) -> Changes:
        """The changes behind `encode`'s bytes."""
        accounts, slots = rlp.decode(data)
        return cls(
            {address: Account(_integer(balance), _integer(nonce), code) for address, balance, nonce, code in accounts},
            {(address, _integer(key)): _integer(value) for address, key, value in slots},
        )


class State:
    """Accounts and storage as they are after the newest block."""

    def __init__(self) -> None:
        self.accounts: dict[bytes, Account] = {}
        self._storage: dict[bytes, dict[int, int]] = {}

    def account(self, address: bytes) -> Account:
        """The account, or `NO_ACCOUNT`."""
        return self.accounts.get(address, NO_ACCOUNT)

    def slot(self, address: bytes, key: int) -> int:
        """The value of a storage slot."""
        return self._storage.get(address, {}).get(key, 0)

    def slots(self) -> Iterator[tuple[bytes, int, int]]:
        """Every slot that is not 0, as (address, key, value)."""
        for address, values in self._storage.items():
            for key, value in values.items():
                yield address, key, value

    def apply(self, changes: Changes) -> Changes:
        """Make the changes; returns those that undo them."""
        undo = Changes()
        for address, account in changes.accounts.items():
            undo.accounts[address] = self.account(address)
            if account == NO_ACCOUNT:
                self.accounts.pop(address, None)
            else:
                self.accounts[address] = account
        for (address, key), value in changes.slots.items():
            undo.slots[address, key] = self.slot(address, key)
            if value:
                self._storage.setdefault(address, {})[key] = value
            else:
                self._storage.get(address, {}).pop(key, None)
        return undo


def next_root(parent: bytes, changes: Changes) -> bytes:
    """Commitment to the state after `changes`: a chain of hashes over all changes since the empty state.

    Two nodes that executed the same blocks have the same root. It is no Merkle Patricia root: single accounts cannot be
    proven from it, but it costs nothing per account that a block leaves alone.
    """
    return keccak(parent + keccak(changes.encode()))


def _minimal(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def _integer(value: bytes) -> int:
    return int.from_bytes(value, "big")
