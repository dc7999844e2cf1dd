"""One checkpoint for each place, whatever happens to the process: a restart cannot make an attestor slash itself."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Barrier

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from dht.errors import ProtocolError, Refusal, StorageError
from ledger.attestor_guard import AlreadySignedError, SqliteAttestorGuard
from ledger.checkpoint import Rollback
from tests.ledger.headers import DOMAIN, OTHER_DOMAIN, RUN, header


@pytest.fixture
def guards(tmp_path):
    """`guards()` gives the guard as a restarted attestor would find it."""
    opened = []

    def restart():
        if opened:
            opened[-1].close()
        opened.append(SqliteAttestorGuard(tmp_path / "attestor.sqlite"))
        return opened[-1]

    yield restart
    opened[-1].close()


def test_one_checkpoint_for_each_place(guards):
    assert guards().promised(DOMAIN, RUN, 0, 1) is None
    digest = guards().promise(DOMAIN, header())
    assert digest == header().digest(DOMAIN) == guards().promise(DOMAIN, header())
    with pytest.raises(AlreadySignedError) as refused:
        guards().promise(DOMAIN, header(root=b"x" * 32))
    assert isinstance(refused.value, ProtocolError) and refused.value.refusal is Refusal.EQUIVOCATION
    assert refused.value.remedy
    assert guards().promised(DOMAIN, RUN, 0, 1) == header()


def test_other_places_are_free(guards):
    guards().promise(DOMAIN, header())
    other = b"x" * 32
    guards().promise(DOMAIN, header(epoch=2, root=other))
    guards().promise(DOMAIN, header(fork_nonce=1, root=other))
    guards().promise(DOMAIN, header(run=other, root=other))
    guards().promise(OTHER_DOMAIN, header(root=other))
    guards().promise(DOMAIN, header(epoch=2**64 - 1, fork_nonce=2**64 - 1))


def test_rollbacks_are_remembered_and_forbid_nothing(guards):
    assert guards().rollbacks(DOMAIN, RUN, 0) == set()
    for epoch in (3, 2, 2**64 - 1, 2):
        rollback = Rollback(RUN, 0, epoch)
        assert guards().promise_rollback(DOMAIN, rollback) == rollback.digest(DOMAIN)
    guards().promise(DOMAIN, header(epoch=3))
    assert guards().rollbacks(DOMAIN, RUN, 0) == {2, 3, 2**64 - 1}
    assert guards().rollbacks(DOMAIN, RUN, 1) == guards().rollbacks(OTHER_DOMAIN, RUN, 0) == set()
    assert guards().rollbacks(DOMAIN, b"x" * 32, 0) == set()


def test_a_rollback_that_is_not_on_disk_is_not_promised(guards):
    guard = guards()
    guard._db.execute("PRAGMA query_only = 1")
    with pytest.raises(StorageError):
        guard.promise_rollback(DOMAIN, Rollback(RUN, 0, 1))
    guard._db.execute("PRAGMA query_only = 0")
    assert guard.rollbacks(DOMAIN, RUN, 0) == set()


def test_a_guard_from_before_there_were_rollbacks_takes_them(tmp_path):
    path = tmp_path / "attestor.sqlite"
    with closing(SqliteAttestorGuard(path)) as guard:
        guard.promise(DOMAIN, header())
        guard._db.execute("DROP TABLE rollback")
    with closing(SqliteAttestorGuard(path)) as guard:
        guard.promise_rollback(DOMAIN, Rollback(RUN, 0, 1))
        assert guard.promised(DOMAIN, RUN, 0, 1) == header()


def test_of_many_threads_one_passes(guards):
    guard, threads = guards(), 8
    barrier = Barrier(threads)

    def attempt(number):
        barrier.wait(timeout=30)
        try:
            return guard.promise(DOMAIN, header(root=bytes([number % 3]) * 32))
        except AlreadySignedError:
            return None

    with ThreadPoolExecutor(threads) as pool:
        assert len({digest for digest in pool.map(attempt, range(threads)) if digest}) == 1


SCRIPT = """
import os, signal, sys
from ledger.attestor_guard import AlreadySignedError, SqliteAttestorGuard
from tests.ledger.headers import DOMAIN, header
path, root, count, then = sys.argv[1], bytes([int(sys.argv[2])]) * 32, int(sys.argv[3]), sys.argv[4]
guard = SqliteAttestorGuard(path)
print("ready", flush=True)
sys.stdin.readline()
for epoch in range(1, count + 1):
    try:
        guard.promise(DOMAIN, header(epoch, root=root))
        print(epoch, flush=True)
    except AlreadySignedError:
        pass
if then == "die":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def process(path, root, count, then="end"):
    arguments = [sys.executable, "-c", SCRIPT, str(path), str(root), str(count), then]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_of_two_processes_with_one_folder_one_passes(tmp_path):
    path = tmp_path / "attestor.sqlite"
    both = [process(path, root, 60) for root in (1, 2)]
    for each in both:
        assert each.stdout.readline() == "ready\n"
    for each in both:
        each.stdin.write("go\n")
        each.stdin.flush()
    passed = [list(map(int, each.communicate(timeout=60)[0].split())) for each in both]
    assert [each.returncode for each in both] == [0, 0]
    assert sorted(passed[0] + passed[1]) == list(range(1, 61))


