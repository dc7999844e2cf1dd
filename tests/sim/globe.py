"""A swarm of homes (`tests.sim.world`) in which peers come and go, with what is measured of its rounds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from averaging.aggregate import Aggregate
from averaging.bulk import BulkKind
from averaging.cohort import Cohort
from averaging.layout import Layout
from averaging.params import Deadlines
from averaging.record import Record
from averaging.work import FetchState, Train
from dht.identity import PeerId
from dht.wire import digest
from tests.sim.dict_guard import DictGuard
from tests.sim.swarm import Peer, Swarm
from tests.sim.world import Lines, Model, draw_home

_SID = slice(1, 33)
_INDEX = slice(35, 39)
_NOTICED = (1.0, 10.0)
"""Seconds until two attempts in a row to reach a dead peer have failed."""
_AWAY = 60.0
"""Seconds that a peer is away on average, and at least a few."""
_DEADLINES = Deadlines(6.0, 8.0, 35.0, 20.0, 5.0, 12.0, 20.0, 3.0)
_DONORS = 4
_SPARES = 0.2
"""Peers that have not been there yet, for each that is; they take the place of every fourth that dies."""


@dataclass
class Round:
    """What one decided round was like. Times in seconds, bytes of all peers together."""

    number: int
    seconds: float
    void: bool
    attempt: int
    survivors: int
    alive: int
    cohorts_left_out: int
    chunks_lost: int
    bulk: float
    control: float
    state: float
    slowest: float
    """When the last of the survivors had trained and uploaded, counted from the round's beginning."""


