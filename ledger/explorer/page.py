"""The page of `serve`: tables that need no script, pictures, and the same facts as JSON beside them.

The page and every answer are made anew after each look at the chain, and served from memory: whoever asks, and however
often, costs neither node nor index anything. It listens on 127.0.0.1 only and answers only who names it so: another
site's script cannot read it by pointing its own name here.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import TYPE_CHECKING, Any

from dht.errors import ConfigError, DataError
from ledger.explorer import facts, show

if TYPE_CHECKING:
    from ledger.explorer.session import Session

HOST = "127.0.0.1"
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'"
_JSON, _HTML = "application/json", "text/html; charset=utf-8"
_ASSETS = {"/page.js": "text/javascript; charset=utf-8", "/page.css": "text/css; charset=utf-8"}


class Site:
    """The page of one session."""

    def __init__(self, session: Session, port: int) -> None:
        """Bind to the port. Raises ConfigError when it is taken."""
        self._session = session
        self._answers: dict[str, tuple[str, bytes]] = {}
        for name, kind in _ASSETS.items():
            text = (resources.files("ledger.explorer") / name[1:]).read_bytes()
            self._answers[name] = (kind, text)
        try:
            self._server = ThreadingHTTPServer((HOST, port), _handler(self._answers))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on port {port}: {error.strerror}", remedy="give another --port, or 0"
            ) from None
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self._server.server_port}/"

    async def run(self, stop: asyncio.Event, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`, looking at the chain now and then."""
        from ledger.explorer.live import poll

        await self.update()
        thread = threading.Thread(target=self._server.serve_forever, name="page", kwargs={"poll_interval": 0.1})
        thread.start()
        try:
            ready()
            await poll(self._session, self.update, stop)
        finally:
            await asyncio.to_thread(self._server.shutdown)
            thread.join()
            self._server.server_close()

    async def update(self) -> None:
        """Make page and answers anew."""
        values = await collect(self._session)
        made = {f"/api/{name}": (_JSON, json.dumps(value).encode()) for name, value in values.items()}
        made["/"] = (_HTML, render(values).encode())
        self._answers.update(made)


async def collect(session: Session) -> dict[str, Any]:
    """All facts of the page by name: status, epochs (newest first), peers, leaderboard, slashes, plots."""
    from ledger.explorer import people, series
    from ledger.explorer.commands import network
    from ledger.explorer.commands import people as commands

    by = "tokens" if session.history is not None else "claimed"
    try:
        plots = [
            {"title": panel.title, "lines": [{"name": line.name, "points": line.points} for line in panel.lines]}
            for panel in series.panels(session)
        ]
    except DataError:  # nothing to draw yet
        plots = []
    return {
        "status": await network.summary(session),
        "epochs": [epoch.as_json(session.now) for epoch in facts.epochs(session.index)][::-1],
        "peers": [peer.as_json() for peer in people.peers(session)],
        "leaderboard": commands.ranking(session, by),
        "slashes": facts.slashes(session.index),
        "plots": plots,
    }


def render(values: dict[str, Any]) -> str:
    """The page as HTML: whole without a script."""
    status, unit = values["status"], values["status"]["symbol"]
    template = (resources.files("ledger.explorer") / "page.html").read_text()
    parts = {
        "RUN": escape(status["run"][:16]),
        "STATUS": _definitions(_status_rows(status, unit)),
        "EPOCHS": _table("What is anchored on the chain, newest first", *_epoch_rows(values["epochs"], unit)),
        "LEADERBOARD": _table("Who contributed what", *_ranking_rows(values["leaderboard"])),
        "PEERS": _table("Everybody who enrolled, trained or claimed", *_peer_rows(values["peers"], unit)),
        "PLOTS": "".join(f"<figure>{svg}</figure>" for svg in _pictures(values["plots"]))
        or "<p>Nothing to draw yet.</p>",
    }
    for name, text in parts.items():
        template = template.replace(f"<!--{name}-->", text)
    return template


def _pictures(plots: Sequence[dict[str, Any]]) -> list[str]:
    from ledger.explorer.draw import svg
    from ledger.explorer.series import Line, Panel

    return [
        svg(Panel(plot["title"], tuple(Line(line["name"], tuple(line["points"])) for line in plot["lines"])))
        for plot in plots
    ]


