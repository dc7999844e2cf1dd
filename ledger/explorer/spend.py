"""What commands that change something have in common: a plan of calls, shown, tried, printed as calldata, or sent."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cyclopts import Group, Parameter

from dht.errors import ConfigError, IdentityError, MurmurationError, UnreachableError
from ledger.explorer import show, wiring
from ledger.explorer.options import Common, parse_address
from ledger.indexer.node import address_of

if TYPE_CHECKING:
    from ledger.explorer.session import Session

WALLET = Group("Wallet", sort_key=80)


@dataclass(frozen=True, slots=True, kw_only=True)
class WalletOptions:
    """Who sends, and whether anything is sent. A key is never given on the command line."""

    keystore: Annotated[
        Path | None, Parameter(group=WALLET, help="The wallet: a keystore file, version 3.", negative=())
    ] = None
    password_file: Annotated[
        Path | None,
        Parameter(
            group=WALLET,
            help="File whose first line is the wallet's password.",
            negative=(),
            show_default=lambda _: "asked for",
        ),
    ] = None
    sender: Annotated[
        str | None,
        Parameter(name="--from", group=WALLET, help="With --dry-run or --calldata: the wallet's address.", negative=()),
    ] = None
    dry_run: Annotated[bool, Parameter(group=WALLET, help="Try it on the node and send nothing.", negative=())] = False
    calldata: Annotated[
        bool, Parameter(group=WALLET, help="Print what to sign elsewhere; send nothing.", negative=())
    ] = False

    @property
    def given(self) -> bool:
        """Whether anything was said about sending."""
        return self.keystore is not None or self.dry_run or self.calldata

    def address(self) -> str:
        """The wallet's address, which a keystore says without its password. Raises ConfigError, IdentityError."""
        if self.sender is not None:
            if not (self.dry_run or self.calldata):
                raise ConfigError("--from is for --dry-run and --calldata", remedy="give --keystore to send")
            return parse_address(self.sender)
        if self.keystore is None:
            raise ConfigError("no wallet is given", remedy="give --keystore FILE, or --from 0x… with --dry-run")
        try:
            text = str(json.loads(self.keystore.read_text())["address"])
        except OSError as error:
            raise IdentityError(f"cannot read {self.keystore}: {error.strerror}", remedy="check --keystore") from None
        except (ValueError, KeyError, TypeError):
            raise IdentityError(
                f"{self.keystore} is no keystore", remedy="a wallet is a keystore file, version 3"
            ) from None
        return parse_address(f"0x{text.removeprefix('0x')}", "keystore's address")


Amount = Annotated[str, Parameter(name="AMOUNT", help="In tokens, for instance 12.5.")]
WalletChoice = Annotated[WalletOptions | None, Parameter(name="*")]


@dataclass(frozen=True)
class Step:
    """One transaction: which function of which contract, and what it is for."""

    title: str
    contract: str
    function: str
    arguments: tuple[Any, ...]


Plan: TypeAlias = Callable[["Session", WalletOptions], Awaitable[Sequence[Step]]]
"""What a command would send, given the session and who sends."""


async def carry_out(session: Session, steps: Sequence[Step], wallet: WalletOptions) -> list[dict[str, Any]]:
    """Do what the options say with these calls, in order; what came of each."""
    rows = [_described(session, step) for step in steps]
    if wallet.calldata:
        return rows
    if session.node is None:
        raise UnreachableError("a transaction needs a node", remedy="leave out --offline, or use --calldata")
    if wallet.dry_run:
        return await _try(session, rows, wallet.address())
    if wallet.keystore is None:
        raise ConfigError("no wallet is given", remedy="give --keystore FILE, or --dry-run, or --calldata")
    async with wiring.open_sender(session.node, session.deployment, wallet.keystore, wallet.password_file) as sender:
        for row in rows:
            show.remark(f"{row['title']} …")
            receipt = await sender.send(row["to"], bytes.fromhex(row["data"][2:]))
            row |= {"tx": receipt["transactionHash"], "block": int(receipt["blockNumber"], 16)}
            row["gas"] = int(receipt["gasUsed"], 16)
    return rows


