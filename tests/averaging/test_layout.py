from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging.layout import BLOCK, Layout

layouts = st.builds(
    Layout,
    st.integers(1, 2_000_000),
    st.sampled_from([8, 16, 32]),
    st.integers(1, 20).map(lambda blocks: blocks * BLOCK),
)


@given(layouts)
def test_chunks_partition_the_padded_vector(layout):
    ends = [0]
    for chunk in range(layout.chunks):
        part = layout.slice(chunk)
        assert part.start == ends[-1] < part.stop
        assert (part.stop - part.start) % BLOCK == 0
        assert layout.block_slice(chunk) == slice(part.start // BLOCK, part.stop // BLOCK)
        ends.append(part.stop)
    assert ends[-1] == layout.elements == layout.blocks * BLOCK
    assert layout.parameters <= layout.elements < layout.parameters + BLOCK


@given(layouts)
def test_sizes_are_what_zeros_allocates(layout):
    for chunk in {0, layout.chunks - 1, layout.trailer}:
        ring = layout.zeros(chunk)
        assert ring.nbytes == layout.chunk_bytes(chunk)
        assert ring.size == layout.words(chunk)
        assert ring.dtype == layout.dtype(chunk)
        assert ring.dtype.byteorder in "|<=" and not ring.any()
    assert layout.trailer == layout.chunks == layout.total_chunks - 1
    assert layout.zeros(layout.trailer).dtype == np.uint32
    assert layout.words(layout.trailer) == 8


@pytest.mark.parametrize("chunk", [-1, 2, 3])
def test_only_data_chunks_have_a_slice(chunk):
    with pytest.raises(IndexError):
        Layout(2 * BLOCK, 16, BLOCK).slice(chunk)


@pytest.mark.parametrize("arguments", [(0, 16), (10, 12), (10, 16, 4095), (10, 16, 0), (10, 16, -BLOCK)])
def test_malformed_layouts_are_refused(arguments):
    with pytest.raises(ValueError):
        Layout(*arguments)


@given(layouts, st.lists(st.floats(0, 1e6), min_size=1, max_size=64).filter(any))
def test_reducers_are_contiguous_runs_within_one_of_their_share(layout, fractions):
    owners = layout.reducers(len(fractions), fractions)
    assert len(owners) == layout.total_chunks
    assert list(owners) == sorted(owners)
    total = sum(map(Fraction, fractions))
    for member, fraction in enumerate(fractions):
        run = owners[:-1].count(member)
        assert abs(run - Fraction(fraction) / total * layout.chunks) < 1
        if fraction == 0:
            assert member not in owners
    assert owners[-1] == owners[-2]


@given(layouts, st.integers(1, 64))
def test_equal_loads_differ_by_at_most_one(layout, members):
    owners = layout.reducers(members)[:-1]
    runs = [owners.count(member) for member in range(members)]
    assert max(runs) - min(runs) <= 1
    assert runs == sorted(runs, reverse=True)


def test_largest_remainders_win_and_ties_go_to_the_lower_index():
    layout = Layout(10 * BLOCK, 16, BLOCK)
    assert layout.reducers(3) == (0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2)
    assert layout.reducers(3, [1, 0, 2]) == (0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2)
    assert layout.reducers(2, [0.25, 0.75]) == (0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("members", "fractions"),
    [(0, None), (2, [1]), (2, [0, 0]), (2, [1, -1]), (2, [float("nan"), 1]), (2, [float("inf"), 1])],
)
def test_malformed_loads_are_refused(members, fractions):
    with pytest.raises(ValueError):
        Layout(BLOCK, 16).reducers(members, fractions)
