"""Five real peers on machines and cables of their own (as root): slow cables, and a network cut 3/2 and healed.

python -m tests.fault.net_matrix --write     adds its rows to `docs/reliability.md`; exit code 2 when it cannot run
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fault.namespaces import CannotRunError, Machines
from tests.fault.processes import Swarm
from tests.fault.real_matrix import Hits, divergent, void_after
from tests.fault.reliability import options, write_net
from tests.fault.run import Run

PEERS = 5
AWAY = (3, 4)
SPLIT_FOR = 30.0
QUIET = 10.0  # seconds at the end of a split in which nobody may have certified anything
SLOW = 2.0  # Mbit/s


def slow(run: Run, machines: Machines) -> bool:
    """Two rounds over slow cables; whether packets had to wait."""
    machines.limit(SLOW)
    before = machines.held()
    run.wait_for_rounds(2, run.peers)
    waited = machines.held() > before
    machines.limit(1000.0)
    return waited


def split(run: Run, machines: Machines) -> bool:
    """Three and two peers, neither of them a quorum, for 30 s; whether the network was cut: no round got through."""
    machines.split(AWAY)
    run.pause(SPLIT_FOR - QUIET, run.peers)
    head = run.head()
    run.pause(QUIET, run.peers)
    quiet = run.head() == head
    machines.heal()
    return quiet


FAULTS = {
    f"namespaces: every cable {SLOW:.0f} Mbit/s each way, two rounds": slow,
    f"namespaces: 3/2 split for {SPLIT_FOR:.0f} s, healed": split,
}


def play(folder: Path, times: int) -> list[Hits]:
    """All repetitions of all faults on one swarm. Raises CannotRunError; AssertionError when rounds do not go on."""
    rows = [Hits(fault) for fault in FAULTS]
    with Machines(PEERS) as machines, Swarm(folder) as swarm:
        run = Run(folder, swarm, PEERS, machines=machines)
        for row in rows:
            run.whole()
            before = run.head()
            for _ in range(times):
                began = time.monotonic()
                row.runs += 1
                row.fired += FAULTS[row.fault](run, machines)
                run.wait_for_rounds(1, run.peers)
                run.whole()  # a round that all five survived
                row.away = (*row.away, time.monotonic() - began)
                row.divergent += divergent(run)
            row.lost = len(void_after(swarm.all, before))
            print(row.line(), file=sys.stderr, flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when every fault came true and every promise was kept, 2 when this system cannot do it."""
    chosen = options("tests.fault.net_matrix", __doc__, 1).parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            rows = play(chosen.folder or Path(scratch), chosen.times)
    except CannotRunError as error:
        print(f"cannot run here: {error}", file=sys.stderr)
        return 2
    lines = [row.line() for row in rows]
    print("\n".join(lines))
    if chosen.write:
        write_net(lines)
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
