"""What stays open: a screen, and a page."""

from __future__ import annotations

import json
from typing import Annotated, Any

from cyclopts import Parameter

from dht.errors import ConfigError
from ledger.explorer.options import Common, CommonOptions
from ledger.explorer.session import Session, with_session

DEFAULT_PORT = 8765


def watch(*, common: CommonOptions = None) -> int:
    """Keep status, epochs and the leaderboard on the screen. Ctrl-C ends it."""
    from ledger.explorer import live

    common = common or Common()

    async def work(session: Session) -> None:
        await live.watch(session, lambda: screen(session))

    with_session(common, work)
    return 0


async def screen(session: Session) -> Any:
    """All that fits on a screen."""
    from rich.console import Group

    from ledger.explorer import facts
    from ledger.explorer.commands import network, people

    found = await network.summary(session)
    newest = [epoch.as_json(session.now) for epoch in facts.epochs(session.index)[-10:]][::-1]
    by = "tokens" if session.history is not None else "claimed"
    ranking = people.ranking(session, by)[:10]
    parts: list[Any] = [network.status_table(found), "", network.epochs_table(newest, found["symbol"])]
    return Group(*parts, "", people.ranking_table(ranking, by)) if ranking else Group(*parts)


def serve(
    *,
    port: Annotated[int, Parameter(help="Port of 127.0.0.1; 0 takes any free one.")] = DEFAULT_PORT,
    common: CommonOptions = None,
) -> int:
    """Show the same facts on a page of this machine, kept up to date. Ctrl-C ends it."""
    from dht.exits import until_stopped
    from ledger.explorer.page import Site

    common = common or Common()
    if not 0 <= port < 65536:
        raise ConfigError(f"--port {port} is no port", remedy="0 to 65535")

    async def work(session: Session) -> int:
        site = Site(session, port)

        def ready() -> None:
            # One line, and at once: whoever started this waits for it.
            print(json.dumps({"event": "ready", "url": site.url}) if common.json else site.url, flush=True)

        return await until_stopped(lambda stop: site.run(stop, ready))

    return with_session(common, work)
