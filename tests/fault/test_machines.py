"""Four real peers, each behind a TCP proxy, whose machines and links fail: stopped, without files, daemon or disk.

One swarm serves all tests of this module, which run in this order and each leave it whole. Four peers tolerate one
death, and three of them are a quorum.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Iterator

import pytest

from tests.fault.processes import Swarm, children, one_swarm
from tests.fault.proxy import Proxies, Way
from tests.fault.run import Run, make_manifest

pytestmark = one_swarm("swarm of machines")
PEERS = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with Proxies() as proxies, Swarm(tmp_path_factory.mktemp("machines")) as swarm:
        yield Run(swarm.folder, swarm, PEERS, proxies)


def test_rounds_go_through_the_proxies(run: Run):
    run.swarm.wait("round 1", lambda: all(1 in peer.rounds() for peer in run.peers), run.peers)
    assert sum(proxy.inward.carried + proxy.outward.carried for proxy in run.proxies) > 1e6
    run.check_roots()


def test_a_stopped_peer_is_left_out_and_catches_up(run: Run):
    run.whole()
    victim = run.peers[3]
    run.strikes_in(3, "upload", signal.SIGSTOP)
    run.swarm.wait("the stop", lambda: victim.state() == "T", run.others(3))
    run.swarm.wait("its last word", lambda: victim.events[-1].get("step") == "upload", run.others(3))
    said, head = len(victim.events), run.head()

    def without_it() -> list[int]:
        rounds = run.peers[0].rounds()
        return [n for n in rounds if n > head and not rounds[n]["void"] and run.ids[3] not in rounds[n]["survivors"]]

    run.swarm.wait("a round without it", lambda: bool(without_it()), run.others(3))
    assert victim.state() == "T" and len(victim.events) == said, "it was not stopped all the time"
    victim.process.send_signal(signal.SIGCONT)
    assert run.comes_back(3) > head
    run.check_roots()


def test_a_dead_daemon_ends_its_peer_and_it_comes_back_with_a_wrong_clock_and_without_bootstrap(run: Run):
    """Three faults that a restart meets: the address book leads in, and the others' clocks count for records."""
    run.whole()
    victim = run.peers[2]
    (daemon,) = children(victim.process.pid)
    os.kill(daemon, signal.SIGKILL)
    assert "the libp2p daemon died (signal 9)" in run.ended(victim, 69, run.others(2))
    run.bootstrap.process.kill()
    run.ended(run.bootstrap, -signal.SIGKILL)
    peer = run.peers[2] = run.start(2, skew=600.0)
    run.comes_back(2)
    assert any("600 s ahead of the others" in event["reason"] for event in peer.named("waiting"))
    assert run.address not in {event["address"] for event in peer.named("bootstrap")}
    assert any(run.address in event["reason"] for event in peer.named("waiting")), "the bootstrap was not missed"
    run.check_roots()


def test_a_newcomer_needs_no_bootstrap_but_any_peer(run: Run):
    """Its clock is slow, and the only address that it has is another peer's."""
    address = run.peers[1].named("started")[0]["addresses"][0]
    newcomer = run.start(PEERS, skew=-600.0, bootstrap=address)
    run.peers.append(newcomer)
    run.ids.append(newcomer_id(run))
    run.comes_back(PEERS)
    assert any("600 s behind the others" in event["reason"] for event in newcomer.named("waiting"))
    run.whole()  # one of five may leave: four are a quorum
    newcomer.process.send_signal(signal.SIGTERM)
    run.ended(newcomer, 0, run.peers[:PEERS])
    run.peers.pop()
    run.check_roots()


def newcomer_id(run: Run) -> str:
    run.swarm.wait("its identity", lambda: bool(run.peers[-1].named("started")), run.peers)
    identity: str = run.peers[-1].named("started")[0]["peer"]
    return identity


def test_a_copied_folder_is_noticed(run: Run):
    copy = run.folder / "copy"
    copy.mkdir(mode=0o700)
    for name in ("identity.key", "addresses.json"):
        shutil.copy(run.home(1) / name, copy / name)
    twin = run.start(1, data_dir=str(copy), listen="/ip4/127.0.0.1/tcp/0", announce=run.elsewhere())
    said = run.ended(twin, 73, run.peers)
    assert "another process runs under this identity" in said
    run.wait_for_rounds(1, run.peers)
    run.check_roots()


