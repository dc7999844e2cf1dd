"""Bulk work that a cohort asks of its driver: encode, send, reduce. The driver may use threads; order is free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from averaging.actions import Action
from averaging.bulk import BulkKind
from dht.identity import PeerId


@dataclass(frozen=True, slots=True)
class Upload:
    """For each (chunk, receivers): encode it, `Cohort.mask` it, send it; then call `Cohort.uploaded`."""

    sid: bytes
    plan: tuple[tuple[int, tuple[PeerId, ...]], ...]


@dataclass(frozen=True, slots=True)
class Reduce:
    """Call `Cohort.reduce` for each chunk (any thread), then `Cohort.reduced` with them."""

    sid: bytes
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Transfer:
    """Send `Cohort.payload(kind, chunk)` for each chunk to each peer, on the bulk lane."""

    sid: bytes
    kind: BulkKind
    chunks: tuple[int, ...]
    to: tuple[PeerId, ...]


CohortAction: TypeAlias = Action | Upload | Reduce | Transfer
