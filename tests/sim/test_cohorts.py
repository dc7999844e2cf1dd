"""Several cohorts: one root for all, exact sums across them, and what becomes of them when somebody dies or lies."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from averaging.bulk import BulkKind, parse
from averaging.inclusion import inclusion_value
from averaging.layout import Layout
from averaging.messages import Included, Inclusion, InclusionVote, Result
from averaging.parts import make_total, open_total
from averaging.record import Record
from averaging.roster import cut
from averaging.wide import unpack
from dht.envelope import Envelope, seal
from dht.errors import Refusal
from dht.identity import PeerId
from dht.wire import decode_as, encode
from tests.averaging.words import wide_bytes
from tests.sim.cheap import memoised
from tests.sim.swarm import Peer, Swarm

PEERS, TARGET = 18, 6


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with memoised():
        yield


def make(seed: int, peers: int = PEERS, target: int = TARGET, **changes: Any) -> Swarm:
    return Swarm(peers, seed, **{"target": target, "minimum": 4, **changes})


def started(seed: int, **changes: Any) -> Swarm:
    swarm = make(seed, **changes)
    swarm.start()
    assert swarm.run(lambda: swarm.reached(1), 120)
    return swarm


def record(swarm: Swarm, round_: int) -> Record:
    """The one record of a round."""
    (found,) = swarm.records[round_].values()
    return found


class Deaths:
    """Kills whoever does something of a name, some occurrences later, up to a number of victims."""

    def __init__(self, swarm: Swarm, name: str, victims: int = 1, skip: int = 0) -> None:
        self.swarm, self.name, self.left, self.skip = swarm, name, victims, skip
        self.first = swarm.height() + 1
        self.dead: list[PeerId] = []
        swarm.on_event = self.event

    def event(self, name: str, peer: Peer) -> None:
        if name != self.name or not self.left or not peer.alive or peer.participant.round < self.first:  # type: ignore[union-attr]
            return
        if self.skip:
            self.skip -= 1
            return
        self.left -= 1
        self.dead.append(peer.id)
        self.swarm.crash(peer.id)

    def play(self, rounds: int = 2, limit: float = 200.0) -> list[Record]:
        """Go on until the survivors hold the state of so many rounds; these rounds' records."""
        goal = self.first + rounds - 1
        living = lambda: [peer for peer in self.swarm.order if peer not in self.dead]  # noqa: E731
        assert self.swarm.run(lambda: not self.left and self.swarm.reached(goal, living()), limit), "it hangs"
        self.swarm.check()
        return [record(self.swarm, round_) for round_ in range(self.first, goal + 1)]


# --- nobody dies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("peers", "target", "bits"), [(8, 4, 16), (13, 5, 8), (22, 6, 32), (17, 4, 16)])
def test_all_cohorts_end_on_one_root_with_the_exact_sum(peers, target, bits):
    swarm = make(peers, peers, target, layout=Layout(5 * 4096 - 7, bits, 4096))
    swarm.start()
    assert swarm.run(lambda: swarm.reached(2), 120)
    swarm.check()
    cohorts = len(cut(peers, target, 4))
    assert cohorts > 1
    full = [r for r in (1, 2) if len(record(swarm, r).survivors) == peers]
    assert full, "no round with everybody"
    for round_ in (1, 2):
        assert not record(swarm, round_).void
        assert record(swarm, round_).left_out == record(swarm, round_).lost_chunks == ()
    assert swarm.watch.seen["Included"] > 0
    # Each member computed the aggregate itself: none of them fetched a state.
    assert swarm.fetches == 0


def test_a_seed_replays_to_the_same_history():
    traces = []
    for _ in range(2):
        swarm = started(5)
        traces.append(swarm.trace.hexdigest())
    assert traces[0] == traces[1]


