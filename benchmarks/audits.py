"""What auditing sums costs: `python -m benchmarks.audits [--parameters 2.5M] [--peers 8]`.

The same round with no audits, with the default share and with a full audit; the three take turns, round by round.
`certificate_seconds` run from the moment that all peers have their update until all hold the committee's certificate
of the round's record, which waits for the audits. Bytes: one peer's mean, as handed to libp2p.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from typing import Any

from benchmarks import averaging_ours
from benchmarks.averaging import count, row
from benchmarks.averaging_swarm import Round, Spec, Swarm, quiet_environment, write_mean_sample
from benchmarks.report import report

SHARES = (0.0, 0.125, 1.0)
_KEPT = ("certificate_seconds", "seconds", "cpu_seconds", "bytes_up", "bytes_down", "wrong")


def measure(parameters: int, peers: int, runs: int) -> list[dict[str, Any]]:
    """One row per share: medians, and how much more than without audits."""
    with ExitStack() as stack:
        expected = f"{stack.enter_context(tempfile.TemporaryDirectory())}/mean.npy"
        write_mean_sample(expected, parameters, peers)
        swarms: dict[float, Swarm] = {}
        for share in SHARES:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            specs = [Spec(i, peers, parameters, folder, expected, copies=1, audit_share=share) for i in range(peers)]
            swarms[share] = stack.enter_context(Swarm(averaging_ours.serve, specs))
        rounds: dict[float, list[Round]] = {share: [] for share in SHARES}
        for turn in range(runs + 1):
            print(f"round {turn} of {runs}", file=sys.stderr)
            for share, swarm in swarms.items():
                one = swarm.run_round()
                if turn:
                    rounds[share].append(one)
        rows: list[dict[str, Any]] = []
        for share in SHARES:
            full = row("murmuration", swarms[share], rounds[share])
            line = {"audit_share": share, "parameters": parameters, "peers": peers, "rounds": runs}
            line |= {name: full[name] for name in _KEPT}
            for name in ("certificate_seconds", "cpu_seconds", "bytes_up"):
                line[f"{name}_more"] = line[name] / rows[0][name] - 1 if rows else 0.0
            rows.append(line)
        return rows


def main() -> None:
    """Measure, print, write the JSON report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=count, default="2.5M")
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    quiet_environment()
    rows = measure(arguments.parameters, arguments.peers, arguments.runs)
    print(report("audits", rows))


if __name__ == "__main__":
    main()
