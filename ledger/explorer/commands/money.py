"""What is earned, staked and paid, and how to move it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from dht.errors import DataError
from ledger.explorer import show, spend
from ledger.explorer.options import Common, CommonOptions
from ledger.explorer.session import Session, with_session
from ledger.explorer.spend import Amount, Step, WalletChoice, WalletOptions

if TYPE_CHECKING:
    from ledger.explorer.facts import Epoch

rewards = App(name="rewards", help="What a peer earned, and claiming it.")
stake = App(name="stake", help="Add stake, ask for it back, and take it.")
usage = App(name="usage", help="Pay for the use of a model, and see who did.")

Who = Annotated[str, Parameter(name="WHO", help="Peer id, wallet, or key address.")]


@rewards.command(name="show")
def rewards_show(who: Who, /, *, common: CommonOptions = None) -> int:
    """Show what a peer earned, claimed, and may claim now."""
    from ledger.explorer.commands.network import symbol

    common = common or Common()

    async def work(session: Session) -> tuple[dict[str, Any], str]:
        from ledger.explorer import people

        found = people.find(people.peers(session), who)
        active = _claimable(session)
        row = {"account": found.key, "peer": found.peer, "paid_to": found.wallet or found.former_of or found.key}
        row |= {name: value for name, value in found.as_json().items() if name in ("earned", "claimed", "claimable")}
        return row | {"active_epoch": active.number if active else None}, await symbol(session)

    found, unit = with_session(common, work)
    amounts = {name: found[name] for name in ("earned", "claimed", "claimable")}
    rows = [(name.replace("_", " "), found[name] or "–") for name in ("account", "peer", "paid_to", "active_epoch")]
    rows += [(name, "unknown without --records" if v is None else show.amount(v, unit)) for name, v in amounts.items()]
    show.emit(found, as_json=common.json, human=lambda: [show.facts(rows)])
    return 0


@rewards.command(name="claim")
def rewards_claim(
    who: Who,
    /,
    *,
    epoch: Annotated[
        int, Parameter(help="Against this checkpoint.", show_default=lambda _: "the newest active one")
    ] = 0,
    wallet: WalletChoice = None,
    common: CommonOptions = None,
) -> int:
    """Claim what a peer earned. Anybody may: it is paid to the peer's wallet, else to its key address."""

    async def plan(session: Session, wallet: WalletOptions) -> list[Step]:
        from ledger.explorer.commands.records import prove

        chosen = session.epoch(epoch) if epoch else _claimable(session)
        if chosen is None or chosen.state(session.now) != "active":
            pending = chosen or (session.epochs[-1] if session.epochs else None)
            since = (
                f"epoch {pending.number} is active from {show.when(pending.active_at)} UTC"
                if pending
                else "there is none"
            )
            raise DataError(f"no checkpoint to claim against: {since}", remedy="claim once it is active")
        proof = prove(session, who, chosen)
        cumulative, account = int(proof["cumulative"]), proof["account"]
        before = await session.view_or_none("RewardPool", "claimed", account) or 0
        if cumulative <= before:
            raise DataError(f"{account} has claimed all that it had earned", remedy="wait for the next checkpoint")
        path = [bytes.fromhex(step[2:]) for step in proof["proof"]]
        title = f"claim {show.amount(cumulative - before)} tokens for {account}"
        return [Step(title, "RewardPool", "claim", (chosen.number, account, cumulative, path))]

    return spend.send(plan, wallet, common)


def _claimable(session: Session) -> Epoch | None:
    """The newest checkpoint that is active."""
    active = [epoch for epoch in session.epochs if epoch.state(session.now) == "active"]
    return active[-1] if active else None


@stake.command
def add(amount: Amount, /, *, wallet: WalletChoice = None, common: CommonOptions = None) -> int:
    """Add to the stake of an enrolled wallet."""
    units = spend.parse_amount(amount)

    async def plan(session: Session, wallet: WalletOptions) -> list[Step]:
        approval = await spend.allowance(session, wallet, "PeerRegistry", units)
        return [*approval, Step(f"stake {amount} tokens more", "PeerRegistry", "addStake", (units,))]

    return spend.send(plan, wallet, common)


@stake.command
def unbond(amount: Amount, /, *, wallet: WalletChoice = None, common: CommonOptions = None) -> int:
    """Ask for stake back. It can be withdrawn after the unbonding delay, and slashed until then."""
    units = spend.parse_amount(amount)

    async def plan(session: Session, wallet: WalletOptions) -> list[Step]:
        return [Step(f"ask for {amount} tokens of stake back", "PeerRegistry", "requestUnbond", (units,))]

    return spend.send(plan, wallet, common)


@stake.command
def withdraw(*, wallet: WalletChoice = None, common: CommonOptions = None) -> int:
    """Take the stake whose unbonding delay is over."""

    async def plan(session: Session, wallet: WalletOptions) -> list[Step]:
        return [Step("withdraw what is unbonded", "PeerRegistry", "withdraw", ())]

    return spend.send(plan, wallet, common)


@usage.command
def pay(
    amount: Amount,
    /,
    *,
    model: Annotated[
        str,
        Parameter(help="Root of the model that was used, 0x hex.", show_default=lambda _: "the newest anchored one"),
    ] = "",
    wallet: WalletChoice = None,
    common: CommonOptions = None,
) -> int:
    """Pay a fee for the use of a model: shared by contributors, data providers, attestors and the treasury."""
    units = spend.parse_amount(amount)
    given = spend.parse_bytes32(model, "--model") if model else None

    async def plan(session: Session, wallet: WalletOptions) -> list[Step]:
        root = given
        if root is None:
            if not session.epochs:
                raise DataError("no model is anchored yet", remedy="name it with --model")
            root = session.epochs[-1].header.model_root
        approval = await spend.allowance(session, wallet, "RewardPool", units)
        title = f"pay {amount} tokens for model 0x{root.hex()[:16]}…"
        return [*approval, Step(title, "RewardPool", "payUsage", (root, units))]

    return spend.send(plan, wallet, common)


@usage.command
def pay_attestors(*, wallet: WalletChoice = None, common: CommonOptions = None) -> int:
    """Pay the attestors of now, by weight, their part of all fees so far. Anybody may; what does not divide waits."""

    async def plan(session: Session, wallet: WalletOptions) -> list[Step]:
        due = await session.view_or_none("RewardPool", "attestorsDue")
        title = (
            "pay the attestors their part of the fees" if due is None else f"pay attestors {show.amount(due)} tokens"
        )
        return [Step(title, "RewardPool", "payAttestors", ())]

    return spend.send(plan, wallet, common)


@usage.command(name="history")
def usage_history(*, common: CommonOptions = None) -> int:
    """List all usage fees and where their parts went."""
    from ledger.explorer import facts

    common = common or Common()

    async def work(session: Session) -> list[dict[str, Any]]:
        return facts.usage(session.index)

    rows = with_session(common, work)
    parts = ("amount", "contributors", "data_providers", "attestors", "treasury")
    cells = [
        (
            show.when(row["time"]),
            show.fit(row["payer"]),
            show.short(row["model"]),
            *(show.amount(row[part]) for part in parts),
        )
        for row in rows
    ]
    columns = ("TIME (UTC)", "PAYER", "MODEL", *(part.replace("_", " ").upper() for part in parts))
    show.emit(rows, as_json=common.json, human=lambda: [show.table(columns, cells) if rows else "nobody has paid yet"])
    return 0
