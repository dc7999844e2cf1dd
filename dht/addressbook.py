"""Addresses that once answered, on disk, so that a restart needs no bootstrap server.

Also the patient way in: dial the bootstrap addresses and the remembered ones, say per address why it failed,
and try again with growing, jittered pauses.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dht.addresses import AddressError, parse
from dht.clock import Clock
from dht.dial import Dial, Verdict
from dht.errors import StorageError, UnreachableError
from dht.identity import PeerId

CAPACITY = 256
ADDRESSES_PER_PEER = 8
_VERSION = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one peer answered last, at Unix time `seen`."""

    peer: PeerId
    addresses: tuple[str, ...]
    seen: float


class AddressBook:
    """At most `capacity` peers, the newest first, in one JSON file that is replaced as a whole.

    A damaged file is kept aside as `<name>.damaged` with a warning, and the book starts empty.
    """

    def __init__(self, path: Path, clock: Clock, *, capacity: int = CAPACITY) -> None:
        self._path, self._clock, self._capacity = path, clock, capacity
        self._entries = {entry.peer: entry for entry in self._load()}

    def entries(self) -> tuple[Entry, ...]:
        """All entries, the newest first."""
        return tuple(sorted(self._entries.values(), key=lambda entry: (-entry.seen, entry.peer)))

    def addresses(self) -> tuple[str, ...]:
        """All addresses, those of the newest peer first."""
        return tuple(address for entry in self.entries() for address in entry.addresses)

    def remember(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Note that `peer` answers at `addresses` now; addresses that name another peer are left out."""
        good = tuple(address for address in dict.fromkeys(addresses) if _names(address, peer))[:ADDRESSES_PER_PEER]
        if not good:
            return
        self._entries[peer] = Entry(peer, good, self._clock.wall())
        if len(self._entries) > self._capacity:
            del self._entries[self.entries()[-1].peer]

    def save(self) -> None:
        """Write the book, atomically. Raises StorageError; the old file stays then."""
        rows = [{"peer": str(e.peer), "addresses": list(e.addresses), "seen": e.seen} for e in self.entries()]
        temporary = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("w") as file:
                json.dump({"version": _VERSION, "peers": rows}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}", remedy="free space") from None

    def _load(self) -> list[Entry]:
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            return self._set_aside(error)
        try:
            return [_entry(row) for row in json.loads(text)["peers"][: self._capacity]]
        except Exception as error:  # whatever somebody's editor made of it
            return self._set_aside(error)

    def _set_aside(self, error: Exception) -> list[Entry]:
        aside = self._path.with_suffix(self._path.suffix + ".damaged")
        _log.warning("the address book %s is damaged (%s); kept as %s, starting empty", self._path, error, aside.name)
        try:
            self._path.replace(aside)
        except OSError as failure:
            _log.warning("cannot move it: %s", failure.strerror)
        return []


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between attempts: `first` seconds, doubling to `longest`, each shortened by up to half at random."""

    first: float = 1.0
    longest: float = 60.0

    def pause(self, attempt: int, dice: random.Random) -> float:
        """Seconds to wait after attempt number `attempt` (from 0) failed."""
        whole = min(self.longest, self.first * 2.0 ** min(attempt, 32))
        return whole * (0.5 + dice.random() / 2)


async def find_a_way_in(
    dial: Callable[[str], Awaitable[Dial]],
    bootstrap: Sequence[str],
    book: AddressBook,
    *,
    attempts: int | None = None,
    backoff: Backoff | None = None,
    dice: random.Random | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    say: Callable[[str], None] = _log.warning,
) -> tuple[Dial, ...]:
    """Dial all bootstrap addresses and the book's newest until one answers; returns those that did.

    Each failure is told to `say` with its reason, once per change. Goes on forever unless `attempts` are given;
    then raises UnreachableError that names each address and verdict. With no address at all, raises at once.
    """
    backoff, dice = backoff or Backoff(), dice or random.Random()
    told: dict[str, Verdict] = {}
    attempt = 0
    while True:
        places = tuple(dict.fromkeys((*bootstrap, *book.addresses()[:32])))
        if not places:
            raise UnreachableError("no address to start from", remedy="give --bootstrap with a running peer's address")
        results = await asyncio.gather(*(dial(place) for place in places))
        good = tuple(result for result in results if result.verdict is Verdict.OK)
        for result in results:
            if result.verdict is not Verdict.OK and told.get(result.address) is not result.verdict:
                say(str(result))
            told[result.address] = result.verdict
        if good:
            _note(book, good)
            return good
        attempt += 1
        if attempts is not None and attempt >= attempts:
            reasons = "; ".join(str(result) for result in results)
            raise UnreachableError(f"nobody answers: {reasons}", remedy="check that the bootstrap peer runs")
        pause = backoff.pause(attempt - 1, dice)
        say(f"nobody answers yet; next attempt in {pause:.0f} s")
        await sleep(pause)


def _note(book: AddressBook, good: Sequence[Dial]) -> None:
    found: dict[PeerId, list[str]] = {}
    for result in good:
        if result.peer is not None:
            found.setdefault(result.peer, []).append(result.address)
    for peer, addresses in found.items():
        book.remember(peer, addresses)


def _entry(row: dict[str, Any]) -> Entry:
    peer = PeerId.parse(row["peer"])
    addresses = tuple(row["addresses"])[:ADDRESSES_PER_PEER]
    if not all(_names(address, peer) for address in addresses):
        raise ValueError("an address of another peer")
    return Entry(peer, addresses, float(row["seen"]))


def _names(address: str, peer: PeerId) -> bool:
    try:
        return parse(address).peer == peer
    except AddressError:
        return False
