"""How a command ends: errors become one line and an exit code, signals a clean stop."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NoReturn

from dht.errors import MurmurationError, StorageError

FILES_REMEDY = "allow more open files: ulimit -n 1024"
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
_log = logging.getLogger(__name__)


def report(error: MurmurationError, *, as_json: bool = False) -> int:
    """Say on stderr what went wrong and what to do, in one line (or one JSON object); returns the exit code."""
    fields = {"error": error.message, "code": error.code, "remedy": error.remedy, "exit": error.exit_code}
    try:
        print(json.dumps(fields) if as_json else f"error: {error}", file=sys.stderr, flush=True)
    except OSError:
        # The disk may be full under a redirected stderr, too: the exit code still says what happened.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    return error.exit_code


def run(command: Callable[[], int | None], *, as_json: bool = False) -> NoReturn:
    """Run a command to its end and exit with its code, or the error's; a traceback only for our own bugs."""
    try:
        code = command() or 0
    except MurmurationError as error:
        code = report(error, as_json=as_json)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output left; Python would complain while it flushes.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_PIPE
    except OSError as error:
        if (fault := fault_of_the_machine(error)) is None:
            raise
        code = report(fault, as_json=as_json)
    sys.exit(code)


def fault_of_the_machine(error: OSError) -> StorageError | None:
    """What an error of the operating system means to who runs the program; None if it may be our own bug."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return StorageError(f"{where}{error.strerror}", remedy=FILES_REMEDY)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS):
        return StorageError(f"{where}{error.strerror}", remedy="free space or fix permissions")
    return None


async def until_stopped(work: Callable[[asyncio.Event], Awaitable[int | None]]) -> int:
    """Run `work(stop)`; the first SIGINT or SIGTERM sets `stop`, a second SIGINT ends the process at once (130).

    Children that die with their parent (see `die_with_parent`) do so on the second signal, too.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set() and number == signal.SIGINT:
            os._exit(EXIT_INTERRUPTED)
        if not stop.is_set():
            _log.info("stopping (%s); press Ctrl-C again to stop at once", number.name)
        stop.set()

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, on_signal, number)
    try:
        return await work(stop) or 0
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
