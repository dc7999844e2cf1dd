from __future__ import annotations

import itertools
import json
import re
import tracemalloc
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging.state_chunks import CHUNK_BYTES, check_chunk
from dht import merkle
from dht.errors import ConfigError, IncompatibleRunError, ProtocolError, Refusal, RoundError, StorageError
from peer.outer import OuterStep
from peer.state import CanonicalState, StateSchema

RUN = bytes(range(32))
SCHEMA = StateSchema(RUN, ("a", "b.weight"), ((300, 700), (11,)))
STEP = OuterStep(0.7, 0.9)
VECTORS = Path(__file__).parent.parent / "vectors" / "state.json"


def make(seed: int = 1, schema: StateSchema = SCHEMA) -> CanonicalState:
    rng = np.random.default_rng(seed)
    parameters, momentum = (rng.standard_normal(schema.elements).astype(np.float32) for _ in range(2))
    return CanonicalState(schema, parameters, momentum, rng.random(schema.blocks, np.float32))


def gradient(seed: int = 2, padding: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SCHEMA.elements + padding).astype(np.float32)


def scales(value: float = 0.25) -> np.ndarray:
    return np.full(SCHEMA.blocks, value, np.float32)


def test_chunks_are_the_sections_in_order():
    state = make()
    data = b"".join(state.chunks())
    assert data == SCHEMA.header + b"".join(a.tobytes() for a in (state.parameters, state.momentum, state.scales))
    assert max(len(chunk) for chunk in state.chunks()) == CHUNK_BYTES
    assert [len(chunk) for chunk in state.chunks()] == [SCHEMA.chunk_length(i) for i in range(len(SCHEMA.chunks))]
    for index, chunk in enumerate(state.chunks()):
        assert data[SCHEMA.offset(index) :][: len(chunk)] == chunk
    assert state.leaves() == tuple(merkle.leaf_hash(chunk) for chunk in state.chunks())
    assert state.root() == merkle.root(state.leaves())


@given(st.integers(0, SCHEMA.elements - 1), st.data())
def test_a_step_of_some_elements_leaves_all_others(first: int, data: st.DataObject):
    last = data.draw(st.integers(first + 1, SCHEMA.elements))
    state, whole = make(), make()
    update, part = gradient(), slice(first, last)
    cuts = np.split(update[part], sorted(data.draw(st.lists(st.integers(0, last - first), max_size=3))))
    padded = [*cuts, np.ones(70000, np.float32)]
    expected = state.root_after(iter(padded), STEP, scales(), part=part)
    assert state.leaves() == whole.leaves(), "nothing is changed"
    assert state.advance(iter(padded), STEP, scales(), part=part) == expected == merkle.root(state._hashed())
    before = make()
    whole.advance([update], STEP, scales())
    for name in ("parameters", "momentum"):
        got, old, new = (getattr(one, name) for one in (state, before, whole))
        old[part] = new[part]
        assert np.array_equal(got, old)


def test_a_step_of_too_few_elements_or_none_is_refused():
    for part in (slice(5, 5), slice(-1, 4), slice(0, SCHEMA.elements + 1)):
        with pytest.raises(ValueError, match="a step of elements"):
            make().root_after([gradient()], STEP, scales(), part=part)
    with pytest.raises(ValueError, match="the gradient has 3 of 4 elements"):
        make().root_after([gradient()[:3]], STEP, scales(), part=slice(7, 11))


def test_header_says_what_is_in_it():
    header = msgpack.unpackb(SCHEMA.header)
    assert header["magic"] == "murmuration/state"
    assert header["run"] == RUN
    assert header["names"] == ["a", "b.weight"]
    assert header["shapes"] == [[300, 700], [11]]
    assert header["sections"] == [["parameters", "<f4", 210011], ["momentum", "<f4", 210011], ["scales", "<f4", 52]]


def test_vector():
    # The root of a state that anyone can make by hand; a change of layout must change this file on purpose.
    schema = StateSchema(RUN, ("bias", "weight"), ((3,), (250, 300)))
    ramp = np.arange(schema.elements, dtype=np.float32)
    state = CanonicalState(schema, ramp / 8, -ramp, np.full(schema.blocks, 0.5, np.float32))
    after = state.root_after([ramp / 4], OuterStep(0.5, 0.75), np.full(schema.blocks, 2.0, np.float32))
    expected = json.loads(VECTORS.read_text())
    assert (state.root().hex(), after.hex()) == (expected["root"], expected["root_after"])
    assert schema.header.hex() == expected["header"]


