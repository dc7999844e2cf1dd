"""One member's rules, input by input. Whole committees under bad weather are in `tests/sim`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from averaging.actions import Action, CancelTimer, Note, Send, SetTimer
from averaging.agreement import (
    PRECOMMIT_TIMER,
    PREVOTE_TIMER,
    PROPOSE_TIMER,
    RESEND_TIMER,
    Agreement,
    Timeouts,
    Verdict,
    lock_key,
)
from averaging.ballots import (
    NIL,
    PRECOMMIT,
    PREVOTE,
    Ballot,
    Certificate,
    Decision,
    DecisionRequest,
    Gossip,
    Memory,
    ProofOfLock,
    Proposal,
)
from averaging.certificate import proposers, verify
from averaging.guard import MemoryGuard
from averaging.record import Record, found, void_record
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal, StorageError
from dht.identity import Identity
from dht.wire import decode_as, digest, encode

RUN, BEACON = b"r" * 32, b"b" * 32
_BY_PEER = {key.peer_id: key for key in (Identity(bytes([*[5] * 31, i + 1])) for i in range(5))}
_PEERS = sorted(_BY_PEER)
COMMITTEE = tuple(_PEERS[:4])
STRANGER = _BY_PEER[_PEERS[4]]
# Keys in the order in which they propose: KEYS[v] is view v's proposer.
KEYS = [_BY_PEER[peer] for peer in proposers(COMMITTEE, BEACON)]
MINE = void_record(found(KEYS[0], RUN, COMMITTEE, b"s" * 32, b"n" * 32).message().record())
OTHER = replace(MINE, attempt=1)


def valid(record: Record) -> Verdict:
    return Verdict.VALID


@pytest.fixture
def guard():
    memory = MemoryGuard()
    yield memory
    memory.close()


def member(key: Identity, guard: MemoryGuard, *, validate=valid, propose: Callable[[], Record | None] = lambda: MINE):
    return Agreement(RUN, 1, COMMITTEE, key, BEACON, guard, Timeouts(), validate=validate, propose=propose)


def sign(key: Identity, body: object, *, run: bytes = RUN, round_: int = 1) -> Envelope:
    return seal(key, run, round_, body)


def proposal(view: int, record: Record) -> Envelope:
    return sign(KEYS[view % 4], Proposal(1, view, record.hash(), 0, encode(record), (), ()))


def ballot(who: int, view: int, kind: int, value: bytes) -> Envelope:
    return sign(KEYS[who], Ballot(1, view, kind, value))


def reproposal(view: int, record: Record, valid_view: int, voters: tuple[int, ...]) -> Envelope:
    """A proposal with its proof: prevotes by the members who propose in the views `voters`."""
    votes = {COMMITTEE.index(KEYS[i].peer_id): ballot(i, valid_view, PREVOTE, record.hash()).signature for i in voters}
    signers = tuple(sorted(votes))
    body = Proposal(1, view, record.hash(), valid_view + 1, encode(record), signers, tuple(votes[i] for i in signers))
    return sign(KEYS[view % 4], body)


def said(actions: list[Action]) -> list[object]:
    """The distinct messages of the actions, in order."""
    envelopes = [action.message for action in actions if isinstance(action, Send)]
    return [envelope.message() for envelope in dict.fromkeys(envelopes)]


def feed(machine: Agreement, *envelopes: Envelope) -> list[object]:
    return [body for envelope in envelopes for body in said(machine.receive(envelope))]


def refusal(machine: Agreement, envelope: Envelope) -> Refusal:
    with pytest.raises(ProtocolError) as caught:
        machine.receive(envelope)
    return caught.value.refusal


def started(key: Identity, guard: MemoryGuard, **how) -> Agreement:
    machine = member(key, guard, **how)
    machine.start()
    return machine


def test_alone_a_member_decides_at_once(guard: MemoryGuard):
    alone = (KEYS[0].peer_id,)
    machine = Agreement(RUN, 1, alone, KEYS[0], BEACON, guard, validate=valid, propose=lambda: MINE)
    machine.start()
    assert machine.decision is not None
    verify(machine.decision[1], MINE, alone, RUN)


def test_the_proposer_proposes_and_prevotes_and_the_rest_follows(guard: MemoryGuard):
    machine = member(KEYS[0], guard)
    first = machine.start()
    value = MINE.hash()
    assert [type(body) for body in said(first)] == [Proposal, Ballot]
    assert {action.key for action in first if isinstance(action, SetTimer)} == {
        (RESEND_TIMER, 1, 0),
        (PROPOSE_TIMER, 1, 0),
    }
    assert {action.to for action in first if isinstance(action, Send)} == set(COMMITTEE) - {KEYS[0].peer_id}
    assert feed(machine, ballot(1, 0, PREVOTE, value)) == []
    assert feed(machine, ballot(2, 0, PREVOTE, value)) == [Ballot(1, 0, PRECOMMIT, value)]
    machine.receive(ballot(1, 0, PRECOMMIT, value))
    last = machine.receive(ballot(3, 0, PRECOMMIT, value))
    assert machine.decision is not None and machine.decision[0] == MINE
    assert {action.key for action in last if isinstance(action, CancelTimer)} >= {(RESEND_TIMER, 1, 0)}
    assert machine.receive(ballot(2, 0, PRECOMMIT, value)) == machine.timeout((RESEND_TIMER, 1, 0)) == []


def test_messages_before_the_start_are_kept(guard: MemoryGuard):
    machine = member(KEYS[1], guard)
    assert feed(machine, proposal(0, MINE), ballot(0, 0, PREVOTE, MINE.hash())) == []
    assert said(machine.start()) == [Ballot(1, 0, PREVOTE, MINE.hash())]


def test_an_unknown_proposal_is_asked_again_when_more_is_known(guard: MemoryGuard):
    asked: list[Record] = []
    verdict = Verdict.UNKNOWN_YET

    def validate(record: Record) -> Verdict:
        asked.append(record)
        return verdict

    machine = started(KEYS[1], guard, validate=validate)
    assert feed(machine, proposal(0, OTHER), ballot(0, 0, PREVOTE, OTHER.hash())) == []
    assert asked == [OTHER]
    assert said(machine.revalidate()) == []
    verdict = Verdict.VALID
    assert said(machine.revalidate()) == [Ballot(1, 0, PREVOTE, OTHER.hash())]
    machine.revalidate()
    assert asked == [OTHER] * 3


def test_an_unknown_proposal_gets_nil_when_its_time_is_up(guard: MemoryGuard):
    machine = started(KEYS[1], guard, validate=lambda record: Verdict.UNKNOWN_YET)
    feed(machine, proposal(0, OTHER))
    assert said(machine.timeout((PROPOSE_TIMER, 1, 0))) == [Ballot(1, 0, PREVOTE, NIL)]
    assert machine.timeout((PROPOSE_TIMER, 1, 0)) == []


def test_what_a_quorum_prevoted_is_precommitted_also_by_who_could_not_judge_it_but_not_by_who_knows_better(
    guard: MemoryGuard,
):
    for verdict, answer in ((Verdict.UNKNOWN_YET, [Ballot(1, 0, PRECOMMIT, OTHER.hash())]), (Verdict.INVALID, [])):
        disk = MemoryGuard()
        machine = started(KEYS[1], disk, validate=lambda record, verdict=verdict: verdict)
        feed(machine, proposal(0, OTHER))
        machine.timeout((PROPOSE_TIMER, 1, 0))
        assert feed(machine, *(ballot(i, 0, PREVOTE, OTHER.hash()) for i in (0, 2, 3))) == answer
        disk.close()


def test_an_invalid_proposal_gets_nil_at_once(guard: MemoryGuard):
    machine = started(KEYS[1], guard, validate=lambda record: Verdict.INVALID)
    assert feed(machine, proposal(0, OTHER)) == [Ballot(1, 0, PREVOTE, NIL)]


def test_a_proposer_with_nothing_to_propose_does_so_once_it_has_something(guard: MemoryGuard):
    mine: list[Record] = []
    machine = member(KEYS[0], guard, propose=lambda: mine[0] if mine else None)
    assert said(machine.start()) == said(machine.revalidate()) == []
    mine.append(MINE)
    assert [type(body) for body in said(machine.revalidate())] == [Proposal, Ballot]


def lock(machine: Agreement) -> None:
    """Lock KEYS[1]'s machine on MINE in view 0, and bring it to view 1 by precommits that do not agree."""
    value = MINE.hash()
    votes = feed(machine, proposal(0, MINE), ballot(0, 0, PREVOTE, value), ballot(2, 0, PREVOTE, value))
    assert votes == [Ballot(1, 0, PREVOTE, value), Ballot(1, 0, PRECOMMIT, value)]
    machine.receive(ballot(2, 0, PRECOMMIT, NIL))
    actions = machine.receive(ballot(3, 0, PRECOMMIT, NIL))
    assert any(isinstance(action, SetTimer) and action.key == (PRECOMMIT_TIMER, 1, 0) for action in actions)


