"""The chain on disk: what a peer believes when it starts again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from averaging.ballots import Decision
from averaging.chain import Chain
from averaging.record import found
from dht.envelope import Envelope
from dht.errors import ProtocolError, Refusal, StorageError
from dht.wire import decode_as, encode
from peer.history import certify, chain_frames, open_chain
from peer.state import CanonicalState, StateSchema
from peer.store import StateStore, StoredRound
from tests.peer.swarm_in_process import certificate, founded, grow, identity, next_record, tiny_manifest

MANIFEST = tiny_manifest(5)
PEERS = [identity(index).peer_id for index in range(5)]
TOKENS = dict.fromkeys(PEERS, 100)
RUN, FOUNDER = MANIFEST.run_id, MANIFEST.founder


def root(number: int) -> bytes:
    return bytes([number]) * 32


@pytest.fixture
def chain() -> Chain:
    """Three rounds, the second void."""
    chain = founded(MANIFEST, 5, root(0))
    grow(chain, survivors=TOKENS, state_root=root(1))
    grow(chain)
    grow(chain, survivors=dict.fromkeys(PEERS[1:], 50), state_root=root(3))
    return chain


def test_round_trip(chain: Chain):
    frames = chain_frames(chain, 3)
    assert len(frames) == 4
    again = open_chain(frames, RUN, FOUNDER)
    assert (again.head, again.beacon, again.tally.root()) == (chain.head, chain.beacon, chain.tally.root())
    assert again.committee() == chain.committee() == tuple(sorted(PEERS[1:]))
    assert chain_frames(again, 3) == frames


def test_a_chain_that_grew_meanwhile_is_stored_up_to_the_state(chain: Chain):
    assert open_chain(chain_frames(chain, 1), RUN, FOUNDER).head == chain.record(1)
    assert open_chain(chain_frames(chain, 0), RUN, FOUNDER).head == chain.record(0)


def test_too_few_signatures_are_refused(chain: Chain):
    record = next_record(chain, survivors=TOKENS, state_root=root(4))
    committee = len(chain.committee())
    weak = certificate(chain, record, signers=2 * committee // 3)
    frames = [*chain_frames(chain, 3), encode(Decision(encode(record), encode(weak)))]
    with pytest.raises(ProtocolError) as caught:
        open_chain(frames, RUN, FOUNDER)
    assert caught.value.refusal is Refusal.BAD_CERTIFICATE


def test_signatures_for_something_else_are_refused(chain: Chain):
    record = next_record(chain, survivors=TOKENS, state_root=root(4))
    certified = certificate(chain, record)
    forged = dataclasses.replace(record, state_root=root(5))
    for value in (certified.value, forged.hash()):
        frame = encode(Decision(encode(forged), encode(dataclasses.replace(certified, value=value))))
        with pytest.raises(ProtocolError) as caught:
            open_chain([*chain_frames(chain, 3), frame], RUN, FOUNDER)
        assert caught.value.refusal is Refusal.BAD_CERTIFICATE


def test_gaps_repetitions_and_another_order_are_refused(chain: Chain):
    a, b, c, d = chain_frames(chain, 3)
    for frames in ([a, c, d], [a, b, d], [a, b, b, c], [a, c, b, d], [b, c, d]):
        with pytest.raises(ProtocolError):
            open_chain(frames, RUN, FOUNDER)


def test_a_foreign_founding_is_refused(chain: Chain):
    _, *links = chain_frames(chain, 3)
    stranger = encode(found(identity(1), RUN, tuple(PEERS), root(0), bytes(32)))
    another = encode(found(identity(0), RUN, tuple(PEERS), root(0), b"1" * 32))
    other_run = encode(found(identity(0), b"o" * 32, tuple(PEERS), root(0), bytes(32)))
    for founding, refusal in (
        (stranger, Refusal.NOT_A_MEMBER),
        (another, Refusal.BAD_HASH),
        (other_run, Refusal.WRONG_RUN),
    ):
        with pytest.raises(ProtocolError) as caught:
            open_chain([founding, *links], RUN, FOUNDER)
        assert caught.value.refusal is refusal
    with pytest.raises(ProtocolError) as caught:
        open_chain(chain_frames(chain, 3), b"o" * 32, FOUNDER)
    assert caught.value.refusal is Refusal.WRONG_RUN
    assert decode_as(Envelope, another).check(RUN) == FOUNDER  # only its hash gave it away


def test_nothing_is_no_chain():
    with pytest.raises(StorageError, match="no chain"):
        open_chain([], RUN, FOUNDER)


def test_a_chain_certifies_its_head_and_nothing_else(chain: Chain):
    def stored(round_: int, state: bytes, last: int = 3) -> StoredRound:
        return StoredRound(round_, state, (), tuple(chain_frames(chain, last)), np.empty(0, np.uint8))

    certify(stored(3, root(3)), RUN, FOUNDER)
    certify(stored(2, root(1), 2), RUN, FOUNDER)
    for wrong in (stored(3, root(1)), stored(2, root(3)), stored(1, root(1)), stored(2, root(1))):
        with pytest.raises(StorageError, match="another state"):
            certify(wrong, RUN, FOUNDER)


def test_the_newest_certified_state_is_loaded_not_the_newest(tmp_path: Path):
    schema = StateSchema(RUN, ("weight",), ((5000,),))
    store = StateStore(tmp_path, schema)
    states = [CanonicalState.genesis(schema, np.full(5000, n, np.float32), 0.1) for n in range(4)]
    chain = founded(MANIFEST, 5, states[0].root())
    for number in (1, 2):
        grow(chain, survivors=TOKENS, state_root=states[number].root())

    def save(number: int, frames: list[bytes]) -> None:
        state = states[number]
        store.save(number, state.root(), state.leaves(), state.chunks(), frames)

    save(2, chain_frames(chain, 2))
    # Round 3 was computed and saved by somebody who forged its certificate.
    record = next_record(chain, survivors=TOKENS, state_root=states[3].root())
    forged = Decision(encode(record), encode(certificate(chain, record, signers=1)))
    save(3, [*chain_frames(chain, 2), encode(forged)])
    found_ = store.load_newest()
    assert found_ is not None and found_.round == 3  # whole on disk: only the certificate tells
    newest = store.load_newest(lambda stored: certify(stored, RUN, FOUNDER))
    assert newest is not None and newest.round == 2
    assert open_chain(newest.frames, RUN, FOUNDER).head.state_root == store.load_state(newest).root()
    # The true round 3 takes its place.
    grow(chain, survivors=TOKENS, state_root=states[1].root())
    store.save(3, states[1].root(), states[1].leaves(), states[1].chunks(), chain_frames(chain, 3))
    newest = store.load_newest(lambda stored: certify(stored, RUN, FOUNDER))
    assert newest is not None and (newest.round, newest.root) == (3, states[1].root())
