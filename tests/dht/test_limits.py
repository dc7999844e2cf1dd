"""What a peer may cost us, on a clock of our own."""

from __future__ import annotations

import pytest

from dht.clock import ManualClock
from dht.identity import Identity, PeerId
from dht.limits import BanList, StreamQuota, TokenBucket


@pytest.fixture
def peer() -> PeerId:
    return Identity(bytes(31) + b"\x01").peer_id


def test_a_bucket_allows_a_burst_then_its_rate() -> None:
    clock = ManualClock()
    bucket = TokenBucket(clock, rate=10, burst=5)
    assert [bucket.take() for _ in range(5)] == [0.0] * 5
    assert bucket.take() == pytest.approx(0.1)
    clock.advance_to(100.0)
    assert [bucket.take() for _ in range(6)] == [0.0] * 5 + [
        pytest.approx(0.1)
    ]  # idle time fills no more than the burst


def test_a_ban_ends_and_is_never_shortened(peer: PeerId) -> None:
    clock = ManualClock()
    bans = BanList(clock)
    bans.ban(peer, 60)
    bans.ban(peer, 1)
    assert bans.banned(peer) == 60
    clock.advance_to(59.0)
    assert bans.banned(peer) == 1
    clock.advance_to(60.0)
    assert bans.banned(peer) == 0


def test_strikes_earn_bans_that_double(peer: PeerId) -> None:
    clock = ManualClock()
    bans = BanList(clock, strikes=2, seconds=10, longest=25)
    verdicts, lengths = [], []
    for _ in range(6):
        verdicts.append(bans.strike(peer))
        lengths.append(bans.banned(peer))
        clock.advance_to(clock.now() + 100)
    assert verdicts == [False, True] * 3
    assert lengths == [0, 10, 0, 20, 0, 25]


def test_the_lists_stay_small() -> None:
    bans = BanList(ManualClock(), strikes=2, capacity=2)
    peers = [Identity(bytes(31) + bytes([number])).peer_id for number in (1, 2, 3)]
    for each in peers:
        bans.ban(each, 10)
        bans.strike(each)
    assert [bool(bans.banned(each)) for each in peers] == [False, True, True]
    assert not bans.strike(peers[0])  # its first strike was forgotten
    assert bans.strike(peers[2])


def test_a_quota_counts_streams_per_peer(peer: PeerId) -> None:
    quota = StreamQuota(2)
    other = Identity(bytes(31) + b"\x02").peer_id
    assert [quota.acquire(peer) for _ in range(3)] == [True, True, False]
    assert quota.acquire(other)
    quota.release(peer)
    assert quota.acquire(peer)
