"""How much of the time a peer trains: `python -m benchmarks.utilization [--rounds 60] [--line 20] [--delay 100]`.

Five peers in one process: the product's Participant, Driver and learner each, behind simulated lines (`line.py`:
20 Mbit/s up and down, 100 ms each way). Blocking and overlapped rounds, one after the other, with the same data,
seeds and local steps, until the same number of tokens is certified: the settings of the convergence table's home line,
whose learning rate has come to its end by then. Then overlapped ones again, for as long as the blocking ones took.

The peers share this machine's cores, where in earnest each has an accelerator. So that the line and not the cores is
what a round waits for, each step also sleeps `--floor` seconds, which stand for the accelerator's time. `training
share` is the share of wall time that a peer spends in a step, that sleep included, over all rounds but the first;
shares and seconds are medians over rounds, of the mean over peers. `held-out loss` is that of the certified model, in
nats per byte, where so many tokens were certified (interpolated between two rounds).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # five trainers share the cores: before torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from numpy.typing import NDArray

from averaging.cohort import Cohort as CohortInRound
from averaging.driver import Driver
from averaging.evidence import Proof
from averaging.guard import SqliteGuard
from averaging.participant import Participant
from averaging.work import Decided, Joined, RolledBack
from benchmarks.line import Network
from benchmarks.report import report
from dht.identity import Identity, PeerId
from peer.corpus import Corpus
from peer.data import TokenBatches, TokenData
from peer.learner import Learner
from peer.manifest import Codec, Cohort, Data, Manifest, Model, Outer, Run, Train
from peer.model import build_model
from peer.outer import Vector
from peer.overlapped import MOST_AHEAD, OverlappedLearner, learner_kind
from peer.run_params import run_params
from peer.state import CanonicalState
from peer.store import StateStore
from peer.trainer import Trainer, TrainResult

SEQUENCE = 128
SIZES = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
COLUMNS = ("mode", "training share", "seconds per round", "tokens per second", "held-out loss", "tokens", "rounds")


@dataclass(frozen=True)
class Setting:
    """What both modes have in common. Times in seconds, `line` in Mbit/s."""

    peers: int
    rounds: int
    local_steps: int
    batch: int
    line: float
    delay: float
    floor: float
    rate: float
    momentum: float

    def manifest(self, *, overlap: bool) -> Manifest:
        """Of a run in one mode. The cap is as high as a peer can get ahead, so that records tell all tokens."""
        founder = str(_identity(0).peer_id)
        config = {"model_type": "llama", "vocab_size": 257, "max_position_embeddings": SEQUENCE, **SIZES}
        train = Train(
            optimizer="muon",
            learning_rate=1e-2,
            decay_rounds=self.rounds,
            local_steps=self.local_steps,
            overlap=overlap,
            tokens_per_round=(MOST_AHEAD + 1) * self.local_steps * self.batch * SEQUENCE,
        )
        return Manifest.demo(
            founder,
            run=Run(name="utilization", founder=founder, genesis_peers=self.peers),
            model=Model(config=config | {"tie_word_embeddings": True}, seed=1),
            data=Data(sequence_length=SEQUENCE),
            train=train,
            outer=Outer(learning_rate=self.rate, momentum=self.momentum),
            cohort=Cohort(target=self.peers, minimum=min(3, self.peers)),
            codec=Codec(ring_bits=32, chunk_elements=32768, pack=10),
        )


class SlowBatches(TokenBatches):
    """Batches that take as long to come as an accelerator would take for a step."""

    floor = 0.0

    def next(self) -> NDArray[np.int64]:
        """The next batch, later."""
        time.sleep(self.floor)
        return super().next()


class TimedTrainer(Trainer):
    """Remembers when it was in steps."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.spans: list[tuple[float, float]] = []

    def train(self, *arguments: Any, **named: Any) -> TrainResult:
        """As ever."""
        started = time.monotonic()
        try:
            return super().train(*arguments, **named)
        finally:
            self.spans.append((started, time.monotonic()))

    def busy(self, start: float, end: float) -> float:
        """Seconds of this interval inside steps."""
        return sum(max(0.0, min(stop, end) - max(begun, start)) for begun, stop in self.spans)