@given(st.lists(st.integers(1, 210_010), unique=True, max_size=6).map(sorted), st.integers(0, 9000))
def test_preview_and_step_agree_however_the_gradient_is_cut(cuts, padding):
    state, mean = make(), gradient(padding=padding)
    edges = [0, *cuts, len(mean)]
    parts = [mean[a:b] for a, b in itertools.pairwise(edges)]
    before = state.root()
    expected = state.root_after(iter(parts), STEP, scales())
    assert state.root() == before
    assert state.advance([mean], STEP, scales()) == expected == state.root()
    parameters, momentum = STEP.apply_slice(make().parameters, make().momentum, mean[: SCHEMA.elements])
    assert CanonicalState(SCHEMA, parameters, momentum, scales()).root() == expected


def test_leaves_follow_the_bytes_after_a_step():
    state = make()
    state.advance([gradient()], STEP, scales())
    assert state.leaves() == tuple(merkle.leaf_hash(chunk) for chunk in state.chunks())


def test_preview_holds_no_second_model():
    schema = StateSchema(RUN, ("w",), ((4_000_000,),))
    state = CanonicalState.genesis(schema, np.ones(4_000_000, np.float32), 1.0)
    piece = np.ones(65536, np.float32)
    new_scales = np.ones(schema.blocks, np.float32)
    for method in (state.root_after, state.advance):
        tracemalloc.start()
        method((piece for _ in range(62)), STEP, new_scales)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4_000_000  # a sixteenth of parameters and momentum


def test_a_gradient_of_wrong_size_changes_nothing():
    state = make()
    root = state.root()
    with pytest.raises(ValueError, match="210010 of 210011"):
        state.root_after([gradient()[:-1]], STEP, scales())
    with pytest.raises(ValueError, match="float32"):
        state.root_after([gradient().astype(np.float64)], STEP, scales())
    with pytest.raises(ValueError, match="52"):
        state.root_after([gradient()], STEP, scales()[1:])
    assert state.root() == root


def test_a_step_that_breaks_half_way_shows_in_the_root_and_can_be_repaired():
    def breaking():
        yield gradient()[:100_000]
        raise RoundError("the network went away")

    state, leaves = make(), make().leaves()
    with pytest.raises(RoundError):
        state.advance(breaking(), STEP, scales())
    assert state.root() != make().root()
    assert state.leaves() == tuple(merkle.leaf_hash(chunk) for chunk in state.chunks())
    for index in state.differing(leaves):
        state.replace_chunk(index, make().chunk(index), leaves[index])
    assert state.root() == make().root()


def test_genesis():
    state = CanonicalState.genesis(SCHEMA, np.ones(SCHEMA.elements, np.float32), 0.5)
    assert not state.momentum.any()
    assert (state.scales == 0.5).all()
    bad = np.ones(SCHEMA.elements, np.float32)
    bad[7] = np.nan
    with pytest.raises(ConfigError, match="finite"):
        CanonicalState.genesis(SCHEMA, bad, 0.5)


def test_catching_up_fetches_only_what_differs():
    ours, theirs = make(), make()
    theirs.parameters[70_000] += 1  # in the second chunk of parameters
    theirs.scales[3] += 1
    theirs = CanonicalState(SCHEMA, theirs.parameters, theirs.momentum, theirs.scales)
    wanted = ours.differing(theirs.leaves())
    assert wanted == [2, len(SCHEMA.chunks) - 1]
    for index in wanted:
        chunk = bytes(theirs.chunk(index))
        leaf = check_chunk(chunk, index, len(SCHEMA.chunks), theirs.proof(index), theirs.root())
        ours.replace_chunk(index, chunk, leaf)
    assert ours.root() == theirs.root()
    assert ours.parameters.tobytes() == theirs.parameters.tobytes()


