"""Seconds per averaging round, ours beside hivemind's: `python -m benchmarks.averaging [--cases 1Mx4,10Mx8]`.

All peers are processes on this machine. A system and its baseline take turns, round by round, so that a busy moment
of the machine meets both. Medians over the rounds after one to warm up.

Ours: masks, survivors' certificate, signed sums; `seconds` run from the moment that all peers have their update until
all hold every sum, checked against its author's signed hash, under a certified survivor set; `decoded_seconds` until
all have the mean as float32; `certificate_seconds` until all hold the committee's certificate of the round's record.
hivemind: from the moment that all peers may begin all-reduce (the group has formed) until the last step is done.
`time_ratio`: to hivemind's Float16, for the 8-bit ring to its Uniform8Bit. `cpu_seconds`: all processes of all peers
for a whole round, joining included. `security_share`: the part of these that keys, shares, masks, votes and unmasking
take; `agreeing_share`: what signed lists of hashes, audits and the committee take. Bytes: one peer's
mean, as handed to the network. `wrong`: largest share of a peer's result that is not the mean.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from typing import Any

from benchmarks import averaging_hivemind, averaging_ours
from benchmarks.averaging_swarm import Round, Spec, Swarm, quiet_environment, write_mean_sample
from benchmarks.report import report

PARTS = ("encode", "mask", "unmask", "keys", "shares", "votes", "hashes", "agreement", "protocol", "hash", "decode")
SYSTEMS = (
    "murmuration",
    "murmuration-copies",
    "murmuration-8bit",
    "murmuration-8bit-copies",
    "hivemind-float16",
    "hivemind-uniform8",
)
"""Ours: no copies of reducers' own chunks; one copy, the default of a run; the same in the 8-bit ring. `-libp2p` does
without direct connections. Also: hivemind-none."""
BASELINES = {8: "uniform8", 16: "float16", 32: "float16"}


def count(text: str) -> int:
    """`10M` or `65536` as a number."""
    return int(float(text[:-1]) * 1_000_000) if text.upper().endswith("M") else int(text)


def case(text: str) -> tuple[int, int]:
    """`10Mx8` as parameters and peers."""
    parameters, _, peers = text.partition("x")
    return count(parameters), int(peers)


def start(system: str, parameters: int, peers: int, arguments: argparse.Namespace, folder: str, expected: str) -> Swarm:
    """The processes of one system. The baseline's swarm needs its first peer's address before the others join."""
    name, *variants = system.split("-")
    specs = [
        Spec(
            index,
            peers,
            parameters,
            folder,
            expected,
            8 if "8bit" in variants else arguments.ring_bits,
            int("copies" in variants),
            arguments.chunk_elements,
            "libp2p" not in variants,
            variants[0] if name == "hivemind" else "",
            arguments.profile,
        )
        for index in range(peers)
    ]
    return Swarm(averaging_ours.serve if name == "murmuration" else averaging_hivemind.serve, specs)


def row(system: str, swarm: Swarm, rounds: list[Round]) -> dict[str, Any]:
    """Medians of a system's measured rounds."""
    spec, ours = swarm.specs[0], system.startswith("murmuration")

    def median(values: list[float]) -> float:
        return statistics.median(values)

    def mean(field: str) -> float:
        return median([statistics.mean(report.get(field, 0.0) for report in one.reports) for one in rounds])

    line: dict[str, Any] = {
        "system": "murmuration" if ours else "hivemind",
        "variant": f"{spec.ring_bits} bit, {spec.copies} copies{'' if spec.direct else ', libp2p'}"
        if ours
        else spec.compression,
        "parameters": spec.parameters,
        "peers": spec.peers,
        "rounds": len(rounds),
        "seconds": median([one.until("sum") for one in rounds]),
        "seconds_low": min(one.until("sum") for one in rounds),
        "seconds_high": max(one.until("sum") for one in rounds),
        "matchmaking_seconds": median([one.matchmaking_seconds for one in rounds]),
        "cpu_seconds": median([one.cpu_seconds for one in rounds]),
        "p2pd_cpu_seconds": median([one.daemon_seconds for one in rounds]),
        "bytes_up": round(mean("up")),
        "bytes_down": round(mean("down")),
        "wrong": max(float(report["wrong"]) for one in rounds for report in one.reports),
    }
    if ours:
        line |= {"ring_bits": spec.ring_bits, "copies": spec.copies, "chunk_elements": spec.chunk_elements}
        line["decoded_seconds"] = median([one.until("decoded") for one in rounds])
        line["certificate_seconds"] = median([one.until("decided") for one in rounds])
        line |= {f"{part}_cpu_seconds": mean(f"cpu_{part}") for part in PARTS}
        # What the event loop's thread does besides running the protocol and hashing is moving chunks.
        line["send_cpu_seconds"] = mean("cpu_send")
        whole = statistics.mean([one.cpu_seconds for one in rounds])
        for share in ("security", "agreeing"):
            line[f"{share}_share"] = (
                statistics.mean([sum(each[share] for each in one.reports) for one in rounds]) / whole
            )
    else:
        line["compression"] = spec.compression
    return line


