"""What a peer sees of the hub, by its events."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ledger.checkpoint import NOTHING
from ledger.hub_view import HubView
from ledger.indexer.abi import Interface
from ledger.indexer.store import Index
from tests.ledger.fake_chain import ADDRESSES, DEPLOYMENT
from tests.ledger.world import PEERS, WINDOW, World, text_address


@pytest.fixture
def world(tmp_path, interface: Interface) -> World:
    """Three checkpoints, and the attestors."""
    world = World(tmp_path, interface)
    attestors = {"nonce": 0, "attestors": [text_address(peer) for peer in PEERS], "weights": [1] * len(PEERS)}
    world.chain.mine(("AttestorsRotated", attestors))
    for _ in range(3):
        world.checkpoint()
    return world


@pytest.fixture
def index(world: World) -> Iterator[Index]:
    index = Index(world.folder / "index.sqlite", DEPLOYMENT, world.interface)
    yield index
    index.close()


def view_of(world: World, index: Index) -> HubView:
    return HubView(world.chain, index, world.interface, ADDRESSES["CheckpointHub"])


async def test_a_head_has_what_may_still_be_rolled_back(world, index):
    view = view_of(world, index)
    first, second, third = world.checkpoints
    head = await view.head()
    assert head.standing == (first, second, third) and head.active_epoch == 0
    assert [head.hash_of(epoch) for epoch in (0, 1, 3, 4)] == [NOTHING, first.hash(), third.hash(), NOTHING]
    world.chain.mine()
    world.chain.blocks[-1].timestamp = world.chain.blocks[-3].timestamp + WINDOW  # the second's, so not the third's
    head = await view.head()
    assert head.active_epoch == 2 and head.recent == (second,) and head.checkpoint == third


async def test_after_a_rollback_the_head_is_what_stands(world, index):
    view = view_of(world, index)
    first = world.checkpoints[0]
    assert (await view.head()).rolled_back == 0
    world.chain.mine(("CheckpointRolledBack", {"epoch": 2, "forkNonce": 1}))
    head = await view.head()
    assert (head.checkpoint, head.recent, head.fork_nonce, head.rolled_back) == (first, (), 1, 2)
    assert len(head.fees) == 2
