from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging.layout import MAX_DOMAINS
from averaging.params import MAX_PEERS
from averaging.trailer import Statistics, pack, unpack

statistics = st.builds(
    Statistics,
    tokens=st.integers(0, 2**48 - 1),
    loss=st.floats(0, 1e30),
    first_loss=st.floats(0, 1e30),
    squared_norm=st.floats(0, 1e30),
    lost_norm=st.floats(0, 1e30),
    steps=st.integers(0, 2**40),
)


def total(items):
    summed = np.zeros(8, "<u4")
    for item in items:
        summed += pack(item)
    return summed


@given(st.lists(statistics, min_size=1, max_size=64))
def test_sums_never_wrap_and_tokens_are_exact(items):
    totals = unpack(total(items), len(items))
    assert totals.plausible
    assert totals.tokens == sum(item.tokens for item in items)
    for name, top, unit in (
        ("loss", 64, 2**-20),
        ("first_loss", 64, 2**-20),
        ("squared_norm", 16, 2**-22),
        ("lost_norm", 16, 2**-22),
    ):
        honest = sum(min(getattr(item, name), top) for item in items) / len(items)
        assert honest - 2 * unit <= getattr(totals, "mean_" + name) <= honest + unit


def test_sixty_four_members_at_the_top():
    top = Statistics(2**48 - 1, 1e9, 1e9, 1e9, 1e9, 2**40)
    words = pack(top).astype(object) * 64
    assert max(words) < 2**32
    totals = unpack(total([top] * 64), 64)
    assert totals.plausible and totals.tokens == 64 * (2**48 - 1)
    assert totals.mean_steps == 2**26 - 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1e-9])
@pytest.mark.parametrize("name", ["loss", "first_loss", "squared_norm", "lost_norm"])
def test_what_is_no_number_is_refused(name, value):
    fields = {"tokens": 1, "loss": 1.0, "first_loss": 1.0, "squared_norm": 1.0, "lost_norm": 0.0, "steps": 1}
    with pytest.raises(ValueError):
        pack(Statistics(**{**fields, name: value}))


@pytest.mark.parametrize(("tokens", "steps"), [(-1, 0), (2**48, 0), (0, -1)])
def test_counts_out_of_range_are_refused(tokens, steps):
    with pytest.raises(ValueError):
        pack(Statistics(tokens, 0.0, 0.0, 0.0, 0.0, steps))


def test_a_false_trailer_is_noticed_and_clamped():
    honest = Statistics(1000, 2.0, 3.0, 0.03, 0.0, 50)
    summed = total([honest] * 3)
    assert not unpack(summed, 4).plausible  # one count is missing
    summed[4] = 2**32 - 1
    totals = unpack(summed, 3)
    assert not totals.plausible
    assert totals.mean_squared_norm <= 16
    assert totals.mean_loss == 2.0


@given(st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=8), st.integers(1, 64))
def test_any_bytes_give_bounded_totals(words, members):
    totals = unpack(np.array(words, "<u4"), members)
    assert 0 <= totals.tokens < members * 2**48
    assert 0 <= totals.mean_loss < 64 and 0 <= totals.mean_squared_norm < 16


@given(st.lists(statistics, min_size=1, max_size=64), st.integers(1, MAX_DOMAINS), st.data())
def test_losses_add_up_by_domain(items, domains, data):
    items = [replace(item, domain=data.draw(st.integers(0, domains))) for item in items]
    summed = sum((pack(item, domains) for item in items), np.zeros(8 + 2 * domains, "<u4"))
    totals = unpack(summed, len(items))
    assert totals.plausible
    assert np.array_equal(summed[:8], total([replace(item, domain=0) for item in items]))
    for domain, (count, loss) in enumerate(totals.domains, 1):
        losses = [min(item.loss, 64.0) for item in items if item.domain == domain]
        assert count == len(losses)
        honest = sum(losses) / max(1, count)
        assert honest - 2**-19 <= loss <= honest


def test_more_reports_than_members_are_noticed():
    honest = Statistics(1000, 2.0, 3.0, 0.03, 0.0, 50, domain=1)
    summed = sum((pack(honest, 2) for _ in range(3)), np.zeros(12, "<u4"))
    assert unpack(summed, 3).domains == ((3, 2.0), (0, 0.0))
    summed[10] += 1  # one who reports for two domains
    assert not unpack(summed, 3).plausible
    summed[10], summed[9] = 0, 2**31
    assert not unpack(summed, 3).plausible
    assert unpack(summed, 3).domains[0][1] < 64


@pytest.mark.parametrize(("domain", "domains"), [(1, 0), (3, 2), (-1, 2)])
def test_a_domain_that_the_run_does_not_have_is_refused(domain, domains):
    with pytest.raises(ValueError):
        pack(Statistics(1, 0.0, 0.0, 0.0, 0.0, 1, domain), domains)


@pytest.mark.parametrize(("size", "members"), [(7, 3), (9, 3), (42, 3), (8, 0), (8, MAX_PEERS + 1)])
def test_malformed_sums_are_refused(size, members):
    with pytest.raises(ValueError):
        unpack(np.zeros(size, "<u4"), members)
