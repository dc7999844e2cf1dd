import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging import field

elements = st.integers(0, field.PRIME - 1)


@given(elements)
def test_bytes_round_trip(element):
    assert field.from_bytes(field.to_bytes(element)) == element


@pytest.mark.parametrize("value", [-1, field.PRIME, 2**255])
def test_only_reduced_elements_have_bytes(value):
    with pytest.raises(ValueError):
        field.to_bytes(value)


@pytest.mark.parametrize("data", [b"", bytes(31), bytes(33), field.PRIME.to_bytes(32, "big"), b"\xff" * 32])
def test_only_reduced_bytes_are_elements(data):
    with pytest.raises(ValueError):
        field.from_bytes(data)


@given(st.lists(elements.filter(bool), max_size=20))
def test_batch_inversion(values):
    assert [v * i % field.PRIME for v, i in zip(values, field.invert_all(values), strict=True)] == [1] * len(values)


def test_zero_has_no_inverse():
    with pytest.raises(ValueError):
        field.invert_all([3, 0, 5])
