"""A peer beside somebody's own training loop: the same node as `run-peer`'s, on an event loop in a thread of its own.

The thread ends when it is told to leave, when the run's last wanted round is certified, when something fails, and when
the training loop that started it is no longer on its thread's stack (an exception flew through it).
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import TypeAlias

from dht import exits
from dht.errors import MurmurationError, RoundError, StorageError
from dht.identity import Identity
from dht.lock import FolderLock
from peer.baton import Baton
from peer.config import PeerConfig
from peer.data import TokenData
from peer.events import ErrorReporter, LineReporter, Reporter, Tee
from peer.local_training import LocalTraining
from peer.manifest import Manifest
from peer.node import run_peer, state_folder
from peer.outer import Vector
from peer.status import MetricsServer, StatusReporter
from peer.store import StateStore
from peer.supervise import GRACE

Given: TypeAlias = tuple[LocalTraining, TokenData | None]
Run: TypeAlias = Callable[[PeerConfig, Manifest, Reporter, asyncio.Event, Given], Awaitable[None]]

log = logging.getLogger(__name__)
_LOOK = 0.25
"""Seconds between two looks at whether the training loop is still there."""
_LOGGERS = ("peer", "averaging", "dht", "ledger")
_running: set[PeerBeside] = set()


@dataclass(frozen=True, slots=True)
class Certified:
    """The newest certified round that is on disk; `parameters` is float32[D], memory-mapped."""

    round: int
    root: bytes
    parameters: Vector


class PeerBeside:
    """One peer in a thread. Everything it needs is checked and locked by the constructor, in the caller's thread."""

    def __init__(
        self, config: PeerConfig, manifest: Manifest, given: tuple[Baton, TokenData | None], run: Run = run_peer
    ) -> None:
        """Raises LockedError, IdentityError, StorageError."""
        self.error: MurmurationError | None = None
        self.certified: Certified | None = None
        self._config, self._manifest, self._run = config, manifest, run
        self._baton, self._heldout = given
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._asked = False
        with ExitStack() as resources:
            resources.enter_context(FolderLock(config.data_dir))
            Identity.load_or_create(config.identity_path)
            resources.enter_context(_log_file(config))
            self._reporter = resources.enter_context(_reporting(config))
            self._resources = resources.pop_all()
        self._watched: tuple[int, CodeType | None] = (0, None)
        self._thread = threading.Thread(target=self._life, name="murmuration", daemon=True)

    def start(self, loop_code: CodeType | None = None) -> None:
        """Begin. With `loop_code` the peer leaves when the calling thread is no longer inside that function."""
        self._watched = (threading.get_ident(), loop_code)
        _running.add(self)
        self._thread.start()

    def ask_to_leave(self) -> None:
        """Leave in good order, soon. Any thread, and signal handlers."""
        self._asked = True
        if self._loop is not None and self._stop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)

    def leave(self) -> None:
        """Leave in good order and wait for it. Raises RoundError when that takes too long."""
        self.ask_to_leave()
        self._baton.close()
        self._thread.join(GRACE)
        if self._thread.is_alive():
            raise RoundError(f"leaving took over {GRACE:g} s and was cut short", remedy="the last saved state is whole")

    def _life(self) -> None:
        try:
            with self._resources:
                try:
                    asyncio.run(self._take_part())
                except Exception as error:
                    self.error = _in_our_words(error)
                    self._reporter.event(
                        "error", code=self.error.code, message=self.error.message, remedy=self.error.remedy
                    )
                finally:
                    self.certified = self._newest()
        finally:
            _running.discard(self)
            self._baton.close()

    async def _take_part(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        if self._asked:
            return
        watch = asyncio.ensure_future(self._watch(self._stop))
        try:
            await self._run(self._config, self._manifest, self._reporter, self._stop, (self._baton, self._heldout))
        finally:
            watch.cancel()

    async def _watch(self, stop: asyncio.Event) -> None:
        """When an exception has ended the training loop, nobody takes the steps that the round waits for."""
        thread, code = self._watched
        while True:
            await asyncio.sleep(_LOOK)
            if code is not None and not _is_inside(sys._current_frames().get(thread), code):
                break
        log.warning("the training loop has ended without a word: leaving the run")
        stop.set()
        self._baton.close()

    def _newest(self) -> Certified | None:
        try:
            schema = self._baton.vector.schema(self._manifest.run_id, len(self._manifest.weights.domains))
            store = StateStore(state_folder(self._config.data_dir, self._manifest), schema)
            rounds = store.rounds()
            root = store.root(rounds[-1]) if rounds else None
            return None if root is None else Certified(rounds[-1], root, store.vectors(rounds[-1])[0])
        except MurmurationError as error:
            self.error = self.error or error
            return None


def _is_inside(frame: FrameType | None, code: CodeType) -> bool:
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


def _in_our_words(error: Exception) -> MurmurationError:
    """What went wrong as one of the project's errors; what nobody foresaw goes into the log with its traceback."""
    if isinstance(error, MurmurationError):
        return error
    fault = exits.fault_of_the_machine(error) if isinstance(error, OSError) else None
    if fault is not None:
        return fault
    log.error("crashed", exc_info=error)
    crash = MurmurationError(f"the peer crashed: {type(error).__name__}: {error}", remedy="this is a bug; see the log")
    crash.__cause__ = error
    return crash


@contextmanager
def _log_file(config: PeerConfig) -> Iterator[None]:
    """Our records go to the peer's log as well; the script's own logging stays as it set it up."""
    try:
        handler = logging.FileHandler(config.log_path, encoding="utf-8")
    except OSError as error:
        remedy = "name another file with log_file"
        raise StorageError(f"cannot write the log {config.log_path}: {error.strerror}", remedy=remedy) from error
    handler.setFormatter(logging.Formatter("{asctime} {levelname:<7} {message}", "%H:%M:%S", style="{"))
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        handler.close()


@contextmanager
def _reporting(config: PeerConfig) -> Iterator[Reporter]:
    """The status file, metrics, and lines on stderr: a live view would fight the script's progress bar."""
    status = StatusReporter(config.status_path)
    with ExitStack() as resources:
        if config.metrics_port:
            resources.callback(MetricsServer(status, config.metrics_port).close)
        yield Tee(status, ErrorReporter() if config.quiet else LineReporter())


def _leave_at_exit() -> None:
    for peer in list(_running):
        try:
            peer.leave()
        except MurmurationError as error:
            log.error("%s", error)


# Not atexit's: by then the executors that saving needs take no more work, and wait for threads that wait for us.
threading._register_atexit(_leave_at_exit)  # type: ignore[attr-defined]
