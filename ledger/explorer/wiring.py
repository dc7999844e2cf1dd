"""Where the explorer meets the rest of the ledger: artifacts, deployments, nodes, senders. All glue is here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from platformdirs import user_data_path

from dht.errors import ConfigError, UnreachableError
from ledger.indexer.abi import Interface
from ledger.indexer.node import Deployment, Node
from ledger.rewards import Constants

DEPLOYMENT_FILE = "devnet.json"
CONTRACTS = ("Token", "PeerRegistry", "CheckpointHub", "RewardPool", "Slashing")
INDEXED = CONTRACTS[1:]
"""Contracts whose events are indexed: transfers of the token are left to who trades it."""
_TIMEOUT = 30.0


class Sender(Protocol):
    """Whoever signs and sends transactions, one after another, and waits until they are mined."""

    @property
    def address(self) -> str:
        """The wallet's address."""

    async def send(self, to: str, data: bytes) -> Mapping[str, Any]:
        """Send a call and wait; the receipt as JSON-RPC gives it. Raises one of the project's errors."""


@dataclass(frozen=True)
class Found:
    """A deployment and the file that says so; `constants` when the file has them."""

    path: Path
    deployment: Deployment
    constants: Constants | None


def interface(names: Sequence[str] = CONTRACTS) -> Interface:
    """The contracts' interfaces from the artifacts that come with the package."""
    artifacts = _artifacts()
    return Interface({name: json.loads(artifacts[name])["abi"] for name in names})


def _artifacts() -> dict[str, str]:
    folder = resources.files("ledger") / "artifacts"
    found = {name: folder / f"{name}.json" for name in CONTRACTS}
    missing = [name for name, file in found.items() if not file.is_file()]
    if missing:
        raise ConfigError(
            f"the artifacts of {', '.join(missing)} are not installed", remedy="install the package again"
        )
    return {name: file.read_text() for name, file in found.items()}


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
    local = [Path(DEPLOYMENT_FILE), user_data_path("murmuration", appauthor=False) / "chain" / DEPLOYMENT_FILE]
    shipped = resources.files("ledger") / "deployments"
    known = sorted(Path(str(shipped)).glob("*.json")) if shipped.is_dir() else []
    return [path for path in (*local, *known) if path.is_file()]


def read_deployment(path: Path) -> Found:
    """A deployment file. Raises ConfigError that says what is wrong with it."""
    try:
        value = json.loads(path.read_text())
        deployment = Deployment(
            int(value["chain_id"]),
            {str(name): str(address) for name, address in value["contracts"].items()},
            int(value.get("block", 0)),
            tuple(value.get("rpc", ())),
            bytes.fromhex(str(value["run_id"]).removeprefix("0x")),
        )
        constants = Constants(**value["constants"]) if "constants" in value else None
    except FileNotFoundError:
        raise ConfigError(
            f"there is no deployment file {path}", remedy="contribution-explorer devnet up makes one"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"cannot read the deployment {path}: {error!r}", remedy="get the file again") from None
    return Found(path, deployment, constants)


def connect(urls: Sequence[str]) -> Node:
    """A node behind these URLs. Raises ConfigError when there is none."""
    if not urls:
        raise ConfigError("no node is known", remedy="give --rpc URL")
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url!r} is no node's URL", remedy="for instance http://127.0.0.1:8545")
    return HttpNode(urls)


class HttpNode:
    """JSON-RPC over HTTP, the first URL that answers. For reading: whoever sends uses the pool."""

    rpc_code = None

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = list(urls)

    async def call(self, method: str, params: Sequence[Any]) -> Any:
        """The result. Raises UnreachableError when no URL answers, and RefusedError when one says no."""
        import asyncio

        return await asyncio.to_thread(self._call, method, list(params))

    def _call(self, method: str, params: list[Any]) -> Any:
        import urllib.error
        import urllib.request

        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        problem = ""
        for url in self._urls:
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                    answer = json.load(response)
            except urllib.error.HTTPError as error:
                problem = f"{url}: HTTP {error.code}{' (too many requests)' if error.code == 429 else ''}"
            except (OSError, ValueError) as error:
                problem = f"{url}: {getattr(error, 'reason', error)}"
            else:
                if "error" in answer:
                    raise RefusedError(answer["error"])
                return answer.get("result")
        raise UnreachableError(
            f"no node answers: {problem}", remedy="is it running? give --rpc another URL, or --offline"
        )


class RefusedError(UnreachableError):
    """A node answered with an error. `rpc_code` and `data` are JSON-RPC's."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(f"the node refused: {error.get('message', error)}")
        self.rpc_code = error.get("code")
        self.data = error.get("data")


def open_sender(node: Node, deployment: Deployment, keystore: Path, password: str) -> Sender:
    """A sender for the wallet of a keystore-v3 file. Raises IdentityError for a wrong password or file."""
    raise NotImplementedError
