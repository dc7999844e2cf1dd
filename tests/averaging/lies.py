"""Liars for tests, and the evidence that their lies leave behind."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from averaging.dealing import Seed, share_digest
from averaging.evidence import Contradiction, WrongSeed, WrongSum
from averaging.shamir import split
from dht.envelope import seal
from dht.wire import decode_as
from tests.averaging.cohort_net import RUN, CohortNet, identity


def sums_wrongly(cohort: Any, chunks: Callable[[int], bool] = lambda chunk: True) -> None:
    """From now on this member adds one to the first word of what it reduces."""
    honest = cohort.sums.computed

    def computed(chunk: int, author: int, ring: np.ndarray[Any, Any]) -> None:
        if chunks(chunk):
            ring[0] += 1
        honest(chunk, author, ring)

    cohort.sums.computed = computed


def wrong_sum_net(n: int = 5, liar: int = 2, dead: int | None = None, place: int = 0, **changes: Any) -> CohortNet:
    """A cohort under full audit, run to its end, with a reducer that signs a wrong sum of one of its chunks."""
    net = CohortNet(n, **{"audit_share": 1.0, **changes})
    for i, node in enumerate(net.nodes):
        node.cohort = net.make_cohort(i)
    if dead is not None:
        net.plan = {dead: ("Upload", 1)}
    first = net.nodes[liar].cohort.duties.of(liar)[place]
    sums_wrongly(net.nodes[liar].cohort, lambda chunk: chunk == first)
    return net.run()


@lru_cache
def wrong_sum(n: int = 5, liar: int = 2, dead: int | None = None) -> WrongSum:
    """The evidence against a reducer, as the first member that audits it writes it down."""
    net = wrong_sum_net(n, liar, dead)
    (frame, *_) = [frame for node in net.nodes for frame in node.cohort.proofs]
    return decode_as(WrongSum, frame)


@lru_cache
def wrong_seed(n: int = 5, liar: int = 2) -> WrongSeed:
    """The evidence against a dealer that shares another self-mask seed than it committed to."""
    net = CohortNet(n)
    for i, node in enumerate(net.nodes):
        node.cohort = net.make_cohort(i)
    deal_another_seed(net.nodes[liar].cohort)
    net.run()
    (frame, *_) = [frame for node in net.nodes for frame in node.cohort.proofs]
    return decode_as(WrongSeed, frame)


def deal_another_seed(cohort: Any) -> None:
    """This member's shares, all alike and rightly hashed, open another self-mask seed than its Join names."""
    dealing, count = cohort._dealing, len(cohort.peers)
    dealing._dealt[Seed.SELF] = split(bytes(31), cohort.threshold, count, lambda size: bytes([7]) * size)
    dealing._held[cohort.me] = tuple(dealing._dealt[kind][cohort.me] for kind in Seed)
    dealing._commitments[cohort.me] = tuple(
        share_digest(cohort.sid, kind, cohort.me, holder, dealing._dealt[kind][holder])
        for kind in Seed
        for holder in range(count)
    )


def two(first: object, second: object, signer: int = 0, round_: int = 1) -> Contradiction:
    """Two messages of one signer, in the order of their bodies, whether they contradict each other or not."""
    pair = [seal(identity(signer), RUN, round_, message) for message in (first, second)]
    return Contradiction(*sorted(pair, key=lambda envelope: envelope.body))
