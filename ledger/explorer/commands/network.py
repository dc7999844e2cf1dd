"""What is there: runs, the state of one, its epochs, parameters, transactions and prices."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from dht.errors import ConfigError, DataError, UnreachableError
from ledger.explorer import show, wiring
from ledger.explorer.options import Common, CommonOptions
from ledger.explorer.session import Session, with_session
from ledger.indexer.node import address_of

_VIEWS = (
    ("CheckpointHub", ("runId", "window", "minInterval", "rotationNonce")),
    (
        "RewardPool",
        ("emission", "mostEmitted", "emitted", "fees", "totalClaimed", "splits", "treasury", "dataProviders"),
    ),
    ("PeerRegistry", ("unbondDelay",)),
    ("Token", ("name", "symbol", "totalSupply", "cap")),
    ("Slashing", ("equivocationBps", "mostBps", "verdictDelay", "verdictPeriod")),
)


def runs(*, common: CommonOptions = None) -> int:
    """List the runs whose contracts are known on this machine."""
    common = common or Common()
    paths = [common.deployment] if common.deployment else wiring.deployment_files()
    rows: list[dict[str, Any]] = []
    for path in paths:
        found = wiring.read_deployment(path).deployment
        rows.append(
            {"run": found.run_id.hex(), "chain": found.chain_id, "block": found.block, "rpc": list(found.rpc)}
            | {"hub": address_of(found, "CheckpointHub"), "file": str(path)}
        )
    cells = [(row["run"][:16], row["chain"], row["hub"], ", ".join(row["rpc"]) or "–", row["file"]) for row in rows]
    human = [show.table(("RUN", "CHAIN", "HUB", "RPC", "FILE"), cells)] if rows else ["no deployment is known here"]
    show.emit(rows, as_json=common.json, human=human)
    return 0


def index(
    *,
    rebuild: Annotated[bool, Parameter(negative=(), help="Forget the index and read the chain again.")] = False,
    common: CommonOptions = None,
) -> int:
    """Bring the index up to the chain's head and say what it holds. Every other command does so first, too."""
    common = common or Common()
    if common.offline:
        raise ConfigError("index asks a node", remedy="leave out --offline")

    async def work(session: Session) -> dict[str, Any]:
        if rebuild:
            session.index.write(-1, (), ())
        await session.sync()
        last = session.index.last()
        return {
            "file": str(session.index.path),
            "block": last.number if last else None,
            "hash": last.hash if last else None,
            "events": session.index.count(),
        }

    found = with_session(common, work, sync=False)
    show.emit(found, as_json=common.json, human=lambda: [show.facts(found.items())])
    return 0


def status(*, common: CommonOptions = None) -> int:
    """Where the run and its chain stand."""
    common = common or Common()
    found = with_session(common, summary)
    show.emit(found, as_json=common.json, human=lambda: [status_table(found)])
    return 0


async def summary(session: Session) -> dict[str, Any]:
    """The run at a glance, for `status`, `watch` and `serve`."""
    from ledger.explorer import facts

    last, now = session.index.last(), session.now
    newest = session.epochs[-1] if session.epochs else None
    enrolled = facts.enrolments(session.index).values()
    claimed = sum(facts.claims(session.index).values())
    history = session.history
    return {
        "run": session.deployment.run_id.hex(),
        "chain": session.deployment.chain_id,
        "block": last.number if last else None,
        "block_time": last.timestamp if last else None,
        "block_status": last and await _finality(session),
        "epoch": newest.number if newest else 0,
        "epoch_state": newest.state(now) if newest else None,
        "epoch_proposed_at": newest.proposed_at if newest else None,
        "round": newest.header.last_round if newest else 0,
        "record_round": history.chain.head.round if history else None,
        "model_root": f"0x{newest.header.model_root.hex()}" if newest else None,
        "tokens": newest.header.tokens if newest else 0,
        "peers": newest.header.peers if newest else 0,
        "enrolled": len(enrolled),
        "stake": str(sum(entry.stake for entry in enrolled)),
        "earned": str(newest.header.cumulative_reward if newest else 0),
        "claimed": str(claimed),
        "slashes": len(session.index.events("Slashed")),
        "symbol": await symbol(session),
    }


