"""What happens between a cohort's sum and the total: heirs keep sums, parts come early, who is waited for is pinged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from averaging.across import Across
from averaging.actions import Send
from averaging.bulk import BulkKind, parse
from averaging.messages import Result, Seating, Wanted
from averaging.params import COORDINATORS
from averaging.record import Record
from averaging.roster import cut, open_roster, ranking
from dht.envelope import Envelope
from dht.identity import PeerId
from dht.wire import decode_as, message_type
from tests.sim.cheap import memoised
from tests.sim.faults import FaultSwarm
from tests.sim.swarm import Peer

PEERS, TARGET = 18, 6
RESULT = message_type(Result).tag
SEATING = message_type(Seating).tag


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with memoised():
        yield


def started(seed: int) -> FaultSwarm:
    """Three cohorts of six after their first round. No total is recounted: nobody asks for a part without need."""
    swarm = FaultSwarm(PEERS, seed, target=TARGET, minimum=4, audit_share=0.0)
    swarm.start()
    assert swarm.run(lambda: swarm.reached(1), 120)
    return swarm


def across(peer: Peer) -> Across:
    """A living peer's part in adding up the cohorts."""
    assert peer.participant is not None and peer.participant.current is not None
    attempt = peer.participant.current.attempt
    assert attempt is not None and attempt.across is not None
    return attempt.across


def next_record(swarm: FaultSwarm, round_: int, dead: set[PeerId]) -> Record:
    """The one record of a round that everybody else goes through."""
    living = [peer for peer in swarm.order if peer not in dead]
    assert swarm.run(lambda: swarm.reached(round_, living), 200)
    swarm.check()
    (record,) = swarm.records[round_].values()
    return record


@pytest.mark.parametrize("cohort", [0, 1, 2])
def test_heirs_have_the_sums_of_an_owner_that_dies_with_its_neighbour_before_it_sends_them(cohort):
    """The neighbour has the only copy of the owner's masked chunks, so nobody could make its sum once more."""
    swarm, owner = started(cohort), (cohort + 1) % 3  # both send their sums to heads in other cohorts
    round_ = swarm.height() + 1
    dead: dict[PeerId, int] = {}

    def strike(name: str, peer: Peer) -> None:
        if name != "part" or across(peer).roster.index != cohort or swarm.height() >= round_:
            return
        member = across(peer).roster.peers.index(peer.id)
        if member in (owner, owner + 1):
            dead[peer.id] = member
            swarm.crash(peer.id)

    swarm.on_event = strike
    assert swarm.run(lambda: len(dead) == 2, 60)
    assert sorted(dead.values()) == [owner, owner + 1]
    record = next_record(swarm, round_, set(dead))
    assert not record.void
    assert record.left_out == record.lost_chunks == ()
    assert len(record.survivors) == PEERS


class EarlyParts:
    """Sees which sums left for their heads while the sender did not know yet which cohorts are included."""

    def __init__(self, swarm: FaultSwarm) -> None:
        self.swarm, self.left, self.came = swarm, set[tuple[PeerId, int]](), set[tuple[PeerId, int]]()
        swarm.tamper = self._sent

    def _sent(self, sender: PeerId, to: PeerId, frame: bytes) -> bytes:
        peer, head = self.swarm.peers[sender], self.swarm.peers[to]
        if frame[0] == BulkKind.PART:
            chunk = parse(memoryview(frame)).index
            if across(peer).results is None:
                self.left.add((sender, chunk))
            if across(head).results is None:
                self.came.add((sender, chunk))
        return frame


def test_a_sum_that_left_early_is_not_lost_with_its_owner_and_both_heirs():
    """They die when the first proposal of what is included leaves: nobody but its head has that sum any more."""
    swarm = started(4)
    round_, early = swarm.height() + 1, EarlyParts(swarm)
    dead: list[PeerId] = []
    alone: list[tuple[PeerId, int]] = []

    def strike(name: str, peer: Peer) -> None:
        if name != "Inclusion" or dead or swarm.height() >= round_:
            return
        mine = across(peer)
        cohort = (mine.roster.index + 1) % 3
        peers = mine.roster.cohort(cohort)
        owner = (cohort + 1) % 3  # the head of its chunk, and of the first heir's, is in another cohort
        assert mine.owners.heads(owner)[0] not in peers
        alone.append((peers[owner], owner))
        dead.extend(peers[owner : owner + 3])
        for victim in dead:
            swarm.crash(victim)

    swarm.on_event = strike
    assert swarm.run(lambda: bool(dead), 60)
    assert set(alone) <= early.left & early.came
    record = next_record(swarm, round_, set(dead))
    assert not record.void
    assert record.left_out == record.lost_chunks == ()
    assert len(record.survivors) == PEERS


