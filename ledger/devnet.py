"""A throw-away network on this machine: a chain, the contracts on it, and accounts with something to spend.

Everything stays in one folder: `devnet.json` (where the contracts are), `accounts/` (keystores, all with one public
password), and the chain. Started again, it goes on where it stopped. Never put anything of value there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from platformdirs import user_data_path

from ledger.chain.choose import Kind

if TYPE_CHECKING:
    from ledger.chain.deploy import Terms
    from ledger.chain.deployments import Deployment
    from ledger.chain.rpc import RpcPool
    from ledger.chain.wallet import Wallet

PASSWORD = "devnet"
ACCOUNTS = 10
WINDOW = 60
"""Seconds in which a quorum may roll a checkpoint back."""
ETHER = 10**18
_SCRYPT_ROUNDS = 4096  # the password is public anyway

app = App(name="devnet", help="A chain on this machine with the contracts deployed, for trying things out.")


@dataclass(frozen=True)
class Devnet:
    """A running network. `keystores`: file by address; all open with `PASSWORD`."""

    kind: str
    deployment: Deployment
    keystores: Mapping[str, Path]
    file: Path

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "event": "ready",
            "kind": self.kind,
            **self.deployment.to_json(),
            "deployment": str(self.file),
            "accounts": [{"address": address, "keystore": str(path)} for address, path in self.keystores.items()],
            "password": PASSWORD,
        }


@asynccontextmanager
async def devnet(
    folder: Path,
    kind: Kind = "auto",
    port: int = 0,
    *,
    run_id: bytes | None = None,
    attestors: Mapping[str, int] | None = None,
    accounts: int = ACCOUNTS,
    window: int = WINDOW,
    dev: bool = True,
) -> AsyncIterator[Devnet]:
    """Start the chain, deploy what is missing, yield. `attestors`: weight by key address, else the first four accounts.

    `dev`: whether callers may move the embedded chain's time and history.

    Raises what `ledger.chain.choose.chain` and `ledger.chain.deploy.deploy` do.
    """
    from ledger.chain.choose import CHAIN_ID, chain
    from ledger.chain.deployments import DEVNET_FILE
    from ledger.chain.rpc import RpcPool

    file = folder / DEVNET_FILE
    wallets, keystores = open_accounts(folder / "accounts", accounts)
    alloc = {bytes.fromhex(wallet.address[2:]): 10_000 * ETHER for wallet in wallets}
    async with (
        chain(kind, folder / "chain", port=port, alloc=alloc, dev=dev) as running,
        RpcPool(running.urls, CHAIN_ID) as rpc,
    ):
        terms = _terms(wallets, run_id or _known_run(file), attestors, window)
        deployment = await _deploy(rpc, wallets[0], folder / "deployer", terms)
        deployment.save(file)
        yield Devnet(running.kind, deployment, keystores, file)


async def up(
    network: AbstractAsyncContextManager[Devnet], *, on_ready: Callable[[Devnet], None], stop: asyncio.Event
) -> int:
    """Run a devnet until `stop` is set; `on_ready` is called once, when it can be used."""
    async with network as running:
        on_ready(running)
        await stop.wait()
    return 0


def open_accounts(folder: Path, count: int) -> tuple[list[Wallet], dict[str, Path]]:
    """The devnet's wallets, made when there are fewer than `count`. Raises IdentityError."""
    from os import urandom

    from ledger.chain.wallet import Wallet

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    wallets, keystores = [], {}
    for index in range(count):
        path = folder / f"{index:02}.json"
        if not path.exists():
            Wallet(urandom(32)).save(path, PASSWORD, iterations=_SCRYPT_ROUNDS)
        wallet = Wallet.load(path, PASSWORD)
        wallets.append(wallet)
        keystores[wallet.address] = path
    return wallets, keystores


def _terms(wallets: Sequence[Wallet], run_id: bytes, attestors: Mapping[str, int] | None, window: int) -> Terms:
    from ledger.chain.deploy import UNIT, Terms

    return Terms(
        run_id,
        attestors or {wallet.address: 1 for wallet in wallets[:4]},
        treasury=wallets[-1].address,
        data_providers=wallets[-1].address,
        genesis={wallet.address: 100_000 * UNIT for wallet in wallets},
        window=window,
        min_interval=1,
    )


