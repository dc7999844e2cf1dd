"""From the manifest to what the averaging protocol needs of it."""

from __future__ import annotations

from averaging.bulk import MAX_CHUNK_BYTES, MAX_WIDE_BYTES
from averaging.layout import Layout
from averaging.params import Deadlines, RunParams
from averaging.record import MAX_LOST_CHUNKS
from averaging.weights import EIGHTHS, Weighing
from dht.errors import ConfigError
from peer.fragments import Fragments
from peer.manifest import Manifest


def run_params(manifest: Manifest, parameters: int) -> RunParams:
    """What the averaging protocol needs of the manifest, for a model with so many trained parameters."""
    limits = manifest.cohort.deadlines
    codec, domains = manifest.codec, len(manifest.weights.domains)
    size = Fragments(parameters, codec.fragments).size
    layout = Layout(size, codec.ring_bits, codec.chunk_elements, codec.pack, domains)
    if layout.chunk_bytes(0) > MAX_CHUNK_BYTES:
        raise ConfigError(
            f"a chunk of codec.chunk_elements = {manifest.codec.chunk_elements} has {layout.chunk_bytes(0)} bytes",
            remedy=f"at most {MAX_CHUNK_BYTES} bytes: lower codec.chunk_elements",
        )
    if layout.coordinates(0) * layout.wide_sizes(0)[-1] > MAX_WIDE_BYTES - 1024:
        raise ConfigError(
            f"a total of codec.chunk_elements = {manifest.codec.chunk_elements} elements is too large for a frame",
            remedy="lower codec.chunk_elements to 262144",
        )
    if layout.total_chunks > MAX_LOST_CHUNKS:
        raise ConfigError(
            f"the model has {layout.total_chunks} chunks, a record can name {MAX_LOST_CHUNKS}",
            remedy="raise codec.chunk_elements",
        )
    return RunParams(
        run=manifest.run_id,
        founder=manifest.founder,
        layout=layout,
        genesis_peers=manifest.run.genesis_peers,
        target=manifest.cohort.target,
        minimum=manifest.cohort.minimum,
        weight_cap=manifest.train.tokens_per_round,
        reducer_copies=manifest.cohort.reducer_copies,
        audit_share=manifest.cohort.audit_share,
        deadlines=Deadlines(
            limits.join,
            limits.shares,
            limits.train,
            limits.upload,
            limits.survivors,
            limits.unmask,
            limits.sums,
            limits.commit,
        ),
        recovery_after=manifest.cohort.recovery_after,
    )


def weighing(manifest: Manifest) -> Weighing:
    """How the run's peers weigh updates."""
    weights = manifest.weights
    return Weighing(
        weights.by,
        manifest.train.tokens_per_round,
        manifest.data.sequence_length,
        weights.floor,
        int(weights.importance * EIGHTHS),
    )
