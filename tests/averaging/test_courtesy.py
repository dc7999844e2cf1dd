"""Rations for strangers: answers per second, and windows that are kept open for them."""

from __future__ import annotations

from averaging.courtesy import MOST_BYTES, Courtesy, Welcome
from tests.averaging.cohort_net import identity

A, B = identity(0).peer_id, identity(1).peer_id


def test_each_peer_gets_so_many_answers_a_second_and_all_together_so_many():
    courtesy = Courtesy(each=2, together=3)
    assert [courtesy.allows(A) for _ in range(3)] == [True, True, False]
    assert [courtesy.allows(B) for _ in range(2)] == [True, False]
    courtesy.tick()
    assert courtesy.allows(B)


def test_rounds_rest_longer_and_longer_after_waiting_in_vain_until_somebody_comes():
    welcome = Welcome()
    waited = []
    for round_ in range(60):
        if welcome.waits:
            waited.append(round_)
        welcome.round_over([A] if welcome.waits else [], [B])
    assert waited == [0, 2, 6, 14, 30, 46]
    welcome.round_over([], [B])
    while not welcome.waits:
        welcome.round_over([], [B])
    welcome.round_over([A], [A, B])
    assert welcome.waits
    welcome.round_over([], [B])
    assert welcome.waits


def test_long_answers_are_rationed_by_their_bytes():
    courtesy = Courtesy()
    assert courtesy.allows(A)
    courtesy.spent(MOST_BYTES)
    assert not courtesy.allows(B)
    courtesy.tick()
    assert courtesy.allows(B)
