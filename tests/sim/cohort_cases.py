"""Faults of the matrix in a swarm of three cohorts: deaths in the steps in which sums are added up across them."""

from __future__ import annotations

from collections.abc import Callable

from tests.sim.cases import FAULTS, Case, Outcome, through_first_round
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


def kill(step: str) -> Callable[[str, int], Outcome]:
    """SIGKILL of one or two members in a step; they come back after a while, or not."""

    def case(fault: str, seed: int) -> Outcome:
        swarm = through_first_round(FaultSwarm(PEERS, seed, target=TARGET, minimum=4))
        it = Case(fault, seed, swarm)
        victims = 1 + seed % 2
        back = it.draw.choice((None, it.draw.uniform(1, 20)))
        first = swarm.height() + 1
        it.dies_at(STEPS[step], victims, it.some(victims), ("Seating", "Inclusion", "Included"), back)
        return it.finish(first)

    return case


ALL_FAULTS = {**FAULTS, **{f"3 cohorts, kill: {step}": kill(step) for step in STEPS}}
"""The whole matrix, of one cohort and of several."""


def play(fault: str, seed: int) -> Outcome:
    """One run. Raises AssertionError when the swarm does not even begin."""
    return ALL_FAULTS[fault](fault, seed)