def test_another_manifest_or_version_is_said_to_be_one(run: Run):
    founder = run.peers[0].named("started")[0]["addresses"][0]
    other = make_manifest(run.ids[0], PEERS + 1)
    (run.folder / "other.toml").write_text(other.dumps())
    stranger = run.start(PEERS + 1, run="other.toml", bootstrap=founder)
    newer = run.start(PEERS + 2, version="2", bootstrap=founder)
    assert "belongs to another run" in run.ended(stranger, 65, run.peers)
    assert "does not speak this version" in run.ended(newer, 65, run.peers)


def test_without_file_descriptors_a_peer_says_so_and_leaves(run: Run):
    run.whole()
    victim = run.peers[3]
    pid = victim.process.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # Far below what is open: a count of this instant may hold files that are closed again, and room for the next ones.
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) // 2, hard))
    said = run.ended(victim, 74, run.others(3))
    assert "Too many open files" in said and "ulimit -n" in said
    run.wait_for_rounds(1, run.others(3))
    run.peers[3] = run.start(3, bootstrap=run.peers[0].named("started")[0]["addresses"][0])
    run.comes_back(3)
    run.check_roots()


def test_a_full_disk_stops_a_peer_with_its_old_state_and_the_next_start_goes_on(run: Run):
    run.whole()
    victim = run.peers[3]
    # No file may grow past one byte any more, in a running process: sqlite's journal, sums and states alike.
    resource.prlimit(victim.process.pid, resource.RLIMIT_FSIZE, (1, 1))
    assert "MUR-500" in run.ended(victim, 74, run.others(3))
    last = max(victim.rounds())
    peer = run.peers[3] = run.start(3, bootstrap=run.peers[0].named("started")[0]["addresses"][0])
    run.comes_back(3)
    assert peer.named("started")[0]["round"] >= last
    run.check_roots()


def test_links_that_break_stall_and_crawl(run: Run):
    """All at once: every connection cut in the middle of an upload, then a stall, then 100 ms and 1 Mbit/s each way."""
    run.swarm.wait("an upload", lambda: run.peers[0].named("step")[-1]["step"] == "upload", run.peers)
    dialled = sum(proxy.connections for proxy in run.proxies)
    for proxy in run.proxies:
        proxy.cut()
    # A link has two ends at its proxy, and every two peers have one.
    assert sum(proxy.cuts for proxy in run.proxies) >= PEERS * (PEERS - 1)
    run.wait_for_rounds(1, run.peers)
    ways = [way for proxy in run.proxies for way in (proxy.inward, proxy.outward)]
    for proxy in run.proxies:
        proxy.stall()
    run.swarm.wait(
        "something held", lambda: sum(p.inward.held + p.outward.held for p in run.proxies) >= PEERS, run.peers
    )
    for proxy in run.proxies:
        proxy.flow()
    run.wait_for_rounds(1, run.peers)
    for way in ways:
        way.delay, way.rate = 0.1, 125_000.0
    slow, before = run.head(), carried(ways)
    run.wait_for_rounds(2, run.peers)  # the first may have begun before
    run.whole()
    # Each of four members gets three quarters of a model as masked chunks, and as much in sums: all of it went through.
    assert carried(ways) - before >= 6 * ring_bytes(run), "a round went past the proxies"
    assert sum(proxy.connections for proxy in run.proxies) - dialled >= PEERS * (PEERS - 1) // 2, "a link was not cut"
    for way in ways:
        way.delay, way.rate = 0.0, 0.0
    assert all(run.comes_back(index) > slow + 2 for index in range(PEERS))
    run.check_roots()


def carried(ways: list[Way]) -> int:
    return sum(way.carried for way in ways)


def ring_bytes(run: Run) -> int:
    """Bytes of a masked update: two a parameter, of which the state has two float32."""
    states = [state for peers in run.state_files().values() for state in peers.values()]
    return min(map(len, states)) // 8 * run.manifest.codec.ring_bits // 8
