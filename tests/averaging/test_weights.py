"""Weights of updates: bounded, exact, the same everywhere; and whose losses are told."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging.layout import MAX_DOMAINS
from averaging.params import MAX_PEERS, tolerated
from averaging.trailer import Statistics, pack, unpack
from averaging.weights import ONE, Weighing, as_float, declared, first_ratios, next_ratios, reporting

caps = st.integers(1, 2**31)
kinds = st.sampled_from(["tokens", "root", "equal"])
weighings = st.builds(
    Weighing, kinds, caps, least=st.integers(1, 2**20), floor=st.floats(0, 1), importance=st.integers(0, 8)
)
ratios = st.lists(st.integers(2**15, 2**17), min_size=1, max_size=MAX_DOMAINS).map(
    lambda units: np.array(units, np.float64).astype(np.float32) / np.float32(2**16)
)


@given(weighings, st.integers(1, 2**32), st.integers(0, MAX_DOMAINS), ratios)
def test_weights_are_bounded_and_what_the_formula_says(weighing: Weighing, tokens: int, domain: int, known: Any):
    weight = weighing.weight(tokens, domain, known)
    assert 1 <= weight <= ONE
    part = min(1.0, tokens / weighing.cap)
    base = part
    if tokens >= weighing.least:
        base = max({"tokens": part, "root": math.sqrt(part), "equal": 1.0}[weighing.by], weighing.floor)
    ratio = float(known[domain - 1]) if 1 <= domain <= len(known) else 1.0
    expected = base * (ratio / 2) ** (weighing.importance / 8)
    assert as_float(weight) == pytest.approx(expected, rel=1e-9, abs=2**-39)


@given(weighings, st.integers(1, 2**32), st.integers(1, 2**32), st.integers(0, MAX_DOMAINS), ratios)
def test_more_tokens_never_count_less(weighing: Weighing, one: int, other: int, domain: int, known: Any):
    little, much = sorted((one, other))
    assert weighing.weight(little, domain, known) <= weighing.weight(much, domain, known)


@given(weighings, st.integers(1, 2**31), st.integers(2**15, 2**17), st.integers(2**15, 2**17))
def test_a_higher_loss_never_counts_less_and_at_most_four_times_as_much(
    weighing: Weighing, tokens: int, one: int, other: int
):
    known = np.array(sorted((one, other)), np.float32) / np.float32(2**16)
    easy, hard = (weighing.weight(tokens, domain, known) for domain in (1, 2))
    assert easy <= hard <= 4 * easy + 4
    if weighing.importance == 0:
        assert easy == hard


@given(weighings, st.lists(st.tuples(st.integers(1, 2**31), st.integers(0, 3)), min_size=1, max_size=40))
def test_sums_are_exact_in_any_order(weighing: Weighing, survivors: list[tuple[int, int]]):
    known = np.array([0.5, 1.25, 2.0], np.float32)
    tokens, domains = zip(*survivors, strict=True)
    total = weighing.total(tokens, domains, known)
    assert total == math.fsum(as_float(weighing.weight(n, d, known)) for n, d in survivors)
    assert total == weighing.total(tokens[::-1], domains[::-1], known)
    assert weighing.total(tokens, (), known) == weighing.total(tokens, (0,) * len(tokens), known)


def test_the_largest_sum_still_fits():
    weighing = Weighing("tokens", 3)
    most = MAX_PEERS * ONE
    assert int(as_float(most) * ONE) == most and int(as_float(most - 1) * ONE) == most - 1
    assert weighing.total((3,) * (MAX_PEERS - 1) + (2,), (), first_ratios(0)) == MAX_PEERS - 1 + (2 * ONE // 3) / ONE


def test_known_weights():
    """Written out, so that another implementation, or a later one, gives the same bits."""
    known = np.array([0.5, 1.5, 2.0], np.float32)
    root = Weighing("root", 10_240, least=128, floor=0.25, importance=4)
    rows = [(10_240, 3), (10_240, 1), (5120, 0), (5120, 2), (127, 3), (128, 3), (1, 1)]
    assert [root.weight(*row, known) for row in rows] == [
        ONE,
        ONE // 2,
        ONE // 2 - 2,  # the root of 1/2 twice, each rounded down
        673310613576,
        13636521164,
        ONE // 4,
        53687091,
    ]


@pytest.mark.parametrize(
    "wrong", [{"by": "loss"}, {"cap": 0}, {"least": 0}, {"floor": 1.1}, {"importance": 9}, {"importance": -1}]
)
def test_nonsense_is_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError):
        Weighing(**({"by": "root", "cap": 1000} | wrong))


# --- domains --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=3, max_size=64), st.integers(2, 4), st.data())
def test_every_public_sum_of_losses_is_over_enough_survivors(domains: list[int], least: int, data: st.DataObject):
    told = reporting(domains, least)
    gone = data.draw(st.sets(st.sampled_from(range(len(domains))), max_size=tolerated(len(domains))))
    left = Counter(domain if domain in told else 0 for i, domain in enumerate(domains) if i not in gone)
    assert 0 not in told
    assert all(left[domain] >= least for domain in told)
    assert not told or left[0] >= least or not any(domain not in told for domain in domains)


def test_who_reports():
    assert reporting((1, 1, 1, 2, 2, 2), 2) == {1, 2}
    assert reporting((1, 1, 1, 1, 1, 1), 2) == {1}
    assert reporting((1, 1, 1, 1, 1, 2), 2) == frozenset()  # all but the sixth are known: so would be the sixth
    assert reporting((1, 1, 1, 2, 2, 2, 0), 2) == {2}  # the last one hides among the first of the smallest
    assert reporting((1, 1, 1, 1, 2, 2, 2, 3), 2) == {1}
    assert reporting((1, 1, 2), 2) == frozenset()
    assert reporting((0,) * 8, 2) == frozenset()
    assert reporting((1, 1, 1, 2, 2, 2), 3) == frozenset()


def totals(losses: list[tuple[float, int]], domains: int) -> Any:
    items = [Statistics(100, loss, loss, 0.1, 0.0, 1, domain) for loss, domain in losses]
    summed = sum((pack(item, domains) for item in items), np.zeros(8 + 2 * domains, "<u4"))
    return unpack(summed, len(items))


def test_ratios_follow_the_losses_and_stay_where_nobody_reports():
    before = np.array([1.5, 1.25, 1.0], np.float32)
    after = next_ratios(before, totals([(1.0, 1), (1.0, 1), (3.0, 3), (3.0, 3), (2.0, 0)], 3))
    assert after.tolist() == [0.5, 1.25, 1.5] and after.dtype == np.float32
    assert next_ratios(before, None).tolist() == before.tolist()
    assert next_ratios(before, totals([(0.0, 1), (0.0, 2)], 3)).tolist() == before.tolist()
    assert first_ratios(2).tolist() == [1.0, 1.0]


@given(st.lists(st.tuples(st.integers(0, 64), st.floats(0, 1e30)), min_size=3, max_size=3), st.floats(1e-30, 1e30))
def test_no_claim_moves_a_ratio_out_of_its_bounds(claims: list[tuple[int, float]], mean: float):
    after = next_ratios(first_ratios(3), SimpleNamespace(mean_loss=mean, domains=tuple(claims)))  # type: ignore[arg-type]
    assert all(0.5 <= ratio <= 2.0 and ratio * 2**16 == int(ratio * 2**16) for ratio in after.tolist())


def test_nobody_declared_is_nothing():
    assert declared([0, 0, 0]) == () == declared([])
    assert declared([0, 2]) == (0, 2)
