"""Branches: which of two chains stands, what is fetched to know it, and what no fork choice ever rolls back."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from averaging.ballots import Certificate
from averaging.branches import (
    Branches,
    BranchRequest,
    fork_round,
    locator,
    newest_shared,
    stands_against,
    still_held,
    tokens_after,
)
from averaging.chain import Chain, ChainRequest, ChainSegment
from averaging.messages import Knock
from averaging.record import Record, Survivor, found, void_record
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from dht.wire import digest
from tests.averaging.test_chain import FOUNDER, FOUNDING, KEYS, PEERS, RUN, certify, grow, successor
from tests.averaging.test_recovery import recovered

OTHER = PEERS[5]


def trunk(rounds: int = 3) -> Chain:
    chain = Chain(RUN, FOUNDER, FOUNDING)
    for _ in range(rounds):
        grow(chain, successor(chain))
    return chain


def worth(chain: Chain, tokens: int, members: tuple[PeerId, ...]) -> None:
    """One more record, of so many tokens."""
    rows = tuple(Survivor(peer, tokens if peer == members[0] else 0, 1) for peer in members)
    state = digest("state", chain.beacon, bytes(members[0]))
    record = replace(void_record(chain.head), void=False, survivors=rows, state_root=state)
    record = replace(record, tally_root=chain.tally.apply(record).root())
    chain.append(record, certify(record, chain.committee()))


def side(base: Chain, members: tuple[PeerId, ...], *tokens: int) -> Chain:
    """A recovery branch from the head of `base` with a record of so many tokens each."""
    chain = base.branch(base.head.round)
    chain.append(*recovered(chain, members))
    for count in tokens:
        worth(chain, count, members)
    return chain


LEFT, RIGHT = PEERS[:2], PEERS[2:4]


def test_a_branch_is_a_chain_of_its_own():
    base = trunk()
    branch = base.branch(2)
    assert branch.head == base.record(2)
    again = Chain(RUN, FOUNDER, FOUNDING)
    for round_ in (1, 2):
        again.append(*base.link(round_))
    assert branch.tip == again.tip
    grow(branch, void_record(branch.head))
    assert base.head.round == 3 and not base.head.void
    left = side(base, LEFT, 5)
    assert left.branch(4).tip.committee() == LEFT
    assert left.branch(4).recoveries == left.recoveries == [(4, RIGHT)]
    assert left.branch(3).recoveries == []
    with pytest.raises(KeyError):
        base.branch(4)


def test_more_certified_tokens_stand_and_everybody_computes_the_same():
    base = trunk()
    grown = base.branch(3)
    worth(grown, 0, PEERS[:4])
    chains = [side(base, LEFT), side(base, RIGHT), grown, side(base, LEFT, 5), side(base, RIGHT, 2, 2), base]
    assert stands_against(chains[3], chains[4]) and not stands_against(chains[4], chains[3])
    assert stands_against(chains[4], side(base, LEFT, 3)), "length counts for nothing, tokens do"
    assert stands_against(grown, chains[0]), "of equal ones the one without a recovery"
    lower = min(chains[:2], key=lambda chain: chain.record(4).hash())
    assert stands_against(lower, chains[1] if lower is chains[0] else chains[0])
    assert all(stands_against(chain, base) for chain in chains[:5]), "who only has more stands"
    for one, other in permutations(chains, 2):
        assert stands_against(one, other) is not stands_against(other, one)
    for a, b, c in permutations(chains, 3):
        if stands_against(a, b) and stands_against(b, c):
            assert stands_against(a, c)
    assert not stands_against(base, base)
    assert tokens_after(chains[4], 3) == 4


def test_fork_round_and_locator_find_each_other():
    base = trunk(20)
    left, right = side(base, LEFT, *[1] * 15), side(base, RIGHT, *[1] * 3)
    assert fork_round(left, right) == fork_round(right, left) == 20
    assert fork_round(left, base) == 20 and fork_round(left, left) == 36
    asked = locator(left)
    assert asked.rounds[:3] == (36, 35, 34) and asked.rounds[-1] == 0 and len(asked.rounds) < 9
    shared = newest_shared(right, asked)
    assert shared in asked.rounds and right.record(shared) == left.record(shared)
    assert newest_shared(right, BranchRequest((7, 6), (bytes(32), base.record(6).hash()))) == 6
    assert newest_shared(right, BranchRequest((7,), (bytes(32),))) is None
    assert locator(Chain(RUN, FOUNDER, FOUNDING)).rounds == (0,)


def test_who_hears_of_another_head_asks_for_it():
    base = trunk()
    left, right = side(base, LEFT, 5), side(base, RIGHT, 2, 2)
    branches = Branches()
    assert branches.foreign(left, Knock(5, right.record(4).hash()))
    assert not branches.foreign(left, Knock(5, left.record(4).hash()))
    assert not branches.foreign(left, Knock(4, base.beacon)), "behind, on my own branch"
    assert not branches.foreign(left, Knock(7, right.beacon)), "just ahead, for all I know"
    assert branches.foreign(left, Knock(40, right.beacon))
    assert not branches.foreign(left, Knock(0, bytes(32))), "without any chain"
    asked = [branches.sought(left, LEFT[0]) for _ in range(20)]
    assert set(asked) == {*RIGHT, None} and asked.count(None) == 16
    assert {branches.sought(base, LEFT[0]) for _ in range(10)} == {None}


def test_what_state_is_held_after_a_change_of_branches():
    base = trunk()
    left, right = side(base, LEFT, 5), side(base, RIGHT, 9)
    empty = side(base, LEFT)
    assert still_held(2, left, right) == 2
    assert still_held(5, left, right) is None, "the state of an abandoned record"
    assert still_held(4, empty, right) == 3, "a recovery changes no state"
    assert still_held(None, left, right) is None


def meet(one: Chain, other: Chain) -> tuple[Chain, Chain]:
    """Two peers show each other their chains until neither has anything to say."""
    minds, chains = (Branches(), Branches()), [one, other]
    waiting: list[tuple[int, object]] = [(0, locator(other))]
    for _ in range(40):
        if not waiting:
            return chains[0], chains[1]
        to, message = waiting.pop(0)
        replies: list[object]
        if isinstance(message, BranchRequest):
            replies = [chains[to].segment(newest_shared(chains[to], message) or 0)]
        elif isinstance(message, ChainRequest):
            replies = [chains[to].segment(message.after_round)]
        else:
            assert isinstance(message, ChainSegment)
            chains[to], replies = minds[to].take(chains[to], PEERS[1 - to], message)
        waiting += [(1 - to, reply) for reply in replies]
    raise AssertionError("they never stop talking")


@pytest.mark.parametrize("links", [512, 2])
def test_whoever_asks_whom_both_end_on_the_heavier_branch(monkeypatch: pytest.MonkeyPatch, links: int):
    monkeypatch.setattr("averaging.chain.MAX_LINKS", links)  # a branch may come in many segments
    base = trunk(4)
    left, right = side(base, LEFT, *[1] * 9), side(base, RIGHT, 3, 3, 4)
    for one, other in ((left, right), (right, left)):
        ends = meet(one.branch(one.head.round), other.branch(other.head.round))
        assert [end.tip for end in ends] == [right.tip] * 2


def test_a_joiner_takes_the_heavier_branch_whichever_it_saw_first():
    base = trunk(4)
    left, right = side(base, LEFT, 2), side(base, RIGHT, 3)
    joiner = Chain(RUN, FOUNDER, FOUNDING)
    assert meet(left.branch(left.head.round), joiner)[1].tip == left.tip
    assert meet(joiner, right)[0].tip == right.tip


def test_bad_links_of_a_branch_change_nothing():
    base = trunk()
    mine = side(base, LEFT, 5)
    heavier = side(base, RIGHT, 9, 9)
    good = heavier.segment(3)
    before = mine.tip

    def refused(segment: ChainSegment) -> Refusal:
        with pytest.raises(ProtocolError) as caught:
            Branches().take(mine, OTHER, segment)
        assert mine.tip == before
        return caught.value.refusal

    worthless = replace(good.links[1], certificate=good.links[2].certificate)
    assert refused(replace(good, links=(good.links[0], worthless))) is Refusal.BAD_CERTIFICATE
    light = side(base, RIGHT, 1)
    claims = replace(void_record(light.head), void=False, survivors=(Survivor(RIGHT[0], 10**15, 0),))
    claims = replace(claims, tally_root=light.tally.apply(claims).root())
    light._links.append((claims, certify(claims, RIGHT, (0,))))  # one of two signed it: no quorum
    assert refused(light.segment(3)) is Refusal.BAD_CERTIFICATE
    alien = Chain(RUN, FOUNDER, found(KEYS[FOUNDER], RUN, PEERS[:4], b"s" * 32, b"m" * 32))
    assert refused(alien.segment(0)) is Refusal.BAD_HASH
    # A quorum that certified two records: no recovery, so no branch but proof that a third lied.
    forked = base.branch(2)
    grow(forked, successor(forked, PEERS[:3]))
    worth(forked, 10**6, PEERS[:3])
    mine_without = base.branch(3)
    with pytest.raises(ProtocolError) as caught:
        Branches().take(mine_without, OTHER, forked.segment(2))
    assert caught.value.refusal is Refusal.EQUIVOCATION
    assert Branches().take(mine, OTHER, good)[0].tip == heavier.tip


def test_no_branch_crosses_a_final_round():
    base = trunk()
    mine, heavier = side(base, LEFT, 5), side(base, RIGHT, 9)
    mine.finalize(3)
    assert Branches().take(mine, OTHER, heavier.segment(3))[0].tip == heavier.tip, (
        "forked at the final round, not before"
    )
    mine.finalize(4)
    with pytest.raises(ProtocolError) as caught:
        Branches().take(mine, OTHER, heavier.segment(3))
    assert caught.value.refusal is Refusal.EQUIVOCATION
    assert mine.head.round == 5
    with pytest.raises(ProtocolError):
        mine.branch(3)
    assert mine.branch(4).finalized == 4
    with pytest.raises(KeyError):
        mine.finalize(6)
    mine.finalize(1)
    assert mine.finalized == 4


def test_a_round_that_becomes_final_while_a_branch_is_fetched_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("averaging.chain.MAX_LINKS", 1)
    base = trunk()
    mine, heavier = side(base, LEFT, 5), side(base, RIGHT, 9)
    branches = Branches()
    stands, replies = branches.take(mine, OTHER, heavier.segment(3))
    assert stands is mine and replies == [ChainRequest(4)]
    mine.finalize(5)
    with pytest.raises(ProtocolError) as caught:
        branches.take(mine, OTHER, heavier.segment(4))
    assert caught.value.refusal is Refusal.EQUIVOCATION


def test_a_branch_that_was_found_lighter_is_not_verified_again(monkeypatch: pytest.MonkeyPatch):
    base = trunk()
    mine, lighter = side(base, LEFT, 5), side(base, RIGHT, 1, 1)
    branches, verified = Branches(), []
    real = Chain.append

    def append(chain: Chain, record: Record, certificate: Certificate) -> None:
        verified.append(record.round)
        real(chain, record, certificate)

    monkeypatch.setattr(Chain, "append", append)
    for _ in range(3):
        assert branches.take(mine, OTHER, lighter.segment(3)) == (mine, [mine.segment(3)])
    assert verified == [4, 5, 6]
    worth(lighter, 9, RIGHT)
    assert branches.take(mine, OTHER, lighter.segment(3))[0].tip == lighter.tip, "it grew, and is weighed again"


def test_what_hangs_in_the_air_is_asked_for_from_where_it_begins():
    base = trunk()
    mine, heavier = side(base, LEFT, 5), side(base, RIGHT, 2, 2, 2)
    branches = Branches()
    stands, replies = branches.take(mine, OTHER, heavier.segment(5))
    assert stands is mine and replies == [locator(mine)]
    assert branches.take(mine, OTHER, heavier.segment(6)) == (mine, [locator(mine)])
    assert branches.take(mine, OTHER, mine.segment(0)) == (mine, [])
    # A sender that announces more than it ever sends is asked again only as long as something comes.
    boast = replace(side(base, RIGHT, 1).segment(3), head_round=99)
    assert branches.take(mine, OTHER, boast) == (mine, [ChainRequest(5)])
    assert branches.take(mine, OTHER, replace(boast, links=())) == (mine, [])
