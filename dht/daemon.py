"""The libp2p daemon (p2pd): started with our key, watched, and never left behind.

hivemind's `P2P` starts it and speaks its control protocol. What differs here: it dies with us, its failures
become our errors, streams are opened with a deadline and handed over as bare sockets.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError, read_pbmsg_safe
from hivemind.proto import p2pd_pb2
from hivemind.utils.logging import use_hivemind_log_handler

from dht.addresses import AddressError, encode, varint
from dht.errors import ConfigError, UnreachableError
from dht.identity import PeerId
from dht.transport import StreamSink

_SHIM = Path(__file__).with_name("die_with_parent.py")
_START_TIMEOUT = 15.0
_STOP_TIMEOUT = 3.0
_CALL_TIMEOUT = 10.0

# Its records go where the program's own logging sends them, not to a handler of hivemind's.
use_hivemind_log_handler("nowhere")


class Daemon(P2P):  # type: ignore[misc]
    """One p2pd process. `died` resolves with the cause when it ends without being asked to."""

    relay_service = False
    """Whether p2pd relays for others."""

    def __init__(self) -> None:
        super().__init__()
        self.died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._stopping = False

    def __del__(self) -> None:
        if self._child is not None:
            super().__del__()

    @classmethod
    async def launch(cls, **options: Any) -> Daemon:
        """Start p2pd with hivemind's `options`. Raises ConfigError or UnreachableError with the cause."""
        options.setdefault("startup_timeout", _START_TIMEOUT)
        try:
            daemon: Daemon = await cls.create(check_if_identity_free=False, use_ipfs=False, **options)
        except (P2PDaemonError, OSError, ValueError) as error:
            raise _start_error(str(error)) from None
        return daemon

    @property
    def pid(self) -> int:
        """Process id of p2pd."""
        return int(self._child.pid)

    async def open_stream(self, peer: PeerId, protocol: str) -> socket.socket:
        """A new stream to `peer`, as a socket that is ours to close. Raises UnreachableError."""
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.STREAM_OPEN,
            streamOpen=p2pd_pb2.StreamOpenRequest(peer=bytes(peer), proto=[protocol]),
        )
        reader, writer = await self._call(request)
        sock, leftover = await take_over(reader, writer)
        if leftover:
            # The answering side never speaks first.
            sock.close()
            raise UnreachableError(f"{peer.short} spoke out of turn")
        return sock

    async def dial(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Connect to `peer` at any of `addresses`, unless connected. Raises UnreachableError."""
        encoded = [encode(address.rsplit("/p2p/", 1)[0]) for address in addresses]
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.CONNECT, connect=p2pd_pb2.ConnectRequest(peer=bytes(peer), addrs=encoded)
        )
        _, writer = await self._call(request)
        writer.transport.abort()

    async def accept(self, protocol: str, sink: StreamSink) -> None:
        """Hand every incoming stream of `protocol` to `sink`."""

        async def handle(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                sock, leftover = await take_over(reader, writer)
            except UnreachableError:
                return
            await sink(protocol, info.peer_id.to_bytes(), sock, leftover)

        await self.add_binary_stream_handler(protocol, handle)

    async def addresses(self) -> tuple[str, ...]:
        """Full multiaddresses under which the daemon believes to be reachable; none for one that does not listen."""
        if self.died.done():
            raise UnreachableError(self.died.result())
        try:
            async with asyncio.timeout(_CALL_TIMEOUT):
                _, visible = await self._client.identify()
        except (OSError, EOFError, TimeoutError):
            raise UnreachableError("the libp2p daemon does not answer") from None
        return tuple(f"{address}/p2p/{self.peer_id.to_base58()}" for address in visible)

    async def shutdown(self) -> None:
        """End p2pd, by force if it does not listen, and wait until it is gone."""
        self._stopping = True
        tasks = [task for task in (self._listen_task, self._reader_task) if task is not None]
        self._terminate()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._child is not None:
            try:
                await asyncio.wait_for(self._child.wait(), _STOP_TIMEOUT)
            except TimeoutError:
                self._child.kill()
                await self._child.wait()
            self._child._transport.close()

    async def _call(self, request: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.died.done():
            raise UnreachableError(self.died.result())
        try:
            reader, writer = await asyncio.open_unix_connection(self._daemon_listen_maddr["unix"])
        except OSError as error:
            raise UnreachableError(f"the libp2p daemon does not answer: {error.strerror}") from None
        response = p2pd_pb2.Response()
        try:
            writer.write(varint(request.ByteSize()) + request.SerializeToString())
            await read_pbmsg_safe(reader, response)
        except (OSError, EOFError):
            writer.transport.abort()
            raise UnreachableError("the libp2p daemon hung up") from None
        except BaseException:
            writer.transport.abort()
            raise
        if response.type == p2pd_pb2.Response.ERROR:
            writer.transport.abort()
            raise UnreachableError(" ".join(response.error.msg.split()))
        return reader, writer

    def _make_process_args(self, *arguments: str, **flags: Any) -> list[str]:
        flags["relayService"] = self.relay_service
        command: list[str] = P2P._make_process_args(*arguments, **flags)
        return [sys.executable, "-I", "-S", str(_SHIM), str(os.getpid()), *command]

    async def _read_outputs(self, ready: asyncio.Future[None]) -> None:
        await super()._read_outputs(ready)
        code = await self._child.wait()
        self._child._transport.close()
        if not self._stopping and not self.died.done():
            cause = f"signal {-code}" if code < 0 else f"exit code {code}"
            self.died.set_result(f"the libp2p daemon died ({cause})")


class RelayDaemon(Daemon):
    """A p2pd that relays for others."""

    relay_service = True


async def take_over(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[socket.socket, bytes]:
    """The socket under a pair of asyncio streams, and the bytes they had read ahead. Raises UnreachableError.

    A duplicate descriptor outlives the transport, so bulk data needs no pass through its buffers.
    """
    transport = cast(asyncio.Transport, writer.transport)
    try:
        transport.pause_reading()
        sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
    except (OSError, RuntimeError):
        transport.abort()
        raise UnreachableError("the stream ended at once") from None
    reader.feed_eof()
    leftover = await reader.read()
    transport.abort()
    return sock, leftover


def _start_error(cause: str) -> ConfigError | UnreachableError:
    cause = cause.removeprefix("Daemon failed to start: ")
    if "failed to listen" in cause or "multiaddr" in cause or "announce" in cause:
        return AddressError(f"the libp2p daemon refuses an address: {cause}", remedy="check --listen and --announce")
    return UnreachableError(f"the libp2p daemon did not start: {cause}", remedy="run `run-peer doctor`")
