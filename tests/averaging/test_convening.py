"""How an attempt finds its members, whoever is late, gone, hostile or restarted."""

from __future__ import annotations

import random

import pytest

from averaging.actions import Note, Send, SetTimer
from averaging.convening import ANOTHER_HEAD, LAGGARD, MOVED, NOT_CONVENER, SIGNED, WAITING, Convening
from averaging.guard import MemoryGuard
from averaging.messages import Closed, Join, Seating
from averaging.params import RunParams
from averaging.roster import convener
from dht.envelope import seal
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from dht.wire import encode
from tests.averaging.cohort_net import HEAD, RUN, identity, small_params

N = 8
COMMITTEE = tuple(sorted(identity(i).peer_id for i in range(N)))
KEYS = {identity(i).peer_id: identity(i) for i in range(20)}
PARAMS = small_params(N)
FIRST, SECOND, THIRD = (convener(HEAD, COMMITTEE, k) for k in range(3))
OTHERS = [peer for peer in COMMITTEE if peer not in (FIRST, SECOND, THIRD)]


def machine(
    peer: PeerId, guard: MemoryGuard | None = None, gone=(), life: int = 0, params: RunParams = PARAMS
) -> Convening:
    source = random.Random(f"{peer!r} {life}").randbytes
    return Convening(params, KEYS[peer], 1, HEAD, COMMITTEE, guard or MemoryGuard(), source, gone)


def sent(actions, cls) -> list[tuple[PeerId, object]]:
    found = [(a.to, a.message.message()) for a in actions if isinstance(a, Send)]
    return [(to, message) for to, message in found if isinstance(message, cls)]


def notes(actions) -> list[str]:
    return [action.text for action in actions if isinstance(action, Note)]


def join_of(peer: PeerId, attempt: int = 0, missing=(), life: int = 0):
    joiner = machine(peer, life=life)
    joiner.begin(attempt, 100, missing)
    return joiner._join


def feed(host: Convening, peers, attempt: int = 0, missing=()) -> list:
    actions = []
    for peer in peers:
        envelope = join_of(peer, attempt, missing)
        actions += host.receive_join(peer, envelope, envelope.message())
    return actions


def convene(peers, gone=()) -> tuple[Convening, list]:
    host = machine(FIRST, gone=gone)
    host.begin(0, 100)
    return host, feed(host, peers)


def rest(*without: PeerId) -> list[PeerId]:
    return [peer for peer in COMMITTEE if peer not in (FIRST, *without)]


def test_a_roster_is_signed_as_soon_as_all_have_joined():
    _, actions = convene(rest())
    rosters = sent(actions, Seating)
    assert [to for to, _ in rosters] and {to for to, _ in rosters} == set(COMMITTEE)
    assert len({roster for _, roster in rosters}) == 1


def test_it_waits_for_the_committee_and_no_longer_than_its_window():
    late = OTHERS[0]
    host, actions = convene(rest(late))
    assert sent(actions, Seating) == []
    closing = host.timeout(("join", 1, 0))
    assert {to for to, _ in sent(closing, Seating)} == set(COMMITTEE) - {late}
    envelope = join_of(late)
    answer = sent(host.receive_join(late, envelope, envelope.message()), Closed)
    assert [(to, closed.reason, closed.attempt) for to, closed in answer] == [(late, SIGNED, 1)]


def test_it_does_not_wait_for_who_is_gone():
    _, actions = convene(rest(OTHERS[0]), gone=[OTHERS[0]])
    assert len(sent(actions, Seating)) == N - 1
    host, actions = convene(rest(OTHERS[0]))
    assert sent(host.suspect(OTHERS[0]), Seating)


def test_it_waits_a_window_for_a_newcomer():
    newcomer = identity(12).peer_id
    host = machine(FIRST)
    host.newcomers.add(newcomer)
    host.begin(0, 100)
    assert sent(feed(host, rest()), Seating) == []
    envelope = join_of(newcomer)
    rosters = sent(host.receive_join(newcomer, envelope, envelope.message()), Seating)
    assert newcomer in {to for to, _ in rosters}


def test_too_few_wait_and_are_told_so():
    host, _ = convene(OTHERS[:4])
    actions = host.timeout(("join", 1, 0))
    assert sent(actions, Seating) == []
    assert notes(actions) == ["5 of 6 peers joined; the round waits"]
    assert {(to, closed.reason) for to, closed in sent(actions, Closed)} == {(peer, WAITING) for peer in OTHERS[:4]}
    assert any(isinstance(action, SetTimer) and action.key == ("join", 1, 0) for action in actions)


