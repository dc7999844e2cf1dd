"""Parameters of the averaging protocol, fixed by the run manifest, and the thresholds that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field

from averaging.layout import Layout
from dht.identity import PeerId

MAX_MEMBERS = 64
"""Largest cohort: the mask graph is complete up to here."""
MAX_COHORTS = 256
"""Most cohorts of a roster: their sums fit into words one byte longer than the ring's."""
MAX_PEERS = 4096
"""Most members of a roster."""


COORDINATORS = 4
"""Peers that may propose which cohorts are in the sum, one after the other."""
RELAYS = 2
"""Members of each cohort that get what everybody needs, and pass it on to the others."""
TOTAL_TURNS = 4
"""Peers that may add up a chunk across cohorts, one after the other."""


def tolerated(members: int) -> int:
    """Dropouts (delta) that a cohort of `members` survives: 0 for three, else at least one."""
    return 0 if members <= 3 else max(1, members // 8)


def threshold(members: int) -> int:
    """Shares and votes (t) that open a sum; below 2t - n colluders learn nothing (DESIGN section 5)."""
    return members - tolerated(members)


def honest_witness(committee: int) -> int:
    """The smallest number of members among whom one is honest, when fewer than a third lie."""
    return (committee - 1) // 3 + 1


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that each phase may take. Every wait of the protocol is one of these."""

    join: float = 3.0
    shares: float = 5.0
    train: float = 60.0
    upload: float = 20.0
    survivors: float = 5.0
    unmask: float = 5.0
    sums: float = 20.0
    commit: float = 5.0

    def total(self, members: int) -> float:
        """The longest that one attempt of so many members may take from its roster to its last sum, in seconds."""
        sums = (tolerated(members) + 2) * self.sums  # a stand-in's turn for each death
        audit = 3 * self.unmask
        return self.shares + self.train + self.upload + self.survivors + self.unmask + sums + audit + self.commit

    def included(self, members: int) -> float:
        """When the last cohort's result must be in, in seconds from the roster; then the rest goes on without it."""
        return self.total(members) - self.commit

    def across(self, members: int) -> float:
        """The longest that an attempt of several cohorts, the largest of so many members, may take."""
        return self.total(members) + COORDINATORS * self.survivors + TOTAL_TURNS * self.sums


@dataclass(frozen=True, slots=True)
class RunParams:
    """What all peers of a run agree on before the first round.

    `weight_cap` is the number of tokens that count as weight 1. `reducer_copies` is how many later members
    hold a copy of each reducer's own masked chunks (so that its death after the certificate loses nothing);
    never more than the cohort tolerates dropouts. `attempts` is how many rosters a round may try before its
    committee may declare it void. `audit_share` is the probability with which a signed sum is audited by one member:
    1 all sums, 0 none. After `recovery_after` seconds with more than a third of the committee gone, the rest
    may go on in a recovery branch; 0 means never.
    """

    run: bytes
    founder: PeerId
    layout: Layout
    genesis_peers: int = 5
    target: int = 8
    minimum: int = 5
    weight_cap: int = 1 << 20
    reducer_copies: int = 1
    attempts: int = 4
    audit_share: float = 0.125
    deadlines: Deadlines = field(default_factory=Deadlines)
    recovery_after: float = 600.0
