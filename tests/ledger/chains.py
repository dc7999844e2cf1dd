"""Chains for tests: a small contract in hand-written bytecode, funded accounts, and JSON-RPC without ceremony."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from eth_account import Account

from dht.clock import ManualClock
from ledger.chain import anvil
from ledger.chain.rpc import RpcPool
from ledger.chain.wallet import Wallet
from ledger.embedded.chain import Chain
from ledger.embedded.node import serving
from ledger.embedded.store import Genesis, Store

CHAIN_ID = 1234
START = 1_800_000_000
ETHER = 10**18
GWEI = 10**9
SECRETS = [bytes([number] * 32) for number in (1, 2, 3)]
ALICE, BOB, CAROL = (Wallet(secret) for secret in SECRETS)
FUNDED = 1000 * ETHER
ALLOC = {bytes.fromhex(wallet.address[2:]): FUNDED for wallet in (ALICE, BOB, CAROL)}
TOPIC = 0xC0
ERROR = bytes.fromhex("deadbeef")


def init_code(runtime: bytes) -> bytes:
    """Creation code that leaves `runtime` behind."""
    return bytes.fromhex(f"60{len(runtime):02x}600c60003960{len(runtime):02x}6000f3") + runtime


def assemble(text: str) -> bytes:
    """Bytes from hex; `:name` marks a jump's target, `@name` pushes its place."""
    places: dict[str, int] = {}
    for final in (False, True):
        code = bytearray()
        for token in text.split():
            if token[0] == ":":
                places[token[1:]] = len(code)
                code += b"\x5b"
            elif token[0] == "@":
                code += bytes([0x60, places[token[1:]] if final else 0])
            else:
                code += bytes.fromhex(token)
    return bytes(code)


# No calldata: count up in slot 0 and log the count under TOPIC. Calldata 01: revert with ERROR; 02: return the block's
# timestamp; 03: count down; anything else: return the count.
COUNTER = assemble(
    """
    36 @given 57  6000 54 6001 01 80 6000 55  6000 52  60c0 6020 6000 a1 00
    :given 6000 35 6000 1a  80 6001 14 @fail 57  80 6002 14 @time 57  80 6003 14 @down 57
    6000 54 6000 52 6020 6000 f3
    :fail 63deadbeef 60e0 1b 6000 52 6004 6000 fd
    :time 42 6000 52 6020 6000 f3
    :down 6001 6000 54 03 6000 55 00
    """
)


class Time(ManualClock):
    """A clock for the embedded chain."""

    def __call__(self) -> float:
        return self.wall()


def signed(wallet: Wallet, nonce: int, to: bytes | str | None = None, **fields: Any) -> bytes:
    """A raw EIP-1559 transaction of `wallet`."""
    content = {
        "type": 2,
        "chainId": CHAIN_ID,
        "nonce": nonce,
        "gas": 200_000,
        "maxFeePerGas": 3 * GWEI,
        "maxPriorityFeePerGas": GWEI,
        "value": 0,
        "data": b"",
        **fields,
    }
    if to is not None:
        content["to"] = bytes.fromhex(to[2:]) if isinstance(to, str) else to
    return wallet.sign(content)[0]


def secret_of(wallet: Wallet) -> bytes:
    return SECRETS[(ALICE, BOB, CAROL).index(wallet)]


def legacy(wallet: Wallet, content: dict[str, Any]) -> bytes:
    """A raw transaction of any type."""
    return bytes(Account.from_key(secret_of(wallet)).sign_transaction(content).raw_transaction)


def open_chain(path: Path, clock: Time, **options: Any) -> Chain:
    """An embedded chain without a server."""
    return Chain(Store(path, Genesis(CHAIN_ID, START, ALLOC)), clock, **options)


def anvil_binary() -> Path:
    """anvil, or a failure that says how to get it."""
    found = anvil.find()
    assert found is not None, f"anvil is missing: npm ci in ledger/contracts, or npm install {anvil.PACKAGE}"
    return found


@asynccontextmanager
async def node(kind: str, folder: Path):
    """A pool over one chain of that kind, with the accounts funded."""
    if kind == "embedded":
        async with (
            serving(folder, chain_id=CHAIN_ID, alloc=ALLOC, dev=True, clock=Time(wall=START)) as running,
            RpcPool([running.url], CHAIN_ID) as rpc,
        ):
            yield rpc
        return
    options = ["--hardfork", "cancun", "--timestamp", str(START), "--accounts", "1"]
    async with (
        anvil.running(anvil_binary(), chain_id=CHAIN_ID, options=options) as url,
        RpcPool([url], CHAIN_ID) as rpc,
    ):
        for address, wei in ALLOC.items():
            await rpc.call("anvil_setBalance", ["0x" + address.hex(), hex(wei)])
        yield rpc


async def send(rpc: RpcPool, raw: bytes) -> str:
    """Send a raw transaction; its hash."""
    tx_hash: str = await rpc.call("eth_sendRawTransaction", ["0x" + raw.hex()])
    return tx_hash


async def receipt(rpc: RpcPool, raw: bytes) -> dict[str, Any]:
    """Send a raw transaction that is mined at once; its receipt."""
    return await mined_receipt(rpc, await send(rpc, raw))


async def mined_receipt(rpc: RpcPool, tx_hash: str) -> dict[str, Any]:
    """The receipt of a transaction that is about to be mined: anvil answers before it mines."""
    async with asyncio.timeout(10):
        while True:
            if (found := await rpc.call("eth_getTransactionReceipt", [tx_hash])) is not None:
                return found
            await asyncio.sleep(0.005)


async def deploy_counter(rpc: RpcPool, wallet: Wallet = CAROL, nonce: int = 0) -> str:
    """Address of a new counter."""
    made = await receipt(rpc, signed(wallet, nonce, data=init_code(COUNTER)))
    assert made["status"] == "0x1"
    return made["contractAddress"]


async def count(rpc: RpcPool, counter: str) -> int:
    return int(await rpc.call("eth_call", [{"to": counter, "data": "0x04"}, "latest"]), 16)