def send(plan: Plan, wallet: WalletOptions | None, common: Common | None) -> int:
    """A command that makes its plan and carries it out; prints what came of it."""
    from ledger.explorer.session import with_session

    wallet, common = wallet or WalletOptions(), common or Common()

    async def work(session: Session) -> list[dict[str, Any]]:
        return await carry_out(session, await plan(session, wallet), wallet)

    rows = with_session(common, work)
    show.emit(rows, as_json=common.json, human=lambda: outcome(rows, wallet))
    return 0


async def _try(session: Session, rows: list[dict[str, Any]], sender: str) -> list[dict[str, Any]]:
    """Estimate each call. One that needs the one before it can only fail here, which says nothing."""
    assert session.node is not None
    for place, row in enumerate(rows):
        call = {"from": sender, "to": row["to"], "data": row["data"]}
        try:
            row["gas"] = int(await session.node.call("eth_estimateGas", [call]), 16)
        except UnreachableError:
            raise
        except MurmurationError as error:
            if place == 0:
                raise wiring.explained(error, row["title"]) from None
            row["gas"] = None
    return rows


def _described(session: Session, step: Step) -> dict[str, Any]:
    data = session.interface.call(step.contract, step.function, *step.arguments)
    entry = session.interface.functions[step.contract, step.function]
    named = {parameter.name: value for parameter, value in zip(entry.inputs, step.arguments, strict=True)}
    return {
        "title": step.title,
        "call": f"{step.contract}.{step.function}",
        "arguments": show.plain(named),
        "to": address_of(session.deployment, step.contract),
        "data": f"0x{data.hex()}",
    }


def outcome(rows: Sequence[Mapping[str, Any]], wallet: WalletOptions) -> list[Any]:
    """What people read of `carry_out`'s rows."""
    if wallet.calldata:
        return [f"{row['to']} {row['data']}" for row in rows]
    parts: list[Any] = []
    for row in rows:
        if wallet.dry_run:
            gas = f"{row['gas']:,} gas" if row["gas"] else "can be tried once the one before it is mined"
            parts.append(f"would send {row['call']}: {row['title']} ({gas})")
        else:
            parts.append(f"{row['title']}: block {row['block']:,}, {row['gas']:,} gas, {row['tx']}")
    return parts


async def allowance(session: Session, wallet: WalletOptions, spender: str, units: int) -> list[Step]:
    """The approval that lets a contract take tokens; nothing where enough is approved already."""
    address = address_of(session.deployment, spender)
    if session.node is not None and (wallet.keystore is not None or wallet.sender is not None):
        owner = wallet.address()
        if (await session.view_or_none("Token", "allowance", owner, address) or 0) >= units:
            return []
        balance = await session.view_or_none("Token", "balanceOf", owner)
        if balance is not None and balance < units:
            have, need = show.amount(balance), show.amount(units)
            raise ConfigError(
                f"the wallet {owner} has {have} tokens, not {need}", remedy="take less, or get more tokens"
            )
    return [Step(f"let {spender} take {show.amount(units)} tokens", "Token", "approve", (address, units))]


def parse_amount(text: str) -> int:
    """Units (1e-18) of an amount in tokens such as 12.5. Raises ConfigError."""
    if not re.fullmatch(r"\d{1,20}(\.\d{1,18})?", text) or not any(digit in text for digit in "123456789"):
        raise ConfigError(f"{text!r} is no amount", remedy="an amount is in tokens, for instance 100 or 12.5")
    whole, _, part = text.partition(".")
    return int(whole) * show.UNIT + int(part.ljust(18, "0"))


def parse_bytes32(text: str, what: str) -> bytes:
    """32 bytes of 0x hex. Raises ConfigError."""
    try:
        value = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        value = b""
    if len(value) != 32:
        raise ConfigError(f"{what} {text!r} is not 32 bytes", remedy="give 0x and 64 hexadecimal digits")
    return value
