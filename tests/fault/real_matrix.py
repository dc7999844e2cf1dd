"""Real peers killed in every phase of a round, and stopped for 30 s: the second table of `docs/reliability.md`.

python -m tests.fault.real_matrix --times 3 --write     all rows, one after another; rewrites the table
python -m tests.fault.real_matrix --only "in unmask"    rows whose name contains a text

Four processes over libp2p, of which one may be missing. Each repetition waits until all four survived a round, hits one
of them in its next round, as soon as it reports the phase, and waits until it survives a round again.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peer.events import STEPS
from tests.fault.processes import Process, Swarm, last_words
from tests.fault.reliability import options, write_real
from tests.fault.run import Run

PEERS = 4
STOPPED_FOR = 30.0
KILLS = {f"kill -9 in {step}": step for step in STEPS}
STOPS = {f"SIGSTOP in upload, for {STOPPED_FOR:.0f} s": "upload"}


@dataclass
class Hits:
    """What came of one fault: `fired` when nothing more was heard of the victim after the phase; `lost`: void rounds
    in all, `away`: seconds between the fault and the first round that the victim survived again, of each repetition.
    """

    fault: str
    runs: int = 0
    fired: int = 0
    divergent: int = 0
    hangs: int = 0
    lost: int = 0
    away: tuple[float, ...] = ()

    @property
    def good(self) -> bool:
        """Whether no promise was broken, and the fault came true at least once."""
        return self.fired > 0 and not self.divergent and not self.hangs

    def line(self) -> str:
        """Its line of the table."""
        back = f"{max(self.away):.0f} s" if self.away else "-"
        figures = (self.runs, self.fired, self.divergent, self.hangs, self.lost, back)
        return f"| {self.fault} | {' | '.join(map(str, figures))} |"


class Target:
    """The peer to hit in one phase of one round, and what it last reported before that."""

    def __init__(self, run: Run, index: int, step: str) -> None:
        self.run, self.index, self.process, self.step = run, index, run.peers[index], step

    def hit_in_time(self) -> bool:
        """Whether the phase is the last thing that was heard of it."""
        steps = self.process.named("step")
        return bool(steps) and steps[-1]["step"] == self.step and steps[-1]["round"] not in self.process.rounds()


def kill(target: Target) -> bool:
    """SIGKILL in the phase, and the next start from the same folder; whether it hit the phase."""
    run, victim = target.run, target.process
    run.strikes_in(target.index, target.step)
    run.swarm.wait("the death", lambda: victim.code is not None, run.others(target.index))
    assert victim.code == -signal.SIGKILL, last_words(victim)
    fired = target.hit_in_time()
    run.peers[target.index] = run.start(target.index)
    return fired


def stop(target: Target) -> bool:
    """SIGSTOP in the phase, SIGCONT 30 s later; whether it hit the phase and nothing was heard meanwhile."""
    run, victim = target.run, target.process
    run.strikes_in(target.index, target.step, signal.SIGSTOP)
    run.swarm.wait("the stop", lambda: victim.state() == "T", run.others(target.index))
    run.swarm.wait("its last word", target.hit_in_time, run.others(target.index))
    fired = target.hit_in_time()
    run.pause(STOPPED_FOR, run.others(target.index))
    fired &= victim.state() == "T"
    victim.process.send_signal(signal.SIGCONT)
    return fired


def repeat(run: Run, hits: Hits, step: str, index: int) -> None:
    """One repetition on one peer. AssertionError when it never comes back."""
    run.whole()
    began = time.monotonic()
    hits.runs += 1
    hits.fired += (stop if hits.fault in STOPS else kill)(Target(run, index, step))
    try:
        run.comes_back(index)
    except AssertionError:
        hits.hangs += 1
        raise
    hits.away = (*hits.away, time.monotonic() - began)
    hits.divergent += divergent(run)


def divergent(run: Run) -> bool:
    """Whether any two peers reported different outcomes of a round."""
    try:
        run.check_roots()
    except AssertionError as error:
        print(f"divergent: {error}", file=sys.stderr)
        return True
    return False


def void_after(processes: Sequence[Process], before: int) -> set[int]:
    """Rounds later than this that were reported void."""
    reports = [report for process in processes for report in process.rounds().values()]
    return {report["round"] for report in reports if report["void"] and report["round"] > before}


def play(faults: Sequence[str], times: int, folder: Path) -> list[Hits]:
    """All repetitions of all faults on one swarm, the peers in turn."""
    rows = [Hits(fault) for fault in faults]
    with Swarm(folder) as swarm:
        run, turn = Run(folder, swarm, PEERS), 0
        for row in rows:
            before = run.head()
            for _ in range(times):
                repeat(run, row, (KILLS | STOPS)[row.fault], 1 + turn % (PEERS - 1))
                turn += 1
            row.lost = len(void_after(swarm.all, before))
            print(row.line(), file=sys.stderr, flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when every fault came true and every promise was kept."""
    parser = options("tests.fault.real_matrix", __doc__, 3)
    parser.add_argument("--only", default="", help="faults whose name contains this text")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.folder or Path(scratch)
        rows = play([fault for fault in KILLS | STOPS if chosen.only in fault], chosen.times, folder)
    lines = [row.line() for row in rows]
    print("\n".join(lines))
    if chosen.write:
        write_real(lines)
    return 0 if rows and all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
