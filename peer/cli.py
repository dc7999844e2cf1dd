"""`run-peer`: join a run and train; `init`, `identity`, `plan`, `status`, `doctor`, `export`, `evidence` around it.

Exit codes: 0 done, or left in good order; those of `dht.errors`; 70 a crash; 130 a second Ctrl-C.
Heavy imports (torch, hivemind, transformers) happen inside the commands that need them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from json import dumps as encode_json
from pathlib import Path
from typing import Annotated, NoReturn

from cyclopts import App, Parameter

from dht import command_line, exits
from dht.errors import ConfigError, MurmurationError, UnreachableError
from peer.config import DEFAULT_DATA_DIR, DEFAULT_RUN, ConfigPath, DataDir, Json, PeerConfig, RunFile, sources
from peer.events import Reporter
from peer.evidence_cli import evidence

HERE = Path()


def application(argv: Sequence[str] = ()) -> App:
    """The command line. Raises ConfigError when the settings file or a variable is wrong."""
    app = App(
        name="run-peer",
        help=join.__doc__,
        version=command_line.version,
        config=sources(argv),
        result_action="return_value",
    )
    app.default(join)
    for command in (init, identity, plan, status, doctor, export):
        app.command(command)
    app.command(evidence)
    return app


def parse(argv: Sequence[str]) -> command_line.Call:
    """The command that the arguments name, with its parameters. Raises ConfigError."""
    return command_line.parse(application(argv), argv, "run-peer --help lists all settings")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the console script."""
    command_line.main(parse, argv)


def join(config: Annotated[PeerConfig | None, Parameter(name="*")] = None) -> int:
    """Join a training run: train on your own text, add up updates under masks, hold the same model as everyone."""
    config = config or PeerConfig()
    from peer.manifest import Manifest
    from peer.precision import prepare_environment
    from peer.supervise import StopSignals, data_folder, reporting, supervise

    prepare_environment(threads=config.threads or None)
    manifest = Manifest.load(existing(config.run))
    with StopSignals() as signals, data_folder(config), reporting(config) as reporter:

        async def run(stop: asyncio.Event) -> None:
            from peer.node import run_peer

            await run_peer(config, manifest, reporter, stop)

        return guarded(lambda: asyncio.run(supervise(run, reporter, signals)), reporter, config.log_path)


def guarded(work: Callable[[], None], reporter: Reporter, log_path: Path) -> int:
    """Do the work; report how it failed as an event too. A crash leaves its traceback in the log and returns 70."""
    try:
        work()
    except MurmurationError as error:
        reporter.event("error", code=error.code, message=error.message, remedy=error.remedy)
        return error.exit_code
    except Exception as error:
        fault = exits.fault_of_the_machine(error) if isinstance(error, OSError) else None
        if fault is not None:
            reporter.event("error", code=fault.code, message=fault.message, remedy=fault.remedy)
            return fault.exit_code
        logging.getLogger(__name__).exception("crashed")
        remedy = f"this is a bug; the traceback is in {log_path}"
        reporter.event("error", code=MurmurationError.code, message=f"{type(error).__name__}: {error}", remedy=remedy)
        return MurmurationError.exit_code
    return 0


def init(
    directory: Path = HERE,
    *,
    name: str = "my-run",
    peers: int = 5,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    config: ConfigPath = None,
    json: Json = False,
) -> int:
    """Write an annotated run manifest and a settings file into DIRECTORY, and create this peer's identity.

    Parameters
    ----------
    directory
        Where to write run.toml and peer.toml. Nothing is overwritten.
    name
        Name people know the run by.
    peers
        Peers that must have joined before training starts; 3 or more.
    """
    from peer.init import create, next_steps

    identity = create(directory, data_dir, name=name, peers=peers)
    if json:
        print_json({"peer": str(identity.peer_id), "directory": str(directory), "data_dir": str(data_dir)})
    else:
        print(next_steps(directory, data_dir, identity))
    return 0


def identity(
    *,
    run: RunFile = DEFAULT_RUN,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    config: ConfigPath = None,
    json: Json = False,
) -> int:
    """Show who this peer is, on the network and on a chain, and which run the manifest is. Makes the key if needed."""
    from dht.identity import Identity
    from peer.init import key_text
    from peer.manifest import Manifest

    peer_id = Identity.load_or_create(data_dir / "identity.key").peer_id
    rows = {"peer": str(peer_id), "key_address": key_text(peer_id)}
    if run.exists():
        rows["run_id"] = Manifest.load(run).run_id.hex()
    if json:
        print_json(rows)
    else:
        for name, value in rows.items():
            print(f"{name.replace('_', ' '):<12} {value}")
    return 0


