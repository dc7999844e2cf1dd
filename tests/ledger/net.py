"""A devnet of its own whose attestors are the world's peers, and commands against it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dht.identity import Identity
from ledger import signatures
from ledger.books import Books
from ledger.chain.rpc import RpcPool
from ledger.checkpoint import NOTHING, Checkpoint
from ledger.eip712 import Domain
from ledger.explorer import cli, wiring
from ledger.explorer.people import text_address
from ledger.indexer.abi import Interface
from ledger.rewards import Constants
from ledger.tally import EpochTally
from tests.ledger.fake_chain import RUN
from tests.ledger.world import IDENTITIES, PEERS, World

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Net:
    """A devnet of its own whose attestors are the world's peers, and how to run commands against it."""

    ready: dict[str, Any]
    folder: Path
    world: World
    capsys: Any = None

    @property
    def url(self) -> str:
        return str(self.ready["rpc"][0])

    @property
    def domain(self) -> Domain:
        return Domain(self.ready["chain_id"], bytes.fromhex(self.ready["contracts"]["CheckpointHub"][2:]))

    def keystore(self, number: int) -> str:
        return str(self.ready["accounts"][number]["keystore"])

    def wallet(self, number: int) -> str:
        return str(self.ready["accounts"][number]["address"]).lower()

    def rpc(self, method: str, *params: Any) -> Any:
        async def ask() -> Any:
            async with RpcPool([self.url]) as pool:
                return await pool.call(method, params)

        return asyncio.run(ask())

    def view(self, contract: str, name: str, *values: Any) -> Any:
        """What a view function says now."""
        data = self.world.interface.call(contract, name, *values)
        call = {"to": self.ready["contracts"][contract], "data": f"0x{data.hex()}"}
        return self.world.interface.result(contract, name, bytes.fromhex(self.rpc("eth_call", call, "latest")[2:]))

    def send(self, number: int, contract: str, data: bytes) -> None:
        async def work() -> None:
            async with RpcPool([self.url], self.ready["chain_id"]) as pool:
                found = wiring.read_deployment(Path(self.ready["deployment"])).deployment
                password = self.folder / "password"
                async with wiring.open_sender(pool, found, Path(self.keystore(number)), password) as sender:
                    await sender.send(found.contracts[contract], data)

        asyncio.run(work())

    def run(self, *arguments: str, by: int | None = None) -> tuple[int, str, str]:
        """A command over this devnet, in this process: exit code, stdout, stderr. Options that are given stand."""
        options = {"--deployment": self.ready["deployment"], "--index": str(self.folder / "index.db")}
        options |= {"--records": str(self.world.folder), "--run": str(self.folder / "run.toml")}
        if by is not None:
            options |= {"--keystore": self.keystore(by), "--password-file": str(self.folder / "password")}
        more = [word for name, value in options.items() if name not in arguments for word in (name, value)]
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, *more])
        said = self.capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err


@contextmanager
def running_net(folder: Path, interface: Interface) -> Iterator[Net]:
    """`devnet up` with the embedded chain, in an empty folder, until the block ends."""
    attestors = [word for peer in PEERS for word in ("--attestor", text_address(peer))]
    command = [sys.executable, "-m", "ledger.explorer.cli", "devnet", "up", "--json"]
    options = ("--chain=embedded", "--port=0", f"--data-dir={folder / 'net'}", f"--run-id={RUN.hex()}")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *options, *attestors],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline() or json.dumps((folder / "log").read_text()))
        (folder / "password").write_text("devnet\n")
        (folder / "run.toml").write_text(
            f'[run]\nfounder = "{PEERS[0]}"\n[ledger]\nrounds_per_checkpoint = 3\ntokens_bps = 8000\n'
        )
        yield Net(ready, folder, World(folder / "peer", interface))
    finally:
        process.terminate()
        process.wait(20)
        if process.stdout is not None:
            process.stdout.close()


def identity_file(folder: Path, identity: Identity) -> str:
    path = folder / f"{identity.peer_id.short}.key"
    path.touch(mode=0o600)
    path.write_bytes(identity.protobuf())
    return str(path)


def checkpoint(
    net: Net, epoch: int = 1, parent: bytes = NOTHING, fees: tuple[int, ...] = ()
) -> tuple[Checkpoint, EpochTally]:
    """The world's next epoch as this devnet's hub takes it, and the tally behind it. `fees`: of epochs 1, 2, ..."""
    emission, cap = net.view("RewardPool", "emission"), net.view("RewardPool", "mostEmitted")
    while net.world.records.head.round < 3 * epoch:
        net.world.train()
    net.world.save(3 * epoch)
    books = Books(Constants(3, emission, cap, 8000, 1))
    made = books.contents(net.world.records, epoch, fees).checkpoint(0, parent)
    return made, books.tally(net.world.records, epoch, fees)


def propose(net: Net, made: Checkpoint) -> None:
    """Put a checkpoint on the chain, signed by a quorum."""
    signed = {place: signatures.sign(IDENTITIES[place], made.digest(net.domain)) for place in (0, 1, 2, 4)}
    bitmap, rvs = signatures.pack(signed)
    net.send(1, "CheckpointHub", net.world.interface.call("CheckpointHub", "propose", made.abi(), bitmap, list(rvs)))
