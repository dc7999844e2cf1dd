"""Peak resident memory of a peer: `python -m benchmarks.memory [--models 256x4,448x4,640x6] [--peers 4] [--rounds 4]`.

Real `run-peer` processes train a Llama (hidden size x layers) in float32 with AdamW and average it for some rounds.
`peak_mb` is the largest VmHWM among the peers, as the kernel counts it: shared libraries (`library_mb` of it) and the
pages of mapped files included. The libp2p daemon beside each peer has a column of its own. The aim is at most six
times the parameters in float32 plus 400 MB. Megabytes are 10^6 bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import report
from dht.identity import Identity
from peer.corpus import Corpus
from peer.demo.processes import Swarm
from peer.demo.swarm import child_environment
from peer.manifest import Cohort, Deadlines, Manifest, Model, Train

BATCH_SIZE, SEQUENCE_LENGTH, LOCAL_STEPS = 4, 64, 3
PATIENCE = 900.0
AIM_FACTOR, AIM_BASE_MB = 6, 400.0
_DEADLINES = Deadlines(join=30.0, shares=30.0, train=300.0, upload=60.0, survivors=30.0, unmask=30.0, sums=60.0)


def llama(hidden: int, layers: int) -> Model:
    """The [model] section of a byte-level Llama."""
    sizes = {"hidden_size": hidden, "intermediate_size": 8 * hidden // 3, "num_hidden_layers": layers}
    shape = {"num_attention_heads": hidden // 64, "max_position_embeddings": 512, "tie_word_embeddings": True}
    tokens = {"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
    return Model(config={"model_type": "llama", **sizes, **shape, **tokens}, seed=20)


def count_parameters(model: Model) -> int:
    """Trained parameters, without making them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(model.config)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    return sum(parameter.numel() for parameter in made.parameters())


class Watcher:
    """Largest memory figures of each process of the swarm, in MB, read from /proc until it is stopped."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self.peaks: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    async def run(self) -> None:
        """Look ten times a second; VmHWM itself forgets nothing in between."""
        while True:
            for name, child in self._swarm.children.items():
                for what, path in self._files(child.process.pid):
                    with suppress(OSError, ProcessLookupError):
                        for field, value in self._read(path):
                            key = f"{what} {field}"
                            self.peaks[name][key] = max(self.peaks[name][key], value)
            await asyncio.sleep(0.1)

    def _files(self, pid: int) -> Iterator[tuple[str, Path]]:
        yield "peer", Path(f"/proc/{pid}/status")
        with suppress(psutil.Error):
            for one in psutil.Process(pid).children(recursive=True):
                if one.name() == "p2pd":
                    yield "p2pd", Path(f"/proc/{one.pid}/status")

    def _read(self, path: Path) -> Iterator[tuple[str, float]]:
        for line in path.read_text().splitlines():
            field, _, value = line.partition(":")
            if field in ("VmHWM", "RssAnon", "RssFile", "RssShmem"):
                yield field, int(value.split()[0]) * 1024 / 1e6


async def measure(model: Model, peers: int, rounds: int, folder: Path) -> dict[str, Any]:
    """One row: a swarm with this model."""
    shards = Corpus.build().write(folder / "text", peers)
    homes = [folder / f"peer-{index}" for index in range(peers)]
    identities = [Identity.load_or_create(home / "identity.key") for home in homes]
    manifest = Manifest.demo(
        str(identities[0].peer_id),
        name="memory",
        genesis_peers=peers,
        model=model,
        train=Train(
            local_steps=LOCAL_STEPS,
            tokens_per_round=LOCAL_STEPS * BATCH_SIZE * SEQUENCE_LENGTH,
        ),
        cohort=Cohort(minimum=peers, target=max(8, peers), deadlines=_DEADLINES),
    )
    (folder / "run.toml").write_text(manifest.dumps())
    finished: dict[str, Mapping[str, Any]] = {}
    swarm = Swarm(lambda name, event: _note(finished, name, event), child_environment(folder), folder)
    async with swarm:
        watcher = Watcher(swarm)
        watching = asyncio.create_task(watcher.run())
        address = await _bootstrap(swarm, folder)
        for home, shard in zip(homes, shards, strict=True):
            await swarm.start(home.name, _command(folder, home, shard, address, rounds))
        names = {home.name for home in homes}
        if not await swarm.wait_for(lambda: names <= set(finished) or bool(_failed(finished)), PATIENCE):
            raise TimeoutError(f"the swarm did not finish {rounds} rounds in {PATIENCE:.0f} s")
        if failed := _failed(finished):
            raise RuntimeError(f"{failed} ended early:\n{swarm.children[failed].words()}")
        watching.cancel()
    return _row(model, peers, rounds, [watcher.peaks[name] for name in sorted(names)])


def _note(finished: dict[str, Mapping[str, Any]], name: str, event: Mapping[str, Any]) -> None:
    if event["event"] == "ended":
        finished[name] = event


def _failed(finished: Mapping[str, Mapping[str, Any]]) -> str:
    return next((name for name, event in finished.items() if event["code"] != 0), "")


async def _bootstrap(swarm: Swarm, folder: Path) -> str:
    options = ["--listen", "/ip4/127.0.0.1/tcp/0", "--data-dir", str(folder / "bootstrap")]
    child = await swarm.start("bootstrap", [sys.executable, "-m", "bootstrap.cli", "--json", *options])
    if not await swarm.wait_for(lambda: "ready" in child.last, 120.0):
        raise TimeoutError(f"run-bootstrap did not start:\n{child.words()}")
    return str(child.last["ready"]["addresses"][0])


def _command(folder: Path, home: Path, shard: Path, address: str, rounds: int) -> list[str]:
    options = {
        "--run": folder / "run.toml",
        "--bootstrap": address,
        "--data": shard,
        "--data-dir": home,
        "--listen": "/ip4/127.0.0.1/tcp/0",
        "--device": "cpu",
        "--batch-size": BATCH_SIZE,
        "--threads": 1,
        "--rounds": rounds,
    }
    flags = (str(part) for pair in options.items() for part in pair)
    return [sys.executable, "-m", "peer.cli", "--json", *flags]


def _row(model: Model, peers: int, rounds: int, peaks: list[dict[str, float]]) -> dict[str, Any]:
    parameters = count_parameters(model)
    mine = parameters * 4 / 1e6
    peak, aim = max(one["peer VmHWM"] for one in peaks), AIM_FACTOR * mine + AIM_BASE_MB
    return {
        "parameters": parameters,
        "peers": peers,
        "rounds": rounds,
        "parameters_mb": mine,
        "peak_mb": peak,
        "aim_mb": aim,
        "ratio_to_aim": peak / aim,
        "times_parameters_over_400_mb": (peak - AIM_BASE_MB) / mine,
        "private_mb": max(one["peer RssAnon"] for one in peaks),
        "library_mb": max(one["peer RssFile"] for one in peaks),
        "shared_mb": max(one["peer RssShmem"] for one in peaks),
        "p2pd_mb": max(one["p2pd VmHWM"] for one in peaks),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="256x4,448x4,640x6")
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    rows = []
    for shape in arguments.models.split(","):
        hidden, layers = map(int, shape.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            rows.append(asyncio.run(measure(llama(hidden, layers), arguments.peers, arguments.rounds, Path(folder))))
        print(f"{shape}: {rows[-1]['peak_mb']:.0f} MB", file=sys.stderr)
    report("memory", rows, title="peak memory of a peer")


if __name__ == "__main__":
    main()
