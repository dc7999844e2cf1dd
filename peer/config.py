"""What one peer decides for itself: flags, environment, file and defaults are four views of one dataclass.

Precedence: flag, then `MURMURATION_*` variable, then `peer.toml`, then default. What the whole run must agree on
is in the run manifest (`run.toml`), never here.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.config import Dict, Env
from platformdirs import user_data_dir

from dht.errors import ConfigError

PREFIX = "MURMURATION_"
CONFIG_FILE = "peer.toml"

NETWORK = Group("Network", sort_key=1)
TRAINING = Group("Training", sort_key=2)
OUTPUT = Group("Output", sort_key=3)


DEFAULT_DATA_DIR = Path(user_data_dir("murmuration"))
"""Where a peer keeps its identity and state unless told otherwise (the XDG data folder on Linux)."""


RunFile = Annotated[Path, Parameter(help="The run manifest: the file that all peers of a run share.")]
DataDir = Annotated[
    Path, Parameter(help="Folder of the identity key, state and address book. One per peer; never share it.")
]
ConfigPath = Annotated[
    Path | None,
    Parameter(help="Settings file whose keys are these flags.", show_default=lambda _: "./peer.toml, if any"),
]
Json = Annotated[bool, Parameter(help="Machine-readable output on stdout: JSON.", group=OUTPUT, negative=())]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """Settings of one peer. Raises ConfigError when a value makes no sense."""

    run: RunFile = Path("run.toml")
    data_dir: DataDir = DEFAULT_DATA_DIR
    config: ConfigPath = None

    bootstrap: Annotated[tuple[str, ...], Parameter(group=NETWORK, negative=())] = ()
    """Address of a peer to meet the others through, as run-bootstrap prints it. Repeat for more."""
    listen: Annotated[tuple[str, ...], Parameter(group=NETWORK, negative=())] = ("/ip4/0.0.0.0/tcp/0",)
    """Multiaddr to listen on. Port 0 takes any free one."""
    announce: Annotated[tuple[str, ...], Parameter(group=NETWORK, negative=())] = ()
    """Multiaddr that others should dial, when it is not one we listen on (port forwarding)."""
    client_mode: Annotated[bool, Parameter(group=NETWORK, negative=())] = False
    """Accept no incoming connections; be reached through a relay."""
    join_timeout: Annotated[float, Parameter(group=NETWORK)] = 0.0
    """Seconds to look for other peers before giving up (exit code 69). 0 waits as long as it takes."""

    data: Annotated[str, Parameter(group=TRAINING)] = ""
    """Text to train on: a file, a folder, .jsonl, .parquet, or the name of a Hugging Face dataset."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Parameter(group=TRAINING)] = "auto"
    """Where to train."""
    precision: Annotated[Literal["auto", "bf16", "fp32"], Parameter(group=TRAINING)] = "auto"
    """Number format of forward and backward passes; weights stay in float32."""
    batch_size: Annotated[int, Parameter(group=TRAINING)] = 8
    """Sequences per local step."""
    threads: Annotated[int, Parameter(group=TRAINING)] = 0
    """CPU threads for training. 0 takes all cores."""
    seed: Annotated[int, Parameter(group=TRAINING)] = 0
    """Order of this peer's data."""
    rounds: Annotated[int, Parameter(group=TRAINING)] = 0
    """Leave after the run's round of this number is certified. 0 stays until stopped."""

    json: Json = False
    quiet: Annotated[bool, Parameter(group=OUTPUT, negative=())] = False
    """Only errors on the terminal."""
    metrics_port: Annotated[int, Parameter(group=OUTPUT)] = 0
    """Serve Prometheus metrics on this port of 127.0.0.1. 0 is off."""
    log_format: Annotated[Literal["text", "json"], Parameter(group=OUTPUT)] = "text"
    """Format of the log."""
    log_file: Annotated[Path | None, Parameter(group=OUTPUT, show_default=lambda _: "DATA_DIR/peer.log")] = None
    """Where the log goes."""

    def __post_init__(self) -> None:
        _check(self.batch_size >= 1, "batch-size must be at least 1")
        _check(self.threads >= 0, "threads must not be negative")
        _check(self.rounds >= 0, "rounds must not be negative")
        _check(self.join_timeout >= 0, "join-timeout must not be negative")
        _check(0 <= self.metrics_port < 65536, "metrics-port must be a port number, or 0 for none")
        _check(0 <= self.seed < 2**63, "seed must be a number from 0 to 2^63 - 1")
        for address in (*self.listen, *self.announce):
            _check(address.startswith("/"), f"{address!r} is not a multiaddr", "write it like /ip4/0.0.0.0/tcp/31330")
        for address in self.bootstrap:
            good = address.startswith("/") and "/p2p/" in address
            remedy = "paste the whole line that run-bootstrap printed: /ip4/…/tcp/…/p2p/…"
            _check(good, f"{address!r} is not the address of a peer", remedy)

    @property
    def identity_path(self) -> Path:
        """The identity key file."""
        return self.data_dir / "identity.key"

    @property
    def status_path(self) -> Path:
        """The snapshot that `run-peer status` reads."""
        return self.data_dir / "status.json"

    @property
    def log_path(self) -> Path:
        """Where the log goes: `log_file`, or peer.log in the data folder."""
        return self.log_file or self.data_dir / "peer.log"


def _check(good: bool, message: str, remedy: str = "") -> None:
    if not good:
        raise ConfigError(message, remedy=remedy)


def sources(argv: Sequence[str]) -> list[Any]:
    """Where cyclopts looks after the flags: the environment, then the settings file.

    Raises ConfigError for a variable or a key that is no setting, whichever command is run.
    """
    known = [field.name for field in fields(PeerConfig)]
    variables = [PREFIX + name.upper() for name in known]
    for variable in os.environ:
        if variable.startswith(PREFIX):
            _check_known(variable, variables, "the environment")
    path = config_path(argv)
    values = read_config(path) if path else {}
    for key in values:
        _check_known(key, known, str(path))
    # A command other than the default one takes a part of the settings; the rest of the file is not its business.
    file = Dict(values, source=str(path), use_commands_as_keys=False, allow_unknown=True)
    return [Env(PREFIX, command=False), file]


def config_path(argv: Sequence[str]) -> Path | None:
    """The settings file that flags or environment name, else ./peer.toml when there is one."""
    for index, token in enumerate(argv):
        if token == "--config" and index + 1 < len(argv):
            return Path(argv[index + 1])
        if token.startswith("--config="):
            return Path(token.removeprefix("--config="))
    named = os.environ.get(PREFIX + "CONFIG")
    if named:
        return Path(named)
    return Path(CONFIG_FILE) if Path(CONFIG_FILE).is_file() else None


def read_config(path: Path) -> dict[str, Any]:
    """The keys of a settings file; paths in it are relative to its own folder. Raises ConfigError."""
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", remedy="`run-peer init` writes one") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for key in ("run", "data_dir", "log_file"):
        if isinstance(values.get(key), str):
            values[key] = str(path.parent / Path(values[key]).expanduser())
    data = values.get("data")
    # A name that exists beside the file is a path; anything else may be a dataset's name on the hub.
    if isinstance(data, str) and data and (path.parent / Path(data).expanduser()).exists():
        values["data"] = str(path.parent / Path(data).expanduser())
    return values


def _check_known(name: str, known: Sequence[str], where: str) -> None:
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"unknown setting {name} in {where}.{hint}", remedy="run-peer --help lists all settings")
