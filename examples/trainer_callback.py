"""An ordinary fine-tuning script for transformers' Trainer that joins a run. The two added lines are marked.

It runs offline, on any text. On one machine, with `run.toml` from `run-peer init` (here for three peers):

    run-peer init my-run --peers 3 --data-dir a && cd my-run
    run-bootstrap --data-dir ../bootstrap                    # prints its ADDRESS
    run-peer --data-dir ../a --bootstrap ADDRESS --data ~/texts --rounds 5      # the founder
    run-peer --data-dir ../b --bootstrap ADDRESS --data ~/texts --rounds 5
    python ../examples/trainer_callback.py --run run.toml --data-dir ../c --bootstrap ADDRESS --data ~/texts --rounds 5
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset, load_dataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from peer.callback import MurmurationCallback  # <- added
from peer.manifest import Manifest
from peer.model import build_model
from peer.tokenizer import load_tokenizer


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fine-tune in a Murmuration run with transformers' Trainer.")
    parser.add_argument("--run", type=Path, default=Path("run.toml"), help="the run manifest")
    parser.add_argument("--data", type=Path, required=True, help="a text file, or a folder of .txt files")
    parser.add_argument("--data-dir", type=Path, required=True, help="this peer's folder")
    parser.add_argument("--bootstrap", action="append", default=[], help="address to meet the others through")
    parser.add_argument("--rounds", type=int, default=0, help="leave after this round; 0: after --max-steps")
    parser.add_argument("--max-steps", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path("out"), help="where the model is saved")
    return parser.parse_args()


def packed(data: Path, manifest: Manifest) -> Dataset:
    """Local text as sequences of the run's length."""
    tokenizer, length = load_tokenizer(manifest), manifest.data.sequence_length
    files = sorted(map(str, data.rglob("*.txt"))) if data.is_dir() else [str(data)]
    lines = load_dataset("text", data_files=files, split="train", keep_linebreaks=True)

    def cut(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = [token for text in batch["text"] for token in tokenizer(text)["input_ids"]]
        return {"input_ids": [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]}

    return lines.map(cut, batched=True, batch_size=10_000, remove_columns=lines.column_names)


def main() -> None:
    """Train, and save the last certified model."""
    chosen = arguments()
    manifest = Manifest.load(chosen.run)
    tokenizer = load_tokenizer(manifest)  # or AutoTokenizer.from_pretrained of what [tokenizer] names
    trainer = Trainer(
        model=build_model(manifest),  # or AutoModelForCausalLM.from_pretrained of what [model] names
        args=TrainingArguments(
            output_dir=str(chosen.output),
            max_steps=chosen.max_steps,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=packed(chosen.data, manifest),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )
    joined = MurmurationCallback(chosen.run, data_dir=chosen.data_dir, bootstrap=chosen.bootstrap, rounds=chosen.rounds)
    trainer.add_callback(joined)  # <- added
    trainer.train()
    trainer.save_model()
    if joined.root is not None:
        print(f"round {joined.round} root {joined.root.hex()}")


if __name__ == "__main__":
    main()
