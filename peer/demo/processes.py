"""Child processes that never outlive the demo: own process groups, killed when we end, whatever ends us.

Each child writes JSON events on stdout, one per line; a copy and its stderr go to files named after it.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

OnEvent: TypeAlias = Callable[[str, Mapping[str, Any]], None]
"""Called with the child's name and one of its events."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
LINE_LIMIT = 1 << 20
OWN_PREFIX = "MURMURATION_"


def _in_child() -> None:
    """Between fork and exec: Linux is to kill the child when we die, also by SIGKILL (prctl(2))."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(eq=False)
class Child:
    """One process of the swarm, and the last event of each name that it reported; `ended` is the very last."""

    name: str
    log: Path
    process: asyncio.subprocess.Process
    last: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    output: list[str] = field(default_factory=list)
    """Lines on its stdout that are no events."""
    reader: asyncio.Task[None] | None = None

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self.process.returncode

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process, or to its whole group; nothing happens if it has ended."""
        if self.code is None:
            try:
                (os.killpg if group else os.kill)(self.process.pid, number)
            except ProcessLookupError:
                return

    def words(self, lines: int = 12) -> str:
        """The end of what it wrote on stderr."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Swarm:
    """The children, working in `folder`; an async context manager that leaves none behind."""

    def __init__(self, on_event: OnEvent, environment: Mapping[str, str], folder: Path) -> None:
        self.children: dict[str, Child] = {}
        self._on_event = on_event
        # Settings of the user's own peer are not for the demo's.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OWN_PREFIX)}
        self._environment = {**inherited, **environment}
        self._folder = folder
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Swarm:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill_all()

    async def start(self, name: str, command: Sequence[str]) -> Child:
        """Start a child, or start one that has ended again."""
        log, events = self._folder / f"{name}.stderr", self._folder / f"{name}.events"
        with log.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                cwd=self._folder,
                env=self._environment,
                limit=LINE_LIMIT,
                # A session of its own: the terminal's Ctrl-C reaches us alone, and we decide who ends when.
                start_new_session=True,
                preexec_fn=_in_child,
            )
        child = self.children[name] = Child(name, log, process)
        child.reader = asyncio.create_task(self._read(child, events))
        return child

    async def _read(self, child: Child, events: Path) -> None:
        stdout = child.process.stdout
        assert stdout is not None  # it was asked for
        with events.open("ab", buffering=0) as copy:
            async for line in stdout:
                try:
                    event = json.loads(line)
                    name = str(event["event"])
                except (ValueError, KeyError, TypeError):
                    child.output.append(line.decode(errors="replace"))
                    continue
                copy.write(line)
                self._take(child, name, event)
        self._take(child, "ended", {"event": "ended", "code": await child.process.wait()})

    def _take(self, child: Child, name: str, event: Mapping[str, Any]) -> None:
        child.last[name] = event
        self._on_event(child.name, event)
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until `condition` holds, looking again at every event; False when that takes over `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            return condition()
        return True

    async def stop(self, name: str, seconds: float) -> None:
        """Ask a child to end and wait for at most `seconds`."""
        child = self.children[name]
        child.signal(signal.SIGTERM)
        if child.reader is not None:
            await asyncio.wait({child.reader}, timeout=seconds)

    async def kill_all(self) -> None:
        """SIGKILL every process group that is left, and reap it."""
        for child in self.children.values():
            child.signal(signal.SIGKILL, group=True)
        readers = [child.reader for child in self.children.values() if child.reader is not None]
        await asyncio.gather(*readers, return_exceptions=True)
