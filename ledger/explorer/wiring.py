"""Where the explorer meets the rest of the ledger: artifacts, deployments, nodes, senders. All glue is here."""

from __future__ import annotations

import json
import tomllib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Any, Protocol, cast

from platformdirs import user_data_path

from dht.errors import ConfigError, DataError, IncompatibleRunError, MurmurationError
from ledger.chain import artifacts
from ledger.chain.deployments import DEVNET_FILE, Deployment
from ledger.indexer.abi import Interface
from ledger.indexer.node import Node

if TYPE_CHECKING:
    from ledger.chain.journal import Journal
    from ledger.chain.wallet import Wallet

INDEXED = artifacts.CONTRACTS[1:]
"""Contracts whose events are indexed: transfers of the token are left to who trades it."""
_POLL = 0.5


class ClosableNode(Node, Protocol):
    """A node whose connections are to be closed."""

    async def close(self) -> None:
        """Close all connections."""


class Sender(Protocol):
    """Whoever signs and sends transactions, one after another, and waits until they are mined."""

    async def send(self, to: str, data: bytes) -> Mapping[str, Any]:
        """Send a call and wait; the receipt as JSON-RPC gives it. Raises one of the project's errors."""


@dataclass(frozen=True)
class Found:
    """A deployment and the file that says so, with what that says of the run's constants."""

    path: Path
    deployment: Deployment
    constants: Mapping[str, int] = field(default_factory=dict)


def interface(names: Sequence[str] = artifacts.CONTRACTS) -> Interface:
    """The contracts' interfaces from the artifacts that come with the package."""
    return Interface({name: artifacts.load(name).abi for name in names})


def is_ours(name: str, code: bytes) -> bool:
    """Whether code on a chain is that of a contract of this version."""
    return artifacts.load(name).is_code(code)


def find_deployment(path: Path | None) -> Found:
    """The deployment of this file, else of the first place that has one. Raises ConfigError."""
    if path is not None:
        return read_deployment(path)
    for place in deployment_files():
        return read_deployment(place)
    raise ConfigError(
        "it is not known where the contracts are",
        remedy="give --deployment FILE (devnet.json or deployments/CHAIN_ID.json)",
    )


def deployment_files() -> list[Path]:
    """All deployment files that are found unasked: here, of this machine's chain, and those of the package."""
    local = [Path(DEVNET_FILE), user_data_path("murmuration", appauthor=False) / "chain" / DEVNET_FILE]
    shipped = resources.files("ledger") / "deployments"
    known = sorted(Path(str(shipped)).glob("*.json")) if shipped.is_dir() else []
    return [path for path in (*local, *known) if path.is_file()]


def read_deployment(path: Path) -> Found:
    """A deployment file, which may also hold `constants` of the run. Raises ConfigError."""
    deployment = Deployment.load(path)
    constants = json.loads(path.read_text()).get("constants", {})
    if not isinstance(constants, dict) or not all(type(value) is int for value in constants.values()):
        raise ConfigError(f"the constants in {path} are no numbers", remedy="get the file again")
    return Found(path, deployment, constants)


def ledger_of(manifest: Path) -> dict[str, Any]:
    """The [ledger] section of a run's manifest, unchecked. Raises DataError."""
    try:
        section = tomllib.loads(manifest.read_text()).get("ledger", {})
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {manifest}: {error}", remedy="give --run the run.toml of the run") from None
    return section if isinstance(section, dict) else {}


def check_manifest(manifest: Path, deployment: Deployment) -> None:
    """Raises IncompatibleRunError where the manifest names another chain or hub than the deployment has."""
    ledger, hub = ledger_of(manifest), deployment.contracts["CheckpointHub"].lower()
    agreed = (ledger.get("chain_id"), ledger.get("hub"))
    if ledger.get("hub") and agreed != (deployment.chain_id, hub):
        raise IncompatibleRunError(
            f"{manifest} names hub {agreed[1]} on chain {agreed[0]}, the deployment has {hub} on {deployment.chain_id}",
            remedy="give the --deployment of this run",
        )


def connect(urls: Sequence[str], deployment: Deployment) -> ClosableNode:
    """A node behind these URLs, of the deployment's chain. Raises ConfigError when there is none."""
    from ledger.chain.rpc import RpcPool

    return RpcPool(urls, deployment.chain_id)


def explained(error: MurmurationError, what: str) -> MurmurationError:
    """What a node said of a call that cannot succeed, in the contract's words."""
    from ledger.chain.errors import RefusedError

    return artifacts.reverted(what, error.text, error.data) if isinstance(error, RefusedError) else error


@asynccontextmanager
async def open_sender(
    node: Node, deployment: Deployment, keystore: Path, password_file: Path | None
) -> AsyncIterator[Sender]:
    """A sender for the wallet of a keystore file, whose journal lies in the data folder.

    Raises IdentityError for a wrong password or file, LockedError when another process sends from the wallet.
    """
    from ledger.chain.rpc import RpcPool
    from ledger.chain.sender import Policy
    from ledger.chain.sender import Sender as Journalled

    with open_wallet(deployment.chain_id, keystore, password_file) as (wallet, journal):
        yield _Once(Journalled(cast(RpcPool, node), wallet, journal, Policy(poll=_POLL)), journal)


@contextmanager
def open_wallet(chain_id: int, keystore: Path, password_file: Path | None) -> Iterator[tuple[Wallet, Journal]]:
    """A wallet and its journal on one chain. Raises IdentityError, LockedError."""
    from ledger.chain.journal import Journal
    from ledger.chain.wallet import Wallet, read_password

    wallet = Wallet.load(keystore, read_password(password_file))
    name = f"{chain_id}-{wallet.address[2:].lower()}"
    journal = Journal(user_data_path("murmuration", appauthor=False) / "wallets" / name)
    try:
        yield wallet, journal
    finally:
        journal.close()


class _Once:
    """Sends what commands ask for; the same call that an interrupted command began is finished, not sent again."""

    def __init__(self, sender: Any, journal: Any) -> None:
        self._sender, self._journal = sender, journal

    async def send(self, to: str, data: bytes) -> Mapping[str, Any]:
        """As `Sender.send`."""
        from ledger.chain.journal import Intent

        receiver = bytes.fromhex(to[2:])
        begun = [intent for intent, done in self._journal.unsettled() if done is None]
        same = [intent for intent in begun if (intent.receiver, intent.data) == (receiver, data)]
        intent = same[0] if same else Intent(f"explorer/{time_ns()}", receiver, data)
        receipt = await self._sender.land(intent)
        return cast(Mapping[str, Any], receipt)
