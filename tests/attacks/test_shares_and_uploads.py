"""Attacks on shares and uploads in one cohort, each with its refusal, and a swarm that ends as if nothing were."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from averaging.bulk import BulkKind, Chunk
from averaging.layout import Layout
from averaging.messages import Join, Manifest, Receipt, Shares, SumHashes, Survivors, Unmask, Vote
from averaging.survivors import bitmap, bits
from averaging.work import ParticipantAction
from dht.envelope import Envelope
from dht.errors import Refusal
from dht.identity import PeerId
from tests.attacks.evil import Arena, EvilPeer, Plot, said, started


def members_of(arena: Arena, round_: int) -> set[PeerId]:
    """Survivors of a round that is not void."""
    (record,) = arena.records[round_].values()
    assert not record.void
    return set(record.members())


# --- uploads --------------------------------------------------------------------------------------------------------


class OneReducer(Plot):
    """Its chunks go to one reducer only; so does its manifest when `silent`."""

    def __init__(self, only: PeerId, *, silent: bool) -> None:
        super().__init__()
        self.only, self.silent = only, silent

    def ship(self, evil: EvilPeer, to: PeerId, chunk: Chunk) -> Chunk | None:
        if chunk.kind is BulkKind.MASKED and to != self.only:
            self.told["withheld chunk"] += 1
            return None
        return chunk

    def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
        if self.silent and said(action, Manifest) and action.to != self.only:
            self.told["withheld manifest"] += 1
            return ()
        return (action,)


@pytest.mark.parametrize("silent", [False, True])
def test_an_upload_that_one_reducer_gets_counts_for_nobody(silent: bool) -> None:
    """Its receivers see different things, yet there is one survivor set, without the liar, and nobody is refused."""
    arena = started()
    liar, only = arena.order[3], arena.order[5]
    plot = arena.corrupt(OneReducer(only, silent=silent), liar)
    arena.goes_on(1)
    assert plot.told["withheld chunk"] > 0 and (plot.told["withheld manifest"] > 0) is silent
    assert members_of(arena, 2) == set(arena.honest)
    assert arena.refusals_of(liar) == {}


class Contradicting(Plot):
    """Tells every second peer another version of its messages of one class; every fourth hears both."""

    def __init__(self, cls: type, change: Any) -> None:
        super().__init__()
        self.cls, self.change = cls, change

    def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
        message: Any = said(action, self.cls)
        place = evil.arena.order.index(action.to) if message is not None else 0
        if message is None or place % 2 == 0:
            return (action,)
        self.told[self.cls.__name__] += 1
        lie = evil.say(action.to, self.change(message))
        return (lie,) if place % 4 == 1 else (action, lie)


CONTRADICTIONS = {
    "manifest": (Manifest, lambda m: replace(m, hashes=(bytes(32), *m.hashes[1:])), Refusal.EQUIVOCATION),
    "receipt": (Receipt, lambda m: replace(m, complete=m.complete & (m.complete - 1)), Refusal.EQUIVOCATION),
    "vote": (Vote, lambda m: replace(m, survivors=m.survivors & (m.survivors - 1)), Refusal.EQUIVOCATION),
    "hash list": (Shares, lambda m: replace(m, commitments=(bytes(32), *m.commitments[1:])), Refusal.EQUIVOCATION),
    "hashes of sums": (SumHashes, lambda m: replace(m, hashes=(bytes(32), *m.hashes[1:])), Refusal.EQUIVOCATION),
}


@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_two_versions_of_one_message_are_refused_and_split_nobody(what: str, seed: int) -> None:
    cls, change, refusal = CONTRADICTIONS[what]
    arena = started(seed=seed, layout=Layout(8 * 4096, 16, 4096))  # whoever sits where, everybody reduces a chunk
    plot = arena.corrupt(Contradicting(cls, change), arena.order[6])
    arena.goes_on(2)
    assert plot.told[cls.__name__] > 0
    assert arena.refusals_of(arena.order[6])[refusal] > 0


class OutOfBounds(Plot):
    """One field of one message is outside what the round allows, though the codec takes it."""

    def __init__(self, cls: type, **change: Any) -> None:
        super().__init__()
        self.cls, self.change = cls, change

    def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
        message: Any = said(action, self.cls)
        if message is None:
            return (action,)
        self.told["out of bounds"] += 1
        return (evil.say(action.to, replace(message, **self.change)),)


@pytest.mark.parametrize(
    ("cls", "change"),
    [
        (Manifest, {"tokens": (1 << 20) + 1}),  # one token more than the cap: weight inflation
        (Manifest, {"tokens": 2**32 - 1}),
        (Manifest, {"tokens": 0}),
        (Manifest, {"hashes": (bytes(32),) * 3}),
        (Receipt, {"complete": 2**63}),  # of a member that does not exist
        (SumHashes, {"chunks": (16383,), "hashes": (bytes(32),)}),
        (SumHashes, {"chunks": (0, 1), "hashes": (bytes(32),)}),
    ],
)
def test_numbers_out_of_range_and_inflated_weights_are_refused(cls: type, change: dict[str, Any]) -> None:
    arena = started(seed=3)
    liar = arena.order[2]
    plot = arena.corrupt(OutOfBounds(cls, **change), liar)
    arena.goes_on(1)
    assert plot.told["out of bounds"] > 0
    found = arena.refusals_of(liar)
    assert found[Refusal.OUT_OF_BOUNDS] and set(found) <= {Refusal.OUT_OF_BOUNDS, Refusal.UNEXPECTED}  # what follows it
    record = next(iter(arena.records[2].values()))
    assert all(survivor.tokens <= arena.params.weight_cap for survivor in record.survivors)


class Late(Plot):
    """Keeps one chunk back until survivors are proposed, then sends it, once before and once after the certificate."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[PeerId, Chunk]] = []

    def ship(self, evil: EvilPeer, to: PeerId, chunk: Chunk) -> Chunk | None:
        if chunk.kind is BulkKind.MASKED and not self.kept:
            self.kept.append((to, replace(chunk, data=bytes(chunk.data))))
            return None
        return chunk

    def hear(self, evil: EvilPeer, sender: PeerId, envelope: Envelope) -> Iterable[ParticipantAction]:
        message = envelope.message()
        if isinstance(message, Survivors | SumHashes) and self.told[type(message).__name__] == 0:
            self.told[type(message).__name__] += 1
            for to, chunk in self.kept:
                frame = b"".join(bytes(part) for part in chunk.parts())
                super(Arena, evil.arena).deliver(evil.peer_id, to, frame, bulk=True)
        return ()


