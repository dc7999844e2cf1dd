"""The live view on a terminal: one row per round, and the step that the peer is in."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from peer.events import STEPS, count, describe, describe_loss, megabytes, number, short
from peer.status import PARTS, Snapshot

ROWS = 15
REFRESH_PER_SECOND = 4


def rounds_table(rounds: Iterable[Mapping[str, object]], *, title: str = "") -> Table:
    """A table of `round` events, oldest first; the loss with its change since the row before."""
    table = Table(title=title or None, title_justify="left", expand=False)
    for name in ("round", "survivors", "loss", *PARTS, "up", "down", "root"):
        table.add_column(name, justify="left" if name in ("loss", "root") else "right", no_wrap=True)
    last: float | None = None
    for fields in rounds:
        table.add_row(*round_cells(fields, last), style="dim" if fields.get("void") else "")
        last = number(fields.get("heldout_loss"), last)
    return table


def round_cells(fields: Mapping[str, object], last_loss: float | None) -> list[str]:
    """The cells of one `round` event."""
    get = fields.get
    given = get("seconds")
    seconds = given if isinstance(given, Mapping) else {}
    return [
        str(get("round")),
        "void" if get("void") else f"{count(get('survivors'))}/{count(get('members'))}",
        describe_loss(get("heldout_loss"), last_loss),
        *(f"{number(seconds.get(part), 0.0):.1f} s" for part in PARTS),
        megabytes(get("bytes_up")),
        megabytes(get("bytes_down")),
        short(get("root")),
    ]


def steps_line(current: str) -> Text:
    """The steps of a round with the current one marked."""
    line = Text()
    for step in STEPS:
        line.append(f" {step} ", style="reverse" if step == current else "dim")
    return line


class LiveReporter:
    """Redraws the view at every event; use as a context manager around the run.

    What scrolls by above the table (refusals, peers that can't be reached, errors) stays in the terminal's history.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.snapshot = Snapshot()
        self.rounds: deque[Mapping[str, object]] = deque(maxlen=ROWS)
        self._since = time.monotonic()
        self._last_remark = ""
        self._live = Live(get_renderable=self.render, console=self.console, refresh_per_second=REFRESH_PER_SECOND)

    def __enter__(self) -> LiveReporter:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def event(self, name: str, /, **fields: object) -> None:
        """Take the event into the view."""
        self.snapshot = self.snapshot.apply(name, fields, time.time())
        if name in ("step", "waiting", "joined", "round"):
            self._since = time.monotonic()
        if name == "round":
            self.rounds.append(fields)
        elif name not in ("step", "joined", "waiting"):
            remark = describe(name, fields)
            if remark and remark != self._last_remark:
                self._last_remark = remark
                self.console.print(Text(remark, style="red" if name == "error" else ""))

    def render(self) -> RenderableType:
        """The view as it is now."""
        now = self.snapshot
        elapsed = f"{time.monotonic() - self._since:.0f} s"
        state = Text(f"{now.state} · {now.reason or f'round {now.round}'} · {elapsed}")
        parts: list[RenderableType] = [state, steps_line(now.step)]
        return Group(rounds_table(self.rounds), *parts) if self.rounds else Group(*parts)
