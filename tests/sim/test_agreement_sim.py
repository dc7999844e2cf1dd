"""Whole committees under virtual time: never two certified records, always one once the network delivers.

A failing seed is in the test's name: `play(seed)` replays it exactly.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from averaging import ballot_box, certificate
from averaging.agreement import Agreement
from averaging.ballots import NIL, PRECOMMIT, PREVOTE, Ballot, Gossip, Proposal
from averaging.committee import Committee
from dht.envelope import Envelope, seal
from dht.wire import encode
from tests.sim.agreement_net import ROUND, RUN, Net, Weather

SIZES = (4, 4, 4, 5, 6, 7, 7, 8, 10, 13, 16)
BLOCK = 40
FAULTS = ("lost", "split", "delayed", "duplicated", "crash", "sent to the dead", "unknown yet")
FAULTS += ("invalid proposal", "equivocated", "replayed", "refused")


def play(seed: int, *, heals: float | None = None, until: float | None = None) -> Net:
    """A committee with up to a third of liars in a weather drawn from the seed."""
    draw = Random(f"weather {seed}")
    n = draw.choice(SIZES)
    liars = frozenset(draw.sample(range(n), draw.randint(0, certificate.faulty(n))))
    heals = draw.uniform(3, 12) if heals is None else heals
    splits = []
    for _ in range(draw.randint(0, 3)):
        begin = draw.uniform(0, min(heals, 12))
        side = frozenset(draw.sample(range(n), draw.randint(1, n - 1)))
        splits.append((begin, draw.uniform(begin, min(heals, 20)), side))
    weather = Weather(
        loss=draw.choice((0.0, 0.05, 0.2, 0.4)),
        duplicate=draw.choice((0.0, 0.2)),
        delay=draw.choice((0.05, 0.3, 1.0)),
        splits=splits,
        heals=heals,
    )
    net = Net(seed, n, weather, liars=liars, slow=draw.choice((0.0, 2.0, 8.0)))
    for _ in range(draw.randint(0, 3)):
        net.at(draw.uniform(0.2, min(heals, 12) - 0.6), "crash", draw.randrange(n), draw.uniform(0.1, 0.5))
    net.run(heals + 300 if until is None else until)
    net.close()
    return net


def assert_safe(net: Net) -> None:
    assert len(net.certifiable) <= 1
    assert set(net.decided) <= net.certifiable
    assert net.contradictions == set()


@pytest.mark.parametrize("block", range(5))
def test_one_record_is_certified_whatever_happens_and_all_learn_it_after_the_network_heals(block: int):
    fired: Counter[str] = Counter()
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        net = play(seed)
        assert_safe(net)
        assert net.all_decided(), f"seed {seed} did not decide"
        assert len(net.decided) == 1, f"seed {seed}"
        fired += net.fired
    assert [fault for fault in FAULTS if not fired[fault]] == []


def test_no_two_records_are_certified_even_if_the_network_never_heals():
    decided = 0
    for seed in range(1000, 1012):
        net = play(seed, heals=1e9, until=15.0)
        assert_safe(net)
        decided += net.all_decided()
    assert decided < 12, "the weather was too good to show anything"


def test_the_same_seed_plays_the_same_and_another_does_not():
    assert play(7).trace == play(7).trace != play(8).trace


def test_the_dead_third_stops_nobody_and_one_more_stops_everybody():
    for dead, decides in ((2, True), (3, False)):
        net = Net(1, 7, Weather(delay=0.05), dead=frozenset(range(dead)))
        net.run(60.0)
        assert len(net.honest) == 7 - dead
        assert net.all_decided() == bool(net.decided) == decides
        assert net.fired["sent to the dead"] > 0
        net.close()


# Directed schedules: each breaks a protocol that lacks one rule, and does nothing to ours.


class NoLockRule(Agreement):
    """Prevotes whatever is valid, locked or not."""

    def _lock_allows(self, value: bytes, valid_view: int) -> bool:
        return True


def halves_apart() -> Net:
    """Two halves of four that never hear of each other."""
    return Net(3, 4, Weather(delay=0.05, splits=[(0.0, 30.0, frozenset({0, 1}))], heals=30.0))


def one_decides_and_falls_silent(rules: type[Agreement] = Agreement, *, liars: frozenset[int] = frozenset()) -> Net:
    """Members p0, p2, p3 lock p0's record in view 0, only p0 sees their precommits, and p0 is cut off.

    p1 has seen neither proposal nor proof, and proposes its own record in view 1.
    """
    net = Net(5, 4, Weather(delay=0.02, heals=20.0), rules=rules, liars=liars, starts=0.0)
    p0, p1, *_ = net.proposers()

    def drop(source: int, to: int, envelope: Envelope, now: float) -> bool:
        body = envelope.message()
        if isinstance(body, Gossip):
            return True
        if isinstance(body, Proposal) and body.view == 0:
            return to == p1
        if isinstance(body, Ballot) and body.view == 0:
            # p1 prevotes nil in view 0, so the others lack one precommit, and it lacks one prevote.
            return source == p0 and body.kind == PRECOMMIT
        return p0 in (source, to)

    net.weather.drop = drop
    # p0 never comes back into the conversation: what it decided must survive without it.
    net.weather.splits = [(4.0, 20.0, frozenset({p0}))]
    return net


def decide_without_the_first(net: Net) -> None:
    """Let the cut-off member stay away until the others have decided."""
    first = net.proposers()[0]
    net.run(19.0, stop_when_decided=False)
    assert {index for members in net.decided.values() for index in members} >= {first}
    assert net.fired["dropped"] > 0
    net.nodes[first].agreement, net.nodes[first].timers = None, {}
    net.run(120.0, stop_when_decided=False)


def forge_a_proof(net: Net) -> None:
    """p1 claims a proof of lock of view 0 for its own record, with signatures that it made up."""
    p1 = net.proposers()[1]
    (decided,) = net.decided
    record = next(record for record in net.records if record.hash() != decided)
    value = record.hash()
    forged = Proposal(ROUND, 1, value, 1, encode(record), (0, 1, 2), (b"\x01" * 64,) * 3)
    for body in (forged, Ballot(ROUND, 1, PREVOTE, value), Ballot(ROUND, 1, PRECOMMIT, value)):
        say(net, p1, body)


def say(net: Net, liar: int, body: object) -> None:
    for to in range(net.n):
        if to != liar:
            net.send(liar, to, seal(net.identities[liar], RUN, ROUND, body))


def test_halves_apart_decide_nothing_and_then_one_record():
    net = halves_apart()
    net.run(29.0)
    assert net.fired["split"] > 0
    assert net.decided == {}
    net.run(200.0)
    assert net.all_decided()
    assert_safe(net)
    net.close()


def test_a_quorum_one_lower_forks(monkeypatch: pytest.MonkeyPatch):
    for module in (certificate, ballot_box):
        monkeypatch.setattr(module, "quorum", lambda n: 2 * n // 3)
    net = halves_apart()
    net.run(29.0)
    assert len(net.decided) == 2
    net.close()


@pytest.mark.parametrize(("rules", "records"), [(Agreement, 1), (NoLockRule, 2)])
def test_without_the_lock_rule_a_silent_decision_is_overruled(rules: type[Agreement], records: int):
    net = one_decides_and_falls_silent(rules)
    decide_without_the_first(net)
    assert len(net.decided) == len(net.certifiable) == records
    net.close()


@pytest.mark.parametrize(("forget", "records"), [(False, 1), (True, 2)])
def test_a_restart_without_its_guard_forgets_its_lock(forget: bool, records: int):
    net = one_decides_and_falls_silent()
    _, _, p2, p3 = net.proposers()
    while not net.decided:
        net.run(net.now + 0.01, stop_when_decided=False)
    for index in (p2, p3):
        net.crash(index, back_after=0.1, forget=forget)
    assert net.fired["crash"] == 2
    decide_without_the_first(net)
    assert len(net.decided) == len(net.certifiable) == records
    assert bool(net.contradictions) == forget
    net.close()


@pytest.mark.parametrize(("checked", "records"), [(True, 1), (False, 2)])
def test_a_proof_of_lock_that_nobody_checks_unlocks_everybody(
    checked: bool, records: int, monkeypatch: pytest.MonkeyPatch
):
    if not checked:
        monkeypatch.setattr(Committee, "check_proof", lambda self, proof: self._open(proof.record, proof.value))
    p1 = one_decides_and_falls_silent().proposers()[1]
    net = one_decides_and_falls_silent(liars=frozenset({p1}))
    net.schemers[p1].silent = True
    net.run(1.0, stop_when_decided=False)
    say(net, p1, Ballot(ROUND, 0, PRECOMMIT, NIL))
    net.run(1.5, stop_when_decided=False)
    forge_a_proof(net)
    net.run(3.0, stop_when_decided=False)
    assert net.fired["refused"] >= (2 if checked else 0)
    decide_without_the_first(net)
    assert len(net.decided) == len(net.certifiable) == records
    net.close()