def test_parts_that_came_early_are_not_asked_for_again():
    swarm = started(5)
    round_, early = swarm.height() + 1, EarlyParts(swarm)
    before = swarm.watch.seen["Wanted"]
    record = next_record(swarm, round_, set())
    assert len(early.left) == len(early.came) == (3 - 1) * swarm.params.layout.total_chunks
    assert not record.void and record.lost_chunks == ()
    assert swarm.watch.seen["Wanted"] == before


# --- pings ----------------------------------------------------------------------------------------------------------

NOTICED = 1.5
"""Seconds in which a transport finds out that nobody acknowledges what it sends."""


def vanish(swarm: FaultSwarm, peer: Peer) -> None:
    """Its machine loses power: no connection breaks, and only who sends something to it from now on can notice."""
    swarm.silent_deaths = True
    swarm.crash(peer.id)
    swarm.at(0.1, lambda: swarm.partition({peer.id}))  # what it said before arrives


@pytest.mark.parametrize("seed", range(3))
def test_a_head_that_vanishes_is_suspected_soon_by_those_who_wait_for_its_totals(seed):
    """They have sent it all that they owe it, so a ping tells them, and not the deadline for totals."""
    swarm = started(seed)
    round_, limits = swarm.height() + 1, swarm.params.deadlines
    assert limits.survivors + NOTICED < limits.sums
    heads: list[Peer] = []
    gone: list[float] = []

    def strike(name: str, peer: Peer) -> None:
        if name == "add-up" and not heads and swarm.height() < round_:
            heads.append(peer)
            swarm.at(0.5, lambda: (vanish(swarm, peer), gone.append(swarm.now)))  # all know by then whom to wait for

    def no_totals(sender: PeerId, to: PeerId, frame: bytes) -> bytes | None:
        return None if frame[0] == BulkKind.TOTAL and sender in [head.id for head in heads] else frame

    swarm.on_event, swarm.tamper = strike, no_totals
    assert swarm.run(lambda: bool(gone), 60)
    (dead,) = (head.id for head in heads)
    waiting = [peer for peer in swarm.order if peer != dead and dead in across(swarm.peers[peer]).roster.peers]
    assert all(across(swarm.peers[peer]).totals.missing for peer in waiting)
    pings = swarm.watch.seen["Ping"]
    noticed = swarm.run(
        lambda: all(dead in across(swarm.peers[peer])._suspects for peer in waiting), limits.survivors + NOTICED
    )
    assert noticed, "nobody noticed"
    assert swarm.fired["silent death"] > 0 and swarm.watch.seen["Ping"] > pings
    assert next_record(swarm, round_, {dead}).lost_chunks == ()


@pytest.mark.parametrize("seed", range(3))
def test_members_that_vanish_before_their_result_are_suspected_soon_by_the_coordinator(seed):
    """Two of six: their cohort can be proven no more, and the coordinator does not wait for its deadline to see it."""
    swarm = started(seed)
    round_, limits = swarm.height() + 1, swarm.params.deadlines
    dead: list[PeerId] = []
    coordinator: list[Peer] = []

    def strike(name: str, peer: Peer) -> None:
        if name != "Result" or len(dead) == 2 or swarm.height() >= round_:
            return
        first, *others = across(peer).coordinators
        # It says nothing to members of another cohort before all results are in.
        other_cohort = (across(swarm.peers[first]).roster.index + 1) % 3
        if across(peer).roster.index == other_cohort and peer.id not in others:
            coordinator[:] = [swarm.peers[first]]
            dead.append(peer.id)
            vanish(swarm, peer)

    swarm.on_event = strike
    assert swarm.run(lambda: len(dead) == 2, 60)
    mine, pings = across(coordinator[0]), swarm.watch.seen["Ping"]
    assert swarm.run(lambda: mine._result is not None, limits.sums)
    noticed = swarm.run(lambda: mine._suspects >= set(dead), limits.survivors + NOTICED)
    assert noticed, "nobody noticed"
    assert swarm.fired["silent death"] > 0 and swarm.watch.seen["Ping"] > pings
    record = next_record(swarm, round_, set(dead))
    assert not record.void and len(record.left_out) == 1


