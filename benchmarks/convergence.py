"""How good a model peers get for how little traffic: `python -m benchmarks.convergence` (`--quick`: in minutes).

Four peers' text, equal tokens, the inner learning rate tuned for each row. *Token efficiency* is the number of tokens
that a centralized run needs for the same held-out loss, over the tokens used: `efficiency` against AdamW, which the
field compares with, `efficiency_muon` against Muon, which is the better one here and the one inside most rows. *Bytes
ratio* is what each peer would send in a float32 all-reduce of every step, over what it sends here, mask headroom and
reducer copies counted. *Time efficiency* is the time of the centralized run in a data centre, over that of the peers on
a line of 20 Mbit/s.

Runs are kept in benchmarks/out/convergence, so that what was cut off goes on, and the table is made anew from them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks import report
from benchmarks.convergence_picture import draw
from benchmarks.convergence_presets import FULL, REFERENCES, Preset, at_rates, quick, reference_of
from benchmarks.convergence_run import Spec, run
from benchmarks.convergence_table import rows_of
from benchmarks.convergence_task import task

RESULTS = Path(__file__).parent / "results"
KEPT = report.OUT / "convergence"
COLUMNS = ("preset", "split", "start", "size", "rate", "loss", "spread", "efficiency", "efficiency_bound",
           "efficiency_muon", "bytes_ratio", "kilobytes", "seconds", "time_efficiency", "seeds")  # fmt: skip


class Runs:
    """Runs that are kept on disk by what they are; missing ones are made by worker processes."""

    def __init__(self, workers: int, *, kept_only: bool = False) -> None:
        self._workers, self._kept_only = workers, kept_only
        KEPT.mkdir(parents=True, exist_ok=True)

    def get(self, specs: Iterable[Spec]) -> list[dict[str, Any]]:
        """The results of these runs, in order; with `kept_only` of those that are there."""
        wanted = list(specs)
        if self._kept_only:
            wanted = [spec for spec in wanted if _file(spec).exists()]
        missing = {_file(spec): spec for spec in wanted if not _file(spec).exists()}
        with ProcessPoolExecutor(self._workers) as pool:
            made = {pool.submit(_make, spec, path): spec for path, spec in missing.items()}
            for count, future in enumerate(as_completed(made), 1):
                result, spec = future.result(), made[future]
                facts = f"rate {spec.rate:g} seed {spec.seed} {spec.tokens / 1e6:.2f}M tokens"
                print(f"{count}/{len(made)} {spec.preset}: {facts}: {result['loss']:.4f}", file=sys.stderr, flush=True)
        return [json.loads(_file(spec).read_text()) for spec in wanted]


def _file(spec: Spec) -> Path:
    """By everything but the row's name, since rows may share runs, and by what is not as usual."""
    usual = asdict(Spec(preset=spec.preset))
    facts = {name: value for name, value in asdict(spec).items() if value != usual[name]}
    digest = sha256(json.dumps([facts, task(spec.split).corpus], sort_keys=True).encode()).hexdigest()[:24]
    return KEPT / f"{digest}.json"


def _make(spec: Spec, path: Path) -> dict[str, Any]:
    result = run(spec)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(result))
    partial.replace(path)
    return result


def best(tuned: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run with the least loss; one that diverged never is."""
    return min(tuned, key=lambda row: row["loss"] if row["loss"] == row["loss"] else float("inf"))


def measure(presets: Sequence[Preset], runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """By row: the best rate's runs, one for each seed."""
    runs.get(spec for preset in presets for spec in at_rates(preset))
    found = {}
    for preset in presets:
        tuned = runs.get(at_rates(preset))
        if not tuned:
            continue
        chosen = best(tuned)
        found[preset.name] = [replace(preset.spec, rate=chosen["rate"], seed=seed) for seed in preset.seeds]
    runs.get(spec for specs in found.values() for spec in specs)
    return {name: runs.get(specs) for name, specs in found.items()}


def curves(presets: Sequence[Preset], best_runs: dict[str, list[dict[str, Any]]], runs: Runs) -> dict[str, Any]:
    """By centralized row: (tokens, loss) of whole runs of different lengths, the rate scaled with none of them."""
    specs: dict[str, list[Spec]] = {}
    for preset in presets:
        if preset.spec.method == "central" and preset.name in best_runs:
            chosen = replace(preset.spec, rate=best_runs[preset.name][0]["rate"])
            shares = REFERENCES.get(preset.name, ())
            specs[preset.name] = [replace(chosen, tokens=int(chosen.tokens * share)) for share in (*shares, 1.0)]
    runs.get(spec for some in specs.values() for spec in some)
    return {name: sorted((row["tokens"], row["loss"]) for row in runs.get(some)) for name, some in specs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few small rows; writes nothing into results/")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--rows", default="", help="only these rows of the table, separated by semicolons")
    parser.add_argument("--kept", action="store_true", help="make the table of the runs that are there, and no more")
    arguments = parser.parse_args()
    presets = quick() if arguments.quick else FULL
    if arguments.rows:
        named = set(arguments.rows.split(";"))
        wanted = named | {reference_of(preset.spec) for preset in presets if preset.name in named}
        presets = tuple(preset for preset in presets if preset.name in wanted)
    runs = Runs(arguments.workers, kept_only=arguments.kept)
    found = measure(presets, runs)
    table = rows_of(presets, found, curves(presets, found, runs))
    report.show(table, title="Convergence, four peers", columns=COLUMNS)
    if not arguments.quick and not arguments.rows:
        RESULTS.mkdir(exist_ok=True)
        facts = {"rows": table, "corpus": task("iid").corpus, "machine": report.machine()}
        (RESULTS / "convergence.json").write_text(json.dumps(facts, indent=1) + "\n")
        draw(RESULTS / "convergence.png", table)


if __name__ == "__main__":
    main()
