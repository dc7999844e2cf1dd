"""Masked updates minus all that colluders know look uniform, and the check can tell: without one mask it fails.

What they know: every upload of a member, the pair masks that they share with it, and the one seed of it that the
protocol opens (the self mask's of a survivor, the pair masks' of who dropped out). Seeds are fixed, so these tests
give the same statistic every time; the significance is what it would be for fresh ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from averaging.bulk import BulkKind, Chunk
from averaging.dealing import Seed
from averaging.keys import mask_private_from_seed, pair_key, self_key
from averaging.masking import add_stream
from averaging.messages import Unmask
from averaging.params import threshold
from averaging.survivors import bits
from tests.averaging.cohort_net import CohortNet

N = 8
COLLUDERS = 2 * threshold(N) - N - 1
SIGNIFICANCE = 1e-6
"""Probability that one test fails although its bytes are uniform."""


def tail(statistic: float, freedom: int) -> float:
    """P(chi-squared >= statistic), by Wilson and Hilferty's cube root approximation (1931)."""
    spread = 2 / (9 * freedom)
    z = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return math.erfc(z / math.sqrt(2)) / 2


def least_likely(words: Iterable[Any]) -> float:
    """The smallest p-value of Pearson's test for uniform bytes, by place in the word; Bonferroni-corrected."""
    data = np.concatenate([np.ascontiguousarray(ring).view(np.uint8).reshape(-1, ring.itemsize) for ring in words])
    smallest = 1.0
    for place in range(data.shape[1]):
        counts = np.bincount(data[:, place], minlength=256)
        expected = len(data) / 256
        assert expected >= 5  # or the statistic has another distribution
        smallest = min(smallest, tail(float(((counts - expected) ** 2 / expected).sum()), 255))
    return min(1.0, smallest * data.shape[1])


class Coalition:
    """The last members of a cohort that has run, and what they know of the others."""

    def __init__(self, net: CohortNet, count: int) -> None:
        self.net, self.members = net, tuple(range(N - count, N))
        self.honest = tuple(range(N - count))
        self.sid = net.roster.sid
        self.uploads: dict[tuple[int, int], Any] = {}
        for i, _, item in net.sent:
            if isinstance(item, Chunk) and item.kind is BulkKind.MASKED and item.index < net.params.layout.chunks:
                self.uploads[i, item.index] = np.frombuffer(item.data, net.params.layout.dtype(item.index))

    def seed_of(self, victim: int) -> tuple[Seed, bytes]:
        """The one seed that the protocol opened, put together from the shares that a colluding reducer was sent."""
        messages = {i: item for i, to, item in self.net.sent if isinstance(item, Unmask) and to == self.members[0]}
        cohort = self.net.nodes[self.members[0]].cohort
        kind = Seed.SELF if victim in bits(next(iter(messages.values())).survivors) else Seed.MASK
        shares = {i: message.shares[victim] for i, message in messages.items()}
        shares |= {i: self.net.nodes[i].cohort._dealing.share(kind, victim) for i in self.members}
        return kind, cohort._dealing.open(kind, victim, shares)

    def leftover(self, victim: int, chunk: int, *, also: tuple[int, ...] = (), own: bool = False) -> Any:
        """An upload minus every known mask. For controls: also minus the victim's with `also`, and its self mask."""
        ring = self.uploads[victim, chunk].copy()
        kind, seed = self.seed_of(victim)
        secrets = [node.secrets for node in self.net.nodes]
        known = self.members + also
        if kind is Seed.SELF or own:
            add_stream(self_key(seed if kind is Seed.SELF else secrets[victim].b, self.sid), chunk, ring, -1)
        if kind is Seed.MASK:
            private, known = mask_private_from_seed(seed), tuple(i for i in range(N) if i != victim)
        for other in known:
            public = self.net.roster.members[victim].join.mask_key
            theirs = self.net.roster.members[other].join.mask_key
            key = (
                pair_key(private, theirs, self.sid, victim, other)
                if kind is Seed.MASK
                else pair_key(secrets[other].mask_private, public, self.sid, other, victim)
            )
            add_stream(key, chunk, ring, -1 if victim < other else 1)
        return ring

    def sums(self, chosen: tuple[int, ...], **control: Any) -> list[Any]:
        """Leftovers of several members, summed: masks between them cancel."""
        chunks = [c for c in range(self.net.params.layout.chunks) if all((i, c) in self.uploads for i in chosen)]
        rings = [[self.leftover(i, chunk, **control) for i in chosen] for chunk in chunks]
        return [np.sum(parts, axis=0, dtype=parts[0].dtype) for parts in rings]


@pytest.fixture(scope="module", params=[8, 16, 32])
def finished(request: pytest.FixtureRequest) -> CohortNet:
    net = CohortNet(N, request.param, chunks=32).run()
    net.check_sums()
    return net


def test_the_check_knows_uniform_bytes_from_others() -> None:
    source = np.random.default_rng(1)
    assert least_likely([source.integers(0, 65536, 1 << 17, np.uint16)]) > 0.01
    assert least_likely([source.integers(0, 65536, 1 << 17, np.uint16) & np.uint16(0xFEFF)]) < 1e-30
    assert tail(255.0, 255) == pytest.approx(0.48822, rel=1e-3) and tail(377.0, 255) == pytest.approx(
        1.013e-6, rel=0.05
    )


def test_as_many_colluders_as_the_table_allows_see_uniform_bytes_of_every_group_of_the_others(
    finished: CohortNet,
) -> None:
    """Of one honest member, and of any two summed. All three summed are the sum that everybody gets."""
    coalition = Coalition(finished, COLLUDERS)
    assert len(coalition.honest) == 3
    for size in (1, 2):
        for chosen in combinations(coalition.honest, size):
            assert least_likely(coalition.sums(chosen)) > SIGNIFICANCE, chosen
    assert least_likely(coalition.sums(coalition.honest)) < SIGNIFICANCE


def test_the_check_fails_when_one_honest_mask_is_left_out(finished: CohortNet) -> None:
    """With two honest members left there is one mask between them: with it uniform, without it not."""
    coalition = Coalition(finished, N - 2)
    assert least_likely(coalition.sums((0,))) > SIGNIFICANCE
    assert least_likely(coalition.sums((0,), also=(1,))) < SIGNIFICANCE**2
    assert least_likely(coalition.sums((1,), also=(0,))) < SIGNIFICANCE**2


def test_of_who_dropped_out_the_self_mask_stays_when_its_pair_masks_are_opened() -> None:
    net = CohortNet(N, 16, chunks=32)
    net.plan = {0: ("MASKED chunk", 32)}
    net.run()
    assert net.fired
    net.check_sums()
    coalition = Coalition(net, COLLUDERS)
    assert coalition.seed_of(0)[0] is Seed.MASK and coalition.seed_of(1)[0] is Seed.SELF
    assert least_likely(coalition.sums((0,))) > SIGNIFICANCE
    assert least_likely(coalition.sums((0,), own=True)) < SIGNIFICANCE**2
