"""The sticky-release guard: what a member has promised, on disk before it is said, and never contradicted.

If both seeds of a member could be reconstructed its update would be open, so each member releases for each
(sid, member) a share of one seed only, to anyone, ever, also after a restart. The same holds for one survivor set per
sid, one opened sid per round, one ballot per vote of the committee's agreement. Repeating a promise is fine.

SQLite in WAL mode with synchronous=FULL: one fsync per commit, and a commit has reached the disk before the call
returns. Every promise is checked and written in one immediate transaction, so of two processes on one file only one
can make it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

from dht.errors import ProtocolError, Refusal, StorageError
from dht.promises import PromiseFile

Kind = Literal["a", "b"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS vote (sid BLOB PRIMARY KEY, digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS opened (run BLOB, round INTEGER, sid BLOB NOT NULL UNIQUE, PRIMARY KEY (run, round));
CREATE TABLE IF NOT EXISTS release (sid BLOB, member INTEGER, kind TEXT NOT NULL, PRIMARY KEY (sid, member));
CREATE TABLE IF NOT EXISTS ballot
    (run BLOB, round INTEGER, view INTEGER, kind TEXT, value BLOB NOT NULL, PRIMARY KEY (run, round, view, kind));
CREATE TABLE IF NOT EXISTS lock (run BLOB, round INTEGER, blob BLOB NOT NULL, PRIMARY KEY (run, round));
CREATE TABLE IF NOT EXISTS forsaken (run BLOB PRIMARY KEY, round INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS pruned (only INTEGER PRIMARY KEY CHECK (only = 0), before_round INTEGER NOT NULL);
"""


class GuardRefusedError(ProtocolError):
    """The promise would contradict an earlier one of this member."""

    def __init__(self, message: str) -> None:
        super().__init__(Refusal.EQUIVOCATION, message)


class Guard(Protocol):
    """Each call makes a promise durable or raises GuardRefusedError; StorageError means nothing was promised."""

    def vote(self, sid: bytes, digest: bytes) -> None:
        """Sign the survivor set with this digest: one per sid."""
        ...

    def open_round(self, run: bytes, round_: int, sid: bytes) -> None:
        """Choose the one sid of a round whose shares may ever be released. Comes before `release`."""
        ...

    def release(self, sid: bytes, choices: Mapping[int, Kind]) -> None:
        """Release shares of seed `a` or `b` per member, all or nothing; never both kinds for one (sid, member)."""
        ...

    def has_opened(self, run: bytes, round_: int) -> bytes | None:
        """The sid opened in a round, if any."""
        ...

    def ballot(self, run: bytes, round_: int, view: int, kind: str, value: bytes) -> None:
        """Cast a ballot of the agreement: one value per (run, round, view, kind)."""
        ...

    def save_lock(self, run: bytes, round_: int, blob: bytes) -> None:
        """Keep the agreement's lock; a later one replaces it."""
        ...

    def load_lock(self, run: bytes, round_: int) -> bytes | None:
        """The agreement's lock, if any."""
        ...

    def forsake(self, run: bytes, round_: int) -> None:
        """Leave a branch while working on this round: no update is uploaded in it, or in one before, on any other."""
        ...

    def forsaken(self, run: bytes) -> int:
        """The last round in which no update may be uploaded any more, since I left a branch; 0 when I never did."""
        ...

    def prune(self, before_round: int) -> None:
        """Forget the promises of rounds before this one, and refuse any in them from now on."""
        ...


