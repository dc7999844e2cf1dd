"""The chain: takes transactions, mines each into a block of its own at once, answers calls.

Everything that a block depends on is in its header, its transaction or its parent, so executing the blocks again gives
the same hashes (`replay`). Time comes from a clock that is passed in and never goes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from eth_hash.auto import keccak

from dht.errors import StorageError
from ledger.embedded.blocks import COINBASE, ZERO_HASH, Block, Header, Receipt, bloom, leaf_root
from ledger.embedded.engine import MOST_BLOCK_GAS, Engine, InvalidMessageError, Message, Outcome, Surroundings
from ledger.embedded.fees import INITIAL_BASE_FEE, next_base_fee
from ledger.embedded.jsonrpc import invalid, rejected, reverted
from ledger.embedded.pool import Pool
from ledger.embedded.state import Changes, State, next_root
from ledger.embedded.store import Genesis, Store
from ledger.embedded.transactions import MOST_INITCODE, Transaction, decode

_STIPEND = 2300  # gas that a value transfer gives its callee for free (EIP-150)


class Chain:
    """One chain over one store. Raises StorageError when the disk does; RpcError for what a caller got wrong."""

    def __init__(self, store: Store, clock: Callable[[], float], *, automine: bool = True) -> None:
        self.store = store
        self.chain_id = store.genesis.chain_id
        self.automine = automine
        self.pool = Pool()
        self.forced_base_fee: int | None = None
        self._clock = clock
        self._forced_timestamp: int | None = None
        if store.height() < 0:
            self._found()
        self.state: State = store.load_state()
        self._engine = Engine(self.state, self.chain_id)
        self.head = self._block(store.height()).header
        self._branch = int.from_bytes(self.head.extra, "big") if self.head.number else 0
        self._ahead = max(0, self.head.timestamp - int(clock()))

    def submit(self, raw: bytes) -> bytes:
        """Take a signed transaction; returns its hash. Mined when this returns, unless it has to wait."""
        transaction = decode(raw, self.chain_id)
        self._check(transaction)
        self.pool.add(transaction)
        if self.automine:
            self.mine_waiting()
        return transaction.hash

    def mine_waiting(self) -> int:
        """Mine every transaction that can be executed; returns how many."""
        mined = 0
        while (transaction := self.pool.best(self.state, self.base_fee())) is not None:
            self.pool.drop(transaction)
            self._mine(transaction)
            mined += 1
        self.pool.drop_stale(self.state)
        return mined

    def mine(self, blocks: int = 1) -> None:
        """Mine at least so many blocks, empty ones when nothing can be executed."""
        for _ in range(blocks - self.mine_waiting()):
            self.mine_empty()

    def mine_empty(self) -> None:
        """Mine a block without a transaction, whatever waits."""
        self._mine(None)

    def base_fee(self) -> int:
        """Wei per gas that the next block burns."""
        if self.forced_base_fee is not None:
            return self.forced_base_fee
        return next_base_fee(self.head.base_fee, self.head.gas_used, MOST_BLOCK_GAS)

    def timestamp(self) -> int:
        """Unix seconds of a block mined now."""
        if self._forced_timestamp is not None:
            return self._forced_timestamp
        return max(self.head.timestamp, int(self._clock()) + self._ahead)

    def advance(self, seconds: int) -> int:
        """Put the clock forward for good; returns by how much it is ahead of the one that was passed in."""
        self._ahead += seconds
        return self._ahead

    def set_next_timestamp(self, timestamp: int) -> None:
        """The next block has this time, and time goes on from there. Raises RpcError if it lies before the head's."""
        if timestamp < self.head.timestamp:
            raise invalid(f"timestamp {timestamp} is lower than the previous block's, {self.head.timestamp}")
        self._forced_timestamp = timestamp
        self._ahead = timestamp - int(self._clock())

    def call(self, message: Message, number: int | None = None) -> Outcome:
        """Execute and keep nothing: in the block that would be mined now, or in that of `number`."""
        if number is None:
            return self._run(message, self._next_surroundings())
        with self.at(number):
            return self._run(message, _surroundings(self._block(number).header))

    def estimate(self, message: Message) -> int:
        """Gas with which the message succeeds, at most 1.5 % over the least. Raises RpcError when it never does."""
        around = self._next_surroundings()
        outcome = self._run(message, around)
        if not outcome.success:
            raise reverted(outcome.output) if not outcome.halt else rejected(f"out of gas or invalid: {outcome.halt}")
        too_little, enough = outcome.gas_used - 1, message.gas
        guess = (outcome.gas_used + _STIPEND) * 64 // 63
        while enough - too_little > max(1, enough * 15 // 1000):
            if guess >= enough:
                guess = (too_little + enough) // 2
            if self._succeeds(replace(message, gas=guess), around):
                enough = guess
            else:
                too_little = guess
            guess = min((too_little + enough) // 2, 2 * too_little)
        return enough

    @contextmanager
    def at(self, number: int) -> Iterator[State]:
        """The state as it was after block `number`. Raises RpcError when that is too long ago."""
        redo: list[Changes] = []
        try:
            for undo in self._undos(number):
                redo.append(self._change(undo))
            yield self.state
        finally:
            for changes in reversed(redo):
                self._change(changes)

    def follow(self, block: Block) -> None:
        """Execute a block that was mined elsewhere. Raises StorageError when it does not come out the same."""
        again, changes = self._build(block.transaction, _surroundings(block.header), block.header.extra)
        if again.header != block.header:
            raise StorageError(
                f"block {block.header.number} does not follow from its parent", remedy="restore the file from a copy"
            )
        self._adopt(again, changes)

    def take_back(self, number: int) -> None:
        """Forget all blocks after `number`: a reorganisation, for tests. Their transactions are gone, too."""
        undos = self._undos(number)
        self.store.take_back(number, undos)
        for undo in undos:
            self._change(undo)
        self.head = self._block(number).header
        # Blocks mined from here on differ from those taken back, even with the same content at the same time.
        self._branch += 1

    def _undos(self, number: int) -> list[Changes]:
        """What leads from the head back to block `number`, newest first."""
        undos = []
        for taken in range(self.head.number, number, -1):
            undo = self.store.undo(taken)
            if undo is None:
                raise rejected(f"missing trie node: the state of block {number} is no longer kept")
            undos.append(undo)
        return undos

    def _check(self, transaction: Transaction) -> None:
        account = self.state.account(transaction.sender)
        if self.store.containing(transaction.hash) is not None:
            raise rejected("already known")
        if transaction.nonce < account.nonce:
            raise rejected(f"nonce too low: next nonce {account.nonce}, tx nonce {transaction.nonce}")
        if account.balance < transaction.most_cost:
            raise rejected(
                "insufficient funds for gas * price + value: "
                f"address 0x{transaction.sender.hex()} have {account.balance} want {transaction.most_cost}"
            )
        if transaction.gas > MOST_BLOCK_GAS:
            raise rejected("exceeds block gas limit")
        if transaction.gas < transaction.intrinsic_gas:
            raise rejected(f"intrinsic gas too low: gas {transaction.gas}, minimum needed {transaction.intrinsic_gas}")
        if transaction.to is None and len(transaction.data) > MOST_INITCODE:
            raise rejected("max initcode size exceeded")
        if account.code:
            raise rejected("sender not an eoa")

    def _run(self, message: Message, around: Surroundings) -> Outcome:
        try:
            return self._engine.run(message, around)
        except InvalidMessageError as error:
            raise _refusal(error) from None

    def _succeeds(self, message: Message, around: Surroundings) -> bool:
        try:
            return self._engine.run(message, around).success
        except InvalidMessageError:
            return False

    def _mine(self, transaction: Transaction | None) -> None:
        around = self._next_surroundings()
        block, changes = self._build(transaction, around, self._branch.to_bytes(4, "big"))
        self._adopt(block, changes)
        self._forced_timestamp = self.forced_base_fee = None

    def _adopt(self, block: Block, changes: Changes) -> None:
        self.store.append(block, changes, self._undo_of(changes))
        self._change(changes)
        self.head = block.header

    def _build(self, transaction: Transaction | None, around: Surroundings, extra: bytes) -> tuple[Block, Changes]:
        """The block that follows the head, and what it changes."""
        changes, receipt = Changes(), None
        if transaction is not None:
            price = transaction.price(around.base_fee)
            outcome = self._engine.run(_message(transaction, price), around)
            changes = outcome.changes
            created = outcome.created if outcome.success else None
            receipt = Receipt(transaction.kind, outcome.success, outcome.gas_used, price, outcome.logs, created)
        header = Header(
            parent=self.head.hash,
            number=around.number,
            timestamp=around.timestamp,
            state_root=next_root(self.head.state_root, changes),
            transactions_root=leaf_root(transaction.raw if transaction else None),
            receipts_root=leaf_root(receipt.encode() if receipt else None),
            bloom=bloom(receipt.logs if receipt else ()),
            gas_used=receipt.gas_used if receipt else 0,
            base_fee=around.base_fee,
            randomness=around.randomness,
            extra=extra,
        )
        return Block(header, transaction, receipt), changes

    def _next_surroundings(self) -> Surroundings:
        head = self.head
        return Surroundings(head.number + 1, self.timestamp(), self.base_fee(), COINBASE, keccak(head.hash))

    def _undo_of(self, changes: Changes) -> Changes:
        accounts = {address: self.state.account(address) for address in changes.accounts}
        return Changes(accounts, {(address, key): self.state.slot(address, key) for address, key in changes.slots})

    def _change(self, changes: Changes) -> Changes:
        undo = self.state.apply(changes)
        self._engine.load(changes)
        return undo

    def _found(self) -> None:
        self.store.append(genesis_block(self.store.genesis), self.store.genesis.changes(), Changes())

    def _block(self, number: int) -> Block:
        block = self.store.block(number)
        if block is None:
            raise StorageError(f"block {number} is missing from the chain's file", remedy="restore it from a copy")
        return block


def genesis_block(genesis: Genesis) -> Block:
    """Block 0."""
    empty = leaf_root(None)
    root = next_root(ZERO_HASH, genesis.changes())
    chain = genesis.chain_id.to_bytes(32, "big")
    return Block(
        Header(
            ZERO_HASH, 0, genesis.timestamp, root, empty, empty, bloom(()), 0, INITIAL_BASE_FEE, keccak(chain), chain
        )
    )


def replay(store: Store, copy: Store) -> int:
    """Execute all of `store`'s blocks again into the empty `copy`; returns how many.

    Raises StorageError at the first block that does not come out with the same hash.
    """
    chain = Chain(copy, lambda: 0.0, automine=False)
    for number in range(1, store.height() + 1):
        block = store.block(number)
        if block is None:
            raise StorageError(f"block {number} is missing", remedy="restore the chain's file from a copy")
        chain.follow(block)
    return chain.head.number


def _surroundings(header: Header) -> Surroundings:
    return Surroundings(header.number, header.timestamp, header.base_fee, COINBASE, header.randomness)


def _message(transaction: Transaction, price: int) -> Message:
    return Message(
        transaction.sender,
        transaction.to,
        transaction.data,
        transaction.value,
        transaction.gas,
        price,
        transaction.access_list,
    )


def _refusal(error: InvalidMessageError) -> Exception:
    text = str(error)
    if "LackOfFund" in text or "OutOfFund" in text:
        return rejected("insufficient funds for gas * price + value")
    if "GasLimit" in text or "gas limit" in text:
        return rejected(f"intrinsic gas too low: {text}")
    if "RejectCallerWithCode" in text:
        return rejected("sender not an eoa")
    if "CreateInitCodeSizeLimit" in text:
        return rejected("max initcode size exceeded")
    return rejected(f"invalid transaction: {text}")
