"""The four peers' processes: started, told what the rounds gave, killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dht import die_with_parent
from tests.ledger.e2e.peer_process import Settings

ROOT = Path(__file__).parents[3]


class PeerProcess:
    """One peer. `events` grows while it runs, over all its lives; what is on its disk stays when it is killed."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self._folder = settings, folder
        self.number = settings.number
        self.events: list[dict[str, Any]] = []
        self.process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self.stderr = folder / f"{self.number}.stderr"

    async def start(self, round_: int) -> None:
        """Begin, with the records up to a round."""
        file = self._folder / f"{self.number}.json"
        file.write_text(json.dumps(asdict(self.settings)))
        module = "tests.ledger.e2e.peer_process"
        with self.stderr.open("ab") as errors:
            # It dies with the tests even if these are killed, and is in a process group of its own.
            shim = [sys.executable, "-I", "-S", str(Path(die_with_parent.__file__)), str(os.getpid())]
            self.process = await asyncio.create_subprocess_exec(
                *(*shim, sys.executable, "-m", module, str(file)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                cwd=self._folder,  # a Unix socket's path must be short
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
        self._reader = asyncio.create_task(self._read(self.process))
        self.release(round_)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self.events.append(json.loads(line))

    def release(self, round_: int) -> None:
        """It has the records up to this round now."""
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(json.dumps({"round": round_}).encode() + b"\n")

    async def kill(self) -> None:
        """SIGKILL the process group; nothing that it would have done at its end is done."""
        if self.process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()
        assert self._reader is not None
        await self._reader
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process = None

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.returncode is None

    def last(self, event: str) -> dict[str, Any]:
        """Its newest event of this name; empty when there was none."""
        return next((each for each in reversed(self.events) if each["event"] == event), {})

    def rows(self, file: str, query: str) -> list[tuple[Any, ...]]:
        """What one of its databases says: `guard.sqlite`, `index.sqlite`, `wallet/transactions.sqlite`."""
        (path,) = Path(self.settings.folder).glob(f"ledger/*/{file}")
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
            return database.execute(query).fetchall()

    def evidence(self) -> list[Path]:
        """Proofs of equivocation that it keeps."""
        return list(Path(self.settings.folder).glob("ledger/*/evidence/*"))
