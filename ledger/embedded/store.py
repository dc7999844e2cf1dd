"""The chain on disk: SQLite, one transaction per block, fsynced before anybody hears of the block.

A process that is killed at any moment loses at most the block in flight. Every block keeps what undoes it, so that
tests can take blocks back and calls can look at an earlier state.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dht.errors import IncompatibleRunError, StorageError
from ledger.embedded.blocks import Block, Header, Receipt
from ledger.embedded.engine import Log
from ledger.embedded.state import NO_ACCOUNT, Account, Changes, State
from ledger.embedded.transactions import Transaction, decode

KEPT_UNDOS = 4096
"""Blocks back to which the state can be rewound."""
_SCHEMA = """
create table if not exists meta (key text primary key, value text not null) without rowid;
create table if not exists block (
    number integer primary key, hash blob not null unique, timestamp integer not null, header blob not null,
    tx_hash blob unique, raw blob, receipt blob, undo blob not null);
create table if not exists log (
    block integer not null, position integer not null, address blob not null,
    topic0 blob, topic1 blob, topic2 blob, topic3 blob, data blob not null,
    primary key (block, position)) without rowid;
create index if not exists log_by_address on log (address, block);
create table if not exists account (
    address blob primary key, balance blob not null, nonce integer not null, code blob not null) without rowid;
