"""The founding's and a roster's way through trees: everybody is reached, nobody sends many copies, forgeries end."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from averaging.chain import ChainSegment
from averaging.messages import MOST_ONWARD, Knock, Seating
from averaging.params import RELAYS
from averaging.roster import CheckedRoster, check_roster, convener, make_roster, make_seatings
from averaging.spreading import BRANCHES, SPREAD, branches, onward, spread
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from dht.wire import decode_as, encode, message_type
from tests.averaging.cohort_net import HEAD, RUN, identity, make_secrets, sign_joins, small_params
from tests.sim.cheap import memoised
from tests.sim.swarm import Swarm

N = 63
SEATING, SEGMENT, KNOCK = (message_type(cls).tag for cls in (Seating, ChainSegment, Knock))
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


def test_what_is_passed_on_reaches_everybody_once_and_nobody_sends_much():
    members = [identity(i).peer_id for i in range(60)]
    root = members[37]
    told: Counter[PeerId] = Counter({root: 1})
    for peer in members:
        to = branches(members, root, peer)
        assert len(to) <= BRANCHES
        told.update(to)
    assert told == Counter(dict.fromkeys(members, 1))
    depth, reached = 0, {root}
    while len(reached) < len(members):
        reached |= {other for peer in reached for other in branches(members, root, peer)}
        depth += 1
    assert depth == 2
    assert branches(members, root, identity(61).peer_id) == []


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


def test_forged_joins_of_other_cohorts_do_not_end_ones_own_part():
    """Any member of a cohort holds the signed roster and its Joins, and can add what it likes for others."""
    with memoised():
        swarm = Swarm(20, 4, target=4, minimum=3)
        swarm.start()
        assert swarm.run(lambda: swarm.reached(1), 120)
        round_, forged = swarm.height() + 1, 0

        def tamper(sender: PeerId, to: PeerId, frame: bytes) -> bytes:
            nonlocal forged
            if frame[0] != 1 or (envelope := decode_as(Envelope, frame)).body[0] != SEATING:
                return frame
            forged += 1
            seating = replace(decode_as(Seating, envelope.body), onward=b"\x00\x01?")
            return encode(seal(swarm.peers[sender].identity, swarm.params.run, envelope.round, seating))

        swarm.tamper = tamper
        assert swarm.run(lambda: swarm.reached(round_), 120)
    (record,) = swarm.records[round_].values()
    assert forged > 10
    assert sum("not those of whole cohorts" in note for note in swarm.notes) > 0
    assert not record.void
    assert len(record.survivors) >= 4, "who was seated with a forgery took no part"


def test_the_founding_reaches_forty_peers_of_whom_each_sends_a_few_copies():
    sent: Counter[PeerId] = Counter()
    got: set[PeerId] = set()
    swarm = Swarm(40, 3, target=4, minimum=3)

    def tamper(sender: PeerId, to: PeerId, frame: bytes) -> bytes | None:
        tag = decode_as(Envelope, frame).body[0] if frame[0] == 1 else 0
        if tag == KNOCK and sent:
            return None  # from the founding on nobody can ask for it
        if tag == SEGMENT:
            sent[sender] += 1
            got.add(to)
        return frame

    swarm.tamper = tamper
    with memoised():
        swarm.start()
        assert swarm.run(lambda: len(got) == 39, 20)
    by_founder = sent.pop(swarm.params.founder)
    assert BRANCHES <= by_founder < 2 * BRANCHES  # it answers knocks that were under way already
    assert len(sent) >= 4
    assert max(sent.values()) <= BRANCHES
