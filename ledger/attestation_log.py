"""Signatures that were seen: by place and signer, so that a restart forgets none and a second one is found out.

One header is kept for each place and signer: the first. Nothing depends on this file for safety (the guard is another
one), so its commits do not wait for the disk.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from dht.errors import StorageError
from ledger.checkpoint import Checkpoint
from ledger.eip712 import Domain
from ledger.evidence import SignedCheckpoint

_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen
    (domain BLOB, run BLOB, fork_nonce BLOB, epoch BLOB, signer BLOB, header BLOB NOT NULL, signature BLOB NOT NULL,
     PRIMARY KEY (domain, run, fork_nonce, epoch, signer)) WITHOUT ROWID;
"""
_PLACE = "domain = ? AND run = ? AND fork_nonce = ? AND epoch = ?"


class AttestationLog(Protocol):
    """Remembers who signed what."""

    def keep(self, domain: Domain, signer: bytes, signed: SignedCheckpoint) -> SignedCheckpoint:
        """The first that this signer signed for the place: this one, if there was none. Raises StorageError."""
        ...

    def at(self, domain: Domain, run: bytes, fork_nonce: int, epoch: int) -> list[tuple[bytes, SignedCheckpoint]]:
        """(signer, what it signed) of all that was kept for a place. Raises StorageError."""
        ...

    def forget(self, domain: Domain, before_epoch: int) -> None:
        """Drop what was kept of epochs before this one. Raises StorageError."""
        ...


class SqliteAttestationLog:
    """A log in one SQLite file, at most one row of 600 bytes for each attestor and place."""

    def __init__(self, path: Path | str) -> None:
        """Open or create the file. Raises StorageError."""
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise StorageError(f"cannot open the log of attestations {path}: {error}", remedy=_REMEDY) from error

    def close(self) -> None:
        """Close the file; the log cannot be used any more."""
        self._db.close()

    def __del__(self) -> None:
        if hasattr(self, "_db"):
            self._db.close()

    def keep(self, domain: Domain, signer: bytes, signed: SignedCheckpoint) -> SignedCheckpoint:
        """See `AttestationLog.keep`."""
        header = signed.header
        key = (*_place(domain, header.run, header.fork_nonce, header.epoch), signer)
        with self._database() as db:
            db.execute(
                "INSERT OR IGNORE INTO seen VALUES (?, ?, ?, ?, ?, ?, ?)", (*key, header.encode(), signed.signature)
            )
            row = db.execute(f"SELECT header, signature FROM seen WHERE {_PLACE} AND signer = ?", key).fetchone()
        return SignedCheckpoint(Checkpoint.decode(row[0]), row[1])

    def at(self, domain: Domain, run: bytes, fork_nonce: int, epoch: int) -> list[tuple[bytes, SignedCheckpoint]]:
        """See `AttestationLog.at`."""
        query = f"SELECT signer, header, signature FROM seen WHERE {_PLACE} ORDER BY signer"
        with self._database() as db:
            rows = db.execute(query, _place(domain, run, fork_nonce, epoch)).fetchall()
        return [(signer, SignedCheckpoint(Checkpoint.decode(header), signature)) for signer, header, signature in rows]

    def forget(self, domain: Domain, before_epoch: int) -> None:
        """See `AttestationLog.forget`."""
        with self._database() as db:
            db.execute(
                "DELETE FROM seen WHERE domain = ? AND epoch < ?", (domain.separator(), before_epoch.to_bytes(8, "big"))
            )

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise StorageError(f"the log of attestations failed: {error}", remedy=_REMEDY) from error


_REMEDY = "check disk space and owner; the file may be deleted, others send their signatures again"


def _place(domain: Domain, run: bytes, fork_nonce: int, epoch: int) -> tuple[bytes, ...]:
    # Numbers as blobs: a uint64 does not fit into SQLite's signed integers.
    return domain.separator(), run, fork_nonce.to_bytes(8, "big"), epoch.to_bytes(8, "big")
