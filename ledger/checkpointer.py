"""Binds an `Attestor` to the event loop, the network, the chain and the disk. Training waits for nothing here.

The hub is asked every `poll` seconds. While no RPC answers, the peer goes on training; epochs that end meanwhile are
anchored one after the other when one answers again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from averaging.actions import CancelTimer, Note, Send, SetTimer, TimerKey
from averaging.evidence import name_of
from dht.errands import Errands
from dht.errors import MurmurationError, StorageError, UnreachableError
from dht.identity import PeerId
from dht.transport import Part
from dht.wire import decode, encode
from ledger.attestor import Attestor, AttestorAction, Expose, Finalize
from ledger.chain_view import ChainView, HubIntent
from ledger.files import write_once
from ledger.quorum import Submit
from ledger.rollbacks import Alarm

_log = logging.getLogger(__name__)
POLL = 12.0
"""Seconds between two looks at the hub."""
MOST_BACKOFF = 60.0
"""The longest pause between two looks while no RPC answers."""


class Sender(Protocol):
    """What of a `dht.transport.Transport` is needed."""

    async def send(self, to: PeerId, parts: Sequence[Part], *, bulk: bool = False) -> None:
        """See `dht.transport.Transport.send`."""
        ...


class Checkpointer:
    """Runs one attestor from `run` to `stop`. Methods are called on the event loop."""

    def __init__(
        self,
        attestor: Attestor,
        view: ChainView,
        transport: Sender,
        evidence: Path,
        finalize: Callable[[int], None],
        *,
        poll: float = POLL,
    ) -> None:
        """`evidence`: the folder that keeps proofs of equivocation. `finalize` gets rounds that are final."""
        self._attestor, self._view, self._transport = attestor, view, transport
        self._evidence, self._finalize, self._poll = evidence, finalize, poll
        self._errands: Errands[TimerKey] = Errands()
        self._unsubmitted: dict[str, HubIntent] = {}
        self._failures = 0
        self._stopped = False

    async def run(self) -> None:
        """Follow the hub until this is cancelled or `stop` is called. No failure of the chain ends it."""
        while not self._stopped:
            await self._look()
            await asyncio.sleep(min(self._poll * 2**self._failures, max(MOST_BACKOFF, self._poll)))

    def receive(self, sender: PeerId, frame: bytes | memoryview) -> None:
        """A frame of one of the ledger's tags. Raises ProtocolError when it is refused."""
        if not self._stopped:
            self._do(self._attestor.receive(sender, decode(frame)))

    def advanced(self) -> None:
        """The run's chain has a new head, or another branch."""
        if not self._stopped:
            self._do(self._attestor.advanced())

    async def stop(self) -> None:
        """End all timers and sends. What is on disk stays."""
        self._stopped = True
        await self._errands.stop()

    async def _look(self) -> None:
        try:
            head = await self._view.head()
        except MurmurationError as error:
            self._failures = min(self._failures + 1, 8)
            if self._failures == 1:
                _log.warning("%s; training goes on, checkpoints wait", error)
            return
        if self._failures:
            _log.info("the ledger answers again at epoch %d", head.epoch)
        self._failures = 0
        unsubmitted, self._unsubmitted = self._unsubmitted, {}
        for intent in unsubmitted.values():
            if not intent.fulfilled(head):
                self._errands.spawn(self._submit(intent))
        self._do(self._attestor.head(head))

    def _do(self, actions: Sequence[AttestorAction]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._errands.spawn(self._send(action.to, encode(action.message)))
            elif isinstance(action, SetTimer):
                self._errands.set_timer(action.key, action.delay, self._due)
            elif isinstance(action, CancelTimer):
                self._errands.cancel_timer(action.key)
            elif isinstance(action, Submit):
                self._errands.spawn(self._submit(action.intent))
            elif isinstance(action, Expose):
                self._keep(action)
            elif isinstance(action, Finalize):
                self._finalize(action.round)
            elif isinstance(action, Note):
                level = logging.WARNING if isinstance(action, Alarm) else logging.INFO
                _log.log(level, "%s%s", action.text, f" ({action.peer.short})" if action.peer else "")

    def _due(self, key: TimerKey) -> None:
        self._do(self._attestor.timeout(key))

    def _keep(self, exposed: Expose) -> None:
        """Write evidence under its name, once."""
        path = self._evidence / f"{name_of(exposed.evidence).hex()}.evidence"
        try:
            write_once(path, exposed.evidence)
        except StorageError as error:
            _log.error("%s", error)
        else:
            _log.warning("0x%s signed two checkpoints for one place: %s", exposed.accused.hex(), path)

    async def _send(self, to: PeerId, frame: bytes) -> None:
        try:
            await self._transport.send(to, [frame])
        except UnreachableError as error:
            _log.debug("%s", error)  # who lacks a signature asks for it

    async def _submit(self, intent: HubIntent) -> None:
        try:
            await self._view.submit(intent)
        except MurmurationError as error:
            self._unsubmitted[intent.key] = intent  # tried again at the next look
            _log.warning("cannot submit %s yet: %s", intent.about, error)