class SqliteGuard(PromiseFile):
    """A guard in one SQLite file. May be called from several threads and processes."""

    def __init__(self, path: Path | str) -> None:
        """Open or create the file. Raises StorageError."""
        super().__init__(path, _SCHEMA, "the guard", "nothing was released")

    def vote(self, sid: bytes, digest: bytes) -> None:
        """See `Guard.vote`."""
        with self._transaction() as db:
            row = db.execute("SELECT round FROM opened WHERE sid = ?", (sid,)).fetchone()
            if row is not None:
                self._refuse_pruned(db, row[0])
            db.execute("INSERT OR IGNORE INTO vote VALUES (?, ?)", (sid, digest))
            (kept,) = db.execute("SELECT digest FROM vote WHERE sid = ?", (sid,)).fetchone()
            if kept != digest:
                raise GuardRefusedError("another survivor set was signed for this sid")

    def open_round(self, run: bytes, round_: int, sid: bytes) -> None:
        """See `Guard.open_round`."""
        with self._transaction() as db:
            self._refuse_pruned(db, round_)
            db.execute("INSERT OR IGNORE INTO opened (run, round, sid) VALUES (?, ?, ?)", (run, round_, sid))
            row = db.execute("SELECT sid FROM opened WHERE run = ? AND round = ?", (run, round_)).fetchone()
            if row is None or row[0] != sid:
                raise GuardRefusedError(f"round {round_} was opened under another sid")

    def release(self, sid: bytes, choices: Mapping[int, Kind]) -> None:
        """See `Guard.release`. Refuses a sid that is not its round's opened one."""
        if not set(choices.values()) <= {"a", "b"}:
            raise ValueError("a share is of kind 'a' or 'b'")
        with self._transaction() as db:
            row = db.execute("SELECT round FROM opened WHERE sid = ?", (sid,)).fetchone()
            if row is None:
                raise GuardRefusedError("no round was opened under this sid")
            self._refuse_pruned(db, row[0])
            for member, kind in sorted(choices.items()):
                db.execute("INSERT OR IGNORE INTO release (sid, member, kind) VALUES (?, ?, ?)", (sid, member, kind))
                query = "SELECT kind FROM release WHERE sid = ? AND member = ?"
                if db.execute(query, (sid, member)).fetchone() != (kind,):
                    raise GuardRefusedError(f"the other seed of member {member} was released for this sid")

    def has_opened(self, run: bytes, round_: int) -> bytes | None:
        """See `Guard.has_opened`."""
        return self._one("SELECT sid FROM opened WHERE run = ? AND round = ?", (run, round_))

    def ballot(self, run: bytes, round_: int, view: int, kind: str, value: bytes) -> None:
        """See `Guard.ballot`."""
        with self._transaction() as db:
            self._refuse_pruned(db, round_)
            db.execute("INSERT OR IGNORE INTO ballot VALUES (?, ?, ?, ?, ?)", (run, round_, view, kind, value))
            query = "SELECT value FROM ballot WHERE run = ? AND round = ? AND view = ? AND kind = ?"
            if db.execute(query, (run, round_, view, kind)).fetchone() != (value,):
                raise GuardRefusedError(f"another {kind} was cast in round {round_}, view {view}")

    def save_lock(self, run: bytes, round_: int, blob: bytes) -> None:
        """See `Guard.save_lock`."""
        with self._transaction() as db:
            self._refuse_pruned(db, round_)
            db.execute("INSERT OR REPLACE INTO lock VALUES (?, ?, ?)", (run, round_, blob))

    def load_lock(self, run: bytes, round_: int) -> bytes | None:
        """See `Guard.load_lock`."""
        return self._one("SELECT blob FROM lock WHERE run = ? AND round = ?", (run, round_))

    def forsake(self, run: bytes, round_: int) -> None:
        """See `Guard.forsake`. Rounds that were opened before a restart, and later than `round_`, count as well."""
        with self._transaction() as db:
            (opened,) = db.execute("SELECT MAX(round) FROM opened WHERE run = ?", (run,)).fetchone()
            last = max(round_, opened or 0)
            update = "INSERT INTO forsaken VALUES (?, ?) ON CONFLICT DO UPDATE SET round = MAX(round, ?)"
            db.execute(update, (run, last, last))

    def forsaken(self, run: bytes) -> int:
        """See `Guard.forsaken`."""
        with self._lock:
            try:
                row = self._db.execute("SELECT round FROM forsaken WHERE run = ?", (run,)).fetchone()
            except sqlite3.Error as error:
                raise StorageError(f"the guard cannot be read: {error}") from error
        return 0 if row is None else int(row[0])

    def prune(self, before_round: int) -> None:
        """See `Guard.prune`. Which sid opened which round stays (70 bytes a round): it is what marks a sid as over."""
        with self._transaction() as db:
            for table in ("vote", "release"):
                query = f"DELETE FROM {table} WHERE sid IN (SELECT sid FROM opened WHERE round < ?)"
                db.execute(query, (before_round,))
            for table in ("ballot", "lock"):
                db.execute(f"DELETE FROM {table} WHERE round < ?", (before_round,))
            floor = "INSERT INTO pruned VALUES (0, ?) ON CONFLICT DO UPDATE SET before_round = MAX(before_round, ?)"
            db.execute(floor, (before_round, before_round))

    def _refuse_pruned(self, db: sqlite3.Connection, round_: int) -> None:
        row = db.execute("SELECT before_round FROM pruned").fetchone()
        if row is not None and round_ < row[0]:
            raise GuardRefusedError(f"round {round_} is over and its promises forgotten")

    def _one(self, query: str, arguments: tuple[object, ...]) -> bytes | None:
        with self._lock:
            try:
                row = self._db.execute(query, arguments).fetchone()
            except sqlite3.Error as error:
                raise StorageError(f"the guard cannot be read: {error}") from error
        return None if row is None else bytes(row[0])


class MemoryGuard(SqliteGuard):
    """A guard without a file, for the simulator: the object itself survives a simulated restart."""

    def __init__(self) -> None:
        super().__init__(":memory:")