def _status_rows(status: dict[str, Any], unit: str) -> list[tuple[str, str]]:
    state = f"{status['epoch']} ({status['epoch_state']})" if status["epoch"] else "no checkpoint yet"
    return [
        ("Epoch", state),
        ("Round", show.count(status["round"])),
        ("Block", "–" if status["block"] is None else f"{status['block']:,}, {show.when(status['block_time'])} UTC"),
        ("Peers", f"{status['peers']:,} have earned, {status['enrolled']:,} enrolled"),
        ("Tokens trained", show.count(status["tokens"])),
        ("Stake", show.amount(status["stake"], unit)),
        ("Earned", show.amount(status["earned"], unit)),
        ("Claimed", show.amount(status["claimed"], unit)),
        ("Slashes", show.count(status["slashes"])),
        ("Model root", status["model_root"] or "–"),
    ]


def _epoch_rows(rows: Sequence[dict[str, Any]], unit: str) -> tuple[Sequence[str], list[Sequence[str]]]:
    columns = (
        "Epoch",
        "State",
        "Status",
        "Proposed (UTC)",
        "Rounds",
        "Signatures",
        "Peers",
        "Tokens",
        f"Earned {unit}",
        "Model root",
    )
    return columns, [
        (
            str(row["epoch"]),
            row["state"],
            row["status"],
            show.when(row["proposed_at"]),
            f"{row['first_round']}–{row['last_round']}",
            str(len(row["signers"])),
            show.count(row["peers"]),
            show.count(row["tokens"]),
            show.amount(row["cumulative_reward"]),
            row["model_root"],
        )
        for row in rows
    ]


def _ranking_rows(rows: Sequence[dict[str, Any]]) -> tuple[Sequence[str], list[Sequence[str]]]:
    by = "tokens" if any("tokens" in row for row in rows) else "claimed"
    write = show.count if by == "tokens" else show.amount
    cells: list[Sequence[str]] = [
        (str(row["rank"]), row["peer"] or row["key"], write(row[by]), f"{100 * row['share']:.2f}%") for row in rows
    ]
    return ("Rank", "Peer", by.capitalize(), "Share"), cells


def _peer_rows(rows: Sequence[dict[str, Any]], unit: str) -> tuple[Sequence[str], list[Sequence[str]]]:
    from ledger.explorer.commands import people as commands

    columns = (
        "Key address",
        "Peer",
        "Wallet",
        f"Stake {unit}",
        "Rounds",
        "Tokens",
        f"Earned {unit}",
        f"Claimed {unit}",
    )
    return columns, [
        (
            row["key"],
            row["peer"] or "–",
            commands.wallet_words(row),
            show.amount(row["stake"]),
            "–" if row["rounds"] is None else show.count(row["rounds"]),
            "–" if row["tokens"] is None else show.count(row["tokens"]),
            "–" if row["earned"] is None else show.amount(row["earned"]),
            show.amount(row["claimed"]),
        )
        for row in rows
    ]


def _definitions(rows: Sequence[tuple[str, str]]) -> str:
    return (
        "<dl>"
        + "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in rows)
        + "</dl>"
    )


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    kinds = [_kind([row[place] for row in rows]) for place in range(len(columns))]
    named = zip(columns, kinds, strict=True)
    head = "".join(f'<th scope="col"{kind}>{escape(name.strip())}</th>' for name, kind in named)
    body = "".join(f"<tr>{_cells(row, kinds)}</tr>" for row in rows)
    none = f'<tr><td colspan="{len(columns)}">none yet</td></tr>'
    label = escape(caption)
    return (
        f'<div class="wide" role="region" aria-label="{label}" tabindex="0"><table><caption>{label}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body or none}</tbody></table></div>"
    )


def _cells(row: Sequence[str], kinds: Sequence[str]) -> str:
    first, *rest = zip(row, kinds, strict=True)
    return f'<th scope="row"{first[1]}>{escape(first[0])}</th>' + "".join(
        f"<td{kind}>{escape(cell)}</td>" for cell, kind in rest
    )


def _kind(cells: Sequence[str]) -> str:
    """The class of a column: numbers are aligned, long names may break anywhere."""
    if cells and all(map(show.is_numeric, cells)):
        return ' class="number"'
    longest = max(map(len, cells), default=0)
    return ' class="id hash"' if longest > 60 else ' class="id"' if longest >= 40 else ""


def _handler(answers: dict[str, tuple[str, bytes]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "contribution-explorer", ""

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (HOST, "localhost"):
                self._send(421, _JSON, b'{"error": "this page is local"}', body=body)
                return
            kind, data = answers.get(self.path.partition("?")[0], ("", b""))
            if not kind:
                self._send(404, _JSON, b'{"error": "there is no such page"}', body=body)
            else:
                self._send(200, kind, data, body=body)

        def _send(self, code: int, kind: str, data: bytes, *, body: bool) -> None:
            self.send_response(code)
            headers = {"Content-Type": kind, "Content-Length": str(len(data)), "Cache-Control": "no-store"}
            headers |= {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: stderr is for what goes wrong."""

    return Handler