def test_what_was_promised_survives_sigkill(tmp_path):
    path = tmp_path / "attestor.sqlite"
    dying = process(path, 1, 5, "die")
    said = list(map(int, dying.communicate("go\n", timeout=60)[0].split()[1:]))
    assert dying.returncode == -signal.SIGKILL and said == [1, 2, 3, 4, 5]
    guard = SqliteAttestorGuard(path)
    for epoch in said:
        with pytest.raises(AlreadySignedError):
            guard.promise(DOMAIN, header(epoch, root=b"\2" * 32))
        guard.promise(DOMAIN, header(epoch, root=b"\1" * 32))
    guard.close()


def test_killed_at_any_moment_it_contradicts_nothing_that_it_said(tmp_path):
    """Whatever left the process before it was killed is still refused in another form."""
    path = tmp_path / "attestor.sqlite"
    dying = process(path, 1, 100_000)
    assert dying.stdout.readline() == "ready\n"
    dying.stdin.write("go\n")
    dying.stdin.flush()
    said = [int(dying.stdout.readline()) for _ in range(20)]
    dying.send_signal(signal.SIGKILL)
    said += map(int, dying.communicate(timeout=60)[0].split())
    assert dying.returncode == -signal.SIGKILL and 20 <= len(said) < 100_000
    guard = SqliteAttestorGuard(path)
    for epoch in said:
        with pytest.raises(AlreadySignedError):
            guard.promise(DOMAIN, header(epoch, root=b"\2" * 32))
    guard.close()


def test_commits_wait_for_the_disk(guards):
    assert guards()._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_full_disk_signs_nothing(guards):
    guard = guards()
    guard.promise(DOMAIN, header())
    (pages,) = guard._db.execute("PRAGMA page_count").fetchone()
    guard._db.execute(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for epoch in range(2, 100):
            guard.promise(DOMAIN, header(epoch))

    with pytest.raises(StorageError, match="full") as failed:
        fill()
    assert failed.value.remedy
    guard._db.execute("PRAGMA max_page_count = 1000000")
    refused = next(epoch for epoch in range(2, 100) if guard.promised(DOMAIN, RUN, 0, epoch) is None)
    guard.promise(DOMAIN, header(refused, root=b"x" * 32))  # nothing was promised there


def test_a_guard_that_cannot_be_opened_says_so(tmp_path):
    with pytest.raises(StorageError) as failed:
        SqliteAttestorGuard(tmp_path / "missing" / "attestor.sqlite")
    assert failed.value.remedy
    (tmp_path / "text").write_text("this is not a database, and long enough to be taken for one\n" * 100)
    with pytest.raises(StorageError):
        SqliteAttestorGuard(tmp_path / "text")


def test_a_closed_guard_promises_nothing(tmp_path):
    guard = SqliteAttestorGuard(tmp_path / "attestor.sqlite")
    guard.close()
    with pytest.raises(StorageError):
        guard.promise(DOMAIN, header())
    with pytest.raises(StorageError):
        guard.promised(DOMAIN, RUN, 0, 1)


def test_an_interrupted_promise_leaves_no_transaction_open(guards, monkeypatch):
    guard = guards()

    def interrupted(place, digest, encoded):
        assert guard._db.in_transaction
        raise KeyboardInterrupt

    monkeypatch.setattr(guard, "_keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        guard.promise(DOMAIN, header())
    monkeypatch.undo()
    assert not guard._db.in_transaction
    guard.promise(DOMAIN, header(root=b"x" * 32))


class OnePlaceOneHeader(RuleBasedStateMachine):
    """Any order of calls and restarts: what was ever granted never contradicts itself."""

    def __init__(self):
        super().__init__()
        self.path = f"file:guard{id(self)}?mode=memory&cache=shared"
        self.keeper = sqlite3.connect(self.path, uri=True)
        self.guard = self.fresh()
        self.granted = {}

    def fresh(self):
        guard = SqliteAttestorGuard(":memory:")
        guard._db.close()
        guard._db = sqlite3.connect(self.path, uri=True, isolation_level=None, check_same_thread=False)
        from ledger.attestor_guard import _SCHEMA

        guard._db.executescript(_SCHEMA)
        return guard

    @rule()
    def restart(self):
        self.guard.close()
        self.guard = self.fresh()

    @rule(epoch=st.integers(1, 3), nonce=st.integers(0, 2), root=st.sampled_from([b"a" * 32, b"b" * 32]))
    def promise(self, epoch, nonce, root):
        try:
            digest = self.guard.promise(DOMAIN, header(epoch, nonce, root))
        except AlreadySignedError:
            assert self.granted[epoch, nonce] != header(epoch, nonce, root).digest(DOMAIN)
        else:
            assert self.granted.setdefault((epoch, nonce), digest) == digest

    def teardown(self):
        self.guard.close()
        self.keeper.close()


TestOnePlaceOneHeader = OnePlaceOneHeader.TestCase
TestOnePlaceOneHeader.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
