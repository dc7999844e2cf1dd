"""Run a program that ends when the process that started it does, even if that one is killed.

    python -I -S die_with_parent.py PARENT_PID [--poll] PROGRAM ARGUMENTS...

A script of its own because `preexec_fn` is unsafe under threads. On Linux it asks the kernel for SIGKILL on the
parent's death (prctl(2), PR_SET_PDEATHSIG) and becomes the program; elsewhere, or with --poll, it stays beside it.
A process group of its own keeps the terminal's Ctrl-C from reaching the program before its parent said goodbye.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Become, or mind, the program in `arguments`; returns its exit code when minding it."""
    parent, program = int(arguments[0]), arguments[1:]
    os.setpgid(0, 0)
    if program[0] == "--poll" or not sys.platform.startswith("linux"):
        return _mind(parent, [part for part in program if part != "--poll"])
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 1  # it died before we asked
    os.execv(program[0], program)


def _mind(parent: int, program: list[str]) -> int:
    child = subprocess.Popen(program)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while child.poll() is None:
        if os.getppid() != parent:
            child.kill()
        time.sleep(0.2)
    return child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
