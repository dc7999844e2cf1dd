"""Contract interfaces: encode and decode calls, logs and errors by an ABI as solc writes it.

The codec is eth_abi's; here is only what turns names into selectors and topics. Values are Python's: integers, lower
case addresses with 0x, bytes, lists, and a dict for a struct.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dht.errors import ConfigError
from ledger.eip712 import keccak

Abi = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Parameter:
    """One input or output: a name, a type in canonical form, and its parts when it is a struct."""

    name: str
    type: str
    indexed: bool
    parts: tuple[Parameter, ...]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Parameter:
        """From an ABI entry."""
        parts = tuple(cls.of(part) for part in entry.get("components", ()))
        kind = str(entry["type"])
        if kind.startswith("tuple"):
            kind = f"({','.join(part.type for part in parts)})" + kind.removeprefix("tuple")
        return cls(str(entry.get("name", "")), kind, bool(entry.get("indexed", False)), parts)

    def name_parts(self, value: Any) -> Any:
        """A decoded value with structs as dicts and addresses in lower case."""
        if self.type.endswith("]"):
            item = Parameter(self.name, self.type[: self.type.rindex("[")], False, self.parts)
            return [item.name_parts(entry) for entry in value]
        if self.parts:
            return {part.name: part.name_parts(entry) for part, entry in zip(self.parts, value, strict=True)}
        return value.lower() if self.type == "address" else value

    def strip_names(self, value: Any) -> Any:
        """What eth_abi encodes: structs as tuples."""
        if self.type.endswith("]"):
            item = Parameter(self.name, self.type[: self.type.rindex("[")], False, self.parts)
            return [item.strip_names(entry) for entry in value]
        if self.parts and isinstance(value, Mapping):
            return tuple(part.strip_names(value[part.name]) for part in self.parts)
        return value


@dataclass(frozen=True)
class Entry:
    """A function, event or error of a contract."""

    contract: str
    name: str
    inputs: tuple[Parameter, ...]
    outputs: tuple[Parameter, ...]

    @property
    def signature(self) -> str:
        """For instance `walletOf(address)`."""
        return f"{self.name}({','.join(parameter.type for parameter in self.inputs)})"

    def digest(self) -> bytes:
        """Keccak-256 of the signature: the topic of an event; its first 4 bytes select a function or error."""
        return keccak(self.signature.encode())


class Interface:
    """All that a set of contracts can do and say, by name, topic and selector."""

    def __init__(self, contracts: Mapping[str, Abi]) -> None:
        """`contracts`: the ABI of each contract by its name."""
        self.contracts = tuple(contracts)
        self.functions: dict[tuple[str, str], Entry] = {}
        self.events: dict[bytes, Entry] = {}
        self.errors: dict[bytes, Entry] = {}
        self._selectors: dict[bytes, Entry] = {}
        for contract, abi in contracts.items():
            for row in abi:
                self._add(contract, row)

    def _add(self, contract: str, row: Mapping[str, Any]) -> None:
        inputs = tuple(Parameter.of(entry) for entry in row.get("inputs", ()))
        outputs = tuple(Parameter.of(entry) for entry in row.get("outputs", ()))
        entry = Entry(contract, str(row.get("name", "")), inputs, outputs)
        if row["type"] == "function":
            self.functions[contract, entry.name] = entry
            self._selectors.setdefault(entry.digest()[:4], entry)
        elif row["type"] == "event":
            self.events.setdefault(entry.digest(), entry)
        elif row["type"] == "error":
            self.errors.setdefault(entry.digest()[:4], entry)

    def call(self, contract: str, name: str, *values: Any) -> bytes:
        """Calldata. Raises ConfigError when there is no such function or a value does not fit its type."""
        from eth_abi.abi import encode
        from eth_abi.exceptions import EncodingError

        entry = self._function(contract, name)
        stripped = [parameter.strip_names(value) for parameter, value in zip(entry.inputs, values, strict=True)]
        try:
            return entry.digest()[:4] + encode([parameter.type for parameter in entry.inputs], stripped)
        except (EncodingError, TypeError, ValueError) as error:
            raise ConfigError(f"{contract}.{name} does not take this: {error}") from None

    def result(self, contract: str, name: str, data: bytes) -> Any:
        """What a view function returned: the value, or a dict when it has several. Raises ConfigError."""
        outputs = self._function(contract, name).outputs
        values = _decode(outputs, data, f"what {contract}.{name} returned")
        if len(outputs) == 1:
            return values[0]
        return {
            output.name or str(place): value for place, (output, value) in enumerate(zip(outputs, values, strict=True))
        }

    def read_call(self, data: bytes) -> tuple[Entry, dict[str, Any]] | None:
        """Function and arguments of calldata; None when it is no function of these contracts."""
        entry = self._selectors.get(data[:4])
        if entry is None:
            return None
        try:
            values = _decode(entry.inputs, data[4:], entry.name)
        except ConfigError:
            return None
        return entry, {parameter.name: value for parameter, value in zip(entry.inputs, values, strict=True)}

    def read_error(self, data: bytes) -> str:
        """A revert's reason in words: `BadEpoch(3)`, the text of a require, or the bytes."""
        entry = self.errors.get(data[:4])
        try:
            if data[:4] == keccak(b"Error(string)")[:4]:
                return str(_decode((Parameter("", "string", False, ()),), data[4:], "error")[0])
            if entry is not None:
                return f"{entry.name}({', '.join(map(plain_text, _decode(entry.inputs, data[4:], entry.name)))})"
        except ConfigError:
            pass
        return f"0x{data.hex()}" if data else "no reason given"

    def read_log(self, log: Mapping[str, Any]) -> tuple[Entry, dict[str, Any]] | None:
        """Event and arguments of a log as JSON-RPC gives it; None when it is no event of these contracts."""
        topics = [bytes.fromhex(topic[2:]) for topic in log["topics"]]
        entry = self.events.get(topics[0]) if topics else None
        if entry is None:
            return None
        indexed = [parameter for parameter in entry.inputs if parameter.indexed]
        plain = tuple(parameter for parameter in entry.inputs if not parameter.indexed)
        if len(indexed) != len(topics) - 1:
            return None
        values = {
            parameter.name: _decode((parameter,), topic, entry.name)[0]
            for parameter, topic in zip(indexed, topics[1:], strict=True)
        }
        rest = _decode(plain, bytes.fromhex(log["data"][2:]), entry.name)
        values |= {parameter.name: value for parameter, value in zip(plain, rest, strict=True)}
        return entry, {parameter.name: values[parameter.name] for parameter in entry.inputs}

    def _function(self, contract: str, name: str) -> Entry:
        try:
            return self.functions[contract, name]
        except KeyError:
            raise ConfigError(
                f"{contract} has no function {name}", remedy="install the artifacts of this version"
            ) from None


def plain_text(value: Any) -> str:
    """A decoded value for people: bytes as 0x hex."""
    return f"0x{value.hex()}" if isinstance(value, bytes) else str(value)


def snake(name: str) -> str:
    """`CheckpointProposed` -> `checkpoint_proposed`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _decode(parameters: Iterable[Parameter], data: bytes, what: str) -> list[Any]:
    from eth_abi.abi import decode
    from eth_abi.exceptions import DecodingError

    wanted = tuple(parameters)
    try:
        values = decode([parameter.type for parameter in wanted], data)
    except (DecodingError, OverflowError, ValueError) as error:
        raise ConfigError(f"cannot read {what}: {error}", remedy="is the contract of another version?") from None
    return [parameter.name_parts(value) for parameter, value in zip(wanted, values, strict=True)]
