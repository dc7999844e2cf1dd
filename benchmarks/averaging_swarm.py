"""A swarm of benchmark peers: each a process of its own, held at a barrier before each round, metered together.

A peer is `serve(pipe, spec)`. It sends ("address", text), gets the list of all addresses, and from then on sends
("ready", None) when a round can start, gets "go", and sends ("done", moments and meters) when the round is over.
Moments are CLOCK_MONOTONIC, which all processes of one machine share.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

PATIENCE = 180.0
SAMPLE = 61
"""Results are compared with the true mean in every 61st element, outside the clock."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What one peer has to do."""

    index: int
    peers: int
    parameters: int
    folder: str
    expected: str  # file of the true mean's sample
    ring_bits: int = 16
    copies: int = 0
    chunk_elements: int = 65536
    direct: bool = True
    compression: str = ""
    profile: str = ""
    audit_share: float = 0.125


Serve = Callable[[Connection, Spec], None]


@dataclass(frozen=True, slots=True)
class Round:
    """One measured round: the start, each peer's report, CPU seconds from there until all are ready for the next."""

    started: float
    reports: tuple[dict[str, Any], ...]
    cpu_seconds: float
    daemon_seconds: float  # of these in p2pd
    matchmaking_seconds: float  # from the end of the round before until all were ready for this one

    def until(self, moment: str) -> float:
        """Seconds from the start until the last peer reached `moment`."""
        return max(float(report[moment]) for report in self.reports) - self.started


def update(index: int, parameters: int) -> npt.NDArray[np.float32]:
    """The random float32 update of a peer, which all can compute to check the mean."""
    return np.random.default_rng(index).standard_normal(parameters, dtype=np.float32) * np.float32(1e-3)


def write_mean_sample(path: str, parameters: int, peers: int) -> None:
    """Put the true mean of all peers' updates, every `SAMPLE`-th element, where the peers find it."""
    total = np.zeros(-(-parameters // SAMPLE), np.float32)
    for index in range(peers):
        total += update(index, parameters)[::SAMPLE]
    np.save(path, total / np.float32(peers))


class Swarm:
    """`peers` processes of one system. Use it as a context manager: no process outlives it."""

    def __init__(self, serve: Serve, specs: list[Spec]) -> None:
        self.specs = specs
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for spec in specs:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, spec))
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._ready_at = self._done_at = 0.0

    def __enter__(self) -> Swarm:
        try:
            addresses = self._gather("address")
            for pipe in self._pipes:
                pipe.send(addresses)
            self._gather("ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        families = [psutil.Process(p.pid).children(recursive=True) for p in self._processes if p.is_alive()]
        for pipe in self._pipes:
            try:
                pipe.send("stop")
            except OSError:
                continue
        deadline = time.monotonic() + 10
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        for child in (child for family in families for child in family):
            if child.is_running():
                child.kill()

    def run_round(self) -> Round:
        """Let all peers go at once, wait until all hold the result and are ready for the next round."""
        matchmaking = self._ready_at - self._done_at if self._done_at else 0.0
        time.sleep(0.3)  # what the last round left to do in the background is not this one's
        before = self._cpu()
        started = time.monotonic()
        for pipe in self._pipes:
            pipe.send("go")
        reports = self._gather("done")
        self._done_at = time.monotonic()
        self._gather("ready")
        self._ready_at = time.monotonic()
        after = self._cpu()
        return Round(started, tuple(reports), after[0] - before[0], after[1] - before[1], matchmaking)

    def _gather(self, kind: str) -> list[Any]:
        found: dict[int, Any] = {}
        deadline = time.monotonic() + PATIENCE
        while len(found) < len(self._pipes):
            waiting = [pipe for i, pipe in enumerate(self._pipes) if i not in found]
            arrived = wait(waiting, max(0.0, deadline - time.monotonic()))
            if not arrived:
                what = self.specs[0].compression or f"{self.specs[0].ring_bits} bit"
                raise TimeoutError(f"{len(waiting)} of {len(self._pipes)} peers ({what}) did not say {kind!r}")
            for pipe in arrived:
                assert isinstance(pipe, Connection)
                name, value = pipe.recv()
                if name != kind:
                    raise RuntimeError(f"a peer said {name!r} ({value}) instead of {kind!r}")
                found[self._pipes.index(pipe)] = value
        return [found[i] for i in range(len(self._pipes))]

    def _cpu(self) -> tuple[float, float]:
        """CPU seconds so far: of all processes of all peers, and of the libp2p daemons among them."""
        total = daemons = 0.0
        for process in self._processes:
            parent = psutil.Process(process.pid)
            for one in (parent, *parent.children(recursive=True)):
                times = one.cpu_times()
                total += times.user + times.system
                if one.name() == "p2pd":
                    daemons += times.user + times.system
        return total, daemons


def quiet_environment() -> None:
    """One thread per peer, and threads that wait without spinning. Inherited by the peers; set it before they start."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
