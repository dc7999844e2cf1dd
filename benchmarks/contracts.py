"""The contracts on some chain, from the outside: calldata, keys, and what attestors sign.

All by other people's libraries: neither the ledger's own client nor its own hashes are used, so that
tests can hold those against this.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from typing import Any

from coincurve import PrivateKey
from eth_abi.abi import decode, encode
from eth_account.messages import encode_typed_data
from eth_utils.abi import abi_to_signature, collapse_if_tuple
from eth_utils.crypto import keccak

from ledger.build import ARTIFACTS, NAMES

UNIT = 10**18
RUN = sha256(b"a run").digest()
DAY = 86_400
STRUCTS = {
    "Checkpoint": (
        "bytes32 runId,uint64 forkNonce,uint64 epoch,bytes32 parent,uint64 firstRound,uint64 lastRound,"
        "bytes32 modelRoot,bytes32 dataRoot,bytes32 tallyRoot,uint128 cumulativeReward,uint64 peers,uint128 tokens"
    ),
    "Rollback": "bytes32 runId,uint64 forkNonce,uint64 epoch",
    "Rotation": "bytes32 runId,uint64 nonce,bytes32 attestors",
    "Verdict": "bytes32 runId,uint64 epoch,address key,uint16 bps,bytes32 evidence",
    "Veto": "bytes32 verdict",
}


class Key:
    """A reproducible secp256k1 key."""

    def __init__(self, label: str) -> None:
        self.secret = sha256(label.encode()).digest()
        self._private = PrivateKey(self.secret)
        point = self._private.public_key.format(compressed=False)[1:]
        self.x, self.y = point[:32], point[32:]
        self.address = "0x" + keccak(point)[12:].hex()

    def compact(self, digest: bytes) -> list[bytes]:
        """Signature in EIP-2098's form: r, and s with the parity in its highest bit."""
        signature = self._private.sign_recoverable(digest, hasher=None)
        return [signature[:32], bytes([signature[32] | signature[64] << 7]) + signature[33:64]]


@dataclass(frozen=True)
class Receipt:
    """What became of a transaction: gas, events as (contract, name, fields), and the address of a new contract."""

    gas: int
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    created: str = ""


class RevertedError(Exception):
    """A transaction or view that a contract refused: the name of its error, and the values in it."""

    def __init__(self, name: str, values: tuple[Any, ...]) -> None:
        super().__init__(f"{name}{values}")
        self.name, self.values = name, values


@dataclass(frozen=True)
class Settings:
    """What a deployment chooses."""

    cap: int = 10**9 * UNIT
    emission: int = 1000 * UNIT
    window: int = 0
    min_interval: int = 0
    unbond_delay: int = 14 * DAY
    splits: tuple[int, int, int, int] = (7000, 1000, 1500, 500)
    genesis: int = 10**6 * UNIT
    equivocation_bps: int = 5000
    most_bps: int = 500
    verdict_delay: int = 3 * DAY
    verdict_period: int = 30 * DAY