def test_on_another_branch_the_same_round_is_another_agreement(guard: MemoryGuard):
    """A member that was locked in round 1 after one head, and comes to another head's round 1: its lock binds it there
    only, and in no view does it cast two ballots."""
    lock(started(KEYS[1], guard))
    elsewhere = digest("another head")
    there = Agreement(RUN, 1, COMMITTEE, KEYS[1], elsewhere, guard, validate=valid, propose=lambda: OTHER)
    there.start()
    assert there.view == 0
    value, order = OTHER.hash(), proposers(COMMITTEE, elsewhere)

    def round_of(view: int) -> list[object]:
        leader = order[view % 4]
        others = [key for key in KEYS if key is not KEYS[1]]
        asked = Proposal(1, view, value, 0, encode(OTHER), (), ())
        proposed = [sign(key, asked) for key in KEYS if key.peer_id == leader and key is not KEYS[1]]
        return feed(there, *proposed, *(sign(key, Ballot(1, view, PREVOTE, value)) for key in others))

    assert not any(isinstance(body, Ballot) for body in round_of(0)), "it voted in view 0 of the other branch"
    for key in KEYS:
        if key is not KEYS[1]:
            there.receive(sign(key, Ballot(1, 0, PRECOMMIT, NIL)))
    said_later = said(there.timeout((PRECOMMIT_TIMER, 1, 0))) + round_of(1)
    assert there.view == 1
    assert Ballot(1, 1, PREVOTE, value) in said_later and Ballot(1, 1, PRECOMMIT, value) in said_later
    again = started(KEYS[1], guard, propose=lambda: OTHER)  # back on the first branch it is locked as before
    assert again._memory.locked_value == MINE.hash()