def test_a_wrong_chunk_is_refused():
    ours, theirs = make(), make(9)
    good = bytes(theirs.chunk(2))
    bad = bytes([good[0] ^ 1]) + good[1:]
    for data, index, leaf in [
        (bad, 2, theirs.leaves()[2]),
        (good[:-1], 2, merkle.leaf_hash(good[:-1])),
        (good, 99, theirs.leaves()[2]),
        (good, -1, theirs.leaves()[2]),
    ]:
        with pytest.raises(ProtocolError) as caught:
            ours.replace_chunk(index, data, leaf)
        assert caught.value.refusal is Refusal.BAD_HASH
    with pytest.raises(ProtocolError):
        check_chunk(bad, 2, len(SCHEMA.chunks), theirs.proof(2), theirs.root())
    with pytest.raises(ProtocolError):
        check_chunk(good, 1, len(SCHEMA.chunks), theirs.proof(2), theirs.root())
    assert ours.root() == make().root()


def test_another_run_is_incompatible():
    other = make(1, StateSchema(b"x" * 32, SCHEMA.names, SCHEMA.shapes))
    with pytest.raises(IncompatibleRunError):
        make().differing(other.leaves())
    with pytest.raises(IncompatibleRunError):
        make().differing(make().leaves()[:-1])
    with pytest.raises(ProtocolError, match="another run"):
        make().replace_chunk(0, other.chunk(0), other.leaves()[0])


def test_from_chunks():
    state = make()
    chunks = [bytes(chunk) for chunk in state.chunks()]
    assert CanonicalState.from_chunks(SCHEMA, chunks, state.root()).leaves() == state.leaves()
    swapped = [*chunks[:1], chunks[2], chunks[1], *chunks[3:]]
    for wrong in (chunks[:-1], [*chunks, b"x"], swapped):
        with pytest.raises(ProtocolError):
            CanonicalState.from_chunks(SCHEMA, wrong, state.root())


@pytest.mark.parametrize(
    ("names", "shapes"),
    [(("b", "a"), ((1,), (1,))), (("a", "a"), ((1,), (1,))), (("a",), ((1,), (2,))), (("a",), ((0, 3),)), ((), ())],
)
def test_schemas_have_one_form(names, shapes):
    with pytest.raises(ConfigError):
        StateSchema(RUN, names, shapes)


def test_a_header_over_one_chunk_is_cut_too():
    names = tuple(sorted(f"layer.{i:06d}.{'x' * 80}" for i in range(4000)))
    schema = StateSchema(RUN, names, ((1,),) * 4000)
    assert len(schema.header) > CHUNK_BYTES
    state = CanonicalState.genesis(schema, np.ones(4000, np.float32), 1.0)
    root = state.root_after([np.ones(4000, np.float32)], STEP, np.ones(1, np.float32))
    assert state.advance([np.ones(4000, np.float32)], STEP, np.ones(1, np.float32)) == root
    assert CanonicalState.from_chunks(schema, list(state.chunks()), root).root() == root


def resident(address: int, size: int) -> int:
    """Bytes of the mappings that hold [address, address + size) which are in this process's memory (Linux)."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if matched := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(matched[1], 16) <= address and address + size <= int(matched[2], 16)
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's smaps")
def test_a_paged_state_is_the_same_state_and_gives_its_memory_back(tmp_path):
    state, paged = make(), make()
    paged.page_out(tmp_path)
    assert list(tmp_path.iterdir()) == []  # unlinked: nothing to clean up
    where = paged.parameters.ctypes.data, paged.parameters.nbytes
    assert resident(*where) == 0
    for step in range(3):
        root = paged.root_after([gradient(step)], STEP, scales())
        assert (
            paged.advance([gradient(step)], STEP, scales()) == root == state.advance([gradient(step)], STEP, scales())
        )
        assert resident(*where) == 0
    assert paged.parameters.tobytes() == state.parameters.tobytes()
    assert resident(*where) >= paged.parameters.nbytes
    assert [bytes(chunk) for chunk in paged.chunks()] == [bytes(chunk) for chunk in state.chunks()]
    assert resident(*where) == 0
    other = make(9)
    for index in paged.differing(other.leaves()):
        paged.replace_chunk(index, other.chunk(index), other.leaves()[index])
    paged.release()
    assert CanonicalState(SCHEMA, paged.parameters, paged.momentum, paged.scales).root() == other.root()


def test_no_room_for_a_paged_state(tmp_path):
    with pytest.raises(StorageError, match="no room"):
        make().page_out(tmp_path / "nowhere")
