"""The sum is exact: every cohort size, every ring, deaths in every step, against an oracle that knows every update."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from averaging.auditing import AuditShares, Unshown
from averaging.bulk import BulkKind, Chunk
from averaging.messages import Manifest, SumHashes, Unmask
from averaging.params import tolerated
from tests.averaging.cohort_net import CohortNet

# Where a member may die, and before which of its own actions it does: the k-th of that name, k counted from 1, None
# for one drawn by the seed, so that a broadcast reaches some and not others.
STEPS: dict[str, tuple[str, int | None]] = {
    "once shares are held": ("Upload", 1),
    "mid-upload": ("MASKED chunk", None),
    "mid-manifest": ("Manifest", None),
    "with the receipt": ("Receipt", None),
    "before the vote": ("Vote", 1),
    "mid-vote": ("Vote", None),
    "under the certificate": ("Unmask", 1),
    "mid-opening": ("Unmask", None),
    "before reducing": ("Reduce", 1),
    "after reducing": ("reduced", 1),
    "mid-hashes": ("SumHashes", None),
    "mid-publishing": ("SUM chunk", None),
    "mid-audit": ("AuditShares", None),
    "with the sum": ("complete", 1),
}
LATE = list(STEPS)[list(STEPS).index("with the receipt") :]
"""Steps in which the dead may be among the certified survivors and reducers."""


def play(n: int, bits: int, step: str, seed: int = 0) -> CohortNet:
    """A cohort in which one to delta members die in a step; some of the others are told, some must wait."""
    name, turn = STEPS[step]
    net = CohortNet(n, bits, seed)
    draw = random.Random(f"{n} {bits} {step} {seed}")
    net.announce = draw.choice((0.0, 0.5, 1.0))
    for victim in draw.sample(range(n), draw.randint(1, tolerated(n))):
        net.plan[victim] = (name, turn or draw.randint(2, n - 1))
    net.run()
    assert {(victim, name) for victim in net.plan} == set(net.fired), "not every death happened in its step"
    return net


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("n", range(3, 17))
def test_the_sum_of_all_is_exact(n, bits):
    net = CohortNet(n, bits).run()
    assert net.check_sums() == ()
    assert all(node.cohort.certified.survivors == tuple(range(n)) for node in net.nodes)
    assert net.refusals == []
    seeds = {node.cohort.audit_seed for node in net.nodes}
    assert len(seeds) == 1 and None not in seeds


@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("n", range(4, 17))
def test_the_sum_of_the_survivors_is_exact_whoever_dies_when(n, turn):
    """Three runs give every step, and every step every ring over the cohort sizes."""
    for k, step in list(enumerate(STEPS))[turn::3]:
        net = play(n, (8, 16, 32)[(n + k) % 3], step)
        lost = net.check_sums()
        # One death loses nothing: its own chunks are with one other member (copies = 1), and all others resend. Of two
        # certified members that die neither can resend to the other's stand-in: their chunks are zero for everyone,
        # and the record says so.
        assert not lost or (len(net.fired) > 1 and step in LATE), step
        assert net.refusals == [], step


def test_every_leader_may_die_in_the_middle_of_its_proposal():
    for n in (4, 8, 16):
        for told in (0.0, 1.0):
            net = CohortNet(n, seed=3)
            net.announce = told
            for leader in range(tolerated(n)):
                net.plan[leader] = ("Survivors", 2 + leader)
            net.run()
            assert len(net.fired) == tolerated(n)
            lost = net.check_sums()
            assert not lost or n == 16


def test_two_reducers_that_die_after_the_certificate_cost_their_chunks_and_no_other():
    """With n = 16 two deaths are tolerated. Neither can bring its chunk to the other's stand-in any more."""
    net = CohortNet(16, seed=1)
    net.plan = {4: ("Reduce", 1), 9: ("Reduce", 1)}
    net.run()
    assert len(net.fired) == 2
    assert net.check_sums() == (4, 9)
    assert all({4, 9} <= set(net.nodes[i].cohort.certified.survivors) for i in net.living)


def test_more_deaths_than_tolerated_end_in_a_clean_abort():
    """In no step is there a wrong sum: members that get one get the exact one, the others get none."""
    results = Counter[str]()
    for n in (4, 8):
        for step, (name, turn) in STEPS.items():
            net = CohortNet(n, seed=2)
            net.plan = {victim: (name, turn or 2) for victim in range(1, 2 + tolerated(n))}
            net.run()
            assert len(net.fired) == len(net.plan), step
            # Sums that too few are left to audit do not count either.
            done = [i for i in net.living if net.nodes[i].complete and net.nodes[i].cohort.failed is None]
            assert all(net.nodes[i].cohort.failed for i in net.living if i not in done), step
            for member in done:
                net.check_sums([done[0], member])
            results[step] += len(done)
            opened = {message.survivors for message in net.messages(Unmask)}
            assert len(opened) <= (step != "mid-upload"), step
    assert results["mid-upload"] == 0 and results["with the sum"] > 0


def test_a_slow_member_is_left_out_and_the_rest_is_exact():
    net = CohortNet(8, seed=5)
    net.delay = lambda i, j, item: 30.0 if i == 2 and isinstance(item, Manifest) else net.random.uniform(0.001, 0.3)
    net.run()
    others = [i for i in range(8) if i != 2]
    net.check_sums(others)
    assert net.nodes[0].cohort.certified.survivors == tuple(others)


def test_lost_sums_are_asked_for_and_relayed_with_their_authors_hashes():
    net = CohortNet(8, seed=6)
    lost: list[int] = []

    def drop(i, j, item):
        mine = i == 1 and j == 0 and (isinstance(item, SumHashes) or getattr(item, "member", None) == 1)
        if mine and net.counts[1, "SumHashes"]:
            lost.append(j)
            return None
        return item

    net.tamper = drop
    net.plan = {1: ("complete", 1)}  # its author cannot send it again
    net.announce = 0.0
    net.run()
    assert lost and net.fired
    assert net.check_sums() == ()
    author, _ = net.nodes[0].cohort.sums.get(net.nodes[0].cohort.duties.of(1)[0])
    assert author in (1, 2)


# Those that once were refused: the hash had not come, or the seed was not open yet where the question went.
@pytest.mark.parametrize(("n", "seed"), [(7, 0), (15, 0), (8, 21), (12, 23)])
def test_an_auditor_that_heard_more_than_others_is_refused_by_nobody(n, seed):
    """Some hear of a hash whose author dies, and audit it; they ask for inputs among others who never heard of it."""
    rings = (8, 16, 32)
    nets = [play(n, bits, "mid-hashes", seed) for bits in rings]
    for net in nets:
        net.check_sums()
        assert net.refusals == []
    assert any(net.messages(Unshown) for net in nets)


def test_an_author_that_misses_a_hash_still_shows_its_auditor_what_the_dead_had_sent_it():
    """Only the reducer of chunk 15 holds the dead member's part of it, and it does not know of all hashes yet."""
    net = play(16, 8, "mid-hashes", 17)
    assert net.check_sums() == ()
    assert net.refusals == []
    mine = [(item, sent) for (i, _, item), (sent, _) in zip(net.sent, net.times, strict=True) if i == 15]
    shown = min(at for item, at in mine if isinstance(item, Chunk) and item.kind is BulkKind.AUDIT)
    assert shown < min(at for item, at in mine if isinstance(item, AuditShares))