def test_a_locked_member_proposes_what_it_is_locked_on_with_the_proof(guard: MemoryGuard):
    machine = started(KEYS[1], guard, propose=lambda: OTHER)
    lock(machine)
    sent = said(machine.timeout((PRECOMMIT_TIMER, 1, 0)))
    assert machine.view == 1
    assert isinstance(sent[0], Proposal)
    assert (sent[0].value, sent[0].valid_view, len(sent[0].signers)) == (MINE.hash(), 1, 3)
    assert sent[1] == Ballot(1, 1, PREVOTE, MINE.hash())
    fresh = MemoryGuard()
    judge = started(KEYS[3], fresh, validate=lambda record: Verdict.UNKNOWN_YET)
    feed(judge, ballot(1, 1, PREVOTE, MINE.hash()), ballot(2, 1, PREVOTE, NIL))
    assert feed(judge, sign(KEYS[1], sent[0])) == [Ballot(1, 1, PREVOTE, MINE.hash())]
    fresh.close()


def at_view(machine: Agreement, view: int) -> None:
    feed(machine, ballot(0, view, PRECOMMIT, NIL), ballot(3, view, PRECOMMIT, NIL))
    assert machine.view == view


def test_a_lock_yields_to_a_newer_proof_and_to_nothing_else(guard: MemoryGuard):
    machine = started(KEYS[1], guard)
    lock(machine)
    at_view(machine, 2)
    assert feed(machine, proposal(2, OTHER)) == [Ballot(1, 2, PREVOTE, NIL)]
    at_view(machine, 3)
    assert feed(machine, reproposal(3, OTHER, 1, (0, 2, 3))) == [Ballot(1, 3, PREVOTE, OTHER.hash())]


def test_a_lock_does_not_yield_to_an_older_proof(guard: MemoryGuard):
    machine = started(KEYS[1], guard)
    at_view(machine, 2)
    votes = (ballot(0, 2, PREVOTE, MINE.hash()), ballot(2, 2, PREVOTE, MINE.hash()))
    assert feed(machine, proposal(2, MINE), *votes)[-1] == Ballot(1, 2, PRECOMMIT, MINE.hash())
    at_view(machine, 3)
    assert feed(machine, reproposal(3, OTHER, 1, (0, 2, 3))) == [Ballot(1, 3, PREVOTE, NIL)]


