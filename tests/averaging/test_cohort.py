"""A cohort under lies, replays and late mail: each is refused by its number, and nobody else notices."""

from __future__ import annotations

import gc
import random
import weakref
from dataclasses import replace
from typing import Any

import pytest

from averaging.bulk import BulkKind, Chunk
from averaging.dealing import Dealing, Seed
from averaging.messages import (
    AuditShares,
    Knock,
    Manifest,
    Missing,
    Ready,
    Receipt,
    Shares,
    SumHashes,
    Survivors,
    Unmask,
    Vote,
)
from averaging.survivors import bitmap
from averaging.work import Transfer
from dht.envelope import seal
from dht.errors import ProtocolError, Refusal, StorageError
from dht.wire import encode
from tests.averaging.cohort_net import RUN, CohortNet, identity

LIAR = 4


def lying(n: int, when: type | BulkKind, lie: Any, seed: int = 0) -> CohortNet:
    """A cohort whose member 4, besides or instead of one kind of item, sends what `lie(net, to, item)` returns."""
    net = CohortNet(n, seed=seed)
    told: list[Any] = []

    def tamper(i: int, j: int, item: Any) -> Any:
        kind = item.kind if isinstance(item, Chunk) else type(item)
        if i != LIAR or kind is not when:
            return item
        false = lie(net, j, item)
        told.append(false)
        return false

    net.tamper = tamper
    net.run()
    assert told, "nobody lied"
    return net


def refused(net: CohortNet) -> set[tuple[int, Refusal]]:
    return {(i, error.refusal) for i, _, error in net.refusals}


def twice(change: Any) -> Any:
    """Send the true one and, after it, another."""

    def lie(net: CohortNet, to: int, item: Any) -> Any:
        net.at(0.5, lambda: net.inject(LIAR, to, change(item)))
        return item

    return lie


TWO_VERSIONS = {
    "shares": (Shares, lambda m: replace(m, commitments=(bytes(32), *m.commitments[1:]))),
    "ready": (Ready, lambda m: replace(m, commitments=(bytes(32), *m.commitments[1:]))),
    "manifest": (Manifest, lambda m: replace(m, tokens=m.tokens + 1)),
    "receipt": (Receipt, lambda m: replace(m, complete=m.complete & ~1)),
    "vote": (Vote, lambda m: replace(m, survivors=m.survivors & ~1)),
    "sum hashes": (SumHashes, lambda m: replace(m, hashes=(bytes(32), *m.hashes[1:]))),
}


@pytest.mark.parametrize("name", TWO_VERSIONS)
def test_two_versions_of_one_message_are_equivocation_and_change_nothing(name):
    when, change = TWO_VERSIONS[name]
    net = lying(8, when, twice(change))
    assert refused(net) == {(LIAR, Refusal.EQUIVOCATION)}
    assert net.check_sums() == ()


@pytest.mark.parametrize("when", [Vote, Receipt, Shares, Unmask, SumHashes, AuditShares, Survivors, Manifest])
def test_a_repeated_message_is_no_offence(when):
    net = CohortNet(5)
    net.tamper = lambda i, j, item: (isinstance(item, when) and net.inject(i, j, item)) or item
    net.run()
    assert net.refusals == [] and net.notes == []
    assert net.check_sums() == ()


