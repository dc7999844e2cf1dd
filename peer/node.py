"""A running peer: the one place where its parts are made, connected, started and stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from averaging.cohort import Cohort
from averaging.driver import Driver
from averaging.evidence import Proof
from averaging.guard import SqliteGuard
from averaging.participant import Participant
from averaging.record import Record
from averaging.work import Decided, Joined, RolledBack
from dht.addressbook import AddressBook, find_a_way_in
from dht.clock import SystemClock
from dht.dial import listens
from dht.discovery import Discovery, Head
from dht.errors import (
    IncompatibleRunError,
    LockedError,
    Refusal,
    StorageError,
    UnreachableError,
)
from dht.host import Host, Relay
from dht.identity import Identity, PeerId
from dht.link import RefusedError
from dht.records import claimed
from peer.anchor import FRAMES, Anchor
from peer.catch_up import Donor
from peer.config import PeerConfig
from peer.data import TokenData
from peer.events import Reporter, from_threads
from peer.evidence_files import EvidenceFiles
from peer.history import certify, open_chain
from peer.learner import Learner
from peer.local_training import LocalTraining
from peer.manifest import Manifest
from peer.overlapped import learner_kind
from peer.run_params import run_params
from peer.set_up import make_trainer
from peer.state import CanonicalState
from peer.store import StateStore

log = logging.getLogger(__name__)
_SEARCH_SOON, _SEARCH_LATER = 0.5, 15.0
_LINGER = 3.0
_TWIN_PLACES = 4


async def run_peer(
    config: PeerConfig,
    manifest: Manifest,
    reporter: Reporter,
    stop: asyncio.Event,
    given: tuple[LocalTraining, TokenData | None] | None = None,
) -> None:
    """Join the run and take part until `stop` is set or `config.rounds` is reached.

    `given`: who takes the local steps, and held-out text, instead of what config and manifest would make.
    Raises the errors of `dht.errors`: ConfigError, DataError, UnreachableError, StorageError and so on.
    """
    identity = Identity.load(config.identity_path)
    manifest.domain(config.domain)  # before anything slow
    if given is None:
        given = await asyncio.to_thread(make_trainer, config, manifest)
    trainer, heldout = given
    host = await Host.start(
        config.identity_path,
        listen=config.listen,
        bootstrap=config.bootstrap,
        announce=config.announce,
        client_mode=config.client_mode,
        relay=Relay.USE,
        direct=not config.no_direct,
        direct_port=config.direct_port,
    )
    node = None
    try:
        folder = state_folder(config.data_dir, manifest)
        folder.mkdir(parents=True, exist_ok=True)
        guard = SqliteGuard(folder / "guard.sqlite")
        node = await asyncio.to_thread(_assemble, config, manifest, identity, trainer, heldout, host, guard, reporter)
        await node.run(stop)
    finally:
        if node is not None:
            await node.close()
        await host.stop()


def _assemble(
    config: PeerConfig,
    manifest: Manifest,
    identity: Identity,
    trainer: LocalTraining,
    heldout: TokenData | None,
    host: Host,
    guard: SqliteGuard,
    reporter: Reporter,
) -> Node:
    """Put a peer together from what is on disk, or from the first weights."""
    schema = trainer.vector.schema(manifest.run_id, len(manifest.weights.domains))
    params = run_params(manifest, schema.elements)
    store = StateStore(state_folder(config.data_dir, manifest), schema)
    stored = store.load_newest(lambda found: certify(found, manifest.run_id, manifest.founder))
    if stored is None:
        chain, state = None, CanonicalState.genesis(schema, trainer.local().copy(), manifest.first_clip)
    else:
        chain, state = open_chain(stored.frames, manifest.run_id, manifest.founder), store.load_state(stored)
    state.page_out(store.folder)
    learner = learner_kind(manifest)(manifest, params, identity.peer_id, trainer, state, store, heldout, host)
    if stored is not None:
        learner.load_local(stored.round)
        assert chain is not None
        learner.follow(chain)
    round_ = None if stored is None else stored.round
    last = config.rounds or None
    evidence = EvidenceFiles(config.data_dir)
    held = evidence.frames()
    participant = Participant(params, identity, guard, os.urandom, state.root(), chain, round_, last, evidence=held)
    participant.capacity = 0 if config.client_mode else config.bandwidth
    participant.domain = manifest.domain(config.domain)
    return Node(config, manifest, identity, host, guard, participant, learner, evidence, reporter)


class Node:
    """The parts of one peer at work; also the `averaging.driver.Observer` that turns what happens into events."""

    def __init__(
        self,
        config: PeerConfig,
        manifest: Manifest,
        identity: Identity,
        host: Host,
        guard: SqliteGuard,
        participant: Participant,
        learner: Learner,
        evidence: EvidenceFiles,
        reporter: Reporter,
    ) -> None:
        self._config, self._manifest, self._identity, self._host = config, manifest, identity, host
        self._guard, self._participant, self._learner, self._reporter = guard, participant, learner, reporter
        self._evidence = evidence
        self._clock = SystemClock()
        self._book = AddressBook(config.data_dir / "addresses.json", self._clock)
        self._donor = Donor(learner.store, self._round_of)
        self._driver: Driver | None = None
        self._discovery: Discovery | None = None
        self._anchor: Anchor | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._members: Sequence[PeerId] = ()
        self._addresses: dict[PeerId, tuple[str, ...]] = {}
        self._in_a_round = asyncio.Event()
        self._finished = asyncio.Event()
        self._incompatible: asyncio.Future[None] | None = None
        self._search_now = asyncio.Event()
        self._began = self._uploading = time.monotonic()
        self._traffic = (0, 0)

    # --- life ---------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Meet the others and take part until `stop`, or the last round that was asked for."""
        driver = self._driver = Driver(
            self._participant,
            self._host,
            self._learner,
            self,
            threads=max(1, self._config.threads),
            background=self._manifest.train.overlap,
        )
        driver.on_unreachable, driver.on_failure = self._unreachable, self._failed_to_send
        self._host.on_lane_lost = driver.check
        self._host.serve(self._on_frame, self._donor.answer)
        self._reporter.event(
            "started",
            peer=str(self._identity.peer_id),
            addresses=self._host.addresses(),
            run=self._manifest.run_id.hex(),
            round=self._participant.round,
        )
        self._learner.listen(from_threads(self._reporter))
        driver.start()
        meeting = asyncio.create_task(self._meet())
        patience = asyncio.create_task(self._lose_patience())
        self._incompatible = asyncio.get_running_loop().create_future()
        waits = [asyncio.create_task(_wait_for(event)) for event in (stop, self._finished, self._host.daemon_died)]
        self._tasks = [meeting, patience, *waits]
        failures: list[asyncio.Future[None]] = [meeting, patience, driver.failed, self._incompatible]
        if self._config.ledger is not None:
            self._anchor = Anchor(
                self._config,
                self._manifest,
                self._identity,
                self._host,
                lambda: self._participant.chain,
                self._reporter,
            )
            anchoring = asyncio.create_task(self._anchor.run())
            self._tasks.append(anchoring)
            failures.append(anchoring)
        await asyncio.wait([*waits, *failures], return_when=asyncio.FIRST_COMPLETED)
        for failure in failures:
            if failure.done():
                failure.result()  # raises what ended it
        if self._host.daemon_died.is_set() and not stop.is_set():
            raise UnreachableError(self._host.death, remedy="start run-peer again; nothing is lost")
        await driver.drain(_LINGER)

    async def close(self) -> None:
        """Leave: end all work, save what was learned, say goodbye."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._learner.interrupt()
        if self._anchor is not None:
            await self._anchor.close()
        if self._driver is not None:
            await self._driver.stop()
            await self._learner.leave()
        if self._discovery is not None:
            await self._discovery.stop()
        self._book.save()
        self._guard.close()
        self._reporter.event("stopped", round=self._learner.round, root=self._learner.state.root().hex())

    def _on_frame(self, sender: PeerId, frame: memoryview) -> None:
        """The ledger's frames go to the anchor, if there is one: who anchors nothing must not cut off who does."""
        if frame[:1] and frame[0] in FRAMES:
            if self._anchor is not None:
                self._anchor.receive(sender, frame)
        elif self._driver is not None:
            self._driver.on_frame(sender, frame)

    async def _lose_patience(self) -> None:
        """Raises UnreachableError when no round was joined within `join_timeout`; else never returns."""
        if self._config.join_timeout:
            try:
                async with asyncio.timeout(self._config.join_timeout):
                    await self._in_a_round.wait()
            except TimeoutError:
                raise UnreachableError(
                    f"no round was joined within {self._config.join_timeout:g} s",
                    remedy="run-peer doctor checks the way to the bootstrap; run-peer status says what it waits for",
                ) from None
        await asyncio.Event().wait()

    async def _meet(self) -> None:
        """Find a way in, then keep looking for the run's peers: often until in a round, then now and again."""
        known: list[str] = []
        if self._config.bootstrap or self._book.addresses():
            results = await find_a_way_in(
                self._host.dial, self._config.bootstrap, self._book, say=lambda text: self._wait(text)
            )
            known = [result.address for result in results]
            if self._driver is not None:
                self._driver.reachable(result.peer for result in results if result.peer is not None)
            for result in results:
                verdict = f"{result.verdict} {result.milliseconds:.0f} ms"
                self._reporter.event("bootstrap", address=result.address, verdict=verdict)
        self._discovery = await Discovery.start(
            self._host,
            self._manifest.run_id,
            self._identity,
            self._clock,
            bootstrap=known,
            client_mode=self._config.client_mode,
        )
        if offset := self._discovery.clock_offset:
            word = "behind" if offset > 0 else "ahead of"
            self._wait(f"this clock is {abs(offset):.0f} s {word} the others'; records of peers are read by theirs")
        await self._search(self._discovery)  # before anybody hears of us, lest a twin be hidden by our own record
        self._discovery.keep_announcing(self._head)
        while True:
            await self._search(self._discovery)
            pause = _SEARCH_LATER if self._in_a_round.is_set() else _SEARCH_SOON
            self._search_now.clear()
            try:
                async with asyncio.timeout(pause):
                    await self._search_now.wait()
                await asyncio.sleep(_SEARCH_SOON)
            except TimeoutError:
                continue

    async def _search(self, discovery: Discovery) -> None:
        try:
            records = await discovery.find()
        except UnreachableError as error:
            log.warning("the search for peers failed: %s", error.message)
            return
        await self._look_for_a_twin(discovery.twin)
        known, self._addresses = self._addresses, {record.peer_id: record.addresses for record in records}
        self._remember_members()
        if self._driver is not None:
            self._driver.reachable(peer for peer, places in self._addresses.items() if known.get(peer) != places)
            self._driver.learned(list(self._addresses))

    async def _look_for_a_twin(self, places: Sequence[str]) -> None:
        """Raises LockedError when somebody answers where another process announced our identity.

        Two processes with one identity, say on a copied folder, keep two guards, and together could release what one
        of them never would. A record of our own last life names a place where nobody answers any more.
        """
        for place in places[:_TWIN_PLACES]:
            if await listens(place):
                raise LockedError(
                    f"another process runs under this identity at {place}",
                    remedy="stop one of them; a second peer needs a data folder and an identity of its own",
                )

    def _remember_members(self) -> None:
        """Only peers that sat in a roster with me go into the address book: anybody can announce an address."""
        met = [peer for peer in self._members if peer in self._addresses]
        for peer in met:
            self._book.remember(peer, self._addresses[peer])
        if met:
            self._book.save()

    def _head(self) -> Head:
        chain, speed = self._participant.chain, round(self._learner.tokens_per_second)
        place = (0, bytes(32)) if chain is None else (chain.head.round, chain.beacon)
        return Head(*place, throughput=speed, epsilon=claimed(self._learner.claim()))

    def _round_of(self, root: bytes) -> int | None:
        """The round on disk whose state has this root, for donors."""
        chain = self._participant.chain
        if chain is None:
            return None
        kept = (round_ for round_ in reversed(self._learner.store.rounds()) if round_ <= chain.head.round)
        store = self._learner.store  # what is on disk may be of a branch that was given up a moment ago
        return next((r for r in kept if chain.record(r).state_root == root == store.root(r)), None)

    def _unreachable(self, peer: PeerId, reason: str) -> None:
        self._search_now.set()
        self._reporter.event("peer_unreachable", peer=str(peer), reason=reason)

    def _failed_to_send(self, peer: PeerId, error: UnreachableError) -> None:
        """See whether we are in the wrong place. Only the founder's word counts, and only while nobody of this run was
        ever met.
        """
        alone = self._participant.chain is None and not self._addresses and peer == self._manifest.founder
        if alone and self._incompatible and not self._incompatible.done() and (cause := _incompatible(error)):
            remedy = "take the founder's run.toml and the version of this program that the run uses"
            self._incompatible.set_exception(IncompatibleRunError(f"the founder {cause}", remedy=remedy))

    def _wait(self, reason: str) -> None:
        self._reporter.event("waiting", reason=reason)

    # --- what happens -------------------------------------------------------------------------------------------

    def joined(self, joined: Joined) -> None:
        """In a roster."""
        self._members = joined.members
        self._remember_members()
        self._in_a_round.set()
        if self._participant.chain is not None:
            self._learner.save_genesis(self._participant.chain)
        self._reporter.event("joined", round=joined.round, members=[str(peer) for peer in joined.members])

    def step(self, round_: int, attempt: int, name: str) -> None:
        """A step begins."""
        if name == "upload":
            self._uploading = time.monotonic()
        self._reporter.event("step", round=round_, attempt=attempt, step=name)

    def blamed(self, proof: Proof, evidence: bytes) -> None:
        """Somebody is proven a liar: keep what proves it, where `run-peer evidence` finds it."""
        try:
            path = self._evidence.save(evidence)
            kept = f"; the evidence is in {path}" if path else ""
        except StorageError as error:
            kept = f"; the evidence could not be kept: {error.message}"
        self._reporter.event("blamed", peer=str(proof.accused), reason=proof.text + kept)

    def note(self, text: str, peer: PeerId | None) -> None:
        """Something worth a log line."""
        log.info("%s%s", f"{peer.short}: " if peer else "", text)
        if peer is None:
            self._wait(text)
        else:
            self._reporter.event("refused", peer=str(peer), reason=text)

    def decided(self, decided: Decided, cohort: Cohort | None) -> None:
        """The committee has decided; a void round ends here, another one when its state is adopted."""
        if decided.record.recovery:
            self._report_recovery(decided.record)
        if decided.record.void:
            self._report_round(decided.record.round, None)
            if self._is_last(decided.record.round) and self._participant.settled:
                self._finished.set()

    def rolled_back(self, event: RolledBack) -> None:
        """Another branch stands; its state is fetched next."""
        left, head = event.left, event.head
        self._reporter.event("rolled_back", fork=event.fork, left=left.round, round=head.round, root=head.state_root)

    def _report_recovery(self, record: Record) -> None:
        chain = self._participant.chain
        assert chain is not None
        missing = dict(chain.recoveries).get(record.round, ())
        members = [str(peer) for peer in record.members()]
        self._reporter.event("recovery", round=record.round, members=members, missing=[str(peer) for peer in missing])

    def settled(self, round_: int) -> None:
        """The state of a round is adopted: measure it, report, and leave if it was the last one."""
        if self._anchor is not None:
            self._anchor.advanced()
        if (haul := self._learner.haul) is not None:
            self._learner.haul = None
            self._reporter.event(
                "caught_up",
                round=round_,
                root=self._learner.state.root().hex(),
                chunks=haul.chunks,
                bytes=haul.size,
                donors=[str(peer) for peer in haul.donors],
            )
        assert self._driver is not None
        self._driver.run_alone(lambda: self._measure(round_))

    async def _measure(self, round_: int) -> None:
        self._report_round(round_, await self._learner.evaluate(surely=self._is_last(round_)))
        if self._is_last(round_):
            self._finished.set()

    def _is_last(self, round_: int) -> bool:
        return bool(self._config.rounds) and round_ >= self._config.rounds

    def _report_round(self, round_: int, heldout_loss: float | None) -> None:
        chain = self._participant.chain
        assert chain is not None
        if round_ > chain.head.round:
            return  # rolled back since
        record = chain.record(round_)
        now, total = time.monotonic(), self._host.counters.total()
        train = self._learner.train_seconds
        aggregate = max(0.0, now - self._uploading)
        up, down = total.up - self._traffic[0], total.down - self._traffic[1]
        self._reporter.event(
            "round",
            round=round_,
            void=record.void,
            survivors=[str(peer) for peer in record.members()],
            members=[str(peer) for peer in self._members],
            heldout_loss=heldout_loss,
            train_loss=self._learner.train_loss,
            tokens=self._learner.total_tokens,
            tokens_per_second=self._learner.tokens_per_second,
            bytes_up=up,
            bytes_down=down,
            seconds={
                "train": train,
                "aggregate": aggregate,
                "wait": max(0.0, now - self._began - train - aggregate),
            },
            root=record.state_root.hex(),
            state_bytes=sum(self._learner.state.schema.sections),
        )
        self._began, self._traffic = now, (total.up, total.down)


def _incompatible(error: UnreachableError) -> str:
    """What an answer says about who gave it, if it shows another run or version; empty otherwise."""
    if isinstance(error, RefusedError) and error.refusal is Refusal.WRONG_RUN:
        return "belongs to another run: a value in its manifest differs"
    return "does not speak this version of the protocol" if "protocols not supported" in error.message else ""


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()


def state_folder(data_dir: Path, manifest: Manifest) -> Path:
    """Where a peer keeps the certified states of a run."""
    return data_dir / "state" / manifest.run_id.hex()[:16]
