"""`python -m ledger.embedded FOLDER`: the embedded chain as a process of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from dht import command_line

app = App(
    name="python -m ledger.embedded",
    help="An Ethereum chain in one process, on disk. No consensus.",
    result_action="return_value",
)


@app.default
def serve(
    folder: Path,
    *,
    chain_id: Annotated[int, Parameter(help="Its own chain id; fixed when the chain is founded.")] = 77_347,
    host: Annotated[str, Parameter(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="TCP port; 0 for any free one.")] = 0,
    alloc: Annotated[
        tuple[str, ...], Parameter(help="ADDRESS=WEI, funded when it is founded.", consume_multiple=True)
    ] = (),
    dev: Annotated[bool, Parameter(negative="", help="Let callers move time and history.")] = False,
    json: Annotated[bool, Parameter(negative="", help="Errors as JSON, too.")] = False,
) -> int:
    """Serve until SIGINT or SIGTERM. Prints {"rpc": URL, "chain_id": N} on stdout when it is ready."""
    from dht.exits import until_stopped

    return asyncio.run(until_stopped(lambda stop: _serve(stop, folder, chain_id, host, port, _read(alloc), dev)))


def _read(alloc: tuple[str, ...]) -> dict[bytes, int]:
    from dht.errors import ConfigError

    found = {}
    for entry in alloc:
        address, _, amount = entry.partition("=")
        try:
            key, found_wei = bytes.fromhex(address.removeprefix("0x")), int(amount)
        except ValueError:
            key, found_wei = b"", 0
        if len(key) != 20 or found_wei <= 0:
            raise ConfigError(f"--alloc {entry} is no allocation", remedy="ADDRESS=WEI")
        found[key] = found_wei
    return found


async def _serve(
    stop: asyncio.Event, folder: Path, chain_id: int, host: str, port: int, alloc: dict[bytes, int], dev: bool
) -> int:
    from ledger.embedded.node import serving

    async with serving(folder, chain_id=chain_id, alloc=alloc, host=host, port=port, dev=dev) as node:
        print(json.dumps({"rpc": node.url, "chain_id": chain_id}), flush=True)
        await stop.wait()
    return 0


def parse(argv: Sequence[str]) -> command_line.Call:
    """The call that the arguments ask for. Raises ConfigError."""
    return command_line.parse(app, argv, "python -m ledger.embedded --help lists all settings")


if __name__ == "__main__":
    command_line.main(parse, None)
