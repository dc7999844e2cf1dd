"""Attacks by leaders and conveners, and replays: who sends what it may not send, or two of what there is one of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from averaging.actions import Send
from averaging.messages import Join, Receipt, Roster, Seating, Survivors
from averaging.roster import convener, join_digest, make_roster, make_seatings
from averaging.survivors import bitmap, bits
from averaging.work import ParticipantAction
from dht.envelope import Envelope, seal
from dht.errors import Refusal
from dht.identity import PeerId
from dht.wire import decode_as, digest, encode
from tests.attacks.evil import Arena, EvilPeer, Plot, said, started

# --- leaders --------------------------------------------------------------------------------------------------------


class TwoSets(Plot):
    """As leader, proposes one set to half of the members and another to the rest, both true to signed receipts."""

    def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
        message, cohort = said(action, Survivors), evil.in_cohort
        if message is None or cohort is None or evil.arena.order.index(action.to) % 2:
            return (action,)
        self.told["second set"] += 1
        fewer = set(bits(message.reducers)) - {max(bits(message.reducers))}
        frames = tuple(cohort.r3.receipts[i][1] for i in sorted(fewer))
        return (evil.say(action.to, replace(message, reducers=bitmap(fewer), receipts=frames)),)


def test_a_leader_that_proposes_two_sets_gets_neither_certified_and_the_next_attempt_has_another_leader() -> None:
    arena = started()
    plot = arena.corrupt(TwoSets(), arena.order_in(2)[0])
    arena.goes_on(1)
    assert plot.told["second set"] >= 3
    (record,) = arena.records[2].values()
    assert record.attempt == 1 and len(record.survivors) == 8


class FalseSet(Plot):
    """As leader, proposes what the receipts do not say."""

    def __init__(self, change: Callable[[EvilPeer, Survivors], Survivors], leads: bool) -> None:
        super().__init__()
        self.change, self.leads = change, leads

    def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
        if self.leads and (message := said(action, Survivors)):
            self.told["proposal"] += 1
            return (evil.say(action.to, self.change(evil, message)),)
        return (action,)

    def hear(self, evil: EvilPeer, sender: PeerId, envelope: Envelope) -> Iterable[ParticipantAction]:
        """Who does not lead says the leader's words in its own name."""
        message = envelope.message()
        if self.leads or not isinstance(message, Survivors) or self.told["proposal"]:
            return ()
        self.told["proposal"] += 1
        return evil.tell(evil.arena.order, self.change(evil, message))


def without_one(evil: EvilPeer, message: Survivors) -> Survivors:
    return replace(message, survivors=message.survivors & ~1)


def below_the_threshold(evil: EvilPeer, message: Survivors) -> Survivors:
    """Six of eight, with receipts that bear it out: those of colluders, whose word is all there is."""
    cohort = evil.in_cohort
    assert cohort is not None
    frames = message.receipts[:6]
    return replace(message, reducers=bitmap(set(bits(message.reducers)[:6])), receipts=frames)


def forged_receipt(evil: EvilPeer, message: Survivors) -> Survivors:
    envelope = decode_as(Envelope, message.receipts[1])
    false = encode(replace(decode_as(Receipt, envelope.body), complete=0, manifests=()))
    return replace(
        message, receipts=(message.receipts[0], encode(replace(envelope, body=false)), *message.receipts[2:])
    )


def receipt_of_nobody(evil: EvilPeer, message: Survivors) -> Survivors:
    mine = encode(seal(evil.identity, evil.params.run, evil.round + 1, Receipt(message.sid, 0, ())))
    return replace(message, receipts=(*message.receipts[1:], mine))


FALSE_SETS = {
    "one survivor less": (without_one, True, Refusal.UNEXPECTED),
    "below the threshold": (below_the_threshold, True, Refusal.OUT_OF_BOUNDS),
    "a receipt changed": (forged_receipt, True, Refusal.BAD_SIGNATURE),
    "a receipt of another round": (receipt_of_nobody, True, Refusal.NOT_A_MEMBER),
    "not the leader": (lambda evil, message: message, False, Refusal.WRONG_SENDER),
    "a view that nobody leads": (lambda evil, message: replace(message, view=60_000), True, Refusal.WRONG_SENDER),
}


@pytest.mark.parametrize("what", FALSE_SETS)
def test_a_proposal_that_its_receipts_do_not_bear_out_is_refused_by_everybody_and_the_next_leader_is_heard(
    what: str,
) -> None:
    change, leads, refusal = FALSE_SETS[what]
    arena = started()
    liar = arena.order_in(2)[0 if leads else 3]
    plot = arena.corrupt(FalseSet(change, leads), liar)
    arena.goes_on(1)
    assert plot.told["proposal"] > 0
    assert arena.refusals_of(liar) == {refusal: 7}
    assert not any(record.void for record in arena.records[2].values())


