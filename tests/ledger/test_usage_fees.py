from hypothesis import given
from hypothesis import strategies as st

from ledger.usage_fees import DELAY, count_fees

PLACES = st.tuples(st.integers(0, 50), st.integers(0, 3))


def test_a_fee_waits_for_two_more_checkpoints():
    checkpoints = [(10, 0), (20, 2), (30, 0), (40, 0)]
    payments = [((5, 0), 1), ((10, 1), 10), ((20, 1), 100), ((20, 3), 1000), ((35, 0), 10_000)]
    assert count_fees(checkpoints, payments) == (0, 0, 1, 110, 1000)
    assert count_fees([], payments) == (0,)


@given(st.lists(PLACES, unique=True), st.lists(st.tuples(PLACES, st.integers(0, 99))), st.integers(0, 50))
def test_what_counts_in_the_next_epoch_is_older_than_the_head(places, payments, cut):
    """So neither payments behind the checkpoint before the head, nor the head's own place, change it."""
    checkpoints = sorted(places)
    if len(checkpoints) < DELAY:
        return
    settled = checkpoints[-2]
    old = [(place, amount) for place, amount in payments if place < settled]
    fees = count_fees(checkpoints, payments)
    assert fees == count_fees(checkpoints, old)
    assert fees == count_fees([*checkpoints[:-1], (51 + cut, 0)], payments)
