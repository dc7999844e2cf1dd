"""Whole swarms under virtual time: every survivor ends with one history, and the sums in it are exact."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from averaging.ballots import NIL, Ballot, Proposal
from averaging.messages import Attest, Manifest, SumHashes, Vote
from averaging.record import Record, record_hash
from averaging.roster import convener
from dht.envelope import Envelope, seal
from dht.wire import decode_as, encode
from tests.sim.swarm import Peer, Swarm

ROOT = Path(__file__).parents[2]
CALM = 25.0
"""Seconds after which no more faults happen."""


class Storm:
    """A swarm whose peers die at random and come back, over links that delay, reorder and duplicate."""

    def __init__(self, seed: int, peers: int = 8) -> None:
        self.swarm = Swarm(peers, seed)
        self.fired: Counter[str] = Counter()
        self.swarm.duplicate = 0.1
        self.swarm.delay = self._delay
        self.swarm.on_event = self._strike

    def _delay(self, a, b):
        random = self.swarm.random
        if random.random() < 0.05 and self.swarm.now < CALM:
            self.fired["late"] += 1
            return random.uniform(0.1, 2.0)
        return random.uniform(0.001, 0.05)

    def _strike(self, name: str, peer: Peer) -> None:
        swarm = self.swarm
        dead = sum(not p.alive for p in swarm.peers.values())
        if swarm.now > CALM or dead > 1:
            return
        if swarm.random.random() < {"ship": 0.004}.get(name, 0.03 if name[0].islower() else 0.0015):
            self.fired[f"death in {name}"] += 1
            swarm.crash(peer.id)
            swarm.at(swarm.random.uniform(1, 15), lambda: swarm._boot(peer))

    def run(self) -> Swarm:
        swarm = self.swarm
        swarm.start()
        calm = swarm.run(lambda: swarm.now > CALM and all(p.alive for p in swarm.peers.values()), 200)
        assert calm
        before = newest(swarm)
        ended = swarm.run(lambda: newest(swarm) > before and swarm.reached(newest(swarm)), 300)
        assert ended, f"no round since {before}"
        swarm.check()
        return swarm


def newest(swarm: Swarm) -> int:
    """The last round that was decided and is not void."""
    return max((r for r, found in swarm.records.items() if not all(x.void for x in found.values())), default=0)


def started(peers: int = 8, seed: int = 1, **changes) -> Swarm:
    """A swarm that has gone through its first round."""
    swarm = Swarm(peers, seed, **changes)
    swarm.start()
    assert swarm.run(lambda: swarm.reached(1), 60)
    return swarm


def crash_at(swarm: Swarm, name: str, victims: int = 1, nth: int = 1, chosen=lambda peer: True) -> list[Peer]:
    """The next peers that come to this event die there; the list fills as they do."""
    dead: list[Peer] = []
    counts: Counter[Peer] = Counter()

    def strike(event: str, peer: Peer) -> None:
        if event == name and len(dead) < victims and chosen(peer):
            counts[peer.id] += 1
            if counts[peer.id] == nth:
                dead.append(peer)
                swarm.crash(peer.id)

    swarm.on_event = strike
    return dead


# --- storms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", range(0, 100, 10))
def test_in_a_hundred_storms_survivors_agree_and_sums_are_exact(first):
    fired: Counter[str] = Counter()
    rounds = 0
    for seed in range(first, first + 10):
        storm = Storm(seed)
        swarm = storm.run()
        assert storm.fired["late"] > 0
        assert any(name.startswith("death") for name in storm.fired)
        fired += storm.fired
        rounds += len(swarm.sums)
        assert swarm.watch.seen["Unmask"] > 0
    assert rounds >= 10
    assert len([name for name in fired if name.startswith("death")]) >= 4


def test_a_seed_is_a_history():
    first, again, other = (Storm(seed).run().trace.hexdigest() for seed in (5, 5, 6))
    assert first == again != other


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_history_does_not_depend_on_the_order_of_sets(hash_seed):
    """Python orders sets of bytes differently in every process; a failing seed must fail again in the next one."""
    code = "from tests.sim.test_swarm import Storm; print(Storm(5).run().trace.hexdigest())"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == Storm(5).run().trace.hexdigest()


# --- partitions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("few", [4, 2])
def test_at_most_one_side_of_a_split_certifies_and_one_history_is_left(few):
    swarm = started()
    away = set(swarm.order[:few])
    swarm.partition(away)
    split = swarm.now
    progress: Counter[bool] = Counter()

    def count(name: str, peer: Peer) -> None:
        # What was certified before the cut may still be on its way to the other side's disk: count later ones.
        if name == "decided" and swarm.now > split + 2:
            progress[peer.id in away] += 1

    swarm.on_event = count
    swarm.run(lambda: swarm.now > split + 60, 61)
    assert progress[True] == 0, "the smaller side went on alone"
    assert (progress[False] > 0) == (few == 2)
    swarm.check()
    swarm.heal()
    height = newest(swarm)
    assert swarm.run(lambda: newest(swarm) > height and swarm.reached(newest(swarm)), 200)
    swarm.check()
    assert len({peer.chain.record(height + 1) for peer in swarm.peers.values() if peer.chain}) == 1


# --- liars ----------------------------------------------------------------------------------------------------------


def second_version(message: object) -> object | None:
    """What a liar tells the other half."""
    match message:
        case Vote():
            return replace(message, survivors=message.survivors & (message.survivors - 1))
        case Attest():
            record = decode_as(Record, message.record)
            frame = encode(replace(record, loss=record.loss + 1))
            return replace(message, value=record_hash(frame), record=frame)
        case Manifest():
            return replace(message, hashes=(bytes(32), *message.hashes[1:]))
        case SumHashes() if message.hashes:
            return replace(message, hashes=(bytes(32), *message.hashes[1:]))
        case Ballot() if message.value != NIL:
            return replace(message, value=NIL)
        case Proposal() if not message.valid_view:
            frame = encode(replace(decode_as(Record, message.record), loss=7))
            return replace(message, record=frame, value=record_hash(frame))
    return None


def make_liars(swarm: Swarm, count: int, classes: tuple[type, ...]) -> Counter[str]:
    """Let the last `count` peers sign a second version of these messages for half of the peers."""
    liars, half = set(swarm.order[-count:]), set(swarm.order[::2])
    told: Counter[str] = Counter()
    swarm.watch.liars = liars

    def lie(sender, to, frame):
        if sender not in liars or to not in half or frame[0] != 0x01:
            return frame
        envelope = decode_as(Envelope, frame)
        body = envelope.message()
        false = second_version(body) if isinstance(body, classes) else None
        if false is None or envelope.sender != sender:
            return frame
        told[type(body).__name__] += 1
        return encode(seal(swarm.peers[sender].identity, swarm.run_id, envelope.round, false))

    swarm.tamper = lie
    return told


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "classes", [(Vote,), (Attest,), (Manifest,), (SumHashes,), (Ballot, Proposal), (Vote, Attest, Ballot, Proposal)]
)
def test_a_third_of_liars_never_makes_two_records(seed, classes):
    """Two of eight are fewer than a third. They tell each half of the swarm another story; every round is decided."""
    swarm = Swarm(8, seed)
    told = make_liars(swarm, 2, classes)
    swarm.start()
    honest = swarm.order[:-2]
    assert swarm.run(lambda: swarm.reached(2, honest), 400)
    assert told, "nobody lied"
    swarm.check()


def test_records_that_a_minority_attests_are_not_certified():
    """Two liars attest a made-up record to everybody: an honest member accepts its own or a quorum's only."""
    swarm = started()
    witnessed: list[Record] = []
    liars = set(swarm.order[-2:])

    def lie(sender, to, frame):
        if sender in liars and frame[0] == 0x01:
            envelope = decode_as(Envelope, frame)
            body = envelope.message()
            if isinstance(body, Attest):
                false = second_version(body)
                witnessed.append(decode_as(Record, false.record))
                return encode(seal(swarm.peers[sender].identity, swarm.run_id, envelope.round, false))
        return frame

    swarm.tamper = lie
    height = swarm.height()
    assert swarm.run(lambda: swarm.height() >= height + 2, 200)
    assert witnessed
    certified = {record for found in swarm.records.values() for record in found.values()}
    assert not certified & set(witnessed)
    swarm.check()


