"""`make sim`: many peers under virtual time, the figures of their rounds as a table, JSON and a picture.

    python -m tests.sim.thousand --peers 1000 --rounds 50 --seed 1

Exit code 0 when no promise was broken, 1 otherwise, 2 for bad arguments.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.report import OUT, report
from tests.sim.cheap import cheap
from tests.sim.globe import Globe, Round
from tests.sim.picture import draw

_LONGEST = 3600.0
"""Virtual seconds after which a round that is not decided counts as a hang."""


def run(peers: int, rounds: int, seed: int, parameters: int, churn: float, *, note: bool = False) -> Globe:
    """A globe after so many decided rounds, or after one that hangs."""
    globe = Globe(peers, seed, parameters=parameters, churn=churn)
    for number in range(1, rounds + 1):
        if not globe.until_round(number, _LONGEST):
            break
        if note:
            last = globe.rounds[-1]
            kind = "void" if last.void else f"{last.survivors} of {last.alive} peers"
            print(f"round {number}: {kind}, {last.seconds:.0f} s", file=sys.stderr, flush=True)
    return globe


def summary(globe: Globe, peers: int) -> dict[str, Any]:
    """One row of figures. Bytes are means per living peer and round, of the rounds that are not void."""
    done = [row for row in globe.rounds if not row.void]
    return {
        "peers": peers,
        "rounds": len(globe.rounds),
        "completed": len(done),
        "completed %": round(100 * len(done) / max(1, len(globe.rounds)), 1),
        "divergent": len(globe.divergent()),
        "broken promises": len(globe.watch.broken),
        "deaths": globe.deaths,
        "included %": _mean(100 * row.survivors / row.alive for row in done),
        "MB per peer and round": _mean((row.bulk + row.control) / row.alive / 1e6 for row in done),
        "of that control": _mean(row.control / row.alive / 1e6 for row in done),
        "state fetched": _mean(row.state / row.alive / 1e6 for row in done),
        "round s": _median(row.seconds for row in done),
        "slowest included s": _median(row.slowest for row in done),
        "round / slowest": _median(row.seconds / row.slowest for row in done if row.slowest),
        "virtual s": round(globe.now),
        "trace": globe.trace.hexdigest()[:16],
    }


def _mean(values: Any) -> float | None:
    kept = list(values)
    return round(statistics.fmean(kept), 2) if kept else None


def _median(values: Any) -> float | None:
    kept = list(values)
    return round(statistics.median(kept), 2) if kept else None


def main() -> int:
    """Run, print, write; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, nargs="+", default=[1000], help="one or several sizes, one row each")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parameters", type=int, default=10_000_000, help="of the model that frames are counted for")
    parser.add_argument("--churn", type=float, default=0.1, help="share of the living that dies in a minute")
    parser.add_argument("--name", default="sim", help="of the files in benchmarks/out")
    given = parser.parse_args()
    rows, series, broken = [], {}, 0
    for peers in given.peers:
        began = time.process_time()
        with cheap():
            globe = run(peers, given.rounds, given.seed, given.parameters, given.churn, note=True)
        rows.append({**summary(globe, peers), "cpu s": round(time.process_time() - began)})
        series[peers] = [asdict(row) for row in globe.rounds]
        broken += len(globe.watch.broken) + len(globe.divergent())
    path = report(given.name, rows, title=f"{given.rounds} rounds, {given.churn:.0%} churn a minute, seed {given.seed}")
    path.with_name(f"{given.name}-rounds.json").write_text(json.dumps(series, indent=1) + "\n")
    picture = Path(OUT) / f"{given.name}.png"
    draw(picture, {size: [Round(**row) for row in found] for size, found in series.items()})
    print(f"{path}\n{picture}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
