"""Four peers' training with everything of a round but the network: encode, mask, add, unmask, decode, outer step.

It is the code that peers run (`Trainer`, `Encoder`, `Masker`, `Decoder`, `CanonicalState`); only certificates and
sockets are left out, and all survive. tests/benchmarks checks that it comes to the same bytes as whole learners do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from averaging.encoding import Decoder, Encoder, next_scales, reference, squared_norm
from averaging.layout import Layout
from averaging.masking import Masker, unmask
from averaging.scales import UNKNOWN
from averaging.trailer import Statistics, pack, unpack
from dht.wire import digest
from peer.data import TokenBatches, TokenData
from peer.fragments import Fragments
from peer.manifest import Manifest
from peer.model import build_model
from peer.outer import OuterStep, Vector
from peer.run_params import run_params
from peer.state import CanonicalState
from peer.trainer import Trainer

RingArray = npt.NDArray[np.unsignedinteger[Any]]


class Swarm:
    """Peers that hold one certified state and a residual each."""

    def __init__(self, manifest: Manifest, shards: list[TokenData], batch: int, seed: int) -> None:
        """`batch`: sequences of a peer's inner step. `seed`: order of their data, and masks."""
        self.manifest = manifest
        self.trainers = [
            Trainer(build_model(manifest), TokenBatches(data, batch, seed * 1000 + peer), manifest, "cpu", threads=1)
            for peer, data in enumerate(shards)
        ]
        schema = self.trainers[0].vector.schema(manifest.run_id)
        self.layout: Layout = run_params(manifest, schema.elements).layout
        self.fragments = Fragments(schema.elements, manifest.codec.fragments)
        self.state = CanonicalState.genesis(schema, self.trainers[0].local().copy(), manifest.first_clip)
        self.residuals = [np.zeros(schema.elements, np.float32) for _ in shards]
        outer = manifest.outer
        self.outer = OuterStep(outer.learning_rate, outer.momentum, outer.nesterov, outer.momentum_rounds)
        self.round_number = 0
        self.part, self.rank = 1.0, 0  # of methods that send less than the whole update
        self.late = 0  # steps that an aggregation lasts, of peers that train on
        self.restart = False  # each round from the certified parameters, with what was not sent beside them
        self._random = np.random.Generator(np.random.PCG64(seed))

    def start_from(self, parameters: Vector) -> None:
        """Begin with these weights instead of drawn ones."""
        np.copyto(self.state.parameters, parameters)
        schema = self.state.schema
        self.state = CanonicalState.genesis(schema, self.state.parameters, self.manifest.first_clip)

    def round(self) -> float:
        """One round of everybody; the mean training loss."""
        loss = self.train()
        self.aggregate(digest("benchmark", self.round_number.to_bytes(4, "big")))
        return loss

    def train(self) -> float:
        """Everybody's local steps of the next round; the mean training loss."""
        self.round_number += 1
        losses = []
        for trainer, residual in zip(self.trainers, self.residuals, strict=True):
            trainer.rounds = float(self.round_number - 1)
            trainer.set_parameters(self.state.parameters if self.restart else self.state.parameters - residual)
            losses.append(trainer.train(self.manifest.train.local_steps).loss_mean)
            progress = self.state.parameters - trainer.local()
            residual[:] = progress + residual if self.restart else progress
        return float(np.mean(losses))

    def aggregate(self, sid: bytes, weight: float = 1.0) -> None:
        """Add up the round's fragment of everybody's residual under masks, and take the outer step with the mean."""
        members, signs, number = len(self.trainers), digest("signs", sid), self.round_number
        part, blocks = self.fragments.elements(number), self.fragments.blocks(number)
        updates = [self.fragments.part(residual, number) for residual in self.residuals]
        clips = self.fragments.scales(self.state.scales, number)
        encoder = Encoder(self.layout, members, clips, signs)
        dithers = [self._random.bytes(16) for _ in range(members)]
        unit = reference(clips)
        sums = self._masked_sums(encoder, updates, dithers, weight, unit, sid)
        decoder = Decoder(self.layout, members, clips, signs, members)
        energies = np.concatenate([decoder.block_energies(c, sums[c]) for c in range(self.layout.chunks)])
        energies[blocks.stop - blocks.start :] = UNKNOWN
        norm = unpack(sums[self.layout.trailer], members).mean_squared_norm
        scales = next_scales(self.layout, members, clips, energies, members, norm)
        mean = (decoder.decode_chunk(c, sums[c], members * weight) for c in range(self.layout.chunks))
        for residual, update, dither in zip(self.residuals, updates, dithers, strict=True):
            self._take_out(encoder, residual[part], update, dither, weight)
        after = self.fragments.put_back(self.state.scales, scales, number)
        self.state.advance(mean, self.outer.at(number), after, part=part)

    def _masked_sums(
        self, encoder: Encoder, updates: list[Vector], dithers: list[bytes], weight: float, unit: float, sid: bytes
    ) -> list[RingArray]:
        members = range(len(self.trainers))
        self_keys = [self._random.bytes(16) for _ in members]
        pair = {(i, j): self._random.bytes(16) for i in members for j in members if i < j}
        maskers = [
            Masker(sid, i, self_keys[i], {j: pair[min(i, j), max(i, j)] for j in members if j != i}) for i in members
        ]
        sums = []
        for chunk in range(self.layout.total_chunks):
            total: RingArray = self.layout.zeros(chunk)
            for i, ring in enumerate(self._rings(encoder, updates, dithers, weight, unit, chunk)):
                maskers[i].apply(chunk, ring)
                total += ring
            unmask(chunk, total, self_keys, [])
            sums.append(total)
        return sums

    def _rings(
        self, encoder: Encoder, updates: list[Vector], dithers: list[bytes], weight: float, unit: float, chunk: int
    ) -> Iterator[RingArray]:
        for update, dither in zip(updates, dithers, strict=True):
            if chunk == self.layout.trailer:
                norm = squared_norm(update) * weight * weight / unit
                yield pack(Statistics(1, 0.0, 0.0, norm, 0.0, 1)).astype("<u4")
                continue
            ring = self.layout.empty(chunk)
            encoder.encode_chunk(chunk, update, weight, dither, ring)
            yield ring

    def _take_out(self, encoder: Encoder, residual: Vector, update: Vector, dither: bytes, weight: float) -> None:
        """What was sent leaves the residual; what clipping and rounding lost stays (error feedback)."""
        for chunk in range(self.layout.chunks):
            ring = self.layout.empty(chunk)
            encoder.encode_chunk(chunk, update, weight, dither, ring)
            here = residual[self.layout.slice(chunk)]
            here -= encoder.dequantise_chunk(chunk, ring, weight)[: len(here)]

    def evaluate(self, heldout: TokenData) -> float:
        """Loss of the certified parameters, nats per token."""
        trainer = self.trainers[0]
        trainer.set_parameters(self.state.parameters)
        return trainer.evaluate(heldout.evaluation(32))

    def payload(self) -> int:
        """Bytes that a peer sends in a round: its masked chunks to their reducers, and its own sums to all others.

        (n - 1) / n of the vector each way, as in a ring all-reduce, and one copy of the chunks that it reduces itself.
        """
        members = len(self.trainers)
        vector = sum(self.layout.chunk_bytes(chunk) for chunk in range(self.layout.total_chunks))
        copies = self.manifest.cohort.reducer_copies * vector / members
        return round(2 * vector * (members - 1) / members + copies)
