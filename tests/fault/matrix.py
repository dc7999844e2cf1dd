"""The fault matrix: every fault on many seeds, and the table of `docs/reliability.md` that comes of it.

python -m tests.fault.matrix --seeds 200 --write      all cases, two workers; rewrites the page
python -m tests.fault.matrix --only "split" --seeds 20    faults whose name contains a text
python -m tests.fault.matrix --only "R4 before" --seed 17    one case again
python -m tests.fault.matrix --seeds 200 --log FILE   outcomes as they come; the same again goes on where it stopped
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

from tests.fault.branches import alone, together
from tests.fault.journal import Journal, commit
from tests.fault.reliability import PAGE, Row, write
from tests.sim import cases, cohort_cases
from tests.sim.cases import Outcome, prepare
from tests.sim.cheap import memoised
from tests.sim.cohort_cases import ALL_FAULTS, play


def all_of(seed: int, faults: Sequence[str]) -> list[Outcome]:
    """Every fault on the swarms of one seed."""
    with memoised():
        prepare(seed)
        kills = {**cases.KILLS, **cohort_cases.KILLS}
        outcomes = [alone(fault, seed, partial(play, fault, seed)) for fault in faults if fault not in kills]
        for module in (cases, cohort_cases):
            if chosen := [fault for fault in faults if fault in module.KILLS]:
                swarm = module.started(seed)
                outcomes += together(swarm, [kills[fault](fault, seed, swarm) for fault in chosen])
        return outcomes


@dataclass
class Sums:
    """What is known of one fault so far."""

    runs: int = 0
    outcomes: list[Outcome] = field(default_factory=list)

    def row(self, fault: str) -> Row:
        """Its row of the table."""
        found = sorted(self.outcomes, key=lambda outcome: outcome.seed)
        return Row(
            fault,
            len(found),
            sum(bool(outcome.fired) for outcome in found),
            sum(bool(outcome.divergent) for outcome in found),
            sum(bool(outcome.wrong) for outcome in found),
            sum(outcome.hangs for outcome in found),
            sum(outcome.lost for outcome in found),
            tuple(outcome.seed for outcome in found if not outcome.good),
        )


def play_all(
    faults: Sequence[str], seeds: Sequence[int], workers: int, journal: Journal | None = None
) -> Iterator[Row]:
    """All cases; rows in the order of the faults. Seeds in the journal are not played. Progress goes to stderr."""
    sums = {fault: Sums() for fault in faults}
    known = {seed: journal.known[seed] for seed in seeds if seed in journal.known} if journal is not None else {}
    missing = [seed for seed in seeds if seed not in known]
    began = time.monotonic()
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        played = pool.imap_unordered(partial(all_of, faults=faults), missing)
        for done, outcomes in enumerate(chain(known.values(), played), 1):
            if journal is not None and done > len(known):
                journal.add(outcomes[0].seed, outcomes)
            for outcome in outcomes:
                sums[outcome.fault].outcomes.append(outcome)
                if not outcome.good:
                    print(f"not good: {outcome}", file=sys.stderr)
            spent = time.monotonic() - began
            print(f"{done} of {len(seeds)} seeds, {spent:.0f} s", file=sys.stderr, flush=True)
    return (sums[fault].row(fault) for fault in faults)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when every fault fired in every run and every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault.matrix", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds, from 0 on (200)")
    parser.add_argument("--seed", type=int, help="this seed alone")
    parser.add_argument("--only", default="", help="faults whose name contains this text")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    parser.add_argument("--log", type=Path, help="keep outcomes here, and go on after those of the same commit")
    parser.add_argument("--write", action="store_true", help=f"write the table to {PAGE.name}")
    options = parser.parse_args(arguments)
    seeds = range(options.seeds) if options.seed is None else (options.seed,)
    faults = [fault for fault in ALL_FAULTS if options.only in fault]
    journal = Journal(options.log, commit(), faults) if options.log is not None and faults else None
    if journal is not None and journal.news:
        print(journal.news, file=sys.stderr)
    rows = list(play_all(faults, seeds, options.workers, journal))
    for row in rows:
        print(row.line())
    if options.write:
        write(rows, options.seeds)
    return 0 if rows and all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
