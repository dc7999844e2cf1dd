"""What a peer declares of its line: no more than its owner says, and no more than its uploads show."""

from __future__ import annotations

from averaging.capacity import DEFAULT_CAPACITY, Capacity

MEGABYTE = 10**6


def upload(capacity: Capacity, megabytes: float, seconds: float, at: float = 100.0) -> int:
    capacity.started(at)
    for k in range(10):
        capacity.sent(int(megabytes * MEGABYTE / 10), at + seconds * (k + 1) / 10)
    return capacity.ended()


def test_what_is_declared_holds_until_something_is_measured():
    assert Capacity(250).ended() == 250
    assert upload(Capacity(250), 1.0, 60.0) == 250, "too little was sent to say anything"


def test_a_slow_upload_lowers_it_and_a_fast_one_does_not_raise_it():
    assert upload(Capacity(DEFAULT_CAPACITY), 10.0, 80.0) == 1
    assert upload(Capacity(DEFAULT_CAPACITY), 10.0, 8.0) == 10
    assert upload(Capacity(DEFAULT_CAPACITY), 10.0, 0.1) == DEFAULT_CAPACITY
    assert upload(Capacity(1000), 100.0, 1.0) == 800


def test_one_slow_round_is_forgiven_and_three_are_not():
    capacity = Capacity(100)
    assert upload(capacity, 10.0, 1.0) == 80
    assert [upload(capacity, 10.0, 10.0) for _ in range(3)] == [80, 80, 8]


def test_who_cannot_be_dialled_takes_no_work_however_fast_it_is():
    assert upload(Capacity(0), 100.0, 1.0) == 0
