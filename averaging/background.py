"""Threads that give way: on a machine whose cores both train and aggregate, the round waits and not the training."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

_NICE = 5
"""About a third of a core's time when another thread wants it, too (Linux's scheduler: 335 against 1024)."""


def give_way() -> None:
    """Lower the calling thread's priority, for good. Only Linux has one per thread; elsewhere it does nothing."""
    if sys.platform == "linux":
        me = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, me, max(_NICE, os.getpriority(os.PRIO_PROCESS, me)))
