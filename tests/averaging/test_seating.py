"""A roster's way through a tree of cohorts: everybody gets its part, nobody sends many copies, forgeries go nowhere."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from averaging.messages import MOST_ONWARD, Seating
from averaging.params import RELAYS
from averaging.roster import CheckedRoster, check_roster, convener, make_roster, make_seatings
from averaging.seating import SPREAD, onward, spread
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from dht.wire import decode_as, encode, message_type
from tests.averaging.cohort_net import HEAD, RUN, identity, make_secrets, sign_joins, small_params
from tests.sim.cheap import memoised
from tests.sim.swarm import Swarm

N = 63
SEATING = message_type(Seating).tag
PARAMS = small_params(N, target=3)
JOINS = {join.check(RUN): join for join in sign_joins(dict(enumerate(make_secrets(N, 5)))).values()}
COMMITTEE = tuple(sorted(JOINS))
KEYS = {identity(i).peer_id: identity(i) for i in range(N)}
ROSTER = seal(KEYS[convener(HEAD, COMMITTEE, 0)], RUN, 1, make_roster(1, 0, HEAD, JOINS))
SEATINGS = make_seatings(PARAMS, ROSTER, JOINS)
COHORTS = [(members, seating.joins) for members, seating in SEATINGS]


def view(peer: PeerId) -> CheckedRoster:
    seating = next(seating for members, seating in SEATINGS if peer in members)
    return check_roster(seating, PARAMS, 1, HEAD, COMMITTEE, JOINS[peer])


def test_every_cohort_gets_its_joins_once_and_nobody_passes_on_more_than_a_few():
    told: Counter[tuple[PeerId, ...]] = Counter()
    waiting = spread(encode(ROSTER), COHORTS)
    rounds = 0
    while waiting:
        assert len(waiting) <= SPREAD ** (rounds + 1)
        further = []
        for members, seating in waiting:
            assert (members, seating.joins) in COHORTS
            told[members] += 1
            parts = spread(seating.roster, onward(seating, view(members[0])))
            assert len(parts) <= SPREAD
            further += parts
        waiting = further
        rounds += 1
    assert told == Counter({members: 1 for members, _ in COHORTS})
    assert rounds == 3  # 4 + 16 + 1


def test_joins_that_are_too_long_for_one_message_go_out_in_more():
    long = [(members, tuple(bytes(4300) for _ in joins)) for members, joins in COHORTS * 4]
    parts = spread(encode(ROSTER), long)
    assert len(parts) > SPREAD
    for _, seating in parts:
        assert len(seating.onward) <= MOST_ONWARD
        assert decode_as(Seating, encode(seating)) == seating


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: data[:-1], Refusal.OUT_OF_BOUNDS),
        (lambda data: data + bytes(2), Refusal.OUT_OF_BOUNDS),
        (lambda data: data[: 2 + int.from_bytes(data[:2], "big")], Refusal.BAD_HASH),
        (lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:], Refusal.BAD_HASH),
    ],
)
def test_what_the_roster_does_not_name_is_not_passed_on(change, expected):
    members, seating = spread(encode(ROSTER), COHORTS)[0]
    assert onward(seating, view(members[0]))
    with pytest.raises(ProtocolError) as caught:
        onward(replace(seating, onward=change(seating.onward)), view(members[0]))
    assert caught.value.refusal is expected


def copies(swarm: Swarm, *, deaf: bool) -> Counter[PeerId]:
    """Seatings that each peer sends in one round, the convener first; if `deaf`, what the second one sends is lost."""
    sent: Counter[PeerId] = Counter()
    first = swarm.height() + 1

    def tamper(sender: PeerId, to: PeerId, frame: bytes) -> bytes | None:
        if frame[0] == 1 and decode_as(Envelope, frame).body[0] == SEATING and sender != to:
            sent[sender] += 1
            return None if deaf and sender in list(sent)[1:2] else frame
        return frame

    swarm.tamper = tamper
    assert swarm.run(lambda: swarm.reached(first), 120)
    (record,) = swarm.records[first].values()
    assert not record.void
    assert len(record.survivors) == len(swarm.order)
    assert record.left_out == ()
    return sent


@pytest.mark.parametrize("deaf", [False, True])
def test_ten_cohorts_are_seated_nobody_sends_forty_copies_and_one_relay_that_is_silent_cuts_nobody_off(deaf):
    with memoised():
        swarm = Swarm(40, 3, target=4, minimum=3)
        swarm.start()
        assert swarm.run(lambda: swarm.reached(1), 120)
        sent = copies(swarm, deaf=deaf)
    assert len(sent) > 10
    assert max(sent.values()) <= 4 + SPREAD * RELAYS
    assert sum(sent.values()) >= len(swarm.order) - 4
