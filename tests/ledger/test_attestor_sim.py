"""Whole swarms of attestors through faults: each checkpoint lands exactly once, nobody signs two for one place.

Rounds end every 10 s, three to an epoch; a block takes 2 s; two epochs unless a test says otherwise.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dht.errors import ProtocolError, Refusal
from ledger.checkpoint import NOTHING, Checkpoint
from ledger.evidence import verify
from ledger.messages import Attestations
from ledger.quorum import TAKE_OVER
from ledger.signatures import key_address, sign
from tests.ledger.attestor_net import Net, Node, astray, come_back, equivocator, switch
from tests.ledger.fake_hub import DOMAIN, landed
from tests.ledger.records import KEYS

SEEDS = range(3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_checkpoints_land_in_order(size, seed):
    net = Net(size, seed=seed)
    net.run(200)
    net.check(2)
    assert net.ledger.reverted == []
    assert all(node.chain.finalized == 6 for node in net.nodes)
    assert [error for node in net.nodes for error in node.refused] == []


def leaders_of(net: Net, epoch: int) -> list[Node]:
    """Who submits the checkpoint of an epoch first, second, ..."""
    header = next(header for header, _, _ in net.ledger.tip.checkpoints if header.epoch == epoch)
    return [net.node(address) for address in net.ledger.hub.electorate.leaders(header)]


@pytest.mark.parametrize("seed", SEEDS)
def test_only_the_leader_submits(seed):
    net = Net(seed=seed)
    submitted = []
    net.on_submit = lambda node, intent: submitted.append((intent.header.epoch, node)) or True
    net.run(200)
    net.check(2)
    assert submitted == [(epoch, leaders_of(net, epoch)[0]) for epoch in (1, 2)]


@pytest.mark.parametrize("journalled", [False, True], ids=["before it sends", "after it sent"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_leader_that_dies_is_followed_by_the_next(seed, journalled):
    net = Net(seed=seed)
    times = []

    def dies(node, intent):
        times.append((net.now, intent.header.epoch))
        if len(times) > 1:
            return True
        net.fired.append(node)
        node.stop()
        if journalled:
            net.ledger.send(intent)
        return False

    net.on_submit = dies
    net.run(300)
    net.check(2)
    (dead,) = net.fired
    assert leaders_of(net, 1)[0] is dead
    first = [at for at, epoch in times if epoch == 1]
    # Who sent died, but its transaction did not; who had not, is followed after a while.
    assert len(first) == (1 if journalled else 2)
    if not journalled:
        assert abs(first[1] - first[0] - TAKE_OVER) < 3


@pytest.mark.parametrize("loss", [0.3, 0.6])
@pytest.mark.parametrize("seed", SEEDS)
def test_lost_messages_are_asked_for_again(seed, loss):
    net = Net(seed=seed, loss=loss)
    net.run(600)
    net.check(2)
    assert net.lost > 3


@pytest.mark.parametrize("seed", SEEDS)
def test_an_attestor_that_joins_late_gets_what_it_missed(seed):
    net = Net(4, seed=seed)
    away = net.nodes[seed]
    away.stop()
    silent = net.nodes[(seed + 1) % 4]
    silent.stop()  # two of four are no quorum: all waits for who comes back
    net.run(100)
    assert landed(net.ledger) == []
    net.at(0, away.start)
    net.run(400)
    net.check(2)
    assert silent.events < away.events


@pytest.mark.parametrize("seed", SEEDS)
def test_an_hour_without_rpc_delays_the_anchor_only(seed):
    net = Net(seed=seed, rounds=36)
    for node in net.nodes:
        net.at(25, lambda node=node: setattr(node, "rpc", False))
        net.at(3625, lambda node=node: setattr(node, "rpc", True))
    net.run(3600)
    assert landed(net.ledger) == []  # the fault fired
    assert all(node.chain.head.round == 36 for node in net.nodes)
    net.run(4100)
    net.check(12)
    assert all(node.chain.finalized == 36 for node in net.nodes)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_rpc_that_dies_after_the_signatures_loses_nothing(seed):
    net = Net(seed=seed)

    def cut(node, intent):
        for each in net.nodes:
            each.rpc = False
            net.at(3600, lambda each=each: setattr(each, "rpc", True))
        net.fired.append(net.now)
        net.on_submit = lambda node, intent: True
        return True

    net.on_submit = cut
    net.run(1000)
    assert net.fired and landed(net.ledger) == []
    net.run(4000)
    net.check(2)


@pytest.mark.parametrize("size", [4, 7])
@pytest.mark.parametrize("seed", SEEDS)
def test_an_equivocator_is_exposed_and_stops_nothing(seed, size):
    net = Net(size, seed=seed)
    liar = net.nodes[seed]
    equivocator(net, liar)
    net.run(400)
    assert net.fired
    net.check(2, liars={key_address(liar.peer)})
    exposed = [each for node in net.nodes if node is not liar for each in node.exposed]
    for each in exposed:
        proof = verify(each.evidence)
        assert proof.accused == key_address(liar.peer) and proof.domain == DOMAIN
        assert proof.first.header.place == proof.second.header.place in net.fired


@pytest.mark.parametrize("number", range(4))
def test_a_restart_at_any_step_signs_nothing_twice(number, tmp_path):
    """Every peer, killed in each of its events after the machine moved and before anything left."""
    plain = Net(seed=1)
    plain.run(150)
    events = plain.nodes[number].events
    assert events > 30
    kinds = set()
    for step in range(1, events + 1):
        folder = tmp_path / str(step) if step % 8 == 0 else None  # on disk, too, but a disk is slow
        if folder is not None:
            folder.mkdir()
        net = Net(seed=1, folder=folder)
        net.crash = (net.nodes[number].peer, step)
        net.run(330)
        net.check(2)
        ((_, actions),) = net.fired
        kinds |= set(actions)
        for node in net.nodes:
            node.guard.close()
            node.log.close()
    assert kinds >= {"Send", "SetTimer", "CancelTimer", "Finalize"}


@pytest.mark.parametrize("depth", range(1, 6))
@pytest.mark.parametrize("seed", SEEDS)
def test_a_reorganisation_that_takes_a_checkpoint_away(seed, depth):
    net = Net(seed=seed)

    def strike():
        if not net.ledger.tip.checkpoints:
            net.at(1.0, strike)
        else:
            net.fired += net.ledger.reorganise(depth)

    net.at(0, strike)
    net.run(400)
    net.check(2)
    assert [header.epoch for header in net.fired] == [1]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_reorganisation_with_usage_fees_in_it_changes_no_header(seed):
    net = Net(seed=seed, rounds=18)
    for moment in range(35, 180, 9):
        net.at(moment, lambda: net.ledger.pay(999_983))
    for moment in (70, 110, 150):
        net.at(moment, lambda: net.fired.append(net.ledger.reorganise(3)))
    net.run(700)
    net.check(6)
    assert sum(net.ledger.tip.fees()) > 0
    assert len(net.fired) == 3


@pytest.mark.parametrize("seed", SEEDS)
def test_after_a_rollback_the_epoch_is_signed_under_another_fork_nonce(seed):
    net = Net(seed=seed)
    net.run(70)
    assert landed(net.ledger) == [1, 2]
    first, second = (header for header, _, _ in net.ledger.tip.checkpoints)
    net.ledger.roll_back(1, net.now)
    net.run(300)
    net.check(2)
    again = [header for header, _, _ in net.ledger.tip.checkpoints]
    assert [header.fork_nonce for header in again] == [1, 1] and (first.fork_nonce, second.fork_nonce) == (0, 0)
    assert again[0] == replace(first, fork_nonce=1)
    assert again[1] == replace(second, fork_nonce=1, parent=again[0].hash())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rollback_between_two_looks_is_another_place_too(seed):
    net = Net(seed=seed, rounds=3)
    blind = net.nodes[seed]
    net.at(25, lambda: setattr(blind, "rpc", False))
    net.run(80)  # also if it was the blind one's turn first
    assert landed(net.ledger) == [1]
    net.ledger.roll_back(1, net.now)
    blind.rpc = True
    net.run(300)
    net.check(1)
    assert net.ledger.tip.checkpoints[0][0].fork_nonce == 1
    assert (key_address(blind.peer), 1, 1) in net.signed


@pytest.mark.parametrize("seed", SEEDS)
def test_who_is_on_a_branch_of_its_own_signs_nothing(seed):
    net = Net(seed=seed, rounds=12)
    lost = net.nodes[seed]
    net.at(12, lambda: astray(net, [lost], 3))
    net.at(76, lambda: come_back(net, [lost]))
    net.run(75)
    assert landed(net.ledger)  # the others need it not
    mine = {place for place in net.signed if place[0] == key_address(lost.peer)}
    assert mine == set() and any("not what my records give" in note for note in lost.notes)
    net.run(500)
    net.check(4)
    last = net.ledger.tip.checkpoints[-1][0]
    assert net.signed[key_address(lost.peer), 0, 4] == {last.hash()}  # and it is back


@pytest.mark.parametrize("seed", SEEDS)
def test_a_split_network_with_two_branches_spends_no_place(seed):
    """Had each half signed its header, no quorum could ever come of either."""
    net = Net(seed=seed, rounds=12)
    half = net.nodes[:2]
    send, cut = net.send, []

    def split(sender, to, message):
        if cut and (sender in half) != (to in [node.peer for node in half]):
            net.fired.append(type(message))
        else:
            send(sender, to, message)

    net.send = split
    net.at(12, lambda: cut.append(astray(net, half, 6)))
    net.run(100)
    assert {node.attestor.current.own.hash() for node in half} != {
        node.attestor.current.own.hash() for node in net.nodes[2:]
    }
    assert net.fired and net.signed == {} and landed(net.ledger) == []
    cut.clear()
    come_back(net, half)
    net.run(600)
    net.check(4)


@pytest.mark.parametrize("seed", SEEDS)
def test_who_signed_records_that_were_rolled_back_abstains(seed):
    net = Net(seed=seed)
    held = []
    net.on_submit = lambda node, intent: held.append((node, intent)) is not None
    net.run(40)
    assert held and all(node.attestor.current.signed for node in net.nodes)
    node = net.nodes[seed]
    switch(node, branch := astray(net, [node], 3))
    assert node.attestor.current.own == node.attestor._books.contents(branch, 1, [0]).checkpoint(0, NOTHING)
    assert node.attestor.current.signed is None and any("I signed another" in note for note in node.notes)
    events = node.events
    net.run(70)
    assert node.events > events + 3  # it was asked, polled and tempted
    assert not any(each is node for each, _ in held[1:])
    net.on_submit = lambda node, intent: True
    come_back(net, [node])
    assert node.attestor.current.signed is not None
    net.run(600)
    net.check(2)


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_at_once(seed, tmp_path):
    net = Net(7, seed=seed, loss=0.3, folder=tmp_path, rounds=12)
    liar = net.nodes[6]
    equivocator(net, liar)
    for moment in (33, 61, 97, 140):
        node = net.nodes[net.random.randrange(6)]
        net.at(moment, node.stop)
        net.at(moment + 11.0, node.start)
    for moment in (66, 130):
        net.at(moment, lambda: net.fired.append(net.ledger.reorganise(4)))
    net.at(75, lambda: [setattr(node, "rpc", False) for node in net.nodes[:5]])
    net.at(475, lambda: [setattr(node, "rpc", True) for node in net.nodes[:5]])
    net.run(1500)
    assert net.lost > 10 and len(net.fired) > 2
    net.check(4, liars={key_address(liar.peer)})


@pytest.mark.parametrize("seed", SEEDS)
def test_strangers_and_nonsense_are_refused(seed):
    net = Net(3, seed=seed)
    net.run(34)  # epoch 1 is being signed
    node, other = net.nodes[0], net.nodes[1]
    good = Checkpoint.decode(node.attestor.current.own.encode())

    def refusal(header, identity=other.identity, sender=other.peer, signature=None):
        signature = signature or sign(identity, header.digest(DOMAIN))
        with pytest.raises(ProtocolError) as refused:
            node.attestor.receive(sender, Attestations(header.encode(), (signature,)))
        return refused.value.refusal

    assert refusal(replace(good, run=b"\1" * 32)) is Refusal.WRONG_RUN
    assert refusal(replace(good, epoch=good.epoch + 1)) is Refusal.UNEXPECTED
    assert refusal(replace(good, fork_nonce=1)) is Refusal.UNEXPECTED
    assert refusal(replace(good, epoch=0)) is Refusal.STALE
    assert refusal(good, KEYS[5]) is Refusal.NOT_A_MEMBER
    assert refusal(good, sender=KEYS[5].peer_id) is Refusal.NOT_A_MEMBER
    assert refusal(good, signature=bytes(64)) is Refusal.BAD_SIGNATURE
    assert node.attestor.current.own == good
