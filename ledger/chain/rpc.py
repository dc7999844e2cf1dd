"""Several nodes as one: JSON-RPC with fail-over, and no word from a node of another chain.

Every node is asked for its chain id, and for the code of the contracts, before its first answer counts and again
after it was out of reach. A wrong chain or foreign code is not failed over but raised: somebody gave a wrong URL.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from dht.clock import Clock, SystemClock
from dht.errors import ConfigError, IncompatibleRunError, UnreachableError
from ledger import bounded_json
from ledger.chain.artifacts import Artifact
from ledger.chain.errors import RefusedError

TIMEOUT = 20.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
MOST_ANSWER_BYTES = 64 * 1024 * 1024
# What nodes answer under load, in words or numbers of their own; asking another node is right.
_BUSY_CODES = (-32005, -32016, 429)
_BUSY_WORDS = ("rate limit", "too many requests", "limit exceeded", "capacity exceeded")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Health:
    """How a node has been doing. `resting_until` in seconds of the pool's clock."""

    url: str
    failures: int = 0
    answers: int = 0
    resting_until: float = 0.0
    checked: bool = False
    problem: str = ""


class _NodeError(Exception):
    """This node could not answer; another may. `pause`: seconds that it asked for."""

    def __init__(self, problem: str, pause: float = 0.0) -> None:
        super().__init__(problem)
        self.pause = pause


@dataclass
class RpcPool:
    """The nodes behind `urls`, all of chain `chain_id`. `contracts`: what must be found at which address.

    An async context manager. A node that fails rests for 0.5 s, then twice as long each time, up to a minute; the
    first in order that does not rest is asked, and if all rest, the one that rests least.
    """

    urls: Sequence[str]
    chain_id: int | None = None
    contracts: Mapping[str, Artifact] = field(default_factory=dict)
    clock: Clock = field(default_factory=SystemClock)
    timeout: float = TIMEOUT

    def __post_init__(self) -> None:
        if not self.urls:
            raise ConfigError("no node is known", remedy="give --rpc URL")
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise ConfigError(f"{url!r} is no node's URL", remedy="for instance http://127.0.0.1:8545")
        self.health = [Health(url) for url in self.urls]
        self._ids = itertools.count(1)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> RpcPool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        """The result, from the first node that answers.

        Raises UnreachableError with every node's problem when none does, RefusedError when one says no, and
        IncompatibleRunError when one is of another chain.
        """
        for node in sorted(self.health, key=lambda node: max(node.resting_until, self.clock.now())):
            try:
                if not node.checked:
                    await self._check(node)
                result = await self._ask(node.url, method, params)
            except _NodeError as error:
                self._rest(node, error)
                continue
            node.failures, node.problem = 0, ""
            node.answers += 1
            return result
        problems = "; ".join(f"{node.url}: {node.problem}" for node in self.health)
        raise UnreachableError(f"no node answers {method}: {problems}", remedy="check --rpc, or wait")

    async def check(self) -> int:
        """Look at every node that can be reached, not only the first; returns the chain id. Raises like `call`."""
        for node in self.health:
            try:
                await self._check(node)
            except _NodeError as error:
                self._rest(node, error)
        return int(await self.call("eth_chainId"), 16)

    def _rest(self, node: Health, error: _NodeError) -> None:
        node.failures += 1
        node.problem, node.checked = str(error), False
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (node.failures - 1))
        node.resting_until = self.clock.now() + max(pause, min(error.pause, LONGEST_PAUSE))
        _log.warning("%s: %s", node.url, error)

    async def _check(self, node: Health) -> None:
        """Is it our chain, with our contracts? Raises IncompatibleRunError."""
        chain_id = int(await self._ask(node.url, "eth_chainId", ()), 16)
        if self.chain_id is not None and chain_id != self.chain_id:
            raise IncompatibleRunError(
                f"{node.url} serves chain {chain_id}, not {self.chain_id}",
                remedy="give the RPC URL of the run's chain, or its deployment file",
            )
        for address, artifact in self.contracts.items():
            code = bytes.fromhex((await self._ask(node.url, "eth_getCode", (address, "latest")))[2:])
            if not artifact.is_code(code):
                what = "has no code" if not code else "has other code than this version's"
                raise IncompatibleRunError(
                    f"{artifact.name} at {address} {what} (according to {node.url})",
                    remedy="check the deployment file and the version; the node may also be behind",
                )
        node.checked = True

    async def _ask(self, url: str, method: str, params: Sequence[Any]) -> Any:
        request = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": list(params)}
        body = await self._post(url, json.dumps(request).encode())
        try:
            answer = bounded_json.loads(body)
            error = answer.get("error")
            if error is None:
                return answer["result"]
        except (ValueError, KeyError, AttributeError):
            raise _NodeError("answered with something else than JSON-RPC") from None
        if not isinstance(error, dict):
            error = {"message": str(error)}
        text = str(error.get("message", "")).lower()
        if error.get("code") in _BUSY_CODES or any(words in text for words in _BUSY_WORDS):
            raise _NodeError(f"is busy: {text}")
        raise RefusedError(error)

    async def _post(self, url: str, body: bytes) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(headers={"Content-Type": "application/json"})
        limit = aiohttp.ClientTimeout(total=self.timeout)
        try:
            async with self._session.post(url, data=body, timeout=limit, allow_redirects=False) as response:
                if response.status == 429:
                    raise _NodeError("too many requests (429)", _seconds(response.headers.get("Retry-After", "")))
                answer = await _read(response)
                # Some nodes put JSON-RPC errors under 4xx.
                if response.status >= 500 or (response.status >= 300 and not answer.startswith(b"{")):
                    raise _NodeError(f"answered with HTTP status {response.status}")
                return answer
        except TimeoutError:
            raise _NodeError(f"no answer within {self.timeout:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _NodeError(str(error) or type(error).__name__) from None


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > MOST_ANSWER_BYTES:
            raise _NodeError(f"answered with more than {MOST_ANSWER_BYTES} bytes")
    return bytes(body)


def _seconds(header: str) -> float:
    return float(header) if header.isdigit() else 0.0
