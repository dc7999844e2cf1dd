"""A disk that fills up under one of four peers, at one write after another: it leaves, and has promised nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from averaging.ballots import KIND_NAMES, Ballot
from averaging.messages import Attest, Unmask, Vote
from dht.errors import StorageError
from peer import node as nodes
from peer import prepared as prepared_sums
from peer import store as stores
from peer.durable import write_file
from tests.peer.swarm_in_process import Network, identity, tiny_manifest
from tests.peer.test_node import House, Street

VICTIM = 2
ME = identity(VICTIM).peer_id
PHASES = ("shares", "train", "upload", "survivors", "unmask", "sums", "commit")
Fired = list[tuple[Any, ...]]
Fill = Callable[[House, pytest.MonkeyPatch, Fired], None]


class FullDatabase:
    """A guard's connection on a disk that has no room for promises of one kind: their commit fails as SQLite's does."""

    def __init__(self, connection: sqlite3.Connection, table: str, fired: Fired) -> None:
        self._connection, self._insert, self._fired = connection, f"INSERT OR IGNORE INTO {table} ", fired
        self._row: tuple[Any, ...] | None = None

    def execute(self, query: str, row: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Run a statement, unless it commits what there is no room for."""
        if query == "COMMIT" and self._row is not None:
            self._fired.append(self._row)
            self._row = None
            raise sqlite3.OperationalError("database or disk is full")
        cursor = self._connection.execute(query, row)
        if query.startswith(self._insert) and cursor.rowcount > 0:  # a promise that is there already needs no room
            self._row = row
        return cursor

    def close(self) -> None:
        self._connection.close()


def full_guard(table: str) -> Fill:
    """No room in the guard for promises of this table."""

    def fill(house: House, patch: pytest.MonkeyPatch, fired: Fired) -> None:
        guard: Any = house.nodes[VICTIM]._guard
        guard._db = FullDatabase(guard._db, table, fired)

    return fill


def full_file(module: Any, name: str) -> Fill:
    """No room for a file: half of its first part is written, and then nothing more."""

    def fill(house: House, patch: pytest.MonkeyPatch, fired: Fired) -> None:
        home = house.folder / str(VICTIM)

        def write(path: Path, parts: Iterable[bytes | memoryview]) -> int:
            if path.name != name or home not in path.parents:
                return write_file(path, parts)
            first = bytes(next(iter(parts)))
            write_file(path, [first[: len(first) // 2]])
            fired.append((first,))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(module, "write_file", write)

    return fill


Said = Callable[[Network, tuple[Any, ...]], list[Any]]


def of_the_sid(kind: type) -> Said:
    """What the victim has sent of a kind under the sid of the promise."""
    return lambda network, row: [message for message in network.messages(ME, kind) if message.sid == row[0]]


def ballots(network: Network, row: tuple[Any, ...]) -> list[Any]:
    """The ballots it sent in the round and view of the one that could not be written down, as to the same kind."""
    _, round_, view, kind, _ = row
    if kind not in KIND_NAMES:
        return []  # another promise that is kept in the same table
    sent = network.messages(ME, Ballot)
    return [b for b in sent if (b.round, b.view, KIND_NAMES[b.kind]) == (round_, view, kind)]


def attestations(network: Network, row: tuple[Any, ...]) -> list[Any]:
    """What it attested in the round whose sums could not be written."""
    round_ = msgpack.unpackb(row[0][4:])["round"]
    return [attest for attest in network.messages(ME, Attest) if attest.round == round_]


def nothing(network: Network, row: tuple[Any, ...]) -> list[Any]:
    """No message hangs on this file."""
    return []


DISKS: dict[str, tuple[Fill, Said, str]] = {
    # what is full: how, what must not be said then, what the error says
    "guard, the survivor set": (full_guard("vote"), of_the_sid(Vote), "disk is full"),
    "guard, shares": (full_guard("release"), of_the_sid(Unmask), "disk is full"),
    "guard, ballots": (full_guard("ballot"), ballots, "disk is full"),
    "sums": (full_file(prepared_sums, "prepared.partial"), attestations, "No space left"),
    "state": (full_file(stores, "state.bin"), nothing, "No space left"),
    "leaves": (full_file(stores, "leaves.bin"), nothing, "No space left"),
}


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    street = Street()
    monkeypatch.setattr(nodes, "Discovery", SimpleNamespace(start=street.start))
    monkeypatch.setattr(nodes, "_SEARCH_SOON", 0.01)
    monkeypatch.setattr(nodes, "_LINGER", 0.5)
    house = House(tmp_path, tiny_manifest(4, dict.fromkeys(PHASES, 2.0)), street)  # one of four may be missing
    yield house
    await house.close()


def survived(house: House, reporter: int, after: int) -> list[int]:
    """Rounds later than `after` that a peer has reported and the victim survived."""
    reports = house.named(reporter, "round")
    return [report["round"] for report in reports if report["round"] > after and str(ME) in report["survivors"]]


@pytest.mark.parametrize("what", DISKS)
async def test_it_leaves_promises_nothing_and_comes_back(
    house: House, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    fill, said, words = DISKS[what]
    for index in range(4):
        house.start(index)
    await house.until(lambda: all(survived(house, index, 0) for index in range(4)))

    fired: Fired = []
    with monkeypatch.context() as patch:
        fill(house, patch, fired)
        life, network = house.running[VICTIM], house.street.network
        with pytest.raises(StorageError, match=words) as ended:
            await asyncio.wait_for(life, 60)
    assert fired
    assert (ended.value.exit_code, ended.value.code) == (74, "MUR-500")
    assert ended.value.remedy
    assert said(network, fired[0]) == [], "it was said though it could not be written down"

    # What is on disk is a certified state, to the last hash, and no older than the last one reported.
    reported = max(report["round"] for report in house.named(VICTIM, "round"))
    again = house.make(VICTIM)
    found = again._learner.store.load_newest()
    assert found is not None
    assert found.round >= reported
    chain = again._participant.chain
    assert chain is not None
    assert chain.state_root(found.round) == found.root

    # And it goes on from there, once there is room.
    house.start(VICTIM)
    await house.until(lambda: bool(survived(house, VICTIM, reported)))
    roots: dict[int, set[str]] = {}
    for index in range(4):
        for report in house.named(index, "round"):
            roots.setdefault(report["round"], set()).add(report["root"])
    assert all(len(found) == 1 for found in roots.values()), roots