@pytest.mark.parametrize(
    ("when", "lie", "expected"),
    [
        (Unmask, lambda m: replace(m, shares=m.shares[1:]), None),
        (SumHashes, lambda m: replace(m, chunks=(999,), hashes=(bytes(32),)), Refusal.OUT_OF_BOUNDS),
        (SumHashes, lambda m: replace(m, hashes=()), Refusal.OUT_OF_BOUNDS),
        (AuditShares, lambda m: replace(m, shares=(bytes(32), *m.shares[1:])), Refusal.BAD_SHARE),
        (AuditShares, lambda m: replace(m, shares=m.shares[1:]), Refusal.BAD_SHARE),
        (Manifest, lambda m: replace(m, hashes=m.hashes[1:]), Refusal.OUT_OF_BOUNDS),
        (Manifest, lambda m: replace(m, tokens=2**31), Refusal.OUT_OF_BOUNDS),
        (Manifest, lambda m: replace(m, tokens=0), Refusal.OUT_OF_BOUNDS),
        (Receipt, lambda m: replace(m, complete=1 << 60), Refusal.OUT_OF_BOUNDS),
        (Vote, lambda m: Survivors(m.sid, 1, m.survivors, m.reducers, (bytes(64),)), Refusal.WRONG_SENDER),
        (Vote, lambda m: Knock(1, bytes(32)), Refusal.UNEXPECTED),
    ],
)
def test_a_liars_message_is_refused_and_the_others_get_their_sum(when, lie, expected):
    net = lying(8, when, lambda net, to, item: lie(item))
    if expected is None:  # noticed once the certificate is there: a note names the liar
        assert {note.peer for _, note in net.notes} == {net.roster.peers[LIAR]}
    else:
        assert (LIAR, expected) in refused(net)
    assert {i for i, _ in refused(net)} <= {LIAR}
    net.check_sums([i for i in range(8) if i != LIAR])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: replace(c, data=c.data + b"x"), Refusal.OUT_OF_BOUNDS),
        (lambda c: replace(c, data=c.data[:-2]), Refusal.OUT_OF_BOUNDS),
        (lambda c: replace(c, index=5000), Refusal.UNEXPECTED),
        (lambda c: replace(c, index=(c.index + 3) % 8), Refusal.UNEXPECTED),
        (lambda c: replace(c, member=0), Refusal.WRONG_SENDER),
    ],
)
def test_masked_chunks_that_are_not_due_are_refused_and_their_sender_is_left_out(change, expected):
    net = lying(8, BulkKind.MASKED, lambda net, to, item: change(item))
    assert (LIAR, expected) in refused(net)
    assert {i for i, _ in refused(net)} == {LIAR}
    others = [i for i in range(8) if i != LIAR]
    net.check_sums(others)
    assert net.nodes[0].cohort.certified.survivors == tuple(others)


def test_a_chunk_that_differs_from_its_manifest_leaves_its_sender_out():
    net = lying(8, BulkKind.MASKED, lambda net, to, item: replace(item, data=bytes(len(item.data))))
    net.check_sums()
    assert LIAR not in net.nodes[0].cohort.certified.survivors


def test_a_forged_sum_is_refused_and_the_true_one_is_made_by_the_stand_in():
    net = lying(8, BulkKind.SUM, lambda net, to, item: replace(item, data=bytes(len(item.data))))
    assert refused(net) == {(LIAR, Refusal.BAD_HASH)}
    others = [i for i in range(8) if i != LIAR]
    assert net.check_sums(others) == ()


def test_chunks_that_come_after_the_receipt_change_nothing():
    """Member 4's chunks for reducer 2 are late: it is left out, and what still arrives is discarded."""
    net = CohortNet(8)
    late = {(LIAR, 2)}
    net.delay = lambda i, j, item: (
        40.0 if (i, j) in late and isinstance(item, Chunk) else net.random.uniform(0.001, 0.3)
    )
    net.run()
    net.check_sums()
    assert LIAR not in net.nodes[0].cohort.certified.survivors
    assert refused(net) == {(LIAR, Refusal.STALE)}


def test_strangers_and_foreign_types_are_refused():
    net = CohortNet(4).run()
    cohort, stranger = net.nodes[0].cohort, identity(40)
    vote = net.messages(Vote)[0]
    with pytest.raises(ProtocolError) as caught:
        cohort.receive(stranger.peer_id, vote, encode(seal(stranger, RUN, 1, vote)))
    assert caught.value.refusal is Refusal.NOT_A_MEMBER
    with pytest.raises(ProtocolError) as caught:
        cohort.receive_chunk(stranger.peer_id, Chunk(BulkKind.SUM, net.roster.sid, 0, 0, b"x"))
    assert caught.value.refusal is Refusal.NOT_A_MEMBER
    net.check_sums()


def test_an_update_is_masked_once_per_sid():
    """A second update under the same masks would give the difference of both away."""
    net = CohortNet(4).run()
    with pytest.raises(ProtocolError):
        net.nodes[0].cohort.mask(0, net.params.layout.zeros(0))


def test_asking_for_sums_is_answered_with_their_signatures_and_not_without_end():
    net = CohortNet(4).run()
    cohort, peer = net.nodes[0].cohort, net.roster.peers[1]
    message = Missing(net.roster.sid, (0, 1))

    def ask() -> list[Any]:
        return cohort.receive(peer, message, b"")

    actions = ask()
    assert [action.message.message().chunks for action in actions[:-1]] == [(0,), (1,)]
    assert actions[-1] == Transfer(net.roster.sid, BulkKind.SUM, (0, 1), (peer,))
    for _ in range(2 * 4 - 1):
        ask()
    with pytest.raises(ProtocolError) as caught:
        ask()
    assert caught.value.refusal is Refusal.RATE_LIMITED


def test_a_death_before_everybody_holds_shares_names_the_dead_and_nobody_else():
    net = CohortNet(5)
    net.plan = {2: ("Shares", 3)}
    net.announce = 1.0
    net.run()
    assert net.fired
    for i in net.living:
        failed = net.nodes[i].cohort.failed
        assert failed is not None and not failed.opened
        assert failed.laggards == (net.roster.peers[2],)
    assert net.messages(Manifest) == []


