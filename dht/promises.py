"""A SQLite file of promises: what was written is on the disk before anybody hears of it, and is never forgotten."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dht.errors import StorageError


class PromiseFile:
    """What guards are made of. May be used from several threads and processes."""

    def __init__(self, path: Path | str, schema: str, name: str, spared: str) -> None:
        """Open or create the file. `name` and `spared` (what did not happen) are for messages. Raises StorageError."""
        self._lock = threading.Lock()
        self._name, self._spared = name, spared
        try:
            self._db = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(schema)
        except sqlite3.Error as error:
            raise StorageError(f"cannot open {name} {path}: {error}", remedy="check disk space and owner") from error

    def close(self) -> None:
        """Close the file; the guard cannot be used any more."""
        self._db.close()

    def __del__(self) -> None:
        if hasattr(self, "_db"):
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit on leaving, roll back on any error. SQLite's own errors become StorageError."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.Error):  # a full disk may have rolled back already
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise StorageError(
                        f"{self._name} could not write its promise: {error}",
                        remedy=f"free disk space; {self._spared}",
                    ) from error
                raise
