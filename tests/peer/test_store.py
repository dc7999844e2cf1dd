from __future__ import annotations

import errno
import json
import logging
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dht import merkle
from dht.errors import ProtocolError, Refusal, StorageError
from peer import durable
from peer.outer import OuterStep
from peer.state import CanonicalState, StateSchema
from peer.store import KEPT_ROUNDS, SEGMENT_FRAMES, LocalState, StateStore

ROOT = Path(__file__).parent.parent.parent
RUN = bytes(range(32))
SCHEMA = StateSchema(RUN, ("a", "b"), ((500, 400), (77,)))


def state_of(number: int) -> CanonicalState:
    rng = np.random.default_rng(number)
    parameters, momentum = (rng.standard_normal(SCHEMA.elements).astype(np.float32) for _ in range(2))
    return CanonicalState(SCHEMA, parameters, momentum, rng.random(SCHEMA.blocks, np.float32))


def frames_of(number: int) -> list[bytes]:
    return [b"record %d" % index * 50 for index in range(number + 1)]


def save(store: StateStore, number: int) -> CanonicalState:
    state = state_of(number)
    store.save(number, state.root(), state.leaves(), state.chunks(), frames_of(number))
    return state


def damage(path: Path, at: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def store(tmp_path):
    return StateStore(tmp_path / "state", SCHEMA)


def test_a_new_store_is_empty(store):
    assert store.load_newest() is None
    assert store.rounds() == []
    assert store.chunk(0, 0) is None
    assert store.leaves(0) is None
    assert store.load_local(0, b"r" * 32) is None


def test_round_trip_and_two_are_kept(store):
    for number in range(5):
        save(store, number)
    assert store.rounds() == [3, 4]
    again = StateStore(store.folder, SCHEMA)
    found = again.load_newest()
    assert found is not None
    assert (found.round, found.root, found.frames) == (4, state_of(4).root(), tuple(frames_of(4)))
    assert again.load_state(found).parameters.tobytes() == state_of(4).parameters.tobytes()


def test_chunks_are_served_from_both_rounds(store):
    for number in range(3):
        save(store, number)
    for number in (1, 2):
        state = state_of(number)
        assert store.leaves(number) == state.leaves()
        for index in range(len(SCHEMA.chunks)):
            assert store.chunk(number, index) == state.chunk(index)
    assert store.chunk(0, 0) is None
    assert store.chunk(2, len(SCHEMA.chunks)) is None
    assert store.chunk(2, -1) is None


def test_a_round_can_be_saved_again(store):
    save(store, 3)
    assert store.chunk(3, 1) == state_of(3).chunk(1)
    other = state_of(4)
    store.save(3, other.root(), other.leaves(), other.chunks(), frames_of(3))
    assert store.chunk(3, 1) == other.chunk(1)
    assert StateStore(store.folder, SCHEMA).load_newest().root == other.root()


@pytest.mark.parametrize("name", ["state.bin", "leaves.bin", "index.json"])
@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_a_damaged_round_is_skipped_with_a_warning(store, caplog, name, how):
    save(store, 1)
    save(store, 2)
    path = store.folder / "rounds" / "00000002" / name
    if how == "flip":
        damage(path, 5 if name == "index.json" else -5)
    elif how == "truncate":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    again = StateStore(store.folder, SCHEMA)
    with caplog.at_level(logging.WARNING):
        assert again.load_newest().round == 1
    assert "round 2 on disk is damaged" in caplog.text
    # The damaged one counts no longer, so saving does not push the good one out.
    save(again, 3)
    assert again.rounds() == [1, 3]


def test_a_damaged_chain_is_noticed(store):
    save(store, 1)
    (segment,) = (store.folder / "chain").iterdir()
    damage(segment)
    assert StateStore(store.folder, SCHEMA).load_newest() is None


def test_another_run_is_never_loaded(store):
    save(store, 1)
    for other in (StateSchema(b"x" * 32, SCHEMA.names, SCHEMA.shapes), StateSchema(RUN, ("a", "c"), SCHEMA.shapes)):
        copy = store.folder.with_name("copy-" + other.names[1])
        subprocess.run(["cp", "-r", store.folder, copy], check=True)
        assert StateStore(copy, other).load_newest() is None


def test_what_the_caller_finds_uncertified_is_not_loaded(store, caplog):
    save(store, 1)
    save(store, 2)

    def certified(found):
        if found.round == 2:
            raise ProtocolError(Refusal.BAD_CERTIFICATE, "too few signatures")

    assert store.load_newest(certified).round == 1
    assert "round 2 on disk is not certified" in caplog.text
    assert store.rounds() == [1, 2]


def test_only_the_certified_bytes_are_saved(store):
    save(store, 1)
    state, other = state_of(2), state_of(3)
    with pytest.raises(StorageError, match="certified root"):
        store.save(2, other.root(), state.leaves(), state.chunks(), [])
    with pytest.raises(StorageError, match="changed while it was saved"):
        store.save(2, state.root(), state.leaves(), other.chunks(), [])
    with pytest.raises(StorageError, match="chunks were given"):
        store.save(2, state.root(), state.leaves(), list(state.chunks())[:-1], [])
    assert store.rounds() == [1]
    assert store.load_newest().root == state_of(1).root()


def test_chain_segments_are_written_once(store):
    save(store, 3 * SEGMENT_FRAMES)
    first = {path.name: path.stat().st_mtime_ns for path in (store.folder / "chain").iterdir()}
    save(store, 3 * SEGMENT_FRAMES + 1)
    save(store, 3 * SEGMENT_FRAMES + 2)
    second = {path.name: path.stat().st_mtime_ns for path in (store.folder / "chain").iterdir()}
    full = [name for name in first if not name.startswith("000003-")]
    assert len(full) == 3
    assert all(second[name] == first[name] for name in full)
    # One open segment for each of the two kept rounds, older ones are gone.
    assert len(second) == 3 + KEPT_ROUNDS
    assert store.load_newest().frames == tuple(frames_of(3 * SEGMENT_FRAMES + 2))


def test_a_chain_may_be_replaced(store):
    save(store, 70)
    state = state_of(71)
    store.save(71, state.root(), state.leaves(), state.chunks(), [b"other"] * 80)
    assert StateStore(store.folder, SCHEMA).load_newest().frames == (b"other",) * 80


# -- local training --------------------------------------------------------------------------------------


def local(number: int, root: bytes = b"r" * 32) -> LocalState:
    rng = np.random.default_rng(number)
    arrays = {
        "moment": rng.standard_normal((30, 7)).astype(np.float32),
        "bytes": rng.integers(0, 256, 13).astype(np.uint8),
        "step": np.array(number, np.float32),
        "turned": rng.standard_normal((4, 6)).T,
        "none": np.empty((0, 3), np.float32),
    }
    return LocalState(number, root, arrays, {"data": {"epoch": 1}, "loss": 0.5})


def test_local_training_round_trip(store):
    for number in (1, 2):
        store.save_local(local(number))
    assert len(list((store.folder / "local").iterdir())) == 1
    found = StateStore(store.folder, SCHEMA).load_local(2, b"r" * 32)
    assert found.facts == local(2).facts
    assert found.arrays.keys() == local(2).arrays.keys()
    for name, array in local(2).arrays.items():
        assert (found.arrays[name].dtype, found.arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found.arrays[name], array)


def test_local_training_belongs_to_one_round_and_root(store):
    store.save_local(local(2))
    assert store.load_local(1, b"r" * 32) is None
    assert store.load_local(2, b"x" * 32) is None
    assert store.load_local(2, b"r" * 32) is not None


def test_damaged_local_training_is_left_out(store, caplog):
    store.save_local(local(2))
    damage(next((store.folder / "local").glob("*/arrays.bin")))
    assert store.load_local(2, b"r" * 32) is None
    assert "local training on disk is damaged" in caplog.text
    store.save_local(local(3))
    assert store.load_local(3, b"r" * 32) is not None


# -- disk full, kill -9 ----------------------------------------------------------------------------------


def test_disk_full_keeps_the_old_state(store, monkeypatch):
    save(store, 1)
    store.save_local(local(1))
    real, fired = os.write, []

    def full(descriptor: int, data: memoryview) -> int:
        room = 300_000 - sum(fired)
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fired.append(real(descriptor, data[:room]))
        return fired[-1]

    monkeypatch.setattr(durable.os, "write", full)
    with pytest.raises(StorageError, match="No space left"):
        save(store, 2)
    assert sum(fired) == 300_000  # it broke off in the middle of the state
    with pytest.raises(StorageError, match="No space left"):
        store.save_local(local(2))
    monkeypatch.undo()
    assert not [path for path in store.folder.glob("*/.*")]
    assert store.load_newest().round == 1
    assert store.load_local(1, b"r" * 32) is not None
    save(store, 2)
    assert StateStore(store.folder, SCHEMA).load_newest().round == 2


def test_file_size_limit_of_the_system(tmp_path):
    code = (
        "import resource, sys; from tests.peer import test_store as t\n"
        "from pathlib import Path; from dht.errors import StorageError\n"
        "store = t.StateStore(Path(sys.argv[1]), t.SCHEMA); t.save(store, 1)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
        "try:\n    t.save(store, 2)\nexcept StorageError as error:\n    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "File too large" in run.stdout, run.stderr
    assert StateStore(tmp_path, SCHEMA).load_newest().round == 1


WRITER = """
import sys
from pathlib import Path
import numpy as np
from peer.state import CanonicalState, StateSchema
from peer.store import LocalState, StateStore

schema = StateSchema(bytes(range(32)), ("a", "b"), ((500, 400), (77,)))
store = StateStore(Path(sys.argv[1]), schema)
found = store.load_newest()
number = found.round if found else 0
print("start", number, flush=True)
while True:
    number += 1
    state = CanonicalState.genesis(schema, np.full(schema.elements, number, np.float32), 1.0)
    print("begin", number, flush=True)
    store.save(number, state.root(), state.leaves(), state.chunks(), [b"record %d" % i for i in range(number)])
    print("saved", number, flush=True)
    store.save_local(LocalState(number, state.root(), {"m": state.parameters}, {"n": number}))
    print("local", number, flush=True)
"""


def killed_while_writing(folder: Path, delay: float) -> dict[str, int]:
    """Run the writer, SIGKILL it `delay` seconds after its first save began; the last number of each kind printed."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        lines = [child.stdout.readline(), child.stdout.readline()]
        assert lines[1].startswith("begin"), child.stderr.read()
        time.sleep(delay)
        child.kill()
        lines += child.stdout.read().splitlines()
        assert child.wait() == -9
    last = dict.fromkeys(("start", "begin", "saved", "local"), 0)
    for line in lines:
        if matched := re.fullmatch(r"(\w+) (\d+)\n?", line):
            last[matched[1]] = int(matched[2])
    return last


def test_fifty_kills_lose_nothing(tmp_path, caplog):
    generator = random.Random(7)
    interrupted = 0
    for _ in range(50):
        last = killed_while_writing(tmp_path, generator.uniform(0, 0.03))
        interrupted += any(tmp_path.glob("*/.*"))
        found = (store := StateStore(tmp_path, SCHEMA)).load_newest()
        at_least = max(last["start"], last["saved"])
        assert (found.round if found else 0) in (at_least, last["begin"])
        if found:
            number = found.round
            state = store.load_state(found)
            assert (state.parameters == number).all()
            assert found.frames == tuple(b"record %d" % index for index in range(number))
            if last["local"] == number:
                assert store.load_local(number, found.root).facts == {"n": number}
            elif mine := store.load_local(number, found.root):
                assert (mine.arrays["m"] == number).all()
            # There is always one to fall back on, and what a killed writer left is cleared up.
            assert len(store.rounds()) == min(number, KEPT_ROUNDS)
        assert not any(tmp_path.glob("*/.*"))
    assert interrupted >= 10, "the kills missed the writes: this test would show nothing"
    assert "damaged" not in caplog.text


def test_a_replacement_that_was_cut_off_gives_the_name_back(store):
    save(store, 1)
    rounds = store.folder / "rounds"
    (rounds / "00000001").rename(rounds / ".00000001.replaced")
    (rounds / ".00000001").mkdir()
    assert StateStore(store.folder, SCHEMA).load_newest().round == 1
    assert [path.name for path in rounds.iterdir()] == ["00000001"]


def test_no_torch_is_needed():
    probe = "import sys, peer.state, peer.store, peer.outer, peer.manifest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=False).returncode == 0


def test_the_certified_step_can_be_saved(store):
    state = state_of(1)
    gradient, scales = state_of(2).parameters, np.ones(SCHEMA.blocks, np.float32)
    root = state.root_after([gradient], OuterStep(0.7, 0.5), scales)
    state.advance([gradient], OuterStep(0.7, 0.5), scales)
    store.save(2, root, state.leaves(), state.chunks(), [])
    index = json.loads((store.folder / "rounds" / "00000002" / "index.json").read_text())
    assert index["root"] == root.hex() == merkle.root(state.leaves()).hex()
