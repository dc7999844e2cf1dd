"""Run a program that dies at a given word: `python -m tests.fault.mortal FILE MODULE ARGUMENTS`.

As soon as it writes an event that contains the text in FILE, it removes FILE and kills itself with SIGKILL. A signal
from outside would come when the program is already in its next step.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path

from peer import events


def main() -> None:
    """Put the end behind the writing of events."""
    doom, module = Path(sys.argv[1]), sys.argv[2]
    write = events.write_line

    def write_and_die(stream: object, line: str) -> None:
        write(stream, line)  # type: ignore[arg-type]
        if doom.exists() and doom.read_text() in line:
            doom.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    events.write_line = write_and_die
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
