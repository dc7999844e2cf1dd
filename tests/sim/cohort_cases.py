"""Faults of the matrix in a swarm of three cohorts: deaths in the steps in which sums are added up across them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.sim.cases import FAULTS, Fault, Kill, Outcome, through_first_round
from tests.sim.faults import FaultSwarm

PEERS, TARGET = 18, 6

# Before which of its actions a victim dies: the event, and how many of that name it does before.
STEPS: dict[str, tuple[str, int]] = {
    "seating half sent": ("Seating", 5),
    "shares half dealt": ("Shares", 3),
    "sum hashes half sent": ("SumHashes", 3),
    "before its result": ("Result", 0),
    "result half sent": ("Result", 2),
    "inclusion half sent": ("Inclusion", 9),
    "before its vote": ("InclusionVote", 0),
    "included half sent": ("Included", 4),
    "owner before its part": ("part", 0),
    "head before it adds up": ("add-up", 0),
    "head before its total": ("total", 0),
    "apply": ("apply", 0),
}
KILLS: dict[str, Callable[[str, int, FaultSwarm], Kill]] = {
    f"3 cohorts, kill: {step}": partial(Kill, before=before, most=2, drawn=True) for step, before in STEPS.items()
}


def started(seed: int) -> FaultSwarm:
    """The swarm of a seed after its first round."""
    return through_first_round(FaultSwarm(PEERS, seed, target=TARGET, minimum=4))


ALL_FAULTS: dict[str, Fault] = {
    **FAULTS,
    **{fault: lambda fault, seed: KILLS[fault](fault, seed, started(seed)).play() for fault in KILLS},
}
"""The whole matrix, of one cohort and of several."""


def play(fault: str, seed: int) -> Outcome:
    """One run. Raises AssertionError when the swarm does not even begin."""
    return ALL_FAULTS[fault](fault, seed)
