"""A running peer's part in the ledger: it signs checkpoints of what its own records say, and has them submitted.

Everything here runs beside the rounds. No node answers, a wrong signature comes, a wallet is empty: training goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from averaging.chain import Chain
from averaging.layout import Layout
from dht.errors import ConfigError, IncompatibleRunError, MurmurationError, ProtocolError, Refusal
from dht.identity import Identity, PeerId
from ledger.attestation_log import SqliteAttestationLog
from ledger.attestor import Attestor
from ledger.attestor_guard import SqliteAttestorGuard
from ledger.books import Books
from ledger.chain.deployments import Deployment
from ledger.chain_view import ChainView, Head, HubIntent
from ledger.checkpoint import NOTHING
from ledger.checkpointer import Checkpointer
from ledger.checkpointer import Sender as Transport
from ledger.eip712 import Domain
from ledger.rewards import Constants
from peer.config import PeerConfig
from peer.events import Reporter
from peer.manifest import Manifest

log = logging.getLogger(__name__)
FRAMES = range(0x60, 0x70)
"""First bytes of the ledger's frames."""
_BENIGN = frozenset((Refusal.STALE, Refusal.NOT_A_MEMBER, Refusal.UNEXPECTED))
_POLL = 4.0
_PATIENCE = 15.0
"""Seconds between two looks for a node while none has answered yet."""


