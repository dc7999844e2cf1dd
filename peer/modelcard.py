"""The model card of an exported model: which run, which round, which root, and who took part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peer.dp import CLAIM_DELTA
from peer.manifest import Manifest

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData


@dataclass(frozen=True, slots=True)
class Declared:
    """What nothing in a run can tell, so whoever exports declares it: metadata of the hub. Empty is left out."""

    license: str = ""  # the hub's identifier, such as apache-2.0
    language: tuple[str, ...] = ()  # ISO 639 codes
    datasets: tuple[str, ...] = ()  # ids on the hub


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
    declared: Declared = field(default_factory=Declared)


def model_card(
    manifest: Manifest,
    facts: RunFacts,
    parameters: int,
    rows: Mapping[str, str] | None = None,
    is_adapter: bool = False,
) -> ModelCard:
    """A Hugging Face model card with metadata block; `rows` go into its table of facts."""
    from huggingface_hub import ModelCard

    data = _metadata(manifest, facts, is_adapter)
    body = _body(manifest, facts, parameters, rows or {}) + _use(manifest, facts, is_adapter)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


def _metadata(manifest: Manifest, facts: RunFacts, is_adapter: bool) -> ModelCardData:
    from huggingface_hub import ModelCardData

    declared = facts.declared
    return ModelCardData(
        model_name=manifest.run.name,
        license=declared.license or None,
        language=list(declared.language) or None,
        datasets=list(declared.datasets) or None,
        base_model=manifest.model.hub or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["murmuration", "peer-to-peer", "federated-learning"],
        eval_results=_results(facts) or None,
    )


def _results(facts: RunFacts) -> list[EvalResult]:
    """The held-out loss for the hub's model index."""
    from huggingface_hub import EvalResult

    if facts.heldout_loss is None:
        return []
    common: dict[str, Any] = {"task_type": "text-generation", "dataset_type": "private"}
    common["dataset_name"] = "held-out text of one peer"
    loss = EvalResult(**common, metric_type="loss", metric_name="nats per token", metric_value=facts.heldout_loss)
    value = math.exp(facts.heldout_loss)
    return [loss, EvalResult(**common, metric_type="perplexity", metric_name="per token", metric_value=value)]


def _use(manifest: Manifest, facts: RunFacts, is_adapter: bool) -> str:
    """How to load the model, how to check that it is the run's, and what is private about it."""
    maker = "peft import AutoPeftModelForCausalLM" if is_adapter else "transformers import AutoModelForCausalLM"
    return f"""
## Use

Download this folder, then with its path instead of `this-folder`:

```python
from {maker}
from transformers import AutoTokenizer

model = {maker.split()[-1]}.from_pretrained("this-folder")
tokenizer = AutoTokenizer.from_pretrained("this-folder")
prompt = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=40)[0]))
```

## Check it

`run.toml` in this folder is the run's manifest. If the run is anchored on a chain, every
{manifest.ledger.rounds_per_checkpoint} rounds end an epoch, whose tally and roots anybody can recompute from the signed
records, believing nobody:

```
contribution-explorer verify EPOCH --deployment DEPLOYMENT --run run.toml --peer ADDRESS
```

Without a chain a peer that joins with this `run.toml` fetches the records and the state, checks every certificate and
every chunk, and `run-peer export` then writes these same weights if round {facts.round} is its newest.

## Privacy

Peers trained on texts of their own, which never left their machines. A single peer's update is hidden among those of
its cohort; the sum, and so this model, is not. A model can repeat what it was trained on: without differential privacy
in the peers' own training there is no bound on what can be learned from it about their texts.
"""


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
