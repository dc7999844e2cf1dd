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
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.config import Dict, Env
from platformdirs import user_data_dir

from averaging.capacity import DEFAULT_CAPACITY, MAX_CAPACITY
from dht import addresses
from dht.errors import ConfigError

PREFIX = "MURMURATION_"
CONFIG_FILE = "peer.toml"

NETWORK = Group("Network", sort_key=1)
TRAINING = Group("Training", sort_key=2)
PRIVACY = Group("Privacy", sort_key=3)
LEDGER = Group("Ledger", sort_key=4)
OUTPUT = Group("Output", sort_key=5)


def _setting(group: Group, text: str, **options: Any) -> Parameter:
    # Flags are switched on, never off, and lists have no "--empty-" twin: negative=() drops both.
    return Parameter(group=group, help=text, negative=(), **options)


DP_BOUNDS = {"dp_epsilon": (1e-3, 1e3), "dp_delta": (1e-12, 0.1), "dp_noise": (0.1, 1e3), "dp_clip": (1e-6, 1e6)}

DEFAULT_RUN = Path("run.toml")
DEFAULT_DATA_DIR = Path(user_data_dir("murmuration"))
"""Where a peer keeps its identity and state unless told otherwise (the XDG data folder on Linux)."""


_network = partial(_setting, NETWORK)
_training = partial(_setting, TRAINING)
_privacy = partial(_setting, PRIVACY)
_ledger = partial(_setting, LEDGER)
_output = partial(_setting, OUTPUT)

