"""A run of real peers on this machine: its manifest, what belongs to each peer, and what the peers reported."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path

from dht.identity import Identity
from peer.manifest import Codec, Cohort, Data, Deadlines, Manifest, Model, Train
from tests.fault.namespaces import Machines
from tests.fault.processes import Process, Swarm, last_words
from tests.fault.proxy import Proxies, Proxy, free_port

LIMITS = Deadlines(join=5.0, shares=20.0, train=8.0, upload=8.0, survivors=8.0, unmask=8.0, sums=8.0, commit=5.0)
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = {"model_type": "llama", "vocab_size": 257, "max_position_embeddings": 32, "tie_word_embeddings": True, **SIZES}


def make_manifest(founder: str, count: int, **changes: object) -> Manifest:
    """A small, quick run of so many peers with short deadlines."""
    parts: dict[str, object] = {
        "name": "fault",
        "genesis_peers": count,
        "model": Model(config=CONFIG, seed=1),
        "data": Data(sequence_length=16),
        "train": Train(local_steps=4, tokens_per_round=4 * 2 * 16, warmup=1),
        "cohort": Cohort(target=count, minimum=3, deadlines=LIMITS),
        "codec": Codec(chunk_elements=4096),
    }
    return Manifest.demo(founder, **{**parts, **changes})  # type: ignore[arg-type]


class Run:
    """The swarm, and what belongs to each peer by its number. With `proxies` every peer announces one of them; with
    `machines` each runs on its own, and the bootstrap server in their hub."""

    def __init__(
        self, folder: Path, swarm: Swarm, count: int, proxies: Proxies | None = None, machines: Machines | None = None
    ) -> None:
        self.folder, self.swarm, self.count, self.machines = folder, swarm, count, machines
        identities = [Identity.load_or_create(self.home(index) / "identity.key") for index in range(count)]
        self.ids = [str(identity.peer_id) for identity in identities]
        self.manifest = make_manifest(self.ids[0], count)
        (folder / "run.toml").write_text(self.manifest.dumps())
        self.proxies: list[Proxy] = [proxies.before(free_port()) for _ in range(count)] if proxies else []
        there = ("--listen", machines.place(-1)) if machines else ("--port", "0")
        home, prefix = str(folder / "boot"), machines.prefix(-1) if machines else ()
        self.bootstrap = swarm.start("bootstrap", "bootstrap.cli", *there, "--data-dir", home, prefix=prefix)
        swarm.wait("the bootstrap's address", lambda: bool(self.bootstrap.named("ready")), [self.bootstrap])
        self.address = self.bootstrap.named("ready")[0]["addresses"][0]
        self.peers = [self.start(index, nice=10) for index in range(count)]

    def home(self, index: int) -> Path:
        """Data folder of a peer."""
        home = self.folder / f"peer-{index}"
        home.mkdir(exist_ok=True)
        return home

    def start(self, index: int, nice: int = 0, skew: float = 0.0, version: str = "1", **changes: str) -> Process:
        """Start (or restart) a peer; `changes` replace its options. `skew`: how fast its clock is, in seconds."""
        text = self.folder / f"text-{index}.txt"
        if not text.exists():
            text.write_text(f"bird {index} minds its neighbours and the flock turns as one.\n" * 200)
        options = {"run": "run.toml", "data-dir": self.home(index), "data": text, "bootstrap": self.address}
        options |= {"listen": "/ip4/127.0.0.1/tcp/0", "batch-size": 2, "threads": 1, "device": "cpu"}
        if index < len(self.proxies):
            proxy = self.proxies[index]
            options["listen"] = f"/ip4/127.0.0.1/tcp/{proxy.target}"
            options["announce"] = f"/ip4/127.0.0.1/tcp/{proxy.port}"
        prefix: tuple[str, ...] = ()
        if self.machines is not None:
            options["listen"], prefix = self.machines.place(index), self.machines.prefix(index)
        options |= {name.replace("_", "-"): value for name, value in changes.items()}
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        if self.proxies:
            arguments.append("--no-direct")  # past libp2p would be past the proxies
        if skew or version != "1":
            arguments = [str(skew), version, "peer.cli", *arguments]
            return self.swarm.start(f"peer-{index}", "tests.fault.skewed", *arguments, nice=nice, prefix=prefix)
        arguments = [str(self._doom(index)), "peer.cli", *arguments]
        return self.swarm.start(f"peer-{index}", "tests.fault.mortal", *arguments, nice=nice, prefix=prefix)

    def _doom(self, index: int) -> Path:
        return self.folder / f"doom-{index}"

    def strikes_in(self, index: int, step: str, number: signal.Signals = signal.SIGKILL) -> None:
        """A peer gets this signal right after it has said that it is in a step, before it does anything there."""
        new = self._doom(index).with_suffix(".new")
        new.write_text(f'{number.name} "step":"{step}"')
        new.replace(self._doom(index))  # it never reads half of it

    def elsewhere(self) -> str:
        """An address that nobody listens at."""
        return f"/ip4/127.0.0.1/tcp/{free_port()}"

    def ended(self, process: Process, code: int, others: Sequence[Process] = ()) -> str:
        """Wait until a process has left with this exit code; what it said last."""
        self.swarm.wait(f"the end of {process.name}", lambda: process.code is not None, others)
        said = f"{process.named('error')[-1:]} {last_words(process)}"
        assert process.code == code, said
        return said

    def whole(self) -> None:
        """Wait until the newest round has all these peers as survivors: only then any one of them can be spared."""
        ids = {self.ids[index] for index in range(len(self.peers))}

        def is_whole() -> bool:
            heads = [max(peer.rounds().values(), key=lambda report: report["round"], default={}) for peer in self.peers]
            same = len({head.get("round") for head in heads}) == 1
            return same and all(set(head.get("survivors", ())) >= ids for head in heads)

        self.swarm.wait("a round with everybody", is_whole, self.peers)

    def comes_back(self, index: int) -> int:
        """Wait until a peer reports, itself, a round from now on in which it survived; its number."""
        now, peer = self.head(), self.peers[index]

        def found() -> list[int]:
            return [n for n, report in peer.rounds().items() if n > now and self.ids[index] in report["survivors"]]

        self.swarm.wait(f"a round with {peer.name}", lambda: bool(found()), self.peers)
        return found()[0]

    def others(self, index: int) -> list[Process]:
        return [peer for other, peer in enumerate(self.peers) if other != index]

    def pause(self, seconds: float, peers: Sequence[Process]) -> None:
        """Let the swarm go on for so long; AssertionError when one of these peers ends."""
        until = time.monotonic() + seconds
        self.swarm.wait("the time it takes", lambda: time.monotonic() >= until, peers)

    def head(self) -> int:
        """The newest round that anybody has reported."""
        return max((max(peer.rounds(), default=0) for peer in self.peers), default=0)

    def wait_for_rounds(self, count: int, peers: list[Process]) -> None:
        """Until each of these has reported so many certified rounds more than there are now."""
        goal = self.head() + count
        self.swarm.wait(f"round {goal}", lambda: all(max(peer.rounds(), default=0) >= goal for peer in peers), peers)

    def check_roots(self) -> None:
        """No two peers ever reported different outcomes of one round."""
        outcomes: dict[int, set[tuple[str, bool, tuple[str, ...]]]] = {}
        for process in self.swarm.all:
            for number, report in process.rounds().items():
                outcome = (report["root"], report["void"], tuple(report["survivors"]))
                outcomes.setdefault(number, set()).add(outcome)
        assert all(len(found) == 1 for found in outcomes.values()), outcomes

    def state_files(self) -> dict[int, dict[int, bytes]]:
        """Bytes of the certified states on disk now, by round and peer."""
        found: dict[int, dict[int, bytes]] = {}
        for index in range(self.count):
            for path in self.home(index).glob("state/*/rounds/[0-9]*/state.bin"):
                try:
                    found.setdefault(int(path.parent.name), {})[index] = path.read_bytes()
                except OSError:
                    continue  # two rounds are kept, and just now it was a third
        return found
