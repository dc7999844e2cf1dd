from __future__ import annotations

import json
import math

import dp_accounting
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.errors import ConfigError, StorageError
from peer import dp
from peer.data import TokenData
from peer.dp import Account, Guarantee, PoissonBatches, Spent

SPENT = Spent("text", 1.0, 0.01, 1000)


def data(sequences: int, length: int = 4) -> TokenData:
    return TokenData(np.repeat(np.arange(sequences, dtype=np.uint16), length), length, "text")


def oracle(noise: float, rate: float, steps: int, delta: float) -> float:
    """Google's accountant, which shares no code with opacus'."""
    accountant = dp_accounting.rdp.RdpAccountant()
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    return accountant.compose(step, steps).get_epsilon(delta)


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [(1.0, 0.01, 1000, 1e-6), (0.7, 0.02, 300, 1e-5), (4.0, 0.1, 5000, 1e-7), (2.0, 1.0, 10, 1e-5)],
)
def test_epsilon_is_that_of_another_accountant(tmp_path, noise, rate, steps, delta):
    account = Account.load(tmp_path)
    account.add(Spent("text", noise, rate, steps))
    assert account.epsilon(delta) == pytest.approx(oracle(noise, rate, steps, delta), rel=0.02)


def test_a_known_figure(tmp_path):
    """Abadi et al. 2016, section 2.2 and figure 2: q = 0.01, sigma = 4, 10,000 steps, delta 1e-5: epsilon 1.26."""
    account = Account.load(tmp_path)
    account.add(Spent("text", 4.0, 0.01, 10_000))
    assert account.epsilon(1e-5) <= 1.26
    assert account.epsilon(1e-5) > 0.9


def test_nothing_spent_is_zero_and_unprotected_is_infinite(tmp_path):
    account = Account.load(tmp_path)
    assert (account.empty, account.epsilon(1e-6)) == (True, 0.0)
    account.add(SPENT)
    account.add(Spent("text", 0.0, 1.0, 1))
    assert math.isinf(account.epsilon(1e-6))
    assert account.steps == 1000


def test_the_account_never_forgets_other_data_or_other_noise(tmp_path):
    account = Account.load(tmp_path)
    seen = [0.0]
    for spent in (SPENT, Spent("more text", 1.0, 0.01, 500), Spent("text", 3.0, 0.05, 200), SPENT):
        account.add(spent)
        account = Account.load(tmp_path)
        assert account.epsilon(1e-6) > seen[-1]
        seen.append(account.epsilon(1e-6))
    assert account.steps == 2700
    assert account.epsilon(1e-6) >= oracle(1.0, 0.01, 2500, 1e-6) * 0.99


@pytest.mark.parametrize("text", ["", "{}", '{"spent": [{"data": "x"}]}', "null"])
def test_a_damaged_account_is_no_empty_one(tmp_path, text):
    (tmp_path / dp.ACCOUNT_FILE).write_text(text)
    with pytest.raises(StorageError, match="nobody knows what was spent"):
        Account.load(tmp_path)


@pytest.mark.parametrize("change", [{"noise": -1.0}, {"noise": math.nan}, {"sample_rate": 0.0}, {"steps": -1}])
def test_impossible_entries_are_damage(tmp_path, change):
    row = {"data": "x", "noise": 1.0, "sample_rate": 0.1, "steps": 1} | change
    (tmp_path / dp.ACCOUNT_FILE).write_text(json.dumps({"spent": [row]}))
    with pytest.raises(StorageError):
        Account.load(tmp_path)


def test_a_full_disk_counts_nothing_and_says_so(tmp_path, monkeypatch):
    account = Account.load(tmp_path)
    account.add(SPENT)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dp, "write_file", full)
    with pytest.raises(StorageError, match="No space left"):
        account.add(SPENT)
    assert (account.steps, Account.load(tmp_path).steps) == (1000, 1000)


@settings(max_examples=30, deadline=None)
@given(budget=st.floats(0.05, 20), wanted=st.integers(0, 5000), spent=st.integers(0, 3000))
def test_affordable_is_the_most_that_fits(tmp_path_factory, budget, wanted, spent):
    account = Account(tmp_path_factory.mktemp("account") / dp.ACCOUNT_FILE)
    account.add(Spent("text", 1.0, 0.01, spent))
    more, guarantee = Spent("text", 1.0, 0.01, wanted), Guarantee(epsilon=budget)
    steps = account.affordable(more, guarantee)
    assert 0 <= steps <= wanted
    if steps:
        assert account.epsilon(guarantee.delta, Spent("text", 1.0, 0.01, steps)) <= budget
    if steps < wanted:
        assert account.epsilon(guarantee.delta, Spent("text", 1.0, 0.01, steps + 1)) > budget


def test_poisson_batches_take_each_sequence_by_a_coin_of_its_own():
    batches = PoissonBatches(data(20), 5)
    batches._random = np.random.default_rng(3)
    draws = [batches.next() for _ in range(4000)]
    taken = np.array([np.isin(np.arange(20), draw[:, 0]) for draw in draws])
    assert all(len(np.unique(draw[:, 0])) == len(draw) for draw in draws)
    assert (batches.sample_rate, draws[0].dtype, draws[0].shape[1]) == (0.25, np.int64, 4)
    # Five standard deviations of 4,000 coins; sizes of a shuffled batch of fixed size would have no variance.
    np.testing.assert_allclose(taken.mean(0), 0.25, atol=5 * math.sqrt(0.25 * 0.75 / 4000))
    assert np.var(taken.sum(1)) == pytest.approx(20 * 0.25 * 0.75, rel=0.15)
    together = np.mean(taken[:, 3] & taken[:, 4])
    assert together == pytest.approx(0.0625, abs=5 * math.sqrt(0.0625 / 4000))


def test_batches_differ_between_peers_and_lives_and_can_be_empty():
    one, two = PoissonBatches(data(1000), 100), PoissonBatches(data(1000), 100)
    assert not np.array_equal(one.next(), two.next())
    shapes = {PoissonBatches(data(50), 1).next().shape for _ in range(60)}
    assert (0, 4) in shapes


def test_more_than_the_data_has_is_refused():
    with pytest.raises(ConfigError, match="batches of 6 sequences from data of 5"):
        PoissonBatches(data(5), 6)


def test_without_opacus_it_says_what_to_install(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    account = Account.load(tmp_path)
    account.add(SPENT)
    with pytest.raises(ConfigError, match=r"murmuration\[dp\]"):
        account.epsilon(1e-6)