def test_joins_that_come_before_the_conveners_own_turn_do_not_keep_its_window_shut():
    """The next convener may hear of a failed attempt last: its window opens when it begins, whoever came before."""
    host = machine(SECOND)
    host.begin(0, 100)
    early = [peer for peer in COMMITTEE if peer not in (SECOND, FIRST, OTHERS[0])]
    feed(host, early, attempt=1)
    actions = host.begin(1, 100)
    assert any(isinstance(action, SetTimer) and action.key == ("join", 1, 1) for action in actions)
    assert {to for to, _ in sent(host.timeout(("join", 1, 1)), Seating)} == {SECOND, *early}


@pytest.mark.parametrize(
    ("attempt", "head", "reason"), [(0, bytes(32), ANOTHER_HEAD), (1, HEAD, NOT_CONVENER), (0, HEAD, None)]
)
def test_why_a_join_cannot_be_used(attempt, head, reason):
    host = machine(FIRST)
    host.begin(0, 100)
    peer = OTHERS[0]
    message = join_of(peer, attempt).message()
    changed = Join(*(head if name == "head" else getattr(message, name) for name in message.__slots__))
    actions = host.receive_join(peer, seal(KEYS[peer], RUN, 1, changed), changed)
    assert [closed.reason for _, closed in sent(actions, Closed)] == ([] if reason is None else [reason])


def test_a_join_far_ahead_is_refused():
    host = machine(FIRST)
    host.begin(0, 100)
    envelope = join_of(OTHERS[0], attempt=N * 9)
    with pytest.raises(ProtocolError) as caught:
        host.receive_join(OTHERS[0], envelope, envelope.message())
    assert caught.value.refusal is Refusal.OUT_OF_BOUNDS


def test_the_newest_join_of_a_peer_that_restarted_counts():
    host, _ = convene(rest(OTHERS[0], OTHERS[1]))
    for life in (0, 1):
        envelope = join_of(OTHERS[0], life=life)
        host.receive_join(OTHERS[0], envelope, envelope.message())
    (roster, *_) = [roster for _, roster in sent(feed(host, [OTHERS[1]]), Seating)]
    assert encode(join_of(OTHERS[0], life=1)) in roster.joins
    assert encode(join_of(OTHERS[0], life=0)) not in roster.joins


def test_a_convener_that_restarts_signs_no_second_roster():
    guard = MemoryGuard()
    host = machine(FIRST, guard)
    host.begin(0, 100)
    assert sent(feed(host, rest()), Seating)
    again = machine(FIRST, guard, life=1)
    again.begin(0, 100)
    actions = feed(again, rest())
    assert sent(actions, Seating) == []
    assert {to for to, closed in sent(actions, Closed) if closed.reason == SIGNED} == set(rest())
    assert again.attempt == 1


def test_a_laggard_that_most_name_is_left_out_and_told():
    host = machine(SECOND)
    host.begin(1, 100, (OTHERS[0],))
    actions = feed(host, [p for p in COMMITTEE if p not in (SECOND, OTHERS[0])], attempt=1, missing=(OTHERS[0],))
    actions += feed(host, [OTHERS[0]], attempt=1)
    assert OTHERS[0] not in {to for to, _ in sent(actions, Seating)}
    assert len(sent(actions, Seating)) == 0  # it is in the committee, so its window stays open for it
    closing = host.timeout(("join", 1, 1))
    assert {to for to, _ in sent(closing, Seating)} == set(COMMITTEE) - {OTHERS[0]}
    assert [(to, closed.reason) for to, closed in sent(closing, Closed)] == [(OTHERS[0], LAGGARD)]


def test_no_more_are_left_out_than_can_be_spared():
    """Everybody names the same five; without them there would be no quorum, so only two stay out."""
    named = tuple(OTHERS)
    host = machine(SECOND)
    host.begin(1, 100, named)
    feed(host, [p for p in COMMITTEE if p != SECOND], attempt=1, missing=named)
    rosters = sent(host.timeout(("join", 1, 1)), Seating)
    assert len(rosters) == 6


