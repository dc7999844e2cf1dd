"""JSON-RPC 2.0 errors and quantities, with the codes and words that Ethereum's clients know (EIP-1474)."""

from __future__ import annotations

from typing import Any

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
REJECTED = -32000
REVERTED = 3
MOST_QUANTITY = 2**256


class RpcError(Exception):
    """A refusal that the caller sees: never leaves the server but as the `error` object of an answer."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code, self.message, self.data = code, message, data

    def as_json(self) -> dict[str, Any]:
        """The `error` object."""
        error = {"code": self.code, "message": self.message}
        return error if self.data is None else {**error, "data": self.data}


def rejected(message: str) -> RpcError:
    """What a node says to a transaction that it does not take."""
    return RpcError(REJECTED, message)


def reverted(output: bytes) -> RpcError:
    """A call that reverted, with the revert data from which clients decode the contract's own error."""
    return RpcError(REVERTED, "execution reverted" + _reason(output), "0x" + output.hex())


def _reason(output: bytes) -> str:
    """The text of Solidity's `Error(string)`, if that is what reverted."""
    if output[:4] != bytes.fromhex("08c379a0") or len(output) < 68:
        return ""
    size = int.from_bytes(output[36:68], "big")
    text = output[68 : 68 + min(size, 1024)]
    return f": {text.decode(errors='replace')}"


def invalid(message: str) -> RpcError:
    """A parameter that cannot be read."""
    return RpcError(INVALID_PARAMS, message)


def quantity(value: Any, name: str = "quantity") -> int:
    """An integer from its hex form (or a JSON number). Raises RpcError."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise invalid(f"{name} must be a hex quantity")
    try:
        number = int(value, 16) if isinstance(value, str) else value
    except ValueError:
        raise invalid(f"{name} is no hex quantity: {str(value)[:80]!r}") from None
    if not 0 <= number < MOST_QUANTITY:
        raise invalid(f"{name} is out of range")
    return number


def data(value: Any, name: str = "data", size: int | None = None) -> bytes:
    """Bytes from 0x-prefixed hex, of `size` bytes if given. Raises RpcError."""
    try:
        if not isinstance(value, str) or not value.startswith("0x"):
            raise ValueError(value)
        found = bytes.fromhex(value[2:])
    except ValueError:
        raise invalid(f"{name} must be 0x-prefixed hex") from None
    if size is not None and len(found) != size:
        raise invalid(f"{name} must be {size} bytes, not {len(found)}")
    return found


def number_hex(value: int) -> str:
    """A quantity as the protocol writes it."""
    return hex(value)


def data_hex(value: bytes) -> str:
    """Bytes as the protocol writes them."""
    return "0x" + value.hex()
