"""What a chain says no to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dht.errors import ChainError


class RefusedError(ChainError):
    """A node answered with an error. `rpc_code` and `data` are JSON-RPC's."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(f"the node refused: {error.get('message', error)}", remedy="see the message")
        self.text = str(error.get("message", ""))
        self.rpc_code = error.get("code")
        self.data = error.get("data")


class RevertedError(ChainError):
    """A contract refused the transaction: nothing changed. `data` is what it reverted with."""

    def __init__(self, what: str, reason: str, data: bytes = b"") -> None:
        super().__init__(f"{what} was refused by the contract: {reason}", remedy="nothing changed on the chain")
        self.reason, self.data = reason, data


class UnfundedError(ChainError):
    """The wallet cannot pay for the transaction."""
