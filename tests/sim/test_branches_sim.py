"""Committees that lose more than a third for good, long splits, and branches that meet, under virtual time."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from averaging.ballots import PRECOMMIT, Ballot, Decision, Gossip
from averaging.branches import tokens_after
from averaging.chain import Chain, ChainSegment
from averaging.messages import Receipt
from averaging.params import honest_witness
from dht.envelope import Envelope
from dht.identity import PeerId
from dht.wire import decode_as
from tests.sim.swarm import Peer, Swarm

AFTER = 12.0
"""Seconds of virtual time that count as gone for good."""


class Split(Swarm):
    """A swarm in which one history may become several. Its oracle knows branches."""

    def __init__(self, peers: int, seed: int, **changes) -> None:
        super().__init__(peers, seed, **{"recovery_after": AFTER, **changes})
        self.fired: Counter[str] = Counter()
        self.rolled_back: dict[PeerId, int] = {}
        self.uploads: dict[int, set[PeerId]] = defaultdict(set)
        self.on_event = self.count
        for peer in self.peers.values():
            peer.speed = 0.5

    def count(self, name: str, peer: Peer) -> None:
        """Count events; note who changed its branch, and up to which round it may upload nothing."""
        self.fired[name] += 1
        if name == "rolled back":
            self.rolled_back[peer.id] = peer.guard.forsaken(self.run_id)
        if name == "upload" and peer.participant is not None:
            number = peer.participant.round
            assert number > self.rolled_back.get(peer.id, 0), "uploaded in a round of both branches"
            self.uploads[number].add(peer.id)

    def until_first(self, rounds: int = 1) -> None:
        """Start, and go through the first rounds."""
        self.start()
        assert self.run(lambda: self.reached(rounds), 60)

    def chain(self, peer: PeerId) -> Chain:
        """The chain of a living peer."""
        participant = self.peers[peer].participant
        assert participant is not None and participant.chain is not None
        return participant.chain

    def pass_time(self, seconds: float) -> None:
        """Let virtual seconds pass."""
        end = self.now + seconds
        assert self.run(lambda: self.now >= end or not self._queue, seconds + 100)

    def living(self) -> list[PeerId]:
        """Peers whose process runs."""
        return [peer for peer in self.order if self.peers[peer].alive]

    def united(self) -> bool:
        """Whether all living peers hold the state of one head."""
        heads = {self.chain(peer).beacon for peer in self.living()}
        return len(heads) == 1 and all(self.peers[p].participant.settled for p in self.living())

    def goes_on(self, rounds: int = 2, limit: float = 150.0) -> bool:
        """Whether all living peers come to one head, some rounds further on, that counts updates of all of them."""
        height = max(self.chain(peer).head.round for peer in self.living())

        def there() -> bool:
            head = self.chain(self.living()[0]).head
            return self.united() and head.round >= height + rounds and set(head.members()) == set(self.living())

        return self.run(there, limit)

    def check(self) -> None:
        """Exact sums on every branch, no share that must not leave, and states that their own chain certifies."""
        assert self.watch.broken == []
        for sid, results in self.sums.items():
            for aggregate in results.values():
                self._check_sum(sid, aggregate)
        for peer in self.living():
            chain = self.chain(peer)
            stored = self.peers[peer]
            if stored.chain is chain:
                assert all(chain.record(round_).state_root == root for round_, root in stored.states.items())

    def cut(self, *sides: list[PeerId]) -> None:
        """Cut all links between sides."""
        for side in sides:
            self.partition(set(side))


def _is(frame: bytes, kind: type) -> bool:
    return frame[0] == 0x01 and isinstance(decode_as(Envelope, frame).message(), kind)


def branched(swarm: Split, peer: PeerId) -> bool:
    return bool(swarm.chain(peer).recoveries)


# --- gone for good --------------------------------------------------------------------------------------------------


def test_a_third_of_the_committee_gone_for_good_and_the_rest_goes_on():
    swarm = Split(8, 1)
    swarm.until_first()
    dead = swarm.order[: honest_witness(8)]
    for peer in dead:
        swarm.crash(peer)
    died, living = swarm.now, swarm.living()
    before = max(swarm.chain(peer).head.round for peer in living)
    assert swarm.run(lambda: all(branched(swarm, peer) for peer in living), 3 * AFTER)
    assert AFTER * 0.9 < swarm.now - died < 2 * AFTER
    (recovery,) = {swarm.chain(peer).recoveries[0][0] for peer in living}
    record = swarm.chain(living[0]).record(recovery)
    assert set(record.members()) == set(living)
    assert recovery <= before + 2
    assert swarm.goes_on(3)
    swarm.check()
    # Somebody comes back after all: it follows the branch and is counted again.
    swarm.start(dead[:1])
    assert swarm.goes_on(3)
    swarm.check()


@pytest.mark.parametrize(("gone", "after"), [(2, AFTER), (3, 0.0), (5, AFTER)])
def test_nobody_branches_with_a_quorum_or_without_half_or_when_it_may_not(gone: int, after: float):
    swarm = Split(8, 2, recovery_after=after)
    swarm.until_first()
    for peer in swarm.order[:gone]:
        swarm.crash(peer)
    height = swarm.height()
    swarm.pass_time(3 * AFTER)
    assert not any(branched(swarm, peer) for peer in swarm.living())
    assert (swarm.height() > height + 3) == (gone == 2)
    swarm.check()


def test_short_outages_never_branch():
    swarm = Split(8, 3)
    swarm.until_first()
    for _ in range(4):
        swarm.cut(list(swarm.order[:4]))
        swarm.pass_time(0.7 * AFTER)
        swarm.heal()
        assert swarm.goes_on(1)
    assert not any(branched(swarm, peer) for peer in swarm.order)
    assert swarm.fired["Present"] > 0 and not swarm.fired["Recover"]
    swarm.check()


# --- splits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("peers", "away", "seed"), [(8, 4, 1), (8, 4, 3), (16, 8, 1), (16, 5, 1), (8, 3, 1)])
def test_branches_meet_and_one_history_is_left(peers: int, away: int, seed: int):
    """Two halves both branch; with 11 of 16 there is a quorum and no branch; 3 of 8 wait while 5 branch."""
    swarm = Split(peers, seed)
    swarm.until_first()
    one, other = list(swarm.order[:away]), list(swarm.order[away:])
    swarm.cut(one)
    swarm.pass_time(AFTER + 6)
    sides = [[branched(swarm, peer) for peer in side] for side in (one, other)]
    assert [all(side) for side in sides] == [2 * away == peers, peers != 16 or away == 8]
    assert [any(side) for side in sides] == [all(side) for side in sides]
    heights = {side[0]: swarm.chain(side[0]).head.round for side in (one, other)}
    assert heights[other[0]] > 2
    swarm.heal()
    healed = swarm.now
    assert swarm.run(swarm.united, 60)
    assert swarm.now - healed < 30
    forked = [swarm.chain(peer).recoveries[0][0] for peer in (one[0], other[0]) if branched(swarm, peer)]
    assert len(set(forked)) <= 1
    assert bool(swarm.fired["rolled back"]) == (2 * away == peers)
    assert swarm.goes_on(2)
    swarm.check()


def test_who_changed_its_branch_uploads_nothing_in_rounds_it_worked_on():
    """The heavier branch is behind in rounds: who comes to it waits until it has passed those that it knows."""
    swarm = Split(10, 5, genesis_peers=8, target=8)
    swarm.start(swarm.order[:8])
    assert swarm.run(lambda: swarm.reached(1, swarm.order[:8]), 60)
    one, other = list(swarm.order[:4]), list(swarm.order[4:8])
    swarm.cut(one)
    swarm.start(swarm.order[8:])  # two more on the other side: its rounds have more tokens
    light, heavy = (lambda: swarm.chain(one[0])), (lambda: swarm.chain(other[0]))
    weights = lambda: (tokens_after(light(), 2), tokens_after(heavy(), 2))  # noqa: E731
    assert swarm.run(lambda: branched(swarm, one[0]) and weights()[1] > weights()[0] + 1400, 90)
    swarm.cut(*[[peer] for peer in other])  # now it stands still
    assert swarm.run(lambda: light().head.round > heavy().head.round + 2, 60)
    assert weights()[0] < weights()[1]
    # Stop the other one, too, in a round in which everybody uploaded and nobody opened anything.
    swarm.tamper = lambda sender, to, frame: None if _is(frame, Receipt) else frame
    assert swarm.run(lambda: swarm.uploads[light().head.round + 1] >= set(one), 60)
    known = {peer: swarm.peers[peer].participant.round for peer in one}
    (stuck,) = set(known.values())
    assert all(swarm.peers[peer].guard.has_opened(swarm.run_id, stuck) is None for peer in one)
    # Whom the heavy branch's last certificate did not reach may see the other one first, and leave it, too.
    behind = {peer for peer in swarm.order[4:] if swarm.chain(peer).head.round < heavy().head.round}
    swarm.heal()
    assert swarm.run(swarm.united, 60)
    swarm.tamper = lambda sender, to, frame: frame
    assert swarm.run(lambda: heavy().head.round > stuck, 90)
    assert known.keys() <= swarm.rolled_back.keys() <= known.keys() | behind
    assert all(swarm.rolled_back[peer] >= stuck for peer in one)
    before = swarm.fired["upload"]
    assert swarm.goes_on(2)
    assert swarm.fired["upload"] > before
    swarm.check()


def test_a_half_splits_again_and_three_branches_become_one():
    swarm = Split(12, 4)
    swarm.until_first()
    sides = [list(swarm.order[:3]), list(swarm.order[3:6]), list(swarm.order[6:])]
    swarm.cut(sides[2])
    swarm.pass_time(AFTER + 6)
    assert all(branched(swarm, side[0]) for side in sides)
    swarm.cut(sides[0])
    swarm.pass_time(AFTER + 6)
    assert [len(swarm.chain(side[0]).recoveries) for side in sides] == [2, 2, 1]
    assert len({swarm.chain(side[0]).beacon for side in sides}) == 3
    swarm.heal()
    assert swarm.run(swarm.united, 90)
    assert swarm.goes_on(2)
    swarm.check()


def test_three_parts_none_of_which_is_half_wait_until_two_meet():
    swarm = Split(9, 6)
    swarm.until_first()
    sides = [list(swarm.order[i : i + 3]) for i in (0, 3, 6)]
    swarm.cut(*sides)
    swarm.pass_time(2 * AFTER)
    assert not any(branched(swarm, peer) for peer in swarm.order)
    swarm.heal()
    swarm.cut(sides[2])
    assert swarm.run(lambda: all(branched(swarm, peer) for peer in (*sides[0], *sides[1])), 3 * AFTER)
    assert not any(branched(swarm, peer) for peer in sides[2])
    swarm.heal()
    assert swarm.goes_on(2)
    assert not swarm.fired["rolled back"]
    swarm.check()


def test_a_round_that_only_a_few_know_of_stands_and_needs_the_others():
    """Three of eight know a certified round, five recover without it. It has the tokens, so the five roll back, into a
    round in whose committee they are and for which they may upload nothing: it ends void, and the run goes on."""
    swarm = Split(8, 7)
    few, dropped = set(swarm.order[:3]), Counter[str]()
    swarm.until_first(2)

    def lose(sender: PeerId, to: PeerId, frame: bytes) -> bytes | None:
        if sender in few and to not in few and frame[0] == 0x01:
            body = decode_as(Envelope, frame).message()
            if isinstance(body, Gossip | Decision | ChainSegment) or (
                isinstance(body, Ballot) and body.kind == PRECOMMIT
            ):
                dropped[type(body).__name__] += 1
                return None
        return frame

    swarm.tamper = lose
    height = max(swarm.chain(peer).head.round for peer in swarm.order)
    assert swarm.run(lambda: all(swarm.chain(peer).head.round > height for peer in few), 60)
    swarm.cut(list(few))
    swarm.tamper = lambda sender, to, frame: frame
    assert dropped
    rest = [peer for peer in swarm.order if peer not in few]
    assert all(swarm.chain(peer).head.round == height for peer in rest)
    assert swarm.run(lambda: all(branched(swarm, peer) for peer in rest), 3 * AFTER)
    assert tokens_after(swarm.chain(rest[0]), height) == 0
    known = swarm.chain(swarm.order[0]).record(height + 1)
    assert not any(branched(swarm, peer) for peer in few) and set(known.members()) == set(swarm.order)
    swarm.heal()
    assert swarm.goes_on(2, 300)
    chain = swarm.chain(rest[0])
    assert chain.record(height + 1) == known and not chain.recoveries
    assert set(swarm.rolled_back) == set(rest)
    assert chain.record(height + 2).void
    swarm.check()


# --- coming late, dying, storms -------------------------------------------------------------------------------------


def test_a_joiner_that_sees_both_branches_ends_on_the_heavier_one():
    swarm = Split(9, 8, genesis_peers=8, target=8)
    late = swarm.order[8]
    swarm.start(swarm.order[:8])
    assert swarm.run(lambda: swarm.reached(1, swarm.order[:8]), 60)
    one, other = list(swarm.order[:4]), list(swarm.order[4:8])

    def apart() -> None:  # the joiner reaches both sides, which do not reach each other
        swarm.blocked |= {(a, b) for a in swarm.order[:8] for b in swarm.order[:8] if (a in one) != (b in one)}

    apart()
    swarm.pass_time(AFTER + 10)
    assert branched(swarm, one[0]) and branched(swarm, other[0])
    # One side stops, so that one branch is heavier beyond doubt.
    swarm.cut([one[0]], [one[1]], [one[2]], [one[3]])
    swarm.blocked -= {(a, late) for a in one} | {(late, a) for a in one}
    swarm.pass_time(8)
    swarm.start([late])
    fork = swarm.chain(one[0]).recoveries[0][0]
    records = [swarm.chain(side[0]).record(fork) for side in (one, other)]
    assert swarm.run(lambda: late in swarm.chain(other[0]).head.members(), 90)
    assert swarm.chain(late).record(fork) == records[1] != records[0]
    swarm.heal()
    assert swarm.goes_on(2)
    swarm.check()


def test_a_restart_in_a_branch_goes_on_in_it():
    swarm = Split(8, 9)
    swarm.until_first()
    for peer in swarm.order[:4]:
        swarm.crash(peer)
    living = swarm.living()
    assert swarm.run(lambda: all(swarm.chain(p).head.round > 3 and branched(swarm, p) for p in living), 3 * AFTER)
    assert swarm.run(swarm.united, 20)
    links = {swarm.chain(p).recoveries[0][0] for p in living}
    for peer in living:  # all at once: what they know is on disk
        swarm.crash(peer)
    swarm.pass_time(2)
    swarm.start(living)
    assert swarm.run(lambda: len(swarm.living()) == 4, 10)
    assert swarm.goes_on(2)
    assert {swarm.chain(p).recoveries[0][0] for p in living} == links
    swarm.check()


@pytest.mark.parametrize("seed", range(10, 13))
def test_storms_of_splits_and_deaths_end_in_one_history(seed: int):
    """Random halves, random deaths, also while peers roll back; then calm."""
    swarm = Split(8, seed, recovery_after=10.0)
    swarm.until_first()
    random = swarm.random
    calm = swarm.now + 60

    def strike(name: str, peer: Peer) -> None:
        swarm.count(name, peer)
        chance = {"rolled back": 0.3, "fetch": 0.2, "commit": 0.01, "Recover": 0.02}.get(name, 0.0)
        if swarm.now < calm and random.random() < chance:
            swarm.fired["death"] += 1
            swarm.crash(peer.id)
            swarm.at(random.uniform(1, 8), lambda: swarm._boot(peer))

    swarm.on_event = strike
    while swarm.now < calm:
        swarm.cut(random.sample(list(swarm.order), random.choice([3, 4, 4, 4])))
        swarm.pass_time(random.uniform(8, 20))
        swarm.heal()
        swarm.pass_time(random.uniform(1, 6))
    swarm.heal()
    swarm.pass_time(9)
    assert swarm.goes_on(3, 300)
    assert len(swarm.living()) == 8
    assert swarm.fired["Recover"] and swarm.fired["death"]
    swarm.check()
