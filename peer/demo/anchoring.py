"""What the demo does with the ledger: a chain, two enrolled peers, and at the end a check, a claim and a slash."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dht.identity import Identity
from ledger.chain.deployments import DEVNET_FILE
from ledger.signatures import key_address
from peer.demo.processes import Child
from peer.demo.tracker import Tracker

STAKE = "1000"
WINDOW = 10
"""Seconds in which a checkpoint of the demo could be rolled back."""
RECOMPUTED = {"quorum", "records", "data root", "model root", "tally root", "hub"}
"""What must be found right of each checkpoint."""
_UNIT = 10**18

Start = Callable[..., Awaitable[Child]]
"""(name, module, *arguments): starts a child."""


class Anchoring:
    """The ledger's part of the demo. `finish` starts a child and waits for its end."""

    def __init__(self, folder: Path, homes: Sequence[Path], run_file: Path, finish: Start, tracker: Tracker) -> None:
        self._folder, self._homes, self._run_file = folder, homes, run_file
        self._finish, self._tracker = finish, tracker
        self._keystores: list[str] = []

    @property
    def file(self) -> Path:
        """Where the run's contracts are."""
        return self._folder / "chain" / DEVNET_FILE

    def command(self, run_id: bytes) -> tuple[object, ...]:
        """The arguments of a chain with the run's contracts, whose attestors are the founding peers."""
        attestors = [f"--attestor={key_address(Identity.load(key).peer_id).hex()}" for key in map(_key, self._homes)]
        place = ("--data-dir", self.file.parent, "--port", 0, "--run-id", run_id.hex(), "--window", WINDOW)
        accounts = ("--accounts", max(5, len(self._homes) + 1))
        # What every machine has; anvil has tests of its own.
        return ("devnet", "up", "--json", "--chain", "embedded", *place, *accounts, *attestors)

    def ready(self, event: Mapping[str, Any]) -> None:
        """The chain is up: remember who can pay for transactions."""
        self._keystores = [account["keystore"] for account in event["accounts"]]
        self._password.write_text(event["password"])

    def options(self, index: int) -> dict[str, object]:
        """What `run-peer` needs in order to anchor; each peer has a wallet of its own."""
        return {"--ledger": self.file, "--wallet": self._keystores[index + 1], "--wallet-password-file": self._password}

    async def enrol(self) -> None:
        """The first peer, so that it is paid into its wallet; and the second one, who will be sorry."""
        await asyncio.gather(*(self._spend(index, "enrol", STAKE, "--identity", self._key(index)) for index in (0, 1)))

    async def judge(self) -> str:
        """Recompute every checkpoint as anybody could, claim what the first peer earned, slash the second one.

        Returns what came of it in words.
        """
        evidence = self._folder / "two-checkpoints.evidence"
        await self._finish("liar", "peer.demo.liar", self._key(1), self.file, evidence)
        checked = [self._verify(epoch) for epoch in sorted(self._tracker.checkpoints)]
        earner = str(Identity.load(self._key(0)).peer_id)
        await asyncio.gather(
            *checked, self._spend(0, "rewards", "claim", earner), self._spend(2, "report", str(evidence))
        )
        self._tracker.claimed = await self._said("peers", lambda rows: _total(rows, "claimed"))
        self._tracker.slashed = await self._said("slashes", lambda rows: _total(rows, "amount"))
        earned, lost = (amount / _UNIT for amount in (self._tracker.claimed, self._tracker.slashed))
        names = [home.name for home in self._homes[:2]]
        return f"{names[0]} claimed {earned:,.2f} tokens; {names[1]} lost {lost:,.0f} of its stake of {STAKE}"

    async def _verify(self, epoch: int) -> None:
        child = await self._explorer(f"verify-{epoch}", "verify", epoch, "--json")
        findings = json.loads("\n".join(child.output))["findings"]
        # Not more: a peer keeps the model files of its last rounds only.
        if {finding["what"] for finding in findings if finding["verdict"] == "ok"} >= RECOMPUTED:
            self._tracker.verified.add(epoch)

    async def _spend(self, index: int, *command: str | Path) -> None:
        wallet = ("--keystore", self._keystores[index + 1], "--password-file", self._password)
        await self._explorer(f"{command[0]}-{index + 1}", *command, *wallet)

    async def _said(self, command: str, read: Callable[[Any], int]) -> int:
        child = await self._explorer(command, command, "--json")
        return read(json.loads("\n".join(child.output)))

    async def _explorer(self, name: str, *command: object) -> Child:
        where = ("--deployment", self.file, "--run", self._run_file, "--records", self._homes[0])
        # An index each: they run side by side.
        index = ("--index", self._folder / f"{name}.sqlite")
        return await self._finish(name, "ledger.explorer.cli", *command, *where, *index)

    def _key(self, index: int) -> Path:
        return _key(self._homes[index])

    @property
    def _password(self) -> Path:
        return self._folder / "password"


def _key(home: Path) -> Path:
    return home / "identity.key"


def _total(rows: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(int(row[name] or 0) for row in rows)