def plan(
    *,
    run: RunFile = DEFAULT_RUN,
    peers: int = 0,
    line: float = 20.0,
    latency: float = 0.1,
    tokens_per_second: float = 0.0,
    config: ConfigPath = None,
    json: Json = False,
) -> int:
    """Say what a run will cost this peer before it joins: bytes a round, seconds on a line, memory.

    Parameters
    ----------
    peers
        Peers of the run; by default the manifest's genesis_peers.
    line
        Mbit/s of the slower direction of the line.
    latency
        Seconds of a round trip to the other peers.
    tokens_per_second
        What this machine trains, if known (run-peer status shows it): then the share of the time that trains is said.
    """
    from peer.estimate import needs
    from peer.manifest import Manifest
    from peer.plan import describe
    from peer.plan import plan as make

    if line <= 0 or latency < 0 or peers < 0 or tokens_per_second < 0:
        raise ConfigError("line must be positive, the other numbers not negative", remedy="run-peer plan --help")
    manifest = Manifest.load(existing(run))
    size = needs(manifest)
    if not size.trained:
        raise ConfigError("the model's size is not known", remedy="check [model] in the manifest")
    found = make(
        manifest,
        size.parameters,
        size.shared,
        size.bytes,
        peers=peers or manifest.run.genesis_peers,
        line_mbit=line,
        latency=latency,
        tokens_per_second=tokens_per_second or None,
    )
    if json:
        print_json(found.facts())
    else:
        print(describe(found))
    return 0


def status(*, data_dir: DataDir = DEFAULT_DATA_DIR, config: ConfigPath = None, json: Json = False) -> int:
    """Show what the peer of a data folder is doing, or did last. Exit code 69 when it does not run."""
    from dataclasses import asdict

    from peer.events import plain
    from peer.status import describe, is_alive, read

    snapshot = read(data_dir / "status.json")
    alive = is_alive(snapshot)
    if json:
        print_json({**plain(asdict(snapshot)), "alive": alive})
    else:
        print(describe(snapshot, alive=alive, now=time.time()))
    return 0 if alive else UnreachableError.exit_code


def doctor(config: Annotated[PeerConfig | None, Parameter(name="*")] = None) -> int:
    """Check what could keep this peer from running, with causes and remedies. Exit code 1 if a check fails."""
    from peer.doctor import as_json, describe, examine

    config = config or PeerConfig()
    findings = examine(config)
    if config.json:
        print_json(as_json(findings))
    else:
        print(describe(findings))
    return int(any(finding.verdict == "fail" for finding in findings))


def export(
    directory: Path,
    *,
    merge: Annotated[bool, Parameter(negative=())] = False,
    common: Annotated[bool, Parameter(negative=())] = False,
    license: str = "",
    language: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    dataset: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    run: RunFile = DEFAULT_RUN,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    config: ConfigPath = None,
    json: Json = False,
) -> int:
    """Write the last certified model as a folder that AutoModelForCausalLM.from_pretrained loads.

    Parameters
    ----------
    directory
        Where to write it: a new or empty folder.
    merge
        Write the whole model with the run's adapter added in, instead of the adapter alone.
    common
        Leave out the parameters that are this peer's own ([personal] in the manifest).
    license
        The model card's license, as the Hugging Face hub calls it: apache-2.0, for instance.
    language
        A language of the texts for the model card, as an ISO 639 code. Repeat for more.
    dataset
        A dataset of the hub for the model card. Repeat for more.
    """
    from peer.certified import newest, own_parameters
    from peer.export import export as write_model
    from peer.manifest import Manifest
    from peer.modelcard import Declared

    manifest = Manifest.load(existing(run))
    state, facts = newest(data_dir, manifest)
    facts = replace(facts, declared=Declared(license, language, dataset))
    personal = None if common else own_parameters(data_dir, manifest)
    write_model(directory, state, manifest, facts, merge=merge, personal=personal)
    if json:
        print_json({"directory": str(directory), "round": facts.round, "root": facts.root.hex()})
    else:
        print(f"round {facts.round} of {manifest.run.name} is in {directory}")
    return 0


def existing(run: Path) -> Path:
    """The manifest's path. Raises ConfigError, saying where one comes from, when there is no such file."""
    if not run.exists():
        remedy = "ask the founder of the run for it and name it with --run, or write a new one: run-peer init"
        raise ConfigError(f"there is no run manifest {run}", remedy=remedy)
    return run


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    print(encode_json(value, indent=2))


if __name__ == "__main__":
    main()
