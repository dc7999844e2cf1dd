"""Whole peers' parts in the ledger, each a process with its own disk, on anvil: every checkpoint lands exactly once.

The tests share a network and go on where the one before left it; any of them may be run alone.
"""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio

from tests.ledger.e2e.network import PEERS, ROUNDS, network


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def net(tmp_path_factory):
    async with network(tmp_path_factory.mktemp("net")) as made:
        yield made


WALLET = "wallet/transactions.sqlite"
UNKNOWN = "select key, attempt.tx_hash from attempt join intent using (key) where intent.tx_hash is null"
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("ledger on anvil"),
]


async def test_checkpoints_land_in_order(net):
    before = await net.sent()
    await net.train(4)
    await net.check()
    assert await net.sent() == before + 4


@pytest.mark.parametrize("when", ["after", "before"])
async def test_a_submitter_is_killed_between_sending_and_writing_it_down(net, when):
    submitter, hold = await net.hold_submitter(when)
    await submitter.kill()
    hold.done.set()
    ((key, tx),) = submitter.rows(WALLET, UNKNOWN)
    # The fault fired: it is signed, and on the chain or not; nobody wrote down which.
    assert hold.answer.get("result") == (f"0x{tx.hex()}" if when == "after" else None)
    if when == "after":
        await net.landed()
    else:
        assert not await net.all_there()
    await net.restart(submitter)
    await net.landed()
    await net.train(2)
    await net.check()
    assert submitter.rows(WALLET, f"select tx_hash from attempt where key = '{key}'") == [(tx,)]
    if when == "after":
        assert f"0x{tx.hex()}" in [each.tx for each in await net.proposed()]


async def reorganise(net, depth):
    """The checkpoints of the last blocks, which the node takes back: as many, for each is in a block of its own."""
    before = await net.proposed()
    await net.rpc.call("anvil_reorg", [depth, []])
    gone = [each for each in before if await net.rpc.call("eth_getBlockByHash", [each.block, False]) is None]
    assert gone == before[-depth:]
    return gone


async def came_again(net, gone):
    """The same headers are in other blocks now."""
    await net.check()
    again = (await net.proposed())[-len(gone) :]
    assert [each.header for each in again] == [each.header for each in gone]
    assert {each.block for each in again}.isdisjoint(each.block for each in gone)


@pytest.mark.parametrize("depth", range(1, 6))
async def test_what_a_reorganisation_takes_away_comes_again(net, depth):
    await net.train(depth)
    sent = await net.sent()
    await came_again(net, await reorganise(net, depth))
    assert await net.sent() == sent  # the same bytes: none was refused at a cost, none got another nonce


async def test_what_is_taken_away_while_everybody_is_down_comes_again(net):
    await net.train(5)
    for peer in net.peers:
        await peer.kill()
    gone = await reorganise(net, 5)
    await asyncio.gather(*map(net.restart, net.peers))
    await came_again(net, gone)


async def test_while_no_node_answers_the_rounds_go_on_and_are_anchored_later(net):
    """The outage begins when a transaction was sent and not answered, and lasts for as long as twenty epochs."""
    _, hold = await net.hold_submitter("after")
    net.gateway.down = True
    hold.done.set()
    net.gateway.dropped.clear()
    await net.until("looks in vain", lambda: len(net.gateway.dropped) == PEERS)
    for _ in range(20):
        net.release()
        await net.until("records", lambda: all(p.last("records").get("round") == net.epoch * ROUNDS for p in net.peers))
    await net.until("more looks in vain", lambda: min(net.gateway.dropped.values()) >= 4)
    assert len(await net.proposed()) == net.epoch - 20
    net.gateway.down = False
    await net.landed()
    await net.check()
