from hypothesis import given
from hypothesis import strategies as st

from ledger.points import Points, Row, add_up

ROWS = st.lists(st.builds(Row, st.binary(min_size=1, max_size=1), st.integers(0, 99), st.integers(0, 9)), max_size=8)


def test_rows_add_up():
    rounds = [[Row(b"b", 5, 1), Row(b"a", 7, 0)], [Row(b"a", 2, 3)]]
    assert add_up(rounds) == {b"a": Points(9, 2, 3), b"b": Points(5, 1, 1)}
    assert list(add_up(rounds)) == [b"a", b"b"]
    assert Points(chunks=3).served(1000) == 3000


@given(st.lists(ROWS, max_size=5), st.randoms())
def test_neither_the_order_of_rounds_nor_of_rows_matters(rounds, random):
    shuffled = [random.sample(rows, len(rows)) for rows in random.sample(rounds, len(rounds))]
    assert list(add_up(shuffled).items()) == list(add_up(rounds).items())
    assert sum(each.tokens for each in add_up(rounds).values()) == sum(row.tokens for rows in rounds for row in rows)
