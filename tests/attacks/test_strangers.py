"""What peers that are in no roster can do: floods, amplification, false histories; and conveners that stall."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from averaging import certificate as certificates
from averaging.actions import Action, TimerKey
from averaging.ballots import PRECOMMIT, Ballot, Certificate, Decision, DecisionRequest
from averaging.chain import Chain, ChainRequest, ChainSegment
from averaging.convening import SIGNED, WAITING, Convening
from averaging.keys import MemberSecrets
from averaging.messages import Closed, Join, Knock, Seating
from averaging.record import Record
from averaging.roster import convener
from averaging.work import ParticipantAction
from dht.envelope import signed_digest
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId
from dht.wire import decode_as, digest, encode
from tests.attacks.evil import Arena, EvilPeer, Plot, said, started


def strangers(count: int) -> list[Identity]:
    return [Identity(digest("stranger", index.to_bytes(2, "big"))) for index in range(count)]


def waited_windows(monkeypatch: pytest.MonkeyPatch, rounds: int, knockers: int) -> int:
    """In how many rounds the convener waited until its window ended, while strangers knock and never join."""
    arena = started(seed=3)
    ended: list[int] = []
    honest = Convening.timeout

    def timeout(self: Convening, key: TimerKey) -> list[Action]:
        actions = honest(self, key)
        if key[0] == "join" and any(said(action, Seating) for action in actions):
            ended.append(self.round)
        return actions

    monkeypatch.setattr(Convening, "timeout", timeout)

    def knock() -> None:
        for stranger in strangers(knockers):
            for peer in arena.order:
                arena.stranger(stranger, peer, Knock(arena.peer(peer).round, bytes(32)), 0)
        arena.at(1.0, knock)

    arena.at(0.0, knock)
    assert arena.run(lambda: arena.reached(1 + rounds), 600)
    arena.check()
    assert not any(record.void for found in arena.records.values() for record in found.values())
    return len(ended)


def test_whoever_knocks_and_never_joins_costs_a_few_windows_and_not_one_per_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the windows that are waited for in vain, 1, 3, 7 and 15 rounds do not wait."""
    assert waited_windows(monkeypatch, 5, 0) == 0
    assert 3 <= waited_windows(monkeypatch, 20, 2) <= 6


def test_a_newcomer_gets_in_while_others_knock_and_never_join() -> None:
    arena = Arena(7, 2, genesis_peers=6, target=6)
    late = arena.order[6]
    arena.start(arena.order[:6])
    assert arena.run(lambda: arena.reached(2, arena.order[:6]), 60)

    def knock() -> None:
        for stranger in strangers(6):
            for peer in arena.order[:6]:
                arena.stranger(stranger, peer, Knock(arena.peer(peer).round, bytes(32)), 0)
        arena.at(0.5, knock)

    arena.at(0.0, knock)
    assert arena.run(lambda: arena.height() >= 12, 200)
    heard = [arena.peer(peer)._knockers.keys() for peer in arena.order[:6]]
    assert all(stranger.peer_id in knockers for knockers in heard for stranger in strangers(6))
    arena.start([late])

    def included() -> bool:
        return any(late in record.members() for r in arena.records if r > 2 for record in arena.records[r].values())

    height = arena.height()
    assert arena.run(included, 400)
    assert arena.height() <= height + 18
    arena.check()


@pytest.mark.parametrize("question", [Knock(0, bytes(32)), ChainRequest(0), DecisionRequest(1)])
def test_a_short_question_is_answered_at_length_a_few_times_a_second_only(question: object) -> None:
    arena = started()
    (stranger,) = strangers(1)
    round_ = 1 if isinstance(question, DecisionRequest) else 0
    for _ in range(100):
        arena.stranger(stranger, arena.order[0], question, round_)
    assert 1 <= len(arena.answers[stranger.peer_id]) <= 4
    crowd = strangers(200)
    for _ in range(3):
        for other in crowd:
            arena.stranger(other, arena.order[0], question, round_)
    assert sum(len(answers) for answers in arena.answers.values()) <= 256
    arena.goes_on(1)
    before = len(arena.answers[stranger.peer_id])
    arena.stranger(stranger, arena.order[0], question, round_)
    assert len(arena.answers[stranger.peer_id]) == before + 1  # it is a new second


class EndlessHead(Plot):
    """Says with every segment of the chain that there is more, so that its reader asks everybody again."""

    def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
        message = said(action, ChainSegment)
        if message is None:
            return (action,)
        self.told["segment"] += 1
        return [evil.say(action.to, replace(message, head_round=2**63, links=()), 0)] * 20