# --- rounds that fail -----------------------------------------------------------------------------------------------


def test_a_round_that_loses_its_threshold_is_void_by_its_deadline_and_the_next_one_works():
    """Two of eight die before they release shares, where one is tolerated: nothing can be opened in this round."""
    swarm = started()
    dead = crash_at(swarm, "Unmask", victims=2)
    assert swarm.run(lambda: len(dead) == 2, 60)
    round_, died = swarm.height() + 1, swarm.now
    living = [peer for peer in swarm.order if swarm.peers[peer].alive]
    states = {peer: swarm.peers[peer].states[max(swarm.peers[peer].states)] for peer in living}
    assert swarm.run(lambda: swarm.reached(round_, living), 120)
    limits = swarm.params.deadlines
    assert swarm.now - died < limits.total(8) + 4 * limits.commit
    (record,) = swarm.records[round_].values()
    assert record.void
    assert {record.state_root} == set(states.values())
    assert all(swarm.peers[peer].states[max(swarm.peers[peer].states)] == states[peer] for peer in living)
    assert swarm.run(lambda: swarm.reached(round_ + 1, living), 60)
    (after,) = swarm.records[round_ + 1].values()
    assert not after.void
    assert set(after.members()) == set(living)
    swarm.check()


def test_an_attempt_that_fails_before_its_opening_is_tried_again_in_the_same_round():
    swarm = started()
    dead = crash_at(swarm, "ship", victims=2, nth=3)
    assert swarm.run(lambda: len(dead) == 2, 60)
    round_ = swarm.height() + 1
    living = [peer for peer in swarm.order if swarm.peers[peer].alive]
    assert swarm.run(lambda: swarm.reached(round_, living), 120)
    (record,) = swarm.records[round_].values()
    assert not record.void
    assert record.attempt > 0
    assert set(record.members()) == set(living)
    swarm.check()