def test_a_joiner_asks_three_times_and_then_goes_on():
    joiner = machine(OTHERS[0])
    joiner.begin(0, 100)
    key = ("roster", 1, 0)
    for _ in range(2):
        assert [to for to, _ in sent(joiner.timeout(key), Join)] == [FIRST]
    assert [to for to, _ in sent(joiner.timeout(key), Join)] == [SECOND]
    assert joiner.attempt == 1


def test_a_convener_that_says_it_waits_is_waited_for():
    joiner = machine(OTHERS[0])
    joiner.begin(0, 100)
    for _ in range(6):
        joiner.timeout(("roster", 1, 0))
        joiner.receive_closed(FIRST, Closed(1, 0, WAITING, 1, HEAD))
    assert joiner.attempt == 0


def test_a_convener_that_says_so_for_ever_is_not():
    joiner = machine(OTHERS[0])
    joiner.begin(0, 100)
    windows = 0
    while joiner.attempt == 0 and windows < 20:
        windows += 1
        joiner.receive_closed(FIRST, Closed(1, 0, WAITING, 1, HEAD))
        joiner.timeout(("roster", 1, 0))
    assert (joiner.attempt, windows) == (1, 10)


def test_strangers_do_not_outvote_the_committee_about_its_laggards():
    host = machine(SECOND)
    host.begin(1, 100)
    strangers = [identity(N + k).peer_id for k in range(12)]
    feed(host, strangers, attempt=1, missing=(OTHERS[0],))
    feed(host, [peer for peer in COMMITTEE if peer != SECOND], attempt=1)
    assert set(host._seatings) == {*COMMITTEE, *strangers}


def test_the_one_whom_a_laggard_blames_is_left_out_with_it():
    """It may be slow, or may have dealt it nothing that opens: nobody else can tell which."""
    host = machine(SECOND)
    host.begin(1, 100, (OTHERS[0],))
    feed(host, [p for p in COMMITTEE if p not in (SECOND, *OTHERS[:2])], attempt=1, missing=(OTHERS[0],))
    feed(host, [OTHERS[0]], attempt=1, missing=(OTHERS[1],))
    feed(host, [OTHERS[1]], attempt=1, missing=(OTHERS[0],))
    host.timeout(("join", 1, 1))
    assert set(host._seatings) == set(COMMITTEE) - set(OTHERS[:2])


def test_nobody_but_the_convener_closes_an_attempt():
    joiner = machine(OTHERS[0])
    joiner.begin(0, 100)
    assert joiner.receive_closed(OTHERS[1], Closed(1, 5, SIGNED, 1, HEAD)) == []
    assert joiner.attempt == 0
    joiner.receive_closed(FIRST, Closed(1, 1000, SIGNED, 1, HEAD))
    assert joiner.attempt <= N


def test_a_convener_that_is_gone_is_passed_over_at_once():
    joiner = machine(OTHERS[0], gone=[FIRST, SECOND])
    assert [to for to, _ in sent(joiner.begin(0, 100), Join)] == [THIRD]
    other = machine(OTHERS[0])
    other.begin(0, 100)
    assert [to for to, _ in sent(other.suspect(FIRST), Join)] == [SECOND]


def test_every_attempt_has_fresh_keys():
    joiner = machine(OTHERS[0])
    seen = set()
    for attempt in range(5):
        joiner.begin(attempt, 100)
        message = joiner._join.message()
        seen |= {message.mask_key, message.share_key, message.self_commitment, message.audit_commitment, message.nonce}
    assert len(seen) == 5 * 5


def moved(to: int) -> Closed:
    return Closed(1, to, MOVED, 1, HEAD)


def test_who_goes_on_says_so_to_the_whole_committee():
    joiner = machine(OTHERS[0])
    assert sent(joiner.begin(0, 100), Closed) == []
    told = sent(joiner.begin(1, 100), Closed)
    assert {to for to, _ in told} == set(COMMITTEE) - {OTHERS[0], SECOND}
    assert {closed for _, closed in told} == {moved(1)}


def test_a_joiner_follows_its_convener():
    joiner = machine(OTHERS[0])
    joiner.begin(0, 100)
    joiner.receive_closed(FIRST, moved(1))
    assert joiner.attempt == 1