def test_who_is_behind_a_proof_does_not_propose_on_top_of_it(guard: MemoryGuard):
    mine: list[Record] = []
    machine = started(KEYS[0], guard, propose=lambda: mine[0] if mine else None)
    body = reproposal(3, OTHER, 1, (1, 2, 3)).message()
    proof = ProofOfLock(1, 1, body.value, body.record, body.signers, body.signatures)
    assert feed(machine, sign(KEYS[2], Gossip(1, (), (), (proof,)))) == []
    mine.append(MINE)
    assert said(machine.revalidate()) == []


def test_a_lock_allows_the_same_record_without_a_proof(guard: MemoryGuard):
    machine = started(KEYS[1], guard)
    lock(machine)
    at_view(machine, 2)
    assert feed(machine, proposal(2, MINE)) == [Ballot(1, 2, PREVOTE, MINE.hash())]


def test_disagreement_times_out_into_the_next_view(guard: MemoryGuard):
    machine = started(KEYS[3], guard)
    machine.timeout((PROPOSE_TIMER, 1, 0))
    feed(machine, ballot(0, 0, PREVOTE, MINE.hash()))
    actions = machine.receive(ballot(1, 0, PREVOTE, NIL))
    assert SetTimer((PREVOTE_TIMER, 1, 0), Timeouts().prevote) in actions
    assert said(machine.timeout((PREVOTE_TIMER, 1, 0))) == [Ballot(1, 0, PRECOMMIT, NIL)]
    feed(machine, ballot(0, 0, PRECOMMIT, NIL), ballot(1, 0, PRECOMMIT, NIL))
    actions = machine.timeout((PRECOMMIT_TIMER, 1, 0))
    assert machine.view == 1
    assert SetTimer((PROPOSE_TIMER, 1, 1), Timeouts().propose + Timeouts().growth) in actions


def test_a_quorum_for_nil_precommits_nil_without_waiting(guard: MemoryGuard):
    machine = started(KEYS[3], guard)
    machine.timeout((PROPOSE_TIMER, 1, 0))
    assert feed(machine, ballot(0, 0, PREVOTE, NIL), ballot(1, 0, PREVOTE, NIL)) == [Ballot(1, 0, PRECOMMIT, NIL)]


def test_one_member_far_ahead_is_ignored_and_two_are_followed(guard: MemoryGuard):
    machine = started(KEYS[1], guard)
    feed(machine, ballot(0, 70, PREVOTE, NIL))
    assert machine.view == 0
    feed(machine, ballot(3, 90, PREVOTE, NIL))
    assert machine.view == 70


def test_timeouts_grow_up_to_the_ceiling():
    timeouts = Timeouts(propose=2.0, growth=0.5, ceiling=10.0)
    assert [timeouts.of(PROPOSE_TIMER, view) for view in (0, 4, 1000)] == [2.0, 4.0, 10.0]


def test_a_restart_keeps_lock_view_and_votes(guard: MemoryGuard):
    machine = started(KEYS[1], guard)
    lock(machine)
    reborn = member(KEYS[1], guard, propose=lambda: OTHER)
    (gossip,) = said(reborn.start())
    assert isinstance(gossip, Gossip)
    again = [envelope.message() for envelope in gossip.ballots]
    assert again == [Ballot(1, 0, PREVOTE, MINE.hash()), Ballot(1, 0, PRECOMMIT, MINE.hash())]
    assert gossip.proof[0].value == MINE.hash()
    assert feed(reborn, proposal(0, OTHER)) == []
    at_view(reborn, 2)
    assert feed(reborn, proposal(2, OTHER)) == [Ballot(1, 2, PREVOTE, NIL)]


def test_a_restarted_proposer_repeats_its_proposal_and_makes_no_other(guard: MemoryGuard):
    (before, _) = said(member(KEYS[0], guard).start())
    (gossip,) = said(member(KEYS[0], guard, propose=lambda: OTHER).start())
    assert isinstance(gossip, Gossip)
    assert [envelope.message() for envelope in gossip.proposal] == [before]


def test_a_member_that_forgot_its_vote_abstains_rather_than_contradicts_itself(guard: MemoryGuard):
    guard.ballot(RUN, 1, 0, "prevote", OTHER.hash())
    machine = started(KEYS[1], guard)
    actions = machine.receive(proposal(0, MINE))
    assert said(actions) == []
    assert [action.peer for action in actions if isinstance(action, Note)] == [KEYS[1].peer_id]
    votes = [ballot(i, 0, PREVOTE, MINE.hash()) for i in (0, 2, 3)]
    assert feed(machine, *votes) == [Ballot(1, 0, PRECOMMIT, MINE.hash())]