# --- coming and going -----------------------------------------------------------------------------------------------


def test_a_newcomer_is_in_a_roster_within_two_rounds():
    swarm = Swarm(7, 2, genesis_peers=6, target=6)
    late = swarm.order[6]
    swarm.start(swarm.order[:6])
    assert swarm.run(lambda: swarm.reached(2, swarm.order[:6]), 60)
    joined: list[int] = []

    def seen(name: str, peer: Peer) -> None:
        if name == "joined" and peer.id == late and peer.participant is not None:
            joined.append(peer.participant.round)

    swarm.on_event = seen
    height = swarm.height()
    swarm.start([late])
    assert swarm.run(lambda: bool(joined), 60)
    assert joined[0] <= height + 3
    assert swarm.run(lambda: swarm.reached(joined[0]), 60)
    (record,) = swarm.records[joined[0]].values()
    assert late in record.members()
    assert swarm.peers[late].states[joined[0]] == record.state_root
    swarm.check()


def test_a_peer_that_dies_in_a_round_comes_back_into_a_later_one():
    swarm = started()
    dead = crash_at(swarm, "reduce")
    assert swarm.run(lambda: bool(dead), 60)
    swarm.at(5.0, lambda: swarm._boot(dead[0]))
    assert swarm.run(lambda: dead[0].alive, 30)
    height = swarm.height()

    def in_a_record() -> bool:
        later = [record for r, found in swarm.records.items() if r > height for record in found.values()]
        return any(dead[0].id in record.members() for record in later)

    assert swarm.run(in_a_record, 60)
    assert swarm.height() <= height + 3
    assert swarm.fetches > 0
    assert swarm.run(lambda: swarm.reached(swarm.height()), 60)
    swarm.check()


ROLES = {
    "convener": ("Seating", 3, lambda swarm, peer: True),
    "leader": ("Survivors", 3, lambda swarm, peer: True),
    "leader after its proposal": ("Vote", 1, lambda swarm, peer: swarm.cohort_of(peer.id).me == 0),
    "reducer": ("reduce", 1, lambda swarm, peer: True),
    "reducer mid-publishing": ("sum", 1, lambda swarm, peer: True),
    "proposer": ("Proposal", 3, lambda swarm, peer: True),
}


@pytest.mark.parametrize("role", ROLES)
def test_whoever_dies_in_a_role_the_round_is_not_lost(role):
    """The next in order takes over; the round that is running is certified, and the ones after it, too."""
    event, nth, chosen = ROLES[role]
    swarm = started(seed=3)
    dead = crash_at(swarm, event, nth=nth, chosen=lambda peer: chosen(swarm, peer))
    assert swarm.run(lambda: bool(dead), 60)
    round_ = swarm.height() + 1
    living = [peer for peer in swarm.order if swarm.peers[peer].alive]
    assert swarm.run(lambda: swarm.reached(round_ + 1, living), 120)
    assert not any(record.void for r in (round_, round_ + 1) for record in swarm.records[r].values())
    assert all(len(next(iter(swarm.records[r].values())).lost_chunks) == 0 for r in (round_, round_ + 1))
    swarm.check()


def test_the_next_convener_takes_over_from_one_that_is_dead_before_the_round():
    swarm = started()
    chain = swarm.peers[swarm.order[0]].participant.chain
    assert chain is not None
    first = convener(chain.beacon, chain.committee(), 0)
    swarm.crash(first)
    round_ = swarm.height() + 1
    living = [peer for peer in swarm.order if peer != first]
    assert swarm.run(lambda: swarm.reached(round_, living), 60)
    (record,) = swarm.records[round_].values()
    assert not record.void
    assert first not in record.members()


@pytest.mark.parametrize("back", [True, False])
@pytest.mark.parametrize("nth", [1, 4])
def test_the_founder_may_die_while_it_tells_the_others(nth, back):
    """With its first message unsent only its disk knows the founding: it comes back with the same one."""
    swarm = Swarm(8, 4)
    dead = crash_at(swarm, "ChainSegment", nth=nth)
    swarm.start()
    assert swarm.run(lambda: bool(dead), 30)
    assert dead[0].id == swarm.params.founder
    swarm.on_event = lambda name, peer: None
    if back or nth == 1:
        swarm.at(5.0, lambda: swarm._boot(dead[0]))
    living = swarm.order if back or nth == 1 else swarm.order[1:]
    assert swarm.run(lambda: swarm.now > 20 and swarm.reached(2, living), 120)
    chains = {peer.participant.chain.founding for peer in swarm.peers.values() if peer.participant}
    assert len(chains) == 1
    swarm.check()
