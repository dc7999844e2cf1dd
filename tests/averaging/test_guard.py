import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from averaging.guard import GuardRefusedError, MemoryGuard, SqliteGuard
from dht.errors import ProtocolError, Refusal, StorageError
from tests.sim.dict_guard import DictGuard

RUN, SID, OTHER = b"r" * 32, b"s" * 32, b"o" * 32


@pytest.fixture(params=["memory", "sqlite", "dict"])
def guards(request, tmp_path):
    """`guards()` gives the guard, each time as a restarted peer would find it."""
    opened = []

    def restart():
        if request.param != "sqlite":
            if not opened:
                opened.append(MemoryGuard() if request.param == "memory" else DictGuard())
        else:
            if opened:
                opened[-1].close()
            opened.append(SqliteGuard(tmp_path / "guard.sqlite"))
        return opened[-1]

    yield restart
    if request.param != "dict":
        opened[-1].close()


def test_one_survivor_set_per_sid(guards):
    guards().vote(SID, b"U1")
    guards().vote(SID, b"U1")
    with pytest.raises(GuardRefusedError) as refused:
        guards().vote(SID, b"U2")
    assert isinstance(refused.value, ProtocolError) and refused.value.refusal is Refusal.EQUIVOCATION
    guards().vote(OTHER, b"U2")


def test_one_opened_sid_per_round(guards):
    assert guards().has_opened(RUN, 7) is None
    guards().open_round(RUN, 7, SID)
    guards().open_round(RUN, 7, SID)
    assert guards().has_opened(RUN, 7) == SID
    with pytest.raises(GuardRefusedError):
        guards().open_round(RUN, 7, OTHER)
    assert guards().has_opened(RUN, 7) == SID
    with pytest.raises(GuardRefusedError):
        guards().release(OTHER, {0: "a"})
    guards().open_round(RUN, 8, OTHER)
    guards().open_round(b"x" * 32, 7, b"y" * 32)


def test_a_sid_belongs_to_one_round(guards):
    guards().open_round(RUN, 7, SID)
    with pytest.raises(GuardRefusedError):
        guards().open_round(RUN, 8, SID)
    assert guards().has_opened(RUN, 8) is None


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("b", "a")])
def test_never_both_seeds_of_a_member(guards, first, second):
    guards().open_round(RUN, 7, SID)
    guards().release(SID, {3: first})
    guards().release(SID, {3: first})
    with pytest.raises(GuardRefusedError):
        guards().release(SID, {3: second})
    guards().release(SID, {3: first, 4: second})
    guards().open_round(RUN, 8, OTHER)
    guards().release(OTHER, {3: second})


def test_a_release_is_all_or_nothing(guards):
    guards().open_round(RUN, 7, SID)
    guards().release(SID, {2: "a"})
    with pytest.raises(GuardRefusedError):
        guards().release(SID, {0: "b", 1: "b", 2: "b"})
    guards().release(SID, {0: "a", 1: "a", 2: "a"})  # nothing of the refused one was kept


def test_nothing_is_released_before_the_round_is_opened(guards):
    guards().vote(SID, b"U")
    with pytest.raises(GuardRefusedError):
        guards().release(SID, {0: "b"})
    guards().open_round(RUN, 7, SID)
    guards().release(SID, {0: "a"})


def test_a_share_has_one_of_two_kinds(guards):
    guards().open_round(RUN, 7, SID)
    with pytest.raises(ValueError):
        guards().release(SID, {0: "c"})


def test_one_ballot_per_view_and_kind(guards):
    guards().ballot(RUN, 7, 0, "prevote", b"v")
    guards().ballot(RUN, 7, 0, "prevote", b"v")
    with pytest.raises(GuardRefusedError):
        guards().ballot(RUN, 7, 0, "prevote", b"w")
    for run, round_, view, kind in (
        (RUN, 7, 0, "precommit"),
        (RUN, 7, 1, "prevote"),
        (RUN, 8, 0, "prevote"),
        (b"x" * 32, 7, 0, "prevote"),
    ):
        guards().ballot(run, round_, view, kind, b"w")


