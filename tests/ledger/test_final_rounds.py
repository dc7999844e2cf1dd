"""What is anchored stays: a branch of records that would win is refused from before a round that the ledger made final.

Once with whole peers under virtual time, once through the driver. Without the ledger's word the same branch wins.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from averaging.branches import Branches, fork_round, tokens_after
from averaging.chain import Chain
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from ledger.attestation_log import SqliteAttestationLog
from ledger.attestor import Attestor, Finalize
from ledger.attestor_guard import SqliteAttestorGuard
from ledger.books import Books
from ledger.chain_view import Head
from ledger.checkpoint import NOTHING, Checkpoint
from ledger.checkpointer import Checkpointer
from ledger.electorate import Electorate
from ledger.signatures import key_address
from tests.ledger.attestor_net import CONSTANTS
from tests.ledger.fake_hub import DOMAIN
from tests.ledger.records import KEYS, add_recovery, add_round, new_chain
from tests.sim.test_branches_sim import AFTER, Split, branched

EVERYBODY = Electorate(tuple(key_address(key.peer_id) for key in KEYS[:4]), (1,) * 4)


def checkpoints(chain: Chain, books: Books, count: int) -> list[Checkpoint]:
    """The first epochs' checkpoints as these records give them."""
    found: list[Checkpoint] = []
    for epoch in range(1, count + 1):
        found.append(books.contents(chain, epoch, ()).checkpoint(0, found[-1].hash() if found else NOTHING))
    return found


def hub_at(checkpoint: Checkpoint, active: int) -> Head:
    """The hub with this one as its last, and epochs up to `active` that cannot be rolled back."""
    return Head(checkpoint, 0, active, EVERYBODY, (0,) * (checkpoint.epoch + 1))


# --- whole peers ----------------------------------------------------------------------------------------------------


def anchor(swarm: Split, side: list[PeerId], round_: int) -> None:
    """A round's epoch is active on the ledger, and these peers, who attest nothing, see that."""
    constants = replace(CONSTANTS, rounds_per_checkpoint=round_)
    (header,) = checkpoints(swarm.chain(side[0]), Books(constants), 1)
    for peer in side:
        guard, log = SqliteAttestorGuard(":memory:"), SqliteAttestationLog(":memory:")
        me, chain = swarm.peers[peer].identity, swarm.chain(peer)
        attestor = Attestor(me, DOMAIN, Books(constants), lambda chain=chain: chain, guard, log)
        finals = [action for action in attestor.head(hub_at(header, 1)) if isinstance(action, Finalize)]
        assert finals == [Finalize(round_)]
        chain.finalize(finals[0].round)
        guard.close()
        log.close()


@pytest.mark.parametrize("anchored", ["nothing", "before the fork", "after the fork"])
def test_two_halves_meet_and_what_is_final_at_the_lighter_one_stays(anchored: str):
    swarm = Split(8, 1)
    swarm.until_first(3)
    light, heavy = list(swarm.order[:4]), list(swarm.order[4:])
    swarm.cut(light)
    swarm.pass_time(AFTER + 8)
    assert all(branched(swarm, peer) for peer in swarm.order)
    swarm.cut(*[[peer] for peer in light])  # they stand still, and the others go on
    swarm.pass_time(8)
    fork = fork_round(swarm.chain(light[0]), swarm.chain(heavy[0]))
    assert fork > 1 and tokens_after(swarm.chain(light[0]), fork) < tokens_after(swarm.chain(heavy[0]), fork)
    left = {peer: swarm.chain(peer).record(fork + 1) for peer in light}
    if anchored != "nothing":
        anchor(swarm, light, fork if anchored == "before the fork" else fork + 1)
    swarm.heal()
    swarm.pass_time(40)
    final = [error for error in swarm.refusals if "is final" in str(error)]
    if anchored == "after the fork":
        assert {error.refusal for error in final} == {Refusal.EQUIVOCATION}
        assert all(swarm.chain(peer).record(fork + 1) == left[peer] for peer in light)
        assert not swarm.rolled_back
    else:
        assert final == [] and set(swarm.rolled_back) == set(light)
        assert swarm.united() and not any(swarm.chain(peer).holds(left[peer]) for peer in light)
    swarm.check()


