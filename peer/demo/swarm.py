"""The demo's script: start a swarm, kill one peer in the middle of a round, bring it back, compare everyone's root."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dht.errors import MurmurationError
from dht.identity import Identity
from peer.corpus import Corpus
from peer.demo.anchoring import Anchoring
from peer.demo.processes import Child, Swarm
from peer.demo.tracker import MIDDLE_OF_A_ROUND, Death, Losses, Tracker
from peer.manifest import Cohort, Deadlines, LedgerChoice, Manifest, Train

Report = Callable[[str, Mapping[str, Any]], None]
BATCH_SIZE = 8
SEQUENCE_LENGTH = 128
ROUNDS = 11
LOCAL_STEPS = 10
KILL_IN_ROUND = 2
STARTUP_SECONDS = 120.0
SWARM_SECONDS = 600.0
STOP_SECONDS = 5.0
CHECKPOINT_ROUNDS = 3
NICE = ("nice", "-n", "5")
SCRIPT = "demo"
"""The name under which the script itself reports."""


class DemoError(MurmurationError):
    """The swarm did not do what the demo shows."""

    code = "MUR-900"
    exit_code = 1


@dataclass
class Plan:
    """How big, how long, and where."""

    folder: Path
    peers: int = 6
    rounds: int = ROUNDS
    local_steps: int = LOCAL_STEPS
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.names = tuple(f"peer-{index + 1}" for index in range(self.peers))

    @property
    def run_file(self) -> Path:
        """The manifest that all share."""
        return self.folder / "run.toml"

    def home(self, name: str) -> Path:
        """Data folder of one process."""
        return self.folder / name

    def shard(self, index: int) -> Path:
        """Text of one peer."""
        return self.folder / "text" / f"shard-{index}"

    @property
    def victim(self) -> str:
        """Who is killed: the last one, never the founder."""
        return self.names[-1]

    @property
    def steps(self) -> int:
        """Inner steps that each peer takes, and the one that trains alone as well."""
        return self.rounds * self.local_steps


def prepare(plan: Plan) -> Manifest:
    """Write text, identities and manifest. Peer 1 is the founder."""
    shards = Corpus.build().write(plan.folder / "text", plan.peers)
    heldout = plan.folder / "text" / "heldout"
    for shard in shards:
        # The manifest's rule finds held-out files by the hash of their path: everyone measures on the same ones.
        for file in (path for path in heldout.rglob("*") if path.is_file()):
            copy = shard / file.relative_to(heldout)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.hardlink_to(file)
    identities = [Identity.load_or_create(plan.home(name) / "identity.key") for name in plan.names]
    tokens = plan.local_steps * BATCH_SIZE * SEQUENCE_LENGTH
    manifest = Manifest.demo(
        str(identities[0].peer_id),
        genesis_peers=plan.peers,
        train=Train(local_steps=plan.local_steps, tokens_per_round=tokens, warmup=10),
        cohort=Cohort(minimum=min(5, plan.peers - 1), target=max(8, plan.peers), deadlines=DEADLINES),
        ledger=LedgerChoice(rounds_per_checkpoint=CHECKPOINT_ROUNDS),
    )
    plan.run_file.write_text(manifest.dumps())
    return manifest


# The dead are waited for until training and upload are due, so these two are what a kill costs. A peer too slow for
# them trains fewer steps.
DEADLINES = Deadlines(join=3.0, shares=10.0, train=14.0, upload=6.0, survivors=4.0, unmask=4.0, sums=8.0, commit=3.0)


def child_environment(folder: Path) -> dict[str, str]:
    """What every child gets: this source tree, one thread, no network, and no folder beyond the demo's own."""
    home = str(Path(__file__).resolve().parents[2])
    places = {"XDG_DATA_HOME": str(folder / "data"), "XDG_CACHE_HOME": str(folder / "cache")}
    return places | {"PYTHONPATH": home, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


class Demo:
    """One run of the demo. `report` gets every event of every child, and the script's own."""

    def __init__(self, plan: Plan, tracker: Tracker, report: Report) -> None:
        self.plan, self.tracker = plan, tracker
        self.swarm = Swarm(self._on_event, child_environment(plan.folder), plan.folder)
        self._report = report
        self._dying: Death | None = None
        self._losses: list[float] = []
        homes = [plan.home(name) for name in plan.names]
        self._anchoring = Anchoring(plan.folder, homes, plan.run_file, self._finish, tracker)

    async def run(self) -> tuple[Losses, str]:
        """Play the script; returns the losses and a sample of text. Raises DemoError when the swarm fails."""
        plan = self.plan
        self._say("preparing", text="Python's standard library as training text, one shard per peer")
        manifest = prepare(plan)
        async with self.swarm:
            self._say("starting", text=f"starting a chain, a bootstrap, {plan.peers} peers, and one that trains alone")
            await self._chain(manifest)
            _, address = await asyncio.gather(self._anchoring.enrol(), self._bootstrap())
            for index in range(plan.peers):
                await self._peer(index, address)
            arguments = (plan.run_file, plan.shard(0), plan.steps, BATCH_SIZE)
            await self._module("alone", "peer.demo.models", "alone", *arguments, nice=True)
            await self._kill_in_a_round(address)
            await self._until(
                lambda: self.tracker.back_in is not None or self._stranded(), f"{plan.victim} did not come back"
            )
            if self.tracker.back_in is None:
                raise DemoError(
                    f"round {plan.rounds} was over before {plan.victim} was back", remedy="take more --rounds"
                )
            self._say("back", peer=plan.victim, round=self.tracker.back_in)
            await self._until(self._all_left, "not every peer got to the last round")
            result = await self._judge()
            self._say("anchored", text="recomputing every checkpoint, claiming a reward, slashing a liar")
            self._say("settled", text=await self._anchoring.judge())
            await self.swarm.stop("bootstrap", STOP_SECONDS)
            await self.swarm.stop("chain", STOP_SECONDS)
            return result

    async def _chain(self, manifest: Manifest) -> None:
        """Start a chain with the run's contracts, and a wallet for each peer."""
        child = await self._module("chain", "ledger.explorer.cli", *self._anchoring.command(manifest.run_id))
        await self._until(lambda: "ready" in child.last, "the chain did not start", STARTUP_SECONDS)
        ready = child.last["ready"]
        self._anchoring.ready(ready)
        self._say("chain", text=f"{ready['kind']} chain {ready['chain_id']} with the run's contracts")

    async def _bootstrap(self) -> str:
        """Start run-bootstrap; returns its address."""
        options = ("--listen", "/ip4/127.0.0.1/tcp/0", "--data-dir", self.plan.home("bootstrap"))
        child = await self._module("bootstrap", "bootstrap.cli", "--json", *options)
        await self._until(lambda: "ready" in child.last, "run-bootstrap did not start", STARTUP_SECONDS)
        return str(child.last["ready"]["addresses"][0])

    async def _peer(self, index: int, address: str) -> Child:
        name = self.plan.names[index]
        options: dict[str, object] = {
            "--run": self.plan.run_file,
            "--bootstrap": address,
            "--data": self.plan.shard(index),
            "--data-dir": self.plan.home(name),
            "--listen": "/ip4/127.0.0.1/tcp/0",
            "--device": "cpu",
            "--batch-size": BATCH_SIZE,
            "--threads": 1,
            "--seed": index,
            "--rounds": self.plan.rounds,
            **self._anchoring.options(index),
        }
        return await self._module(name, "peer.cli", "--json", *(part for pair in options.items() for part in pair))

    async def _module(self, name: str, module: str, *arguments: object, nice: bool = False) -> Child:
        command = [*(NICE if nice else ()), sys.executable, "-m", module, *map(str, arguments)]
        return await self.swarm.start(name, command)

    async def _kill_in_a_round(self, address: str) -> None:
        """Wait until the victim was killed in the middle of a round, and start it again.

        The kill itself happens in `_on_event`. If the round got done nevertheless, the next one is tried.
        """
        victim = self.plan.victim
        while self.tracker.death is None:
            await self._until(lambda: victim in self.tracker.ended, "no round got as far as its uploads")
            death, self._dying = self._dying, None
            if death is not None and self.tracker.last_round(victim) < death.round:
                self.tracker.death = death
                self._say("killed", peer=victim, round=death.round, step=death.step)
            await self._peer(self.plan.names.index(victim), address)

    def _on_event(self, name: str, event: Mapping[str, Any]) -> None:
        if name == self.plan.victim and self._is_the_moment(event):
            # At once, in the reader's own turn: the end of a round goes by in tens of milliseconds.
            self._dying = Death(int(event["round"]), str(event["step"]))
            self.swarm.children[name].signal(signal.SIGKILL, group=True)
        if name == "alone" and event["event"] == "loss":
            self._losses.append(float(event["heldout_loss"]))
        self.tracker.take(name, event)
        self._report(name, event)

    def _is_the_moment(self, event: Mapping[str, Any]) -> bool:
        ready = self.tracker.death is None and self._dying is None
        return (
            ready
            and event["event"] == "step"
            and event["round"] >= KILL_IN_ROUND
            and event["step"] in MIDDLE_OF_A_ROUND
        )

    def _say(self, event: str, **fields: object) -> None:
        self._report(SCRIPT, {"event": event, **fields})

    def _stranded(self) -> bool:
        """Whether the victim is the only one left."""
        return set(self.plan.names) - set(self.tracker.ended) <= {self.plan.victim}

    def _all_left(self) -> bool:
        return set(self.tracker.ended) == set(self.plan.names)

    async def _judge(self) -> tuple[Losses, str]:
        """Export the founder's model as a user would, and measure it as a stranger would."""
        self._say("judging", text="exporting the model and measuring it")
        model = self.plan.folder / "model"
        home = self.plan.home(self.plan.names[0])
        await self._finish("export", "peer.cli", "export", model, "--run", self.plan.run_file, "--data-dir", home)
        judge = await self._finish("judge", "peer.demo.models", "judge", self.plan.run_file, self.plan.shard(0), model)
        await self._until(lambda: len(self._losses) == 2, "the peer that trains alone did not finish")
        verdict = judge.last["judged"]
        return Losses(self._losses[0], float(verdict["heldout_loss"]), self._losses[1]), str(verdict["sample"])

    async def _finish(self, name: str, module: str, *arguments: object) -> Child:
        child = await self._module(name, module, *arguments)
        await self._until(lambda: "ended" in child.last, f"{name} did not finish")
        return child

    async def _until(self, condition: Callable[[], bool], complaint: str, seconds: float = SWARM_SECONDS) -> None:
        """Wait for `condition`. Raises DemoError when it takes too long, or when a process fails meanwhile."""
        came = await self.swarm.wait_for(lambda: bool(condition() or self._casualty()), seconds)
        if casualty := self._casualty():
            said = casualty.last.get("error", {})
            why = f": [{said.get('code')}] {said.get('message')}" if said else f"\n{casualty.words()}"
            raise DemoError(f"{casualty.name} ended with exit code {casualty.code}{why}")
        if not came:
            raise DemoError(f"{complaint} within {seconds:.0f} s")

    def _casualty(self) -> Child | None:
        """A process that failed without being killed by the script."""
        for child in self.swarm.children.values():
            murdered = child.name == self.plan.victim and self._dying is not None
            if "ended" in child.last and child.code != 0 and not murdered:
                return child
        return None
