"""What the recomputation of a tally needs besides records: the run's constants, and which fees count in which epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dht.errors import ConfigError
from ledger.explorer import wiring
from ledger.rewards import Constants
from ledger.usage_fees import count_fees

if TYPE_CHECKING:
    from ledger.explorer.session import Session

_NAMES = tuple(Constants.__dataclass_fields__)
_VIEWS = {"emission": "emission", "emission_cap": "mostEmitted"}


async def constants_of(session: Session) -> Constants | None:
    """The run's constants; None where they are not all known.

    Each is taken from the manifest's [ledger] if given, else the deployment file; emissions else from the pool, whose
    code is known and which cannot change them, and the length of an epoch else from the first checkpoint.
    `chunk_bytes` is not needed for any root.
    """
    known: dict[str, int] = {"chunk_bytes": 1}
    if session.epochs:
        first = session.epochs[0]
        known["rounds_per_checkpoint"] = first.header.last_round // first.number
    for name, view in _VIEWS.items():
        if (value := await session.view_or_none("RewardPool", view)) is not None:
            known[name] = value
    known |= {name: value for name, value in session.found.constants.items() if name in _NAMES}
    known |= _of_manifest(session)
    return Constants(**known) if known.keys() == set(_NAMES) else None


def _of_manifest(session: Session) -> dict[str, int]:
    path = session.common.run
    if path is None:
        return {}
    table = wiring.ledger_of(path)
    found = {name: table[name] for name in _NAMES if name in table}
    if not all(type(value) is int for value in found.values()):
        raise ConfigError(f"[ledger] of {path} has a constant that is no number", remedy="get the manifest again")
    return found


def fees_of(session: Session) -> tuple[int, ...]:
    """Usage fees for contributors that count in each epoch, from epoch 1 to the one after the last, in units."""
    checkpoints = [(epoch.block, epoch.log_index) for epoch in session.epochs]
    paid = session.index.events("UsagePaid")
    return count_fees(checkpoints, (((row["block"], row["log_index"]), int(row["contributors"])) for row in paid))
