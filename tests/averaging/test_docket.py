"""Evidence travels: announced once, fetched in pieces, verified before it counts, bounded whatever liars announce."""

from __future__ import annotations

from typing import Any

import pytest

from averaging import docket
from averaging.actions import Send, SetTimer
from averaging.docket import MAX_HELD, PIECE_BYTES, Accusation, Docket, EvidencePiece, EvidenceRequest
from averaging.evidence import name_of, verify
from averaging.layout import BLOCK, Layout
from averaging.messages import Vote
from averaging.work import Blame
from dht.envelope import seal
from dht.errors import ProtocolError
from dht.wire import digest, encode
from tests.averaging.cohort_net import RUN, identity
from tests.averaging.lies import two, wrong_sum

SID = digest("sid")
WRONG = encode(wrong_sum())
PEERS = [identity(i).peer_id for i in range(64)]


def lie(signer: int) -> bytes:
    """Two votes of one peer."""
    return encode(two(Vote(SID, 7, 7, bytes(32)), Vote(SID, 7, 7, SID), signer))


def make(me: int, *held: bytes) -> Docket:
    return Docket(PEERS[me], RUN, Layout(BLOCK, 16), lambda message: seal(identity(me), RUN, 0, message), held)


class Post:
    """Dockets that write to each other, until nobody has anything to say."""

    def __init__(self, count: int) -> None:
        self.dockets = [make(i) for i in range(count)]
        self.sent: list[tuple[int, int, Any]] = []
        self.blamed: list[tuple[int, Any]] = []
        self.lost: Any = lambda i, j, message: False

    def do(self, i: int, actions: Any) -> None:
        for action in actions:
            if isinstance(action, Blame):
                self.blamed.append((i, action.proof))
            if not isinstance(action, Send):
                continue
            j, message = PEERS.index(action.to), action.message.message()
            self.sent.append((i, j, message))
            if j < len(self.dockets) and not self.lost(i, j, message):
                self.do(j, self.dockets[j].receive(PEERS[i], message, PEERS[:8])[0])

    def kinds(self, kind: type) -> int:
        return sum(isinstance(message, kind) for _, _, message in self.sent)


def test_evidence_reaches_everybody_in_pieces_and_is_told_once():
    post = Post(5)
    post.do(0, post.dockets[0].keep(WRONG, PEERS[:8])[0])
    assert {i for i, _ in post.blamed} == set(range(5))
    assert len(post.blamed) == 5
    assert post.kinds(EvidenceRequest) == post.kinds(EvidencePiece) == 4 * -(-len(WRONG) // PIECE_BYTES)
    told = [(i, j) for i, j, message in post.sent if isinstance(message, Accusation)]
    assert len(told) == len(set(told))
    before = len(post.sent)
    for i in range(5):
        post.do(i, post.dockets[i].tell(PEERS[:8]))
    assert len(post.sent) == before


def test_large_evidence_comes_in_several_pieces(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(docket, "PIECE_BYTES", 1000)
    post = Post(2)
    post.do(0, post.dockets[0].keep(WRONG, PEERS[:2])[0])
    assert post.kinds(EvidencePiece) == -(-len(WRONG) // 1000) > 3
    assert [i for i, _ in post.blamed] == [0, 1]


def test_what_is_not_proven_is_not_kept_and_its_sender_not_asked_again():
    one, name = make(0), name_of(b"\x2cnonsense")
    notice = Accusation(name, bytes(PEERS[9]), "two votes", 9)
    (ask,) = [action for action in one.receive(PEERS[1], notice, PEERS[:3])[0] if isinstance(action, Send)]
    assert ask.message.message() == EvidenceRequest(name, 0)
    with pytest.raises(ProtocolError):
        one.receive(PEERS[1], EvidencePiece(name, 0, b"\x2cnonsense"), PEERS[:3])
    assert one.accused == frozenset()
    assert one.receive(PEERS[1], Accusation(digest("other"), bytes(PEERS[9]), "two votes", 9), PEERS[:3]) == ([], None)


def test_bytes_that_are_not_what_was_announced_are_dropped():
    one = make(0)
    frame = lie(9)
    one.receive(PEERS[1], Accusation(digest("something else"), bytes(PEERS[9]), "two votes", len(frame)), PEERS[:3])
    actions, proof = one.receive(PEERS[1], EvidencePiece(digest("something else"), 0, frame), PEERS[:3])
    assert proof is None
    assert one.accused == frozenset()
    assert actions


def test_pieces_that_nobody_asked_for_are_refused():
    with pytest.raises(ProtocolError):
        make(0).receive(PEERS[1], EvidencePiece(name_of(WRONG), 0, b"x"), PEERS[:3])


def test_a_silent_source_is_replaced_by_the_next_and_then_forgotten():
    post = Post(4)
    frame = lie(9)
    for holder in (0, 1):
        post.dockets[holder].add(frame)
    post.lost = lambda i, j, message: i == 0 and isinstance(message, EvidencePiece)
    post.dockets[2]._told = {}
    for holder in (0, 1):
        notice = Accusation(name_of(frame), bytes(PEERS[9]), "two votes", len(frame))
        post.do(2, post.dockets[2].receive(PEERS[holder], notice, PEERS[:4])[0])
    assert post.blamed == []
    post.do(2, post.dockets[2].timeout())  # one interval without progress
    post.do(2, post.dockets[2].timeout())
    assert 2 in {i for i, _ in post.blamed}
    alone = make(3)
    alone.receive(PEERS[0], Accusation(name_of(frame), bytes(PEERS[9]), "two votes", len(frame)), PEERS[:4])
    assert any(isinstance(action, SetTimer) for action in alone.timeout())
    assert alone.timeout() == []


def test_one_proof_for_each_accused_and_kind_and_never_more_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch):
    one = make(0)
    assert one.add(lie(9)) is not None
    again = encode(two(Vote(SID, 7, 7, bytes(32)), Vote(SID, 3, 7, SID), 9))
    assert one.add(lie(9)) is None and one.add(again) is None
    monkeypatch.setattr(docket, "MAX_HELD", 2)
    assert one.add(lie(10)) is not None
    assert one.add(lie(11)) is None
    assert one.accused == {PEERS[9], PEERS[10]}
    assert MAX_HELD == 256


def test_few_fetches_at_a_time_and_one_from_each():
    one = make(0)
    asked = []
    for k in range(10):
        notice = Accusation(digest(f"evidence {k}"), bytes(PEERS[20 + k]), "two votes", 100)
        asked += [a for a in one.receive(PEERS[1 + k % 6], notice, PEERS[:3])[0] if isinstance(a, Send)]
    assert len(asked) == 4
    assert len({send.to for send in asked}) == 4


def test_what_an_earlier_life_kept_counts_and_what_proves_nothing_does_not():
    one = make(0, lie(9), b"damaged", lie(5)[:-1], WRONG)
    assert one.accused == {PEERS[9], verify(WRONG).accused}


def test_only_those_concerned_hear_of_a_peer():
    one = make(0)
    actions, proof = one.keep(lie(9), PEERS[:4])  # the liar sits neither in committee nor in cohort
    assert proof is not None
    assert [action for action in actions if isinstance(action, Send)] == []
    later = [action.to for action in one.tell([*PEERS[:4], PEERS[9]]) if isinstance(action, Send)]
    assert set(later) == set(PEERS[1:4])  # not me, and not the liar