class FullDisk(MemoryGuard):
    """A disk without room."""

    full = True

    def save_lock(self, run: bytes, round_: int, blob: bytes) -> None:
        if self.full:
            raise StorageError("disk full")
        super().save_lock(run, round_, blob)


def test_a_full_disk_casts_nothing_and_the_vote_comes_when_there_is_room():
    disk = FullDisk()
    machine = member(KEYS[1], disk)
    machine.start()
    with pytest.raises(StorageError):
        machine.receive(proposal(0, MINE))
    disk.full = False
    assert said(machine.revalidate()) == [Ballot(1, 0, PREVOTE, MINE.hash())]
    disk.close()


def decided(guard: MemoryGuard) -> Agreement:
    machine = started(KEYS[0], guard)
    for kind in (PREVOTE, PRECOMMIT):
        feed(machine, *(ballot(i, 0, kind, MINE.hash()) for i in (1, 2, 3)))
    assert machine.decision is not None
    return machine


def test_who_is_behind_or_asks_gets_the_decision(guard: MemoryGuard):
    machine = decided(guard)
    observer_disk = MemoryGuard()
    observer = member(STRANGER, observer_disk)
    asking = observer.start()
    assert said(asking) == []
    (request, *_) = (action.message for action in observer.timeout((RESEND_TIMER, 1, 0)) if isinstance(action, Send))
    for question in (request, sign(KEYS[2], Gossip(1, (), (), ()))):
        (answer,) = machine.receive(question)
        assert isinstance(answer, Send)
        assert answer.to == question.sender
        assert isinstance(answer.message.message(), Decision)
    observer.receive(machine.decision_message())
    assert observer.decision == machine.decision
    assert machine.receive(ballot(3, 5, PREVOTE, NIL)) == []
    observer_disk.close()


def test_nobody_answers_before_there_is_a_decision(guard: MemoryGuard):
    machine = started(KEYS[1], guard)
    assert machine.receive(sign(STRANGER, DecisionRequest(1))) == []
    with pytest.raises(RuntimeError):
        machine.decision_message()


def test_an_observer_learns_the_decision_from_votes_alone_and_casts_none(guard: MemoryGuard):
    observer = started(STRANGER, guard)
    votes = [ballot(i, 0, PRECOMMIT, MINE.hash()) for i in range(3)]
    assert feed(observer, proposal(0, MINE), *votes) == []
    assert observer.decision is not None and observer.decision[0] == MINE
    assert guard.load_lock(lock_key(RUN, BEACON), 1) is None


def test_gossip_teaches_votes_and_proof_to_who_missed_them(guard: MemoryGuard):
    disk = MemoryGuard()
    teacher = started(KEYS[1], disk)
    lock(teacher)
    (gossip,) = {a.message for a in teacher.timeout((RESEND_TIMER, 1, 0)) if isinstance(a, Send)}
    machine = started(KEYS[3], guard, propose=lambda: OTHER)
    assert feed(machine, gossip) == [Ballot(1, 0, PREVOTE, MINE.hash()), Ballot(1, 0, PRECOMMIT, MINE.hash())]
    disk.close()


def test_contradictions_are_evidence_and_only_the_first_counts(guard: MemoryGuard):
    machine = started(KEYS[1], guard)
    actions = [a for value in (NIL, OTHER.hash()) for a in machine.receive(ballot(3, 0, PRECOMMIT, value))]
    assert [action.peer for action in actions if isinstance(action, Note)] == [KEYS[3].peer_id]
    ((first, second),) = machine.contradictions
    assert first != second
    assert {envelope.check(RUN) for envelope in (first, second)} == {KEYS[3].peer_id}


def unbacked(record: Record) -> Decision:
    junk = Certificate(1, 0, record.hash(), (0, 1, 2), (b"\x01" * 64,) * 3)
    return Decision(encode(record), encode(junk))


