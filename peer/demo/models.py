"""The demo's yardsticks, each run as a process of its own and printing JSON events.

    python -m peer.demo.models alone RUN DATA STEPS BATCH   one peer's training with nobody to average with
    python -m peer.demo.models judge RUN DATA MODEL         held-out loss and a sample of an exported model

All losses of the final table come from here: the same sequences, the same arithmetic.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from peer.events import JsonReporter
from peer.manifest import Manifest
from peer.precision import prepare_environment

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peer.trainer import Trainer

HELDOUT_SEQUENCES = 96
EVALUATION_BATCH = 16
PROMPT = "def main("
SAMPLE_TOKENS = 160


def alone(run: Path, data: str, steps: int, batch_size: int) -> None:
    """Train on one shard for `steps` inner steps; reports `loss` before and after, in nats per token."""
    from peer.data import TokenBatches, open_data
    from peer.model import build_model
    from peer.tokenizer import load_tokenizer
    from peer.trainer import Trainer

    manifest = Manifest.load(run)
    batches = TokenBatches(open_data(data, manifest, load_tokenizer(manifest)), batch_size, seed=0)
    trainer = Trainer(build_model(manifest), batches, manifest, device="cpu", threads=1)
    report = JsonReporter()
    report.event("loss", steps=0, tokens=0, heldout_loss=_heldout_loss(trainer, manifest, data))
    result = trainer.train(steps)
    report.event("loss", steps=result.steps, tokens=result.tokens, heldout_loss=_heldout_loss(trainer, manifest, data))


def judge(run: Path, data: str, model: Path) -> None:
    """Reports `judged`: the exported model's held-out loss, and text that it generates."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from peer.data import TokenBatches, open_data
    from peer.trainer import Trainer

    manifest = Manifest.load(run)
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = cast("PreTrainedModel", AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))
    prompt = tokenizer(PROMPT, return_tensors="pt")
    torch.manual_seed(0)
    tokens = cast(Any, loaded).generate(
        **prompt, max_new_tokens=SAMPLE_TOKENS, do_sample=True, temperature=0.7, top_k=40
    )
    sample = tokenizer.decode(tokens[0], skip_special_tokens=True)
    batches = TokenBatches(open_data(data, manifest, tokenizer), 1, seed=0)
    trainer = Trainer(loaded, batches, manifest, device="cpu", threads=1)
    JsonReporter().event("judged", heldout_loss=_heldout_loss(trainer, manifest, data), sample=sample)


def _heldout_loss(trainer: Trainer, manifest: Manifest, data: str) -> float:
    from peer.data import open_data
    from peer.tokenizer import load_tokenizer

    heldout = open_data(data, manifest, load_tokenizer(manifest), "heldout")
    return trainer.evaluate(heldout.evaluation(EVALUATION_BATCH, HELDOUT_SEQUENCES))


def main() -> None:
    """Run one of the two."""
    prepare_environment(threads=1)
    what, run, data, *rest = sys.argv[1:]
    if what == "alone":
        alone(Path(run), data, int(rest[0]), int(rest[1]))
    else:
        judge(Path(run), data, Path(rest[0]))


if __name__ == "__main__":
    main()
