"""Liars are found out, named to everybody, and left out: wrong sums, two stories, two rosters, wrong seeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from averaging.bulk import BulkKind, Chunk
from averaging.evidence import WRONG_SEED, WRONG_SUM, verify
from averaging.layout import Layout
from averaging.messages import Roster, Seating, SumHashes
from averaging.record import Record
from averaging.roster import make_roster, make_seatings, ranking
from averaging.work import ParticipantAction
from dht.envelope import Envelope, seal
from dht.identity import PeerId
from dht.wire import decode_as
from tests.attacks.evil import Arena, EvilPeer, Plot, said, started
from tests.averaging.lies import deal_another_seed


class WrongSums(Plot):
    """Adds one to a word of its sums: of all, or of so many chunks in one round."""

    def __init__(self, most: int = 1 << 30) -> None:
        super().__init__()
        self.left = most

    def summed(self, evil: EvilPeer, chunk: int, ring: Any) -> None:
        if self.left:
            self.left -= 1
            ring[0] += 1
            self.told["wrong sum"] += 1


def decided(arena: Arena, round_: int) -> Record:
    """The one record of a round."""
    (record,) = arena.records[round_].values()
    return record


def kinds(arena: Arena, liar: PeerId) -> set[str]:
    """What was proven against a liar."""
    return {proof.kind for _, proof in arena.blamed.get(liar, ())}


def knowing(arena: Arena, liar: PeerId) -> set[PeerId]:
    """Honest peers that hold a proof against a liar."""
    return {peer for peer, _ in arena.blamed.get(liar, ())} & set(arena.honest)


def check_proofs(arena: Arena) -> None:
    """Whatever peers keep proves what it says, to somebody who has only the bytes."""
    for peer in arena.peers.values():
        for frame in peer.evidence:
            assert verify(frame).accused in arena.watch.liars


# --- wrong sums -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_under_full_audit_a_wrong_sum_is_always_found_and_its_author_left_out(seed):
    arena = started(seed=seed, audit_share=1.0, layout=Layout(12 * 4096 - 7, 16, 4096))
    liar = arena.order[seed % 8]
    plot = arena.corrupt(WrongSums(1), liar)
    assert arena.run(lambda: arena.reached(2, arena.honest), 200)
    assert plot.told["wrong sum"] == 1
    assert decided(arena, 2).void
    assert arena.run(lambda: arena.reached(3, arena.honest), 200)
    assert knowing(arena, liar) == set(arena.honest)
    assert WRONG_SUM in kinds(arena, liar)
    assert not decided(arena, 3).void
    assert set(decided(arena, 3).members()) == set(arena.honest)
    arena.check()
    check_proofs(arena)


def test_an_audited_lie_never_stands_and_one_in_eight_is_audited():
    """A single wrong chunk in each of many rounds: found with the probability that the run's parameters state."""
    share, tries, found = 0.25, 40, 0
    for seed in range(tries):
        arena = Arena(5, seed, audit_share=share)
        arena.start()
        liar = arena.order[2]
        arena.corrupt(WrongSums(1), liar)
        assert arena.run(lambda arena=arena: arena.reached(1, arena.honest), 200)
        caught = WRONG_SUM in kinds(arena, liar)
        assert decided(arena, 1).void is caught  # what is not audited stands: that is what the share is for
        found += caught
    assert 3 <= found <= 18  # binomial(40, 1/4): outside with probability 1e-3


