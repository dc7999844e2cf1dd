"""Swarms whose records change under a checkpoint, or before it: a rollback comes exactly when it should, and once.

Times as in `test_attestor_sim`; the window is ten minutes unless a test says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from averaging.actions import Send
from ledger.chain_view import RollBack
from ledger.checkpoint import Rollback
from ledger.messages import CheckpointStatus, RollbackSignatures, RollbackStatus
from ledger.quorum import TAKE_OVER
from ledger.rollbacks import PATIENCE
from ledger.signatures import key_address, sign
from tests.ledger.attestor_net import Net, Node, astray, come_back, equivocator, switch
from tests.ledger.fake_hub import DOMAIN, landed
from tests.ledger.records import RUN, add_round

SEEDS = range(3)
WINDOW = 600.0


def divided(early: int, size: int = 4, **options) -> Net:
    """At 40 s, `early` attestors have signed epoch 1 of a branch that all of them leave; nobody else knows of it."""
    net = Net(size, window=WINDOW, **options)
    first, send = net.nodes[:early], net.send

    def cut(sender, to, message):
        unsigned = [node.peer for node in first if node.attestor.current and not node.attestor.current.signed]
        if isinstance(message, CheckpointStatus) and to in unsigned:
            send(sender, to, message)
        else:
            net.watch(message)

    def heal():
        net.send = send
        come_back(net, net.nodes)

    net.send = cut
    net.at(12, lambda: astray(net, net.nodes, 3))
    net.at(40, lambda: net.fired.append({place for place in net.signed if place[1:] == (0, 1)}))
    net.at(40, heal)
    return net


def rolled_back(net: Net) -> list[tuple[float, str]]:
    """(time, attestor) of each rollback that was handed to a sender, noted as the net runs."""
    times, before = [], net.on_submit

    def note(node, intent):
        if isinstance(intent, RollBack):
            times.append((net.now, node))
        return before(node, intent)

    net.on_submit = note
    return times


@pytest.mark.parametrize(("early", "size", "loss"), [(2, 4, 0.0), (3, 4, 0.0), (3, 7, 0.0), (2, 4, 0.4), (4, 7, 0.3)])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_place_that_too_many_have_spent_gets_another_fork_nonce(early, size, loss, seed):
    net = divided(early, size, seed=seed, loss=loss)
    times = rolled_back(net)
    net.run(40 + PATIENCE - 1)
    assert len(net.fired[0]) == early and landed(net.ledger) == [] and not net.rollbacks
    net.run(900)
    net.check(2)
    assert net.ledger.tip.fork_nonce == 1
    assert {each for signed in net.rollbacks.values() for each in signed} == {(0, 1)}
    if not loss:
        assert len(times) == 1 and times[0][0] < 40 + 2 * PATIENCE


@pytest.mark.parametrize("early", [1, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_who_is_gone_for_good_keeps_no_spent_place_alive(seed, early):
    """Two of seven die; five are a quorum, but one or two of them have spent the place."""
    net = divided(early, 7, seed=seed)
    for node in net.nodes[-2:]:
        net.at(40, node.stop)
    net.run(600)
    assert len(net.fired[0]) == early
    net.check(2)
    assert net.ledger.tip.fork_nonce == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_fewer_than_a_third_that_spent_the_place_need_no_rollback(seed):
    net = divided(1, seed=seed)
    net.run(300)
    net.check(2)
    assert len(net.fired[0]) == 1 and net.ledger.tip.fork_nonce == 0 and not net.rollbacks


def lost(epochs: int, **options) -> Net:
    """From 12 s on all follow a branch with so many epochs, which are anchored; at 40 s another one wins."""
    net = Net(window=WINDOW, **options)
    net.at(12, lambda: astray(net, net.nodes, 3 * epochs))
    net.at(40, lambda: net.fired.append(landed(net.ledger)))
    net.at(40, lambda: come_back(net, net.nodes))
    return net


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_checkpoints_of_records_that_lost_are_rolled_back(seed, epochs):
    net = lost(epochs, seed=seed)
    times = rolled_back(net)
    net.run(600)
    net.check(2)
    assert net.fired == [list(range(1, epochs + 1))]
    assert net.ledger.tip.fork_nonce == 1 and len(times) == 1
    for node in net.nodes:
        assert sum("was rolled back" in note for note in node.notes) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_first_leader_that_dies_with_the_rollback_is_followed_by_the_next(seed):
    net = divided(2, seed=seed)

    def dies(node, intent):
        if isinstance(intent, RollBack) and not net.fired[1:]:
            net.fired.append(node)
            node.stop()
            return False
        return True

    net.on_submit = dies
    times = rolled_back(net)
    net.run(400)
    net.check(2)
    (first, one), (second, other) = times
    order = net.ledger.hub.electorate.rollback_leaders(Rollback(RUN, 0, 1))
    assert [net.node(each) for each in order[:2]] == [one, other]
    assert one is net.fired[1] and abs(second - first - TAKE_OVER) < 3
    assert net.ledger.tip.fork_nonce == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_wishes_for_several_epochs_meet_in_the_latest_that_serves_enough(seed):
    """Two want epoch 2 gone, two epoch 1: it takes three."""
    net = Net(window=WINDOW, seed=seed, rounds=12)
    later = net.nodes[:2]

    def part():
        branch = net.nodes[0].chain.branch(3)
        for _ in range(3):
            add_round(branch, salt=b"a third one")
        come_back(net, net.nodes)
        for node in later:
            node.learn = lambda record: None
            switch(node, branch)

    net.at(12, lambda: astray(net, net.nodes, 6))
    net.at(75, part)
    net.at(90, lambda: net.fired.append([node.attestor.rollbacks.wanted for node in net.nodes]))
    net.at(150, lambda: come_back(net, later))
    net.run(140)
    assert net.fired == [[2, 2, 1, 1]]
    assert net.ledger.tip.fork_nonce == 1 and net.ledger.tip.rolled_back == 1
    net.run(600)
    net.check(4)


@pytest.mark.parametrize("seconds", [PATIENCE / 2, PATIENCE - 6])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_branch_that_passes_leads_to_nothing(seed, seconds):
    net = Net(seed=seed, window=WINDOW)
    net.at(45, lambda: net.fired.append(landed(net.ledger)))
    net.at(45, lambda: astray(net, net.nodes, 4))
    net.at(45 + seconds, lambda: come_back(net, net.nodes))
    net.run(400)
    net.check(2)
    assert net.fired == [[1]]
    assert all(any("not what my records give" in note for note in node.notes) for node in net.nodes)
    assert net.ledger.tip.fork_nonce == 0 and not net.rollbacks
    assert not any("should be rolled back" in note for node in net.nodes for note in node.notes)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_active_is_never_rolled_back_and_said_once(seed):
    net = Net(seed=seed, rounds=3, window=20.0)
    net.at(100, lambda: astray(net, net.nodes, 6))
    net.run(500)
    assert landed(net.ledger) == [1] and net.ledger.tip.active(net.now) == 1
    assert net.ledger.tip.fork_nonce == 0 and not net.rollbacks
    for node in net.nodes:
        assert sum("it is final" in note for note in node.notes) == 1
        assert not any("should be rolled back" in note for note in node.notes)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_wish_that_finds_no_quorum_before_the_window_is_over_ends(seed):
    net = Net(seed=seed, rounds=3, window=120.0)
    net.at(60, lambda: astray(net, net.nodes[:2], 6))
    net.run(110)
    assert all(node.attestor.rollbacks.declared for node in net.nodes[:2])
    net.run(300)
    assert all(node.attestor.rollbacks.wanted is None for node in net.nodes)
    assert landed(net.ledger) == [1] and net.ledger.tip.fork_nonce == 0 and not net.rollbacks


def demanding(net: Net, liars: Sequence[Node], most: int = 2**64) -> set[bytes]:
    """From here on these tell everybody, all the time, that all epochs up to `most` should go; their addresses."""
    electorate = net.ledger.hub.electorate

    def demand():
        head = net.ledger.tip.head(net.now)
        for liar in liars:
            for epoch in range(head.active_epoch + 1, min(head.epoch + 1, most) + 1):
                rollback = Rollback(RUN, head.fork_nonce, epoch)
                signature = sign(liar.identity, rollback.digest(DOMAIN))
                have = (1 << len(electorate.addresses)) - 1
                status = RollbackStatus(head.fork_nonce, epoch, epoch, have)
                for message in (status, RollbackSignatures(head.fork_nonce, epoch, (signature,))):
                    for node in net.nodes:
                        if node is not liar:
                            liar.act(Send(node.peer, message))
                            net.fired.append(message)
        net.at(3.0, demand)

    net.at(0, demand)
    return {key_address(liar.peer) for liar in liars}


@pytest.mark.parametrize("size", [4, 7])
@pytest.mark.parametrize("seed", SEEDS)
def test_less_than_a_third_that_always_want_rollbacks_achieve_nothing(seed, size):
    net = Net(size, seed=seed, rounds=12)
    liars = demanding(net, net.nodes[-((size - 1) // 3) :])
    net.run(400)
    net.check(4)
    assert len(net.fired) > 100
    assert net.ledger.tip.fork_nonce == 0 and net.ledger.reverted == []
    assert net.rollbacks.keys() == liars


@pytest.mark.parametrize("seed", SEEDS)
def test_they_do_not_stop_a_rollback_that_is_due_either(seed):
    net = divided(3, 7, seed=seed)
    liars = demanding(net, net.nodes[-2:])
    net.run(600)
    net.check(2)
    assert net.ledger.tip.fork_nonce == 1
    honest = {each for who, signed in net.rollbacks.items() if who not in liars for each in signed}
    assert honest == {(0, 1)}


@pytest.mark.parametrize("seed", SEEDS)
def test_they_make_no_rollback_go_deeper_than_somebody_honest_wants(seed):
    """Three of seven are on a branch that differs from epoch 3 on; two liars would have them sign for epoch 1."""
    net = Net(7, window=WINDOW, seed=seed, rounds=9)
    astray_ones, liars = net.nodes[:3], net.nodes[-2:]
    net.run(110)
    assert landed(net.ledger) == [1, 2, 3]
    branch = net.truth.branch(6)
    for _ in range(3):
        add_round(branch, salt=b"other")
    for node in astray_ones:
        switch(node, branch)
    demanding(net, liars, most=1)
    net.run(300)
    assert {node.attestor.rollbacks.wanted for node in astray_ones} == {3} and len(net.fired) > 100
    assert all(node.attestor.rollbacks.declared for node in astray_ones)
    assert net.rollbacks.keys() == {key_address(liar.peer) for liar in liars}
    assert landed(net.ledger) == [1, 2, 3] and net.ledger.tip.fork_nonce == 0


def anchored_anew(net: Net) -> None:
    """Run to the end of 90 s, and until epoch 1 is there under another fork nonce."""
    net.run(90)
    while net.ledger.tip.fork_nonce == 0 or landed(net.ledger) != [1]:
        assert net.now < 300
        net.run(net.now + 10)


@pytest.mark.parametrize("number", [1, 2], ids=["first leader, spent", "second leader, free"])
def test_a_restart_at_any_step_of_a_rollback_signs_nothing_twice(number, tmp_path):
    """Killed in each of its events from the healing on, after the machine moved and before anything left."""
    plain = divided(2, seed=1, rounds=3)
    plain.run(40)
    before, kinds = plain.nodes[number].events, set()
    plain.run(90)
    plain.check(1)
    assert plain.nodes[number].events > before + 30
    for step in range(before + 1, plain.nodes[number].events + 1):
        folder = tmp_path / str(step) if step % 16 == 0 else None  # on disk, too, but a disk is slow
        if folder is not None:
            folder.mkdir()
        net = divided(2, seed=1, rounds=3, folder=folder)
        net.crash = (net.nodes[number].peer, step)
        anchored_anew(net)
        net.check(1)
        assert net.ledger.tip.fork_nonce == 1
        crashes = [each[1] for each in net.fired if isinstance(each, tuple)]
        assert crashes or net.nodes[number].refused  # a message that is refused leads to nothing that could be lost
        kinds |= {kind for actions in crashes for kind in actions}
        for node in net.nodes:
            node.guard.close()
            node.log.close()
    assert kinds >= {"Send", "SetTimer", "CancelTimer", "Note"}


@pytest.mark.parametrize("number", range(4))
def test_a_restart_while_a_checkpoint_is_rolled_back_does_so_once(number):
    plain = lost(1, seed=2, rounds=3)
    plain.run(40)
    before = plain.nodes[number].events
    plain.run(90)
    plain.check(1)
    after = plain.nodes[number].events
    assert after > before + 20
    for step in range(before + 1, after + 1, 3):
        net = lost(1, seed=2, rounds=3)
        net.crash = (net.nodes[number].peer, step)
        anchored_anew(net)
        net.check(1)
        assert net.ledger.tip.fork_nonce == 1
        assert net.fired[1:] or net.nodes[number].refused


@pytest.mark.parametrize("depth", range(1, 6))
@pytest.mark.parametrize("seed", SEEDS)
def test_a_reorganisation_that_takes_a_rollback_away(seed, depth):
    net = lost(1, seed=seed)

    def strike():
        if not net.ledger.tip.fork_nonce:
            net.at(1.0, strike)
        else:
            net.ledger.reorganise(depth)
            net.fired.append(net.ledger.tip.fork_nonce)

    net.at(0, strike)
    net.run(600)
    net.check(2)
    assert net.fired == [[1], 0] and net.ledger.tip.fork_nonce == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_ten_minutes_without_rpc_delay_a_rollback_only(seed):
    net = divided(2, seed=seed)
    for node in net.nodes:
        net.at(50, lambda node=node: setattr(node, "rpc", False))
        net.at(650, lambda node=node: setattr(node, "rpc", True))
    net.run(640)
    assert landed(net.ledger) == [] and net.ledger.tip.fork_nonce == 0  # the fault fired
    net.run(1100)
    net.check(2)
    assert net.ledger.tip.fork_nonce == 1 and net.ledger.reverted == []


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_at_once(seed, tmp_path):
    net = divided(3, 7, seed=seed, loss=0.3, folder=tmp_path, rounds=12)
    liar = net.nodes[6]
    net.at(41, lambda: equivocator(net, liar))
    for moment in (45, 71, 83, 140):
        node = net.nodes[net.random.randrange(6)]
        net.at(moment, node.stop)
        net.at(moment + 11.0, node.start)
    for moment in (90, 180):
        net.at(moment, lambda: net.ledger.reorganise(4))
    net.at(100, lambda: [setattr(node, "rpc", False) for node in net.nodes[:5]])
    net.at(300, lambda: [setattr(node, "rpc", True) for node in net.nodes[:5]])
    net.run(2000)
    assert net.lost > 10 and any(isinstance(each, tuple) for each in net.fired[1:])
    net.check(4, liars={key_address(liar.peer)})
    assert net.ledger.tip.fork_nonce >= 1