async def _finality(session: Session) -> dict[str, int]:
    counted = session.index.connection.execute("select status, max(number) from block group by status")
    return {row[0]: row[1] for row in counted}


async def symbol(session: Session) -> str:
    """The token's symbol; empty when nobody can be asked."""
    return str(await session.view_or_none("Token", "symbol") or "")


def status_table(found: dict[str, Any]) -> Any:
    """The run at a glance; `found` is `summary`'s."""
    unit = found["symbol"]
    finality = ", ".join(f"{name} {number:,}" for name, number in (found["block_status"] or {}).items())
    rows: list[tuple[str, object]] = [
        ("run", found["run"]),
        ("chain", found["chain"]),
        ("block", f"{found['block']:,} at {show.when(found['block_time'])} UTC ({finality})" if finality else "–"),
    ]
    if found["epoch"]:
        rows += [
            ("epoch", f"{found['epoch']} {found['epoch_state']}, proposed {show.when(found['epoch_proposed_at'])} UTC"),
            ("round", f"{found['round']:,} anchored" + _ahead(found)),
            ("model", found["model_root"]),
            ("tokens", show.count(found["tokens"])),
        ]
    else:
        rows.append(("epoch", "no checkpoint yet" + _ahead(found)))
    rows += [
        ("peers", f"{found['peers']:,} have earned, {found['enrolled']:,} enrolled"),
        ("stake", show.amount(found["stake"], unit)),
        ("earned", f"{show.amount(found['earned'], unit)}, of which {show.amount(found['claimed'], unit)} claimed"),
        ("slashes", show.count(found["slashes"])),
    ]
    return show.facts(rows)


def _ahead(found: dict[str, Any]) -> str:
    return f", {found['record_round']:,} in the records here" if found["record_round"] is not None else ""


def epochs(
    *,
    tail: Annotated[bool, Parameter(negative=(), help="Stay and print each new checkpoint.")] = False,
    last: Annotated[int, Parameter(help="Only so many newest ones; 0 shows all.")] = 0,
    common: CommonOptions = None,
) -> int:
    """List the checkpoints, those that were rolled back included."""
    from ledger.explorer import facts
    from ledger.explorer.live import follow_epochs

    common = common or Common()

    async def work(session: Session) -> None:
        found = facts.epochs(session.index)[-last if last else 0 :]
        rows, unit = [epoch.as_json(session.now) for epoch in found], await symbol(session)
        show.emit(rows, as_json=common.json and not tail, human=lambda: [epochs_table(rows, unit)])
        if tail:
            await follow_epochs(session, found, as_json=common.json)

    with_session(common, work)
    return 0


def epochs_table(rows: list[dict[str, Any]], unit: str) -> Any:
    """Checkpoints, one a line; `rows` are `Epoch.as_json`'s."""
    columns = (
        "EPOCH",
        "STATE",
        "STATUS",
        "PROPOSED (UTC)",
        "ROUNDS",
        "SIGNED",
        "PEERS",
        "TOKENS",
        f"EARNED {unit}".strip(),
        "MODEL",
    )
    return show.table(
        columns,
        [
            (
                row["epoch"],
                show.state(row["state"]),
                row["status"],
                show.when(row["proposed_at"]),
                f"{row['first_round']}–{row['last_round']}",
                len(row["signers"]),
                show.count(row["peers"]),
                show.count(row["tokens"]),
                show.amount(row["cumulative_reward"]),
                show.short(row["model_root"]),
            )
            for row in rows
        ],
    )


def epoch(
    number: Annotated[int, Parameter(name="E", help="Number of the epoch.")], /, *, common: CommonOptions = None
) -> int:
    """Show one checkpoint: what it says, and who signed it."""
    common = common or Common()
    found, unit = with_session(common, lambda session: _one_epoch(session, number))
    show.emit(found, as_json=common.json, human=lambda: _epoch_tables(found, unit))
    return 0


