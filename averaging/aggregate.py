"""What a round's aggregation came to, of one cohort or of many: integers that everybody holds alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from averaging.chain import Tip
from averaging.cohort import Cohort
from averaging.messages import Result
from averaging.record import LOSS_SCALE, ZERO, Record, Survivor
from averaging.reducing import Duties
from averaging.roster import CheckedRoster
from averaging.survivors import bitmap, bits
from averaging.weights import declared

IntegerArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Aggregate:
    """The sums of a round and whose updates are in them.

    `sid` is the round's. `members` is the size of the largest cohort, which sets the codec's levels. `survivors` are
    sorted by peer id. `sums` has one array per chunk, the trailer last: ring words of a single cohort, or signed
    integers (`averaging.wide`) added up across cohorts; zeros for the `lost` chunks. `root` is the Merkle root over
    the chunks' hashes. `domains` are the survivors' data domains in their order, empty where nobody has declared one.
    """

    round: int
    attempt: int
    roster: bytes
    sid: bytes
    members: int
    survivors: tuple[Survivor, ...]
    left_out: tuple[int, ...]
    lost: tuple[int, ...]
    root: bytes
    sums: tuple[IntegerArray, ...]
    domains: tuple[int, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of each survivor: what its weight follows from, with its domain (`averaging.weights`)."""
        return tuple(survivor.tokens for survivor in self.survivors)


def of_cohort(cohort: Cohort) -> Aggregate:
    """What the only cohort of a roster came to, once its sums are complete."""
    roster, certified, sums = cohort.roster, cohort.certified, cohort.sums
    assert certified is not None
    result = result_of(cohort, sums.root())
    return Aggregate(
        roster.round,
        roster.attempt,
        roster.digest,
        roster.round_sid,
        len(roster.members),
        survivors_of(roster, [cohort.duties], [result]),
        (),
        sums.lost,
        sums.root(),
        tuple(sums.ring(c) for c in range(cohort.layout.total_chunks)),
        domains_of(roster, [result]),
    )


def result_of(cohort: Cohort, root: bytes) -> Result:
    """What a cohort's aggregation came to, as its members sign it."""
    certified, roster = cohort.certified, cohort.roster
    assert certified is not None
    tokens = tuple(cohort.r3.manifests[i][0].tokens for i in certified.survivors)
    survivors, reducers = bitmap(certified.survivors), bitmap(certified.reducers)
    domains = declared(roster.domains[i] for i in certified.survivors)
    chunks = cohort.layout.total_chunks
    return Result(roster.round_sid, roster.index, survivors, reducers, tokens, chunks, root, domains)


def survivors_of(roster: CheckedRoster, duties: Sequence[Duties], results: Sequence[Result]) -> tuple[Survivor, ...]:
    """The survivors of these cohorts' results, sorted by peer id. `duties` are in order of the cohorts' indices."""
    survivors = []
    for result in results:
        peers, work, live = roster.cohort(result.cohort), duties[result.cohort], bits(result.reducers)
        for member, tokens in zip(bits(result.survivors), result.tokens, strict=True):
            reduced = len(work.of(member)) if member in live else 0
            survivors.append(Survivor(bytes(peers[member]), tokens, reduced))
    return tuple(sorted(survivors, key=lambda survivor: survivor.peer))


def domains_of(roster: CheckedRoster, results: Sequence[Result]) -> tuple[int, ...]:
    """The data domains of these cohorts' survivors, sorted by peer id; empty where nobody has declared one."""
    found = []
    for result in results:
        peers, members = roster.cohort(result.cohort), bits(result.survivors)
        domains = result.domains or (0,) * len(members)
        found += [(bytes(peers[i]), domain) for i, domain in zip(members, domains, strict=True)]
    return declared(domain for _, domain in sorted(found))


def record_of(aggregate: Aggregate, tip: Tip, state_root: bytes, loss: float) -> Record:
    """The record of the round after `tip` that came to this, led to this state, and had this mean training loss."""
    record = Record(
        tip.head.run,
        tip.head.round + 1,
        tip.head.hash(),
        False,
        aggregate.attempt,
        aggregate.roster,
        aggregate.sid,
        aggregate.root,
        aggregate.survivors,
        aggregate.left_out,
        aggregate.lost,
        max(0, min(round(loss * LOSS_SCALE), 2**32 - 1)),
        state_root,
        ZERO,
    )
    return replace(record, tally_root=tip.tally.apply(record).root())
