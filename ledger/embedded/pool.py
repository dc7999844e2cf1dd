"""Transactions that wait: for an earlier nonce, for funds, or for a base fee that they can pay."""

from __future__ import annotations

from collections.abc import Iterator

from ledger.embedded.jsonrpc import rejected
from ledger.embedded.state import State
from ledger.embedded.transactions import Transaction

MOST_WAITING = 4096
MOST_PER_SENDER = 64
REPLACEMENT_BUMP = 10
"""Percent that both caps of a replacement must be above those of what it replaces, as in other nodes."""


class Pool:
    """At most one waiting transaction per sender and nonce, in memory: who sent it sends it again after a restart."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, dict[int, Transaction]] = {}
        self._by_hash: dict[bytes, Transaction] = {}

    def __len__(self) -> int:
        return len(self._by_hash)

    def get(self, tx_hash: bytes) -> Transaction | None:
        """A waiting transaction."""
        return self._by_hash.get(tx_hash)

    def add(self, transaction: Transaction) -> None:
        """Let it wait. Raises RpcError when it is known, replaces another for too little, or there is no room."""
        if transaction.hash in self._by_hash:
            raise rejected("already known")
        mine = self._waiting.get(transaction.sender, {})
        before = mine.get(transaction.nonce)
        if before is not None:
            if not _outbids(transaction, before):
                raise rejected("replacement transaction underpriced")
            self.drop(before)
        elif len(mine) >= MOST_PER_SENDER or len(self._by_hash) >= MOST_WAITING:
            raise rejected("txpool is full")
        self._waiting.setdefault(transaction.sender, {})[transaction.nonce] = transaction
        self._by_hash[transaction.hash] = transaction

    def drop(self, transaction: Transaction) -> None:
        """Forget a waiting transaction."""
        del self._by_hash[transaction.hash]
        mine = self._waiting[transaction.sender]
        del mine[transaction.nonce]
        if not mine:
            del self._waiting[transaction.sender]

    def drop_stale(self, state: State) -> None:
        """Forget those whose nonce is used up."""
        for transaction in list(self._by_hash.values()):
            if transaction.nonce < state.account(transaction.sender).nonce:
                self.drop(transaction)

    def next_nonce(self, sender: bytes, state: State) -> int:
        """The first nonce that neither the chain nor a waiting transaction uses."""
        nonce = state.account(sender).nonce
        mine = self._waiting.get(sender, {})
        while nonce in mine:
            nonce += 1
        return nonce

    def best(self, state: State, base_fee: int) -> Transaction | None:
        """The executable transaction that tips most; among equals the one that waits longest."""
        return max(self._executable(state, base_fee), key=lambda found: found.price(base_fee), default=None)

    def _executable(self, state: State, base_fee: int) -> Iterator[Transaction]:
        for transaction in self._by_hash.values():
            account = state.account(transaction.sender)
            affordable = transaction.fee_cap >= base_fee and account.balance >= transaction.most_cost
            if affordable and transaction.nonce == account.nonce:
                yield transaction


def _outbids(new: Transaction, old: Transaction) -> bool:
    pairs = ((new.fee_cap, old.fee_cap), (new.tip_cap, old.tip_cap))
    return all(100 * after >= (100 + REPLACEMENT_BUMP) * before for after, before in pairs)
