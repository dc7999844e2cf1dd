"""The pool of nodes: fail over, rest, and no word from another chain."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp import web

from dht.clock import ManualClock
from dht.errors import ConfigError, IncompatibleRunError, UnreachableError
from ledger.chain.artifacts import Artifact
from ledger.chain.errors import RefusedError
from ledger.chain.rpc import RpcPool
from tests.ledger.chains import CHAIN_ID, COUNTER, deploy_counter, node


class Fake:
    """A node that says what it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.chain_id = CHAIN_ID
        self.status, self.headers, self.body = 200, {}, None
        self.error = None
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        call = await request.json()
        self.asked.append(call["method"])
        if self.body is not None or self.status != 200:
            return web.Response(status=self.status, headers=self.headers, body=self.body or b"")
        if self.error is not None and call["method"] != "eth_chainId":
            return web.json_response({"id": call["id"], "error": self.error})
        result = hex(self.chain_id) if call["method"] == "eth_chainId" else self.url
        return web.json_response({"id": call["id"], "result": result})


@asynccontextmanager
async def fakes(count: int):
    nodes, runners = [], []
    for _ in range(count):
        fake = Fake()
        app = web.Application()
        app.router.add_post("/", fake.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.url = "http://{}:{}".format(*runner.addresses[0][:2])
        nodes.append(fake)
        runners.append(runner)
    try:
        yield nodes
    finally:
        for runner in runners:
            await runner.cleanup()


FAULTS = [
    {"status": 500},
    {"status": 429, "headers": {"Retry-After": "7"}},
    {"status": 302, "headers": {"Location": "http://127.0.0.1:1/"}},
    {"body": b"<html>"},
    {"body": b"[1]"},
    {"body": b"{}"},
    {"body": b"[" * 100_000},
    {"error": {"code": -32005, "message": "limit exceeded"}},
    {"error": {"code": -32000, "message": "Too Many Requests, slow down"}},
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault)[:40])
async def test_another_node_answers_for_one_that_cannot(fault):
    clock = ManualClock()
    async with fakes(2) as (bad, good), RpcPool([bad.url, good.url], CHAIN_ID, clock=clock) as rpc:
        vars(bad).update(fault)
        assert await rpc.call("eth_blockNumber") == good.url
        assert await rpc.call("eth_blockNumber") == good.url
        asked = len(bad.asked)
        assert asked <= 2  # it rests
        vars(bad).update(vars(Fake()) | {"url": bad.url, "asked": bad.asked})
        clock.advance_to(10.0)
        assert await rpc.call("eth_blockNumber") == bad.url
        assert bad.asked[asked:] == ["eth_chainId", "eth_blockNumber"]  # who was gone is asked again who it is


async def test_a_node_rests_longer_each_time():
    clock = ManualClock()
    async with fakes(1) as (bad,), RpcPool([bad.url], CHAIN_ID, clock=clock) as rpc:
        bad.status = 500
        pauses = []
        for _ in range(10):
            with pytest.raises(UnreachableError, match="500"):
                await rpc.call("eth_blockNumber")
            pauses.append(rpc.health[0].resting_until - clock.now())
        assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_nobody_answering_names_everybody():
    urls = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    async with RpcPool(urls) as rpc:
        with pytest.raises(UnreachableError) as error:
            await rpc.call("eth_blockNumber")
    assert all(url in error.value.message for url in urls)


async def test_a_slow_node_is_given_up():
    silent = socket.create_server(("127.0.0.1", 0))  # connections wait for somebody to accept them
    url = "http://{}:{}".format(*silent.getsockname())
    async with fakes(1) as (quick,), RpcPool([url, quick.url], CHAIN_ID, timeout=0.5) as rpc:
        assert await rpc.call("eth_blockNumber") == quick.url
        assert rpc.health[0].problem == "no answer within 0.5 s"
    silent.close()


async def test_a_node_of_another_chain_is_an_error_at_once():
    async with fakes(2) as (wrong, right), RpcPool([wrong.url, right.url], CHAIN_ID) as rpc:
        wrong.chain_id = 1
        with pytest.raises(IncompatibleRunError, match=f"serves chain 1, not {CHAIN_ID}") as error:
            await rpc.call("eth_blockNumber")
        assert wrong.url in error.value.message and error.value.exit_code == 65
        assert wrong.asked == ["eth_chainId"]


async def test_a_second_node_of_another_chain_is_found_by_check():
    async with fakes(2) as (right, wrong), RpcPool([right.url, wrong.url], CHAIN_ID) as rpc:
        wrong.chain_id = 1
        assert await rpc.call("eth_blockNumber") == right.url
        with pytest.raises(IncompatibleRunError):
            await rpc.check()


async def test_a_refusal_is_passed_on_with_its_data():
    async with fakes(2) as (node_, other), RpcPool([node_.url, other.url], CHAIN_ID) as rpc:
        node_.error = {"code": 3, "message": "execution reverted", "data": "0x1234"}
        with pytest.raises(RefusedError) as error:
            await rpc.call("eth_call")
        assert (error.value.rpc_code, error.value.data, other.asked) == (3, "0x1234", [])


@pytest.mark.parametrize("urls", [[], ["localhost:8545"], ["ws://localhost"], ["http://127.0.0.1:1", "x"]])
def test_urls_are_checked(urls):
    with pytest.raises(ConfigError):
        RpcPool(urls)


async def test_foreign_code_is_an_error(tmp_path):
    async with node("embedded", tmp_path) as rpc:
        at = await deploy_counter(rpc)
        ours = Artifact("Counter", (), b"", COUNTER, ())
        async with RpcPool(rpc.urls, CHAIN_ID, {at: ours}) as checked:
            assert await checked.check() == CHAIN_ID
        changed = bytearray(COUNTER)
        changed[5] ^= 1
        for contracts, words in (
            ({at: replace(ours, deployed=bytes(changed))}, "other code"),
            ({"0x" + "12" * 20: ours}, "no code"),
        ):
            async with RpcPool(rpc.urls, CHAIN_ID, contracts) as strict:
                with pytest.raises(IncompatibleRunError, match=words):
                    await strict.call("eth_blockNumber")
        masked = replace(ours, deployed=bytes(changed), immutables=((5, 1),))
        async with RpcPool(rpc.urls, CHAIN_ID, {at: masked}) as lenient:
            await lenient.check()
