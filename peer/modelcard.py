"""The model card of an exported model: which run, which round, which root, and who took part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from peer.dp import CLAIM_DELTA
from peer.manifest import Manifest

if TYPE_CHECKING:
    from huggingface_hub import ModelCard


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What only the peer that exports knows. `tokens` maps peer id (base58) to tokens tallied, in the run so far.

    `epsilon` is what this peer's own records lost at `peer.dp.CLAIM_DELTA`, where it trained with `--dp` alone.
    """

    round: int
    root: bytes
    tokens: Mapping[str, int] = field(default_factory=dict)
    heldout_loss: float | None = None
    epsilon: float | None = None


def model_card(
    manifest: Manifest,
    facts: RunFacts,
    parameters: int,
    rows: Mapping[str, str] | None = None,
    is_adapter: bool = False,
) -> ModelCard:
    """A Hugging Face model card with metadata block; `rows` go into its table of facts."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        base_model=manifest.model.hub or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["murmuration", "peer-to-peer"],
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(manifest, facts, parameters, rows or {})}")


def _body(manifest: Manifest, facts: RunFacts, parameters: int, rows: Mapping[str, str]) -> str:
    loss = "" if facts.heldout_loss is None else f"| Held-out loss | {facts.heldout_loss:.4f} nats per token |\n"
    if facts.epsilon is not None:
        loss += (
            f"| Privacy, as this peer claims of its own data | epsilon {facts.epsilon:.3f}, delta {CLAIM_DELTA:g} |\n"
        )
    train, outer = manifest.train, manifest.outer
    origin = manifest.model.hub or manifest.model.path or f"a new {manifest.model.config['model_type']}"
    tallied = "".join(f"| `{peer}` | {count:,} |\n" for peer, count in sorted(facts.tokens.items()))
    peers = f"## Peers\n\n| peer id | tokens |\n|---|---|\n{tallied}" if tallied else ""
    extra = "".join(f"| {name} | {text} |\n" for name, text in rows.items())
    return f"""# {manifest.run.name}

A language model that peers trained together with Murmuration. Updates left a peer only under masks that cancel in
their sum; every peer holds the same bytes, certified by the committee of the round.

| | |
|---|---|
| Run | `{manifest.run_id.hex()}` |
| Founder | `{manifest.run.founder}` |
| Round | {facts.round} |
| State root | `{facts.root.hex()}` |
| Began as | {origin} |
| Trained parameters | {parameters:,} |
| Sequence length | {manifest.data.sequence_length} tokens |
| Inner optimizer | {train.optimizer}, rate {train.learning_rate:g}, {train.local_steps} steps a round |
| Outer optimizer | SGD, rate {outer.learning_rate:g}, momentum {outer.momentum:g} |
{extra}{loss}
The state root is the SHA-256 Merkle root over header, parameters, outer momentum and codec scales in chunks of 256 KiB.
Anyone who holds `run.toml` and the chain of certified records can check that this round has this root.

{peers}"""