class Deployment(ABC):
    """All five contracts on one chain, deployed by account 0, who also gets the genesis allocation."""

    def __init__(self, accounts: Sequence[str], chain_id: int) -> None:
        self.accounts, self.chain_id = accounts, chain_id
        self.treasury, self.providers = Key("treasury").address, Key("data providers").address
        owner = bytes.fromhex(accounts[0][2:])
        # The address of a contract is the hash of the RLP list of its maker and the maker's nonce, below 128 here.
        nonces = {name: bytes([nonce or 0x80]) for nonce, name in enumerate(NAMES)}
        self.at = {name: "0x" + keccak(b"\xd6\x94" + owner + nonce)[12:].hex() for name, nonce in nonces.items()}

    @abstractmethod
    def transact(self, sender: str, to: str | None, data: bytes) -> Receipt:
        """One transaction. Raises RevertedError."""

    @abstractmethod
    def view(self, to: str, data: bytes) -> bytes:
        """One call that changes nothing. Raises RevertedError."""

    def found(self, attestors: Sequence[Key], settings: Settings) -> dict[str, Receipt]:
        """Deploy everything, with these attestors, all of weight 1."""
        at, owner = self.at, self.accounts[0]
        addresses, weights = [key.address for key in attestors], [1] * len(attestors)
        arguments: dict[str, tuple[Any, ...]] = {
            "Token": ("Murmuration", "MUR", settings.cap, at["RewardPool"]),
            "PeerRegistry": (at["Token"], at["Slashing"], settings.unbond_delay),
            "CheckpointHub": (RUN, addresses, weights, settings.window, settings.min_interval, at["RewardPool"]),
            "RewardPool": (
                *(at["Token"], at["CheckpointHub"], at["PeerRegistry"], self.treasury, self.providers),
                *(settings.emission, settings.splits, [owner], [settings.genesis]),
            ),
            "Slashing": (
                *(at["PeerRegistry"], at["CheckpointHub"], RUN, settings.equivocation_bps, settings.most_bps),
                *(settings.verdict_delay, settings.verdict_period),
            ),
        }
        return {name: self.deploy(name, values) for name, values in arguments.items()}

    def deploy(self, name: str, values: Sequence[Any]) -> Receipt:
        """Deploy one contract from account 0."""
        inputs = next(entry["inputs"] for entry in _artifact(name)["abi"] if entry["type"] == "constructor")
        code = bytes.fromhex(_artifact(name)["bytecode"][2:]) + encode(_types(inputs), values)
        return self.transact(self.accounts[0], None, code)

    def send(self, contract: str, function: str, *values: Any, sender: int = 0) -> Receipt:
        """Call a function in a transaction of account number `sender`. Raises RevertedError."""
        return self.transact(self.accounts[sender], self.at[contract], calldata(contract, function, *values))

    def call(self, contract: str, function: str, *values: Any) -> Any:
        """What a view returns: one value, or a tuple. Raises RevertedError."""
        return returned(contract, function, self.view(self.at[contract], calldata(contract, function, *values)))

    def digest(self, kind: str, values: Mapping[str, Any], contract: str = "CheckpointHub") -> bytes:
        """EIP-712 digest of one of `STRUCTS`."""
        domain = {
            "name": "Murmuration",
            "version": "1",
            "chainId": self.chain_id,
            "verifyingContract": self.at[contract],
        }
        fields = [dict(zip(("type", "name"), member.split(), strict=True)) for member in STRUCTS[kind].split(",")]
        signable = encode_typed_data(domain, {kind: fields}, dict(values))
        return keccak(b"\x19\x01" + signable.header + signable.body)

    def next_header(self, **changes: Any) -> dict[str, Any]:
        """A checkpoint that may follow the last one, unless `changes` make it another."""
        epoch, parent, last, fork = self.call("CheckpointHub", "head")
        values = {
            **{"runId": RUN, "forkNonce": fork, "epoch": epoch + 1, "parent": parent},
            **{"firstRound": last + 1, "lastRound": last + 10},
            **{name: sha256(f"{name} {epoch}".encode()).digest() for name in ("modelRoot", "dataRoot", "tallyRoot")},
            **{"cumulativeReward": (epoch + 1) * 1000 * UNIT, "peers": 10_000, "tokens": (epoch + 1) * 123_456_789},
        }
        return values | changes

    def propose(self, signers: Sequence[Key], **changes: Any) -> Receipt:
        """Send the next checkpoint, signed by the first attestors. Raises RevertedError."""
        header = self.next_header(**changes)
        return self.send(
            "CheckpointHub", "propose", tuple(header.values()), *signed(signers, self.digest("Checkpoint", header))
        )

    def binding(self, key: Key, account: int) -> tuple[bytes, ...]:
        """A key's proof that it belongs to an account, as `enrol` and `rotateKey` take it."""
        parts = self.chain_id.to_bytes(32, "big"), _raw(self.at["PeerRegistry"]), _raw(self.accounts[account])
        return key.x, key.y, *key.compact(sha256(b"murmuration/enrol/1" + b"".join(parts)).digest())

    def events(self, logs: Sequence[tuple[str, Sequence[bytes], bytes]]) -> list[tuple[str, str, dict[str, Any]]]:
        """Decode logs (address, topics, data) of our contracts."""
        names = {_raw(address): name for name, address in self.at.items()}
        return [
            (names[_raw(address)], *_event(names[_raw(address)], topics, data))
            for address, topics, data in logs
            if _raw(address) in names
        ]


def signed(signers: Sequence[Key], digest: bytes) -> tuple[int, list[bytes]]:
    """Bitmap and signatures of the first attestors."""
    return (1 << len(signers)) - 1, [word for key in signers for word in key.compact(digest)]


def calldata(contract: str, function: str, *values: Any) -> bytes:
    """Calldata of a function."""
    entry = _functions(contract)[function]
    return keccak(abi_to_signature(entry).encode())[:4] + encode(_types(entry["inputs"]), values)


def returned(contract: str, function: str, output: bytes) -> Any:
    """What a function gave back: one value, or a tuple."""
    result = decode(_types(_functions(contract)[function]["outputs"]), output)
    return result[0] if len(result) == 1 else result


def reverted(output: bytes) -> RevertedError:
    """What a contract said when it refused."""
    for name in NAMES:
        if entry := _by_hash(name, "error", 4).get(output[:4]):
            return RevertedError(entry["name"], decode(_types(entry["inputs"]), output[4:]))
    return RevertedError(output.hex(), ())


def _raw(address: str) -> bytes:
    return bytes.fromhex(address[2:])


@cache
def _artifact(name: str) -> dict[str, Any]:
    return dict(json.loads((ARTIFACTS / f"{name}.json").read_text()))


@cache
def _functions(name: str) -> dict[str, Any]:
    return {entry["name"]: entry for entry in _artifact(name)["abi"] if entry["type"] == "function"}


@cache
def _by_hash(name: str, kind: str, size: int) -> dict[bytes, Any]:
    """Errors or events of a contract, by the first bytes of their signature's hash."""
    entries = [entry for entry in _artifact(name)["abi"] if entry["type"] == kind]
    return {keccak(abi_to_signature(entry).encode())[:size]: entry for entry in entries}


def _types(entries: Sequence[Any]) -> list[str]:
    return [collapse_if_tuple(entry) for entry in entries]


def _event(contract: str, topics: Sequence[bytes], data: bytes) -> tuple[str, dict[str, Any]]:
    entry = _by_hash(contract, "event", 32)[topics[0]]
    plain = [given for given in entry["inputs"] if not given["indexed"]]
    values = dict(zip((given["name"] for given in plain), decode(_types(plain), data), strict=True))
    indexed = [given for given in entry["inputs"] if given["indexed"]]
    for given, topic in zip(indexed, topics[1:], strict=True):
        values[given["name"]] = decode([given["type"]], topic)[0]
    return entry["name"], values
