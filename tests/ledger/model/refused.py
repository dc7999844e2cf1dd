"""How a contract says no, and signatures as far as it can see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ZERO = "0x" + 40 * "0"
BPS = 10_000


class Refused(Exception):
    """The contract's custom error."""

    def __init__(self, name: str, *values: Any) -> None:
        super().__init__(f"{name}{values}")
        self.name, self.values = name, values


@dataclass(frozen=True)
class Signature:
    """Who a compact signature recovers to for what was signed; `high`: its s is in the upper half."""

    signer: str
    high: bool = False

    def recovered(self) -> str:
        """The signer. Refuses a malleable twin."""
        if self.high:
            raise Refused("HighS")
        return self.signer
