"""Our end of the libp2p network: `Transport` over p2pd (or another `Libp2p`), in-process on asyncio.

Each (peer, lane) has one outgoing stream, opened when first needed: control for small messages, bulk for chunks.
A request has a short stream of its own. The sender that a handler sees is the peer that libp2p authenticated.
The bulk lane goes past libp2p where there is a direct way (`dht.direct`), through it otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from dht.addresses import AddressError, parse, require_free
from dht.clock import Clock, SystemClock
from dht.counters import Counters
from dht.dial import BACKOFF, DIAL_TIMEOUT, Dial, Verdict, dial, listens
from dht.direct import AVOID_SECONDS, TICKET_BYTES, DirectAsk, DirectOffer
from dht.direct import dial as dial_direct
from dht.direct_listener import DirectListener, listen_hosts
from dht.errors import ProtocolError, Refusal, UnreachableError
from dht.identity import Identity, PeerId
from dht.limits import BanList, StreamQuota, TokenBucket
from dht.link import Receiver, Sender
from dht.request import answer, ask
from dht.sealed import Channel
from dht.transport import FrameHandler, Libp2p, Part, RequestHandler
from dht.wire import decode_as, encode

CONTROL, BULK, REQUEST, DIRECT = (f"/murmuration/1/{name}" for name in ("control", "bulk", "request", "direct"))
OPEN_TIMEOUT = 10.0
_BACKOFF_PAUSE = 0.5
MAX_STREAMS, MAX_ALL_STREAMS = 64, 1024
_FEW = 8
"""Streams of one peer that are not many; honest peers have three, and two requests."""
CONTROL_RATE, CONTROL_BURST = 2000.0, 8000.0
_REMEMBERED_PEERS = 4096
_log = logging.getLogger(__name__)


class Relay(StrEnum):
    """How much this host has to do with circuit relays."""

    OFF = "off"
    USE = "use"  # be reachable through the bootstrap peers' relays
    SERVE = "serve"  # relay for others


class Host:
    """A running libp2p host; `await Host.start(...)` (or `over`) makes one. Implements `dht.transport.Transport`.

    `daemon_died` is set when p2pd ended without being asked to; from then on every send raises UnreachableError.
    """

    def __init__(self, daemon: Libp2p, peer_id: PeerId, clock: Clock, relays: Sequence[str] = ()) -> None:
        self._daemon, self._peer_id, self._clock, self._relays = daemon, peer_id, clock, tuple(relays)
        self._on_frame: FrameHandler | None = None
        self._on_request: RequestHandler | None = None
        self._lanes: dict[tuple[PeerId, str], Sender] = {}
        self._receivers: dict[Receiver, PeerId] = {}
        self._known: dict[PeerId, tuple[str, ...]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._dials: dict[str, Dial] = {}
        self._addresses: tuple[str, ...] = ()
        self._quota = StreamQuota(MAX_STREAMS)
        self._buckets: dict[PeerId, TokenBucket] = {}
        self.bans = BanList(clock)
        self.counters = Counters()
        self._stopping = False
        self._listener = DirectListener(peer_id, clock, self._incoming_direct)
        self._avoided = BanList(clock)
        """Peers to whom libp2p is used for a while, since the direct way failed or broke."""
        self._direct = False
        self.daemon_died = asyncio.Event()
        self.death = ""
        """How p2pd ended, once it has."""
        self.on_lane_lost: Callable[[PeerId], None] = lambda peer: None
        """Called when a stream to a peer ended that we did not end: it may be gone."""
        self.on_refused: Callable[[PeerId, ProtocolError], None] = lambda peer, error: None
        """Called when a peer's stream was refused: by the rules of frames, or by a handler."""

    @classmethod
    async def start(
        cls,
        identity_path: Path,
        *,
        listen: Sequence[str] = ("/ip4/127.0.0.1/tcp/0",),
        bootstrap: Sequence[str] = (),
        announce: Sequence[str] = (),
        client_mode: bool = False,
        relay: Relay = Relay.OFF,
        direct: bool = True,
        direct_port: int = 0,
        clock: Clock | None = None,
    ) -> Host:
        """Start p2pd with the key at `identity_path` and listen.

        `bootstrap` are the relays to use with `Relay.USE`; dial them with `connect`. With `client_mode` the host
        does not listen. `direct`: bulk frames past libp2p where that works, coming in on `direct_port` of the same
        hosts (0: any free one). Raises ConfigError (AddressError), IdentityError or UnreachableError, with the cause.
        """
        identity = Identity.load(identity_path)
        places = [] if client_mode else [parse(address, peer=False) for address in listen]
        for address in (*bootstrap, *announce):
            parse(address, peer=address in bootstrap)
        for place in places:
            require_free(place)
        from dht.daemon import Daemon, RelayDaemon

        daemon = await (RelayDaemon if relay is Relay.SERVE else Daemon).launch(
            identity_path=str(identity_path),
            host_maddrs=[place.text for place in places] or None,
            announce_maddrs=list(announce) or None,
            no_listen=client_mode,
            dht_mode="client" if client_mode else "server",
            nat_port_map=not all(place.loopback for place in places),
            force_reachability=_reachability(relay, client_mode),
            use_relay=relay is not Relay.OFF,
            use_auto_relay=relay is Relay.USE and bool(bootstrap),
            trusted_relays=list(bootstrap) or None,
        )
        relays = bootstrap if relay is Relay.USE else ()
        host = cls(daemon, identity.peer_id, clock or SystemClock(), relays)
        try:
            if daemon.peer_id.to_bytes() != identity.peer_id:
                raise UnreachableError("the libp2p daemon runs under another identity")
            host._direct = direct
            if direct:
                host._listener.listen(listen_hosts([place.text for place in places]), direct_port)
            await host._begin()
        except BaseException:
            await daemon.shutdown()
            raise
        return host

    @classmethod
    async def over(cls, libp2p: Libp2p, peer_id: PeerId) -> Host:
        """A host on a libp2p that runs already under `peer_id`, without a direct lane. `stop` ends that libp2p, too."""
        host = cls(libp2p, peer_id, SystemClock())
        await host._begin()
        return host

    async def _begin(self) -> None:
        for protocol in (CONTROL, BULK, REQUEST, DIRECT):
            await self._daemon.accept(protocol, self._incoming)
        await self.refresh_addresses()
        self._daemon.died.add_done_callback(self._daemon_ended)

    @property
    def peer_id(self) -> PeerId:
        """Who we are on this network."""
        return self._peer_id

    @property
    def p2p(self) -> Any:
        """The hivemind `P2P` that the DHT node shares with us (`dht.daemon.Daemon`), for a host of `start`."""
        return self._daemon

    def addresses(self) -> tuple[str, ...]:
        """Full multiaddresses (with /p2p/) under which others can dial us, as of the start or the last refresh."""
        return self._addresses

    async def refresh_addresses(self) -> tuple[str, ...]:
        """`addresses()` as of now: relays and NAT mappings are found only after a while. Raises UnreachableError."""
        own = await self._daemon.addresses()
        self._addresses = own or tuple(f"{relay}/p2p-circuit/p2p/{self._peer_id}" for relay in self._relays)
        return self._addresses

    def serve(self, on_frame: FrameHandler, on_request: RequestHandler) -> None:
        """Set the handlers. Frames that arrive before are refused, not queued."""
        self._on_frame, self._on_request = on_frame, on_request

    async def send(self, to: PeerId, parts: Sequence[Part], *, bulk: bool = False) -> None:
        """Deliver the concatenated parts as one frame; see `Transport.send`. The parts must not change meanwhile."""
        if to == self._peer_id:
            self._deliver(to, memoryview(b"".join(parts)))
            return
        await self._lane(to, BULK if bulk else CONTROL).send(parts)

    async def request(self, to: PeerId, parts: Sequence[Part], *, timeout: float) -> memoryview:
        """Send a request frame and wait for its reply frame; see `Transport.request`."""
        started = self._clock.now()
        sock = await self._open(to, REQUEST, min(timeout, OPEN_TIMEOUT))
        left = max(0.001, timeout - (self._clock.now() - started))
        return await ask(sock, parts, timeout=left, meter=self.counters.of(to))

    def learn(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Remember where `peer` may be dialled; bad addresses are left out. Hints only: libp2p checks who answers."""
        good = []
        for text in addresses[:16]:
            try:
                if parse(text).peer == peer:
                    good.append(text)
            except AddressError:
                continue
        if good:
            self._known.pop(peer, None)
            self._known[peer] = tuple(good)
            if len(self._known) > _REMEMBERED_PEERS:
                del self._known[next(iter(self._known))]

    async def dial(self, address: str, *, timeout: float = DIAL_TIMEOUT) -> Dial:
        """Dial one address and say how it went; raises nothing.

        libp2p refuses to dial an address again within seconds of a failure; then the verdict of that failure stands.
        """
        result = await dial(address, self._daemon.dial, timeout)
        if result.detail == BACKOFF:
            return self._dials.get(address, result)
        self._dials[address] = result
        if len(self._dials) > _REMEMBERED_PEERS:
            del self._dials[next(iter(self._dials))]
        if result.verdict is Verdict.OK and result.peer is not None:
            self.learn(result.peer, [address])
        return result

    async def connect(self, address: str, *, timeout: float = DIAL_TIMEOUT) -> PeerId:
        """Dial one address. Raises AddressError, or UnreachableError with the verdict."""
        parse(address)
        result = await self.dial(address, timeout=timeout)
        if result.verdict is not Verdict.OK or result.peer is None:
            raise UnreachableError(str(result), remedy="check that the peer runs and that its port is open")
        return result.peer

    async def stop(self, timeout: float = 3.0) -> None:
        """Let what is on its way arrive (at most `timeout` seconds), then end the daemon. Safe to call twice."""
        self._stopping = True
        self._listener.close()
        lanes = list(self._lanes.values())
        await asyncio.gather(*(lane.close(timeout) for lane in lanes), return_exceptions=True)
        for receiver in list(self._receivers):
            receiver.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._daemon.shutdown()

    # -- outgoing -------------------------------------------------------------------------------------------------

    def _lane(self, to: PeerId, protocol: str) -> Sender:
        lane = self._lanes.get((to, protocol))
        if lane is None or not lane.open:
            lane = self._lanes[to, protocol] = Sender(on_lost=lambda: self._forget(to, protocol))
            self._spawn(self._attach(lane, to, protocol))
        return lane

    async def _attach(self, lane: Sender, to: PeerId, protocol: str) -> None:
        try:
            sock, channel = await self._connect(to, protocol)
        except UnreachableError as error:
            lane.abort(error)
        except asyncio.CancelledError:
            lane.abort(UnreachableError("the host was stopped"))
            raise
        else:
            lane.attach(sock, meter=self.counters.of(to), channel=channel)

    async def _connect(self, to: PeerId, protocol: str) -> tuple[socket.socket, Channel | None]:
        if protocol == BULK and self._direct and not self._avoided.banned(to):
            sock = await self._open(to, DIRECT, OPEN_TIMEOUT)  # who cannot be asked cannot be reached through libp2p
            request = DirectAsk(os.urandom(TICKET_BYTES))
            try:
                reply = await ask(sock, [encode(request)], timeout=OPEN_TIMEOUT, meter=self.counters.of(to))
                return await dial_direct(self._peer_id, to, request.ticket, decode_as(DirectOffer, reply))
            except (UnreachableError, ProtocolError) as error:
                _log.info("bulk frames to %s go through libp2p: %s", to.short, error.message)
                self._avoided.ban(to, AVOID_SECONDS)
        return await self._open(to, protocol, OPEN_TIMEOUT), None

    async def _open(self, to: PeerId, protocol: str, timeout: float) -> socket.socket:
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        return await self._try_open(to, protocol)
                    except UnreachableError as error:
                        if BACKOFF not in error.message or not await self._listens(to):
                            raise
                    # p2pd will not dial for some seconds after a failure, as when both ends dialled in one instant.
                    await asyncio.sleep(_BACKOFF_PAUSE)
        except TimeoutError:
            raise UnreachableError(f"{to.short} did not answer within {timeout:g} s") from None

    async def _try_open(self, to: PeerId, protocol: str) -> socket.socket:
        if known := self._known.get(to):
            try:
                await self._daemon.dial(to, known)
            except UnreachableError as error:
                _log.debug("%s is not where it was: %s", to.short, error.message)
        return await self._daemon.open_stream(to, protocol)

    async def _listens(self, to: PeerId) -> bool:
        """Whether anybody is at a place where `to` was: who is gone shall be known to be at once."""
        return any(await asyncio.gather(*(listens(address) for address in self._known.get(to, ()))))

    def _forget(self, to: PeerId, protocol: str) -> None:
        lane = self._lanes.get((to, protocol))
        if lane is not None and not lane.open:
            del self._lanes[to, protocol]
            if lane.sealed:
                self._avoided.ban(to, AVOID_SECONDS)  # whatever cut it may cut the next one, too
            if not self._stopping:
                self.on_lane_lost(to)

    # -- incoming -------------------------------------------------------------------------------------------------

    async def _incoming(self, protocol: str, remote: bytes, sock: socket.socket, leftover: bytes) -> None:
        try:
            peer = PeerId(remote)
        except ProtocolError:
            self.counters.refusals[Refusal.OUT_OF_BOUNDS] += 1
            sock.close()
            return
        if protocol in (REQUEST, DIRECT):
            await self._admit(peer, sock, lambda: self._answer(peer, protocol, sock, leftover))
        else:
            await self._admit(peer, sock, lambda: self._receive(peer, protocol, sock, leftover))

    def _incoming_direct(self, peer: PeerId, sock: socket.socket, channel: Channel) -> None:
        self._spawn(self._admit(peer, sock, lambda: self._receive(peer, BULK, sock, channel=channel)))

    async def _admit(
        self, peer: PeerId, sock: socket.socket, serve: Callable[[], Awaitable[ProtocolError | None]]
    ) -> None:
        if self._quota.total >= MAX_ALL_STREAMS:
            self._close_one()
        if self.bans.banned(peer) or self._quota.total >= 2 * MAX_ALL_STREAMS or not self._quota.acquire(peer):
            self.counters.refusals[Refusal.RATE_LIMITED] += 1
            sock.close()
            return
        try:
            refused = await serve()
        finally:
            self._quota.release(peer)
        if refused is not None:
            self._refused(peer, refused)

    def _close_one(self) -> None:
        """Make room for a stream: of whoever has the most the one that was silent longest, else of all of them.

        An honest peer whose stream is closed opens another when it has something to say.
        """
        if not self._receivers:
            return
        peer, count = Counter(self._receivers.values()).most_common(1)[0]
        chosen = next(lane for lane, other in self._receivers.items() if count <= _FEW or other == peer)
        # It takes a moment to end: whoever comes meanwhile must not close the same one and find no room.
        del self._receivers[chosen]
        chosen.close()

    async def _receive(
        self, peer: PeerId, protocol: str, sock: socket.socket, leftover: bytes = b"", channel: Channel | None = None
    ) -> ProtocolError | None:
        bucket = self._buckets.setdefault(peer, TokenBucket(self._clock, CONTROL_RATE, CONTROL_BURST))
        lane: list[Receiver] = []  # it may hear its first frames before it is there

        def heard(frame: memoryview) -> None:
            if lane and lane[0] in self._receivers:
                self._receivers[lane[0]] = self._receivers.pop(lane[0])  # silent longest comes first
            self._deliver(peer, frame)

        receiver = Receiver(
            sock,
            heard,
            leftover=leftover,
            admit=bucket.take if protocol == CONTROL else lambda: 0.0,
            meter=self.counters.of(peer),
            channel=channel,
        )
        lane.append(receiver)
        self._receivers[receiver] = peer
        try:
            return await receiver.closed
        finally:
            receiver.close()
            self._receivers.pop(receiver, None)
            if peer not in self._receivers.values():
                self._buckets.pop(peer, None)

    async def _answer(self, peer: PeerId, protocol: str, sock: socket.socket, leftover: bytes) -> ProtocolError | None:
        async def handle(frame: memoryview) -> Sequence[Part]:
            if protocol == DIRECT:
                return [encode(self._listener.offer(peer, decode_as(DirectAsk, frame), self._addresses))]
            if self._on_request is None:
                raise ProtocolError(Refusal.UNEXPECTED, "no request is served yet")
            return await self._on_request(peer, frame)

        return await answer(sock, handle, leftover=leftover, meter=self.counters.of(peer))

    def _deliver(self, peer: PeerId, frame: memoryview) -> None:
        if self._on_frame is None:
            raise ProtocolError(Refusal.UNEXPECTED, "no frame is served yet")
        self._on_frame(peer, frame)

    def _refused(self, peer: PeerId, error: ProtocolError) -> None:
        self.counters.refusals[error.refusal] += 1
        self.on_refused(peer, error)
        banned = self.bans.strike(peer)
        _log.warning("%s: %s%s", peer.short, error.message, "; banned for a while" if banned else "")
        if banned:
            for receiver, sender in list(self._receivers.items()):
                if sender == peer:
                    receiver.close()

    # -- the daemon -----------------------------------------------------------------------------------------------

    def _daemon_ended(self, died: asyncio.Future[str]) -> None:
        if died.cancelled():
            return
        self.death = died.result()
        _log.error("%s", self.death)
        self.daemon_died.set()
        self._listener.close()
        for receiver in list(self._receivers):
            receiver.close()
        for lane in list(self._lanes.values()):
            lane.abort(UnreachableError(died.result(), remedy="restart this program"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _reachability(relay: Relay, client_mode: bool) -> str | None:
    """What libp2p should take for granted; it relays only when public, and asks for relays only when private."""
    if relay is Relay.SERVE:
        return "public"
    return "private" if relay is Relay.USE and client_mode else None
