"""The index on disk: one SQLite file, a table per kind of event, each row bound to its block.

    block                  number, hash, parent, timestamp, status (latest, safe, finalized), anchor: has events
    checkpoint_proposed …  block, log_index, tx, contract, a column per argument; a struct's parts are `header_epoch` …
    meta                   what the file is an index of

A row goes when its block goes (`on delete cascade`), so that undoing a reorganisation is one statement. Addresses and
bytes are lower-case 0x text. Integers that may not fit SQLite's 64 bits are decimal text: sum them in Python.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from dht.errors import MurmurationError, StorageError
from ledger.chain.deployments import Deployment
from ledger.indexer.abi import Entry, Interface, Parameter, snake
from ledger.indexer.node import Block

KEPT_BLOCKS = 2000
"""Headers behind the newest that are kept though nothing happened in them."""
_VERSION = 1
_BLOCKS = """
create table meta (key text primary key, value text not null) without rowid;
create table block (
    number integer primary key, hash text not null unique, parent text not null, timestamp integer not null,
    anchor integer not null, status text not null check (status in ('latest', 'safe', 'finalized'))
);
"""
_STATUS = "case when number <= :finalized then 'finalized' when number <= :safe then 'safe' else 'latest' end"


@dataclass(frozen=True, slots=True)
class Happened:
    """One event of the chain: where it stands and what it says."""

    block: int
    log_index: int
    tx: str
    contract: str
    entry: Entry
    values: Mapping[str, Any]


class Index:
    """One deployment's index. Many may read it while one process writes."""

    def __init__(self, path: Path, deployment: Deployment, interface: Interface) -> None:
        """Open or create. A file of another layout is built anew; one of another deployment raises StorageError."""
        self.path, self.deployment = path, deployment
        self.tables = {entry.name: _columns(entry) for entry in interface.events.values()}
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(path, isolation_level=None, timeout=30)
            self.connection.row_factory = sqlite3.Row
            for pragma in ("journal_mode = wal", "synchronous = normal", "foreign_keys = on"):
                self.connection.execute(f"pragma {pragma}")
            try:
                self._prepare(interface)
            except BaseException:
                self.connection.close()
                raise

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    # -- writing -------------------------------------------------------------------------------------

    def write(self, ancestor: int, blocks: Sequence[Block], events: Iterable[Happened]) -> None:
        """In one transaction: forget all blocks after `ancestor`, add these (ascending) and what happened in them."""
        found = list(events)
        anchors = {event.block for event in found}
        rows = [(b.number, b.hash, b.parent, b.timestamp, b.number in anchors, "latest") for b in blocks]
        with self._transaction():
            self.connection.execute("delete from block where number > ?", (ancestor,))
            self.connection.executemany("insert into block values (?, ?, ?, ?, ?, ?)", rows)
            for event in found:
                row = [event.block, event.log_index, event.tx, event.contract, *_row(event.entry, event.values)]
                marks = ", ".join("?" * len(row))
                self.connection.execute(f"insert into {snake(event.entry.name)} values ({marks})", row)
            self.connection.execute(
                "delete from block where not anchor and number < (select max(number) from block) - ?", (KEPT_BLOCKS,)
            )

    def mark(self, safe: int | None, finalized: int | None) -> None:
        """Say up to which block rows are safe and finalized; None leaves what was said before."""
        before = json.loads(self._meta("marks") or "[-1, -1]")
        marks = [after if after is not None else old for after, old in zip((safe, finalized), before, strict=True)]
        with self._transaction():
            self._set_meta("marks", json.dumps(marks))
            self.connection.execute(
                f"update block set status = {_STATUS} where status is not {_STATUS}",
                {"safe": marks[0], "finalized": marks[1]},
            )

    # -- reading -------------------------------------------------------------------------------------

    def last(self) -> Block | None:
        """The newest block that was scanned."""
        row = self.connection.execute("select * from block order by number desc limit 1").fetchone()
        return None if row is None else _block(row)

    def blocks(self) -> list[Block]:
        """All blocks that are kept, oldest first."""
        return [_block(row) for row in self.connection.execute("select * from block order by number")]

    def events(self, name: str) -> list[dict[str, Any]]:
        """All events of a kind (`CheckpointProposed`) in the order of the chain, with `timestamp` and `status`.

        An empty list for a kind that these contracts do not have.
        """
        if name not in self.tables:
            return []
        query = (
            f"select t.*, b.timestamp, b.status from {snake(name)} t join block b on b.number = t.block "
            "order by t.block, t.log_index"
        )
        with self._errors():
            return [dict(row) for row in self.connection.execute(query)]

    def count(self) -> int:
        """Events in the index."""
        tables = (snake(name) for name in self.tables)
        return sum(int(self.connection.execute(f"select count(*) from {table}").fetchone()[0]) for table in tables)

    # -- layout --------------------------------------------------------------------------------------

    def _prepare(self, interface: Interface) -> None:
        events = [[entry.signature, self.tables[entry.name]] for entry in interface.events.values()]
        layout = sha256(json.dumps([_VERSION, _BLOCKS, events]).encode()).hexdigest()
        about = {
            "chain_id": self.deployment.chain_id,
            "contracts": sorted((name, address.lower()) for name, address in self.deployment.contracts.items()),
        }
        of = json.dumps(about, sort_keys=True)
        if self._exists():
            if self._meta("of") not in (None, of):
                raise StorageError(
                    f"{self.path} is the index of another deployment", remedy="give --index another file, or remove it"
                )
            if self._meta("layout") == layout:
                return
        with self._transaction():
            for (table,) in self.connection.execute("select name from sqlite_master where type = 'table'").fetchall():
                self.connection.execute(f'drop table if exists "{table}"')
            for statement in filter(None, map(str.strip, _BLOCKS.split(";"))):
                self.connection.execute(statement)
            for name, columns in self.tables.items():
                self.connection.execute(_table(name, columns))
            self._set_meta("of", of)
            self._set_meta("layout", layout)

    def _exists(self) -> bool:
        query = "select count(*) from sqlite_master where type = 'table' and name = 'meta'"
        return bool(self.connection.execute(query).fetchone()[0])

    def _meta(self, key: str) -> str | None:
        row = self.connection.execute("select value from meta where key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def _set_meta(self, key: str, value: str) -> None:
        self.connection.execute("insert or replace into meta values (?, ?)", (key, value))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self.connection.execute("begin immediate")
            try:
                yield
            except BaseException:
                self.connection.execute("rollback")
                raise
            self.connection.execute("commit")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except MurmurationError:
            raise
        except (sqlite3.DatabaseError, OSError) as error:
            remedy = "free disk space, close other writers, or remove the file: it can be built anew from the chain"
            raise StorageError(f"the index {self.path}: {error}", remedy=remedy) from error


def _columns(entry: Entry) -> list[tuple[str, str]]:
    """Names and SQLite types of an event's arguments."""
    return [column for parameter in entry.inputs for column in _flat(parameter, snake(parameter.name))]


def _flat(parameter: Parameter, name: str) -> list[tuple[str, str]]:
    if parameter.parts and not parameter.type.endswith("]"):
        return [column for part in parameter.parts for column in _flat(part, f"{name}_{snake(part.name)}")]
    small = parameter.type == "bool" or (parameter.type.startswith("uint") and _bits(parameter.type) < 64)
    # No declared type where text and integers mix: SQLite would turn a large number into a rounded one.
    return [(name, "integer" if small else "" if parameter.type == "uint64" else "text")]


def _row(entry: Entry, values: Mapping[str, Any]) -> Iterator[Any]:
    for parameter in entry.inputs:
        yield from _cells(parameter, values[parameter.name])


def _cells(parameter: Parameter, value: Any) -> Iterator[Any]:
    if parameter.type.endswith("]"):
        yield json.dumps(value, default=lambda item: f"0x{item.hex()}")
    elif parameter.parts:
        for part in parameter.parts:
            yield from _cells(part, value[part.name])
    elif isinstance(value, bytes):
        yield f"0x{value.hex()}"
    elif isinstance(value, int) and parameter.type.startswith(("uint", "int")):
        yield value if _bits(parameter.type) <= 64 and abs(value) < 1 << 63 else str(value)
    else:
        yield value


def _bits(kind: str) -> int:
    digits = kind.removeprefix("u").removeprefix("int")
    return int(digits) if digits.isdecimal() else 256


def _table(name: str, columns: Sequence[tuple[str, str]]) -> str:
    fields = "".join(f', "{column}" {kind}' for column, kind in columns)
    return (
        f"create table {snake(name)} (block integer not null references block (number) on delete cascade, "
        f"log_index integer not null, tx text not null, contract text not null{fields}, primary key (block, log_index))"
    )


def _block(row: sqlite3.Row) -> Block:
    return Block(row["number"], row["hash"], row["parent"], row["timestamp"])