@dataclass
class Watch:
    """An observer that keeps when rounds ended, and the certified model of the first peer."""

    learner: Learner
    participant: Participant
    ends: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    models: list[Vector] = field(default_factory=list)
    keeps_models: bool = False

    def settled(self, round_: int) -> None:
        """A round's state is adopted."""
        chain = self.participant.chain
        assert chain is not None
        self.ends.append(time.monotonic())
        self.tokens.append(sum(survivor.tokens for survivor in chain.record(round_).survivors))
        if self.keeps_models:
            self.models.append(self.learner.state.parameters.copy())

    def decided(self, decided: Decided, cohort: CohortInRound | None) -> None:
        """Void rounds would spoil what is measured."""
        if decided.record.void:
            print(f"round {decided.record.round} was void", file=sys.stderr)

    def joined(self, joined: Joined) -> None:
        """Nothing to see."""

    def step(self, round_: int, attempt: int, name: str) -> None:
        """Nothing to see."""

    def rolled_back(self, event: RolledBack) -> None:
        """Nothing to see."""

    def blamed(self, proof: Proof, evidence: bytes) -> None:
        """Nothing to see."""

    def note(self, text: str, peer: PeerId | None) -> None:
        """Nothing to see."""


class Peer:
    """One peer, as `run-peer` puts it together, without libp2p and discovery."""

    def __init__(
        self, index: int, setting: Setting, manifest: Manifest, data: TokenData, where: Path, net: Network
    ) -> None:
        identity = _identity(index)
        batches = SlowBatches(data, setting.batch, index)
        batches.floor = setting.floor
        self.trainer = TimedTrainer(build_model(manifest), batches, manifest, "cpu", threads=1)
        schema = self.trainer.vector.schema(manifest.run_id)
        params = run_params(manifest, schema.elements)
        state = CanonicalState.genesis(schema, self.trainer.local().copy(), manifest.first_clip)
        self.line, self.guard = net.line(identity.peer_id), SqliteGuard(where / f"{index}.sqlite")
        store = StateStore(where / str(index), schema)
        self.learner = learner_kind(manifest)(
            manifest, params, identity.peer_id, self.trainer, state, store, None, self.line
        )
        self.participant = Participant(params, identity, self.guard, os.urandom, state.root())
        self.watch = Watch(self.learner, self.participant, keeps_models=index == 0)
        background = manifest.train.overlap
        self.driver = Driver(self.participant, self.line, self.learner, self.watch, background=background)

        async def refuse(sender: PeerId, frame: memoryview) -> list[bytes]:
            return []

        self.line.serve(self.driver.on_frame, refuse)

    async def close(self) -> None:
        """End it."""
        await self.driver.stop()
        await self.learner.leave()
        self.guard.close()


async def run(setting: Setting, overlap: bool, shards: list[TokenData], enough: int) -> list[Peer]:
    """Train until `enough` tokens are certified, or, if that is 0, `setting.rounds` rounds are over."""
    manifest = setting.manifest(overlap=overlap)
    net = Network(setting.line * 1e6 / 8, setting.delay)
    with tempfile.TemporaryDirectory() as folder:
        peers = [Peer(i, setting, manifest, shards[i], Path(folder), net) for i in range(setting.peers)]
        for peer in peers:
            peer.driver.start()
            peer.driver.learned([other.line.peer_id for other in peers if other is not peer])
        first, shown = peers[0].watch, 0
        while len(first.ends) < setting.rounds if not enough else sum(first.tokens) < enough:
            await asyncio.sleep(0.05)
            for peer in peers:
                if peer.driver.failed.done():
                    peer.driver.failed.result()
            if len(first.ends) > shown:
                shown = len(first.ends)
                print(f"{_mode(overlap)}: round {shown}, {sum(first.tokens)} tokens", file=sys.stderr)
        for peer in peers:
            await peer.close()
    return peers


def row(setting: Setting, overlap: bool, peers: list[Peer], heldout: TokenData, enough: int) -> dict[str, Any]:
    """Medians over the rounds after the first, and the loss at `enough` tokens."""
    watch = peers[0].watch
    spans = list(zip(watch.ends, watch.ends[1:], strict=False))
    shares = [statistics.mean(p.trainer.busy(start, end) for p in peers) / (end - start) for start, end in spans]
    totals = np.cumsum(watch.tokens)
    return {
        "mode": _mode(overlap),
        "training share": statistics.median(shares),
        "least share": min(shares),
        "seconds per round": statistics.median(end - start for start, end in spans),
        "tokens per second": float(sum(watch.tokens[1:])) / (watch.ends[-1] - watch.ends[0]),
        "held-out loss": _loss_at(enough, totals, peers[0], heldout),
        "tokens": enough,
        "rounds": len(watch.ends),
        "parameters": peers[0].learner.state.schema.elements,
        "bytes up per peer and round": statistics.mean(peer.line.sent for peer in peers) / len(watch.ends),
        "step seconds": _step_seconds(peers, setting, overlap=overlap),
    }


