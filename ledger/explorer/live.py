"""Commands that stay open: each new checkpoint, and a screen that keeps itself up to date."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from dht.errors import MurmurationError
from ledger.explorer import facts, show

if TYPE_CHECKING:
    from ledger.explorer.session import Session

POLL = 2.0
"""Seconds between two looks at the chain."""


async def poll(session: Session, look: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
    """Sync and look until told to stop. What goes wrong meanwhile is said once, and what was seen stays on show."""
    said = ""
    while not stop.is_set():
        try:
            await session.sync()
            session.refresh()
            await session.learn()
            await look()
            said = ""
        except MurmurationError as error:
            if str(error) != said:
                said = str(error)
                show.remark(f"waiting: {said}")
        try:
            await asyncio.wait_for(stop.wait(), POLL)
        except TimeoutError:
            continue


async def follow_epochs(session: Session, known: Sequence[facts.Epoch], *, as_json: bool) -> None:
    """Print each checkpoint that is new, activated or rolled back, until interrupted: one line each."""
    from dht.exits import until_stopped

    seen = {(epoch.tx, epoch.state(session.now)) for epoch in known}
    if as_json:
        for epoch in known:
            print(json.dumps(epoch.as_json(session.now)), flush=True)

    async def look() -> None:
        for epoch in facts.epochs(session.index):
            mark = (epoch.tx, epoch.state(session.now))
            if mark not in seen:
                seen.add(mark)
                print(json.dumps(epoch.as_json(session.now)) if as_json else line_of(epoch, session.now), flush=True)

    async def work(stop: asyncio.Event) -> None:
        await poll(session, look, stop)

    await until_stopped(work)


def line_of(epoch: facts.Epoch, now: float) -> str:
    """A checkpoint in one line."""
    header = epoch.header
    return (
        f"{show.when(epoch.proposed_at)}  epoch {epoch.number} {epoch.state(now)}  rounds {header.first_round}–"
        f"{header.last_round}  {header.peers:,} peers  {show.amount(header.cumulative_reward)} earned  "
        f"model 0x{header.model_root.hex()[:12]}…  {len(epoch.signers())} signatures  {epoch.status}"
    )


async def watch(session: Session, draw: Callable[[], Awaitable[Any]]) -> None:
    """Keep a screen up to date until interrupted; without a terminal, print it once."""
    from rich.live import Live

    from dht.exits import until_stopped
    from ledger.explorer.options import terminal

    if not terminal():
        drawn = await draw()
        show.emit(None, as_json=False, human=[drawn])
        return
    with Live(await draw(), console=show.console(), screen=True, auto_refresh=False) as screen:

        async def look() -> None:
            screen.update(await draw(), refresh=True)

        async def work(stop: asyncio.Event) -> None:
            await poll(session, look, stop)

        await until_stopped(work)
