"""One peer's part in the ledger as a process of its own: `python -m tests.ledger.e2e.peer_process SETTINGS`.

Everything of the ledger is the product's, wired by `peer.anchor`. What a whole peer would bring is simple here: it gets
its certified records from a file, up to the round that was last released by a line on stdin (`{"round": 12}`), and its
frames go over Unix sockets, `NUMBER.sock` in the working folder. Events are JSON lines on stdout.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from averaging.chain import Chain, ChainSegment, unpack
from dht.errors import ProtocolError, UnreachableError
from dht.identity import PeerId
from dht.transport import Part
from dht.wire import decode_as
from peer import anchor
from peer.config import PeerConfig
from peer.events import JsonReporter
from peer.manifest import Manifest
from tests.ledger.records import KEYS

PACE = 0.2
"""Seconds between two looks at the hub: a run of minutes passes in seconds. Nothing else is other than in a run."""


@dataclass(frozen=True)
class Settings:
    """What the test tells the process."""

    number: int
    manifest: str
    records: str
    deployment: str
    rpc: str
    wallet: str
    password: str
    folder: str


class Records(Chain):
    """A chain that says which rounds become final, and grows by the run's records as they are released."""

    def __init__(self, frame: bytes, manifest: Manifest, reporter: JsonReporter) -> None:
        segment = decode_as(ChainSegment, frame)
        super().__init__(manifest.run_id, manifest.founder, segment.founding)
        self._coming = [unpack(link) for link in segment.links]
        self._reporter = reporter

    def release(self, round_: int) -> None:
        """The peer gets what is missing up to this round."""
        for link in self._coming[self.head.round : round_]:
            self.append(*link)

    def finalize(self, round_: int) -> None:
        """See `Chain.finalize`."""
        super().finalize(round_)
        self._reporter.event("final", round=self.finalized)


class Port:
    """Frames to and from other processes. A frame is the sender's peer id and what it sent, on a connection of its own.

    What the sender says it is, it is: authentication is the transport's business, and this is the test's.
    """

    def __init__(self, number: int) -> None:
        self._me, self._number = KEYS[number].peer_id, number
        self._places = {key.peer_id: f"{place}.sock" for place, key in enumerate(KEYS)}

    async def send(self, to: PeerId, parts: Sequence[Part], *, bulk: bool = False) -> None:
        """See `dht.transport.Transport.send`."""
        try:
            _, writer = await asyncio.open_unix_connection(self._places[to])
            writer.write(self._me + b"".join(parts))
            writer.close()
            await writer.wait_closed()
        except OSError as error:
            raise UnreachableError(f"{to.short} is not there: {error}") from error

    async def serve(self, ledger: anchor.Anchor, reporter: JsonReporter) -> asyncio.Server:
        """Give every frame to the anchor."""

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            frame = await reader.read()
            writer.close()
            size = len(self._me)
            if len(frame) <= size:
                return  # its sender died
            try:
                ledger.receive(PeerId(frame[:size]), frame[size:])
            except ProtocolError as error:
                reporter.event("refused", reason=str(error))

        return await asyncio.start_unix_server(take, f"{self._number}.sock")  # in place of a killed process's


async def stdin_lines() -> asyncio.StreamReader:
    """Standard input, line by line."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def main(settings: Settings, frame: bytes) -> None:
    """Take part until stdin ends. `frame`: a segment with all records."""
    reporter, manifest = JsonReporter(), Manifest.loads(settings.manifest)
    records = Records(frame, manifest, reporter)
    config = PeerConfig(
        data_dir=Path(settings.folder),
        ledger=Path(settings.deployment),
        rpc=(settings.rpc,),
        wallet=Path(settings.wallet),
        wallet_password_file=Path(settings.password),
    )
    port = Port(settings.number)
    anchor._POLL = PACE
    ledger = anchor.Anchor(config, manifest, KEYS[settings.number], port, lambda: records, reporter)
    server = await port.serve(ledger, reporter)
    running = asyncio.create_task(ledger.run())
    running.add_done_callback(lambda task: None if task.cancelled() else sys.exit(f"it ended: {task.exception()!r}"))
    reporter.event("ready")
    orders = await stdin_lines()
    while line := await orders.readline():
        records.release(json.loads(line)["round"])
        ledger.advanced()
        reporter.event("records", round=records.head.round)
    server.close()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await ledger.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    told = Settings(**json.loads(Path(sys.argv[1]).read_text()))
    asyncio.run(main(told, Path(told.records).read_bytes()))