def families(systems: list[str]) -> list[list[str]]:
    """Systems that are compared with each other: those of the 8-bit ring, and the others. Only one family's processes
    are in memory at a time: eight peers of six systems would need more than 24 GiB.
    """
    small = [system for system in systems if {"8bit", "uniform8"} & set(system.split("-"))]
    return [family for family in ([system for system in systems if system not in small], small) if family]


def measure(parameters: int, peers: int, systems: list[str], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per system for one size and number of peers."""
    with ExitStack() as stack:
        expected = f"{stack.enter_context(tempfile.TemporaryDirectory())}/mean.npy"
        write_mean_sample(expected, parameters, peers)
        swarms: dict[str, Swarm] = {}
        for system in systems:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            swarms[system] = stack.enter_context(start(system, parameters, peers, arguments, folder, expected))
        rounds: dict[str, list[Round]] = {system: [] for system in swarms}
        for turn in range(arguments.runs + 1):
            print(f"{parameters} x {peers}: round {turn} of {arguments.runs}", file=sys.stderr)
            for system, swarm in swarms.items():
                one = swarm.run_round()
                if turn:
                    rounds[system].append(one)
        rows = [row(system, swarms[system], rounds[system]) for system in swarms]
    for line in rows:
        kind = line.get("compression") or BASELINES[line["ring_bits"]]
        baseline = next((other for other in rows if other.get("compression") == kind), None)
        if baseline:
            line["baseline"] = kind
            line["time_ratio"] = line["seconds"] / baseline["seconds"]
            line["bytes_ratio"] = line["bytes_up"] / baseline["bytes_up"]
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The narrow tables: rounds, then where our CPU time goes."""
    from rich.console import Console
    from rich.table import Table

    wide = ("system", "variant", "parameters", "peers", "seconds", "time_ratio", "certificate_seconds", "cpu_seconds")
    parts = (
        "variant",
        "parameters",
        "peers",
        *(f"{part}_cpu_seconds" for part in (*PARTS, "send")),
        "p2pd_cpu_seconds",
        "security_share",
        "agreeing_share",
    )
    ours = [line for line in rows if line["system"] == "murmuration"]
    for title, columns, lines in (
        ("Seconds per round", (*wide, "bytes_up", "bytes_ratio"), rows),
        ("Murmuration: CPU seconds per peer and round (p2pd: of all peers)", parts, ours),
    ):
        table = Table(title=title)
        for column in columns:
            table.add_column(column.removesuffix("_cpu_seconds").replace("_", " "), justify="right")
        for line in lines:
            cells = (line.get(column) for column in columns)
            table.add_row(*("" if c is None else f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells))
        Console(width=150).print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases",
        type=lambda text: [case(part) for part in text.split(",")],
        default=[(10**6, 4), (10**6, 8), (10**7, 4), (10**7, 8)],
        help="1Mx4,10Mx16,50Mx4",
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--systems", type=lambda text: text.split(","), default=list(SYSTEMS))
    parser.add_argument("--ring-bits", type=int, default=16, choices=(8, 16, 32))
    parser.add_argument("--chunk-elements", type=int, default=131072)
    parser.add_argument("--profile", default="", help="file for a cProfile of the first of our peers")
    parser.add_argument("--name", default="averaging", help="name of the JSON file")
    arguments = parser.parse_args()
    quiet_environment()
    rows: list[dict[str, Any]] = []
    for parameters, peers in arguments.cases:
        for systems in families(arguments.systems):
            rows += measure(parameters, peers, systems, arguments)
        show(rows[-len(arguments.systems) :])
    print(report(arguments.name, rows, columns=("system", "variant", "parameters", "peers", "seconds", "time_ratio")))


if __name__ == "__main__":
    main()