def _known_run(file: Path) -> bytes:
    """The run that this devnet was made for, else one of no name."""
    from hashlib import sha256

    from ledger.chain.deployments import Deployment

    return Deployment.load(file).run_id if file.exists() else sha256(b"murmuration/devnet").digest()


async def _deploy(rpc: RpcPool, wallet: Wallet, folder: Path, terms: Terms) -> Deployment:
    from ledger.chain.deploy import deploy
    from ledger.chain.journal import Journal
    from ledger.chain.sender import Policy, Sender

    journal = Journal(folder)
    try:
        deployment = await deploy(rpc, Sender(rpc, wallet, journal, Policy(poll=0.05)), terms)
    finally:
        journal.close()
    return replace(deployment, rpc=tuple(rpc.urls))


@app.command(name="up")
def up_command(
    *,
    folder: Annotated[Path | None, Parameter(name="--data-dir", help="Where everything is kept.")] = None,
    chain: Annotated[Kind, Parameter(help="auto: anvil if it is found, else the embedded chain.")] = "auto",
    port: Annotated[int, Parameter(help="TCP port of the RPC on 127.0.0.1; 0 for any free one.")] = 8545,
    run_id: Annotated[str, Parameter(help="32 bytes as hex: the run that the contracts are for.")] = "",
    attestor: Annotated[
        tuple[str, ...], Parameter(help="Key address that attests; again for more. Default: four accounts.")
    ] = (),
    accounts: Annotated[int, Parameter(help="Funded accounts.")] = ACCOUNTS,
    window: Annotated[
        int, Parameter(help="Seconds in which a checkpoint may be rolled back; fixed at first.")
    ] = WINDOW,
    json: Annotated[bool, Parameter(negative="", help="One JSON object per line on stdout.")] = False,
) -> int:
    """Start a chain with the contracts and funded accounts; run until Ctrl-C."""
    from dht.errors import ConfigError
    from dht.exits import until_stopped

    if chain == "rpc":
        raise ConfigError("a devnet runs its own chain", remedy="--chain auto, anvil or embedded")
    if not 5 <= accounts <= 100:
        raise ConfigError(f"--accounts {accounts} is too few or too many", remedy="5 to 100")
    if not 0 <= window <= WINDOW:
        raise ConfigError(f"--window {window} is too short or too long", remedy=f"0 to {WINDOW} seconds")
    place = folder or user_data_path("murmuration", appauthor=False) / "chain"
    run, weights = contract_terms(run_id, attestor)

    def work(stop: asyncio.Event) -> Awaitable[int]:
        network = devnet(place, chain, port, run_id=run, attestors=weights, accounts=accounts, window=window)
        return up(network, on_ready=_print_json if json else _print, stop=stop)

    return asyncio.run(until_stopped(work))


def contract_terms(run_id: str, attestors: Sequence[str]) -> tuple[bytes | None, dict[str, int] | None]:
    """Run id and weight by key address (1 each) from flags; None for what was not given. Raises ConfigError."""
    run = _hex(run_id, 32, "--run-id") if run_id else None
    return run, {"0x" + _hex(key, 20, "--attestor").hex(): 1 for key in attestors} or None


def _hex(text: str, size: int, name: str) -> bytes:
    from dht.errors import ConfigError

    try:
        value = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        value = b""
    if len(value) != size:
        raise ConfigError(f"{name} {text} is not {size} bytes of hex", remedy="check it")
    return value


def _print_json(network: Devnet) -> None:
    print(json.dumps(network.to_json()), flush=True)


def _print(network: Devnet) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table

    chain = network.deployment
    table = Table("what", "where", title=f"{network.kind} chain {chain.chain_id}", box=None)
    table.add_row("RPC", chain.rpc[0])
    for name, address in chain.contracts.items():
        table.add_row(name, address)
    for address, path in network.keystores.items():
        table.add_row(address, str(path))
    Console(soft_wrap=True).print(table)
    print(f"All keystores have the password {PASSWORD!r}. Ctrl-C stops; the same command goes on.", file=sys.stderr)