def test_the_lock_is_the_last_one_saved(guards):
    assert guards().load_lock(RUN, 7) is None
    guards().save_lock(RUN, 7, b"one")
    guards().save_lock(RUN, 7, b"two")
    guards().save_lock(RUN, 8, b"other")
    assert guards().load_lock(RUN, 7) == b"two"


def test_what_was_left_with_a_branch_stays_left(guards):
    assert guards().forsaken(RUN) == 0
    guards().forsake(RUN, 7)
    assert guards().forsaken(RUN) == 7
    guards().forsake(RUN, 5)
    assert guards().forsaken(RUN) == 7
    guards().open_round(RUN, 9, SID)  # before a restart, say
    guards().forsake(RUN, 8)
    assert guards().forsaken(RUN) == 9
    assert guards().forsaken(b"x" * 32) == 0
    guards().prune(20)
    assert guards().forsaken(RUN) == 9


def test_what_is_pruned_is_refused_not_forgiven(guards):
    for round_ in range(5):
        sid = bytes([round_]) * 32
        guards().vote(sid, b"U")
        guards().open_round(RUN, round_, sid)
        guards().release(sid, {0: "a"})
        guards().ballot(RUN, round_, 0, "prevote", b"v")
        guards().save_lock(RUN, round_, b"lock")
    guards().prune(3)
    guards().prune(2)  # never back
    assert guards().load_lock(RUN, 2) is None
    for promise in (
        lambda: guards().open_round(RUN, 2, OTHER),
        lambda: guards().vote(b"\2" * 32, b"U2"),
        lambda: guards().release(b"\2" * 32, {0: "b"}),
        lambda: guards().open_round(RUN, 9, b"\2" * 32),
        lambda: guards().ballot(RUN, 2, 0, "prevote", b"w"),
        lambda: guards().save_lock(RUN, 2, b"x"),
        lambda: guards().vote(b"\3" * 32, b"U2"),
        lambda: guards().release(b"\3" * 32, {0: "b"}),
    ):
        with pytest.raises(GuardRefusedError):
            promise()
    assert guards().has_opened(RUN, 3) == b"\3" * 32
    assert guards().load_lock(RUN, 4) == b"lock"


def test_pruning_keeps_one_row_a_round(guards):
    for round_ in range(4):
        guards().ballot(RUN, round_, 0, "prevote", b"v")
        guards().save_lock(RUN, round_, b"lock")
        guards().vote(bytes([round_]) * 32, b"U")
        guards().open_round(RUN, round_, bytes([round_]) * 32)
        guards().release(bytes([round_]) * 32, {0: "a", 1: "b"})
    guard = guards()
    guard.prune(3)
    tables = ("opened", "vote", "release", "ballot", "lock")
    if isinstance(guard, DictGuard):
        counts = guard.counts()
    else:
        counts = [guard._db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in tables]
    assert counts == [4, 1, 2, 1, 1]


def test_of_many_threads_one_passes(guards):
    guard, threads = guards(), 8
    guard.open_round(RUN, 7, SID)
    barrier = Barrier(threads)

    def attempt(number):
        barrier.wait(timeout=30)
        try:
            guard.release(SID, {0: "ab"[number % 2]})
        except GuardRefusedError:
            return None
        return "ab"[number % 2]

    with ThreadPoolExecutor(threads) as pool:
        passed = {kind for kind in pool.map(attempt, range(threads)) if kind}
    assert len(passed) == 1


RACE = """
import sys
from averaging.guard import GuardRefusedError, SqliteGuard
path, kind = sys.argv[1:]
guard = SqliteGuard(path)
print("ready", flush=True)
sys.stdin.readline()
for member in range(200):
    try:
        guard.release(b"s" * 32, {member: kind})
        print(member)
    except GuardRefusedError:
        pass
"""