RunFile = Annotated[Path, Parameter(help="The run manifest: the file that all peers of a run share.")]
DataDir = Annotated[
    Path, Parameter(help="Folder of the identity key, state and address book. One per peer; never share it.")
]
ConfigPath = Annotated[
    Path | None,
    Parameter(help="Settings file whose keys are these flags.", show_default=lambda _: "./peer.toml, if any"),
]
Json = Annotated[bool, _output("Machine-readable output on stdout: JSON.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """Settings of one peer. Raises ConfigError when a value makes no sense."""

    run: RunFile = DEFAULT_RUN
    data_dir: DataDir = DEFAULT_DATA_DIR
    config: ConfigPath = None

    bootstrap: Annotated[
        tuple[str, ...],
        _network("Address of a peer to meet the others through, as run-bootstrap prints it. Repeat for more."),
    ] = ()
    listen: Annotated[tuple[str, ...], _network("Multiaddr to listen on. Port 0 takes any free one.")] = (
        "/ip4/0.0.0.0/tcp/0",
    )
    announce: Annotated[
        tuple[str, ...],
        _network("Multiaddr that others should dial, when it is not one we listen on (port forwarding)."),
    ] = ()
    no_direct: Annotated[
        bool, _network("Send tensors through the libp2p daemon even where a direct TCP connection would work.")
    ] = False
    direct_port: Annotated[
        int, _network("TCP port for direct connections, on the hosts of --listen and --announce. 0 takes any free one.")
    ] = 0
    client_mode: Annotated[bool, _network("Accept no incoming connections; be reached through a relay.")] = False
    bandwidth: Annotated[
        int,
        _network("Speed of this line in Mbit/s, up or down, whichever is less: peers share the work by it."),
    ] = DEFAULT_CAPACITY
    join_timeout: Annotated[
        float, _network("Seconds to look for other peers before giving up (exit code 69). 0 waits as long as it takes.")
    ] = 0.0

    data: Annotated[
        str,
        _training(
            "Text to train on: a file, a folder, .jsonl, .parquet, or a Hugging Face dataset: "
            "a folder of save_to_disk, or NAME[:CONFIG][@SPLIT]."
        ),
    ] = ""
    domain: Annotated[
        str, _training("What kind of text --data is, one of the manifest's weights.domains. Others learn of it.")
    ] = ""
    text_field: Annotated[str, _training("Where a record has its text: key in .jsonl, column elsewhere.")] = "text"
    device: Annotated[Literal["auto", "cpu", "cuda"], _training("Where to train.")] = "auto"
    precision: Annotated[
        Literal["auto", "bf16", "fp32"],
        _training("Number format of forward and backward passes; weights stay in float32."),
    ] = "auto"
    batch_size: Annotated[
        int,
        _training(
            "Sequences that go through the model at a time; several such micro-batches make a local step of the run's "
            "train.tokens_per_step. Where the run leaves that open, this is the whole step. 0 measures what fits."
        ),
    ] = 0
    threads: Annotated[int, _training("CPU threads for training. 0 takes all cores.")] = 0
    seed: Annotated[int, _training("Order of this peer's data.")] = 0
    rounds: Annotated[
        int, _training("Leave after the run's round of this number is certified. 0 stays until stopped.")
    ] = 0

    dp: Annotated[
        bool,
        _privacy(
            "Record-level differential privacy: clip the gradient of every training sequence and add noise (DP-SGD)."
        ),
    ] = False
    dp_epsilon: Annotated[float, _privacy("Budget of --dp: training stops for good before epsilon exceeds this.")] = 8.0
    dp_delta: Annotated[float, _privacy("Delta of --dp; must be below 1 / number of training sequences.")] = 1e-6
    dp_noise: Annotated[
        float, _privacy("Noise of --dp: its standard deviation over the clip. More noise, more steps per epsilon.")
    ] = 1.0
    dp_clip: Annotated[float, _privacy("Norm that --dp clips the gradient of one training sequence to.")] = 1.0

    ledger: Annotated[
        Path | None, _ledger("Where the run's contracts are: devnet.json or another deployment file. None: no anchor.")
    ] = None
    rpc: Annotated[
        tuple[str, ...],
        _ledger("URL of a node of the chain. Repeat for more; by default those of the deployment file."),
    ] = ()
    wallet: Annotated[
        Path | None, _ledger("Keystore (v3) that pays for checkpoints. Without one this peer signs, and others send.")
    ] = None
    wallet_password_file: Annotated[Path | None, _ledger("File with the keystore's password.")] = None

    json: Json = False
    quiet: Annotated[bool, _output("Only errors on the terminal.")] = False
    metrics_port: Annotated[int, _output("Serve Prometheus metrics on this port of 127.0.0.1. 0 is off.")] = 0
    log_format: Annotated[Literal["human", "json"], _output("Format of the log.")] = "human"
    log_file: Annotated[Path | None, _output("Where the log goes.", show_default=lambda _: "DATA_DIR/peer.log")] = None

    def __post_init__(self) -> None:
        _check(self.batch_size >= 0, "batch-size must not be negative")
        _check(self.threads >= 0, "threads must not be negative")
        _check(self.rounds >= 0, "rounds must not be negative")
        _check(self.join_timeout >= 0, "join-timeout must not be negative")
        _check(1 <= self.bandwidth <= MAX_CAPACITY, f"bandwidth must be a number of Mbit/s from 1 to {MAX_CAPACITY}")
        _check(0 <= self.direct_port < 65536, "direct-port must be a port number, or 0 for any free one")
        _check(0 <= self.metrics_port < 65536, "metrics-port must be a port number, or 0 for none")
        for name, (low, high) in DP_BOUNDS.items():
            _check(low <= getattr(self, name) <= high, f"{name.replace('_', '-')} must be from {low:g} to {high:g}")
        _check(0 <= self.seed < 2**63, "seed must be a number from 0 to 2^63 - 1")
        for address in (*self.listen, *self.announce):
            addresses.parse(address, peer=False)
        for address in self.bootstrap:
            addresses.parse(address)

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


def _check(good: bool, message: str) -> None:
    if not good:
        raise ConfigError(message, remedy="run-peer --help says what is meant")


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
    # A name that exists beside the file is a path, with or without "@split"; anything else may be a dataset of the hub.
    if isinstance(data, str):
        for name in filter(None, (data, data.rpartition("@")[0])):
            place = path.parent / Path(name).expanduser()
            if place.exists():
                values["data"] = f"{place}{data.removeprefix(name)}"
                break
    return values


def _check_known(name: str, known: Sequence[str], where: str) -> None:
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"unknown setting {name} in {where}.{hint}", remedy="run-peer --help lists all settings")