create table if not exists slot (address blob, key blob, value blob not null, primary key (address, key)) without rowid;
"""


@dataclass(frozen=True)
class Genesis:
    """How a chain begins. `alloc`: wei per address. Reopening a folder with another chain id is refused."""

    chain_id: int
    timestamp: int
    alloc: dict[bytes, int] = field(default_factory=dict)

    def changes(self) -> Changes:
        """The state of block 0."""
        return Changes({address: Account(balance) for address, balance in self.alloc.items() if balance})

    def to_json(self) -> str:
        """For the disk."""
        alloc = {address.hex(): hex(balance) for address, balance in sorted(self.alloc.items())}
        return json.dumps({"chain_id": self.chain_id, "timestamp": self.timestamp, "alloc": alloc})

    @classmethod
    def from_json(cls, text: str) -> Genesis:
        """The genesis behind `to_json`."""
        found = json.loads(text)
        alloc = {bytes.fromhex(address): int(balance, 16) for address, balance in found["alloc"].items()}
        return cls(found["chain_id"], found["timestamp"], alloc)


@dataclass(frozen=True, slots=True)
class FoundLog:
    """A log with the block it is in; `position` counts within the block."""

    block: int
    block_hash: bytes
    timestamp: int
    tx_hash: bytes
    position: int
    log: Log


@dataclass(frozen=True, slots=True)
class Summary:
    """A block without what is in it: the encoded header; `size` in bytes, of header and transaction."""

    header: bytes
    hash: bytes
    size: int
    tx_hash: bytes | None


class Store:
    """One chain's file. Raises StorageError when it cannot be read or written."""

    def __init__(self, path: Path, genesis: Genesis) -> None:
        self._path = path
        with self._said("open"):
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            self._db.executescript(_SCHEMA)
        self.genesis = self._found(genesis)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def append(self, block: Block, changes: Changes, undo: Changes) -> None:
        """Keep a block and the state after it, both or neither."""
        header, transaction = block.header, block.transaction
        with self._transaction():
            self._db.execute(
                "insert into block values (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    header.number,
                    header.hash,
                    header.timestamp,
                    header.encode(),
                    transaction.hash if transaction else None,
                    transaction.raw if transaction else None,
                    block.receipt.pack() if block.receipt else None,
                    undo.encode(),
                ),
            )
            logs = block.receipt.logs if block.receipt else ()
            self._db.executemany(
                "insert into log values (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (header.number, position, log.address, *_four(log.topics), log.data)
                    for position, log in enumerate(logs)
                ],
            )
            self._write(changes)
            old = header.number - KEPT_UNDOS
            self._db.execute("update block set undo = x'' where number = ?", (old,))

    def take_back(self, number: int, undos: Sequence[Changes]) -> None:
        """Remove all blocks after `number`; `undos` are their undos, newest first."""
        with self._transaction():
            for undo in undos:
                self._write(undo)
            self._db.execute("delete from block where number > ?", (number,))
            self._db.execute("delete from log where block > ?", (number,))

    def height(self) -> int:
        """Number of the newest block; -1 when there is none."""
        return int(self._one("select coalesce(max(number), -1) from block")[0])

    def block(self, number: int) -> Block | None:
        """The block with that number."""
        row = self._maybe("select header, raw, receipt from block where number = ?", number)
        if row is None:
            return None
        header, raw, receipt = row
        transaction = self._decode(raw) if raw is not None else None
        return Block(Header.decode(header), transaction, Receipt.unpack(receipt) if receipt is not None else None)

    def summary(self, number: int) -> Summary | None:
        """What the block with that number says of itself."""
        row = self._maybe(
            "select header, hash, length(header) + coalesce(length(raw), 0), tx_hash from block where number = ?",
            number,
        )
        return None if row is None else Summary(*row)

    def number_of(self, block_hash: bytes) -> int | None:
        """Number of the block with that hash."""
        row = self._maybe("select number from block where hash = ?", block_hash)
        return None if row is None else int(row[0])

    def containing(self, tx_hash: bytes) -> int | None:
        """Number of the block with that transaction."""
        row = self._maybe("select number from block where tx_hash = ?", tx_hash)
        return None if row is None else int(row[0])

    def undo(self, number: int) -> Changes | None:
        """What takes block `number` back; None when it is no longer kept."""
        row = self._maybe("select undo from block where number = ?", number)
        return Changes.decode(row[0]) if row and row[0] else None

    def logs(
        self,
        first: int,
        last: int,
        addresses: Sequence[bytes] = (),
        topics: Sequence[Sequence[bytes]] = (),
        most: int = 10_000,
    ) -> list[FoundLog]:
        """Up to `most` logs of blocks first … last; an empty list of addresses or of one topic allows any."""
        where = ["block between ? and ?"]
        values: list[Any] = [first, last]
        for column, wanted in (("address", addresses), *((f"topic{at}", topic) for at, topic in enumerate(topics))):
            if wanted:
                where.append(f"{column} in ({', '.join('?' * len(wanted))})")
                values += wanted
        if topics:
            # A filter with n positions matches only logs that have as many topics.
            where.append(f"topic{len(topics) - 1} is not null")
        columns = "block, hash, timestamp, tx_hash, position, address, data, topic0, topic1, topic2, topic3"
        query = (
            f"select {columns} from log join block on number = block "
            f"where {' and '.join(where)} order by block, position limit ?"
        )
        with self._said("read"):
            rows = self._db.execute(query, (*values, most)).fetchall()
        return [_found_log(*row) for row in rows]

    def load_state(self) -> State:
        """The state after the newest block."""
        changes = Changes()
        with self._said("read"):
            for address, balance, nonce, code in self._db.execute("select address, balance, nonce, code from account"):
                changes.accounts[address] = Account(int.from_bytes(balance, "big"), nonce, code)
            for address, key, value in self._db.execute("select address, key, value from slot"):
                changes.slots[address, int.from_bytes(key, "big")] = int.from_bytes(value, "big")
        state = State()
        state.apply(changes)
        return state

    def _write(self, changes: Changes) -> None:
        for address, account in changes.accounts.items():
            if account == NO_ACCOUNT:
                self._db.execute("delete from account where address = ?", (address,))
            else:
                self._db.execute(
                    "insert or replace into account values (?, ?, ?, ?)",
                    (address, _word(account.balance), account.nonce, account.code),
                )
        for (address, key), value in changes.slots.items():
            if value:
                self._db.execute("insert or replace into slot values (?, ?, ?)", (address, _word(key), _word(value)))
            else:
                self._db.execute("delete from slot where address = ? and key = ?", (address, _word(key)))

    def _found(self, wanted: Genesis) -> Genesis:
        row = self._maybe("select value from meta where key = 'genesis'")
        if row is None:
            with self._transaction():
                self._db.execute("insert into meta values ('genesis', ?)", (wanted.to_json(),))
            return wanted
        found = Genesis.from_json(row[0])
        if found.chain_id != wanted.chain_id:
            raise IncompatibleRunError(
                f"{self._path} holds a chain with id {found.chain_id}, not {wanted.chain_id}",
                remedy="choose another folder, or the chain id it was made with",
            )
        return found

    def _decode(self, raw: bytes) -> Transaction:
        return decode(raw, self.genesis.chain_id)

    def _one(self, query: str, *values: Any) -> tuple[Any, ...]:
        row = self._maybe(query, *values)
        assert row is not None
        return row

    def _maybe(self, query: str, *values: Any) -> tuple[Any, ...] | None:
        with self._said("read"):
            row: tuple[Any, ...] | None = self._db.execute(query, values).fetchone()
            return row

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._said("write"):
            self._db.execute("begin immediate")
            try:
                yield
                self._db.execute("commit")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk may have rolled back already
                    self._db.execute("rollback")
                raise

    @contextmanager
    def _said(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(
                f"cannot {what} the chain in {self._path}: {error}", remedy="free disk space, or restore the file"
            ) from None


def _found_log(
    block: int,
    block_hash: bytes,
    timestamp: int,
    tx_hash: bytes,
    position: int,
    address: bytes,
    data: bytes,
    *four: Any,
) -> FoundLog:
    topics = tuple(topic for topic in four if topic is not None)
    return FoundLog(block, block_hash, timestamp, tx_hash, position, Log(address, topics, data))


def _four(topics: tuple[bytes, ...]) -> tuple[bytes | None, ...]:
    return (*topics, *(None,) * (4 - len(topics)))


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")