def test_a_liar_that_shows_nothing_to_its_auditors_is_found_all_the_same():
    """The survivors still hold what they uploaded, and show it when they are asked."""

    class Silent(WrongSums):
        def ship(self, evil: EvilPeer, to: PeerId, chunk: Chunk) -> Chunk | None:
            if chunk.kind is BulkKind.AUDIT:
                self.told["kept back"] += 1
                return None
            return chunk

    arena = started(audit_share=1.0)
    liar = arena.order[3]
    plot = arena.corrupt(Silent(1), liar)
    assert arena.run(lambda: arena.reached(2, arena.honest), 300)
    assert plot.told["kept back"] > 0
    assert decided(arena, 2).void
    assert arena.run(lambda: arena.reached(3, arena.honest), 300)
    # The liar's own input was held by the next member only, who is asked, too.
    assert WRONG_SUM in kinds(arena, liar)
    assert set(decided(arena, 3).members()) == set(arena.honest)


def test_an_author_with_an_accomplice_who_both_keep_back_inputs_makes_the_round_void():
    """No proof, but no wrong sum either."""

    class Silent(WrongSums):
        def ship(self, evil: EvilPeer, to: PeerId, chunk: Chunk) -> Chunk | None:
            self.told["kept back"] += chunk.kind is BulkKind.AUDIT
            return None if chunk.kind is BulkKind.AUDIT else chunk

    arena = started(audit_share=1.0)
    author, accomplice = arena.order[3], arena.order[5]
    plot = arena.corrupt(Silent(1), author, accomplice)
    assert arena.run(lambda: arena.reached(2, arena.honest), 300)
    assert plot.told["kept back"] > 0
    assert decided(arena, 2).void or WRONG_SUM in kinds(arena, author)
    arena.check()


def test_an_auditor_that_says_nothing_does_not_hold_the_round():
    class Mute(Plot):
        def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
            from averaging.auditing import Audited

            if said(action, Audited) is not None:
                self.told["silence"] += 1
                return ()
            return (action,)

    arena = started(audit_share=1.0)
    plot = arena.corrupt(Mute(), arena.order[1])
    assert arena.run(lambda: arena.reached(2, arena.honest), 200)
    assert plot.told["silence"] > 0
    assert not decided(arena, 2).void
    assert arena.blamed == {}
    arena.check()


# --- two stories ----------------------------------------------------------------------------------------------------


def test_different_sums_to_different_members_name_their_author():
    class TwoStories(Plot):
        def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
            message = said(action, SumHashes)
            if message is None or not message.chunks or evil.arena.order.index(action.to) % 2:
                return (action,)
            self.told["second story"] += 1
            return (evil.say(action.to, SumHashes(message.sid, message.chunks, (bytes(32), *message.hashes[1:]))),)

    arena = started()
    liar = arena.order[3]
    plot = arena.corrupt(TwoStories(), liar)
    assert arena.run(lambda: arena.reached(3, arena.honest), 400)
    assert plot.told["second story"] > 1
    assert "two sums" in kinds(arena, liar)
    assert knowing(arena, liar) == set(arena.honest)
    assert liar not in decided(arena, arena.height()).members()
    arena.check()
    check_proofs(arena)


def test_a_convener_of_two_rosters_is_named_and_both_are_refused():
    class TwoRosters(Plot):
        def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
            seating = said(action, Seating)
            if seating is None or evil.arena.order.index(action.to) % 2:
                return (action,)
            joins = {}
            for frame in seating.joins:
                join = decode_as(Envelope, frame)
                joins[PeerId(join.sender)] = join
            spare = next(peer for peer in evil.arena.order if peer not in (action.to, evil.peer_id))
            del joins[spare]
            first = decode_as(Roster, decode_as(Envelope, seating.roster).body)
            roster = make_roster(first.round, first.attempt, first.head, joins)
            signed = seal(evil.identity, evil.params.run, first.round, roster)
            self.told["second roster"] += 1
            ((_, other),) = make_seatings(evil.params, signed, joins)
            return (evil.say(action.to, other),)

    arena = started()
    chain = arena.peer(arena.order[0]).chain
    liar = ranking(chain.beacon, chain.committee())[0]
    plot = arena.corrupt(TwoRosters(), liar)
    assert arena.run(lambda: arena.reached(2, arena.honest), 300)
    assert plot.told["second roster"] > 1
    assert "two rosters" in kinds(arena, liar)
    assert knowing(arena, liar) == set(arena.honest)
    assert not decided(arena, 2).void
    assert decided(arena, 2).attempt > 0
    assert set(decided(arena, 2).members()) == set(arena.honest)
    arena.check()
    check_proofs(arena)


