"""`run-bootstrap`: a DHT entry point and relay for a run's peers, and, if wanted, a chain for their ledger."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeAlias

from cyclopts import App, Group, Parameter

from dht import command_line
from dht.logs import LogFormat
from ledger.devnet import PASSWORD

if TYPE_CHECKING:
    from bootstrap.server import Options, Ready
    from ledger.devnet import Devnet

DEFAULT_PORT = 31337
DEFAULT_CHAIN_PORT = 8545
Chain: TypeAlias = Literal["none", "auto", "anvil", "embedded"]
CHAIN = Group("A chain for the run's ledger", sort_key=50)

app = App(
    name="run-bootstrap",
    help="A DHT entry point and relay for peers that train together. It sees no update and decides nothing.",
    version=command_line.version,
    result_action="return_value",
)


@app.default
def bootstrap(
    *,
    port: Annotated[int, Parameter(help="TCP port to listen on, on all addresses; 0 for any free one.")] = DEFAULT_PORT,
    listen: Annotated[
        tuple[str, ...],
        Parameter(help="Multiaddrs to listen on, instead of --port.", consume_multiple=True, negative=""),
    ] = (),
    announce: Annotated[
        tuple[str, ...],
        Parameter(
            help="Multiaddrs under which others reach this machine, behind NAT.", consume_multiple=True, negative=""
        ),
    ] = (),
    join: Annotated[
        tuple[str, ...],
        Parameter(help="Other bootstrap servers to form one DHT with.", consume_multiple=True, negative=""),
    ] = (),
    data_dir: Annotated[Path | None, Parameter(help="Folder that keeps the identity, and the chain.")] = None,
    chain: Annotated[
        Chain,
        Parameter(
            group=CHAIN,
            help="Start one on this machine with the contracts deployed. auto: anvil if it is found, else embedded: "
            "one process, no consensus.",
        ),
    ] = "none",
    chain_port: Annotated[
        int, Parameter(group=CHAIN, help="TCP port of its RPC on 127.0.0.1; 0 for any free one.")
    ] = DEFAULT_CHAIN_PORT,
    run_id: Annotated[str, Parameter(group=CHAIN, help="32 bytes as hex: the run that the contracts are for.")] = "",
    attestor: Annotated[
        tuple[str, ...],
        Parameter(group=CHAIN, negative="", help="Key address that attests; again for more."),
    ] = (),
    json: Annotated[bool, Parameter(negative="", help="One JSON object per line on stdout.")] = False,
    log_format: Annotated[LogFormat, Parameter(help="Form of the log on stderr.")] = "human",
    quiet: Annotated[bool, Parameter(negative="", help="Only warnings and errors on stderr.")] = False,
) -> int:
    """Run until SIGINT or SIGTERM.

    Prints the addresses to give to `run-peer --bootstrap`, one per line. The identity stays the same as long as
    the data folder does. A second Ctrl-C ends it at once.
    """
    from bootstrap.server import Options
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
    if not 0 <= chain_port < 65536:
        raise ConfigError(f"--chain-port {chain_port} is no port", remedy="0 to 65535")
    if chain == "none" and (run_id or attestor):
        raise ConfigError("--run-id and --attestor are for a chain", remedy="add --chain auto")
    from ledger.devnet import contract_terms

    run, weights = contract_terms(run_id, attestor)
    folder = data_dir or _default_folder()
    terms = {"kind": chain, "port": chain_port, "run_id": run, "attestors": weights}
    return _run(Options(folder, places, announce, join), None if chain == "none" else terms, json)


def _run(options: Options, terms: dict[str, Any] | None, as_json: bool) -> int:
    import asyncio

    from bootstrap.server import serve
    from dht.exits import until_stopped

    async def work(stop: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            network = None
            if terms is not None:
                from ledger.devnet import devnet

                # Nobody may move its clock: others than the one who started it rely on it.
                network = await stack.enter_async_context(devnet(options.data_dir / "chain", dev=False, **terms))
            await serve(options, lambda ready: _announce(ready, network, as_json), stop)

    code = asyncio.run(until_stopped(work))
    if as_json:
        _emit({"event": "stopped"})
    return code


def _announce(ready: Ready, network: Devnet | None, as_json: bool) -> None:
    if as_json:
        event: dict[str, object] = {"event": "ready", "peer": str(ready.peer_id), "addresses": ready.addresses}
        _emit(event | {"chain": network.to_json() if network else None})
        return
    print("Give one of these lines to the peers (run-peer --bootstrap ADDRESS):", file=sys.stderr)
    for address in ready.addresses:
        print(address, flush=True)
    if network is not None:
        chain = network.deployment
        kind = "embedded chain (one process, no consensus)" if network.kind == "embedded" else network.kind
        print(f"{kind} {chain.chain_id} at {chain.rpc[0]}: run-peer --ledger {network.file}", file=sys.stderr)
        keystores = network.file.parent / "accounts"
        print(f"Funded wallets for --wallet are in {keystores}; their password is {PASSWORD!r}.", file=sys.stderr)


def _emit(event: dict[str, object]) -> None:
    print(json.dumps(event), flush=True)


def _default_folder() -> Path:
    from platformdirs import user_data_path

    return user_data_path("murmuration", appauthor=False) / "bootstrap"


def parse(argv: Sequence[str]) -> command_line.Call:
    """The call that the arguments ask for. Raises ConfigError."""
    return command_line.parse(app, argv, "run-bootstrap --help lists all settings")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the console script."""
    command_line.main(parse, argv)


if __name__ == "__main__":
    main()