def _loss_at(tokens: int, totals: NDArray[np.int64], peer: Peer, heldout: TokenData) -> float:
    """Between the rounds before and after so many tokens, in proportion: rounds of both modes end at other numbers."""
    reached = int(np.searchsorted(totals, tokens))
    ends = [max(0, reached - 1), reached]
    losses = []
    for index in ends:
        peer.trainer.set_parameters(peer.watch.models[index])
        losses.append(peer.trainer.evaluate(heldout.evaluation(32, 512)))
    return float(np.interp(tokens, totals[ends], losses))


def _step_seconds(peers: list[Peer], setting: Setting, *, overlap: bool) -> float:
    per_call = 1 if overlap else setting.local_steps
    whole = [stop - start for peer in peers for start, stop in peer.trainer.spans]
    return statistics.median(whole) / per_call


def texts(setting: Setting) -> tuple[list[TokenData], TokenData]:
    """Sequences of the standard library's text, dealt to the peers at random; and the held-out ones."""
    corpus = Corpus.build()
    training = _tokens([file.text for file in corpus.files if not file.is_heldout])
    order = np.random.default_rng(5).permutation(len(training))
    shards = [training[order[index :: setting.peers]].reshape(-1) for index in range(setting.peers)]
    heldout = _tokens([file.text for file in corpus.heldout]).reshape(-1)
    return [TokenData(shard, SEQUENCE, f"shard {i}") for i, shard in enumerate(shards)], TokenData(
        heldout, SEQUENCE, "held out"
    )


def _tokens(pieces: list[str]) -> NDArray[np.uint8]:
    """uint8[sequences, SEQUENCE]."""
    flat = np.frombuffer("\n".join(pieces).encode(), np.uint8)
    return flat[: len(flat) // SEQUENCE * SEQUENCE].reshape(-1, SEQUENCE)


def _identity(index: int) -> Identity:
    return Identity(bytes([5] * 31 + [index + 1]))


def _mode(overlap: bool) -> str:
    return "overlapped" if overlap else "blocking"


def measure(setting: Setting) -> list[Mapping[str, Any]]:
    """Blocking; overlapped for as many tokens; overlapped for as many seconds, the learning rate ending later."""
    shards, heldout = texts(setting)

    def made(setting: Setting, overlap: bool, enough: int) -> dict[str, Any]:
        peers = asyncio.run(run(setting, overlap, shards, enough))
        assert all(isinstance(peer.learner, OverlappedLearner) is overlap for peer in peers)
        tokens = enough or sum(peers[0].watch.tokens)
        return row(setting, overlap, peers, heldout, tokens) | {"setting": vars(setting)}

    blocking = made(setting, False, 0)
    overlapped = made(setting, True, blocking["tokens"])
    saved = blocking["seconds per round"] / overlapped["seconds per round"]
    longer = made(replace(setting, rounds=round(setting.rounds * saved)), True, 0)
    return [blocking, overlapped, longer | {"mode": "overlapped, same time"}]


def main() -> None:
    """Measure, print, write the JSON report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=60, help="of the blocking variant")
    parser.add_argument("--local-steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4, help="sequences of 128 bytes per step")
    parser.add_argument("--line", type=float, default=20.0, help="Mbit/s, up and down")
    parser.add_argument("--delay", type=float, default=100.0, help="milliseconds one way")
    parser.add_argument("--floor", type=float, default=0.9, help="seconds that each step sleeps")
    parser.add_argument("--outer-rate", type=float, default=0.8)
    parser.add_argument("--outer-momentum", type=float, default=0.6)
    chosen = parser.parse_args()
    if chosen.rounds < 6:
        parser.error("--rounds must be 6 or more: medians are of five at least, without the first")
    setting = Setting(
        chosen.peers,
        chosen.rounds,
        chosen.local_steps,
        chosen.batch,
        chosen.line,
        chosen.delay / 1000,
        chosen.floor,
        chosen.outer_rate,
        chosen.outer_momentum,
    )
    title = f"{chosen.peers} peers, {chosen.line:g} Mbit/s, {chosen.delay:g} ms; steps sleep {chosen.floor:g} s"
    path = report("utilization", measure(setting), title=title, columns=COLUMNS)
    print(path, file=sys.stderr)


if __name__ == "__main__":
    main()
