"""The attestor's guard: which checkpoint it signs in each place, on disk before the signature leaves, never another.

Rollbacks are written down in the same way, but one does not forbid another, nor any checkpoint (docs/ledger.md): an
attestor that starts again says at once what it said before.

Two signatures of one key in one place cost its stake. The hub counts places by fork nonce and epoch, so a signature
that is lost, a restart, or another branch of records never makes an honest attestor sign a second header there: it
abstains until the place is gone.

SQLite in WAL mode with synchronous=FULL: a commit has reached the disk before the call returns. A promise is checked
and written in one immediate transaction, so of two processes on one file only one can make it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from dht.errors import ProtocolError, Refusal, StorageError
from dht.promises import PromiseFile
from ledger.checkpoint import Checkpoint, Rollback
from ledger.eip712 import Domain

_SCHEMA = """
CREATE TABLE IF NOT EXISTS promise
    (domain BLOB, run BLOB, fork_nonce BLOB, epoch BLOB, digest BLOB NOT NULL, header BLOB NOT NULL,
     PRIMARY KEY (domain, run, fork_nonce, epoch)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rollback
    (domain BLOB, run BLOB, fork_nonce BLOB, epoch BLOB, PRIMARY KEY (domain, run, fork_nonce, epoch)) WITHOUT ROWID;
"""


class AlreadySignedError(ProtocolError):
    """Another checkpoint was signed for this place; this one never will be."""

    def __init__(self, message: str) -> None:
        remedy = "nothing to do: the other attestors go on, and the next fork nonce or epoch is free"
        super().__init__(Refusal.EQUIVOCATION, message, remedy=remedy)


class AttestorGuard(Protocol):
    """What stands between a header and its signature."""

    def promise(self, domain: Domain, header: Checkpoint) -> bytes:
        """The digest to sign, once it is durable that this is the one of its place.

        Raises AlreadySignedError when another is; StorageError when nothing was promised.
        """
        ...

    def promised(self, domain: Domain, run: bytes, fork_nonce: int, epoch: int) -> Checkpoint | None:
        """What was promised for a place, if anything."""
        ...

    def promise_rollback(self, domain: Domain, rollback: Rollback) -> bytes:
        """The digest to sign, once it is durable. Raises StorageError when nothing was promised."""
        ...

    def rollbacks(self, domain: Domain, run: bytes, fork_nonce: int) -> set[int]:
        """Epochs whose rollback was promised under a fork nonce."""
        ...


class SqliteAttestorGuard(PromiseFile):
    """A guard in one SQLite file. May be called from several threads and processes. Nothing is ever forgotten."""

    def __init__(self, path: Path | str) -> None:
        """Open or create the file. Raises StorageError."""
        super().__init__(path, _SCHEMA, "the attestor's guard", "nothing was signed")

    def promise(self, domain: Domain, header: Checkpoint) -> bytes:
        """See `AttestorGuard.promise`."""
        digest = header.digest(domain)
        place = _place(domain, header.run, header.fork_nonce, header.epoch)
        with self._transaction():
            kept = self._keep(place, digest, header.encode())
        if kept != digest:
            raise AlreadySignedError(
                f"another checkpoint of epoch {header.epoch}, fork nonce {header.fork_nonce} was signed here"
            )
        return digest

    def _keep(self, place: tuple[bytes, ...], digest: bytes, header: bytes) -> bytes:
        """The digest that a place has for ever: this one if it had none."""
        query = "SELECT digest FROM promise WHERE domain = ? AND run = ? AND fork_nonce = ? AND epoch = ?"
        row = self._db.execute(query, place).fetchone()
        if row is None:
            self._db.execute("INSERT INTO promise VALUES (?, ?, ?, ?, ?, ?)", (*place, digest, header))
        return digest if row is None else bytes(row[0])

    def promised(self, domain: Domain, run: bytes, fork_nonce: int, epoch: int) -> Checkpoint | None:
        """See `AttestorGuard.promised`. Raises StorageError."""
        query = "SELECT header FROM promise WHERE domain = ? AND run = ? AND fork_nonce = ? AND epoch = ?"
        with self._reading():
            row = self._db.execute(query, _place(domain, run, fork_nonce, epoch)).fetchone()
        return None if row is None else Checkpoint.decode(bytes(row[0]))

    def promise_rollback(self, domain: Domain, rollback: Rollback) -> bytes:
        """See `AttestorGuard.promise_rollback`."""
        place = _place(domain, rollback.run, rollback.fork_nonce, rollback.epoch)
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO rollback VALUES (?, ?, ?, ?)", place)
        return rollback.digest(domain)

    def rollbacks(self, domain: Domain, run: bytes, fork_nonce: int) -> set[int]:
        """See `AttestorGuard.rollbacks`. Raises StorageError."""
        query = "SELECT epoch FROM rollback WHERE domain = ? AND run = ? AND fork_nonce = ?"
        with self._reading():
            rows = self._db.execute(query, _place(domain, run, fork_nonce, 0)[:3]).fetchall()
        return {int.from_bytes(row[0], "big") for row in rows}

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise StorageError(f"the attestor's guard cannot be read: {error}", remedy="restore it") from error


def _place(domain: Domain, run: bytes, fork_nonce: int, epoch: int) -> tuple[bytes, ...]:
    # Numbers as blobs: a uint64 does not fit into SQLite's signed integers.
    return domain.separator(), run, fork_nonce.to_bytes(8, "big"), epoch.to_bytes(8, "big")
