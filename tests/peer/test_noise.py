from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from averaging.encoding import Encoder
from averaging.layout import Layout
from averaging.trailer import unpack
from dht.errors import ConfigError
from dht.wire import digest
from peer.manifest import Codec, Manifest, Privacy
from peer.noise import NoisePlan, noise_clip
from tests.peer.learner_oracle import oracle_weight
from tests.peer.learner_table import Table
from tests.peer.swarm_in_process import tiny_manifest

MULTIPLIER, CLIP = 0.02, 0.05


def manifest(multiplier: float = MULTIPLIER, clip: float = CLIP, bits: int = 32) -> Manifest:
    codec = Codec(chunk_elements=4096, ring_bits=bits)
    return tiny_manifest(3).replace(codec=codec, privacy=Privacy(noise_multiplier=multiplier, clip_norm=clip))


def plan(multiplier: float, minimum: int, parameters: int) -> NoisePlan:
    return NoisePlan(multiplier, 1.0, minimum, parameters, Layout(parameters, 32).elements)


def mean_update(table: Table, view: SimpleNamespace) -> np.ndarray:
    learner = table.learners[0]
    from peer.prepared import Prepared

    sums = view.aggregate
    prepared = Prepared(1, b"", b"", sums.sid, sums.members, sums.tokens, sums.domains, sums.lost, sums.sums)
    return np.concatenate(list(learner._outcome(prepared).gradient()))


@pytest.mark.parametrize("change", [{"ring_bits": 16}, {"ring_bits": 8}, {"pack": 10}])
def test_other_rings_are_refused(change):
    with pytest.raises(ConfigError, match="32-bit ring") as caught:
        manifest().replace(codec=Codec(**{"ring_bits": 32} | change))
    assert "codec.ring_bits = 32" in caught.value.remedy


def test_noise_that_drowns_the_sum_is_refused_with_its_ratio():
    loud = manifest(multiplier=0.05)
    layout, told = Layout(10_000, 32), []
    assert NoisePlan.of(manifest(multiplier=0.03), layout, told.append).ratio == pytest.approx(0.03 * 100 / 3)
    with pytest.raises(ConfigError, match=r"1\.67 times as long as an update.*z = 0\.05, d = 10000, K = 3"):
        NoisePlan.of(loud, layout, told.append)
    assert len(told) == 1 and "epsilon" in told[0]


def test_without_noise_there_is_no_plan():
    assert NoisePlan.of(tiny_manifest(3), Layout(10**9, 16), print) is None


def test_what_is_printed_says_epsilon_ratio_and_a_warning_above_a_third():
    quiet, loud = plan(0.1, 64, 1000), plan(1.0, 64, 1000)
    assert "z * sqrt(d) / K = 0.049 at K = 64" in quiet.describe() and "worse" not in quiet.describe()
    assert "0.494" in loud.describe() and "expect a worse model" in loud.describe()
    assert f"{loud.epsilon(100):.3g} after 100" in loud.describe()


@pytest.mark.parametrize(("multiplier", "rounds"), [(1.0, 1), (7.0, 100), (22.0, 1000)])
def test_epsilon_is_that_of_a_gaussian_of_this_multiplier(multiplier, rounds):
    """At 32 bits rounding and splitting cost next to nothing: the zCDP of a Gaussian is 1 / (2 z^2) per round."""
    some = plan(multiplier, 16, 100_000)
    assert 1 / (2 * multiplier**2) < some.rho() < 1.01 / (2 * multiplier**2)
    rho = rounds / (2 * multiplier**2)
    assert some.epsilon(rounds) == pytest.approx(rho + 2 * math.sqrt(rho * math.log(1e6)), rel=0.15)
    assert some.epsilon(rounds) < rho + 2 * math.sqrt(rho * math.log(1e6))


def test_members_who_collude_take_their_noise_off():
    some = plan(1.0, 8, 1000)
    assert some.rho(honest=4) == pytest.approx(some.rho() * 7 / 4, rel=1e-6)


async def test_the_sum_has_the_noise_of_three_and_the_clipped_updates(tmp_path):
    table = Table(tmp_path, manifest=manifest())
    views = await table.upload()
    updates = [learner._residual.copy() for learner in table.learners]
    weight = oracle_weight(views[0].tokens, table.manifest)
    lengths = [float(np.linalg.norm(update.astype(np.float64))) for update in updates]
    assert min(lengths) * weight > 2 * CLIP  # all of them are clipped
    table.add_up(views, [0, 1, 2])
    clipped = sum(update * (CLIP / length) for update, length in zip(updates, lengths, strict=True))
    off = mean_update(table, views[0])[: len(clipped)] * 3 * weight - clipped
    assert np.linalg.norm(clipped) <= 3 * CLIP
    # delta is 0 for three: each adds a third of the variance.
    assert float(off.std()) == pytest.approx(MULTIPLIER * CLIP, rel=5 / math.sqrt(2 * off.size))
    assert abs(float(off.mean())) < 5 * MULTIPLIER * CLIP / math.sqrt(off.size)


async def test_nothing_but_bounds_is_in_the_trailer(tmp_path):
    table = Table(tmp_path, manifest=manifest())
    views = await table.upload()
    rings = [table.rings[i][table.layout.trailer] for i in range(3)]
    assert np.array_equal(rings[0], rings[1]) and np.array_equal(rings[1], rings[2])
    totals = unpack(sum(rings[1:], rings[0]), 3)
    assert (totals.mean_loss, totals.mean_first_loss, totals.mean_lost_norm) == (0.0, 0.0, 0.0)
    assert totals.tokens == 3 * views[0].tokens


async def test_rounds_go_on_without_feedback_and_with_one_fixed_clip(tmp_path):
    table = Table(tmp_path, manifest=manifest())
    clip = np.float32(noise_clip(table.manifest))
    for _ in range(3):
        await table.round()
        for learner in table.learners:
            assert not learner._residual.any()
            assert set(learner.state.scales.tolist()) == {float(clip)}
    left_out = await table.round(survivors=[0, 1])
    assert left_out.survivors
    assert table.learners[2]._residual.any()  # what did not go into a sum is not lost


async def test_a_chunk_encoded_again_has_the_same_noise(tmp_path):
    table = Table(tmp_path, manifest=manifest())
    views = await table.upload()
    learner = table.learners[0]
    for chunk in range(table.layout.chunks):
        assert np.array_equal(learner.encode(views[0], chunk), table.rings[0][chunk])
    sent = learner._sent
    plain = Encoder(table.layout, 3, learner.state.scales, digest("signs", sent.sid))
    learner._sent = dataclasses.replace(sent, encoder=plain)
    assert not np.array_equal(learner.encode(views[0], 0), table.rings[0][0])  # so there was some


def test_a_small_update_is_not_scaled_up():
    some = plan(1.0, 8, 100)
    update = np.full(100, 0.01, np.float32)
    assert some.clipped(update, 0.5) == 0.5
    assert some.clipped(update * 100, 0.5) * 10.0 == pytest.approx(1.0)
    assert some.clipped(np.zeros(100, np.float32), 0.25) == 0.25
