"""anvil, if it is on this machine: found, started in a process group of its own, and never left behind."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from os import getpid
from pathlib import Path

import dht
import ledger
from dht.errors import UnreachableError

PACKAGE = "@foundry-rs/anvil-linux-amd64"
_SHIM = Path(next(iter(dht.__path__))) / "die_with_parent.py"
_CONTRACTS = Path(next(iter(ledger.__path__))) / "contracts"
_START_TIMEOUT = 30.0
_STOP_TIMEOUT = 5.0
_log = logging.getLogger(__name__)


def find(folders: Sequence[Path] | None = None) -> Path | None:
    """anvil on `PATH`, else in a `node_modules`: of the working folder, of those above it, of the contracts."""
    if found := shutil.which("anvil"):
        return Path(found)
    here = Path.cwd()
    for folder in (here, *here.parents, _CONTRACTS) if folders is None else folders:
        for name in (".bin/anvil", f"{PACKAGE}/bin/anvil"):
            path = folder / "node_modules" / name
            if path.is_file():
                return path
    return None


@asynccontextmanager
async def running(
    binary: Path, *, port: int = 0, chain_id: int = 31_337, state: Path | None = None, options: Sequence[str] = ()
) -> AsyncIterator[str]:
    """Run anvil; yields its URL. `state`: a file that keeps the chain between runs, written when it stops.

    Raises UnreachableError when it does not start.
    """
    command = [str(binary), "--host", "127.0.0.1", "--port", str(port), "--chain-id", str(chain_id), *options]
    if state is not None:
        command += ["--state", str(state)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        str(_SHIM),
        str(getpid()),
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    drain: asyncio.Task[None] | None = None
    try:
        try:
            async with asyncio.timeout(_START_TIMEOUT):
                url = await _listening(process.stdout)
        except TimeoutError:
            raise UnreachableError(f"{binary} did not start in time", remedy="--chain embedded") from None
        drain = asyncio.create_task(_drain(process.stdout))
        yield url
    finally:
        await _stop(process)
        if drain is not None:
            await drain


async def _listening(output: asyncio.StreamReader) -> str:
    """The URL, once anvil says that it listens."""
    seen = ""
    async for line in output:
        text = line.decode(errors="replace").strip()
        if text.startswith("Listening on "):
            return "http://" + text.removeprefix("Listening on ")
        seen = text or seen
    raise UnreachableError(f"anvil ended before it listened: {seen}", remedy="--chain embedded")


async def _drain(output: asyncio.StreamReader) -> None:
    async for line in output:
        _log.debug("%s", line.decode(errors="replace").rstrip())


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