def test_a_chain_that_is_said_to_go_on_is_asked_for_once_a_second_and_not_once_per_lie() -> None:
    arena = Arena(8, 1, genesis_peers=7, target=7)
    arena.start(arena.order[:7])
    assert arena.run(lambda: arena.reached(2, arena.order[:7]), 60)
    plot = arena.corrupt(EndlessHead(), arena.order[3])
    late = arena.order[7]
    knocks: list[float] = []

    def count(name: str, peer: object) -> None:
        if name == "Knock" and peer is arena.peers[late]:
            knocks.append(arena.now)

    arena.on_event = count
    start = arena.now
    arena.start([late])
    arena.goes_on(3)
    assert plot.told["segment"] > 0
    assert len(knocks) <= 8 * (arena.now - start + 4)


# --- Joins ----------------------------------------------------------------------------------------------------------


def join_of(stranger: Identity, arena: Arena, head: bytes) -> Join:
    public = MemberSecrets.generate(lambda n: digest("secrets", stranger.peer_id)[:n]).public()
    keys = (public.mask_key, public.share_key, public.self_commitment, public.audit_commitment)
    return Join(arena.height() + 1, 0, head, *keys, bytes(32), 1, 100, ())


def test_strangers_who_fill_a_roster_take_no_place_of_the_committee(monkeypatch: pytest.MonkeyPatch) -> None:
    """They join first, as many as a roster may have (20 here), and then deal nobody a share. The round goes on."""
    monkeypatch.setattr("averaging.convening.MAX_PEERS", 20)
    arena = started(deadlines=replace(Arena(3, 1).params.deadlines, shares=2.0))
    chain = arena.peer(arena.order[0]).chain
    assert chain is not None
    first = convener(chain.beacon, chain.committee(), 0)
    crowd = strangers(60)
    for stranger in crowd:
        arena.stranger(stranger, first, join_of(stranger, arena, chain.beacon))
    told_full = [s for s in crowd if any(f != b"" for f in arena.answers[s.peer_id])]
    assert len(told_full) >= 40  # Closed: there is no room
    assert arena.run(lambda: arena.reached(2), 200)
    (record,) = arena.records[2].values()
    assert not record.void and set(record.members()) <= set(arena.order)
    assert record.attempt == 1  # the first one had strangers in it, and failed when its shares were due
    arena.check()


def test_joins_for_nothing_are_refused_before_they_are_kept() -> None:
    arena = started()
    chain = arena.peer(arena.order[0]).chain
    assert chain is not None
    first = convener(chain.beacon, chain.committee(), 0)
    (stranger,) = strangers(1)
    join = join_of(stranger, arena, chain.beacon)
    refused = []
    for changed in (replace(join, mask_key=bytes(32)), replace(join, attempt=8 * 100), replace(join, head=bytes(32))):
        arena.stranger(stranger, first, changed)
        refused.append([r.refusal for r in arena.refused if r.sender == stranger.peer_id])
    assert refused == [[Refusal.BAD_SHARE], [Refusal.BAD_SHARE, Refusal.OUT_OF_BOUNDS], refused[1]]
    arena.goes_on(1)


class Stalling(Plot):
    """As convener, signs no roster, and gives everybody one of these answers to a Join instead."""

    def __init__(self, reason: int | None) -> None:
        super().__init__()
        self.reason = reason

    def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
        if not said(action, Seating):
            return (action,)
        self.told["kept back"] += 1
        return ()

    def hear(self, evil: EvilPeer, sender: PeerId, envelope: object) -> Iterable[ParticipantAction]:
        message = envelope.message()  # type: ignore[attr-defined]
        if not isinstance(message, Join) or self.reason is None or evil.chain is None:
            return ()
        self.told["answer"] += 1
        attempt = message.attempt + 1 + evil.arena.order.index(sender) if self.reason == SIGNED else message.attempt
        return (evil.say(sender, Closed(message.round, attempt, self.reason, message.round, message.head)),)


@pytest.mark.parametrize("reason", [None, WAITING, SIGNED])
def test_a_convener_that_keeps_everybody_waiting_costs_a_bounded_time(reason: int | None) -> None:
    """Silent, "wait", or "that roster is signed, try another attempt" with another one for each."""
    arena = started()
    chain = arena.peer(arena.order[0]).chain
    assert chain is not None
    plot = arena.corrupt(Stalling(reason), convener(chain.beacon, chain.committee(), 0))
    before = arena.now
    arena.goes_on(1)
    assert plot.told["kept back" if reason is None else "answer"] > 0
    (record,) = arena.records[2].values()
    assert not record.void and record.attempt > 0
    assert arena.now - before < 30 * arena.params.deadlines.join


# --- histories ------------------------------------------------------------------------------------------------------