@pytest.mark.parametrize("leavers", [1, 2])
def test_who_goes_on_to_another_attempt_is_not_waited_for_and_not_blamed(leavers):
    """One member of 8 may leave after R1 and the sum is made without it; with a second one there are too few."""
    net = CohortNet(8, seed=11)
    net.plan = {i: ("Upload", 1) for i in range(leavers)}
    net.announce = 0.0  # nobody's connection breaks: only their word tells

    def leave() -> None:
        for i in range(leavers, 8):
            for gone in net.plan:
                net.call(i, lambda c, gone=gone: c.left(net.roster.peers[gone]))

    net.at(net.params.deadlines.shares, leave)
    net.run(limit=net.params.deadlines.shares + 2.5)
    assert len(net.fired) == leavers
    cohorts = [net.nodes[i].cohort for i in range(leavers, 8)]
    if leavers == 1:
        assert all(cohort.certified is not None and 0 not in cohort.certified.survivors for cohort in cohorts)
    else:
        assert all(cohort.failed is not None and not cohort.failed.opened for cohort in cohorts)
        assert all(cohort.failed.laggards == () for cohort in cohorts)


def test_a_silent_member_is_named_at_the_deadline():
    net = CohortNet(5)
    net.tamper = lambda i, j, item: None if i == 3 else item
    net.run()
    for i in (0, 1, 2, 4):
        failed = net.nodes[i].cohort.failed
        assert failed is not None
        assert failed.laggards == (net.roster.peers[3],)


def test_a_dealer_with_two_stories_stops_the_attempt_before_the_upload():
    """It shows member 0 other hashes than the rest: some shares of it could never be checked alike."""
    net = CohortNet(5)
    second = Dealing(net.roster, LIAR, net.nodes[LIAR].secrets, 4, random.Random(9).randbytes)

    def tamper(i: int, j: int, item: Any) -> Any:
        return second.deal(0) if (i, j) == (LIAR, 0) and isinstance(item, Shares) else item

    net.tamper = tamper
    net.run()
    assert all(net.nodes[i].cohort.failed for i in range(5) if i != LIAR)
    assert not any(isinstance(item, Chunk) for i, _, item in net.sent if i != LIAR)
    assert net.messages(Unmask) == []


def test_a_dropout_whose_mask_seed_was_dealt_wrong_is_named():
    """Its mask seed is opened once it has dropped out; a seed that is not its key's must not be used."""
    net = CohortNet(5)
    cohort = net.nodes[LIAR].cohort = net.make_cohort(LIAR)
    false = replace(net.nodes[LIAR].secrets, a=bytes(31))
    cohort._dealing = cohort._audit._dealing = Dealing(net.roster, LIAR, false, 4, random.Random(9).randbytes)
    net.plan = {LIAR: ("Upload", 1)}
    net.announce = 1.0
    net.run()
    for i in net.living:
        failed = net.nodes[i].cohort.failed
        assert failed is not None and failed.opened
        assert f"member {LIAR} dealt" in failed.reason
        assert not net.nodes[i].complete


class FullDiskError(StorageError):
    """A guard whose disk is full."""


def test_a_guard_that_cannot_write_stops_the_release():
    net = CohortNet(5)

    def full(*_: Any) -> None:
        raise FullDiskError("no space left", remedy="free some")

    net.nodes[1].guard.release = full  # type: ignore[method-assign]
    with pytest.raises(FullDiskError):
        net.run()
    assert net.messages(Unmask, 1) == []


def test_only_shares_that_the_certificate_calls_for_leave():
    net = CohortNet(8)
    net.plan = {6: ("Upload", 1)}
    net.run()
    (survivors,) = {message.survivors for message in net.messages(Unmask)}
    assert survivors == bitmap({0, 1, 2, 3, 4, 5, 7})
    for i, _, message in net.sent:
        if isinstance(message, Unmask):
            dealing = net.nodes[i].cohort._dealing
            due = tuple(dealing.share(Seed.MASK if dealer == 6 else Seed.SELF, dealer) for dealer in range(8))
            assert message.shares == due


def test_a_finished_cohort_is_freed_with_its_last_reference():
    """It holds a round's chunks: in a cycle they would stay until the collector comes, which may be many rounds."""
    net = CohortNet(5).run()
    cohort = net.nodes[0].cohort
    assert cohort.sums.complete
    gone = weakref.ref(cohort)
    gc.disable()
    try:
        net.nodes[0].cohort = None
        del cohort
        assert gone() is None
    finally:
        gc.enable()
