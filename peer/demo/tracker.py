"""What the swarm reported so far, and whether it kept its promises."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from peer.status import Snapshot

MIDDLE_OF_A_ROUND = ("upload", "survivors")


@dataclass(frozen=True, slots=True)
class Death:
    """When the victim was killed: the round and the step it had reported last."""

    round: int
    step: str


@dataclass
class Tracker:
    """Every peer's snapshot, every root by round and peer, and the fate of the one that is killed."""

    names: tuple[str, ...]
    victim: str
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    rounds: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    roots: dict[int, dict[str, str]] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    death: Death | None = None
    back_in: int | None = None
    checkpoints: dict[int, str] = field(default_factory=dict)
    """Model root by epoch, as the chain has it."""
    verified: set[int] = field(default_factory=set)
    """Epochs whose checkpoints were recomputed and found right."""
    claimed: int = 0
    slashed: int = 0
    """In 1e-18 tokens, as the chain has it at the end."""
    _tokens_before: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.names:
            self.snapshots[name] = Snapshot()

    def take(self, name: str, event: Mapping[str, Any]) -> None:
        """Account for one event of one peer."""
        if name not in self.snapshots:
            return
        kind = event["event"]
        self.snapshots[name] = self.snapshots[name].apply(kind, event, time.time())
        if kind == "started":
            self.ids[name] = str(event.get("peer"))
            self.ended.pop(name, None)
            self._tokens_before[name] = self.tokens(name)
            self.snapshots[name] = replace(self.snapshots[name], tokens=0)
        elif kind == "ended":
            self.ended[name] = event["code"]
        elif kind == "checkpoint":
            self.checkpoints[int(event["epoch"])] = str(event["root"])
        elif kind == "caught_up":
            self.roots.setdefault(int(event["round"]), {})[name] = event["root"]
        elif kind == "round" and not event.get("void"):
            self._certified(name, int(event["round"]), event)

    def _certified(self, name: str, number: int, event: Mapping[str, Any]) -> None:
        others = dict(self.roots.get(number, {}))
        self.roots.setdefault(number, {})[name] = event["root"]
        if name == self.names[0]:
            self.rounds[number] = event
        if self.death is None or number <= self.death.round or self.back_in is not None:
            return
        # Back means: among the survivors of a certified round that another peer saw end with the same root.
        seen = {**others, name: event["root"]}
        root = seen.get(self.victim)
        survived = self.ids.get(self.victim) in event.get("survivors", ())
        if survived and root is not None and any(peer != self.victim and other == root for peer, other in seen.items()):
            self.back_in = number

    def tokens(self, name: str) -> int:
        """Tokens that a peer trained on, in all of its lives."""
        return self._tokens_before.get(name, 0) + self.snapshots[name].tokens

    def last_round(self, name: str) -> int:
        """The last certified round that a peer reported; 0 if none."""
        return max((number for number, roots in self.roots.items() if name in roots), default=0)

    @property
    def final_round(self) -> int:
        """The last round that any peer reported as certified; 0 if none."""
        return max(self.roots, default=0)

    def final_roots(self) -> dict[str, str]:
        """Each peer's root after the final round; a peer that is not there yet is missing."""
        return dict(self.roots.get(self.final_round, {}))

    def forks(self) -> list[int]:
        """Rounds for which two peers reported different roots: must be empty."""
        return sorted(number for number, roots in self.roots.items() if len(set(roots.values())) > 1)

    def all_equal(self) -> bool:
        """Whether every peer holds the same root after the same final round, and no round ever had two."""
        roots = self.final_roots()
        return set(roots) == set(self.names) and len(set(roots.values())) == 1 and not self.forks()


@dataclass(frozen=True, slots=True)
class Losses:
    """Held-out losses in nats per token: of the untrained model, of the swarm's, and of the peer that trained alone."""

    start: float
    swarm: float
    alone: float


def verdicts(tracker: Tracker, losses: Losses | None) -> dict[str, bool]:
    """The promises of the demo and whether they were kept; exit code 0 needs all of them."""
    return {
        "one root": tracker.all_equal(),
        "killed in the middle of a round": tracker.death is not None,
        "came back": tracker.back_in is not None,
        "the loss fell": losses is not None and losses.swarm < losses.start,
        "anchored, and recomputed": bool(tracker.verified) and tracker.verified == tracker.checkpoints.keys(),
        "earned, and claimed": tracker.claimed > 0,
        "who signed two checkpoints was slashed": tracker.slashed > 0,
    }
