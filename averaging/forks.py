"""Two certified records of one round, which cannot be while fewer than a third of a committee lie, and who did it."""

from __future__ import annotations

from averaging import certificate as certificates
from averaging.ballots import Certificate
from averaging.chain import Chain, ChainSegment, unpack
from averaging.record import Record
from dht.errors import ProtocolError
from dht.identity import PeerId


def committee_of(chain: Chain, round_: int) -> tuple[PeerId, ...]:
    """Who decided a round of this chain, in certificate order. Raises KeyError if the one before is not here."""
    before = chain.record(round_ - 1)
    electors = before
    while electors.void and not electors.recovery:
        electors = chain.record(electors.round - 1)
    return certificates.draw_committee(electors.members(), before.hash())


def forked_by(chain: Chain, record: Record, certificate: Certificate) -> tuple[PeerId, ...]:
    """Members of the committee that certified this record and the chain's own one of the same round.

    Empty when there is no fork: the same record, a bad certificate, another parent, or a recovery branch.
    """
    try:
        mine, own = chain.link(record.round)
        committee = committee_of(chain, record.round)
        if record == mine or record.parent != mine.parent or record.recovery or mine.recovery:
            return ()
        certificates.verify(certificate, record, committee, chain.run)
    except (KeyError, ProtocolError):
        return ()
    return tuple(committee[i] for i in sorted(set(own.signers) & set(certificate.signers)))


def forks(chain: Chain, segment: ChainSegment) -> tuple[int, tuple[PeerId, ...]] | None:
    """(round, who signed both) of the first fork between a chain and a segment that contradicts it, if it is one."""
    for packed in segment.links:
        record, certificate = unpack(packed)
        if 1 <= record.round <= chain.head.round and chain.record(record.round) != record:
            liars = forked_by(chain, record, certificate)
            return (record.round, liars) if liars else None
    return None