@pytest.mark.parametrize(("seed", "kept"), [(0, True), (1, False), (4, False)])
def test_a_chunk_after_the_receipt_is_stale(seed: int, kept: bool) -> None:
    """Both times; whether the receiver has the certificate or keeps the chunk until then is a matter of luck."""
    arena = started(seed=seed)
    liar = arena.order[3]
    plot = arena.corrupt(Late(), liar)
    arena.goes_on(1)
    assert plot.told == {"Survivors": 1, "SumHashes": 1}
    assert members_of(arena, 2) == set(arena.honest)
    late = [refused for refused in arena.refused if refused.sender == liar and "chunk" in refused.text]
    assert [refused.refusal for refused in late] == [Refusal.STALE, Refusal.STALE]
    assert any("came after my receipt" in note for note in arena.notes) is kept


class Spoiled(Plot):
    """Chunks that differ from the manifest, of another size, of another member, of no chunk, or for another reducer."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def ship(self, evil: EvilPeer, to: PeerId, chunk: Chunk) -> Chunk | None:
        if chunk.kind is not BulkKind.MASKED:
            return chunk
        self.told["spoiled"] += 1
        return self.change(replace(chunk, data=bytes(chunk.data)))


@pytest.mark.parametrize(
    ("change", "refusals"),
    [
        (lambda c: replace(c, data=bytes(len(c.data))), {}),  # not what the manifest says: no receipt covers it
        (lambda c: replace(c, data=c.data[:-2]), {Refusal.OUT_OF_BOUNDS}),
        (lambda c: replace(c, member=(c.member + 1) % 8), {Refusal.WRONG_SENDER}),
        (lambda c: replace(c, index=(c.index + 3) % 5), {Refusal.UNEXPECTED, Refusal.OUT_OF_BOUNDS}),
        (lambda c: replace(c, index=70_000), {Refusal.UNEXPECTED}),
        (lambda c: replace(c, sid=bytes(32)), {Refusal.STALE}),
    ],
)
def test_a_chunk_that_is_not_what_was_announced_counts_for_nobody(change: Any, refusals: set[Refusal]) -> None:
    arena = started(seed=4)
    liar = arena.order[1]
    plot = arena.corrupt(Spoiled(change), liar)
    arena.goes_on(1)
    assert plot.told["spoiled"] > 0
    assert members_of(arena, 2) == set(arena.honest)
    found = set(arena.refusals_of(liar))
    assert found <= set(refusals) and bool(found) == bool(refusals)


# --- shares ---------------------------------------------------------------------------------------------------------


class CorruptShares(Plot):
    """Deals one victim sealed bytes that do not open."""

    def __init__(self, victim: PeerId) -> None:
        super().__init__()
        self.victim = victim

    def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
        message = said(action, Shares)
        if message is None or action.to != self.victim:
            return (action,)
        self.told["spoiled"] += 1
        return (evil.say(action.to, replace(message, sealed=message.sealed[:-1] + bytes([message.sealed[-1] ^ 1]))),)


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_shares_that_do_not_open_are_refused_before_anything_is_uploaded(seed: int) -> None:
    """At once, or out of the mailbox where they came before the roster."""
    arena = started(seed=seed)
    liar, victim = arena.order[2], arena.order[4]
    plot = arena.corrupt(CorruptShares(victim), liar)
    arena.goes_on(1)
    assert plot.told["spoiled"] > 0
    refused = [refusal for refusal in arena.refused if refusal.refusal is Refusal.BAD_SHARE]
    assert refused and all((refusal.by, refusal.sender) == (victim, liar) for refusal in refused)


class OtherSeed(Plot):
    """Deals consistent shares of another seed than the one that it published in its Join."""

    def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
        convening = evil.current.convening if evil.current else None
        if said(action, Join) and convening is not None and convening.secrets is not None:
            self.told["dealt"] += 1
            convening.secrets = replace(convening.secrets, b=bytes(31))
        return (action,)


def test_shares_of_another_seed_void_the_round_and_name_their_dealer() -> None:
    """No sum comes of it, and no state changes; the round after it, in which the liar deals rightly, is whole."""
    arena = started()
    liar = arena.order[2]
    plot = arena.corrupt(OtherSeed(), liar)
    assert arena.run(lambda: arena.reached(3, arena.honest), 200)
    assert plot.told["dealt"] > 0
    (record,) = arena.records[3].values()  # its Join of round 2 was on its way already
    assert record.void
    named = [note for note in arena.notes if "dealt shares of another seed" in note]
    assert len(named) >= len(arena.honest)
    arena.plots.clear()
    arena.goes_on(2)


class WrongHelper(Plot):
    """Returns a wrong share of one member's seed; or, when `silent`, goes on strike after the certificate."""

    def __init__(self, *, silent: bool) -> None:
        super().__init__()
        self.silent = silent

    def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
        message = said(action, Unmask)
        if message is None:
            return () if self.silent and said(action, SumHashes) else (action,)
        self.told["lied"] += 1
        lie = replace(message, shares=(bytes(32), *message.shares[1:]))
        return () if self.silent else (evil.say(action.to, lie),)

    def ship(self, evil: EvilPeer, to: PeerId, chunk: Chunk) -> Chunk | None:
        return None if self.silent and chunk.kind is BulkKind.SUM else chunk


