"""Five peers and a bootstrap server as real processes over libp2p; one of them is killed in the middle of a round.

One swarm serves all tests of this module, which run in this order and each leave it whole: starting it costs more
than all of its rounds.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.fault.processes import Swarm, children, last_words, one_swarm, running
from tests.fault.run import Run

pytestmark = one_swarm("swarm of processes")
PEERS = 5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with Swarm(tmp_path_factory.mktemp("swarm")) as swarm:
        yield Run(swarm.folder, swarm, PEERS)


def test_all_peers_hold_the_same_bytes(run: Run):
    run.swarm.wait("round 3", lambda: all(3 in peer.rounds() for peer in run.peers), run.peers)
    reports = [peer.rounds()[3] for peer in run.peers]
    assert len({report["root"] for report in reports}) == 1
    assert [len(report["root"]) for report in reports] == [64] * PEERS
    run.check_roots()

    common: list[tuple[bytes, ...]] = []

    def same_round_everywhere() -> bool:
        states = [tuple(by_peer.values()) for by_peer in run.state_files().values() if len(by_peer) == PEERS]
        common.extend(states)
        return bool(states)

    run.swarm.wait("a round whose state is on all disks", same_round_everywhere, run.peers)
    assert all(len(set(states)) == 1 for states in common)
    assert len(common[0][0]) == reports[0]["state_bytes"]


def test_a_peer_killed_in_a_round_comes_back(run: Run):
    victim = PEERS - 1
    dead = run.peers[victim]
    daemons = children(dead.process.pid)
    run.strikes_in(victim, "upload")
    run.swarm.wait("the death", lambda: dead.code is not None, run.others(victim))
    assert dead.code == -signal.SIGKILL
    steps = dead.named("step")
    assert steps[-1]["step"] == "upload", "the fault did not fire in the step it was meant for"
    killed_in = steps[-1]["round"]
    assert killed_in not in dead.rounds()

    def without_it() -> list[int]:
        seen = run.peers[0].rounds()
        certified = sorted(r for r in seen if r >= killed_in and not seen[r]["void"])
        return [r for r in certified[:2] if run.ids[victim] not in seen[r]["survivors"]]

    run.swarm.wait("a round certified without the dead peer", lambda: bool(without_it()), run.others(victim))
    run.swarm.wait("its daemon's end", lambda: not any(map(running, daemons)), run.others(victim))
    run.check_roots()

    peer = run.peers[victim] = run.start(victim)
    run.swarm.wait("its way back", lambda: bool(peer.named("caught_up")), run.peers)
    assert 0 < peer.named("started")[0]["round"] <= killed_in  # from its own disk, not from nothing
    caught = peer.named("caught_up")[0]
    assert caught["round"] >= killed_in
    assert caught["chunks"] > 0 and caught["bytes"] > 0
    assert caught["donors"] and set(caught["donors"]) <= set(run.ids) - {run.ids[victim]}

    def survived() -> list[int]:
        return [r for r, report in peer.rounds().items() if run.ids[victim] in report["survivors"]]

    run.swarm.wait("a round in which it is a survivor", lambda: bool(survived()), run.peers)
    number = survived()[0]
    assert number > killed_in
    run.swarm.wait("the others' report", lambda: all(number in other.rounds() for other in run.peers), run.peers)
    assert {other.rounds()[number]["root"] for other in run.peers} == {peer.rounds()[number]["root"]}
    assert run.peers[0].rounds().get(caught["round"], caught)["root"] == caught["root"]
    run.check_roots()


def test_without_the_bootstrap_rounds_go_on_and_peers_come_back(run: Run):
    run.bootstrap.process.kill()
    run.swarm.wait("the bootstrap's end", lambda: run.bootstrap.code is not None)
    assert run.bootstrap.code == -signal.SIGKILL
    run.wait_for_rounds(2, run.peers)

    left = run.peers[1]
    left.process.send_signal(signal.SIGTERM)
    run.swarm.wait("the peer's leave", lambda: left.code is not None, run.others(1))
    assert left.code == 0, last_words(left)
    assert left.named("stopped")
    assert (run.home(1) / "addresses.json").stat().st_size

    peer = run.peers[1] = run.start(1)
    run.comes_back(1)
    assert run.address not in {event["address"] for event in peer.named("bootstrap")}
    assert any(run.address in event["reason"] for event in peer.named("waiting")), "the bootstrap was not missed"
    run.check_roots()


def test_one_folder_is_for_one_process(run: Run):
    second = run.start(2)
    run.swarm.wait("the second process's end", lambda: second.code is not None, run.peers)
    assert second.code == 73
    assert f"in use by process {run.peers[2].process.pid}" in str(second.named("error")) + last_words(second)
    run.wait_for_rounds(1, run.peers)  # the first one did not notice


def test_all_leave_in_good_order(run: Run):
    daemons = [daemon for peer in run.peers for daemon in children(peer.process.pid)]
    assert len(daemons) == PEERS
    for peer in run.peers:
        peer.process.send_signal(signal.SIGTERM)
    run.swarm.wait("the end of all", lambda: all(peer.code is not None for peer in run.peers))
    assert [peer.code for peer in run.peers] == [0] * PEERS, run.swarm.tell()
    run.swarm.wait("the end of their daemons", lambda: not any(map(running, daemons)))
    for peer in run.peers:
        assert peer.named("stopped")[0]["root"] in {report["root"] for report in peer.rounds().values()}
    for by_peer in run.state_files().values():
        assert len(set(by_peer.values())) == 1
    assert not any("Traceback" in peer.stderr.read_text() for peer in run.peers)
    run.check_roots()