def test_a_dealer_of_another_seed_is_named_and_left_out():
    class WrongSeeds(Plot):
        def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
            from averaging.messages import Shares

            message, cohort = said(action, Shares), evil.in_cohort
            if message is None or cohort is None or message.sid != cohort.sid or evil.round > 2:
                return (action,)
            if not self.told["wrong seed"]:
                deal_another_seed(cohort)
            self.told["wrong seed"] += 1
            return (evil.say(action.to, cohort._dealing.deal(cohort.peers.index(action.to))),)

    arena = started()
    liar = arena.order[6]
    plot = arena.corrupt(WrongSeeds(), liar)
    assert arena.run(lambda: arena.reached(3, arena.honest), 300)
    assert plot.told["wrong seed"] > 0
    assert decided(arena, 2).void
    assert kinds(arena, liar) == {WRONG_SEED}
    assert set(decided(arena, 3).members()) == set(arena.honest)
    arena.check()
    check_proofs(arena)


# --- afterwards -----------------------------------------------------------------------------------------------------


def test_a_restarted_peer_still_holds_what_it_had_on_disk():
    arena = started(audit_share=1.0)
    liar, witness = arena.order[2], arena.order[4]
    arena.corrupt(WrongSums(1), liar)
    assert arena.run(lambda: arena.reached(3, arena.honest), 300)
    assert witness in knowing(arena, liar)
    arena.crash(witness)
    arena.start([witness])
    assert arena.run(lambda: arena.peers[witness].alive, 10)
    assert liar in arena.peer(witness).docket.accused


def test_honest_swarms_produce_no_evidence():
    for seed in range(3):
        arena = Arena(6, seed, audit_share=1.0, layout=Layout(12 * 4096, 16, 4096))
        arena.start()
        assert arena.run(lambda arena=arena: arena.reached(3), 200)
        assert arena.blamed == {}
        assert not any(decided(arena, r).void for r in (1, 2, 3))
        assert arena.watch.seen["Audited"] > 0
        arena.check()


def test_an_audit_costs_an_honest_round_less_than_two_round_trips():
    """Inputs are pushed to the auditors, who tell all: two more messages one after the other, beside the applying."""
    times = []
    for share in (0.0, 1.0):
        arena = Arena(8, 3, audit_share=share)
        arena.delay = lambda a, b: 0.05
        ends: list[float] = []
        arena.on_event = lambda name, peer, arena=arena, ends=ends: (
            ends.append(arena.now) if name == "decided" else None
        )
        arena.start()
        assert arena.run(lambda arena=arena: arena.reached(1), 60)
        times.append(ends[0])
    assert times[0] <= times[1] <= times[0] + 2 * 0.05 + 0.02


def test_a_wrong_sum_in_one_of_several_cohorts_costs_that_cohort_only():
    arena = started(12, seed=4, audit_share=1.0, target=6, minimum=5, layout=Layout(8 * 4096 - 7, 16, 4096))
    liar = arena.order[5]
    plot = arena.corrupt(WrongSums(1), liar)
    assert arena.run(lambda: arena.reached(2, arena.honest), 300)
    assert plot.told["wrong sum"] == 1
    assert WRONG_SUM in kinds(arena, liar)
    assert not decided(arena, 2).void
    assert len(decided(arena, 2).left_out) == 1 and liar not in decided(arena, 2).members()
    assert arena.run(lambda: arena.reached(3, arena.honest), 300)
    assert set(decided(arena, 3).members()) == set(arena.honest)
    arena.check()
    check_proofs(arena)
