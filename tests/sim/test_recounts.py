"""Totals across cohorts are recounted: a head that adds up wrongly is found, named, and left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from types import MethodType
from typing import Any

import pytest

from averaging.across import Across
from averaging.evidence import WRONG_TOTAL, WrongTotal, verify
from averaging.wide import unpack
from dht.errors import ProtocolError
from dht.identity import PeerId
from dht.wire import decode, encode
from tests.averaging.words import wide_bytes
from tests.sim.cheap import memoised
from tests.sim.swarm import Peer, Swarm


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with memoised():
        yield


class Liar:
    """From now on one peer changes a word of the first total that it adds up, and signs it."""

    def __init__(self, swarm: Swarm, peer: PeerId | None = None) -> None:
        self.swarm, self.peer, self.lied = swarm, peer, 0
        self.round = 0
        swarm.on_event = self.event

    def event(self, name: str, peer: Peer) -> None:
        if name != "add-up" or self.lied or peer.participant is None or peer.participant.current is None:
            return
        self.peer = self.peer or peer.id
        attempt = peer.participant.current.attempt
        across = attempt.across if attempt is not None else None
        if peer.id == self.peer and across is not None:
            self.round = across.roster.round
            across.add_up = MethodType(self._wrongly, across)  # type: ignore[method-assign]

    def _wrongly(self, across: Across, chunk: int) -> None:
        layout = across.params.layout
        words = unpack(layout, chunk, across.totals.add_up(chunk)[1])
        if not self.lied:
            words[3] += 1
            self.lied += 1
        packed = wide_bytes(layout, chunk, words)
        across._added[chunk] = sha256(packed).digest(), packed


def play(seed: int, share: float, **changes: Any) -> tuple[Swarm, Liar]:
    swarm = Swarm(18, seed, target=6, minimum=4, audit_share=share, **changes)
    swarm.start()
    assert swarm.run(lambda: swarm.reached(1), 120)
    liar = Liar(swarm)
    assert swarm.run(lambda: liar.lied > 0, 60)
    return swarm, liar


@pytest.mark.parametrize("seed", range(4))
def test_a_wrong_total_is_found_and_its_author_is_left_out(seed):
    swarm, liar = play(seed, 1.0)
    assert swarm.run(lambda: swarm.reached(liar.round + 1, set(swarm.order) - {liar.peer}), 300)
    (spoiled,) = swarm.records[liar.round].values()
    assert spoiled.void, "a wrong total was certified"
    following = max(swarm.records)
    (good,) = swarm.records[following].values()
    assert not good.void
    assert liar.peer not in good.members()
    proofs = [proof for peer in swarm.order for proof in evidence_of(swarm, peer)]
    assert len(proofs) >= 17
    assert {(proof.kind, proof.accused) for proof in proofs} == {(WRONG_TOTAL, liar.peer)}


def evidence_of(swarm: Swarm, peer: PeerId) -> list[Any]:
    participant = swarm.peers[peer].participant
    assert participant is not None
    return [verify(frame) for frame in frames_of(participant)]


def frames_of(participant: Any) -> list[bytes]:
    return list(participant.docket._frames.values())


def test_evidence_of_a_wrong_total_verifies_alone_and_nothing_near_it_does():
    swarm, liar = play(5, 1.0)
    assert swarm.run(lambda: any(frames_of(p.participant) for p in swarm.peers.values()), 120)
    frame = next(frame for p in swarm.peers.values() for frame in frames_of(p.participant))
    assert verify(frame, swarm.run_id, 16).accused == liar.peer
    good = decode(frame)
    assert isinstance(good, WrongTotal)
    part = bytearray(good.parts[0])
    part[5] ^= 1
    for bad in (
        replace(good, parts=(bytes(part), *good.parts[1:])),
        replace(good, parts=good.parts[:-1]),
        replace(good, parts=good.parts[::-1]),
        replace(good, voids=good.voids + 1),
        replace(good, cohorts=good.cohorts + 1),
        replace(good, included=replace(good.included, results=good.included.results[1:])),
        replace(good, total=replace(good.total, signature=bytes(64))),
    ):
        with pytest.raises(ProtocolError):
            verify(encode(bad))


def test_a_right_total_is_no_evidence():
    """An accuser cannot turn an honest head's total against it."""
    swarm, _ = play(6, 1.0)
    assert swarm.run(lambda: any(frames_of(p.participant) for p in swarm.peers.values()), 120)
    frame = next(frame for p in swarm.peers.values() for frame in frames_of(p.participant))
    wrong = decode(frame)
    assert isinstance(wrong, WrongTotal)
    peer = swarm.peers[swarm.order[0]].participant
    across = peer.across(wrong.included.sid) if peer is not None else None  # type: ignore[union-attr]
    assert across is not None
    totals = [across.totals.said(c)[1] for c in range(6) if across.totals.holds(c)]
    honest = next(said for said in totals if said.sender != wrong.total.sender)
    with pytest.raises(ProtocolError):
        verify(encode(replace(wrong, total=honest)))


def test_honest_heads_are_never_accused():
    swarm = Swarm(18, 9, target=6, minimum=4, audit_share=1.0)
    swarm.start()
    assert swarm.run(lambda: swarm.reached(4), 200)
    swarm.check()
    assert swarm.watch.seen["Wanted"] > 0, "nothing was recounted"
    assert not any(frames_of(peer.participant) for peer in swarm.peers.values())


def test_half_of_the_totals_are_recounted_at_a_share_of_one_half():
    """Of 12 lies 1 to 11 are found; binomial(12, 1/2) is outside with probability 5e-4, and the seeds are fixed."""
    found = 0
    for seed in range(12):
        swarm, liar = play(100 + seed, 0.5)
        assert swarm.run(lambda: swarm.height() >= liar.round, 120)  # noqa: B023
        (spoiled,) = swarm.records[liar.round].values()
        found += spoiled.void
    assert 1 <= found <= 11
