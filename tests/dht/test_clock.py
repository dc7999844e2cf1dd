"""Clocks: the real one moves forward by itself, the manual one only when told."""

from __future__ import annotations

import time

import pytest

from dht.clock import Clock, ManualClock, SystemClock


def test_system_clock_is_monotonic_and_near_unix_time():
    clock: Clock = SystemClock()
    first, second = clock.now(), clock.now()
    assert second >= first
    before = time.time()
    assert before <= clock.wall() <= time.time()


def test_manual_clock_stands_still_until_moved():
    clock: Clock = ManualClock(start=5.0, wall=1_000.0)
    assert (clock.now(), clock.wall()) == (5.0, 1_000.0)
    assert (clock.now(), clock.wall()) == (5.0, 1_000.0)


def test_manual_clock_moves_both_times_by_the_same_amount():
    clock = ManualClock(start=5.0, wall=1_000.0)
    clock.advance_to(7.5)
    assert (clock.now(), clock.wall()) == (7.5, 1_002.5)
    clock.advance_to(7.5)
    assert clock.now() == 7.5


def test_manual_clock_refuses_to_go_back():
    clock = ManualClock(start=5.0)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance_to(4.999)
    assert clock.now() == 5.0
