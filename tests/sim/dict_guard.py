"""The guard's rules in dictionaries: what `SqliteGuard` keeps, without a database for each of a thousand peers.

It passes the same contract tests (`tests/averaging/test_guard.py`). The object survives a simulated restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock

from averaging.guard import GuardRefusedError, Kind


class DictGuard:
    """See `averaging.guard.Guard`. Threads may share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._before = 0
        self._votes: dict[bytes, bytes] = {}
        self._opened: dict[tuple[bytes, int], bytes] = {}
        self._round_of: dict[bytes, int] = {}
        self._released: dict[bytes, dict[int, Kind]] = {}
        self._ballots: dict[int, dict[tuple[bytes, int, str], bytes]] = {}
        self._locks: dict[tuple[bytes, int], bytes] = {}
        self._forsaken: dict[bytes, int] = {}

    def vote(self, sid: bytes, digest: bytes) -> None:
        """See `Guard.vote`."""
        with self._lock:
            self._refuse_pruned(self._round_of.get(sid, self._before))
            if self._votes.setdefault(sid, digest) != digest:
                raise GuardRefusedError("another survivor set was signed for this sid")

    def open_round(self, run: bytes, round_: int, sid: bytes) -> None:
        """See `Guard.open_round`."""
        with self._lock:
            self._refuse_pruned(round_)
            if self._opened.get((run, round_), sid) != sid or self._round_of.get(sid, round_) != round_:
                raise GuardRefusedError(f"round {round_} was opened under another sid")
            self._opened[run, round_], self._round_of[sid] = sid, round_

    def release(self, sid: bytes, choices: Mapping[int, Kind]) -> None:
        """See `Guard.release`."""
        if not set(choices.values()) <= {"a", "b"}:
            raise ValueError("a share is of kind 'a' or 'b'")
        with self._lock:
            if sid not in self._round_of:
                raise GuardRefusedError("no round was opened under this sid")
            self._refuse_pruned(self._round_of[sid])
            kept = self._released.get(sid, {})
            if any(kept.get(member, kind) != kind for member, kind in choices.items()):
                raise GuardRefusedError("the other seed of a member was released for this sid")
            self._released[sid] = {**kept, **choices}

    def has_opened(self, run: bytes, round_: int) -> bytes | None:
        """See `Guard.has_opened`."""
        return self._opened.get((run, round_))

    def ballot(self, run: bytes, round_: int, view: int, kind: str, value: bytes) -> None:
        """See `Guard.ballot`."""
        with self._lock:
            self._refuse_pruned(round_)
            if self._ballots.setdefault(round_, {}).setdefault((run, view, kind), value) != value:
                raise GuardRefusedError(f"another {kind} was cast in round {round_}, view {view}")

    def save_lock(self, run: bytes, round_: int, blob: bytes) -> None:
        """See `Guard.save_lock`."""
        with self._lock:
            self._refuse_pruned(round_)
            self._locks[run, round_] = blob

    def load_lock(self, run: bytes, round_: int) -> bytes | None:
        """See `Guard.load_lock`."""
        return self._locks.get((run, round_))

    def forsake(self, run: bytes, round_: int) -> None:
        """See `Guard.forsake`."""
        with self._lock:
            opened = max((opened for of, opened in self._opened if of == run), default=0)
            self._forsaken[run] = max(self._forsaken.get(run, 0), round_, opened)

    def forsaken(self, run: bytes) -> int:
        """See `Guard.forsaken`."""
        return self._forsaken.get(run, 0)

    def prune(self, before_round: int) -> None:
        """See `Guard.prune`."""
        with self._lock:
            self._before = max(self._before, before_round)
            over = {sid for sid, round_ in self._round_of.items() if round_ < before_round}
            self._votes = {sid: vote for sid, vote in self._votes.items() if sid not in over}
            self._released = {sid: kinds for sid, kinds in self._released.items() if sid not in over}
            self._ballots = {round_: cast for round_, cast in self._ballots.items() if round_ >= before_round}
            self._locks = {key: blob for key, blob in self._locks.items() if key[1] >= before_round}

    def counts(self) -> list[int]:
        """Rows kept of opened sids, votes, releases, ballots and locks."""
        released = sum(len(kinds) for kinds in self._released.values())
        ballots = sum(len(cast) for cast in self._ballots.values())
        return [len(self._opened), len(self._votes), released, ballots, len(self._locks)]

    def _refuse_pruned(self, round_: int) -> None:
        if round_ < self._before:
            raise GuardRefusedError(f"round {round_} is over and its promises forgotten")