@pytest.mark.parametrize("seed", range(3))
def test_sums_of_an_owner_that_dies_before_its_copies_leave_are_made_anew_while_others_are_busy(seed):
    swarm = started(seed)
    round_, enough = swarm.height() + 1, swarm.params.deadlines.survivors
    dead: list[tuple[PeerId, float]] = []
    ready: list[bool] = []

    def strike(name: str, peer: Peer) -> None:
        if name == "sum" and not dead and swarm.height() < round_ and across(peer).roster.index == 1:
            dead.append((peer.id, swarm.now))
            swarm.crash(peer.id)
        if name == "Inclusion" and not ready:
            mates = [mate for mate in across(peer).roster.cohort(1) if mate != dead[0][0]]
            lost = across(peer).owners.of(1, dead[0][0])
            ready.extend(any(across(swarm.peers[m]).cohort.sums.provable(c) for m in mates) for c in lost)

    def late_results(sender: PeerId, to: PeerId, frame: bytes) -> bytes | None:
        """What cohort 0 came to is not heard for a while; it says it again."""
        early = not dead or swarm.now < dead[0][1] + enough
        result = frame[0] == message_type(Envelope).tag and decode_as(Envelope, frame).body[0] == RESULT
        return None if result and early and across(swarm.peers[sender]).roster.index == 0 else frame

    swarm.on_event, swarm.tamper = strike, late_results
    assert swarm.run(lambda: bool(dead), 60)
    record = next_record(swarm, round_, {dead[0][0]})
    assert ready and all(ready)
    assert not record.void
    assert record.left_out == record.lost_chunks == ()
    assert len(record.survivors) == PEERS


def test_who_is_asked_for_a_total_that_it_lacks_asks_the_head_even_if_it_trusts_the_owner():
    """A late frame made it trust a dead owner again; its mates know better, and ask it, who comes next."""
    swarm = started(6)
    rosters: set[PeerId] = set()
    swarm.on_event = lambda name, peer: rosters.add(peer.id) if name == "joined" else None
    swarm.tamper = lambda sender, to, frame: None if frame[0] == BulkKind.TOTAL else frame
    assert swarm.run(lambda: len(rosters) == PEERS, 60)
    assert swarm.run(lambda: all(across(peer).owners.included for peer in swarm.peers.values()), 60)
    mine = across(swarm.peers[swarm.order[0]])
    chunk = next(c for c in mine.totals.missing if mine.me not in (mine._source(c), mine._head(c)))
    mate = next(peer for peer in mine.roster.peers if peer not in (mine.me, mine._source(chunk)))
    stranger = next(peer for peer in swarm.order if peer not in mine.roster.peers)

    def asks(sender: PeerId) -> list[PeerId]:
        actions = mine._on_wanted(sender, Wanted(mine.sid, (chunk,), ()))
        return [action.to for action in actions if isinstance(action, Send)]

    assert asks(stranger) == []
    assert asks(mate) == [mine._head(chunk)]
    assert asks(mate) == []  # it has been asked


def test_a_cohort_that_no_roster_reached_holds_nobody_up():
    """Its members answer a coordinator's Ping with a Knock, and the others' sum does not wait for their deadline."""
    swarm = FaultSwarm(30, 7, target=TARGET, minimum=4, audit_share=0.0)
    swarm.start()
    assert swarm.run(lambda: swarm.reached(1), 120)
    round_, began = swarm.height() + 1, swarm.now
    deaf: set[PeerId] = set()
    lost = 0

    def tamper(sender: PeerId, to: PeerId, frame: bytes) -> bytes | None:
        nonlocal lost
        if frame[0] != 1 or (envelope := decode_as(Envelope, frame)).body[0] != SEATING or envelope.round != round_:
            return frame
        if not deaf:
            deaf.update(_without_coordinators(swarm, decode_as(Seating, envelope.body), sender))
        lost += to in deaf
        return None if to in deaf else frame

    swarm.tamper = tamper
    assert swarm.run(lambda: swarm.height() >= round_, 200)
    assert lost >= TARGET
    (record,) = swarm.records[round_].values()
    assert not record.void
    assert len(record.left_out) == 1
    assert {PeerId(s.peer) for s in record.survivors} == set(swarm.order) - deaf
    assert swarm.now - began < swarm.params.deadlines.included(TARGET) / 2
    swarm.check()


def _without_coordinators(swarm: FaultSwarm, seating: Seating, sender: PeerId) -> tuple[PeerId, ...]:
    """The members of a cohort that neither convenes nor settles which cohorts are included."""
    participant = swarm.peers[sender].participant
    assert participant is not None and participant.current is not None and participant.chain is not None
    current = participant.current
    opened = open_roster(seating.roster, swarm.params, current.number, participant.chain.beacon, current.committee)
    everybody = opened[2]
    first = set(ranking(participant.chain.beacon, current.committee)[:COORDINATORS])
    cohorts = [everybody[part.start : part.stop] for part in cut(len(everybody), TARGET, 4)]
    return next(peers for peers in cohorts if not first & set(peers))
