"""What the recomputation of a tally needs besides records: the run's constants, and which fees count in which epoch."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

from dht.errors import ConfigError, DataError
from ledger.rewards import Constants

if TYPE_CHECKING:
    from ledger.explorer.session import Session


def constants_of(session: Session) -> Constants | None:
    """The run's constants, from its manifest if given, else from the deployment file; None when neither has them."""
    path = session.common.run
    if path is None:
        return session.found.constants
    try:
        table = tomllib.loads(path.read_text()).get("ledger", {})
        return Constants(**{name: table[name] for name in Constants.__dataclass_fields__})
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}", remedy="give --run the run.toml of the run") from None
    except (KeyError, TypeError):
        if session.found.constants is None:
            raise ConfigError(
                f"{path} has no [ledger] with {', '.join(Constants.__dataclass_fields__)}",
                remedy="use the manifest of a run with a ledger, or a deployment file that has its constants",
            ) from None
        return session.found.constants


def fees_of(session: Session) -> list[int]:
    """Usage fees for contributors that count in each epoch, from epoch 1 on, in units.

    In epoch e count those paid in blocks behind that of checkpoint e - 3, up to that of checkpoint e - 2.
    """
    fees = [0] * (len(session.epochs) + 2)
    for row in session.index.events("UsagePaid"):
        for epoch in session.epochs:
            if row["block"] <= epoch.block:
                fees[epoch.number + 1] += int(row["contributors"])
                break
    return fees