# --- conveners ------------------------------------------------------------------------------------------------------


class FalseRoster(Plot):
    """As convener, gives each member a roster that this function makes of the true one."""

    def __init__(self, change: Callable[[EvilPeer, Seating, PeerId], Seating]) -> None:
        super().__init__()
        self.change = change

    def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
        message = said(action, Seating)
        if message is None:
            return (action,)
        self.told["roster"] += 1
        return (evil.say(action.to, self.change(evil, message, action.to)),)  # type: ignore[union-attr]


def resigned(evil: EvilPeer, seating: Seating, joins: tuple[bytes, ...], peers: Any = None) -> Seating:
    """A roster of the liar's making, whose seats name these Joins."""
    roster = decode_as(Roster, decode_as(Envelope, seating.roster).body)
    seats = tuple(replace(seat, join=join_digest(join)) for seat, join in zip(roster.seats, joins, strict=False))
    envelope = seal(evil.identity, evil.params.run, roster.round, replace(roster, seats=seats))
    return Seating(encode(envelope), joins)


def another_key(evil: EvilPeer, seating: Seating, to: PeerId) -> Seating:
    """The victim's mask key is exchanged for the convener's; the victim's signature stays, and does not fit."""
    envelope = decode_as(Envelope, seating.joins[2])
    key = encode(replace(decode_as(Join, envelope.body), mask_key=digest("key of the convener")))
    return resigned(evil, seating, (*seating.joins[:2], encode(replace(envelope, body=key)), *seating.joins[3:]))


def own_join_for_anothers(evil: EvilPeer, seating: Seating, to: PeerId) -> Seating:
    """The victim's seat is filled with a Join that the convener signed."""
    join = decode_as(Join, decode_as(Envelope, seating.joins[2]).body)
    mine = encode(seal(evil.identity, evil.params.run, join.round, replace(join, mask_key=bytes([9]) + bytes(31))))
    return resigned(evil, seating, (*seating.joins[:2], mine, *seating.joins[3:]))


def dropped(evil: EvilPeer, seating: Seating, to: PeerId) -> Seating:
    return replace(seating, joins=seating.joins[:-1])


def doubled(evil: EvilPeer, seating: Seating, to: PeerId) -> Seating:
    return replace(seating, joins=(*seating.joins[:-1], seating.joins[0]))


def twice_in_the_roster(evil: EvilPeer, seating: Seating, to: PeerId) -> Seating:
    roster = decode_as(Roster, decode_as(Envelope, seating.roster).body)
    twice = replace(roster, seats=(roster.seats[0], *roster.seats))
    return Seating(encode(seal(evil.identity, evil.params.run, roster.round, twice)), seating.joins)


def few(evil: EvilPeer, seating: Seating, to: PeerId) -> Seating:
    """The victim among as few as make no quorum of the committee: it would be alone with the convener's friends."""
    joins = {PeerId(decode_as(Envelope, join).sender): decode_as(Envelope, join) for join in seating.joins}
    chosen = {peer: joins[peer] for peer in [to, *[peer for peer in joins if peer != to][:4]]}
    roster = decode_as(Roster, decode_as(Envelope, seating.roster).body)
    small = make_roster(roster.round, roster.attempt, roster.head, chosen)
    envelope = seal(evil.identity, evil.params.run, roster.round, small)
    return next(made for members, made in make_seatings(evil.params, envelope, chosen) if to in members)


def two_rosters(evil: EvilPeer, seating: Seating, to: PeerId) -> Seating:
    """Half of the members get one without the liar's own neighbour in it, half get the whole."""
    joins = {PeerId(decode_as(Envelope, join).sender): decode_as(Envelope, join) for join in seating.joins}
    if evil.arena.order.index(to) % 2:
        return seating
    left_out = next(peer for peer in sorted(joins) if peer not in (to, evil.peer_id))
    chosen = {peer: join for peer, join in joins.items() if peer != left_out}
    roster = decode_as(Roster, decode_as(Envelope, seating.roster).body)
    other = make_roster(roster.round, roster.attempt, roster.head, chosen)
    envelope = seal(evil.identity, evil.params.run, roster.round, other)
    return next(made for members, made in make_seatings(evil.params, envelope, chosen) if to in members)


