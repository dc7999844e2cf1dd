"""Run a program that is struck at a given word: `python -m tests.fault.mortal FILE MODULE ARGUMENTS`.

FILE, once it is there, holds the name of a signal and a text. As soon as the program writes an event that contains the
text, it removes FILE and sends itself the signal. One from outside would come when it is in its next step already.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path

from peer import events


def main() -> None:
    """Put the stroke behind the writing of events."""
    doom, module = Path(sys.argv[1]), sys.argv[2]
    write = events.write_line

    def write_and_be_struck(stream: object, line: str) -> None:
        write(stream, line)  # type: ignore[arg-type]
        if doom.exists():
            name, _, text = doom.read_text().partition(" ")
            if text in line:
                doom.unlink()
                os.kill(os.getpid(), signal.Signals[name])

    events.write_line = write_and_be_struck
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