def test_of_two_processes_on_one_file_one_passes(tmp_path):
    path = tmp_path / "guard.sqlite"
    guard = SqliteGuard(path)
    guard.open_round(RUN, 7, SID)
    guard.close()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(path), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for kind in "ab"
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    passed = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert not set(passed[0]) & set(passed[1])
    assert sorted(map(int, passed[0] + passed[1])) == list(range(200))


KILLED = """
import os, signal, sys
from averaging.guard import SqliteGuard
guard = SqliteGuard(sys.argv[1])
guard.open_round(b"r" * 32, 7, b"s" * 32)
guard.release(b"s" * 32, {0: "a"})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_promise_survives_sigkill(tmp_path):
    path = tmp_path / "guard.sqlite"
    process = subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=60, check=False)
    assert process.returncode == -signal.SIGKILL
    guard = SqliteGuard(path)
    with pytest.raises(GuardRefusedError):
        guard.release(SID, {0: "b"})
    guard.close()


def test_commits_wait_for_the_disk(tmp_path):
    guard = SqliteGuard(tmp_path / "guard.sqlite")
    assert guard._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    guard.close()


def test_a_full_disk_promises_nothing(tmp_path):
    guard = SqliteGuard(tmp_path / "guard.sqlite")
    guard.open_round(RUN, 7, SID)
    (pages,) = guard._db.execute("PRAGMA page_count").fetchone()
    guard._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="full") as failed:
        guard.release(SID, dict.fromkeys(range(2000), "a"))
    assert failed.value.remedy
    guard._db.execute("PRAGMA max_page_count = 1000000")
    guard.release(SID, dict.fromkeys(range(2000), "b"))  # possible only because nothing of "a" was kept
    guard.close()


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.isdir("/proc"), reason="needs a path that cannot be opened")
def test_a_guard_that_cannot_be_opened_says_so(tmp_path):
    with pytest.raises(StorageError) as failed:
        SqliteGuard(tmp_path / "missing" / "guard.sqlite")
    assert failed.value.remedy
    (tmp_path / "text").write_text("this is not a database, and long enough to be taken for one\n" * 100)
    with pytest.raises(StorageError):
        SqliteGuard(tmp_path / "text")


def test_a_closed_guard_fails_without_a_promise():
    guard = MemoryGuard()
    guard.close()
    with pytest.raises(StorageError):
        guard.vote(SID, b"U")
    with pytest.raises(StorageError):
        guard.has_opened(RUN, 1)


class StickyRelease(RuleBasedStateMachine):
    """Any order of calls: what was ever granted never contradicts itself."""

    def __init__(self):
        super().__init__()
        self.guard = MemoryGuard()
        self.granted = {}

    def attempt(self, promise, key, value):
        try:
            promise()
        except GuardRefusedError:
            return
        assert self.granted.setdefault(key, value) == value

    @rule(sid=st.sampled_from("xyz"), digest=st.sampled_from("uv"))
    def vote(self, sid, digest):
        self.attempt(lambda: self.guard.vote(sid.encode(), digest.encode()), ("vote", sid), digest)

    @rule(sid=st.sampled_from("xyz"), round_=st.integers(0, 3))
    def open_round(self, sid, round_):
        self.attempt(lambda: self.guard.open_round(RUN, round_, sid.encode()), ("open", round_), sid)

    @rule(sid=st.sampled_from("xyz"), choices=st.dictionaries(st.integers(0, 2), st.sampled_from("ab"), min_size=1))
    def release(self, sid, choices):
        try:
            self.guard.release(sid.encode(), choices)
        except GuardRefusedError:
            return
        for member, kind in choices.items():
            assert self.granted.setdefault(("release", sid, member), kind) == kind

    @rule(before=st.integers(0, 3))
    def prune(self, before):
        self.guard.prune(before)

    def teardown(self):
        self.guard.close()


TestStickyRelease = StickyRelease.TestCase
TestStickyRelease.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
