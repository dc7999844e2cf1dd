"""`python -m peer.demo`: six peers on this machine train one model; one is killed and comes back.

Exit code 0 only if all of them end with the same root, the loss fell, and the killed peer came back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from dht import exits
from dht.errors import ConfigError
from peer.demo.swarm import LOCAL_STEPS, ROUNDS, Demo, DemoError, Plan
from peer.demo.tracker import Losses, Tracker, verdicts
from peer.demo.view import View, final_table, summary_lines

EXIT_INTERRUPTED = 130
WIDTH = 120
"""Columns where no terminal says how many there are."""
MIN_PEERS, MIN_ROUNDS = 4, 6


def arguments() -> argparse.Namespace:
    """Flags of the demo."""
    parser = argparse.ArgumentParser(prog="python -m peer.demo", description=__doc__)
    parser.add_argument("--peers", type=int, default=6, help=f"how many, at least {MIN_PEERS} (default 6)")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"how many, at least {MIN_ROUNDS} (default {ROUNDS})"
    )
    parser.add_argument("--steps", type=int, default=LOCAL_STEPS, help=f"per round (default {LOCAL_STEPS})")
    parser.add_argument("--keep", action="store_true", help="keep the folder with everybody's state and logs")
    parser.add_argument("--json", action="store_true", help="summary as JSON on stdout, progress on stderr")
    given = parser.parse_args()
    if given.peers < MIN_PEERS or given.rounds < MIN_ROUNDS:
        raise ConfigError(
            f"--peers {given.peers} --rounds {given.rounds} is too little for a peer to die and come back",
            remedy=f"at least {MIN_PEERS} peers and {MIN_ROUNDS} rounds",
        )
    return given


def main() -> int:
    """Run the demo; returns the exit code."""
    given = arguments()
    folder = Path(tempfile.mkdtemp(prefix="murmuration-demo-"))
    keep = given.keep
    try:
        return asyncio.run(interruptible(given, folder))
    except DemoError:
        keep = True  # the logs are what is needed now
        raise
    finally:
        if keep:
            print(f"states and logs are in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


async def interruptible(given: argparse.Namespace, folder: Path) -> int:
    """Play the demo; a signal ends it through the same cleaning up as any other end."""
    loop = asyncio.get_running_loop()
    playing = asyncio.ensure_future(play(given, folder))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, playing.cancel)
    with suppress(asyncio.CancelledError):
        return await playing
    return EXIT_INTERRUPTED


async def play(given: argparse.Namespace, folder: Path) -> int:
    """Run the script under the view, then show the tables."""
    console = Console(stderr=given.json)
    if not console.is_terminal:
        console.width = WIDTH
    plan = Plan(folder, given.peers, given.rounds, given.steps)
    tracker = Tracker(plan.names, plan.victim)
    view = View(tracker, console)
    with view.running():
        losses, sample = await Demo(plan, tracker, view.event).run()
    kept = verdicts(tracker, losses)
    console.print(final_table(tracker, losses), summary_lines(kept, sample))
    console.print(f"{view.seconds:.0f} s", highlight=False)
    if given.json:
        print(json.dumps(summary(tracker, losses, kept, sample, view.seconds), indent=1))
    return 0 if all(kept.values()) else DemoError.exit_code


def summary(tracker: Tracker, losses: Losses, kept: Mapping[str, bool], sample: str, seconds: float) -> dict[str, Any]:
    """Everything that the tables show, in JSON's types."""
    roots = tracker.final_roots()
    peers = {
        name: {
            "peer": now.peer,
            "rounds": now.rounds,
            "tokens": tracker.tokens(name),
            "bytes_up": now.bytes_up,
            "bytes_down": now.bytes_down,
            "seconds": dict(now.seconds),
            "root": roots.get(name),
        }
        for name, now in tracker.snapshots.items()
    }
    return {
        "ok": all(kept.values()),
        "promises": dict(kept),
        "round": tracker.final_round,
        "killed": asdict(tracker.death) | {"peer": tracker.victim, "back_in": tracker.back_in}
        if tracker.death
        else None,
        "heldout_loss": asdict(losses),
        "checkpoints": {str(epoch): root for epoch, root in sorted(tracker.checkpoints.items())},
        "claimed": str(tracker.claimed),
        "slashed": str(tracker.slashed),
        "peers": peers,
        "sample": sample,
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    exits.run(main, as_json="--json" in sys.argv)