def test_cohorts_change_from_round_to_round():
    swarm = started(3)
    mates: list[set[frozenset[PeerId]]] = []
    for _ in range(2):
        height = swarm.height()
        rosters = {p.participant.previous.roster.peers for p in swarm.peers.values() if p.participant.previous}  # type: ignore[union-attr]
        mates.append({frozenset(peers) for peers in rosters})
        assert swarm.run(lambda before=height: swarm.reached(before + 1), 120)  # type: ignore[misc]
    assert not mates[0] & mates[1]


# --- deaths ---------------------------------------------------------------------------------------------------------

# How many cohorts a death in a step costs, and how many updates are in the sum at least.
STEPS = {
    "joined": (1, 12),  # R1 breaks off in one cohort
    **dict.fromkeys(("Unmask", "SumHashes", "Result", "Inclusion", "InclusionVote", "Included"), (0, 17)),
    **dict.fromkeys(("part", "add-up", "total", "apply"), (0, 17)),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("seed", [0, 1])
def test_one_death_at_any_step_costs_no_sum(step, seed):
    deaths = Deaths(started(seed), step, skip=random.Random(f"{step} {seed}").randrange(8))
    first, second = deaths.play()
    assert len(deaths.dead) == 1
    assert not first.void
    assert not second.void
    cohorts, updates = STEPS[step]
    assert len(first.left_out) == cohorts
    assert len(first.survivors) >= updates
    assert first.lost_chunks == ()


@pytest.mark.parametrize("step", ["upload", "Vote", "reduce", "Result"])
def test_a_cohort_that_loses_too_many_is_left_out_and_its_members_follow(step):
    swarm = started(12)
    deaths = Deaths(swarm, step, victims=2)
    allowed: list[frozenset[PeerId]] = []

    def one_cohort_only(name: str, peer: Peer) -> None:
        if name == step and deaths.left:
            mates = frozenset(swarm.cohort_of(peer.id).peers)
            if allowed and mates not in allowed:
                return
            allowed.append(mates)
        deaths.event(name, peer)

    swarm.on_event = one_cohort_only
    first, _ = deaths.play()
    assert len(deaths.dead) == 2
    assert not first.void
    assert len(allowed) == 2
    assert len(first.left_out) == 1
    assert first.lost_chunks == ()
    assert set(first.members()) == set(swarm.order) - allowed[0], "the sum is not that of the other cohorts"
    # Its members computed the common root from the totals, like everybody else.
    followers = [peer for peer in allowed[0] if peer not in deaths.dead]
    assert followers
    assert all(swarm.peers[peer].states[first.round] == first.state_root for peer in followers)


@pytest.mark.parametrize("skip", [0, 1, 3, 7])
def test_a_convener_that_dies_while_it_seats_the_cohorts(skip):
    deaths = Deaths(started(2), "Seating", skip=skip)
    first, second = deaths.play()
    assert len(deaths.dead) == 1
    assert not (first.void and second.void)


def test_a_peer_that_cannot_be_dialled_contributes_and_owns_nothing():
    swarm = make(4)
    clients = set(swarm.order[3:6])

    def declare(name: str, peer: Peer) -> None:
        if peer.id in clients and peer.participant is not None:
            peer.participant.capacity = 0

    swarm.on_event = declare
    swarm.start()
    assert swarm.run(lambda: swarm.reached(3), 120)
    swarm.check()
    for round_ in (1, 2, 3):
        chunks = {PeerId(survivor.peer): survivor.chunks for survivor in record(swarm, round_).survivors}
        assert clients <= set(chunks)
        assert [chunks[peer] for peer in sorted(clients)] == [0, 0, 0]
        assert sum(chunks.values()) == 3 * swarm.params.layout.total_chunks


def test_cohorts_go_on_in_a_recovery_branch_when_more_than_a_third_is_gone_for_good():
    swarm = make(1, 20, 5, recovery_after=20.0)
    swarm.start()
    assert swarm.run(lambda: swarm.reached(1), 60)
    first, dead = swarm.height() + 1, swarm.order[:8]
    for peer in dead:
        swarm.crash(peer)
    living = [peer for peer in swarm.order if peer not in dead]
    assert swarm.run(lambda: swarm.reached(first + 2, living), 300)
    swarm.check()
    records = [record(swarm, round_) for round_ in range(first, first + 3)]
    assert [found.recovery for found in records] == [True, False, False]
    assert [len(found.survivors) for found in records[1:]] == [12, 12]
    assert not any(found.left_out for found in records)


# --- lies -----------------------------------------------------------------------------------------------------------


def lie(swarm: Swarm, change: Callable[[PeerId, PeerId, Any], Any]) -> list[PeerId]:
    """Let what `change` returns take a message's place, signed by its sender; who lied, once per message."""
    lied: list[PeerId] = []

    def tamper(sender: PeerId, to: PeerId, frame: bytes) -> bytes | None:
        if frame[0] >= 0xF0:
            return frame
        envelope = decode_as(Envelope, frame)
        body = envelope.message()
        other = change(sender, to, body)
        if other is body:
            return frame
        lied.append(sender)
        return encode(seal(swarm.peers[sender].identity, swarm.run_id, envelope.round, other))

    swarm.tamper = tamper
    return lied


def refused(swarm: Swarm, refusal: Refusal) -> bool:
    return any(error.refusal is refusal for error in swarm.refusals)


def without_the_first(inclusion: Inclusion) -> Inclusion:
    """The proposal less its first cohort."""
    first = decode_as(Result, inclusion.results[0])
    kept = [k for k, place in enumerate(inclusion.signers) if place not in cut(PEERS, TARGET, 4)[first.cohort]]
    signers = tuple(inclusion.signers[k] for k in kept)
    return replace(
        inclusion,
        results=inclusion.results[1:],
        signers=signers,
        signatures=tuple(inclusion.signatures[k] for k in kept),
    )


def test_a_coordinator_cannot_leave_out_cohorts_that_the_committee_needs():
    """A third of the committee insists on its own cohort: then nothing is certified, and the next round has another."""
    swarm = started(6)
    first = swarm.height() + 1

    def drop(sender: PeerId, to: PeerId, body: Any) -> Any:
        liar = isinstance(body, Inclusion) and swarm.peers[sender].participant.round == first  # type: ignore[union-attr]
        return without_the_first(body) if liar and body.view == 0 and len(body.results) == 3 else body

    lied = lie(swarm, drop)
    assert swarm.run(lambda: swarm.reached(first + 1), 300)
    swarm.check()
    assert lied
    assert record(swarm, first).void
    assert len(record(swarm, first + 1).survivors) == PEERS


def test_two_inclusions_by_one_coordinator_are_refused():
    swarm = started(7)
    swarm.tamper = lambda sender, to, frame: _second_inclusion(swarm, sender, to, frame)
    first = swarm.height() + 1
    assert swarm.run(lambda: swarm.reached(first), 200)
    swarm.tamper = lambda sender, to, frame: frame
    # What proves the lie reaches everybody else, and is about one coordinator alone.
    held = {peer.id: peer.participant.docket for peer in swarm.peers.values() if peer.participant is not None}
    named = lambda: {accused for docket in held.values() for accused in docket.accused}  # noqa: E731
    assert swarm.run(lambda: bool(named()), 5)
    (liar,) = named()
    assert swarm.run(lambda: all(docket.accused for peer, docket in held.items() if peer != liar), 60)
    assert refused(swarm, Refusal.EQUIVOCATION)


def _second_inclusion(swarm: Swarm, sender: PeerId, to: PeerId, frame: bytes) -> bytes:
    if frame[0] < 0xF0 and isinstance(body := decode_as(Envelope, frame).message(), Inclusion) and body.results:
        empty = replace(body, results=(), signers=(), signatures=())
        envelope = seal(swarm.peers[sender].identity, swarm.run_id, decode_as(Envelope, frame).round, empty)
        again = encode(envelope)
        life = swarm.peers[sender].life
        swarm.at(0.06, lambda: swarm._arrive(sender, to, again, False, life))  # just after the first one
    return frame


def test_forged_results_and_votes_are_refused():
    swarm = started(8)
    first = swarm.height() + 1

    def forge(sender: PeerId, to: PeerId, body: Any) -> Any:
        if isinstance(body, Inclusion) and body.view == 0 and body.results:
            inflated = replace(decode_as(Result, body.results[0]), root=b"\x07" * 32)
            return replace(body, results=(encode(inflated), *body.results[1:]))
        if isinstance(body, Included) and body.results and sender in swarm.order[:9]:
            return replace(body, results=body.results[1:])
        return body

    lied = lie(swarm, forge)
    assert swarm.run(lambda: swarm.reached(first), 300)
    swarm.check()
    assert lied
    assert refused(swarm, Refusal.BAD_CERTIFICATE)


def test_a_result_of_another_cohort_or_with_too_few_survivors_is_refused():
    swarm = started(9)
    first = swarm.height() + 1
    liar = swarm.order[4]
    turns = itertools.cycle((True, False))

    def change(sender: PeerId, to: PeerId, body: Any) -> Any:
        if not isinstance(body, Result) or sender != liar or not body.survivors:
            return body
        if next(turns):
            return replace(body, cohort=(body.cohort + 1) % 3)
        return replace(body, survivors=1, reducers=1, tokens=(1,))

    lied = lie(swarm, change)
    assert swarm.run(lambda: swarm.reached(first), 200)
    swarm.check()
    assert lied
    assert len(record(swarm, first).survivors) >= PEERS - 1
    assert refused(swarm, Refusal.NOT_A_MEMBER) and refused(swarm, Refusal.OUT_OF_BOUNDS)


def test_a_total_by_who_may_not_add_it_up_or_with_other_words_is_refused():
    swarm = started(10)
    layout, fired = swarm.params.layout, []

    def tamper(sender: PeerId, to: PeerId, frame: bytes) -> bytes | None:
        if frame[0] != BulkKind.TOTAL or sender not in swarm.order[:4]:
            return frame
        chunk = parse(memoryview(frame))
        signed, words = open_total(chunk.data)
        other = unpack(layout, chunk.index, words)
        other[0] += 1
        fired.append(sender)
        payload = make_total(signed, wide_bytes(layout, chunk.index, other))
        return b"".join(bytes(part) for part in replace(chunk, data=payload).parts())

    swarm.tamper = tamper
    first = swarm.height() + 1
    assert swarm.run(lambda: swarm.reached(first), 200)
    swarm.check()
    assert fired
    assert refused(swarm, Refusal.BAD_HASH)


def test_a_part_that_is_not_under_its_cohorts_root_is_refused():
    swarm = started(12)
    fired: list[PeerId] = []

    def tamper(sender: PeerId, to: PeerId, frame: bytes) -> bytes | None:
        if frame[0] != BulkKind.PART or fired:
            return frame
        fired.append(sender)
        return frame[:60] + bytes([frame[60] ^ 1]) + frame[61:]

    swarm.tamper = tamper
    first = swarm.height() + 1
    assert swarm.run(lambda: swarm.reached(first), 200)
    swarm.check()
    assert len(fired) == 1
    noted = any("is not what cohort" in note for note in swarm.notes)  # it may come before it can be checked
    assert noted or refused(swarm, Refusal.BAD_HASH)
    assert not record(swarm, first).void


def test_votes_name_the_results_in_their_order():
    assert inclusion_value(bytes(32), [b"one", b"two"]) != inclusion_value(bytes(32), [b"two", b"one"])
    assert InclusionVote(bytes(32), inclusion_value(bytes(32), ())).value != bytes(32)
