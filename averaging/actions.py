"""What a state machine asks its driver to do. Machines return lists of these and touch nothing themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from dht.identity import PeerId

TimerKey: TypeAlias = tuple[str, int, int]
"""(what, round, attempt or view): a timer is replaced by the next one with the same key."""


@dataclass(frozen=True, slots=True)
class Send:
    """Deliver a message (a `dht.wire` message, signed by the driver's identity when it says so) to one peer."""

    to: PeerId
    message: object


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Call back with `key` after `delay` seconds, replacing any timer with the same key."""

    key: TimerKey
    delay: float


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Forget the timer with this key, if any."""

    key: TimerKey


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth a log line: which peer was refused or blamed, and why."""

    text: str
    peer: PeerId | None = None


Action: TypeAlias = Send | SetTimer | CancelTimer | Note
