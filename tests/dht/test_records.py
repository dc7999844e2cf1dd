"""A peer record counts only if the peer it speaks of signed it, in its own place, for a bounded time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.clock import CorrectedClock, ManualClock
from dht.envelope import seal
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity
from dht.records import CLOCK_SKEW, MAX_TTL, PeerRecord, RecordGate, current, fitting, open_record, seal_record
from dht.wire import encode

RUN = bytes(range(32))
KEY = b"hashed key"
ALICE, BOB = (Identity(bytes(31) + bytes([number])) for number in (1, 2))
CLOCK = ManualClock(wall=1_800_000_000.0)
RECORD = PeerRecord(
    run=RUN,
    peer=bytes(ALICE.peer_id),
    addresses=("/ip4/127.0.0.1/tcp/1",),
    head_round=7,
    head_hash=bytes(32),
    capacity=10**6,
    throughput=5000,
    epsilon=1234,
    issued=1_800_000_000,
    expires=1_800_000_100,
)


def refusal(frame: bytes) -> Refusal:
    with pytest.raises(ProtocolError) as caught:
        open_record(frame, CLOCK)
    return caught.value.refusal


def test_an_honest_record_passes() -> None:
    assert open_record(seal_record(ALICE, RECORD), CLOCK) == RECORD
    assert RECORD.peer_id == ALICE.peer_id


def test_a_record_speaks_only_of_its_signer() -> None:
    assert refusal(seal_record(BOB, RECORD)) is Refusal.WRONG_SENDER


def test_a_forged_signature_is_refused() -> None:
    envelope = seal(BOB, RUN, 7, RECORD)
    forged = replace(envelope, sender=bytes(ALICE.peer_id))
    assert refusal(encode(forged)) is Refusal.BAD_SIGNATURE


def test_signing_for_one_run_counts_in_no_other() -> None:
    envelope = seal(ALICE, bytes(32), 7, RECORD)
    assert refusal(encode(envelope)) is Refusal.WRONG_RUN


@pytest.mark.parametrize(
    ("issued", "expires"),
    [(0, MAX_TTL + 1), (0, 0), (10, 5), (CLOCK_SKEW + 1, CLOCK_SKEW + 100)],
)
def test_times_are_bounded(issued: int, expires: int) -> None:
    start = int(CLOCK.wall())
    record = replace(RECORD, issued=start + issued, expires=start + expires)
    assert refusal(seal_record(ALICE, record)) is Refusal.OUT_OF_BOUNDS


@pytest.mark.parametrize("skew", [-600.0, -5.0, 5.0, 600.0])
def test_a_record_from_another_clock(skew: float) -> None:
    """5 s do no harm; with 10 min no record counts, until both go by one clock."""
    theirs = ManualClock(wall=CLOCK.wall() + skew)
    issued = int(theirs.wall())
    record = replace(RECORD, issued=issued, expires=issued + 300)
    frame = seal_record(ALICE, record)
    corrected = CorrectedClock(CLOCK, offset=skew)
    assert open_record(frame, corrected) == record
    assert current(record, corrected)
    if skew == 600.0:
        assert refusal(frame) is Refusal.OUT_OF_BOUNDS
    else:
        assert open_record(frame, CLOCK) == record
        assert current(record, CLOCK) is (abs(skew) < CLOCK_SKEW)


def test_other_messages_and_oversized_frames_are_refused() -> None:
    assert refusal(encode(seal(ALICE, RUN, 7, seal(ALICE, RUN, 7, RECORD)))) is Refusal.UNEXPECTED
    assert refusal(encode(RECORD)) is Refusal.UNEXPECTED
    assert refusal(b"\x02" + bytes(10_000)) is Refusal.OVERSIZED


@given(st.integers(0, 400), st.integers(1, 255))
def test_no_flipped_bit_survives(at: int, flip: int) -> None:
    frame = bytearray(seal_record(ALICE, RECORD))
    frame[at % len(frame)] ^= flip
    with pytest.raises(ProtocolError):
        open_record(bytes(frame), CLOCK)


def test_an_ended_record_is_not_current() -> None:
    clock = ManualClock(wall=1_800_000_099.0)
    assert current(RECORD, clock)
    clock.advance_to(1.0)
    assert not current(RECORD, clock)


def test_the_gate_wants_the_right_place_and_the_right_end() -> None:
    gate, frame = RecordGate(CLOCK), seal_record(ALICE, RECORD)
    assert gate.admit(KEY, bytes(ALICE.peer_id), frame, 1_800_000_100.0) == RECORD
    for subkey, expiration, reason in [
        (bytes(BOB.peer_id), 1_800_000_100.0, Refusal.WRONG_SENDER),
        (bytes(ALICE.peer_id), 1_800_000_101.0, Refusal.OUT_OF_BOUNDS),
    ]:
        with pytest.raises(ProtocolError) as caught:
            gate.admit(KEY, subkey, frame, expiration)
        assert caught.value.refusal is reason


def full(call: Callable[[], None]) -> bool:
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.refusal is Refusal.RATE_LIMITED


def test_a_flooded_key_takes_no_more_until_records_end() -> None:
    clock = ManualClock(wall=100.0)
    gate = RecordGate(clock, most=200)
    gate.make_room(KEY, b"a", 110.0, 100)
    gate.make_room(KEY, b"b", 120.0, 100)
    gate.make_room(KEY, b"a", 115.0, 100)  # a renewal needs no room
    assert full(lambda: gate.make_room(KEY, b"a", 116.0, 101))
    assert full(lambda: gate.make_room(KEY, b"c", 130.0, 1))
    gate.make_room(b"another key", b"c", 130.0, 100)
    clock.advance_to(16.0)
    gate.make_room(KEY, b"c", 130.0, 100)


def test_other_runs_do_not_crowd_out_ones_own() -> None:
    gate = RecordGate(ManualClock(wall=100.0), own=KEY, most=200, foreign=300)
    for number in range(3):
        gate.make_room(bytes([number]), b"a", 110.0, 100)
    assert full(lambda: gate.make_room(b"one more", b"a", 110.0, 1))
    gate.make_room(KEY, b"a", 110.0, 200)
    assert full(lambda: gate.make_room(b"one more", b"a", 110.0, 1))


def test_the_addresses_that_fit_are_announced() -> None:
    long = "/dns4/" + "a" * 230 + "/tcp/1"
    assert fitting(["/ip4/127.0.0.1/tcp/1", "x" * 300, *[long] * 9]) == ("/ip4/127.0.0.1/tcp/1", *[long] * 4)
    record = replace(RECORD, addresses=fitting([long] * 20), head_round=2**64 - 1, capacity=2**64 - 1)
    assert open_record(seal_record(ALICE, record), CLOCK) == record
