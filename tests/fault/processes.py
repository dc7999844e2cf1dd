"""A swarm of real processes: console commands, their JSON events as they come, faults by signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 150.0
"""Seconds for what takes a few on an idle machine. Only a failing test waits that long."""


def one_swarm(name: str) -> list[pytest.MarkDecorator]:
    """Marks of a module whose tests share a swarm, which one worker of pytest runs in their order."""
    return [
        pytest.mark.timeout(4 * PATIENCE),
        pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc"),
        pytest.mark.xdist_group(name),
    ]


class Process:
    """One command in a process group of its own; `events` grows while it runs."""

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        folder: Path,
        changed: threading.Condition,
        nice: int,
        prefix: Sequence[str] = (),
    ) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MURMURATION_")}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.name, self._changed = name, changed
        self.events: list[dict[str, Any]] = []
        self.stderr = folder / f"{name}.stderr"
        self._copy = (folder / f"{name}.events").open("ab", buffering=0)  # for whoever looks into a failure
        shim = [sys.executable, "-I", "-S", str(ROOT / "dht" / "die_with_parent.py"), str(os.getpid())]
        with self.stderr.open("ab") as errors:
            self.process = subprocess.Popen(
                # It dies with the tests even if these are killed; the shim also makes it a process group of its own.
                [*prefix, "nice", "-n", str(nice), *shim, sys.executable, "-m", module, *arguments, "--json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                env=environment,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._copy.write(line)
            with self._changed, suppress(ValueError):
                self.events.append(json.loads(line))
                self._changed.notify_all()
        self.process.wait()
        with self._changed:
            self._changed.notify_all()

    def state(self) -> str:
        """Its state as the kernel tells it: R, S, T for stopped, and so on; X when it is gone (Linux)."""
        return state_of(self.process.pid)

    @property
    def code(self) -> int | None:
        """Exit code once it has ended and all it wrote was read, negative for a signal."""
        return None if self._reader.is_alive() else self.process.returncode

    def named(self, event: str) -> list[dict[str, Any]]:
        """All its events of this name so far."""
        return [entry for entry in self.events if entry["event"] == event]

    def rounds(self) -> dict[int, dict[str, Any]]:
        """Its reports of decided rounds, by round."""
        return {entry["round"]: entry for entry in self.named("round")}

    def clean_up(self) -> None:
        """End the whole process group, whatever state it is in."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._copy.close()


class Swarm:
    """Starts processes in one folder and waits for what they report; `with` ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changed = threading.Condition()
        self.all: list[Process] = []

    def __enter__(self) -> Swarm:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.all:
            process.clean_up()

    def start(self, name: str, module: str, *arguments: str, nice: int = 0, prefix: Sequence[str] = ()) -> Process:
        """Run `PREFIX python -m MODULE ARGUMENTS --json`; with `nice` it yields to what starts later."""
        process = Process(name, module, arguments, self.folder, self.changed, nice, prefix)
        self.all.append(process)
        return process

    def wait(self, what: str, condition: Callable[[], bool], alive: Sequence[Process] = ()) -> None:
        """Wait until `condition` holds, looking again at every event. AssertionError at the deadline, or when one of
        `alive` ends, with what it said."""
        deadline = time.monotonic() + PATIENCE
        with self.changed:
            while not condition():
                for process in alive:
                    assert process.code is None, f"{process.name} ended with {process.code}: {last_words(process)}"
                left = deadline - time.monotonic()
                assert left > 0, f"waited in vain for: {what}\n{self.tell()}"
                self.changed.wait(min(left, 1.0))

    def tell(self) -> str:
        """The last event of every process, for a failing test."""
        return "\n".join(f"{p.name}: {p.code} {p.events[-1:]} {last_words(p)}" for p in self.all)


def last_words(process: Process) -> str:
    """The end of its stderr and its last error event."""
    return f"{process.named('error')[-1:]} {process.stderr.read_text()[-2000:]}"


def running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    return state_of(pid) not in "ZX"


def state_of(pid: int) -> str:
    """The state of a process in one letter, X when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "X"


def children(pid: int) -> list[int]:
    """Process ids of the direct children (Linux)."""
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
