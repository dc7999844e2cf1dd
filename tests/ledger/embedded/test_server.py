"""The HTTP side: batches, caps, and requests that are none."""

from __future__ import annotations

import asyncio
import io
import json

import aiohttp
import pytest

from dht.errors import LockedError, StorageError
from ledger.embedded.node import serving
from ledger.embedded.server import MOST_BATCH, MOST_REQUEST_BYTES
from tests.ledger.chains import ALLOC, CHAIN_ID, START, Time

JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def post(tmp_path):
    async with (
        serving(tmp_path, chain_id=CHAIN_ID, alloc=ALLOC, clock=Time(wall=START)) as node,
        aiohttp.ClientSession() as session,
    ):

        async def send(body, headers=JSON):
            data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
            async with session.post(node.url, data=data, headers=headers) as response:
                return response.status, await response.json()

        yield send


def call(method, *params, number=1):
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)}


async def test_a_batch_is_answered_in_order(post):
    _, answers = await post([call("eth_chainId", number=7), call("nonsense", number="x"), 5, call("eth_blockNumber")])
    assert [answer.get("id") for answer in answers] == [7, "x", None, 1]
    assert [answer.get("result") for answer in answers] == [hex(CHAIN_ID), None, None, "0x0"]
    assert [answer.get("error", {}).get("code") for answer in answers] == [None, -32601, -32600, None]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"\xff", -32700),
        (b"[" * 200_000, -32700),
        ([], -32600),
        ([call("eth_chainId")] * (MOST_BATCH + 1), -32600),
        ({"id": 1}, -32600),
        ({"id": 1, "method": "eth_chainId", "params": {"a": 1}}, -32600),
        (call("eth_chainId", 1, 2), -32602),
        (call("eth_getBalance"), -32602),
        (call("eth_getStorageAt", "0x" + "00" * 20, "0x" + "f" * 65), -32602),
        (call("eth_getStorageAt", "0x" + "00" * 20, -1), -32602),
    ],
)
async def test_what_is_no_request_gets_its_error(post, body, code):
    _, answer = await post(body)
    assert answer["error"]["code"] == code


async def test_too_large_a_request_is_not_read(post):
    status, answer = await post(b" " * (MOST_REQUEST_BYTES + 1))
    assert (status, answer["error"]["code"]) == (413, -32600)


async def test_a_page_in_a_browser_cannot_send_plain_text(post):
    status, _ = await post(call("eth_chainId"), {"Content-Type": "text/plain"})
    assert status == 415


async def test_time_and_history_are_nobodys_unless_asked_for(post):
    for method in ("evm_mine", "evm_revert", "anvil_reorg", "evm_increaseTime", "anvil_setNextBlockBaseFeePerGas"):
        _, answer = await post(call(method, "0x1"))
        assert answer["error"]["code"] == -32601
    _, final = await post(call("eth_getBlockByNumber", "finalized", False))
    assert final["result"]["number"] == "0x0"


async def test_one_process_per_folder_and_one_server_per_port(tmp_path):
    async with serving(tmp_path / "a", chain_id=CHAIN_ID) as node:
        with pytest.raises(LockedError):
            async with serving(tmp_path / "a", chain_id=CHAIN_ID):
                pass
        port = int(node.url.rsplit(":", 1)[1])
        with pytest.raises(StorageError, match="cannot listen"):
            async with serving(tmp_path / "b", chain_id=CHAIN_ID, port=port):
                pass


async def test_a_chain_goes_on_where_it_stopped(tmp_path):
    hashes = []
    for _ in range(2):
        async with serving(tmp_path, chain_id=CHAIN_ID, alloc=ALLOC, clock=Time(wall=START)) as node:
            node.chain.mine()
            hashes.append(node.chain.store.block(1).header.hash)
            height = node.chain.head.number
    assert (height, hashes[0]) == (2, hashes[1])
    await asyncio.sleep(0)
