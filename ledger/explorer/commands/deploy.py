"""A run's contracts on a chain, and wallets to pay for it: what a founder does once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Group, Parameter

from dht.errors import ConfigError
from ledger.explorer import show, spend, wiring
from ledger.explorer.options import checksummed, parse_address

if TYPE_CHECKING:
    from ledger.chain.deploy import Terms

TERMS = Group("What the contracts are made with, for ever", sort_key=70)
wallet = App(name="wallet", help="Keystore files, version 3: who pays for transactions.")


def _term(text: str) -> Parameter:
    return Parameter(group=TERMS, help=text, negative="")


@dataclass(frozen=True, slots=True, kw_only=True)
class TermOptions:
    """`ledger.chain.deploy.Terms` as flags; amounts in tokens."""

    treasury: Annotated[str, _term("Address that gets the treasury's part of usage fees.")]
    data_providers: Annotated[str, _term("Address that gets the data providers' part.")]
    name: Annotated[str, _term("Of the token.")] = "Murmuration"
    symbol: Annotated[str, _term("Of the token.")] = "MURM"
    cap: Annotated[str, _term("Most tokens there will ever be.")] = "1000000000"
    emission: Annotated[str, _term("Tokens that an epoch's contributors earn at most.")] = "1000"
    genesis: Annotated[tuple[str, ...], _term("ADDRESS=TOKENS, minted once; again for more.")] = ()
    window: Annotated[int, _term("Seconds in which a checkpoint can be rolled back.")] = 3600
    min_interval: Annotated[int, _term("Least seconds between two checkpoints; the window is at most 62 of them.")] = 60
    unbond_delay: Annotated[int, _term("Seconds until stake that was asked back can be taken.")] = 14 * 86_400

    def terms(self, run_id: bytes, attestors: dict[str, int]) -> Terms:
        """Checked. Raises ConfigError."""
        from ledger.chain.deploy import Terms

        if not 0 <= self.window <= 62 * self.min_interval:
            raise ConfigError(f"--window {self.window} is over 62 times --min-interval", remedy="lower it")
        return Terms(
            run_id,
            attestors,
            parse_address(self.treasury, "--treasury"),
            parse_address(self.data_providers, "--data-providers"),
            name=self.name,
            symbol=self.symbol,
            cap=spend.parse_amount(self.cap),
            emission=spend.parse_amount(self.emission),
            genesis=dict(_genesis(self.genesis)),
            window=self.window,
            min_interval=self.min_interval,
            unbond_delay=self.unbond_delay,
        )


def _genesis(entries: Sequence[str]) -> list[tuple[str, int]]:
    pairs = [entry.partition("=") for entry in entries]
    return [(parse_address(address, "--genesis"), spend.parse_amount(amount)) for address, _, amount in pairs]


def deploy(
    out: Annotated[Path, Parameter(name="FILE", help="The deployment file to write; peers get it with run.toml.")],
    /,
    *,
    rpc: Annotated[tuple[str, ...], Parameter(help="URL of a node; repeat for more.", negative="")],
    run_id: Annotated[str, Parameter(help="Of the run, as run-peer identity says it.")],
    attestor: Annotated[
        tuple[str, ...], Parameter(help="Key address that attests; again for more, at most 64.", negative="")
    ],
    terms: Annotated[TermOptions, Parameter(name="*")],
    keystore: Annotated[Path, Parameter(help="The wallet that pays: a keystore file, version 3.")],
    password_file: Annotated[Path | None, Parameter(help="File whose first line is its password.")] = None,
    dry_run: Annotated[bool, Parameter(negative="", help="Say where the contracts will be, and send nothing.")] = False,
    json: Annotated[bool, Parameter(negative="", help="JSON on stdout.")] = False,
) -> int:
    """Deploy a run's five contracts. Interrupted, the same command goes on where it stopped.

    The addresses follow from the wallet alone, so `--dry-run` can say them before the manifest, and with it the run's
    id, is settled: write `chain_id` and `hub` into `run.toml`, then deploy with the id that it has then.
    """
    from ledger.devnet import contract_terms

    run, weights = contract_terms(run_id, attestor)
    if run is None or weights is None:
        raise ConfigError("a run id and attestors are needed", remedy="run-peer identity says both of a peer")
    if out.exists() and not dry_run:
        raise ConfigError(f"{out} exists", remedy="give another file")
    agreed, payer = terms.terms(run, weights), spend.WalletOptions(keystore=keystore, password_file=password_file)
    if dry_run:
        found, done = asyncio.run(_plan(rpc, agreed, payer)), "Nothing was sent; this is where they will be."
    else:
        found, done = asyncio.run(_deploy(out, rpc, agreed, payer)), f"Deployed; {out} is for every peer."
    show.emit(found, as_json=json, human=lambda: _words(found, done))
    return 0


async def _deploy(out: Path, urls: Sequence[str], terms: Terms, payer: spend.WalletOptions) -> dict[str, Any]:
    from ledger.chain.deploy import deploy
    from ledger.chain.rpc import RpcPool
    from ledger.chain.sender import Sender

    assert payer.keystore is not None
    async with RpcPool(urls) as rpc:
        with wiring.open_wallet(await rpc.check(), payer.keystore, payer.password_file) as (paying, journal):
            made = await deploy(rpc, Sender(rpc, paying, journal), terms)
        made.save(out)
        return made.to_json()


async def _plan(urls: Sequence[str], terms: Terms, payer: spend.WalletOptions) -> dict[str, Any]:
    from ledger.chain.deploy import planned
    from ledger.chain.rpc import RpcPool

    async with RpcPool(urls) as rpc:
        places = await planned(rpc, payer.address())
        return {"chain_id": await rpc.check(), "contracts": places, "run_id": f"0x{terms.run_id.hex()}"}


def _words(found: dict[str, Any], done: str) -> list[Any]:
    ledger = f'chain_id = {found["chain_id"]}\nhub = "{found["contracts"]["CheckpointHub"]}"'
    return [show.facts(list(found["contracts"].items())), f"{done} For run.toml:\n[ledger]\n{ledger}"]


@wallet.command
def new(
    path: Annotated[Path, Parameter(name="FILE", help="The keystore to write; nothing is overwritten.")],
    /,
    *,
    password_file: Annotated[Path | None, Parameter(help="File whose first line is to be its password.")] = None,
    json: Annotated[bool, Parameter(negative="", help="JSON on stdout.")] = False,
) -> int:
    """Make a wallet. Its key is in the file alone: keep a copy, and the password."""
    from os import urandom

    from ledger.chain.wallet import Wallet, read_password

    password = read_password(password_file)
    if not password:
        raise ConfigError("the password is empty", remedy="choose one")
    made = Wallet(urandom(32))
    made.save(path, password)
    show.emit({"address": made.address, "keystore": str(path)}, as_json=json, human=lambda: [made.address])
    return 0


@wallet.command
def address(
    path: Annotated[Path, Parameter(name="FILE", help="A keystore file.")],
    /,
    *,
    json: Annotated[bool, Parameter(negative="", help="JSON on stdout.")] = False,
) -> int:
    """Show a wallet's address; takes no password."""
    found = checksummed(spend.WalletOptions(keystore=path).address())
    show.emit({"address": found, "keystore": str(path)}, as_json=json, human=lambda: [found])
    return 0
