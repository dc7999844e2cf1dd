"""Peers all over the globe that come and go: rounds are certified, nobody diverges, and a seed gives one story."""

import random
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from averaging.layout import Layout
from dht.identity import Identity
from dht.wire import digest
from tests.sim.cheap import cheap
from tests.sim.globe import Globe
from tests.sim.picture import draw
from tests.sim.thousand import run, summary
from tests.sim.world import Home, Lines, Model, distance, draw_home


def home(seed: int) -> Home:
    """One home of a seed."""
    return draw_home(random.Random(seed))


@pytest.fixture(scope="module")
def globe() -> Globe:
    """Some peers, three rounds, a third of the living gone in a minute."""
    with cheap():
        return run(32, 3, 7, 10_000_000, 0.3)


def test_rounds_go_on_while_peers_come_and_go(globe: Globe):
    assert [row.number for row in globe.rounds] == [1, 2, 3]
    assert globe.deaths > 10
    assert globe.returns > 0
    assert globe.fetches > 0
    assert any(not row.void for row in globe.rounds)
    assert globe.watch.broken == []
    assert globe.divergent() == []
    globe.check()


def test_a_seed_gives_one_story_and_nothing_is_changed_by_remembering_answers():
    with cheap():
        first, second, other = (run(12, 2, seed, 1_000_000, 0.5) for seed in (3, 3, 4))
    plain = run(12, 2, 3, 1_000_000, 0.5)
    assert first.trace.hexdigest() == second.trace.hexdigest() == plain.trace.hexdigest()
    assert first.rounds == plain.rounds
    assert first.trace.hexdigest() != other.trace.hexdigest()


def test_the_summary_counts_what_happened(globe: Globe, tmp_path: Path):
    row = summary(globe, 32)
    done = [round_ for round_ in globe.rounds if not round_.void]
    assert row["completed"] == len(done)
    assert row["divergent"] == 0
    assert row["deaths"] == globe.deaths
    assert row["MB per peer and round"] > 40  # at least the update up and the mean down, 16 and 24 bits a parameter
    draw(tmp_path / "a" / "rounds.png", {32: globe.rounds})
    with Image.open(tmp_path / "a" / "rounds.png") as image:
        assert image.format == "PNG"
        assert len(image.getcolors(1 << 16) or []) > 3


def test_a_divergent_state_is_counted(globe: Globe):
    peer = next(peer for peer in globe.peers.values() if 1 in peer.states)
    kept = peer.states[1]
    peer.states[1] = bytes(32)
    assert globe.divergent() == [peer.id]
    peer.states[1] = kept


def test_homes_are_drawn_within_their_bounds():
    homes = [home(seed) for seed in range(600)]
    rates = sorted(h.down * 8e-6 for h in homes)
    assert rates[0] >= 4.0
    assert rates[-1] <= 1000.0
    assert 60 < rates[300] < 160
    assert all(h.up <= h.down for h in homes)
    assert 0.1 < sum(h.capacity == 0 for h in homes) / len(homes) < 0.24
    assert all(h.capacity > 0 for h in homes if h.reachable)
    times = [distance(a, b) for a, b in pairwise(homes)]
    assert min(times) >= 0.010
    assert max(times) < 0.06 + 1.5 * 20_100 / 200_000
    assert distance(homes[0], homes[1]) == distance(homes[1], homes[0])


def test_frames_take_the_time_of_their_line_and_queue_behind_each_other():
    a, other = (Identity(digest("globe", bytes([k]))).peer_id for k in range(2))
    homes = {a: home(1), other: home(2)}
    lines = Lines(homes, 5)
    size = homes[a].up  # a second of its line
    left, first, last = lines.carry(10.0, a, other, size, "bulk")
    assert left == pytest.approx(11.0)
    assert first >= 10.0 + distance(homes[a], homes[other])
    assert last == pytest.approx(first + 1.0)
    assert lines.carry(10.0, a, other, size, "bulk")[0] == pytest.approx(12.0)
    assert lines.carry(10.0, a, other, size, "control")[0] == pytest.approx(11.0)
    assert lines.carry(10.0, a, other, size, "bulk", 4)[0] == pytest.approx(12.25)
    assert lines.sent["bulk"] == 3 * size


def test_frames_that_come_together_share_the_receivers_line_and_slow_ones_do_not_keep_it_from_others():
    slow, quick, there = (Identity(digest("globe", bytes([k]))).peer_id for k in range(3))
    lines = Lines({slow: home(1), quick: home(2), there: home(3)}, 5)
    size = lines.homes[there].down  # a second of its line
    assert lines.land(20.0, there, 10.0, size, "bulk") == 20.0, "it came in ten seconds, as fast as it was sent"
    assert lines.land(20.0, there, 19.5, size, "bulk") == pytest.approx(21.0)
    assert lines.land(20.1, there, 20.0, size, "control") == pytest.approx(21.0)
    early = Lines(lines.homes, 5)
    _, _, last = early.carry(0.0, slow, there, 60 * early.homes[slow].up, "control")
    assert last > 60.0
    assert early.land(1.0, there, 0.9, 100.0, "control") == pytest.approx(1.0, abs=1e-3)


def test_short_chunks_are_counted_as_those_of_the_model():
    model = Model(10_000_000, Layout(8 * 4096, 16, 4096))
    frames = [model.frame_bytes(c, 4096, wide=False) for c in range(8)]
    assert sum(frames) == pytest.approx(2 * 10_000_000, rel=0.001)
    assert model.batch == 19
    assert sum(model.frame_bytes(c, 4096, wide=True) for c in range(8)) == pytest.approx(3 * 10_000_000, rel=0.002)