async def _one_epoch(session: Session, number: int) -> tuple[dict[str, Any], str]:
    from ledger.explorer import facts

    epoch = session.epoch(number)
    before = next((each for each in session.epochs if each.number == number - 1), None)
    attestors = facts.attestors_at(session.index, epoch, await session.attestors())
    signed = set(epoch.signers())
    rows = [
        {"index": place, "attestor": address, "weight": weight, "signed": place in signed}
        for place, (address, weight) in enumerate(attestors or [])
    ]
    funded = await session.view_or_none("RewardPool", "funded", number)
    minted = epoch.header.cumulative_reward - (before.header.cumulative_reward if before else 0)
    more = {"attestors": rows, "reward": str(minted), "funded": None if funded is None else str(funded)}
    return epoch.as_json(session.now) | more, await symbol(session)


def _epoch_tables(found: dict[str, Any], unit: str) -> list[Any]:
    earned = (
        f"+{show.amount(found['reward'], unit)}, {show.amount(found['cumulative_reward'], unit)} since the founding"
    )
    if found["funded"] is not None:
        earned += f" (funded {show.amount(found['funded'], unit)})"
    since = f"{found['state']} since" if found["state"] == "active" else "active from"
    state = f"{found['state']}" if found["state"] == "rolled back" else f"{since} {show.when(found['active_at'])} UTC"
    parts: list[Any] = [
        show.facts(
            [
                ("epoch", f"{found['epoch']}: {state}"),
                ("block", f"{found['block']:,}, {found['status']}, proposed {show.when(found['proposed_at'])} UTC"),
                ("tx", found["tx"]),
                ("rounds", f"{found['first_round']} to {found['last_round']}"),
                ("hash", found["hash"]),
                ("parent", found["parent"]),
                ("model", found["model_root"]),
                ("data", found["data_root"]),
                ("tally", f"{found['tally_root']}, {found['peers']:,} peers"),
                ("earned", earned),
                ("tokens", show.count(found["tokens"])),
            ]
        )
    ]
    if rows := found["attestors"]:
        total = sum(row["weight"] for row in rows)
        have = sum(row["weight"] for row in rows if row["signed"])
        quorum = f"quorum: {show.share(have, total)} of the weight (more than 66.67% is needed)"
        cells = [(row["index"], row["attestor"], row["weight"], "signed" if row["signed"] else "–") for row in rows]
        parts += [f"\n{quorum}", show.table(("#", "ATTESTOR", "WEIGHT", ""), cells)]
    return parts


def params(*, common: CommonOptions = None) -> int:
    """Show the contracts, their constants and the present attestors."""
    common = common or Common()

    async def work(session: Session) -> dict[str, Any]:
        views = {}
        for contract, names in _VIEWS:
            for name in names:
                if (value := await session.view_or_none(contract, name)) is not None:
                    views[f"{contract}.{name}"] = show.plain(value)
        attestors = [{"attestor": address, "weight": weight} for address, weight in await session.attestors() or []]
        return {"contracts": dict(session.deployment.contracts), "constants": views, "attestors": attestors}

    found = with_session(common, work, sync=False)

    def human() -> list[Any]:
        attestors = [(row["attestor"], row["weight"]) for row in found["attestors"]]
        rows = [*found["contracts"].items(), *_flat(found["constants"])]
        return [show.facts(rows), "", show.table(("ATTESTOR", "WEIGHT"), attestors)]

    show.emit(found, as_json=common.json, human=human)
    return 0


def tx(
    hash_: Annotated[str, Parameter(name="HASH", help="Hash of the transaction.")], /, *, common: CommonOptions = None
) -> int:
    """Decode a transaction: the call, what came of it, and its events."""
    common = common or Common()
    text = hash_.lower()
    if len(text) != 66 or not text.startswith("0x") or text[2:].strip("0123456789abcdef"):
        raise ConfigError(f"{hash_!r} is no transaction", remedy="a transaction's hash is 0x and 64 hexadecimal digits")
    found = with_session(common, lambda session: _transaction(session, text), sync=False)
    show.emit(found, as_json=common.json, human=lambda: _transaction_tables(found))
    return 0


