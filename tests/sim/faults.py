"""The simulator's swarm with faults of machines and links: frozen, silent, slow, lossy, and what a round may last.

Everything is drawn from the swarm's seed. `fired` counts each fault when it does something to a peer or a message, so
that a test can tell a fault that was survived from one that never happened.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from averaging.actions import Send
from averaging.ballots import PRECOMMIT, Ballot
from averaging.params import RunParams
from averaging.record import Record
from averaging.roster import cut
from averaging.work import Joined
from dht.envelope import Envelope
from dht.identity import PeerId
from tests.sim.swarm import Peer, Swarm

RETRANSMIT = 1.0
"""Seconds after which a transport sends a lost packet again."""
_PATIENCE = 3
"""Times that a Join is repeated before the next convener's turn (`averaging.convening`)."""


def longest_round(params: RunParams, members: int, turns: int, rosters: int, absent: int) -> float:
    """Seconds that a round may last once a quorum of its committee is up and connected.

    `turns`: conveners whose turn came; `rosters`: cohorts that were formed; `absent`: committee members that are away.
    Each turn waits for Joins as often as the convener's patience goes, each roster may use a whole attempt, and the
    agreement passes over every absent proposer before two views that succeed.
    """
    limits = params.deadlines
    view = limits.commit * (1 + 2 / 3)
    waiting = turns * _PATIENCE * limits.join
    agreement = 2 * limits.commit + (absent + 2) * (view + absent * limits.commit / 3)
    largest = max(len(part) for part in cut(members, params.target, params.minimum))
    attempt = limits.total(members) if largest == members else limits.across(largest) + limits.commit
    return waiting + max(1, rosters) * attempt + agreement


class FaultSwarm(Swarm):
    """A swarm whose peers freeze or die in silence and whose links have a rate and lose packets.

    Besides the events of `Swarm.on_event` there are `Prevote`, `Precommit` and `written` (a state is on disk, and the
    participant does not know it yet).
    """

    def __init__(self, peers: int, seed: int, **changes: Any) -> None:
        super().__init__(peers, seed, **changes)
        self.chance = random.Random(f"faults {seed}")
        self.fired: Counter[str] = Counter()
        self.latency = 0.0
        self.loss = 0.0
        self.silent_deaths = False
        self.rate: dict[PeerId, float] = {}
        """Bytes per second that a peer can send, and as many that it can receive."""
        self.turns: Counter[int] = Counter()
        self.rosters: dict[int, set[int]] = defaultdict(set)
        self.began: dict[int, float] = {}
        self._frozen: dict[PeerId, list[Callable[[], None]]] = {}
        self._busy_until: dict[tuple[str, PeerId], float] = {}
        self._size = 0
        self._wrong: list[str] = []
        self.delay = self._transit

    # --- machines -----------------------------------------------------------------------------------------------

    def freeze(self, peer: PeerId, seconds: float) -> None:
        """SIGSTOP now, SIGCONT later: what comes in waits, timers that ran out fire late, both at once."""
        if peer not in self._frozen:
            self.fired["frozen"] += 1
            self._frozen[peer] = []
            self.log(f"freeze {peer.short}")
            self.at(seconds, lambda: self._thaw(peer))

    def _thaw(self, peer: PeerId) -> None:
        self.log(f"thaw {peer.short}")
        waiting = self._frozen.pop(peer)
        if self.chance.random() < 0.5:
            # An event loop that wakes up reads its sockets or runs its timers first; each keeps its own order.
            waiting.sort(key=lambda call: getattr(call, "is_frame", False))
        for call in waiting:
            self.fired["late after the freeze"] += 1
            call()

    def _later(self, peer: Peer, delay: float, call: Callable[[], None]) -> None:
        life = peer.life

        def wake() -> None:
            if peer.life != life or not peer.alive:
                return
            if peer.id in self._frozen:
                self._frozen[peer.id].append(wake)
            else:
                call()

        self.at(delay, wake)

    def _arrive(self, sender: PeerId, to: PeerId, frame: bytes, bulk: bool, life: int, tries: int = 0) -> None:
        arrive = super()._arrive
        if to in self._frozen:

            def take() -> None:
                arrive(sender, to, frame, bulk, life, tries)

            take.is_frame = True  # type: ignore[attr-defined]
            self._frozen[to].append(take)
            return
        if (sender, to) in self.blocked:
            self.fired["blocked"] += 1
        arrive(sender, to, frame, bulk, life, tries)

    def _lost(self, observer: PeerId, gone: PeerId) -> None:
        if self.silent_deaths:
            self.fired["silent death"] += 1
        elif observer not in self._frozen:
            super()._lost(observer, gone)

    def _hold(self, peer: Peer, record: Record) -> None:
        peer.states[record.round] = record.state_root
        self.on_event("written", peer)
        if peer.alive:
            super()._hold(peer, record)

    # --- links --------------------------------------------------------------------------------------------------

    def deliver(self, sender: PeerId, to: PeerId, frame: bytes, *, bulk: bool = False) -> None:
        """As `Swarm.deliver`, at the rate of both ends."""
        self._size = len(frame)
        super().deliver(sender, to, frame, bulk=bulk)

    def _transit(self, sender: PeerId, to: PeerId) -> float:
        delay = self.random.uniform(0.001, 0.05) + self.latency
        if self.latency:
            self.fired["delayed"] += 1
        while self.loss and self.chance.random() < self.loss:
            self.fired["lost, sent again"] += 1
            delay += RETRANSMIT
        for way, peer in (("up", sender), ("down", to)):
            if rate := self.rate.get(peer):
                free = max(self.now, self._busy_until.get((way, peer), 0.0)) + self._size / rate
                self._busy_until[way, peer] = free
                self.fired["queued on a slow link"] += 1
                delay += free - self.now
        return delay

    # --- what is watched ----------------------------------------------------------------------------------------

    def _do(self, peer: Peer, action: object) -> None:
        if isinstance(action, Send) and isinstance(action.message, Envelope):
            body, _ = self._opened(action.message)
            if isinstance(body, Ballot):
                self.on_event("Precommit" if body.kind == PRECOMMIT else "Prevote", peer)
                if not peer.alive:
                    return
        if isinstance(action, Joined):
            self.rosters[action.round].add(action.attempt)
        super()._do(peer, action)
        current = peer.participant.current if peer.participant else None
        if current is not None:
            self.began.setdefault(current.number, self.now)
            if current.convening is not None:
                self.turns[current.number] = max(self.turns[current.number], current.convening.attempt + 1)

    def deadline(self, round_: int) -> float:
        """Seconds that this round may have lasted, given the conveners and cohorts that it went through."""
        absent = sum(not peer.alive or peer.id in self._frozen for peer in self.peers.values())
        return longest_round(self.params, len(self.order), self.turns[round_], len(self.rosters[round_]), absent)

    def verdict(self) -> tuple[list[str], list[str]]:
        """(promises broken, wrong sums) since the start."""
        self._wrong.clear()
        try:
            self.check()
        except AssertionError as error:
            return [str(error)], list(self._wrong)
        return [], list(self._wrong)

    def _check_sum(self, *results: Any) -> None:
        try:
            super()._check_sum(*results)
        except AssertionError as error:
            self._wrong.append(str(error))
