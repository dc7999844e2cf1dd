"""The transport over real libp2p daemons on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from dht.dial import BACKOFF, Verdict
from dht.errors import ConfigError, IdentityError, ProtocolError, Refusal, UnreachableError
from dht.frames import BULK_CAP, Kind
from dht.host import BULK, CONTROL, Host, Relay
from dht.identity import Identity, PeerId
from dht.link import RefusedError
from tests.dht.conftest import StartHost, Until, echo, visited

TAG = b"\xf0"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


both_lanes = pytest.mark.parametrize("direct", [True, False], ids=["direct", "libp2p"])


@both_lanes
async def test_frames_requests_and_counters_between_two_hosts(start_host: StartHost, direct: bool) -> None:
    left, right = await start_host("left", direct=direct), await start_host("right")
    got: list[tuple[PeerId, bytes]] = []
    right.serve(lambda peer, frame: got.append((peer, bytes(frame))), echo)
    assert await left.connect(right.addresses()[0]) == right.peer_id

    frames = [TAG + bytes([number]) * (1 if number % 3 else 1 + number * 2900) for number in range(200)]
    await asyncio.gather(*(left.send(right.peer_id, [frame[:1], frame[1:]], bulk=True) for frame in frames))
    assert got == [(left.peer_id, frame) for frame in frames]

    await left.send(right.peer_id, [TAG, b"control"])
    assert got[-1] == (left.peer_id, TAG + b"control")
    question = TAG + bytes(300_000)
    assert await left.request(right.peer_id, [question], timeout=10) == question

    sent = sum(map(len, frames)) + len(question)
    assert sent < left.counters.of(right.peer_id).up < sent * 1.05 + 10_000
    assert left.counters.total().up == right.counters.total().down
    left.serve(lambda peer, frame: got.append((peer, bytes(frame))), echo)
    await left.send(left.peer_id, [TAG, b"to myself"])
    assert got[-1] == (left.peer_id, TAG + b"to myself")


async def test_nothing_is_handled_before_somebody_serves(start_host: StartHost) -> None:
    left, right = await start_host("left"), await start_host("right")
    await left.connect(right.addresses()[0])
    with pytest.raises(RefusedError) as caught:
        await left.send(right.peer_id, [TAG, b"early"])
    assert caught.value.refusal is Refusal.UNEXPECTED
    with pytest.raises(RefusedError):
        await left.request(right.peer_id, [TAG, b"early"], timeout=10)


@both_lanes
async def test_a_killed_daemon_fails_every_unacknowledged_send(start_host: StartHost, direct: bool) -> None:
    left, right = await start_host("left", direct=direct), await start_host("right")
    got: list[int] = []
    killed = asyncio.Event()

    def on_frame(peer: PeerId, frame: memoryview) -> None:
        got.append(int.from_bytes(frame[1:3], "big"))
        if len(got) == 20:
            os.kill(right.p2p.pid, signal.SIGKILL)
            killed.set()

    right.serve(on_frame, echo)
    await left.connect(right.addresses()[0])
    body = bytes(250_000)
    sends = (left.send(right.peer_id, [TAG, number.to_bytes(2, "big"), body], bulk=True) for number in range(400))
    results = await asyncio.wait_for(asyncio.gather(*sends, return_exceptions=True), 30)
    assert killed.is_set()
    await asyncio.wait_for(right.daemon_died.wait(), 10)
    acknowledged = [number for number, result in enumerate(results) if result is None]
    assert set(acknowledged) <= set(got)  # what was reported delivered was handled
    failed = [result for result in results if result is not None]
    assert len(failed) >= 400 - len(got)
    assert all(isinstance(result, UnreachableError) for result in failed)
    with pytest.raises(UnreachableError, match="daemon died"):
        await right.send(left.peer_id, [TAG, b"x"])


async def test_an_oversized_frame_costs_its_sender_the_stream_and_nobody_else(
    start_host: StartHost, until: Until
) -> None:
    host, (bad, good), got = await visited(start_host, "bad", "good")
    await good.send(host.peer_id, [TAG, b"before"])

    loop = asyncio.get_running_loop()
    for strike in (1, 2, 3):
        stream = await bad.p2p.open_stream(host.peer_id, BULK)
        stream.setblocking(False)
        await loop.sock_sendall(stream, struct.pack(">IBBBBQ", BULK_CAP + 1, Kind.FRAME, 0, 0xF0, 0, 1))
        reply = await asyncio.wait_for(loop.sock_recv(stream, 100), 10)
        assert reply == struct.pack(">IBBBBQ", 0, Kind.REFUSE, 0, 0, 0, Refusal.OVERSIZED)
        stream.close()
        await until(lambda count=strike: host.counters.refusals[Refusal.OVERSIZED] == count)

    await good.send(host.peer_id, [TAG, b"after"])
    assert got == [TAG + b"before", TAG + b"after"]
    assert host.bans.banned(bad.peer_id) > 0
    with pytest.raises(UnreachableError):
        await bad.send(host.peer_id, [TAG, b"let me in"])
    with pytest.raises(ProtocolError):  # our own side does not even send one
        await good.send(host.peer_id, [TAG, bytes(BULK_CAP)], bulk=True)


async def test_each_dial_says_why_it_failed(start_host: StartHost, tmp_path: Path) -> None:
    left, right = await start_host("left"), await start_host("right")
    stranger = Identity.generate().peer_id
    place = right.addresses()[0].rsplit("/p2p/", 1)[0]
    outcomes = {
        right.addresses()[0]: Verdict.OK,
        f"{place}/p2p/{stranger}": Verdict.WRONG_PEER,
        f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{stranger}": Verdict.REFUSED,
        "/ip4/127.0.0.1/tcp/4001": Verdict.NOT_AN_ADDRESS,
        "example.org:4001": Verdict.NOT_AN_ADDRESS,
    }
    for address, verdict in outcomes.items():
        assert (await left.dial(address)).verdict is verdict, address
    with pytest.raises(UnreachableError, match="wrong peer id"):
        await left.connect(f"{place}/p2p/{stranger}")
    with pytest.raises(ConfigError):
        await left.connect("nowhere")


async def test_a_silent_address_times_out(start_host: StartHost) -> None:
    host = await start_host("host")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{Identity.generate().peer_id}"
        result = await host.dial(address, timeout=0.3)
    assert result.verdict is Verdict.TIMEOUT


@both_lanes
async def test_peers_that_never_dialled_each_other_meet_through_a_third(start_host: StartHost, direct: bool) -> None:
    middle, left, right = [await start_host(name, direct=direct) for name in ("middle", "left", "right")]
    got: list[bytes] = []
    right.serve(lambda peer, frame: got.append(bytes(frame)), echo)
    await left.connect(middle.addresses()[0])
    await right.connect(middle.addresses()[0])
    left.learn(right.peer_id, [*right.addresses(), "nonsense", middle.addresses()[0]])
    await left.send(right.peer_id, [TAG, b"hello"], bulk=True)
    assert got == [TAG + b"hello"]


@both_lanes
async def test_a_failed_dial_does_not_keep_a_peer_away_for_long(
    start_host: StartHost, tmp_path: Path, direct: bool
) -> None:
    left = await start_host("left", direct=direct)
    port, peer = free_port(), Identity.load_or_create(tmp_path / "right.key").peer_id
    address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}"
    left.learn(peer, [address])
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port):
        assert (await left.dial(address)).verdict is Verdict.UNREACHABLE
    with pytest.raises(UnreachableError, match=BACKOFF):
        await left.send(peer, [TAG, b"nobody there"], bulk=True)  # at once, since nobody listens there
    right = await start_host("right", listen=(address.rsplit("/p2p/", 1)[0],))
    got: list[bytes] = []
    right.serve(lambda peer, frame: got.append(bytes(frame)), echo)
    await left.send(peer, [TAG, b"there you are"], bulk=True)
    assert got == [TAG + b"there you are"]


@both_lanes
async def test_a_peer_that_comes_back_is_sent_to_again(start_host: StartHost, direct: bool) -> None:
    left = await start_host("left", direct=direct)
    port = free_port()
    listen = (f"/ip4/127.0.0.1/tcp/{port}",)
    right = await start_host("right", listen=listen)
    got: list[bytes] = []
    right.serve(lambda peer, frame: got.append(bytes(frame)), echo)
    await left.connect(right.addresses()[0])
    await left.send(right.peer_id, [TAG, b"first"], bulk=True)
    await right.stop()
    with pytest.raises(UnreachableError):
        await left.send(right.peer_id, [TAG, b"nobody there"], bulk=True)
    again = await start_host("right", listen=listen)
    again.serve(lambda peer, frame: got.append(bytes(frame)), echo)
    await again.connect(left.addresses()[0])
    await left.send(right.peer_id, [TAG, b"second"], bulk=True)
    assert got == [TAG + b"first", TAG + b"second"]


async def test_a_port_in_use_and_a_bad_key_are_named(start_host: StartHost, tmp_path: Path) -> None:
    host = await start_host("host")
    taken = host.addresses()[0].rsplit("/p2p/", 1)[0]
    with pytest.raises(ConfigError, match="is in use"):
        await start_host("other", listen=(taken,))
    with pytest.raises(ConfigError, match="unknown part"):
        await start_host("other", listen=("/ip4/127.0.0.1/carrier-pigeon/1",))
    with pytest.raises(ConfigError, match="cannot listen"):
        await start_host("other", listen=("/ip4/192.0.2.1/tcp/0",))
    bad = tmp_path / "bad.key"
    bad.write_bytes(b"not a key")
    bad.chmod(0o600)
    with pytest.raises(IdentityError):
        await Host.start(bad)


async def test_a_peer_may_take_only_its_share_of_streams(
    start_host: StartHost, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dht.host.MAX_STREAMS", 3)
    host, greedy = await start_host("host"), await start_host("greedy")
    host.serve(lambda peer, frame: None, echo)
    await greedy.connect(host.addresses()[0])
    streams = [await greedy.p2p.open_stream(host.peer_id, CONTROL) for _ in range(4)]
    await until(lambda: host.counters.refusals[Refusal.RATE_LIMITED] == 1)
    for stream in streams:
        stream.close()


PARENT = """
import asyncio, sys
from pathlib import Path
from dht.host import Host
async def main():
    host = await Host.start(Path(sys.argv[1]))
    print(host.p2p.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_the_daemon_does_not_outlive_a_killed_parent(tmp_path: Path, until: Until) -> None:
    key = tmp_path / "key"
    Identity.load_or_create(key)
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", PARENT, str(key)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        assert alive(pid)
        parent.kill()
        parent.wait()
    assert parent.returncode == -signal.SIGKILL
    await until(lambda: not alive(pid))


async def test_where_the_kernel_cannot_help_the_daemon_is_minded(tmp_path: Path, until: Until) -> None:
    shim = Path(__file__).parents[2] / "dht" / "die_with_parent.py"
    child = tmp_path / "pid"
    program = f"import os, time; open({str(child)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    start = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, {str(shim)!r}, str(os.getpid()), "--poll", sys.executable, "-c", {program!r}])
time.sleep(600)
"""
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", start]
    ) as parent:
        await until(lambda: child.exists() and bool(child.read_text()))
        pid = int(child.read_text())
        assert alive(pid)
        parent.kill()
        parent.wait()
    await until(lambda: not alive(pid))


async def test_a_daemon_that_does_not_listen_is_ended_by_force(start_host: StartHost, until: Until) -> None:
    host = await start_host("host")
    os.kill(host.p2p.pid, signal.SIGSTOP)
    await asyncio.wait_for(host.stop(), 20)
    assert not alive(host.p2p.pid)


async def test_a_host_that_does_not_listen_can_send_and_be_answered(start_host: StartHost) -> None:
    host, guest = await start_host("host"), await start_host("guest", client_mode=True)
    host.serve(lambda peer, frame: None, echo)
    guest.serve(lambda peer, frame: None, echo)
    assert guest.addresses() == ()
    await guest.connect(host.addresses()[0])
    assert await guest.request(host.peer_id, [TAG, b"x"], timeout=10) == TAG + b"x"
    assert await host.request(guest.peer_id, [TAG, b"y"], timeout=10) == TAG + b"y"


async def test_a_relay_carries_frames_to_a_peer_that_nobody_can_dial(start_host: StartHost) -> None:
    relay = await start_host("relay", relay=Relay.SERVE)
    hidden = await start_host("hidden", client_mode=True, relay=Relay.USE, bootstrap=relay.addresses())
    outside = await start_host("outside", relay=Relay.USE)
    got: list[bytes] = []
    hidden.serve(lambda peer, frame: got.append(bytes(frame)), echo)
    await hidden.connect(relay.addresses()[0])
    (circuit,) = hidden.addresses()
    async with asyncio.timeout(60):
        while (await outside.dial(circuit)).verdict is not Verdict.OK:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    await outside.send(hidden.peer_id, [TAG, b"through the relay"])
    assert got == [TAG + b"through the relay"]