@pytest.mark.parametrize(
    ("envelope", "expected"),
    [
        (sign(KEYS[0], Ballot(1, 0, 0, NIL), run=bytes(32)), Refusal.WRONG_RUN),
        (replace(ballot(0, 0, 0, NIL), signature=bytes(64)), Refusal.BAD_SIGNATURE),
        (replace(ballot(0, 0, 0, NIL), sender=bytes(KEYS[2].peer_id)), Refusal.BAD_SIGNATURE),
        (sign(KEYS[0], Ballot(2, 0, 0, NIL), round_=2), Refusal.STALE),
        (sign(KEYS[0], Ballot(2, 0, 0, NIL)), Refusal.STALE),
        (sign(KEYS[0], Ballot(1, 0, 0, NIL), round_=2), Refusal.STALE),
        (sign(STRANGER, Ballot(1, 0, 0, NIL)), Refusal.NOT_A_MEMBER),
        (sign(STRANGER, Gossip(1, (), (), ())), Refusal.NOT_A_MEMBER),
        (sign(KEYS[0], MINE), Refusal.UNEXPECTED),
        (sign(KEYS[1], Proposal(1, 0, OTHER.hash(), 0, encode(OTHER), (), ())), Refusal.UNEXPECTED),
        (sign(KEYS[0], Proposal(1, 0, MINE.hash(), 0, encode(OTHER), (), ())), Refusal.BAD_HASH),
        (sign(KEYS[0], Proposal(1, 0, MINE.hash(), 1, encode(MINE), (), ())), Refusal.OUT_OF_BOUNDS),
        (sign(KEYS[0], Proposal(1, 0, MINE.hash(), 0, encode(MINE), (0,), (bytes(64),))), Refusal.MALFORMED),
        (proposal(0, replace(MINE, round=2)), Refusal.STALE),
        (proposal(0, replace(MINE, run=bytes(32))), Refusal.WRONG_RUN),
        (reproposal(2, OTHER, 1, (0, 2)), Refusal.BAD_CERTIFICATE),
        (sign(KEYS[0], unbacked(OTHER)), Refusal.BAD_CERTIFICATE),
        (sign(KEYS[0], unbacked(replace(OTHER, round=2))), Refusal.STALE),
        (sign(KEYS[0], Gossip(1, (sign(STRANGER, Ballot(1, 0, 0, NIL)),), (), ())), Refusal.NOT_A_MEMBER),
        (
            sign(KEYS[0], Gossip(1, (replace(ballot(2, 0, 0, NIL), signature=bytes(64)),), (), ())),
            Refusal.BAD_SIGNATURE,
        ),
        (sign(KEYS[0], Gossip(1, (sign(KEYS[2], DecisionRequest(1)),), (), ())), Refusal.UNEXPECTED),
        (sign(KEYS[0], Gossip(1, (sign(KEYS[2], Ballot(2, 0, 0, NIL), round_=2),), (), ())), Refusal.STALE),
    ],
)
def test_what_is_forged_foreign_or_out_of_turn_is_refused(envelope: Envelope, expected: Refusal, guard: MemoryGuard):
    machine = started(KEYS[1], guard)
    assert refusal(machine, envelope) is expected
    assert machine.decision is None
    assert machine.contradictions == ()
    # It changed nothing: a whole honest view still decides.
    feed(machine, proposal(0, MINE), *(ballot(i, 0, k, MINE.hash()) for k in (PREVOTE, PRECOMMIT) for i in (0, 2)))
    assert machine.decision is not None


def test_a_precommit_quorum_for_a_record_that_never_came_waits_for_the_record(guard: MemoryGuard):
    machine = started(KEYS[1], guard)
    feed(machine, *(ballot(i, 0, PRECOMMIT, MINE.hash()) for i in (0, 2, 3)))
    assert machine.decision is None
    feed(machine, proposal(0, MINE))
    assert machine.decision is not None


def test_the_lock_blob_is_a_message_that_reads_back(guard: MemoryGuard):
    lock(started(KEYS[1], guard))
    blob = guard.load_lock(lock_key(RUN, BEACON), 1)
    assert blob is not None
    memory = decode_as(Memory, blob)
    assert (memory.locked_view, memory.locked_value, memory.proof[0].view) == (1, MINE.hash(), 0)


def test_a_committee_needs_members_each_once(guard: MemoryGuard):
    for committee in ((), COMMITTEE[:1] * 2):
        with pytest.raises(ValueError, match="members"):
            Agreement(RUN, 1, committee, KEYS[0], BEACON, guard, validate=valid, propose=lambda: None)
