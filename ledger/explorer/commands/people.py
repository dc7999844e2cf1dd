"""Who is there: peers, one of them, who did most, who was slashed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from cyclopts import Parameter

from ledger.explorer import show
from ledger.explorer.options import Common, CommonOptions
from ledger.explorer.session import Session, with_session

Order = Literal["key", "stake", "earned", "claimed", "claimable", "tokens", "rounds", "chunks", "slashed"]


def peers(
    *,
    sort: Annotated[Order, Parameter(help="Order, largest first; key is ascending.")] = "key",
    common: CommonOptions = None,
) -> int:
    """List everybody who enrolled, trained or claimed."""
    from ledger.explorer import people
    from ledger.explorer.commands.network import symbol

    common = common or Common()

    async def work(session: Session) -> tuple[list[dict[str, Any]], str]:
        rows = people.peers(session)
        if sort != "key":
            rows.sort(key=lambda row: (-(getattr(row, sort) or 0), row.key))
        return [row.as_json() for row in rows], await symbol(session)

    rows, unit = with_session(common, work)
    show.emit(rows, as_json=common.json, human=lambda: [peers_table(rows, unit)])
    return 0


def peers_table(rows: list[dict[str, Any]], unit: str) -> Any:
    """Peers, one a line; `rows` are `Peer.as_json`'s."""
    unit = unit or "TOKENS"
    columns = (
        "KEY",
        "PEER",
        "WALLET",
        f"STAKE {unit}",
        "ROUNDS",
        "TOKENS TRAINED",
        "CHUNKS",
        f"EARNED {unit}",
        f"CLAIMED {unit}",
    )
    return show.table(
        columns,
        [
            (
                show.fit(row["key"]),
                row["peer"][-8:] if row["peer"] else "–",
                wallet_words(row),
                show.amount(row["stake"]),
                _known(row["rounds"]),
                _known(row["tokens"]),
                _known(row["chunks"]),
                "–" if row["earned"] is None else show.amount(row["earned"]),
                show.amount(row["claimed"]),
            )
            for row in rows
        ],
    )


def wallet_words(row: dict[str, Any]) -> str:
    """Whose stake stands behind a peer's key, or who is still paid for it."""
    if row["former_of"]:
        return f"{show.fit(row['former_of'])} (former key)"
    return show.fit(row["wallet"]) if row["wallet"] else "not enrolled"


def _known(number: int | None) -> str:
    return "–" if number is None else show.count(number)


def peer(
    who: Annotated[str, Parameter(name="WHO", help="Peer id, the end of one, wallet, or key address.")],
    /,
    *,
    common: CommonOptions = None,
) -> int:
    """Show one peer: stake, what it did in each epoch, what it earned and may claim."""
    common = common or Common()
    found, unit = with_session(common, lambda session: _one_peer(session, who))
    show.emit(found, as_json=common.json, human=lambda: _peer_tables(found, unit))
    return 0


async def _one_peer(session: Session, who: str) -> tuple[dict[str, Any], str]:
    from ledger.explorer import people
    from ledger.explorer.commands.network import symbol

    rows = people.peers(session)
    row = people.find(rows, who)
    found = row.as_json()
    if row.wallet is not None and (registry := await session.view_or_none("PeerRegistry", "peer", row.wallet)):
        # The registry's own word stands above what its events add up to.
        found |= {name: str(registry[name]) for name in ("stake", "unbonding")}
        found |= {"unlock_at": registry["unlockAt"], "jailed": registry["jailed"]}
        found["bound_on_chain"] = registry["key"] == row.key
    ranked = sorted((other.tokens or 0 for other in rows), reverse=True)
    found["rank"] = ranked.index(row.tokens) + 1 if row.tokens else None
    found["of"] = len(rows)
    found["epochs"] = _epochs_of(session, row.key)
    return found, await symbol(session)


def _epochs_of(session: Session, key: str) -> list[dict[str, Any]]:
    from dht.identity import PeerId
    from ledger.explorer.people import text_address

    rows = []
    for epoch in session.epochs:
        tally = session.tally(epoch.number)
        if tally is None:
            continue
        for raw, account in tally.added.items():
            if text_address(PeerId(raw)) == key:
                points = account.points
                whole = sum(each.points.tokens for each in tally.added.values())
                rows.append(
                    {"epoch": epoch.number, "rounds": points.rounds, "tokens": points.tokens, "chunks": points.chunks}
                    | {"of_tokens": whole, "earned": str(account.earned)}
                )
    return rows