def certify(arena: Arena, chain: Chain, record: Record, signers: Iterable[PeerId]) -> Certificate:
    """A certificate of a record by these peers, as the committee that follows the chain's head."""
    committee = chain.committee()
    ballot = Ballot(record.round, 0, PRECOMMIT, record.hash())
    chosen = sorted(committee.index(peer) for peer in signers)
    signatures = tuple(
        arena.peers[committee[i]].identity.sign(signed_digest(arena.run_id, record.round, committee[i], encode(ballot)))
        for i in chosen
    )
    return Certificate(record.round, 0, record.hash(), tuple(chosen), signatures)


# What is wrong with it depends on whom the joiner hears first: a liar, or somebody who has shown the true round.
@pytest.mark.parametrize(("seed", "refusal"), [(3, Refusal.BAD_CERTIFICATE), (1, Refusal.EQUIVOCATION)])
def test_a_joiner_who_is_shown_stale_and_forged_histories_ends_on_the_certified_one(
    seed: int, refusal: Refusal
) -> None:
    """A donor shows a chain that ends early, and goes on with a record that two of eight signed."""

    class Old(Plot):
        def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
            message = said(action, ChainSegment)
            if message is None or evil.chain is None or not message.links:
                return (action,)
            self.told["old"] += 1
            old = replace(message, links=message.links[:1], head_round=1)
            first = decode_as(Record, message.links[0].record)
            short = Chain(evil.params.run, evil.params.founder, message.founding)
            short.append(first, decode_as(Certificate, message.links[0].certificate))
            tip = short.head
            forged = replace(certificates_void(tip), state_root=tip.state_root)
            signed = certify(evil.arena, short, forged, list(evil.arena.watch.liars))
            lie = replace(old, links=(*old.links, Decision(encode(forged), encode(signed))), head_round=9)
            return (evil.say(action.to, old, 0), evil.say(action.to, lie, 0))

    arena = Arena(8, seed, genesis_peers=7, target=7)
    arena.start(arena.order[:7])
    assert arena.run(lambda: arena.reached(3, arena.order[:7]), 60)
    plot = arena.corrupt(Old(), *arena.order[1:3])
    late = arena.order[7]
    arena.start([late])
    arena.goes_on(3)
    assert plot.told["old"] > 0
    liars = arena.watch.liars
    refused = {r.refusal for r in arena.refused if r.by == late and r.sender in liars}
    assert refusal in refused
    chain, other = arena.peer(late).chain, arena.peer(arena.order[0]).chain
    assert chain is not None and other is not None
    common = min(chain.head.round, other.head.round)
    assert chain.record(common) == other.record(common)


def certificates_void(head: Record) -> Record:
    from averaging.record import void_record

    return void_record(head)


def fork(arena: Arena, chain: Chain, signers: Iterable[PeerId]) -> ChainSegment:
    """The chain's founding and, in place of its second link, the void record of that round."""
    first, certificate = chain.link(1)
    short = Chain(chain.run, chain.founder, chain.founding)
    short.append(first, certificate)
    other = certificates_void(first)
    links = (
        Decision(encode(first), encode(certificate)),
        Decision(encode(other), encode(certify(arena, short, other, signers))),
    )
    return ChainSegment(chain.founding, 2, links)


@pytest.mark.parametrize("count", [2, 5, 6])
def test_a_fork_takes_a_third_of_the_committee_and_names_them(count: int) -> None:
    """Below a quorum it is no certificate; a quorum of six needs four at least of those who signed the first."""
    arena = started()
    assert arena.run(lambda: arena.reached(3), 60)
    victim = arena.peer(arena.order[0])
    assert victim.chain is not None
    liars = arena.order[2 : 2 + count]
    segment = fork(arena, victim.chain, liars)
    head, before = victim.chain.head, len(arena.notes)
    arena.stranger(strangers(1)[0], arena.order[0], segment, 0)
    arena.watch.liars |= set(liars)
    assert victim.chain.head == head
    _, own = victim.chain.link(2)
    committee = certificates.draw_committee(victim.chain.record(1).members(), victim.chain.record(1).hash())
    both = set(liars) & {committee[i] for i in own.signers}
    named = [note for note in arena.notes[before:] if "certified twice" in note]
    if count < 6:
        assert named == [] and arena.refused[-1].refusal is Refusal.EQUIVOCATION
    else:
        assert len(both) >= 4 and len(named) == 1 and all(peer.short in named[0] for peer in both)


def test_a_joiner_who_meets_two_certified_histories_keeps_the_first_and_refuses_the_other() -> None:
    arena = started()
    assert arena.run(lambda: arena.reached(3), 60)
    chain = arena.peer(arena.order[0]).chain
    assert chain is not None
    false = fork(arena, chain, arena.order[2:])
    joiner = Chain(chain.run, chain.founder, chain.founding)
    joiner.extend(false)
    with pytest.raises(ProtocolError) as caught:
        joiner.extend(chain.segment(0))
    assert caught.value.refusal is Refusal.EQUIVOCATION
    assert joiner.head.void
