"""Chains of certified records for the ledger's tests: real ones, signed by a committee of test keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from averaging.ballots import PRECOMMIT, Ballot, Certificate
from averaging.certificate import quorum
from averaging.chain import Chain
from averaging.record import Record, Survivor, found, void_record
from averaging.recovery import Recover, recovery_record
from averaging.survivors import bitmap
from dht.envelope import seal
from dht.identity import Identity, PeerId
from dht.wire import digest

RUN = digest("ledger tests")
KEYS = [Identity(digest("ledger key", bytes([number]))) for number in range(7)]
BY_PEER = {key.peer_id: key for key in KEYS}

Work = Callable[[int, int], tuple[int, int]]
"""(round, number of the peer) to (tokens, chunks)."""


def some_work(round_: int, number: int) -> tuple[int, int]:
    """Tokens and chunks that differ from peer to peer and from round to round."""
    return 1000 + 17 * number + 3 * round_ * number, (round_ + number) % 4


def new_chain(members: int = 4, run: bytes = RUN) -> Chain:
    """A chain with its founding only."""
    founder = KEYS[0]
    peers = tuple(key.peer_id for key in KEYS[:members])
    return Chain(run, founder.peer_id, found(founder, run, peers, digest("genesis state"), digest("nonce")))


def certify(record: Record, committee: Sequence[PeerId]) -> Certificate:
    """The smallest certificate of a record."""
    signers = tuple(range(quorum(len(committee))))
    ballot = Ballot(record.round, 0, PRECOMMIT, record.hash())
    signatures = tuple(seal(BY_PEER[committee[i]], record.run, record.round, ballot).signature for i in signers)
    return Certificate(record.round, 0, record.hash(), signers, signatures)


def add_round(chain: Chain, work: Work = some_work, *, void: bool = False, salt: bytes = b"") -> Record:
    """One more certified round in which all the committee survives; `salt` makes another state of it."""
    record = void_record(chain.head)
    if not void:
        rows = tuple(
            Survivor(bytes(peer), *work(record.round, KEYS.index(BY_PEER[peer]))) for peer in chain.committee()
        )
        root = digest("state", chain.head.state_root, record.round.to_bytes(8, "big"), salt)
        record = replace(record, void=False, survivors=rows, state_root=root)
        record = replace(record, tally_root=chain.tally.apply(record).root())
    chain.append(record, certify(record, chain.committee()))
    return record


def add_recovery(chain: Chain) -> Record:
    """Half of the committee goes on alone."""
    committee = chain.committee()
    members = committee[: (len(committee) + 1) // 2]
    record = recovery_record(chain.head, members)
    indices = tuple(committee.index(peer) for peer in members)
    says = Recover(record.round, chain.head.hash(), bitmap(indices))
    signatures = tuple(seal(BY_PEER[peer], RUN, record.round, says).signature for peer in members)
    chain.append(record, Certificate(record.round, 0, record.hash(), indices, signatures))
    return record