FALSE_ROSTERS = {
    "a swapped mask key": (another_key, {Refusal.BAD_SIGNATURE, Refusal.NOT_A_MEMBER}),
    "a Join of the convener for another's": (own_join_for_anothers, {Refusal.BAD_HASH, Refusal.NOT_A_MEMBER}),
    "a dropped key bundle": (dropped, {Refusal.NOT_A_MEMBER}),
    "a doubled key bundle": (doubled, {Refusal.BAD_HASH}),
    "a seat given twice": (twice_in_the_roster, {Refusal.UNEXPECTED}),
    "no quorum of the committee": (few, {Refusal.OUT_OF_BOUNDS}),
    "two rosters": (two_rosters, {Refusal.UNEXPECTED}),  # once they are shown to each other
}


def convener_of(arena: Arena, round_: int) -> PeerId:
    chain = arena.peer(arena.order[0]).chain
    assert chain is not None and chain.head.round == round_ - 1
    return convener(chain.beacon, chain.committee(), 0)


@pytest.mark.parametrize("what", FALSE_ROSTERS)
def test_a_roster_that_is_not_what_its_members_signed_is_refused_and_the_next_convener_takes_over(what: str) -> None:
    change, refusals = FALSE_ROSTERS[what]
    arena = started()
    liar = convener_of(arena, 2)
    plot = arena.corrupt(FalseRoster(change), liar)
    arena.goes_on(1)
    assert plot.told["roster"] > 0
    assert set(arena.refusals_of(liar)) == refusals
    (record,) = arena.records[2].values()
    assert not record.void and record.attempt > 0


class SameKeys(Plot):
    """Two liars join with one mask key: a roster with both would be refused by everybody, attempt after attempt."""

    def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
        message = said(action, Join)
        if message is None:
            return (action,)
        self.told["joined"] += 1
        return (evil.say(action.to, replace(message, mask_key=bytes([9]) + bytes(31))),)


def test_the_second_of_two_who_join_with_one_key_is_refused_by_the_convener() -> None:
    arena = started(seed=5)
    liars = [peer for peer in arena.order if peer != convener_of(arena, 2)][:2]
    plot = arena.corrupt(SameKeys(), *liars)
    arena.goes_on(3)
    assert plot.told["joined"] > 2
    assert sum(arena.refusals_of(liar)[Refusal.EQUIVOCATION] for liar in liars) > 0


# --- replays --------------------------------------------------------------------------------------------------------


class Replay(Plot):
    """Sends again what it heard: to its author, to others, in later rounds; and its own words for another run."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Envelope] = []

    def hear(self, evil: EvilPeer, sender: PeerId, envelope: Envelope) -> Iterable[ParticipantAction]:
        self.heard.append(envelope)
        peers = [peer for peer in evil.arena.order if peer != evil.peer_id]
        if len(self.heard) > 600:
            return ()
        old = self.heard[(7 * len(self.heard)) % len(self.heard)]
        self.told["reflected"] += 1
        self.told["passed on"] += 1
        self.told["old"] += old.round < evil.round
        mine = seal(
            evil.identity, digest("another run"), evil.round, Join(evil.round, 0, bytes(32), *[bytes(32)] * 5, 1, 1, ())
        )
        return (
            Send(PeerId(envelope.sender), envelope),
            Send(peers[len(self.heard) % len(peers)], old),
            Send(peers[(3 * len(self.heard)) % len(peers)], mine),
        )


def test_replayed_and_reflected_messages_and_those_of_other_runs_are_refused_and_change_nothing() -> None:
    arena = started()
    liar = arena.order[4]
    plot = arena.corrupt(Replay(), liar)
    arena.goes_on(3)
    assert min(plot.told[what] for what in ("reflected", "passed on", "old")) > 20
    refusals = arena.refusals_of(liar)
    assert refusals[Refusal.WRONG_SENDER] > 20 and refusals[Refusal.WRONG_RUN] > 20
    assert not any(record.void for found in arena.records.values() for record in found.values())


class OldSid(Plot):
    """Signs its words of the last round again, with the last round's sid, for this round; and for the last round."""

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[int, list[Any]] = {}

    def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
        message = next((m for cls in (Receipt, Survivors) if (m := said(action, cls))), None)
        if message is None:
            return (action,)
        old = self.said.get(evil.round - 1, [])
        self.said.setdefault(evil.round, []).append(message)
        self.told["old sid"] += len(old) > 0
        again = [evil.say(action.to, other, round_) for other in old[:1] for round_ in (evil.round, evil.round - 1)]
        return (*again, action)


def test_words_of_an_older_sid_do_not_count_in_a_newer_one() -> None:
    arena = started()
    liar = arena.order_in(2)[0]
    plot = arena.corrupt(OldSid(), liar)
    arena.goes_on(3)
    assert plot.told["old sid"] > 0
    assert set(arena.refusals_of(liar)) == {Refusal.STALE}
    assert not any(record.void for found in arena.records.values() for record in found.values())
