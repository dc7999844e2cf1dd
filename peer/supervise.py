"""Everything around a running peer: its folder and lock, reporters, log, metrics, and signals.

The first Ctrl-C leaves in good order, the second at once. SIGUSR1 writes all stacks to the log.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import Any

from dht import logs
from dht.errors import RoundError, StorageError
from dht.identity import Identity
from dht.lock import FolderLock
from peer.config import PeerConfig
from peer.events import ErrorReporter, JsonReporter, LineReporter, Reporter, Tee
from peer.live import LiveReporter
from peer.status import MetricsServer, StatusReporter

GRACE = 10.0
"""Seconds that a peer may take to leave and save after the first signal."""
EXIT_SECOND_INTERRUPT = 130


@contextmanager
def data_folder(config: PeerConfig) -> Iterator[None]:
    """The peer's folder, locked, with its identity in it, and the log open.

    Raises LockedError, IdentityError, StorageError.
    """
    with ExitStack() as resources:
        resources.enter_context(FolderLock(config.data_dir))
        Identity.load_or_create(config.identity_path)
        try:
            log = resources.enter_context(config.log_path.open("a", encoding="utf-8"))
        except OSError as error:
            remedy = "name another file with --log-file"
            raise StorageError(f"cannot write the log {config.log_path}: {error.strerror}", remedy=remedy) from error
        logs.configure(log_format=config.log_format, stream=log)
        resources.callback(logs.configure)
        faulthandler.register(signal.SIGUSR1, file=log, all_threads=True)
        resources.callback(faulthandler.unregister, signal.SIGUSR1)
        yield


@contextmanager
def reporting(config: PeerConfig) -> Iterator[Reporter]:
    """Where this peer's events go: status file and metrics always; JSON, lines or a live view as asked for."""
    with ExitStack() as resources:
        status = StatusReporter(config.status_path)
        if config.metrics_port:
            resources.callback(MetricsServer(status, config.metrics_port).close)
        shown: Reporter
        if config.json:
            shown = JsonReporter()
        elif config.quiet:
            shown = ErrorReporter()
        elif sys.stderr.isatty():
            shown = resources.enter_context(LiveReporter())
        else:
            shown = LineReporter()
        yield Tee(status, shown)


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP as an asyncio event, from the moment of entering the context.

    Plain signal handlers instead of the loop's: they also act while the loop is blocked by a long import.
    """

    def __init__(self) -> None:
        self.count = 0
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def attach(self) -> asyncio.Event:
        """The event that the first signal sets, in the running loop; it is set already if the signal came before."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        if self.count:
            self._stop.set()
        return self._stop

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1 and number == signal.SIGINT:
            # Nothing to save: state on disk is whole at any moment. p2pd dies with us.
            if sys.stderr.isatty():
                os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # a live view hides the cursor
            os._exit(EXIT_SECOND_INTERRUPT)
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)


async def supervise(run: Callable[[asyncio.Event], Awaitable[None]], reporter: Reporter, signals: StopSignals) -> None:
    """Await `run(stop)` and pass on what it raises; once `stop` is set it has GRACE seconds to return.

    A peer that overruns them ends with the process, exit code 75: what blocks it may be a thread, which nothing ends.
    """
    asked, stop = signals.attach(), asyncio.Event()
    peer = asyncio.ensure_future(run(stop))
    stopped = asyncio.ensure_future(asked.wait())
    try:
        await asyncio.wait({peer, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not peer.done():
            reporter.event("leaving", reason="finishing and saving; Ctrl-C again exits at once")
            stop.set()
            await asyncio.wait({peer}, timeout=GRACE)
        if not peer.done():
            error = RoundError(
                f"leaving took over {GRACE:g} s and was cut short", remedy="the last saved state is whole"
            )
            reporter.event("error", code=error.code, message=error.message, remedy=error.remedy)
            os._exit(error.exit_code)
        await peer
    finally:
        stopped.cancel()