class Globe(Swarm):
    """`peers` homes and a model of `parameters`. With `churn`, that share of the living dies in a minute."""

    word = np.int16

    def __init__(
        self,
        peers: int,
        seed: int,
        *,
        parameters: int = 10_000_000,
        churn: float = 0.1,
        chunks: int = 8,
        **changes: Any,
    ) -> None:
        layout = Layout(chunks * 4096, 16, 4096)
        spares = round(peers * _SPARES) if churn else 0
        given = {
            "layout": layout,
            "genesis_peers": peers,
            "target": 8,
            "minimum": 5,
            "deadlines": _DEADLINES,
            "recovery_after": 600.0,
        }
        super().__init__(peers + spares, seed, **{**given, **changes})
        self.model = Model(parameters, self.params.layout)
        chance = random.Random(f"homes {seed}")
        self.lines = Lines({peer: draw_home(chance) for peer in self.order}, seed)
        self._chance = random.Random(f"churn {seed}")
        self._churn = churn
        self._spares = list(self.order[peers:])
        self._died: dict[PeerId, float] = {}
        self._noticing: set[tuple[PeerId, PeerId]] = set()
        self._left: dict[int, dict[PeerId, float]] = {}
        self._rounds_of: dict[bytes, int] = {}
        self._counted = dict(self.lines.sent)
        self._right: set[tuple[bytes, bytes]] = set()
        self.deaths = self.returns = 0
        self.rounds: list[Round] = []
        self._began = 0.0
        for peer in self.peers.values():
            peer.guard = DictGuard()
        self.start(self.order[:peers])

    @property
    def living(self) -> list[Peer]:
        """Peers whose process runs."""
        return [peer for peer in self.peers.values() if peer.alive]

    def until_round(self, round_: int, limit: float) -> bool:
        """Go on until this round is decided; whether it was within `limit` virtual seconds."""
        return self.run(lambda: bool(self.rounds) and self.rounds[-1].number >= round_, limit)

    def log(self, line: str) -> None:
        """Into the trace goes what follows from all the rest: decisions and deaths with their times."""
        if line.startswith(("decided", "crash")):
            super().log(line)

    # --- coming and going ---------------------------------------------------------------------------------------

    def _boot(self, peer: Peer) -> None:
        super()._boot(peer)
        assert peer.participant is not None
        peer.participant.capacity = self.lines.homes[peer.id].capacity

    def crash(self, peer: PeerId) -> None:
        """The process is gone and tells nobody."""
        self.peers[peer].participant = None
        self.peers[peer].life += 1
        self._died[peer] = self.now
        self.deaths += 1
        self.log(f"crash {peer.short}")

    def _start_churn(self) -> None:
        for peer in self.living:
            self._mortal(peer)

    def _mortal(self, peer: Peer) -> None:
        if self._churn:
            self._later(peer, self._chance.expovariate(self._churn / 60.0), partial(self._die, peer))

    def _die(self, peer: Peer) -> None:
        self.crash(peer.id)
        fresh = self._spares and self._chance.random() < 0.25
        other = self.peers[self._spares.pop()] if fresh else peer
        self.at(5.0 + self._chance.expovariate(1.0 / _AWAY), partial(self._come, other))

    def _come(self, peer: Peer) -> None:
        self.returns += 1
        self._boot(peer)
        self._mortal(peer)

    # --- the wire -----------------------------------------------------------------------------------------------

    def deliver(self, sender: PeerId, to: PeerId, frame: bytes, *, bulk: bool = False) -> None:
        """Put a frame on the sender's line."""
        lane, size, (up, down) = "control", len(frame) + 16.0, (1, 1)
        if bulk:
            lane, (size, (up, down)) = "bulk", self._bulk(sender, to, frame)
        left, first, last = self.lines.carry(self.now, sender, to, size, lane, up)
        reach = partial(self._reach, sender, to, frame, bulk, self.peers[sender].life, left)
        self.at(last - self.now, partial(self._land, to, first, size, lane, down, reach))

    def _land(self, to: PeerId, first: float, size: float, lane: str, split: int, reach: Callable[[], None]) -> None:
        there = self.lines.land(self.now, to, first, size, lane, split)
        if there > self.now:
            self.at(there - self.now, reach)
        else:
            reach()

    def _bulk(self, sender: PeerId, to: PeerId, frame: bytes) -> tuple[float, tuple[int, int]]:
        kind, index = frame[0], int.from_bytes(frame[_INDEX], "big")
        size = self.model.frame_bytes(index, self.params.layout.words(index), kind == BulkKind.TOTAL)
        if kind not in (BulkKind.PART, BulkKind.TOTAL):
            return size, (1, 1)
        participant = self.peers[sender].participant
        across = participant.across(frame[_SID]) if participant else None
        assert across is not None
        roster = across.roster
        spread = 1 if to in roster.peers else min(self.model.batch, len(roster.cohorts))
        return size, ((1, spread) if kind == BulkKind.PART else (spread, 1))

    def _reach(self, sender: PeerId, to: PeerId, frame: bytes, bulk: bool, life: int, left: float) -> None:
        if self.peers[sender].life != life and self._died.get(sender, left) < left:
            return  # it died before the last byte had left
        peer = self.peers[to]
        if peer.participant is None:
            self._notice(sender, to, life)
            return
        self._take(peer, sender, frame, bulk)

    def _notice(self, sender: PeerId, gone: PeerId, life: int) -> None:
        if (sender, gone) in self._noticing or self.peers[sender].life != life:
            return
        self._noticing.add((sender, gone))
        dead = self.peers[gone].life

        def noticed() -> None:
            self._noticing.discard((sender, gone))
            participant, same = self.peers[sender].participant, self.peers[gone].life == dead
            if participant is not None and same and not self.peers[gone].alive:
                self._act(self.peers[sender], participant.suspect(gone))

        self.at(self._chance.uniform(*_NOTICED), noticed)

    # --- work ---------------------------------------------------------------------------------------------------

    def _do(self, peer: Peer, action: object) -> None:
        match action:
            case FetchState(record, donors):
                self._ask_donors(peer, record, donors)
            case Train(round_):
                seconds = self.lines.homes[peer.id].training * self._chance.uniform(0.9, 1.1)
                self._later(peer, seconds, lambda: self._call(peer, lambda p: p.trained(round_, 100)))
            case _:
                super()._do(peer, action)

    def _upload(self, peer: Peer, sid: bytes, plan: Any) -> None:
        if cohort := peer.participant.cohort(sid) if peer.participant else None:
            self._rounds_of[cohort.roster.round_sid] = cohort.roster.round
        super()._upload(peer, sid, plan)

    def _uploading(self, peer: Peer) -> float:
        return max(0.05, self.lines.idle_at(peer.id, "bulk") - self.now)

    def _uploaded(self, peer: Peer, cohort: Cohort) -> None:
        self._left.setdefault(cohort.roster.round, {})[peer.id] = self.now
        super()._uploaded(peer, cohort)

    def _apply(self, peer: Peer, sid: bytes) -> None:
        aggregate = peer.participant.aggregate(sid) if peer.participant else None
        if aggregate is None:
            return
        self._compare(sid, aggregate)
        root = digest("sim-state", peer.states[max(peer.states)], aggregate.root)
        self._later(peer, 0.5, lambda: self._call(peer, lambda p: p.applied(sid, root, 1.5)))

    def _compare(self, sid: bytes, aggregate: Aggregate) -> None:
        """Each is added up again from the plain updates; the root over the sums' hashes shows which are equal."""
        if (sid, aggregate.root) not in self._right:  # they differ where totals came too late for some
            self._check_sum(sid, aggregate)
            self._right.add((sid, aggregate.root))

    def _ask_donors(self, peer: Peer, record: Record, donors: Iterable[PeerId]) -> None:
        """The state comes from a few donors at once, each a part of it."""
        self.fetches += 1
        holding = [d for d in donors if self.peers[d].alive and record.state_root in self.peers[d].states.values()]
        chosen = self.random.sample(holding, min(_DONORS, len(holding)))
        if not chosen:
            self._later(peer, 0.5, lambda: self._call(peer, lambda p: p.fetch_failed(record.round)))
            return
        part, missing = self.model.state_bytes / len(chosen), set(chosen)

        def landed(donor: PeerId) -> None:
            missing.discard(donor)
            if not missing:
                self._hold(peer, record)

        for donor in chosen:
            _, first, last = self.lines.carry(self.now, donor, peer.id, part, "state")
            done = partial(self._later, peer, 0.0, partial(landed, donor))
            self._later(peer, last - self.now, partial(self._land, peer.id, first, part, "state", 1, done))

    def _decided(self, peer: Peer, record: Record) -> None:
        super()._decided(peer, record)
        if record.round > (self.rounds[-1].number if self.rounds else 0):
            self._first_decision(record)

    def _first_decision(self, record: Record) -> None:
        sent, uploaded = self.lines.sent, self._left.pop(record.round, {})
        slowest = max((uploaded.get(PeerId(s.peer), 0.0) for s in record.survivors), default=0.0)
        now = Round(
            record.round,
            self.now - self._began,
            record.void,
            record.attempt,
            len(record.survivors),
            len(self.living),
            len(record.left_out),
            len(record.lost_chunks),
            sent["bulk"] - self._counted["bulk"],
            sent["control"] - self._counted["control"],
            sent["state"] - self._counted["state"],
            max(0.0, slowest - self._began),
        )
        self.rounds.append(now)
        self._counted, self._began = dict(sent), self.now
        over = {sid for sid, round_ in self._rounds_of.items() if round_ < record.round}
        self.updates = {key: value for key, value in self.updates.items() if key[0] not in over}
        self._rounds_of = {sid: round_ for sid, round_ in self._rounds_of.items() if sid not in over}
        if record.round == 1:
            self._start_churn()

    def divergent(self) -> list[PeerId]:
        """Peers that hold another state of a round than the certified one."""
        certified = {round_: {r.state_root for r in found.values()} for round_, found in self.records.items()}
        return [
            peer.id
            for peer in self.peers.values()
            if any(root not in certified.get(round_, {root}) for round_, root in peer.states.items())
        ]
