"""Which cohorts count: what proves a cohort, what a coordinator may propose, and what a quorum of votes is."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from averaging.certificate import quorum
from averaging.cohort import Cohort
from averaging.guard import GuardRefusedError, MemoryGuard
from averaging.inclusion import Results, Votes, check_included, check_inclusion, check_result, failed_result
from averaging.messages import InclusionVote, Result
from averaging.params import threshold
from averaging.roster import CheckedRoster, check_roster, convener, make_roster, make_seatings
from dht.envelope import seal
from dht.errors import ProtocolError, Refusal
from dht.wire import decode_as, encode
from tests.averaging.cohort_net import HEAD, RUN, identity, make_secrets, sign_joins, small_params

N = 12
PARAMS = small_params(N, target=6)
JOINS = {join.check(RUN): join for join in sign_joins(dict(enumerate(make_secrets(N, 3)))).values()}
KEYS = {identity(i).peer_id: identity(i) for i in range(N)}
COMMITTEE = tuple(sorted(JOINS))


def make_view() -> CheckedRoster:
    signed = seal(KEYS[convener(HEAD, COMMITTEE, 0)], RUN, 1, make_roster(1, 0, HEAD, JOINS))
    members, seating = make_seatings(PARAMS, signed, JOINS)[0]
    return check_roster(seating, PARAMS, 1, HEAD, COMMITTEE, JOINS[members[0]])


ROSTER = make_view()
SIZE = len(ROSTER.cohorts[0])


def result(number: int, **changes: object) -> Result:
    everybody = 2**SIZE - 1
    good = Result(ROSTER.round_sid, number, everybody, everybody, (7,) * SIZE, 9, bytes([number + 1]) * 32)
    return replace(good, **changes)  # type: ignore[arg-type]


def say(results: Results, value: Result, members: range = range(SIZE)) -> None:
    for member in members:
        peer = ROSTER.cohort(value.cohort)[member]
        results.add(peer, value, seal(KEYS[peer], RUN, 1, value).signature)


def proven() -> Results:
    results = Results(ROSTER)
    for cohort in (0, 1):
        say(results, result(cohort))
    return results


def refusal(call, *arguments) -> Refusal:
    with pytest.raises(ProtocolError) as caught:
        call(*arguments)
    return caught.value.refusal


def test_equal_results_of_t_members_prove_a_cohort():
    results = Results(ROSTER)
    say(results, result(0), range(threshold(SIZE) - 1))
    assert results.inclusion(0).results == ()
    say(results, result(0), range(threshold(SIZE)))
    assert [decode_as(Result, frame).cohort for frame in results.inclusion(0).results] == [0]
    assert not results.settled
    say(results, failed_result(ROSTER.round_sid, 1), range(SIZE - threshold(SIZE) + 1))
    assert results.settled, "the second cohort cannot be proven any more"
    check_inclusion(results.inclusion(0), ROSTER, RUN)


def test_a_members_first_word_counts():
    results = Results(ROSTER)
    say(results, result(0, root=bytes(32)), range(2))
    say(results, result(0))
    assert results.inclusion(0).results == (), "four of six are below the threshold"


def test_speaking_of_another_cohort_is_refused():
    stranger = ROSTER.cohort(1)[0]
    assert refusal(Results(ROSTER).add, stranger, result(0), bytes(64)) is Refusal.NOT_A_MEMBER


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sid": bytes(32)}, Refusal.STALE),
        ({"cohort": 2}, Refusal.STALE),
        ({"survivors": 1, "tokens": (7,)}, Refusal.OUT_OF_BOUNDS),
        ({"reducers": 3}, Refusal.OUT_OF_BOUNDS),
        ({"survivors": 2 ** (SIZE + 1) - 1, "tokens": (7,) * (SIZE + 1)}, Refusal.OUT_OF_BOUNDS),
        ({"tokens": (7,) * (SIZE - 1)}, Refusal.OUT_OF_BOUNDS),
        ({"tokens": (0,) + (7,) * (SIZE - 1)}, Refusal.OUT_OF_BOUNDS),
        ({"survivors": 0}, Refusal.OUT_OF_BOUNDS),
        ({"domains": (1,) * (SIZE - 1)}, Refusal.OUT_OF_BOUNDS),
        ({"domains": (0,) * SIZE}, Refusal.OUT_OF_BOUNDS),  # one form: nobody has declared one
    ],
)
def test_results_that_no_cohort_can_come_to_are_refused(changes, expected):
    assert refusal(check_result, result(0, **changes), ROSTER) is expected


def test_a_good_inclusion_passes_and_every_change_of_it_is_refused():
    good = proven().inclusion(1)
    check_inclusion(good, ROSTER, RUN)
    other = replace(decode_as(Result, good.results[0]), root=bytes(32))
    for bad in (
        replace(good, results=(encode(other), *good.results[1:])),
        replace(good, results=good.results[::-1]),
        replace(good, results=good.results[:1]),
        replace(good, results=(*good.results, good.results[0])),
        replace(good, signers=good.signers[1:], signatures=good.signatures[1:]),
        replace(good, signers=(good.signers[0], *good.signers[:-1])),
        replace(good, signatures=good.signatures[::-1]),
        replace(good, signatures=good.signatures[:-1]),
        replace(good, results=(encode(failed_result(ROSTER.round_sid, 0)), *good.results[1:])),
    ):
        assert refusal(check_inclusion, bad, ROSTER, RUN) in (Refusal.BAD_CERTIFICATE, Refusal.UNEXPECTED)


def votes_of(count: int) -> Votes:
    votes = Votes(ROSTER, COMMITTEE)
    value = votes.learn(proven().inclusion(0))
    vote = InclusionVote(ROSTER.round_sid, value)
    for peer in COMMITTEE[:count]:
        votes.add(peer, vote, seal(KEYS[peer], RUN, 1, vote).signature)
    return votes


def test_a_quorum_of_votes_includes():
    assert votes_of(quorum(N) - 1).included() is None
    included = votes_of(quorum(N)).included()
    assert included is not None
    assert [found.cohort for found in check_included(included, ROSTER, RUN, COMMITTEE)] == [0, 1]
    for bad in (
        replace(included, results=included.results[1:]),
        replace(included, signers=included.signers[1:], signatures=included.signatures[1:]),
        replace(included, signers=(included.signers[0], *included.signers[:-1])),
        replace(included, sid=bytes(32)),
    ):
        assert refusal(check_included, bad, ROSTER, RUN, COMMITTEE) in (Refusal.BAD_CERTIFICATE, Refusal.STALE)


def test_a_members_first_vote_counts_and_strangers_have_none():
    votes = votes_of(quorum(N) - 1)
    peer = COMMITTEE[0]
    other = InclusionVote(ROSTER.round_sid, bytes(32))
    votes.add(peer, other, seal(KEYS[peer], RUN, 1, other).signature)
    assert votes.included() is None
    assert refusal(votes.add, identity(40).peer_id, other, bytes(64)) is Refusal.NOT_A_MEMBER


def test_votes_without_the_proposal_are_not_enough():
    votes = Votes(ROSTER, COMMITTEE)
    inclusion = proven().inclusion(0)
    value = Votes(ROSTER, COMMITTEE).learn(inclusion)
    vote = InclusionVote(ROSTER.round_sid, value)
    for peer in COMMITTEE:
        votes.add(peer, vote, seal(KEYS[peer], RUN, 1, vote).signature)
    assert votes.included() is None
    votes.learn(inclusion)
    assert votes.included() is not None


def member_of(attempt: int, guard: MemoryGuard, target: int) -> Cohort:
    """One peer's part in the roster of an attempt."""
    params, secrets = small_params(N, target=target), make_secrets(N, 3 + attempt)
    joins = {join.check(RUN): join for join in sign_joins(dict(enumerate(secrets)), attempt).values()}
    signed = seal(KEYS[convener(HEAD, COMMITTEE, attempt)], RUN, 1, make_roster(1, attempt, HEAD, joins))
    me = identity(0)
    seating = next(found for members, found in make_seatings(params, signed, joins) if me.peer_id in members)
    roster = check_roster(seating, params, 1, HEAD, COMMITTEE, joins[me.peer_id])
    return Cohort(params, me, roster, secrets[0], guard, random.Random(attempt).randbytes)


def test_who_uploaded_among_several_cohorts_uploads_no_more_in_that_round():
    """Its cohort may have opened a sum; the guard outlives the process."""
    guard = MemoryGuard()
    member_of(0, guard, 6)._promise_upload()
    member_of(0, guard, 6)._promise_upload()  # the same sid, after a restart
    for attempt, target in ((1, 6), (2, 64)):
        with pytest.raises(GuardRefusedError):
            member_of(attempt, guard, target)._promise_upload()


def test_a_single_cohort_may_upload_again_in_a_later_attempt():
    guard = MemoryGuard()
    member_of(0, guard, 64)._promise_upload()
    member_of(1, guard, 64)._promise_upload()
    with pytest.raises(GuardRefusedError):
        member_of(2, guard, 6)._promise_upload()
