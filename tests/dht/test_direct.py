"""The direct lane between real hosts: who may use it, what cuts it, and that libp2p takes over."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from dht import direct, direct_listener
from dht.clock import ManualClock
from dht.direct import AVOID_SECONDS, TICKET_BYTES, DirectAsk, DirectOffer, dial
from dht.direct_listener import MOST_TICKETS, TICKET_SECONDS, Tickets
from dht.errors import ConfigError, ProtocolError, Refusal, UnreachableError
from dht.frames import BULK_CAP, HEADER_BYTES, Kind
from dht.host import BULK, Host
from dht.identity import Identity, PeerId
from dht.sealed import SEAL_BYTES

TAG = b"\xf0"
GREETING = TICKET_BYTES + SEAL_BYTES

StartHost = Callable[..., Awaitable[Host]]
Until = Callable[[Callable[[], bool]], Awaitable[None]]
Pump = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def no_requests(peer: PeerId, frame: memoryview) -> Sequence[bytes]:
    return [bytes(frame)]


async def two_hosts(start_host: StartHost, **options: bool) -> tuple[Host, Host, list[bytes]]:
    """Left, right, and what right has got."""
    left, right = await start_host("left"), await start_host("right", **options)
    got: list[bytes] = []
    right.serve(lambda peer, frame: got.append(bytes(frame)), no_requests)
    left.serve(lambda peer, frame: None, no_requests)
    await left.connect(right.addresses()[0])
    return left, right, got


def direct_lane(host: Host, to: Host) -> bool:
    return host._lanes[to.peer_id, BULK].sealed


@asynccontextmanager
async def man_in_the_middle(target: Host, there: Pump) -> AsyncIterator[None]:
    """Stands on the wire to `target`'s direct port; `there` handles the bytes towards it."""
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []
    real = target._listener.port

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", real)
        writers.extend((writer, far_writer))
        for work in (there(reader, far_writer), copy(far_reader, writer)):
            tasks.add(asyncio.get_running_loop().create_task(work))  # type: ignore[arg-type]

    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    target._listener.port = server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        for writer in writers:
            writer.close()
        await asyncio.gather(*tasks, *(writer.wait_closed() for writer in writers), return_exceptions=True)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def test_bulk_frames_take_the_direct_lane_and_control_frames_libp2p(start_host: StartHost) -> None:
    left, right, got = await two_hosts(start_host)
    frames = [TAG + bytes([number]) * 70_000 for number in range(60)]
    await asyncio.gather(*(left.send(right.peer_id, [frame[:40], frame[40:]], bulk=True) for frame in frames))
    await left.send(right.peer_id, [TAG, b"control"])
    assert got == [*frames, TAG + b"control"]
    assert direct_lane(left, right)
    assert [lane.sealed for lane in left._lanes.values()] == [True, False]


async def test_a_peer_without_it_and_a_peer_that_does_not_listen_are_sent_to_through_libp2p(
    start_host: StartHost,
) -> None:
    left, plain, got = await two_hosts(start_host, direct=False)
    await left.send(plain.peer_id, [TAG, b"one"], bulk=True)
    assert not direct_lane(left, plain)
    guest = await start_host("guest", client_mode=True)
    taken: list[bytes] = []
    guest.serve(lambda peer, frame: taken.append(bytes(frame)), no_requests)
    await guest.connect(plain.addresses()[0])
    await guest.connect(left.addresses()[0])
    await left.send(guest.peer_id, [TAG, b"two"], bulk=True)
    assert not direct_lane(left, guest)
    await guest.send(left.peer_id, [TAG, b"three"], bulk=True)
    assert direct_lane(guest, left)  # the other way there is one
    assert (got, taken) == ([TAG + b"one"], [TAG + b"two"])


async def test_a_firewall_that_swallows_connections_costs_one_short_wait(
    start_host: StartHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "DIAL_SECONDS", 0.1)
    left, right, got = await two_hosts(start_host)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as swallower:
        right._listener.port = swallower.getsockname()[1]  # accepts, and never answers
        await left.send(right.peer_id, [TAG, b"through libp2p"], bulk=True)
    assert not direct_lane(left, right)
    assert 0 < left._avoided.banned(right.peer_id) <= AVOID_SECONDS
    assert got == [TAG + b"through libp2p"]


