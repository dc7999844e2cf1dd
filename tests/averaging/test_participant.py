"""A peer's mail: what is refused by which number, what is passed on, and what a stranger cannot do to it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from averaging.actions import Send
from averaging.auditing import Audited
from averaging.ballots import Decision
from averaging.bulk import BulkKind, Chunk
from averaging.chain import ChainRequest, ChainSegment, unpack
from averaging.guard import MemoryGuard
from averaging.messages import Attest, Join, Knock, Manifest, Missing, Receipt, SumHashes, Vote
from averaging.participant import Participant
from averaging.record import found
from averaging.work import FetchState, Train
from dht.envelope import Envelope, seal
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId
from dht.wire import decode_as, digest, encode
from tests.sim.swarm import GENESIS, Swarm

STRANGER = Identity(digest("stranger"))


class Seen:
    """A swarm in the middle of a round, with every frame that was sent."""

    def __init__(self, until: str = "Unmask") -> None:
        self.swarm = Swarm(5, 3)
        self.frames: list[tuple[PeerId, PeerId, bytes]] = []
        self.swarm.tamper = self._note
        self.swarm.start()
        assert self.swarm.run(lambda: self.swarm.reached(2), 60)
        before = self.swarm.watch.seen[until]
        assert self.swarm.run(lambda: self.swarm.watch.seen[until] > before, 60)
        self.peer = self.swarm.peers[self.swarm.order[0]]
        assert self.peer.participant is not None
        self.me = self.peer.participant
        self.other = self.swarm.peers[self.swarm.order[1]]

    def _note(self, sender: PeerId, to: PeerId, frame: bytes) -> bytes:
        self.frames.append((sender, to, frame))
        return frame

    def sign(self, message: object, *, by: Identity | None = None, round_: int | None = None) -> bytes:
        number = self.me.round if round_ is None else round_
        return encode(seal(by or self.other.identity, self.swarm.run_id, number, message))

    def old(self, cls: type, round_: int = 1) -> tuple[PeerId, bytes]:
        """A frame of this class that was sent to me in that round."""
        for sender, to, frame in self.frames:
            if to == self.me.peer_id and frame[0] == 0x01:
                envelope = self.envelope(frame)
                if envelope.round == round_ and isinstance(envelope.message(), cls):
                    return sender, frame
        raise AssertionError(f"no {cls.__name__}")

    @staticmethod
    def envelope(frame: bytes) -> Envelope:
        return decode_as(Envelope, frame)


@pytest.fixture
def seen() -> Seen:
    return Seen()


def refusal(call) -> Refusal:
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.refusal


def test_another_run_a_forged_signature_and_a_false_sender(seen):
    other = seen.other.id
    frame = seen.sign(Knock(1, bytes(32)))
    foreign = encode(seal(seen.other.identity, bytes(32), 1, Knock(1, bytes(32))))
    forged = encode(replace(seen.envelope(frame), signature=bytes(64)))
    assert refusal(lambda: seen.me.receive(other, foreign)) is Refusal.WRONG_RUN
    assert refusal(lambda: seen.me.receive(other, forged)) is Refusal.BAD_SIGNATURE
    assert refusal(lambda: seen.me.receive(STRANGER.peer_id, frame)) is Refusal.WRONG_SENDER
    assert refusal(lambda: seen.me.receive(other, frame[:-1])) is Refusal.TRUNCATED
    assert refusal(lambda: seen.me.receive(other, encode(Knock(1, bytes(32))))) is Refusal.UNEXPECTED


@pytest.mark.parametrize("cls", [Receipt, Vote, Manifest, SumHashes])
def test_what_was_said_in_an_older_round_is_stale(seen, cls):
    sender, frame = seen.old(cls)
    assert refusal(lambda: seen.me.receive(sender, frame)) is Refusal.STALE


@pytest.mark.parametrize("cls", [Attest, Audited])
def test_the_last_words_of_a_round_may_come_when_it_is_decided(seen, cls):
    sender, frame = seen.old(cls)
    assert seen.me.receive(sender, frame) == []


def test_who_still_works_on_a_decided_round_gets_its_outcome(seen):
    sender, frame = next(
        (s, f)
        for s, to, f in seen.frames
        if f[0] == 0x01 and isinstance(seen.envelope(f).message(), Join) and seen.envelope(f).round == 1
    )
    actions = seen.me.receive(sender, frame)
    (decision,) = [action.message.message() for action in actions if isinstance(action, Send)]
    assert isinstance(decision, Decision)
    assert unpack(decision)[0].round == 1


def test_messages_of_another_sid_change_nothing(seen):
    sid = digest("another sid")
    before = seen.me.current.cohort.r3.receipts.copy()
    assert seen.me.receive(seen.other.id, seen.sign(Receipt(sid, 1, (bytes(16),)))) == []
    assert seen.me.current.cohort.r3.receipts == before
    late = Chunk(BulkKind.MASKED, sid, 0, 0, b"x")
    assert refusal(lambda: seen.me.receive_chunk(seen.other.id, late)) is Refusal.STALE


def test_a_stranger_in_a_cohort_is_not_a_member(seen):
    message = seen.sign(Receipt(seen.me.current.cohort.sid, 1, (bytes(16),)), by=STRANGER)
    assert refusal(lambda: seen.me.receive(STRANGER.peer_id, message)) is Refusal.NOT_A_MEMBER
    chunk = Chunk(BulkKind.MASKED, seen.me.current.cohort.sid, 0, 0, b"x")
    assert refusal(lambda: seen.me.receive_chunk(STRANGER.peer_id, chunk)) is Refusal.NOT_A_MEMBER


def test_only_what_proves_itself_may_be_passed_on(seen):
    """Hashes of sums and attestations count for who signed them, whoever brings them; nothing else does."""
    third = seen.swarm.peers[seen.swarm.order[2]]
    cohort = seen.me.current.cohort
    author = cohort.peers.index(third.id)
    hashes = SumHashes(cohort.sid, cohort.duties.of(author), tuple(bytes(32) for _ in cohort.duties.of(author)))
    seen.me.receive(seen.other.id, seen.sign(hashes, by=third.identity))
    assert cohort.sums.signed_by(author)
    assert refusal(
        lambda: seen.me.receive(seen.other.id, seen.sign(Receipt(cohort.sid, 1, (bytes(16),)), by=third.identity))
    ) is (Refusal.WRONG_SENDER)
    stale = seen.sign(hashes, by=third.identity, round_=seen.me.round + 1)
    assert seen.me.receive(seen.other.id, stale) == []
    assert seen.me._mailbox.take(seen.me.round + 1) == []


def test_a_message_from_ahead_is_kept_and_makes_me_ask(seen):
    ahead = seen.sign(Attest(seen.me.round + 1, bytes(32), b"xx"), round_=seen.me.round + 1)
    (asked,) = seen.me.receive(seen.other.id, ahead)
    assert isinstance(asked, Send) and asked.message.message() == ChainRequest(seen.me.round - 1)
    assert len(seen.me._mailbox.take(seen.me.round + 1)) == 1


def test_asked_for_the_chain_i_send_what_is_missing(seen):
    (answer,) = seen.me.receive(seen.other.id, seen.sign(ChainRequest(1), round_=0))
    segment = answer.message.message()
    assert [unpack(link)[0].round for link in segment.links] == list(range(2, seen.me.round))
    nonce = seen.other.participant._nonce
    knock = Knock(seen.me.round, seen.me.chain.beacon, nonce)
    assert seen.me.receive(seen.other.id, seen.sign(knock, round_=0)) == []
    (answer,) = seen.me.receive(seen.other.id, seen.sign(Knock(0, bytes(32), nonce), round_=0))
    assert len(answer.message.message().links) == seen.me.round - 1


def late_comer(seen: Seen) -> Participant:
    """A peer that knows nothing but the run."""
    return Participant(seen.swarm.params, STRANGER, MemoryGuard(), lambda n: bytes(n), GENESIS)


def test_a_newcomer_takes_a_proven_chain_and_fetches_the_heads_state(seen):
    newcomer = late_comer(seen)
    segment = seen.sign(seen.me.chain.segment(0), round_=0)
    actions = newcomer.receive(seen.other.id, segment)
    (fetch,) = [action for action in actions if isinstance(action, FetchState)]
    assert fetch.record == seen.me.chain.head
    assert not any(isinstance(action, Train) for action in actions)
    assert newcomer.round == seen.me.round and not newcomer.settled
    actions = newcomer.holds(fetch.record.round)
    assert any(isinstance(action, Train) for action in actions)
    assert newcomer.settled


def test_a_founding_by_somebody_else_is_refused(seen):
    newcomer = late_comer(seen)
    false = found(STRANGER, seen.swarm.run_id, (STRANGER.peer_id,), GENESIS, bytes(32))
    segment = seen.sign(ChainSegment(false, 0, ()), round_=0)
    assert refusal(lambda: newcomer.receive(seen.other.id, segment)) is Refusal.NOT_A_MEMBER
    assert newcomer.chain is None


def test_good_links_before_a_bad_one_are_taken_and_the_peer_goes_on(seen):
    """A liar appends junk to a proven chain: the victim must not stay with a head and a round that do not match."""
    newcomer = late_comer(seen)
    newcomer.receive(seen.other.id, seen.sign(ChainSegment(seen.me.chain.founding, 0, ()), round_=0))
    assert newcomer.round == 1
    links = seen.me.chain.segment(0).links
    bad = replace(links[1], certificate=links[0].certificate)
    segment = seen.sign(ChainSegment(seen.me.chain.founding, 2, (links[0], bad)), round_=0)
    actions = newcomer.receive(seen.other.id, segment)
    assert newcomer.chain.head.round == 1
    assert newcomer.current is not None and newcomer.current.number == newcomer.round == 2
    assert any(isinstance(action, FetchState) for action in actions)
    assert refusal(lambda: newcomer.receive(seen.other.id, segment)) is Refusal.BAD_CERTIFICATE
    newcomer.receive(seen.other.id, seen.sign(seen.me.chain.segment(0), round_=0))
    assert newcomer.chain.head == seen.me.chain.head


def test_the_sums_of_the_last_round_can_still_be_had():
    seen = Seen("Seating")
    previous = seen.me.previous
    message = seen.sign(Missing(previous.cohort.sid, (0,)), round_=previous.roster.round)
    actions = seen.me.receive(seen.other.id, message)
    assert [type(action).__name__ for action in actions] == ["Send", "Transfer"]


def test_founding_waits_for_enough_and_survives_a_restart():
    swarm = Swarm(5, 9)
    keys = [swarm.peers[peer].identity for peer in swarm.order]
    guard = MemoryGuard()

    def founder(life: int) -> Participant:
        return Participant(swarm.params, keys[0], guard, lambda n: bytes([life]) * n, GENESIS)

    def knock(peer: Participant, key: Identity) -> list:
        return peer.receive(key.peer_id, encode(seal(key, swarm.run_id, 0, Knock(0, bytes(32)))))

    first = founder(1)
    first.start()
    for key in keys[1:4]:
        knock(first, key)
    assert first.chain is None, "founded with fewer than the manifest asks for"
    actions = knock(first, keys[4])
    assert first.chain is not None
    assert len([action for action in actions if isinstance(action, Send) and action.to != keys[0].peer_id]) >= 4
    again = founder(2)
    again.start()
    assert again.chain is not None
    assert again.chain.founding == first.chain.founding


def test_nobody_but_the_founder_founds():
    swarm = Swarm(5, 9)
    keys = [swarm.peers[peer].identity for peer in swarm.order]
    peer = Participant(swarm.params, keys[1], MemoryGuard(), lambda n: bytes(n), GENESIS)
    peer.start()
    for key in (keys[0], *keys[2:]):
        peer.receive(key.peer_id, encode(seal(key, swarm.run_id, 0, Knock(0, bytes(32)))))
    assert peer.chain is None
