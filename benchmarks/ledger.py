"""What the ledger costs and how fast it is: `python -m benchmarks.ledger`.

Gas as real transactions on anvil; what a checkpoint costs on two kinds of rollup at stated prices; checkpoints and
indexed events per second on the embedded chain and on anvil. Prices are assumptions: all are arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks import ledger_gas, ledger_speed
from benchmarks.ledger_cost import Prices, costs
from benchmarks.report import show, write

MEMORY_AIM_MB = 2_000
_QUICK = {"checkpoints": 5, "events": 100}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of everything that is timed; the median counts")
    parser.add_argument("--checkpoints", type=int, default=50, help="in each run")
    parser.add_argument("--events", type=int, default=2_000, help="in the history that is indexed")
    parser.add_argument("--quick", action="store_true", help=f"as {_QUICK}: a look, no figures to quote")
    for price in fields(Prices):
        name = f"--{price.name.replace('_', '-')}"
        parser.add_argument(name, type=type(price.default), default=price.default, help="%(default)s")
    found = parser.parse_args(given)
    if found.quick:
        vars(found).update(_QUICK)
    return found


async def speed(settings: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of `benchmarks.ledger_speed`, told one by one."""
    rows = []
    async for row in ledger_speed.measure(settings.checkpoints, settings.events, settings.runs):
        print(f"{row['operation']} ({row['chain']}): {row['median']:.4g} {row['unit']}", file=sys.stderr)
        rows.append(row)
    return rows


def run(settings: argparse.Namespace) -> Path:
    """Measure, print, write `benchmarks/out/ledger.json`. Returns its path."""
    prices = Prices(**{price.name: getattr(settings, price.name) for price in fields(Prices)})
    gas = ledger_gas.measure()
    show(gas, title="Gas on anvil (prague), optimizer 200 runs")
    by_operation = {row["operation"]: row["gas"] for row in gas}
    cost = costs(by_operation, asyncio.run(ledger_speed.transactions()), prices)
    show(cost, title="Cost of a checkpoint at the stated prices, and of a year with one each ten minutes")
    show([asdict(prices)], title="Stated prices: assumptions, not measured")
    timed = asyncio.run(speed(settings))
    show(timed, title="Speed: medians")
    memory = {"peak_mb": _peak_mb(), "aim_mb": MEMORY_AIM_MB}
    show([memory], title="Memory")
    content = {"gas": gas, "cost": cost, "prices": asdict(prices), "speed": timed, "memory": memory}
    return write("ledger", content)


def _peak_mb() -> float:
    """The most that this process and its largest child ever had, in MB."""
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(peaks) * (1 if sys.platform == "darwin" else 1024) / 1e6


def main() -> None:
    """Command line."""
    print(run(arguments()), file=sys.stderr)


if __name__ == "__main__":
    main()
