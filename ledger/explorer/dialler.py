"""py-libp2p in the place of p2pd: authenticated streams to peers for a program that runs no daemon and does not listen.

NOISE ONLY. py-libp2p's defaults also take TLS, secio and plaintext, and under plaintext anybody who knows a peer's
public key passes for that peer. Here a connection whose other end does not prove its peer id by Noise is none.

py-libp2p runs on trio: as a guest on asyncio's loop, in the same thread. Each of its streams is joined to a socket
pair, so that frames, caps and deadlines are those of `dht.host`. No process can import both it and hivemind,
and it takes a second: this module alone does so, and only in `launch`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from dht.addresses import parse
from dht.errors import ConfigError, UnreachableError
from dht.identity import Identity, PeerId
from dht.transport import StreamSink

if TYPE_CHECKING:
    import trio
    from libp2p.abc import IHost, INetStream

T = TypeVar("T")
_READ = 64 * 1024
_CLOSE_SECONDS = 1.0
_STOP_SECONDS = 5.0


class Dialler:
    """A libp2p host of py-libp2p, as `dht.transport.Libp2p`; `await Dialler.launch(identity)` makes one."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.died: asyncio.Future[str] = self._loop.create_future()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._over = asyncio.Event()
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._host: IHost
        self._nursery: trio.Nursery
        self._token: trio.lowlevel.TrioToken

    @classmethod
    async def launch(cls, identity: Identity) -> Dialler:
        """Start under `identity`. Raises ConfigError when py-libp2p cannot be imported."""
        try:
            host = _noise_host(identity)
            import trio
        except ImportError as error:
            raise ConfigError(
                f"py-libp2p cannot be imported: {error}",
                remedy="install it (pip install 'murmuration[libp2p]'), or give --records",
            ) from None
        dialler = cls()
        trio.lowlevel.start_guest_run(
            dialler._run,
            host,
            run_sync_soon_threadsafe=dialler._later,
            done_callback=dialler._ended,
            host_uses_signal_set_wakeup_fd=True,
        )
        await dialler._ready
        return dialler

    async def dial(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Connect to `peer` at the first of `addresses`, unless connected. Raises UnreachableError with the cause."""
        from libp2p.peer.id import ID
        from libp2p.peer.peerinfo import PeerInfo
        from multiaddr import Multiaddr

        where = [Multiaddr(address.rsplit("/p2p/", 1)[0]) for address in addresses if dialable(address)]
        await self._do(lambda: self._host.connect(PeerInfo(ID(bytes(peer)), where)))

    async def open_stream(self, peer: PeerId, protocol: str) -> socket.socket:
        """A new stream to `peer`, as a socket that is ours to close. Raises UnreachableError."""
        from libp2p.custom_types import TProtocol
        from libp2p.peer.id import ID

        async def opened() -> socket.socket:
            stream = await self._host.new_stream(ID(bytes(peer)), [TProtocol(protocol)])
            ours, theirs = socket.socketpair()
            self._nursery.start_soon(_join, stream, theirs)
            return ours

        return await self._do(opened)

    async def accept(self, protocol: str, sink: StreamSink) -> None:
        """Hand every stream of `protocol` that a connected peer opens to `sink`."""
        from libp2p.custom_types import TProtocol

        async def handle(stream: INetStream) -> None:
            ours, theirs = socket.socketpair()
            task = self._loop.create_task(_awaited(sink(protocol, stream.muxed_conn.peer_id.to_bytes(), ours, b"")))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await _join(stream, theirs)

        self._host.set_stream_handler(TProtocol(protocol), handle)

    async def addresses(self) -> tuple[str, ...]:
        """None: it does not listen."""
        return ()

    async def shutdown(self) -> None:
        """Close all connections."""
        self._stopping = True
        self._soon(self._nursery.cancel_scope.cancel)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), _STOP_SECONDS)

    async def _run(self, host: IHost) -> None:
        import trio

        async with host.run(listen_addrs=[]), trio.open_nursery() as nursery:
            self._host, self._nursery, self._token = host, nursery, trio.lowlevel.current_trio_token()
            self._ready.set_result(None)
            try:
                await trio.sleep_forever()
            finally:
                with trio.move_on_after(_CLOSE_SECONDS) as closing:
                    closing.shield = True
                    await host.close()

    def _ended(self, outcome: Any) -> None:
        self._over.set()
        error = getattr(outcome, "error", None)
        if not self._ready.done():
            self._ready.set_exception(UnreachableError(f"py-libp2p did not start: {error}"))
        elif not self._stopping and not self.died.done():
            self.died.set_result(f"py-libp2p ended: {error}")

    async def _do(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await `work` under trio. Raises UnreachableError for whatever it raises."""
        import trio

        done: asyncio.Future[T] = self._loop.create_future()
        scope = trio.CancelScope()

        async def job() -> None:
            try:
                with scope:
                    result = await work()
                    if not done.done():
                        done.set_result(result)
                    elif isinstance(result, socket.socket):
                        result.close()
            except Exception as error:
                if not done.done():
                    done.set_exception(UnreachableError(cause_of(error)))
            finally:
                if not done.done():
                    done.set_exception(UnreachableError("the connection was closed"))

        self._soon(self._nursery.start_soon, job)
        try:
            return await done
        except asyncio.CancelledError:
            self._soon(scope.cancel)
            raise

    def _later(self, work: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(work)

    def _soon(self, function: Callable[..., object], *arguments: object) -> None:
        if not self._over.is_set():
            self._token.run_sync_soon(function, *arguments)


def dialable(address: str) -> bool:
    """Whether a multiaddress is one for TCP without relays and web sockets: no other is dialled without a daemon."""
    place = parse(address)
    return place.transport == "tcp" and not place.relayed and not {"ws", "wss"} & set(address.split("/"))


def _noise_host(identity: Identity) -> IHost:
    from libp2p import new_host
    from libp2p.crypto.keys import KeyPair
    from libp2p.crypto.secp256k1 import Secp256k1PrivateKey
    from libp2p.crypto.x25519 import create_new_key_pair
    from libp2p.security.noise.transport import PROTOCOL_ID, Transport
    from libp2p.transport.tcp.tcp import TCP

    logging.getLogger("libp2p").setLevel(logging.CRITICAL + 1)  # what goes wrong is said by our own errors
    secret = Secp256k1PrivateKey.from_bytes(identity.protobuf()[4:])
    keys = KeyPair(secret, secret.get_public_key())
    noise = Transport(keys, noise_privkey=create_new_key_pair().private_key)
    return new_host(key_pair=keys, sec_opt={PROTOCOL_ID: noise}, transports=[TCP()], muxer_preference="YAMUX")


async def _join(stream: INetStream, end: socket.socket) -> None:
    """Carry bytes between a libp2p stream and our end of a socket pair until either is closed."""
    import trio

    end.setblocking(False)
    local = trio.SocketStream(trio.socket.from_stdlib_socket(end))

    async def out() -> None:
        with suppress(Exception):  # whatever a stream of py-libp2p raises, it is over
            async for data in local:
                await stream.write(bytes(data))
        both.cancel_scope.cancel()

    async def into() -> None:
        with suppress(Exception):
            while data := await stream.read(_READ):
                await local.send_all(data)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await local.send_eof()  # who holds the other end reads what is there, and closes

    async with local:
        async with trio.open_nursery() as both:
            both.start_soon(out)
            both.start_soon(into)
        with trio.move_on_after(_CLOSE_SECONDS) as closing, suppress(Exception):
            closing.shield = True
            await stream.close()


async def _awaited(work: Awaitable[None]) -> None:
    await work


def cause_of(error: BaseException) -> str:
    """What lies at the bottom of one of py-libp2p's errors, in the words by which `dht.dial` knows its verdicts."""
    found = list(_chain(error))
    for each in found:
        if type(each).__name__ == "PeerIDMismatchesPubkey":
            return f"peer id mismatch: {each}"
    if any("negotiate a security protocol" in str(each) for each in found):
        return "it does not speak Noise, and so cannot prove who it is"
    return str(found[-1]) or type(found[-1]).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, then what it was raised from; of several (a group, or libp2p's `MultiError`) the first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        several = getattr(seen, "exceptions", None) or getattr(seen, "errors", None)
        seen = several[0] if several else seen.__cause__ or seen.__context__
