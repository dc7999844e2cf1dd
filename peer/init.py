"""`run-peer init`: an identity, an annotated run manifest, and a settings file, ready to edit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dht.errors import ConfigError, StorageError
from dht.identity import Identity, PeerId
from peer.config import CONFIG_FILE, PeerConfig
from peer.manifest import Codec, Manifest, Outer, Train

if TYPE_CHECKING:
    from cyclopts.argument import Argument, ArgumentCollection

RUN_FILE = "run.toml"
_EXAMPLES = {
    "bootstrap": '["/ip4/203.0.113.5/tcp/31337/p2p/16Uiu2..."]',
    "announce": '["/dns4/peer.example.org/tcp/31337"]',
    "data": '"texts/"',
    "log_file": '"peer.log"',
}


def create(directory: Path, data_dir: Path, *, name: str, peers: int) -> Identity:
    """Write DIRECTORY/run.toml and DIRECTORY/peer.toml, and an identity in `data_dir` if it has none.

    The founder of the run is that identity. Nothing that exists is overwritten. Raises ConfigError, IdentityError,
    StorageError.
    """
    run_file, config_file = directory / RUN_FILE, directory / CONFIG_FILE
    for path in (run_file, config_file):
        if path.exists():
            raise ConfigError(f"{path} exists", remedy="move it away, or name another folder: run-peer init DIR")
    try:
        identity = Identity.load_or_create(data_dir / "identity.key")
        manifest = recommended(str(identity.peer_id), name=name, genesis_peers=peers)
        settings = settings_text({"run": RUN_FILE, "data_dir": str(data_dir.absolute())})
        directory.mkdir(parents=True, exist_ok=True)
        _write_new(run_file, manifest.dumps())
        _write_new(config_file, settings)
    except OSError as error:
        raise StorageError(f"cannot write in {error.filename or directory}: {error.strerror}") from error
    return identity


def recommended(founder: str, *, name: str, genesis_peers: int) -> Manifest:
    """A new run as in the table's row *home line, 4.6 bits* (docs/training.md): Muon inside, 18 local steps, and seven
    elements in a ring word, which serves cohorts of up to eleven: over a hundred times less traffic. The row's rate
    decays; `train.decay_rounds` does that for who knows how many rounds there will be.
    """
    steps = 18
    return Manifest.demo(
        founder,
        name=name,
        genesis_peers=genesis_peers,
        train=Train(optimizer="muon", learning_rate=1e-2, local_steps=steps, tokens_per_round=steps * 8 * 128),
        outer=Outer(learning_rate=0.8, momentum=0.6),
        codec=Codec(ring_bits=32, pack=7),
    )


def next_steps(directory: Path, data_dir: Path, identity: Identity) -> str:
    """What was made, and how to go on."""
    here = "" if directory == Path() else f"cd {directory} && "
    return f"""peer id    {identity.peer_id}
on a chain {key_text(identity.peer_id)}
identity   {data_dir / "identity.key"} (keep it private, and keep a copy)
manifest   {directory / RUN_FILE} (edit it before anybody joins: its values are the run's identity)
settings   {directory / CONFIG_FILE}

Next: start a meeting point, then this peer, and give {RUN_FILE} and the same line to everyone who joins.
  run-bootstrap
  {here}run-peer --bootstrap ADDRESS --data TEXT"""


def key_text(peer: PeerId) -> str:
    """The address under which chains know a peer's key, 0x-prefixed."""
    from ledger.signatures import key_address

    return f"0x{key_address(peer).hex()}"


def _write_new(path: Path, text: str) -> None:
    # O_EXCL: two inits at once must not overwrite each other either.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as file:
        file.write(text)


def settings_text(given: dict[str, str]) -> str:
    """An annotated peer.toml: every setting with its meaning; those not `given` are comments with their default."""
    lines = [
        "# Settings of this peer. Every key is also a flag (--batch-size) and a variable (MURMURATION_BATCH_SIZE);",
        "# flags win over variables, variables over this file. Paths are relative to this file. Where only one value",
        "# is shown behind a '#', it is the default or an example.",
    ]
    group = ""
    for argument in _settings():
        key = argument.name.removeprefix("--").replace("-", "_")
        if not argument.name.startswith("--") or key == "config":
            continue
        title = next((entry.name for entry in argument.parameter.group or () if hasattr(entry, "name")), "")  # type: ignore[union-attr]
        if title != group:
            group = title
            lines += ["", f"## {title}"]
        lines += ["", f"# {_meaning(argument)}"]
        default = getattr(PeerConfig(), key)
        value = given.get(key)
        lines.append(
            f"{key} = {_toml(value)}" if value is not None else f"# {key} = {_EXAMPLES.get(key) or _toml(default)}"
        )
    return "\n".join(lines) + "\n"


def _settings() -> ArgumentCollection:
    from peer.cli import application

    return application().assemble_argument_collection()


def _meaning(argument: Argument) -> str:
    text = (argument.parameter.help or "").replace("\n", " ")
    choices = argument.get_choices()
    return f"{text} One of: {', '.join(choices)}." if choices else text


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, int | float):
        return str(value)
    return json.dumps(str(value))
