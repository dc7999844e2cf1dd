"""Compiled contracts: what is deployed, and whether what a chain has is ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from dht.errors import ConfigError
from ledger.chain.errors import RevertedError

CONTRACTS = ("Token", "PeerRegistry", "CheckpointHub", "RewardPool", "Slashing")
_ERROR_STRING = bytes.fromhex("08c379a0")
_PANIC = bytes.fromhex("4e487b71")


@dataclass(frozen=True)
class Artifact:
    """One compiled contract; `immutables` are (offset, bytes) in `deployed` that its constructor fills in."""

    name: str
    abi: tuple[Mapping[str, Any], ...]
    bytecode: bytes
    deployed: bytes
    immutables: tuple[tuple[int, int], ...]

    def is_code(self, code: bytes) -> bool:
        """Is `code`, as a chain has it, this contract's, whatever the values of its immutables?"""
        return self._masked(code) == self._masked(self.deployed)

    def creation(self, *arguments: Any) -> bytes:
        """Data of the transaction that deploys it. Raises ConfigError when an argument does not fit."""
        from eth_abi.abi import encode
        from eth_abi.exceptions import EncodingError

        inputs: Sequence[Mapping[str, Any]] = next(
            (entry["inputs"] for entry in self.abi if entry["type"] == "constructor"), ()
        )
        try:
            return self.bytecode + encode([_type(parameter) for parameter in inputs], arguments)
        except (EncodingError, TypeError, ValueError) as error:
            raise ConfigError(f"{self.name} cannot be constructed so: {error}", remedy="check the parameters") from None

    def _masked(self, code: bytes) -> bytes:
        masked = bytearray(code)
        for start, size in self.immutables:
            masked[start : start + size] = bytes(size)
        return bytes(masked)


@cache
def load(name: str) -> Artifact:
    """An artifact that comes with the package. Raises ConfigError when it does not."""
    file = resources.files("ledger") / "artifacts" / f"{name}.json"
    try:
        return parse(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"the artifact of {name} is missing or damaged", remedy="install the package again") from None


def parse(found: Mapping[str, Any]) -> Artifact:
    """An artifact from its JSON form. Raises KeyError, TypeError or ValueError."""
    code = {key: bytes.fromhex(found[key].removeprefix("0x")) for key in ("bytecode", "deployedBytecode")}
    immutables = tuple((int(start), int(size)) for start, size in found["immutables"])
    return Artifact(found["contractName"], tuple(found["abi"]), code["bytecode"], code["deployedBytecode"], immutables)


def explain(data: bytes, artifacts: Sequence[Artifact] | None = None) -> str:
    """What a revert says: `Error(string)`, a panic, or one of our contracts' own errors with its values."""
    from eth_abi.abi import decode
    from eth_abi.exceptions import DecodingError

    if not data:
        return "no reason given"
    try:
        if data[:4] == _ERROR_STRING:
            return str(decode(["string"], data[4:])[0])
        if data[:4] == _PANIC:
            return f"panic {decode(['uint256'], data[4:])[0]:#x}"
        for artifact in [load(name) for name in CONTRACTS] if artifacts is None else artifacts:
            for entry in artifact.abi:
                if entry["type"] == "error" and selector(entry) == data[:4]:
                    values = decode([_type(parameter) for parameter in entry["inputs"]], data[4:])
                    return f"{entry['name']}({', '.join(map(_plain, values))})"
    except (DecodingError, ConfigError):
        pass
    return f"0x{data[:36].hex()}"


def reverted(what: str, text: str, data: object) -> RevertedError:
    """A contract refused `what`: why, by the `data` of the revert (0x text) if a node gave some, else by its `text`."""
    found = bytes.fromhex(data[2:]) if isinstance(data, str) and data.startswith("0x") else b""
    return RevertedError(what, explain(found) if found else text, found)


def selector(entry: Mapping[str, Any]) -> bytes:
    """First four bytes of the hash of a function's or error's signature."""
    from eth_hash.auto import keccak

    return keccak(f"{entry['name']}({','.join(map(_type, entry['inputs']))})".encode())[:4]


def _type(parameter: Mapping[str, Any]) -> str:
    kind: str = parameter["type"]
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(map(_type, parameter['components']))}){kind.removeprefix('tuple')}"


def _plain(value: Any) -> str:
    return f"0x{value.hex()}" if isinstance(value, bytes) else str(value)