# --- the driver -----------------------------------------------------------------------------------------------------


class View:
    """A window on a hub that stands where the test says."""

    def __init__(self, head: Head) -> None:
        self.now = head

    async def head(self) -> Head:
        return self.now

    async def submit(self, intent) -> None:
        raise AssertionError("nobody else is there to sign")


class Nowhere:
    async def send(self, to, parts, *, bulk=False) -> None:
        pass


@asynccontextmanager
async def driven(chain: Chain, head: Head, folder, key=KEYS[0]):
    """A peer's part in the ledger over these records; its view, and what makes it look at the hub."""
    guard, log = SqliteAttestorGuard(":memory:"), SqliteAttestationLog(":memory:")
    attestor = Attestor(key, DOMAIN, Books(CONSTANTS), lambda: chain, guard, log)
    view = View(head)
    driver = Checkpointer(attestor, view, Nowhere(), folder, chain.finalize)
    try:
        await driver._look()
        yield view, driver._look
    finally:
        await driver.stop()
        guard.close()
        log.close()


def forked(fork: int) -> tuple[Chain, Chain]:
    """Two epochs of records, and a recovery branch from `fork` on that is heavier."""
    chain = new_chain()
    for _ in range(2 * CONSTANTS.rounds_per_checkpoint):
        add_round(chain)
    rival = chain.branch(fork)
    add_recovery(rival)
    add_round(rival, lambda round_, number: (10**9, 1))
    return chain, rival


def met(chain: Chain, rival: Chain, fork: int) -> Chain:
    """Which one stands at a peer on `chain` that gets all of `rival` behind the fork."""
    return Branches().take(chain, KEYS[5].peer_id, rival.segment(fork))[0]


@pytest.mark.parametrize("key", [KEYS[0], KEYS[6]], ids=["an attestor", "who only follows"])
async def test_an_active_checkpoint_of_my_own_records_stops_a_heavier_branch(tmp_path, key):
    chain, rival = forked(fork=4)
    first, second = checkpoints(chain, Books(CONSTANTS), 2)
    async with driven(chain, hub_at(first, 0), tmp_path, key) as (view, look):
        assert chain.finalized == 0 and met(chain, rival, 4).tip == rival.tip
        view.now = hub_at(second, 1)
        await look()
        assert chain.finalized == 3 and met(chain, rival, 4).tip == rival.tip, "its own epoch may still be rolled back"
        view.now = hub_at(second, 2)
        await look()
        tip = chain.tip
        with pytest.raises(ProtocolError, match="6 is final") as refused:
            met(chain, rival, 4)
        assert refused.value.refusal is Refusal.EQUIVOCATION
        assert chain.finalized == 6 and chain.tip is tip


async def test_an_active_checkpoint_of_other_records_makes_nothing_final(tmp_path):
    """Who is on the branch that was not anchored must be able to leave it."""
    chain, rival = forked(fork=2)
    while rival.head.round < chain.head.round:
        add_round(rival)
    _, theirs = checkpoints(rival, Books(CONSTANTS), 2)
    async with driven(chain, hub_at(theirs, 2), tmp_path):
        assert chain.finalized == 0
        assert met(chain, rival, 2).tip == rival.tip
    async with driven(rival, hub_at(theirs, 2), tmp_path):
        assert rival.finalized == 6


async def test_rounds_that_are_final_and_still_to_come_here_become_final_with_the_records(tmp_path):
    chain, _ = forked(fork=4)
    _, second = checkpoints(chain, Books(CONSTANTS), 2)
    behind = chain.branch(5)
    async with driven(behind, hub_at(second, 2), tmp_path) as (_, look):
        assert behind.finalized == 0
        behind.append(*chain.link(6))
        await look()
        assert behind.finalized == 6
