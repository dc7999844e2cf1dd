"""Run a program as it would be elsewhere: `python -m tests.fault.skewed SECONDS VERSION MODULE ARGUMENTS`.

Its wall clock is SECONDS fast, and it speaks protocol VERSION (a number in the names of its streams).
"""

from __future__ import annotations

import runpy
import sys
import time


def main() -> None:
    """Shift `time.time` before anything is imported that may keep a reference to it; monotonic time stays."""
    offset, version, module = float(sys.argv[1]), sys.argv[2], sys.argv[3]
    true = time.time
    time.time = lambda: true() + offset
    if version != "1":
        from dht import host

        for name in ("CONTROL", "BULK", "REQUEST", "DIRECT"):
            setattr(host, name, getattr(host, name).replace("/1/", f"/{version}/"))
    sys.argv = [module, *sys.argv[4:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
