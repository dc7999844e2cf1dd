"""Learners whose updates are added up by hand, one round after the other, without a network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from averaging.aggregate import Aggregate
from averaging.chain import Chain
from averaging.record import Record, Survivor
from averaging.weights import declared
from dht.identity import PeerId
from dht.wire import digest
from peer.catch_up import Donor
from peer.learner import Learner
from peer.manifest import Manifest
from peer.overlapped import learner_kind
from peer.run_params import run_params
from peer.state import CanonicalState
from peer.store import StateStore
from tests.peer.learner_oracle import oracle_mean, oracle_weight, signed
from tests.peer.swarm_in_process import (
    BATCH,
    SEQUENCE,
    STEPS,
    Network,
    founded,
    grow,
    identity,
    make_trainer,
    tiny_manifest,
)

TOKENS = STEPS * BATCH * SEQUENCE
"""Of one peer in one round; half of what counts in full."""


class Table:
    """Learners whose updates are added up right here, with a chain that says what was certified."""

    def __init__(self, folder: Path, count: int = 3, manifest: Manifest | None = None) -> None:
        self.domains = (0,) * count
        """What the learners declare: data domains by their place in the manifest, from 1."""
        self.folder, self.manifest = folder, manifest or tiny_manifest(count)
        self.ids = [identity(index).peer_id for index in range(count)]
        self.learners = [self.make(index) for index in range(count)]
        self.layout = self.learners[0].params.layout
        self.chain = founded(self.manifest, count, self.learners[0].state.root())
        self.rings: list[dict[int, np.ndarray]] = []

    def make(self, index: int) -> Learner:
        """A learner at the first weights, or at what its folder holds."""
        trainer = make_trainer(self.manifest, index)
        schema = trainer.vector.schema(self.manifest.run_id, len(self.manifest.weights.domains))
        params = run_params(self.manifest, schema.elements)
        store = StateStore(self.folder / str(index), schema)
        stored = store.load_newest()
        genesis = CanonicalState.genesis(schema, trainer.local().copy(), self.manifest.first_clip)
        state = store.load_state(stored) if stored else genesis
        port = Network().port(self.ids[index])
        kind = learner_kind(self.manifest)
        learner = kind(self.manifest, params, self.ids[index], trainer, state, store, None, port)
        if stored:
            assert learner.load_local(stored.round)
        return learner

    async def upload(self, tokens: list[int] | None = None, name: bytes = b"") -> list[Any]:
        """Everybody trains (unless tokens say how much it has) and encodes; one cohort view per learner."""
        round_ = self.chain.head.round + 1
        sid = digest("sid", name, round_.to_bytes(4, "big"))
        tokens = tokens or [await learner.train(round_) for learner in self.learners]
        cap = self.manifest.train.tokens_per_round
        roster = SimpleNamespace(
            round=round_, attempt=0, round_sid=sid, largest=len(self.learners), domains=self.domains
        )
        manifests = {i: (SimpleNamespace(tokens=min(count, cap)), b"") for i, count in enumerate(tokens)}
        self.rings, views = [], []
        for i, learner in enumerate(self.learners):
            view = SimpleNamespace(roster=roster, sid=sid, peers=tuple(self.ids), tokens=min(tokens[i], cap))
            view.r3 = SimpleNamespace(manifests=manifests)
            await learner.prepare(view)
            self.rings.append({c: learner.encode(view, c).copy() for c in range(self.layout.total_chunks)})
            views.append(view)
        return views

    def add_up(self, views: list[Any], survivors: list[int], lost: tuple[int, ...] = ()) -> None:
        """Give everybody the sum over these survivors."""

        def ring(chunk: int) -> np.ndarray:
            zeros = self.layout.zeros(chunk)
            return zeros if chunk in lost else sum((self.rings[i][chunk] for i in survivors), zeros)

        weights = sorted((self.ids[i], views[0].r3.manifests[i][0].tokens, self.domains[i]) for i in survivors)
        table = tuple(Survivor(bytes(peer), tokens, 0) for peer, tokens, _ in weights)
        domains = declared(domain for _, _, domain in weights)
        sums = tuple(ring(chunk) for chunk in range(self.layout.total_chunks))
        for view in views:
            number, sid, count = view.roster.round, view.sid, len(self.learners)
            view.aggregate = Aggregate(number, 0, bytes(32), sid, count, table, (), lost, bytes(32), sums, domains)

    def certify(self, views: list[Any], survivors: list[int], root: bytes, lost: tuple[int, ...] = ()) -> Record:
        tokens = {self.ids[i]: views[0].r3.manifests[i][0].tokens for i in survivors}
        return grow(self.chain, survivors=tokens, state_root=root, sid=views[0].sid, lost_chunks=lost)

    async def round(self, survivors: list[int] | None = None, lost: tuple[int, ...] = (), **options: Any) -> Record:
        """A whole round in which all learners, also those left out, adopt the sum over the survivors."""
        survivors = survivors or list(range(len(self.learners)))
        views = await self.upload(**options)
        self.add_up(views, survivors, lost)
        applied = [await learner.apply(view.aggregate) for learner, view in zip(self.learners, views, strict=True)]
        assert len(set(applied)) == 1, "the roots differ"
        record = self.certify(views, survivors, applied[0][0], lost)
        for learner in self.learners:
            await learner.commit(record, self.chain)
            assert learner.state.root() == record.state_root
        return record

    def part(self, vector: np.ndarray, chunk: int) -> np.ndarray:
        return vector[self.layout.slice(chunk)]


def sent(table: Table, i: int, clips: np.ndarray, sid: bytes) -> np.ndarray:
    """What learner i's ring elements say in update space, by the oracle."""
    chunks = {c: signed(table.rings[i][c]) for c in range(table.layout.chunks)}
    return oracle_mean(chunks, clips, sid, 3, oracle_weight(TOKENS, table.manifest))[: table.layout.parameters]


async def fetch(learner: Learner, donor: Learner, record: Record, chain: Chain) -> bool:
    """Let a learner fetch a state over a network on which one other holds it."""
    network = Network()
    giving = Donor(donor.store, lambda root: donor.round if root == donor.state.root() else None)
    other = PeerId(identity(9).peer_id)
    network.port(other).serve(lambda sender, frame: None, giving.answer)
    learner._transport = network.port(learner._me)
    return await learner.fetch(record, chain, [other])
