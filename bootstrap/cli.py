"""`run-bootstrap`: a DHT entry point and relay for a run's peers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from dht.logs import LogFormat

DEFAULT_PORT = 31337

app = App(
    name="run-bootstrap",
    help="A DHT entry point and relay for peers that train together. It sees no update and decides nothing.",
)


@app.default
def bootstrap(
    *,
    port: Annotated[int, Parameter(help="TCP port to listen on, on all addresses; 0 for any free one.")] = DEFAULT_PORT,
    listen: Annotated[
        tuple[str, ...], Parameter(help="Multiaddrs to listen on, instead of --port.", consume_multiple=True)
    ] = (),
    announce: Annotated[
        tuple[str, ...],
        Parameter(help="Multiaddrs under which others reach this machine, behind NAT.", consume_multiple=True),
    ] = (),
    join: Annotated[
        tuple[str, ...], Parameter(help="Other bootstrap servers to form one DHT with.", consume_multiple=True)
    ] = (),
    data_dir: Annotated[Path | None, Parameter(help="Folder that keeps the identity.")] = None,
    json: Annotated[bool, Parameter(negative="", help="One JSON object per line on stdout.")] = False,
    log_format: Annotated[LogFormat, Parameter(help="Form of the log on stderr.")] = "human",
    quiet: Annotated[bool, Parameter(negative="", help="Only warnings and errors on stderr.")] = False,
) -> int:
    """Run until SIGINT or SIGTERM.

    Prints the addresses to give to `run-peer --bootstrap`, one per line. The identity stays the same as long as
    the data folder does. A second Ctrl-C ends it at once.
    """
    from dht import logs
    from dht.addresses import parse
    from dht.errors import ConfigError

    logs.configure(log_format=log_format, quiet=quiet)
    if not 0 <= port < 65536:
        raise ConfigError(f"--port {port} is no port", remedy="0 to 65535")
    places = listen or (f"/ip4/0.0.0.0/tcp/{port}",)
    for address in (*places, *announce):
        parse(address, peer=False)
    for address in join:
        parse(address)
    return _run(places, announce, join, data_dir or _default_folder(), json)


def _run(
    listen: tuple[str, ...], announce: tuple[str, ...], join: tuple[str, ...], data_dir: Path, as_json: bool
) -> int:
    import asyncio

    from bootstrap.server import Options, Ready, serve
    from dht.exits import until_stopped

    def on_ready(ready: Ready) -> None:
        if as_json:
            _emit({"event": "ready", "peer": str(ready.peer_id), "addresses": ready.addresses})
            return
        print("Give one of these lines to the peers (run-peer --bootstrap ADDRESS):", file=sys.stderr)
        for address in ready.addresses:
            print(address, flush=True)

    options = Options(data_dir, listen, announce, join)
    code = asyncio.run(until_stopped(lambda stop: serve(options, on_ready, stop)))
    if as_json:
        _emit({"event": "stopped"})
    return code


def _emit(event: dict[str, object]) -> None:
    print(json.dumps(event), flush=True)


def _default_folder() -> Path:
    from platformdirs import user_data_path

    return user_data_path("murmuration", appauthor=False) / "bootstrap"


def main() -> None:
    """Entry point of the console command."""
    from dht.exits import run

    run(app, as_json="--json" in sys.argv)


if __name__ == "__main__":
    main()