async def test_who_does_not_know_the_secret_is_not_welcome(start_host: StartHost) -> None:
    """An eavesdropper with somebody's ticket, an impostor who took the port."""
    left, right, got = await two_hosts(start_host)
    ask = DirectAsk(b"T" * TICKET_BYTES)
    right._listener.offer(left.peer_id, ask, right.addresses())
    reader, writer = await asyncio.open_connection("127.0.0.1", right._listener.port)
    writer.write(ask.ticket + bytes(SEAL_BYTES))
    assert await asyncio.wait_for(reader.read(), 5) == b""  # closed without a word
    writer.close()

    asked: list[bytes] = []

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readexactly(GREETING))
        writer.write(bytes(SEAL_BYTES))
        await copy(reader, writer)

    async with await asyncio.start_server(impostor, "127.0.0.1", 0) as server:
        right._listener.port = server.sockets[0].getsockname()[1]
        await left.send(right.peer_id, [TAG, b"secret"], bulk=True)
    assert len(asked) == 1
    assert not direct_lane(left, right)
    assert got == [TAG + b"secret"]


async def test_a_peer_cannot_speak_under_anothers_name(start_host: StartHost) -> None:
    """The secret of a ticket that one peer was given makes no stream of another peer's."""
    left, right, _ = await two_hosts(start_host)
    victim = Identity.generate().peer_id
    ask = DirectAsk(b"T" * TICKET_BYTES)
    offer = right._listener.offer(left.peer_id, ask, right.addresses())
    with pytest.raises(UnreachableError):
        await dial(victim, right.peer_id, ask.ticket, offer)
    assert right.counters.refusals.total() == 0


async def test_a_recorded_greeting_opens_nothing(start_host: StartHost) -> None:
    left, right, got = await two_hosts(start_host)
    recorded = bytearray()

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            recorded.extend(data)
            writer.write(data)

    real = right._listener.port
    async with man_in_the_middle(right, record):
        await left.send(right.peer_id, [TAG, b"once"], bulk=True)
        assert direct_lane(left, right)
        reader, writer = await asyncio.open_connection("127.0.0.1", real)
        writer.write(recorded)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(reader.readexactly(1), 5)
        writer.close()
    assert len(recorded) > GREETING + HEADER_BYTES
    assert got == [TAG + b"once"]


@pytest.mark.parametrize("harm", ["cut", "flip"])
async def test_a_lane_that_is_cut_or_tampered_with_fails_its_sends_and_blames_nobody(
    start_host: StartHost, harm: str
) -> None:
    left, right, got = await two_hosts(start_host)
    lost: list[PeerId] = []
    left.on_lane_lost = lost.append
    harmed = asyncio.Event()

    async def disturb(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(GREETING))
        writer.write(await reader.readexactly(200_000))
        harmed.set()
        if harm == "flip":
            writer.write(bytes([(await reader.readexactly(1))[0] ^ 1]))
            await copy(reader, writer)
        writer.close()

    async with man_in_the_middle(right, disturb):
        frames = [TAG + bytes([number]) * 30_000 for number in range(20)]
        sends = (left.send(right.peer_id, [frame], bulk=True) for frame in frames)
        results = await asyncio.wait_for(asyncio.gather(*sends, return_exceptions=True), 20)
    assert harmed.is_set()
    acknowledged = [frame for frame, result in zip(frames, results, strict=True) if result is None]
    assert acknowledged == got[: len(acknowledged)]
    assert got == frames[: len(got)]  # nothing that was tampered with, and nothing after it
    assert len(got) < len(frames)
    assert all(result is None or isinstance(result, UnreachableError) for result in results)
    assert lost == [right.peer_id]
    assert right.counters.refusals.total() == 0  # whoever stands on the wire cannot get a peer banned

    again = TAG + b"again"
    await left.send(right.peer_id, [again], bulk=True)
    assert got[-1] == again
    assert not direct_lane(left, right)  # for a while through libp2p