async def _transaction(session: Session, text: str) -> dict[str, Any]:
    if session.node is None:
        raise UnreachableError("a transaction is asked of a node", remedy="leave out --offline")
    sent = await session.node.call("eth_getTransactionByHash", [text])
    if sent is None:
        raise DataError(f"the chain has no transaction {text}", remedy="is it of another chain, or not mined yet?")
    receipt = await session.node.call("eth_getTransactionReceipt", [text])
    names = {address.lower(): name for name, address in session.deployment.contracts.items()}
    read = session.interface.read_call(bytes.fromhex(sent["input"][2:]))
    logs = [(log, session.interface.read_log(log)) for log in (receipt or {}).get("logs", [])]
    return {
        "hash": text,
        "from": sent["from"],
        "to": sent.get("to"),
        "contract": names.get((sent.get("to") or "").lower()),
        "call": read[0].name if read else None,
        "arguments": show.plain(read[1]) if read else None,
        "block": int(sent["blockNumber"], 16) if sent.get("blockNumber") else None,
        "succeeded": None if receipt is None else receipt["status"] == "0x1",
        "gas": None if receipt is None else int(receipt["gasUsed"], 16),
        "gas_price": int((receipt or {}).get("effectiveGasPrice", "0x0"), 16),
        "events": [
            {"contract": names.get(log["address"].lower()), "event": event[0].name, "arguments": show.plain(event[1])}
            for log, event in logs
            if event is not None
        ],
    }


def _transaction_tables(found: dict[str, Any]) -> list[Any]:
    outcome = {None: "not mined yet", True: "succeeded", False: "reverted"}[found["succeeded"]]
    call = f"{found['contract'] or found['to']}.{found['call']}" if found["call"] else str(found["to"])
    rows = [("tx", found["hash"]), ("from", found["from"]), ("call", call)]
    rows += [("outcome", f"{outcome} in block {found['block']:,}" if found["block"] is not None else outcome)]
    if found["gas"]:
        rows.append(("gas", f"{found['gas']:,} at {found['gas_price'] / 1e9:.9g} gwei"))
    parts: list[Any] = [show.facts(rows)]
    if found["arguments"]:
        parts += ["", show.facts(_flat(found["arguments"]), title="arguments")]
    for event in found["events"]:
        parts += ["", show.facts(_flat(event["arguments"]), title=f"event {event['contract']}.{event['event']}")]
    return parts


def _flat(values: dict[str, Any], before: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{before}{name}.")
        else:
            rows.append((f"{before}{name}", "\n".join(map(str, value)) if isinstance(value, list) else value))
    return rows


def fees(*, common: CommonOptions = None) -> int:
    """Show what transactions cost now, by what they cost before."""
    common = common or Common()
    found = with_session(common, _fees)

    def human() -> list[Any]:
        rows = [(row["operation"], show.count(row["gas"]), f"{row['cost'] / 1e18:.9f}") for row in found["operations"]]
        price = f"gas price {found['gas_price'] / 1e9:.9g} gwei (an L2's fee for data comes on top)"
        return [price, show.table(("LAST SEEN", "GAS", "COST IN ETHER"), rows)]

    show.emit(found, as_json=common.json, human=human)
    return 0


async def _fees(session: Session) -> dict[str, Any]:
    if session.node is None:
        raise UnreachableError("prices are asked of a node", remedy="leave out --offline")
    price = int(await session.node.call("eth_gasPrice", []), 16)
    rows = []
    for name in ("CheckpointProposed", "Claimed", "Enrolled", "UsagePaid", "EquivocationProven"):
        if not (events := session.index.events(name)):
            continue
        receipt = await session.node.call("eth_getTransactionReceipt", [events[-1]["tx"]])
        if receipt is not None:
            gas = int(receipt["gasUsed"], 16)
            rows.append({"operation": name, "gas": gas, "cost": gas * price, "tx": events[-1]["tx"]})
    return {"gas_price": price, "operations": rows}
