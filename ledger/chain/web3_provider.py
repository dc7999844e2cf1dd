"""web3.py over the pool of nodes: for scripts that want a run's contracts as web3's objects (decision 16).

Whatever web3 asks has the pool's bounds, its fail-over, and its checks of chain id and code. Nothing in the package
needs it, and web3 takes seconds to import: that happens when a function here is called.

What web3 signs and sends is in no journal: only `ledger.chain.sender` makes a transaction land exactly once.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from dht.errors import UnreachableError
from ledger import bounded_json
from ledger.chain import artifacts
from ledger.chain.deployments import Deployment
from ledger.chain.errors import RefusedError, RevertedError
from ledger.chain.rpc import RpcPool
from ledger.chain.wallet import Wallet

if TYPE_CHECKING:
    from web3 import AsyncWeb3
    from web3.contract import AsyncContract
    from web3.exceptions import ContractLogicError
    from web3.providers.async_base import AsyncBaseProvider

_OTHER_ERROR = -32000


@dataclass(frozen=True)
class Connection:
    """web3 and the contracts of a run, by name (`CheckpointHub`)."""

    web3: AsyncWeb3[Any]
    contracts: Mapping[str, AsyncContract]


@asynccontextmanager
async def connected(
    deployment: Deployment, urls: Sequence[str] = (), wallet: Wallet | None = None
) -> AsyncIterator[Connection]:
    """Talk to a run's contracts through these nodes, else the deployment's. `wallet` signs what is sent from it.

    The first call, and each one that follows an outage, raises IncompatibleRunError when a node is of another chain or
    has other code; UnreachableError says that no node answers. Raises ConfigError for what is no URL.
    """
    code = {address: artifacts.load(name) for name, address in deployment.contracts.items()}
    async with RpcPool(urls or deployment.rpc, deployment.chain_id, code) as rpc:
        web3 = over(rpc)
        if wallet is not None:
            sign_with(web3, wallet)
        yield Connection(web3, contracts(web3, deployment))


def over(rpc: RpcPool) -> AsyncWeb3[Any]:
    """web3 that asks the nodes of a pool."""
    provider = _provider_class()
    with bounded_json.same_recursion_limit():
        from web3 import AsyncWeb3
    return AsyncWeb3(provider(rpc))


def contracts(web3: AsyncWeb3[Any], deployment: Deployment) -> dict[str, AsyncContract]:
    """web3's object for each contract of a deployment, by name."""
    made = {}
    for name, address in deployment.contracts.items():
        made[name] = web3.eth.contract(address=web3.to_checksum_address(address), abi=list(artifacts.load(name).abi))
    return made


def sign_with(web3: AsyncWeb3[Any], wallet: Wallet) -> None:
    """From now on what is sent from the wallet's address is signed here, and calls are made in its name."""
    from web3.middleware import SignAndSendRawMiddlewareBuilder

    web3.middleware_onion.inject(SignAndSendRawMiddlewareBuilder.build(wallet.account), layer=0)
    web3.eth.default_account = wallet.account.address


def reverted(error: ContractLogicError, what: str) -> RevertedError:
    """What web3 raises when a contract refuses, in the contract's own words."""
    return artifacts.reverted(what, str(error.message), error.data)


@cache
def _provider_class() -> Callable[[RpcPool], AsyncBaseProvider]:
    """The class, once web3 is needed."""
    with bounded_json.same_recursion_limit():
        from web3.providers.async_base import AsyncJSONBaseProvider
        from web3.types import RPCEndpoint, RPCResponse

    class PoolProvider(AsyncJSONBaseProvider):
        """JSON-RPC by a `RpcPool`, whose errors pass through web3 but for a node's refusals, which web3 reads."""

        # A contract must not make us fetch what it names (EIP-3668).
        global_ccip_read_enabled = False

        def __init__(self, rpc: RpcPool) -> None:
            super().__init__()
            self._rpc = rpc

        async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
            # web3's own encoder: parameters hold its byte strings and dicts.
            request = json.loads(self.encode_rpc_request(method, params))
            try:
                result = await self._rpc.call(method, request["params"])
            except RefusedError as refused:
                return {"jsonrpc": "2.0", "id": request["id"], "error": _error(refused)}
            return {"jsonrpc": "2.0", "id": request["id"], "result": result}

        async def make_batch_request(self, requests: list[tuple[RPCEndpoint, Any]]) -> list[RPCResponse]:
            # One after another: nodes differ in whether, and how large, they take batches.
            return [await self.make_request(method, params) for method, params in requests]

        async def is_connected(self, show_traceback: bool = False) -> bool:
            try:
                await self._rpc.call("eth_chainId")
            except UnreachableError:
                if show_traceback:
                    raise
                return False
            return True

        async def disconnect(self) -> None:
            await self._rpc.close()

    return PoolProvider


def _error(refused: RefusedError) -> Any:
    """As JSON-RPC has it; web3 insists on a number."""
    code = refused.rpc_code if isinstance(refused.rpc_code, int) else _OTHER_ERROR
    error = {"code": code, "message": refused.text}
    return error if refused.data is None else error | {"data": refused.data}