def test_others_are_followed_once_one_of_them_must_be_honest():
    """Two of eight may lie; what three say, one honest member says."""
    joiner = machine(OTHERS[0])
    joiner.begin(0, 100)
    stranger = identity(15).peer_id
    for sender, attempt in ((OTHERS[1], 50), (OTHERS[2], 60), (stranger, 70), (OTHERS[1], 55)):
        assert joiner.receive_closed(sender, moved(attempt)) == []
    assert joiner.attempt == 0
    joiner.receive_closed(OTHERS[3], moved(2))
    assert joiner.attempt == 2, "a liar led the others away"


def test_a_member_of_a_roster_stays_and_catches_up_when_it_fails():
    host, actions = convene(rest())
    (envelope,) = {a.message for a in actions if isinstance(a, Send) and isinstance(a.message.message(), Seating)}
    assert host.receive_roster(envelope.message()) is not None
    for sender in OTHERS[:3]:
        assert host.receive_closed(sender, moved(5)) == []
    assert host.attempt == 0
    host.begin(1, 100)
    assert host.attempt == 5


def test_joins_of_who_has_gone_on_are_not_put_into_a_roster():
    host, _ = convene(rest(OTHERS[0]))
    host.receive_closed(OTHERS[1], moved(1))
    closing = host.timeout(("join", 1, 0))
    assert {to for to, _ in sent(closing, Seating)} == set(COMMITTEE) - {OTHERS[0], OTHERS[1]}


def test_who_waits_for_a_convener_that_went_on_is_told_where_it_is():
    host = machine(FIRST)
    host.begin(0, 100)
    host.begin(1, 100)
    envelope = join_of(OTHERS[0])
    (answer,) = sent(host.receive_join(OTHERS[0], envelope, envelope.message()), Closed)
    assert answer == (OTHERS[0], moved(1))


def seated(*joiners: Convening) -> dict[PeerId, Seating]:
    """What a convener sends to everybody once these and all others have joined."""
    host = machine(FIRST)
    host.begin(0, 100)
    actions = feed(host, rest(*(joiner._identity.peer_id for joiner in joiners)))
    for joiner in joiners:
        actions += host.receive_join(joiner._identity.peer_id, joiner._join, joiner._join.message())
    return dict(sent(actions, Seating))


def test_a_roster_that_comes_when_patience_is_over_is_taken_all_the_same():
    joiner = machine(OTHERS[0])
    joiner.begin(0, 100)
    public = joiner.secrets.public()
    seating = seated(joiner)[OTHERS[0]]
    joiner.begin(1, 100)
    assert joiner.secrets.public() != public
    roster = joiner.receive_roster(seating)
    assert roster is not None
    assert (roster.attempt, joiner.attempt) == (0, 0)
    assert joiner.secrets.public() == public, "its shares would be under keys that nobody knows"
    assert joiner.receive_roster(seating) is None


def test_the_convener_of_a_later_attempt_does_not_desert_it():
    joiner = machine(SECOND)
    joiner.begin(0, 100)
    seating = seated(joiner)[SECOND]
    joiner.begin(1, 100)
    with pytest.raises(ProtocolError) as caught:
        joiner.receive_roster(seating)
    assert caught.value.refusal is Refusal.NOT_A_MEMBER
    assert joiner.attempt == 1
    assert joiner.roster is None


def test_who_was_seated_does_not_go_back_to_an_earlier_attempt():
    joiner = machine(OTHERS[0])
    joiner.begin(0, 100)
    seating = seated(joiner)[OTHERS[0]]
    assert joiner.receive_roster(seating) is not None
    joiner.begin(1, 100)
    with pytest.raises(ProtocolError) as caught:
        joiner.receive_roster(seating)
    assert caught.value.refusal is Refusal.NOT_A_MEMBER
    assert joiner.attempt == 1


@pytest.mark.parametrize(("target", "at_once"), [(64, 1), (4, 0)])
def test_who_asks_again_while_others_pass_the_roster_on_is_not_answered_yet(target, at_once):
    """All of a thousand repeat their Joins within seconds: answering would fill a home line for a minute."""
    host = machine(FIRST, params=small_params(N, target=target))
    host.begin(0, 100)
    feed(host, rest())
    again = join_of(OTHERS[0])
    assert len(sent(host.receive_join(OTHERS[0], again, again.message()), Seating)) == at_once
    host.timeout(("seated", 1, 0))
    assert [to for to, _ in sent(host.receive_join(OTHERS[0], again, again.message()), Seating)] == [OTHERS[0]]