def _peer_tables(found: dict[str, Any], unit: str) -> list[Any]:
    rows: list[tuple[str, object]] = [
        ("peer", found["peer"] or "unknown: it never trained here"),
        ("key", found["key"]),
    ]
    if found["wallet"]:
        bound = {True: ", bound on the chain", False: ", which now has another key", None: ""}[
            found.get("bound_on_chain")
        ]
        rows.append(("wallet", found["wallet"] + bound + (" (jailed)" if found.get("jailed") else "")))
        rows.append(("enrolled", f"{show.when(found['since'])} UTC"))
        rows.append(("stake", show.amount(found["stake"], unit)))
        if int(found["unbonding"]):
            until = show.when(int(found["unlock_at"]))
            rows.append(("unbonding", f"{show.amount(found['unbonding'], unit)} until {until} UTC"))
    elif found["former_of"]:
        rows.append(("wallet", f"{found['former_of']}, which now has another key"))
    else:
        rows.append(("wallet", "not enrolled: rewards go to the key address itself"))
    if found["slashed"] != "0":
        rows.append(("slashed", show.amount(found["slashed"], unit)))
    if found["tokens"] is not None:
        rank = f", rank {found['rank']} of {found['of']}" if found["rank"] else ""
        rows.append(("trained", f"{found['tokens']:,} tokens in {found['rounds']:,} rounds{rank}"))
        rows.append(("reduced", f"{found['chunks']:,} chunks"))
        rows.append(("last seen", f"round {found['last_round']}"))
    claimed = show.amount(found["claimed"], unit)
    if found["earned"] is None:
        rows.append(("claimed", f"{claimed} (give --records to see what was earned)"))
    else:
        earned, open_ = (show.amount(found[name], unit) for name in ("earned", "claimable"))
        rows.append(("earned", f"{earned}, claimed {claimed}, claimable {open_}"))
    parts: list[Any] = [show.facts(rows)]
    if found["epochs"]:
        cells = [
            (
                row["epoch"],
                row["rounds"],
                show.count(row["tokens"]),
                show.share(row["tokens"], row["of_tokens"]),
                row["chunks"],
                show.amount(row["earned"]),
            )
            for row in found["epochs"]
        ]
        parts += ["", show.table(("EPOCH", "ROUNDS", "TOKENS", "SHARE", "CHUNKS", f"EARNED {unit}".strip()), cells)]
    return parts


def leaderboard(
    *,
    by: Annotated[
        Literal["tokens", "chunks", "rounds", "earned", "claimed"], Parameter(help="What counts.")
    ] = "tokens",
    top: Annotated[int, Parameter(help="Only so many; 0 shows all.")] = 20,
    common: CommonOptions = None,
) -> int:
    """Who contributed most."""
    common = common or Common()

    async def work(session: Session) -> tuple[list[dict[str, Any]], bool]:
        rows = ranking(session, by)
        return rows[:top] if top else rows, session.history is not None

    rows, known = with_session(common, work)
    if not known and by != "claimed":
        show.remark("no records here: what peers did is in their records; give --records, or use --by claimed")
    show.emit(rows, as_json=common.json, human=lambda: [ranking_table(rows, by)])
    return 0


def ranking(session: Session, by: str) -> list[dict[str, Any]]:
    """Peers with a value of `by` above zero, largest first: rank, peer, the value, its share of all."""
    from ledger.explorer import people

    rows = [row for row in people.peers(session) if getattr(row, by)]
    rows.sort(key=lambda row: (-getattr(row, by), row.key))
    whole = sum(getattr(row, by) for row in rows)
    return [
        {
            "rank": place,
            "key": row.key,
            "peer": row.peer,
            by: str(getattr(row, by)) if by in ("earned", "claimed") else getattr(row, by),
        }
        | {"share": getattr(row, by) / whole}
        for place, row in enumerate(rows, 1)
    ]


def ranking_table(rows: list[dict[str, Any]], by: str) -> Any:
    """The leaderboard as a table, with bars where a person looks."""
    from ledger.explorer.options import terminal

    write = show.amount if by in ("earned", "claimed") else show.count
    most = rows[0]["share"] if rows else 1
    cells = [
        (row["rank"], show.fit(row["peer"] or row["key"], 100), write(row[by]), f"{100 * row['share']:.2f}%")
        + ((show.bar(row["share"] / most),) if terminal() else ())
        for row in rows
    ]
    return show.table(("RANK", "PEER", by.upper(), "SHARE", *(("",) if terminal() else ())), cells)


def slashes(*, common: CommonOptions = None) -> int:
    """List every slash, and what proved it."""
    from ledger.explorer import facts

    common = common or Common()

    async def work(session: Session) -> list[dict[str, Any]]:
        return facts.slashes(session.index)

    rows = with_session(common, work)
    cells = [
        (
            show.when(row["time"]),
            show.fit(row["wallet"]),
            show.amount(row["amount"]),
            show.fit(row["reporter"]),
            show.fit(row["evidence"]) if row["evidence"] else "verdict",
            show.fit(row["tx"]),
        )
        for row in rows
    ]
    columns = ("TIME (UTC)", "WALLET", "SLASHED", "REPORTER", "EVIDENCE", "TX")
    show.emit(rows, as_json=common.json, human=lambda: [show.table(columns, cells) if rows else "nobody was slashed"])
    return 0
