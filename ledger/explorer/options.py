"""What every command of the explorer takes: where the contracts, the node, the index and a peer's records are."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter
from platformdirs import user_cache_path, user_data_path

from dht.errors import ConfigError

PEERS = Group("Records from peers", sort_key=89)
COMMON = Group("Where things are", sort_key=90)
OUTPUT = Group("Output", sort_key=91)


def _option(group: Group, text: str, **more: Any) -> Parameter:
    return Parameter(group=group, help=text, negative=(), **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """Options of all commands."""

    deployment: Annotated[
        Path | None,
        _option(
            COMMON,
            "File that says where the contracts are: devnet.json, or deployments/CHAIN_ID.json.",
            show_default=lambda _: "./devnet.json, else that of the local chain",
        ),
    ] = None
    rpc: Annotated[
        tuple[str, ...], _option(COMMON, "URL of a node; repeat for more.", show_default=lambda _: "the deployment's")
    ] = ()
    index: Annotated[
        Path | None,
        _option(COMMON, "SQLite file of the index.", show_default=lambda _: "one per deployment in the cache folder"),
    ] = None
    records: Annotated[
        Path | None,
        _option(
            COMMON,
            "A peer's data folder, or a file of exported records: what tallies and models are recomputed from.",
            show_default=lambda _: "the data folder of this machine's peer, if any",
        ),
    ] = None
    run: Annotated[
        Path | None,
        _option(COMMON, "The run's manifest (run.toml): then records must be of its founder."),
    ] = None
    offline: Annotated[bool, _option(COMMON, "Ask no node: what the index holds, however old.")] = False
    json: Annotated[bool, _option(OUTPUT, "JSON on stdout; amounts are decimal text in units of 1e-18.")] = False

    def records_folder(self) -> Path | None:
        """Where records may be read; None when there are none on this machine and none were named."""
        if self.records is not None:
            if not self.records.exists():
                raise ConfigError(
                    f"there are no records at {self.records}", remedy="give a peer's --data-dir, or a file of records"
                )
            return self.records
        default = user_data_path("murmuration", appauthor=False)
        return default if (default / "state").is_dir() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FromPeers:
    """Options of the commands that need records, and can have them from peers."""

    peer: Annotated[
        tuple[str, ...],
        _option(
            PEERS, "Multiaddress of a peer (/ip4/.../tcp/.../p2p/...) to ask instead of a folder; repeat for more."
        ),
    ] = ()
    founder: Annotated[
        str | None, _option(PEERS, "Peer id of the run's founder.", show_default=lambda _: "that of --run")
    ] = None
    peer_timeout: Annotated[float, _option(PEERS, "Seconds that one peer may take for one thing.")] = 300.0


FromPeersOptions = Annotated[FromPeers | None, Parameter(name="*")]
CommonOptions = Annotated[Common | None, Parameter(name="*")]


def cache_folder() -> Path:
    """Where indexes are kept unless told otherwise."""
    return user_cache_path("murmuration", appauthor=False) / "explorer"


def parse_address(text: str, what: str = "address") -> str:
    """Lower-case 0x address. Raises ConfigError for another form, or a mixed-case one with a wrong EIP-55 checksum."""
    if not re.fullmatch(r"0x[0-9a-fA-F]{40}", text):
        raise ConfigError(f"{text!r} is no {what}", remedy="an address is 0x and 40 hexadecimal digits")
    digits = text[2:]
    if digits not in (digits.lower(), digits.upper()) and checksummed(text) != text:
        raise ConfigError(f"the checksum of {text} is wrong", remedy="copy the address again: a digit has changed")
    return text.lower()


def checksummed(address: str) -> str:
    """An address with the upper and lower case of EIP-55."""
    from ledger.eip712 import keccak

    digits = address[2:].lower()
    nibbles = keccak(digits.encode()).hex()
    return "0x" + "".join(d.upper() if int(n, 16) > 7 else d for d, n in zip(digits, nibbles, strict=False))


def terminal() -> bool:
    """Whether a person looks at stdout: only then colours and bars."""
    import sys

    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
