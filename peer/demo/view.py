"""What the demo shows while it runs: a live view on a terminal, lines elsewhere; and the tables at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from peer.demo.swarm import SCRIPT
from peer.demo.tracker import Losses, Tracker
from peer.events import describe_round, megabytes, number, short, tail
from peer.live import rounds_table

REFRESH_PER_SECOND = 4


class View:
    """Shows what the tracker knows; `event` gets every event after the tracker did."""

    def __init__(self, tracker: Tracker, console: Console) -> None:
        self.tracker, self.console = tracker, console
        self._started = time.monotonic()
        self._phase = ""
        self._said: set[str] = set()
        self._last_loss: float | None = None
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=REFRESH_PER_SECOND)

    def running(self) -> AbstractContextManager[object]:
        """The context in which the view is live; nothing on what is no terminal."""
        return self._live if self.console.is_terminal else nullcontext()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def event(self, name: str, event: Mapping[str, Any]) -> None:
        """Say what is worth a line. On a terminal only the turns of the script: rounds are in the table."""
        kind = event["event"]
        if name == SCRIPT:
            self._say(self._turn(kind, event))
        elif kind in ("refused", "blamed") and not is_about_the_dead(str(event.get("reason"))):
            self._say_once(f"{name} {kind} {tail(event.get('peer'))}: {event.get('reason')}")
        elif kind == "checkpoint":
            self._say_once(f"checkpoint {event.get('epoch')} is on the chain: round {event.get('last_round')}")
        elif kind == "checkpoint_rolled_back":
            self._say_once(f"checkpoint {event.get('epoch')} was rolled back: fork nonce {event.get('fork_nonce')}")
        elif kind == "caught_up":
            self._say(f"{name} caught up to round {event.get('round')} with {megabytes(event.get('bytes'))}")
        elif kind == "round" and name == self.tracker.names[0] and not self.console.is_terminal:
            self._say(describe_round(event, self._last_loss))
            self._last_loss = number(event.get("heldout_loss"), self._last_loss)

    def _turn(self, kind: str, event: Mapping[str, Any]) -> str:
        if kind == "killed":
            return f"killed {event['peer']} with SIGKILL in round {event['round']} ({event['step']}); starting it again"
        if kind == "back":
            return f"{event['peer']} is back: a survivor of round {event['round']}, with the same root"
        self._phase = str(event.get("text", kind))
        return self._phase

    def _say(self, text: str) -> None:
        self.console.print(Text(f"{self.seconds:6.1f} s  {text}"), highlight=False, soft_wrap=True)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)

    def render(self) -> RenderableType:
        """The live view as it is now."""
        peers = Table(expand=False)
        for column in ("peer", "state", "round", "up", "down", "root"):
            peers.add_column(column, no_wrap=True)
        for name in self.tracker.names:
            now = self.tracker.snapshots[name]
            state = "ended" if name in self.tracker.ended else now.step or now.state
            style = "red" if self.tracker.ended.get(name) else ""
            traffic = (megabytes(now.bytes_up), megabytes(now.bytes_down))
            peers.add_row(name, state, str(now.round), *traffic, short(now.root), style=style)
        rounds = [self.tracker.rounds[number] for number in sorted(self.tracker.rounds)]
        line = Text(f"{self._phase} · {self.seconds:.0f} s", style="dim")
        return Group(peers, rounds_table(rounds), line) if rounds else Group(peers, line)


def is_about_the_dead(reason: str) -> bool:
    """Whether a refusal is what a peer's death must cause: nobody answers there, or answers for its former life."""
    return "unreachable" in reason or "STALE" in reason


def final_table(tracker: Tracker, losses: Losses) -> Table:
    """Per peer what it did and where it ended, beside the peer that trained alone."""
    table = Table(title="Everyone's last root, and what it took", title_justify="left", expand=False)
    for column in ("peer", "rounds", "tokens", "up", "down"):
        table.add_column(column, justify="left" if column == "peer" else "right", no_wrap=True)
    table.add_column("final root", no_wrap=True)
    table.add_column("held-out loss", no_wrap=True)
    roots = tracker.final_roots()
    for name in tracker.names:
        now = tracker.snapshots[name]
        killed = " (killed)" if name == tracker.victim and tracker.death else ""
        figures = (str(now.rounds), f"{tracker.tokens(name):,}", megabytes(now.bytes_up), megabytes(now.bytes_down))
        loss = f"{losses.start:.3f} → {losses.swarm:.3f}"
        table.add_row(name + killed, *figures, short(roots.get(name)), loss)
    table.add_section()
    alone = tracker.tokens(tracker.names[0])
    table.add_row("one peer alone", "–", f"{alone:,}", "–", "–", "–", f"{losses.start:.3f} → {losses.alone:.3f}")
    return table


def summary_lines(verdicts: Mapping[str, bool], sample: str) -> RenderableType:
    """The promises with their verdicts, and the sample in a frame."""
    lines = [
        Text(f"{'yes' if kept else 'NO ':<4}{promise}", style="green" if kept else "red")
        for promise, kept in verdicts.items()
    ]
    return Group(*lines, Panel(Text(sample), title="what the model writes", title_align="left"))