class Anchor:
    """The parts of the ledger at one peer. `run` never returns; cancel it, then `close`."""

    def __init__(
        self,
        config: PeerConfig,
        manifest: Manifest,
        identity: Identity,
        transport: Transport,
        chain: Callable[[], Chain | None],
        reporter: Reporter,
    ) -> None:
        """Raises ConfigError and IncompatibleRunError when the deployment file is not this run's."""
        assert config.ledger is not None
        self._config, self._manifest, self._identity, self._transport = config, manifest, identity, transport
        self._chain, self._reporter = chain, reporter
        self._deployment = Deployment.load(config.ledger)
        if self._deployment.run_id != manifest.run_id:
            raise IncompatibleRunError(
                f"{config.ledger} is of run {self._deployment.run_id.hex()[:16]}, the manifest of another one",
                remedy="give --ledger the deployment file of this run",
            )
        hub = self._deployment.contracts["CheckpointHub"].lower()
        agreed = (manifest.ledger.chain_id, manifest.ledger.hub)
        if manifest.ledger.hub and agreed != (self._deployment.chain_id, hub):
            raise IncompatibleRunError(
                f"the manifest names hub {agreed[1]} on chain {agreed[0]}, "
                f"{config.ledger} has {hub} on {self._deployment.chain_id}",
                remedy="give --ledger the deployment file of this run",
            )
        self._folder = config.data_dir / "ledger" / manifest.run_id.hex()[:16]
        self._checkpointer: Checkpointer | None = None
        self._closing: list[Callable[[], Any]] = []

    def receive(self, sender: PeerId, frame: bytes | memoryview) -> None:
        """A frame of the ledger's. Raises ProtocolError for what only a broken or hostile peer sends."""
        if self._checkpointer is None:
            return
        try:
            self._checkpointer.receive(sender, frame)
        except ProtocolError as error:
            if error.refusal not in _BENIGN:
                raise
            log.debug("%s: %s", sender.short, error)  # it has seen a newer block, or an older one

    def advanced(self) -> None:
        """The chain of records has a new head, or another branch stands."""
        if self._checkpointer is not None and self._chain() is not None:
            self._checkpointer.advanced()

    async def run(self) -> None:
        """Take part until cancelled. Raises ConfigError and IncompatibleRunError for a chain that cannot be right."""
        while self._checkpointer is None:
            try:
                self._checkpointer = await self._open() if self._chain() is not None else None
            except (ConfigError, IncompatibleRunError):
                raise
            except MurmurationError as error:
                log.warning("no checkpoints yet: %s", error)
            if self._checkpointer is None:
                await self._release()
                await asyncio.sleep(_PATIENCE if self._chain() is not None else 1.0)
        await self._checkpointer.run()

    async def close(self) -> None:
        """End it; what is journalled goes on at the next start."""
        if self._checkpointer is not None:
            await self._checkpointer.stop()
        await self._release()

    async def _release(self) -> None:
        for close in reversed(self._closing):
            result = close()
            if asyncio.iscoroutine(result):
                await result
        self._closing.clear()

    async def _open(self) -> Checkpointer:
        # Here, not above: web3's parts take a second to import, and most peers anchor nothing.
        from ledger.chain import artifacts
        from ledger.chain.rpc import RpcPool
        from ledger.hub_view import HubView
        from ledger.indexer.abi import Interface
        from ledger.indexer.store import Index

        deployment, at = self._deployment, self._deployment.contracts
        contracts = {at[name]: artifacts.load(name) for name in artifacts.CONTRACTS}
        rpc = RpcPool(self._config.rpc or deployment.rpc, deployment.chain_id, contracts)
        self._closing.append(rpc.close)
        interface = Interface({name: artifacts.load(name).abi for name in artifacts.CONTRACTS})
        constants = await self._constants(rpc, interface)
        self._folder.mkdir(parents=True, exist_ok=True)
        index = Index(self._folder / "index.sqlite", deployment, interface)
        self._closing.append(index.close)
        view = HubView(rpc, index, interface, at["CheckpointHub"], self._wallet(rpc))
        self._closing.append(view.close)
        guard, seen = SqliteAttestorGuard(self._folder / "guard.sqlite"), SqliteAttestationLog(self._folder / "seen")
        self._closing += [guard.close, seen.close]
        domain = Domain(deployment.chain_id, bytes.fromhex(at["CheckpointHub"][2:]))
        attestor = Attestor(self._identity, domain, Books(constants), self._records, guard, seen)
        evidence = self._folder / "evidence"  # of another format than averaging's
        evidence.mkdir(exist_ok=True)
        reporting = _Reporting(view, self._reporter)
        return Checkpointer(attestor, reporting, self._transport, evidence, self._finalize, poll=_POLL)

    async def _constants(self, rpc: Any, interface: Any) -> Constants:
        pool, found = self._deployment.contracts["RewardPool"], []
        for name in ("emission", "mostEmitted"):
            call = {"to": pool, "data": "0x" + interface.call("RewardPool", name).hex()}
            answer = await rpc.call("eth_call", [call, "latest"])
            found.append(int(interface.result("RewardPool", name, bytes.fromhex(answer[2:]))))
        ledger, codec = self._manifest.ledger, self._manifest.codec
        chunk_bytes = Layout(codec.chunk_elements, codec.ring_bits, codec.chunk_elements, codec.pack).chunk_bytes(0)
        return Constants(ledger.rounds_per_checkpoint, found[0], found[1], ledger.tokens_bps, chunk_bytes)

    def _wallet(self, rpc: Any) -> Any:
        if self._config.wallet is None:
            return None
        from ledger.chain.journal import Journal
        from ledger.chain.sender import Sender
        from ledger.chain.wallet import Wallet, read_password

        wallet = Wallet.load(self._config.wallet, read_password(self._config.wallet_password_file))
        journal = Journal(self._folder / "wallet")
        self._closing.append(journal.close)
        return Sender(rpc, wallet, journal), journal

    def _records(self) -> Chain:
        chain = self._chain()
        assert chain is not None, "the attestor is made once there is one"
        return chain

    def _finalize(self, round_: int) -> None:
        try:
            self._records().finalize(round_)
        except (KeyError, ProtocolError) as error:
            log.warning("round %d is final on the ledger and unknown here: %s", round_, error)


class _Reporting:
    """A `ChainView` whose owner is told of each new checkpoint, and of each rollback."""

    def __init__(self, view: ChainView, reporter: Reporter) -> None:
        self._view, self._reporter, self._hash = view, reporter, NOTHING
        self._fork_nonce: int | None = None

    async def head(self) -> Head:
        head = await self._view.head()
        if self._fork_nonce is not None and head.fork_nonce > self._fork_nonce:
            self._reporter.event("checkpoint_rolled_back", epoch=head.rolled_back, fork_nonce=head.fork_nonce)
        self._fork_nonce = head.fork_nonce
        if head.hash != self._hash and head.checkpoint is not None:
            header = head.checkpoint
            self._reporter.event(
                "checkpoint",
                epoch=header.epoch,
                last_round=header.last_round,
                root=header.model_root.hex(),
                tally=header.tally_root.hex(),
                active_epoch=head.active_epoch,
            )
        self._hash = head.hash
        return head

    async def submit(self, intent: HubIntent) -> None:
        await self._view.submit(intent)
