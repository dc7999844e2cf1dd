"""What a wallet set out to do, and every transaction it signed for that, on disk before the network sees it.

SQLite in WAL mode with synchronous=FULL: a commit has reached the disk when the call returns.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from os import urandom
from pathlib import Path

from dht.errors import ConfigError, StorageError
from dht.lock import FolderLock
from ledger.chain.fees import Bid

FILE = "transactions.sqlite"
_SCHEMA = """
create table if not exists identity (id integer primary key, value blob not null);
create table if not exists intent (
    key text primary key, receiver blob, data blob not null, value text not null,
    tx_hash blob, block integer, settled integer not null default 0) without rowid;
create table if not exists attempt (
    id integer primary key, tx_hash blob not null unique, key text not null references intent, nonce integer not null,
    gas integer not null, tip text not null, most text not null, raw blob not null, dead integer not null default 0);
create index if not exists attempt_by_key on attempt (key);
"""


@dataclass(frozen=True, slots=True)
class Intent:
    """What shall happen once. `key` names it for ever; `receiver` is None for a creation; `value` in wei."""

    key: str
    receiver: bytes | None
    data: bytes
    value: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """A signed transaction for an intent."""

    tx_hash: bytes
    nonce: int
    gas: int
    bid: Bid
    raw: bytes


class Journal:
    """One wallet's journal in `folder`, which it locks. Raises LockedError, StorageError."""

    def __init__(self, folder: Path) -> None:
        self._lock = FolderLock(folder)
        self._path = folder / FILE
        try:
            with self._said():
                self._db = sqlite3.connect(self._path, isolation_level=None)
                self._db.execute("pragma journal_mode = wal")
                self._db.execute("pragma synchronous = full")
                self._db.executescript(_SCHEMA)
                self._db.execute("insert or ignore into identity values (1, ?)", (urandom(16),))
                self._identity: bytes = self._db.execute("select value from identity").fetchone()[0]
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Close the file and let others in."""
        self._db.close()
        self._lock.release()

    def salt(self, key: str) -> bytes:
        """32 bytes that no other intent has, here or in another journal of the same wallet."""
        return sha256(self._identity + key.encode()).digest()

    def open(self, intent: Intent) -> None:
        """Note an intent. Raises ConfigError when its key stands for another one already."""
        row = (intent.key, intent.receiver, intent.data, str(intent.value))
        with self._said():
            self._db.execute("insert or ignore into intent (key, receiver, data, value) values (?, ?, ?, ?)", row)
            found = self._db.execute("select key, receiver, data, value from intent where key = ?", (intent.key,))
            if found.fetchone() != row:
                raise ConfigError(
                    f"{intent.key} was sent with other content already", remedy="one name stands for one transaction"
                )

    def intent(self, key: str) -> Intent | None:
        """What was noted under a name, also when it is settled."""
        with self._said():
            row = self._db.execute("select key, receiver, data, value from intent where key = ?", (key,)).fetchone()
        return None if row is None else Intent(row[0], row[1], row[2], int(row[3]))

    def attempts(self, key: str) -> list[Attempt]:
        """The living attempts, newest first."""
        with self._said():
            rows = self._db.execute(
                "select tx_hash, nonce, gas, tip, most, raw from attempt where key = ? and not dead order by id desc",
                (key,),
            ).fetchall()
        return [
            Attempt(tx_hash, nonce, gas, Bid(int(tip), int(most)), raw) for tx_hash, nonce, gas, tip, most, raw in rows
        ]

    def add(self, key: str, attempt: Attempt) -> None:
        """Keep a signed transaction; it may be sent when this returns."""
        bid = attempt.bid
        row = (attempt.tx_hash, key, attempt.nonce, attempt.gas, str(bid.tip), str(bid.most), attempt.raw)
        with self._said():
            self._db.execute("insert into attempt values (null, ?, ?, ?, ?, ?, ?, ?, 0)", row)

    def first_nonce(self, prefix: str) -> int | None:
        """The lowest nonce of the living attempts whose intent's key begins so; None when there is none."""
        with self._said():
            row = self._db.execute(
                "select min(nonce) from attempt where substr(key, 1, ?) = ? and not dead", (len(prefix), prefix)
            ).fetchone()
        return None if row is None or row[0] is None else int(row[0])

    def bury(self, key: str) -> None:
        """None of the attempts so far can be mined any more."""
        with self._said():
            self._db.execute("update attempt set dead = 1 where key = ?", (key,))

    def landed(self, key: str, tx_hash: bytes, block: int) -> None:
        """The intent is fulfilled by that transaction, as far as the chain stands; not for good until it is settled."""
        row = (tx_hash, block, key)
        with self._said():
            self._db.execute("update intent set tx_hash = ?, block = ?, settled = 0 where key = ?", row)

    def settle(self, key: str) -> None:
        """The intent is fulfilled for good, by whomever."""
        with self._said():
            self._db.execute("update intent set settled = 1 where key = ?", (key,))

    def unsettled(self) -> list[tuple[Intent, bytes | None]]:
        """Intents not fulfilled for good, each with the transaction that fulfils it so far, in the order of nonces."""
        first = "(select min(nonce) from attempt where attempt.key = intent.key and not dead)"
        with self._said():
            rows = self._db.execute(
                "select key, receiver, data, value, tx_hash from intent where not settled "
                f"order by {first} is null, {first}, key"
            ).fetchall()
        return [(Intent(key, receiver, data, int(value)), done) for key, receiver, data, value, done in rows]

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(
                f"the journal of transactions {self._path} failed: {error}", remedy="free disk space; nothing was sent"
            ) from None
