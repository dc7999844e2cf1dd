"""Figures over time for plots: loss and tokens per epoch, and each peer's share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from averaging.record import LOSS_SCALE, Record
from dht.errors import DataError
from dht.identity import PeerId

if TYPE_CHECKING:
    from ledger.explorer.session import Session

MOST_PEERS = 7
"""Peers with a line of their own; the rest share one."""


@dataclass(frozen=True)
class Line:
    """One line of a panel: its name, and (x, y) points."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Panel:
    """One picture: a title, and lines over the same x."""

    title: str
    lines: tuple[Line, ...]


def panels(session: Session) -> list[Panel]:
    """Loss, tokens and shares per epoch; what the chain alone tells when there are no records. Raises DataError."""
    if not session.epochs:
        raise DataError("there is no checkpoint to draw yet", remedy="wait for the first one")
    if session.history is None:
        before = [0, *(epoch.header.tokens for epoch in session.epochs)]
        tokens = [(float(e.number), float(e.header.tokens - b)) for e, b in zip(session.epochs, before, strict=False)]
        return [Panel("tokens per epoch", (Line("all", tuple(tokens)),))]
    history = session.history
    groups = [
        (epoch.number, history.records(epoch.header.first_round, epoch.header.last_round))
        for epoch in session.epochs
        if epoch.header.last_round <= history.chain.head.round
    ]
    return [_losses(groups), _tokens(groups), _shares(groups)]


def _useful(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if not record.void]


def _losses(groups: Sequence[tuple[int, list[Record]]]) -> Panel:
    points = []
    for epoch, records in groups:
        if found := _useful(records):
            points.append((float(epoch), sum(record.loss for record in found) / len(found) / LOSS_SCALE))
    return Panel("training loss, mean of the epoch's rounds", (Line("all", tuple(points)),))


def _tokens(groups: Sequence[tuple[int, list[Record]]]) -> Panel:
    points = tuple((float(epoch), float(sum(_by_peer(records).values()))) for epoch, records in groups)
    return Panel("tokens per epoch", (Line("all", points),))


def _shares(groups: Sequence[tuple[int, list[Record]]]) -> Panel:
    totals: dict[bytes, int] = {}
    for _, records in groups:
        for peer, tokens in _by_peer(records).items():
            totals[peer] = totals.get(peer, 0) + tokens
    ranked = sorted(totals, key=lambda peer: (-totals[peer], peer))
    shown, rest = ranked[:MOST_PEERS], set(ranked[MOST_PEERS:])
    lines = [Line(PeerId(peer).short, _share_points(groups, {peer})) for peer in shown]
    if rest:
        lines.append(Line(f"{len(rest)} others", _share_points(groups, rest)))
    return Panel("share of the epoch's tokens, %", tuple(lines))


def _share_points(groups: Sequence[tuple[int, list[Record]]], peers: set[bytes]) -> tuple[tuple[float, float], ...]:
    points = []
    for epoch, records in groups:
        tokens = _by_peer(records)
        whole = sum(tokens.values())
        points.append((float(epoch), 100 * sum(tokens.get(peer, 0) for peer in peers) / whole if whole else 0.0))
    return tuple(points)


def _by_peer(records: Iterable[Record]) -> dict[bytes, int]:
    tokens: dict[bytes, int] = {}
    for record in _useful(records):
        for survivor in record.survivors:
            tokens[survivor.peer] = tokens.get(survivor.peer, 0) + survivor.tokens
    return tokens
