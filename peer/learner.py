"""A peer's learning, as the round protocol sees it: train, encode the update, apply the agreed sum, adopt a state.

Three float32 vectors of D elements live here besides the model and its optimizer: the certified parameters, the outer
momentum, and the *residual*. The residual is what this peer has learned and not yet seen in a certified sum: after
training it takes in `certified - local`, it is what gets encoded, and once a round with this peer among the survivors
is certified, what was really sent is taken out again. So clipping, rounding, a missed round and a lost chunk all
leave their part for the next round (error feedback, Seide et al. 2014), and a void round loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from averaging.aggregate import Aggregate
from averaging.chain import Chain
from averaging.cohort import Cohort
from averaging.encoding import Encoder, NonFiniteUpdateError, reference, squared_norm
from averaging.layout import Layout, RingArray
from averaging.params import RunParams
from averaging.record import Record
from averaging.trailer import Statistics, pack
from averaging.weights import as_float, told
from dht import merkle
from dht.errors import StorageError
from dht.identity import PeerId
from dht.transport import Transport
from peer.batching import introduce
from peer.catch_up import CatchUp, Haul
from peer.data import TokenData
from peer.fragments import Fragments
from peer.health import Health
from peer.history import ChainFrames
from peer.local_training import LocalTraining
from peer.manifest import Manifest
from peer.noise import NoisePlan, NoisyEncoder
from peer.outcome import Outcome
from peer.outer import OuterStep, Vector
from peer.prepared import Prepared
from peer.rollback import bring_again, part_in, pinned_rounds, shares, state_round
from peer.run_params import weighing
from peer.sent import Sent, signs
from peer.state import CanonicalState
from peer.store import LocalState, StateStore
from peer.trainer import TrainerState, TrainResult

log = logging.getLogger(__name__)

_HELDOUT_SEQUENCES = 32
_HELDOUT_BATCH = 16
_LARGEST_LOSS = 1e3
P = ParamSpec("P")
T = TypeVar("T")


class Learner:
    """One peer's model, certified state and residual. Implements `averaging.driver.Work`."""

    def __init__(
        self,
        manifest: Manifest,
        params: RunParams,
        me: PeerId,
        trainer: LocalTraining,
        state: CanonicalState,
        store: StateStore,
        heldout: TokenData | None,
        transport: Transport,
    ) -> None:
        self.manifest, self.params, self.state, self.store = manifest, params, state, store
        self._me, self._trainer, self._heldout, self._transport = me, trainer, heldout, transport
        self._layout: Layout = params.layout
        outer = manifest.outer
        self._weighing = weighing(manifest)
        self._outer = OuterStep(outer.learning_rate, outer.momentum, outer.nesterov, outer.momentum_rounds)
        self.claim: Callable[[], float | None] = lambda: trainer.claim  # epsilon, as the peer announces it
        self._noise = NoisePlan.of(manifest, self._layout, trainer.notes.append)
        self._fragments = Fragments(state.schema.elements, manifest.codec.fragments)
        self._residual: Vector = np.zeros(state.schema.elements, np.float32)
        # The model is at the certified parameters; or it has the residual and progress in it; or the residual has both.
        self._in_model = self._folded = False
        self._tokens = 0  # behind the residual
        self._statistics = Statistics(0, 0.0, 0.0, 0.0, 0.0, 0)
        self._lost_norm = 0.0
        self._sent: Sent | None = None
        self._trailer = pack(self._statistics)
        self._prepared: Prepared | None = None
        self._frames = ChainFrames()
        self._stop_training = False
        self._health = Health()
        self._report: Callable[..., None] = lambda name, **fields: None
        self._one_at_a_time = threading.Lock()
        self.haul: Haul | None = None
        self.train_seconds = 0.0
        self.train_loss = math.nan
        self.total_tokens = 0
        self.round = 0
        trainer.set_parameters(state.parameters)
        trainer.personal.resume(store)
        state.release()

    async def _in_thread(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Do work in a thread, alone: the thread of a cancelled task goes on, and whoever comes next waits for it."""

        def alone() -> T:
            with self._one_at_a_time:
                return work(*arguments, **named)

        return await asyncio.to_thread(alone)

    # --- training -----------------------------------------------------------------------------------------------

    def listen(self, report: Callable[..., None]) -> None:
        """Tell events of training to `report`, which is like `Reporter.event` and may be called from any thread."""
        self._report = self._trainer.report = report
        introduce(self._trainer, self.manifest, report)

    def interrupt(self) -> None:
        """A round was decided: local steps that still run shall end now; what they learned is kept."""
        self._stop_training = True

    async def train(self, round_: int) -> int:
        """Local steps until the manifest's number or deadline; returns the tokens behind the update.

        Raises ConfigError when training diverged in several rounds in a row.
        """
        self._stop_training = False
        return await self._in_thread(self._train, round_)

    def _train(self, round_: int) -> int:
        started = time.monotonic()
        self._trainer.rounds = float(round_ - 1)
        end = started + self.params.deadlines.train
        self._unfold()
        result = self._trainer.train(
            self.manifest.train.local_steps, lambda: self._stop_training or time.monotonic() >= end
        )
        self.train_seconds = time.monotonic() - started
        return self._count(result, round_)

    def _count(self, result: TrainResult, round_: int) -> int:
        """Make these steps part of the residual, which is the update; returns the tokens behind it."""
        self._tokens += result.tokens
        self.total_tokens += result.tokens
        self.train_loss = result.loss_mean
        cause = result.trouble or ("" if self._trainer.is_finite() else "local parameters are no longer finite")
        if cause:
            self._start_over()
        self._fold()
        try:
            norm = squared_norm(self._residual)
        except NonFiniteUpdateError as error:
            cause = cause or str(error)
            self._residual[:] = 0.0
            self._start_over()
        loss = min(result.loss_mean, _LARGEST_LOSS) if math.isfinite(result.loss_mean) else self._statistics.loss
        norm, steps = (0.0, 0) if cause else (norm, result.steps)
        self._statistics = Statistics(self._tokens, loss, loss, norm, 0.0, steps)
        self._health.trained(cause)
        if cause:
            log.error("sitting out round %d: %s", round_, cause)
            self._report("sat_out", round=round_, reason=cause)
        return max(1, self._tokens)

    def _start_over(self) -> None:
        """Drop what was learned since training began, and the optimizer's moments; what earlier rounds left is kept."""
        self._trainer.start_over(self.state.parameters - self._residual)
        self._tokens = 0

    @property
    def tokens_per_second(self) -> float:
        """Of local training, a moving average; 0 while unknown."""
        return self._trainer.pace.tokens_per_second

    def _fold(self) -> None:
        """residual = certified - local: from now on the residual is the update."""
        if self._in_model:
            np.subtract(self.state.parameters, self._trainer.local(), out=self._residual)
            self.state.release()
        self._in_model, self._folded = False, True

    def _unfold(self) -> None:
        """All that no sum has taken up yet is in the model while it trains: local = certified - residual.

        After a void round it is there already. Were the gradients taken at the certified parameters instead, training
        would find the same progress again in each round; the coarser the codec, the worse (docs/training.md).
        """
        if not self._folded:
            self._trainer.set_parameters(self._trainer.local() - self._residual)
        self._in_model, self._folded = True, False
        self.state.release()  # not read again until the sums are in

    async def evaluate(self, *, surely: bool = True) -> float | None:
        """Loss of the certified parameters on held-out text, nats per token; None without such text.

        Unless `surely`, a learner that trains meanwhile may return None to keep the time for training.
        """
        return await self._in_thread(self._evaluate, surely)

    def _evaluate(self, surely: bool) -> float | None:
        if self._heldout is None or self._folded or self._in_model:
            return None
        return self._trainer.evaluate(self._heldout.evaluation(_HELDOUT_BATCH, _HELDOUT_SEQUENCES))

    # --- the update ---------------------------------------------------------------------------------------------

    async def prepare(self, cohort: Cohort) -> None:
        """Fix scales, signs, dither and weight of this cohort's upload."""
        assert cohort.tokens is not None
        domains, mine = cohort.roster.domains, cohort.peers.index(self._me)
        weight = as_float(self._weighing.weight(cohort.tokens, domains[mine], self.state.domains))
        idle, roster = self._health.idle, cohort.roster
        update = np.zeros(self._layout.parameters, np.float32)
        if not idle:
            update = self._fragments.part(self._residual, roster.round)
        unit = reference(self._fragments.scales(self.state.scales, roster.round))
        norm = self._statistics.squared_norm if self._fragments.count == 1 else squared_norm(update)
        statistics = replace(
            self._statistics,
            tokens=cohort.tokens,
            squared_norm=norm * weight * weight / unit,
            lost_norm=self._lost_norm / unit,
            domain=told(domains, mine, self.manifest.weights.least),
        )
        if self._noise is not None:
            statistics, weight = self._noise.hide(statistics, update, weight, len(cohort.peers), unit)
        self._trailer = pack(statistics, self._layout.domains)
        sent = self._make_sent(roster.round, roster.round_sid, roster.largest, weight, os.urandom(16), update)
        if isinstance(sent.encoder, NoisyEncoder):
            sent.encoder.members = len(cohort.peers)
        self._sent = replace(sent, idle=idle)

    def _make_sent(self, round_: int, sid: bytes, members: int, weight: float, dither: bytes, update: Vector) -> Sent:
        given = self._layout, members, self._fragments.scales(self.state.scales, round_), signs(sid)
        encoder = Encoder(*given) if self._noise is None else NoisyEncoder(*given, self._noise, update)
        return Sent(round_, sid, members, update, encoder, dither, weight)

    def encode(self, cohort: Cohort, chunk: int) -> RingArray:
        """Ring elements of one chunk of the update; the trailer's are the public statistics."""
        sent = self._sent
        assert sent is not None
        assert sent.sid == cohort.roster.round_sid
        if chunk == self._layout.trailer:
            return self._trailer.astype("<u4")
        ring = self._layout.empty(chunk)
        sent.encoder.encode_chunk(chunk, sent.update, sent.weight, sent.dither, ring)
        return ring

    def _take_out(self, chain: Chain) -> None:
        """If my last update is in a certified sum, what was sent leaves the residual; lost chunks stay."""
        sent = self._sent
        if sent is None or sent.round > chain.head.round:
            return
        self._sent = None
        record = chain.record(sent.round)  # not always the head: who fetches a state may have missed several rounds
        if sent.sid != record.sid or self._me not in record.members():
            return
        lost_norm, residual = 0.0, self._residual[self._fragments.elements(sent.round)]
        for chunk in range(self._layout.chunks):
            if chunk in record.lost_chunks:
                continue
            ring = self._layout.empty(chunk)
            sent.encoder.encode_chunk(chunk, sent.update, sent.weight, sent.dither, ring)
            here = residual[self._layout.slice(chunk)]
            here -= sent.encoder.dequantise_chunk(chunk, ring, sent.weight)[: len(here)]
            lost_norm += float(np.dot(here, here))
        self._lost_norm = lost_norm
        self._tokens = 0

    # --- the sum ------------------------------------------------------------------------------------------------

    async def apply(self, aggregate: Aggregate) -> tuple[bytes, float]:
        """The next state's root and the public mean loss; the sums are on disk when it returns.

        Raises ImplausibleSumError for sums that honest members cannot have made.
        """
        return await self._in_thread(self._apply, aggregate)

    def _apply(self, aggregate: Aggregate) -> tuple[bytes, float]:
        prepared = Prepared(
            aggregate.round,
            self.state.root(),
            b"",
            aggregate.sid,
            aggregate.members,
            aggregate.tokens,
            aggregate.domains,
            aggregate.lost,
            aggregate.sums,
        )
        outcome = self._outcome(prepared)
        energies = outcome.energies()
        outcome.check(energies)
        outer, sections = self._outer.at(prepared.round), outcome.next_sections(energies)
        root = self.state.root_after(outcome.gradient(), outer, *sections, part=outcome.part)
        self._prepared = prepared.leading_to(root)
        self._prepared.save(self._prepared_path)
        return root, outcome.totals.mean_loss if outcome.totals is not None else 0.0

    @property
    def _prepared_path(self) -> Path:
        return self.store.folder / "prepared.bin"

    def _outcome(self, prepared: Prepared) -> Outcome:
        given = prepared, self.state, self._layout, self._fragments, self._weighing
        return Outcome(*given, fixed_clips=self._noise is not None)

    # --- adopting a state ---------------------------------------------------------------------------------------

    async def commit(self, record: Record, chain: Chain) -> None:
        """Become the state that `apply` announced, now that it is certified; on disk when it returns."""
        prepared = self._prepared
        assert prepared is not None
        assert prepared.sid == record.sid
        await self._in_thread(self._advance, prepared, record, chain)

    def _advance(self, prepared: Prepared, record: Record, chain: Chain) -> None:
        self._fold()
        self._take_out(chain)
        outcome = self._outcome(prepared)
        sections = outcome.next_sections(outcome.energies())
        outer = self._outer.at(prepared.round)
        root = self.state.advance(outcome.gradient(), outer, *sections, part=outcome.part)
        if root != record.state_root:
            raise StorageError(
                f"round {record.round} led to another state here than certified", remedy="check this machine's memory"
            )
        self._adopted(record, chain)

    def _adopted(self, record: Record, chain: Chain) -> None:
        """Save the certified state, then my own training; start the next local steps from it."""
        frames = self._frames.up_to(chain, record.round)
        pinned = pinned_rounds(chain, record.round)
        self.store.save(record.round, record.state_root, self.state.leaves(), self.state.chunks(), frames, pinned)
        for number in self.store.rounds():
            if self.store.root(number) != chain.state_root(number):
                self.store.drop(number)  # of a branch that was given up
        self._land()
        self.state.release()
        self._prepared = None
        self.round = record.round
        self.save_local()

    def _land(self) -> None:
        """The next local steps start from the certified parameters; the residual has all that was learned before."""
        self._trainer.set_parameters(self.state.parameters)
        self._in_model = self._folded = False

    async def fetch(self, record: Record, chain: Chain, donors: Sequence[PeerId]) -> bool:
        """Adopt a certified state that I did not commit: from my own prepared sums, else chunk by chunk from donors."""
        if await self._in_thread(self._resume_prepared, record, chain):
            return True
        await self._in_thread(self._fold)
        await self._in_thread(self._leave_branch, chain)
        catch_up = CatchUp(self._transport, record.state_root, donors)
        if not await catch_up.run(self.state):
            return False
        self.haul = catch_up.haul
        await self._in_thread(self._take_out, chain)
        await self._in_thread(self._adopted, record, chain)
        return True

    def _leave_branch(self, chain: Chain) -> None:
        """If my state is of a branch that was given up, keep what was learned on it; before the state changes."""
        given_up = self._frames.leave(chain)
        share, tokens = part_in(given_up, self._me)
        if not share:
            return
        base = state_round(chain, given_up[0].round - 1)
        if self.store.root(base) != chain.record(base).state_root:
            log.warning("the state of round %d is not on disk: what the branch after it learned is lost", base)
            return
        (parameters, momentum), now = self.store.vectors(base), self.state
        for part, share in shares(given_up, self._me, self._fragments):
            before, after = (parameters[part], momentum[part]), (now.parameters[part], now.momentum[part])
            bring_again(self._residual[part], self._outer, share, before, after)
        self._tokens += tokens
        log.info("%d rounds were rolled back; their updates go into the next round", len(given_up))

    def _resume_prepared(self, record: Record, chain: Chain) -> bool:
        prepared = Prepared.load(self._prepared_path, self._layout)
        if prepared is None or (prepared.before, prepared.after) != (self.state.root(), record.state_root):
            return False
        self._advance(prepared, record, chain)
        return True

    # --- across restarts ----------------------------------------------------------------------------------------

    def follow(self, chain: Chain) -> None:
        """After a restart: the chain that was on disk with my state."""
        self._frames.up_to(chain, chain.head.round)

    def save_genesis(self, chain: Chain) -> None:
        """Store the founding's state, which I hold, so that who starts from other first weights can fetch it."""
        if not self.store.rounds() and self.state.root() == chain.record(0).state_root:
            frames = self._frames.up_to(chain, 0)
            self.store.save(0, self.state.root(), self.state.leaves(), self.state.chunks(), frames)

    async def leave(self) -> None:
        """Stop training and save what was learned since the last certified round."""
        self.interrupt()
        await self._in_thread(self._leave)

    def _leave(self) -> None:
        if self.store.rounds() and self.state.root() == self.store_root():
            self._fold()
            self.save_local()

    def store_root(self) -> bytes:
        """Root of the newest state on disk."""
        leaves = self.store.leaves(self.store.rounds()[-1])
        return merkle.root(leaves) if leaves else b""

    def save_local(self) -> None:
        """Save residual, optimizer and data position, bound to the last adopted round. Raises StorageError."""
        arrays, facts = self._local_training()
        sent = None if self._sent is None else self._sent.facts()
        facts |= {"tokens": self._tokens, "total": self.total_tokens, "sent": sent}
        self.store.save_local(LocalState(self.round, self.state.root(), {"residual": self._residual, **arrays}, facts))

    def _local_training(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """What it takes to train on, apart from parameters: arrays, and plain values."""
        trained = self._trainer.state()
        return {f"trainer/{name}": value for name, value in trained.arrays.items()}, {"trainer": trained.facts}

    def load_local(self, round_: int) -> bool:
        """Go on with what was saved after this certified round; whether there was something."""
        self.round = round_
        local = self.store.load_local(round_, self.state.root())
        if local is None:
            return False
        np.copyto(self._residual, local.arrays["residual"])
        self._train_on(local)
        self._tokens, self.total_tokens = int(local.facts["tokens"]), int(local.facts["total"])
        if sent := local.facts.get("sent"):
            # I left before that round was decided: its sum may have my update in it.
            sid, dither = bytes.fromhex(sent["sid"]), bytes.fromhex(sent["dither"])
            before = self._fragments.part(self._residual.copy(), int(sent["round"]))
            self._sent = self._make_sent(sent["round"], sid, sent["members"], sent["weight"], dither, before)
        return True

    def _train_on(self, local: LocalState) -> None:
        """Take up what `_local_training` gave."""
        found = (name.partition("trainer/")[2] for name in local.arrays)
        moments = {name: np.asarray(local.arrays[f"trainer/{name}"]) for name in found if name}
        self._trainer.restore(TrainerState(moments, dict(local.facts["trainer"])))