@pytest.mark.parametrize("silent", [False, True])
def test_a_wrong_share_from_a_helper_names_it_and_changes_no_sum(silent: bool) -> None:
    arena = started()
    liar = arena.order[2]
    plot = arena.corrupt(WrongHelper(silent=silent), liar)
    arena.goes_on(2)
    assert plot.told["lied"] > 0
    assert not any(record.void for found in arena.records.values() for record in found.values())
    named = [note for note in arena.notes if "not the share that member" in note]
    assert bool(named) is not silent


def test_two_helpers_who_keep_their_shares_void_the_round_but_open_nothing() -> None:
    """Six of eight are below the threshold of seven. What was released stays good for one sum only, in no attempt."""
    arena = started()
    plot = arena.corrupt(WrongHelper(silent=True), *arena.order[2:4])
    assert arena.run(lambda: arena.reached(2, arena.honest), 200)
    assert plot.told["lied"] > 0
    (record,) = arena.records[2].values()
    assert record.void and arena.watch.seen["Unmask"] > 0
    arena.check()
    arena.plots.clear()
    arena.goes_on(1)


# --- both secrets of one victim -------------------------------------------------------------------------------------


class TwoSets(Plot):
    """Five colluders of eight (as many as the table of the threat model allows) certify a set without their victim.

    They vote and release whatever they like; for the victim's other seed they need t - f = 2 honest helpers.
    """

    def __init__(self, victim: PeerId) -> None:
        super().__init__()
        self.victim = victim

    def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
        cohort, message = evil.in_cohort, said(action, Vote)
        if message is None or cohort is None or evil.arena.order.index(action.to) % 2:
            return (action,)
        self.told["vote"] += 1
        without = set(bits(message.survivors)) - {cohort.peers.index(self.victim)}
        other = replace(message, survivors=bitmap(without), manifests=cohort.r3._manifests(without))
        return (evil.say(action.to, other),)

    def hear(self, evil: EvilPeer, sender: PeerId, envelope: Envelope) -> Iterable[ParticipantAction]:
        """Ask for the other kind of share by showing one's own."""
        cohort, message = evil.in_cohort, envelope.message()
        if not isinstance(message, Unmask) or cohort is None or cohort.certified is None:
            return ()
        self.told["asked"] += 1
        without = set(bits(message.survivors)) - {cohort.peers.index(self.victim)}
        return (evil.say(sender, replace(message, survivors=bitmap(without))),)


@pytest.mark.parametrize("seed", range(3))
def test_as_many_colluders_as_the_table_allows_never_get_both_secrets(seed: int) -> None:
    arena = started(seed=seed)
    plot = arena.corrupt(TwoSets(arena.order[0]), *arena.order[3:])
    arena.run(lambda: False, 60)
    assert plot.told["vote"] > 0 and plot.told["asked"] > 0
    arena.check_seeds()
    assert arena.watch.broken == []