async def test_a_frame_over_its_cap_costs_the_sender_the_lane(start_host: StartHost, until: Until) -> None:
    bad, host, got = await two_hosts(start_host)
    sock, channel = await bad._connect(host.peer_id, BULK)
    assert channel is not None
    record = bytearray(HEADER_BYTES + SEAL_BYTES)
    channel.out.seal([struct.pack(">IBBBBQ", BULK_CAP + 1, Kind.FRAME, 0, 0xF0, 0, 1)], memoryview(record))
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, record)
    reply, plain = await asyncio.wait_for(loop.sock_recv(sock, 100), 10), bytearray(HEADER_BYTES)
    channel.into.open(reply, memoryview(plain))
    assert plain == struct.pack(">IBBBBQ", 0, Kind.REFUSE, 0, 0, 0, Refusal.OVERSIZED)
    sock.close()
    await until(lambda: host.counters.refusals[Refusal.OVERSIZED] == 1)
    assert got == []


async def test_a_crowd_of_silent_strangers_is_sent_away_and_keeps_nobody_from_sending(
    start_host: StartHost, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_listener, "MOST_STRANGERS", 3)
    monkeypatch.setattr(direct_listener, "GREETING_SECONDS", 1.0)
    left, right, got = await two_hosts(start_host)
    crowd = [await asyncio.open_connection("127.0.0.1", right._listener.port) for _ in range(3)]
    await until(lambda: right._listener._strangers == 3)
    for number, (_, writer) in enumerate(crowd):
        writer.write(bytes(number))  # one says nothing, the others a byte or two
    await left.send(right.peer_id, [TAG, b"meanwhile"], bulk=True)
    assert got == [TAG + b"meanwhile"]
    assert not direct_lane(left, right)
    for reader, writer in crowd:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(reader.readexactly(1), 10)
        writer.close()
    await until(lambda: right._listener._strangers == 0)


async def test_a_banned_peer_gets_no_direct_lane(start_host: StartHost) -> None:
    left, right, got = await two_hosts(start_host)
    right.bans.ban(left.peer_id, 60)
    with pytest.raises(UnreachableError):
        await left.send(right.peer_id, [TAG, b"x"], bulk=True)
    assert got == []


async def test_a_given_port_that_is_taken_is_named(start_host: StartHost) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="--direct-port"):
        await start_host("host", direct_port=taken.getsockname()[1])


@pytest.mark.parametrize(
    "addresses",
    [(), ("/ip4/127.0.0.1/udp/9/quic-v1",), ("nonsense",), ("/ip4/127.0.0.1/tcp/9/p2p/x",), ("/ip4/127.0.0.1/tcp/1",)],
)
async def test_an_offer_that_leads_nowhere_is_no_way(addresses: tuple[str, ...]) -> None:
    own, to = Identity.generate().peer_id, Identity.generate().peer_id
    with pytest.raises(UnreachableError, match="no direct way"):
        await dial(own, to, bytes(TICKET_BYTES), DirectOffer(bytes(32), addresses))


def test_a_ticket_is_good_once_for_one_peer_and_not_for_long() -> None:
    clock, peer, other = ManualClock(), Identity.generate().peer_id, Identity.generate().peer_id
    tickets = Tickets(clock)
    names = [bytes([number]) * TICKET_BYTES for number in range(MOST_TICKETS + 1)]
    secret = tickets.issue(peer, names[0])
    assert tickets.redeem(names[0]) == (peer, secret)
    assert tickets.redeem(names[0]) is None
    assert tickets.redeem(names[1]) is None
    tickets.issue(peer, names[1])
    with pytest.raises(ProtocolError, match="twice"):
        tickets.issue(other, names[1])
    for name in names[2:]:
        tickets.issue(peer, name)
    with pytest.raises(ProtocolError, match="more direct streams"):
        tickets.issue(peer, names[0])
    tickets.issue(other, names[0])
    clock.advance_to(TICKET_SECONDS)
    assert tickets.redeem(names[1]) is None
    tickets.issue(peer, names[1])  # what is too old does not count


def test_the_secret_is_not_in_what_is_logged() -> None:
    assert "7777" not in repr(DirectOffer(b"7" * 32, ()))
