"""The run manifest, `run.toml`: everything that all peers of a run must agree on, fixed at genesis.

`run_id` is the hash of its values, whatever the comments, key order or spelling of numbers. Peers with another
hash cannot meet. Choices of one peer (device, batch size, data, addresses) are never in it.
"""

# ruff: noqa: RUF009  (key and section are dataclasses.field with facts about the key)
from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import msgpack

from dht.errors import ConfigError, ProtocolError
from dht.identity import PeerId
from dht.wire import digest
from peer.strict_toml import annotated, check, key, parse, plain, section

HADAMARD_BLOCK = 4096
_TITLE = """The manifest of a training run. Its values are hashed into the run id, so a peer with any other value
is in another run; comments and the order of keys do not count. Share this file with everyone who joins."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """[run]: which run this is and how it begins."""

    name: str = key("Name people know the run by: lower-case letters, digits, '.', '_' and '-', at most 64.")
    version: int = key("Version of this file's format and of the protocol.", default=1, choices=(1,))
    founder: str = key("Peer id (base58) of the founder, who signs the founding record and has no other power.")
    genesis_peers: int = key(
        "Peers that must have joined before the founding record is signed.", default=5, low=3, high=10_000, unit="peers"
    )


@dataclass(frozen=True, kw_only=True)
class Model:
    """[model]: exactly one of `config` (with `seed`), `path`, or `hub` (with `revision`)."""

    config: dict[str, Any] = key(
        "A new model: `model_type` and its sizes, as transformers' AutoConfig.for_model takes them.", default={}
    )
    seed: int = key("Seed of a new model's first weights.", default=0, low=0, high=2**63 - 1)
    path: str = key("Or a folder that AutoModelForCausalLM.from_pretrained loads, on every peer.", default="")
    hub: str = key("Or the id of a model on the Hugging Face hub.", default="")
    revision: str = key("Commit of the hub model: 40 hexadecimal digits, since a branch name can move.", default="")
    dtype: str = key(
        "Arithmetic of forward and backward passes. Weights, momentum and updates are float32 in either case.",
        default="fp32",
        choices=("fp32", "bf16"),
    )


@dataclass(frozen=True, kw_only=True)
class TokenizerChoice:
    """[tokenizer]: bytes, a folder, or a hub id with its revision."""

    kind: str = key("'bytes' is one token per UTF-8 byte.", default="bytes", choices=("bytes", "path", "hub"))
    source: str = key("Folder (kind = 'path') or hub id (kind = 'hub').", default="")
    revision: str = key("Commit of a hub tokenizer: 40 hexadecimal digits.", default="")


@dataclass(frozen=True, kw_only=True)
class Data:
    """[data]: how every peer turns its own text into sequences, and what is held out."""

    sequence_length: int = key("Length of one training sequence.", default=128, low=8, high=1 << 20, unit="tokens")
    heldout: str = key(
        "What is never trained on: 'hash:K' holds out one in K files (or records, where the data is one file) by the "
        "hash of its path, 'split:NAME' a split of a Hugging Face dataset.",
        default="hash:10",
    )


@dataclass(frozen=True, kw_only=True)
class Train:
    """[train]: the inner optimizer that each peer runs alone."""

    optimizer: str = key(
        "Inner optimizer; adamw8bit is bitsandbytes' (falls back to adamw where it does not run).",
        default="adamw",
        choices=("adamw", "adamw8bit"),
    )
    learning_rate: float = key("Inner learning rate, after the warm-up.", default=3e-3, low=1e-9, high=10.0)
    betas: tuple[float, float] = key("AdamW's decay rates.", default=(0.9, 0.99), low=0.0, high=0.999999)
    weight_decay: float = key("Decoupled weight decay of matrices.", default=0.1, low=0.0, high=10.0)
    clip_norm: float = key("Global norm that gradients are clipped to.", default=1.0, low=1e-6, high=1e6)
    warmup: int = key("Inner steps over which the rate rises.", default=20, low=0, high=10**9, unit="steps")
    local_steps: int = key("Inner steps per round (fewer at a deadline).", default=10, low=1, high=10**6, unit="steps")
    tokens_per_round: int = key(
        "Tokens of one peer and round that count in full: its weight in the mean is min(1, tokens / this).",
        default=10_240,
        low=1,
        high=2**31,
        unit="tokens",
    )


@dataclass(frozen=True, kw_only=True)
class Outer:
    """[outer]: the step that everyone applies to the mean update (SGD with Nesterov momentum)."""

    learning_rate: float = key("Outer learning rate.", default=0.7, low=0.0, high=10.0)
    momentum: float = key(
        "Outer momentum; 0.7 suits continued training, less or 0 the first rounds of a new model.",
        default=0.7,
        low=0.0,
        high=0.999,
    )
    nesterov: bool = key("Nesterov's form of momentum.", default=True)


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """[cohort.deadlines]: seconds that each phase of a round may last."""

    join: float = key("Convener collects joins.", default=5.0, low=0.05, high=3600.0, unit="seconds")
    shares: float = key("Sealed secret shares reach everyone.", default=10.0, low=0.05, high=3600.0, unit="seconds")
    train: float = key("Local steps.", default=60.0, low=0.05, high=86400.0, unit="seconds")
    upload: float = key("Masked chunks reach their reducers.", default=30.0, low=0.05, high=3600.0, unit="seconds")
    survivors: float = key("One survivor set is signed.", default=10.0, low=0.05, high=3600.0, unit="seconds")
    unmask: float = key("Shares for unmasking reach reducers.", default=10.0, low=0.05, high=3600.0, unit="seconds")
    sums: float = key("Sums reach everyone.", default=30.0, low=0.05, high=3600.0, unit="seconds")
    commit: float = key("First view of the agreement; later views last longer.", default=5.0, low=0.05, high=3600.0)


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """[cohort]: how many peers add up their updates together, and how long they wait for each other."""

    target: int = key("Members of a cohort, when there are enough peers.", default=8, low=3, high=64, unit="peers")
    minimum: int = key("With fewer members than this a round waits.", default=5, low=3, high=64, unit="peers")
    reducer_copies: int = key(
        "1: each reducer's own masked chunks are also held by the next member, so that its death loses nothing.",
        default=1,
        choices=(0, 1),
    )
    recovery_after: float = key(
        "With more than a third of the committee gone for so long, the rest may go on in a recovery branch; 0: never.",
        default=600.0,
        low=0.0,
        high=2_592_000.0,
        unit="seconds",
    )
    audit_share: float = key(
        "Probability with which a sum is recomputed by one more member: 1 all of them, 0 none.",
        default=0.125,
        low=0.0,
        high=1.0,
    )
    deadlines: Deadlines = section("How long each phase may last.", Deadlines)


@dataclass(frozen=True, kw_only=True)
class Codec:
    """[codec]: how an update becomes integers that add up."""

    ring_bits: int = key(
        "Bits per element on the wire, of which ceil(log2(members)) are headroom.", default=16, choices=(8, 16, 32)
    )
    chunk_elements: int = key(
        "Elements per chunk, a multiple of 4096.", default=131072, low=HADAMARD_BLOCK, high=1 << 24, unit="elements"
    )

    def __post_init__(self) -> None:
        """Check what bounds alone cannot say. Raises ConfigError."""
        if self.chunk_elements % HADAMARD_BLOCK:
            raise ConfigError(f"codec.chunk_elements = {self.chunk_elements} is not a multiple of {HADAMARD_BLOCK}")


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """[privacy]: what protects an update."""

    aggregation: str = key(
        "'masked': updates leave a peer only under pairwise masks that cancel in the sum.",
        default="masked",
        choices=("masked",),
    )


@dataclass(frozen=True, kw_only=True)
class Admission:
    """[admission]: who may join."""

    mode: str = key("'open': whoever has the manifest.", default="open", choices=("open",))


@dataclass(frozen=True, kw_only=True)
class LedgerChoice:
    """[ledger]: how often the run is anchored, and what earns how much."""

    rounds_per_checkpoint: int = key("Rounds between two anchors.", default=20, low=1, high=10**6, unit="rounds")
    tokens_bps: int = key(
        "Part of an epoch's reward that goes to tokens trained on; the rest goes to chunks reduced.",
        default=9000,
        low=0,
        high=10_000,
        unit="of 10000",
    )
    chain_id: int = key(
        "Id of the chain that has the run's contracts; 0 while that is left open.", default=0, low=0, high=2**53 - 1
    )
    hub: str = key(
        "0x address of the CheckpointHub there (contribution-explorer deploy --dry-run says it in advance).", default=""
    )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A whole `run.toml`. Built by `load`, `loads` or `demo`; every instance has passed all checks."""

    run: Run = section("Which run this is.", Run)
    model: Model = section("The model: exactly one of `config`, `path` and `hub`.", Model)
    tokenizer: TokenizerChoice = section("How text becomes tokens.", TokenizerChoice)
    data: Data = section("How tokens become sequences.", Data)
    train: Train = section("The inner optimizer, which each peer runs alone.", Train)
    outer: Outer = section("The outer optimizer, which everyone runs on the mean update.", Outer)
    cohort: Cohort = section("Who adds up updates together.", Cohort)
    codec: Codec = section("How updates travel.", Codec)
    privacy: Privacy = section("What protects an update.", Privacy)
    admission: Admission = section("Who may join.", Admission)
    ledger: LedgerChoice = section("How the run is anchored.", LedgerChoice)

    def __post_init__(self) -> None:
        """Check single values and those that depend on each other. Raises ConfigError naming section.key."""
        check(self)
        _check_names(self)
        _check_model(self)
        _check_ledger(self.ledger)
        if self.cohort.minimum > self.cohort.target:
            raise ConfigError(f"cohort.minimum = {self.cohort.minimum} is over cohort.target = {self.cohort.target}")
        if self.run.genesis_peers < self.cohort.minimum:
            raise ConfigError(
                f"run.genesis_peers = {self.run.genesis_peers} is under cohort.minimum = {self.cohort.minimum}"
            )

    @classmethod
    def loads(cls, text: str) -> Manifest:
        """From TOML text. Raises ConfigError."""
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"the manifest is not TOML: {error}") from None
        return parse(cls, table)

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """From a file. Raises ConfigError."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the manifest {path}: {error}") from None
        return cls.loads(text)

    @classmethod
    def demo(cls, founder: str, *, name: str = "demo", genesis_peers: int = 6, **sections: Any) -> Manifest:
        """A byte-level Llama of 1.4 million parameters for a few peers on one machine; `sections` replace."""
        sizes = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 6}
        config = {"model_type": "llama", "vocab_size": 257, "max_position_embeddings": 512, **sizes}
        config |= {"tie_word_embeddings": True, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
        chosen: dict[str, Any] = {
            "run": Run(name=name, founder=str(founder), genesis_peers=genesis_peers),
            "model": Model(config=config, seed=20),
            "outer": Outer(learning_rate=1.0, momentum=0.0),
            "cohort": Cohort(minimum=min(5, genesis_peers)),
        }
        return cls(**(chosen | sections))

    def dumps(self) -> str:
        """Annotated TOML: every key with its meaning, unit, bounds and default."""
        return annotated(self, _TITLE)

    @cached_property
    def run_id(self) -> bytes:
        """32-byte hash of the values."""
        return digest("manifest", cast(bytes, msgpack.packb(plain(self), use_bin_type=True)))

    @property
    def founder(self) -> PeerId:
        """Peer id of the founder."""
        return PeerId.parse(self.run.founder)

    def weight(self, tokens: int) -> float:
        """Weight of a peer's update in the mean: tokens / cap, at most 1."""
        return min(1.0, tokens / self.train.tokens_per_round)

    @property
    def first_clip(self) -> float:
        """Clip of every Hadamard block in round 0, when no aggregate tells the size of updates yet.

        AdamW moves an element by about the learning rate per step, so local steps move it by at most their sum;
        four times that keeps the tails of the rotated, roughly normal block.
        """
        steps, warmup = self.train.local_steps, max(1, self.train.warmup)
        risen = sum(min(1.0, (step + 1) / warmup) for step in range(min(steps, warmup))) + max(0, steps - warmup)
        return 4.0 * self.train.learning_rate * risen

    def replace(self, **sections: Any) -> Manifest:
        """A copy with whole sections replaced, checked again."""
        return dataclasses.replace(self, **sections)


def _check_names(manifest: Manifest) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", manifest.run.name):
        raise ConfigError(f"run.name = {manifest.run.name!r} is not a plain name", remedy="for instance my-run-1")
    try:
        PeerId.parse(manifest.run.founder)
    except ProtocolError:
        raise ConfigError(
            f"run.founder = {manifest.run.founder!r} is not a peer id", remedy="run-peer init fills in your own"
        ) from None
    kind, _, value = manifest.data.heldout.partition(":")
    valid = re.fullmatch(r"[1-9]\d{0,5}", value) and int(value) >= 2 if kind == "hash" else kind == "split" and value
    if not valid:
        raise ConfigError(
            f"data.heldout = {manifest.data.heldout!r} is not understood", remedy="for instance hash:10 or split:test"
        )


def _check_ledger(ledger: LedgerChoice) -> None:
    if bool(ledger.chain_id) != bool(ledger.hub):
        raise ConfigError(
            "ledger.chain_id and ledger.hub belong together", remedy="give both, or leave both out: 0 and ''"
        )
    # One spelling: the run's id is a hash of these very characters.
    if ledger.hub and not re.fullmatch(r"0x[0-9a-f]{40}", ledger.hub):
        raise ConfigError(
            f"ledger.hub = {ledger.hub!r} is not an address in lower case", remedy="0x and 40 digits of 0-9 and a-f"
        )


def _check_model(manifest: Manifest) -> None:
    model, tokenizer = manifest.model, manifest.tokenizer
    given = [name for name in ("config", "path", "hub") if getattr(model, name)]
    if len(given) != 1:
        found = " and ".join(f"model.{name}" for name in given) or "none of them"
        raise ConfigError(f"give exactly one of model.config, model.path, model.hub; found {found}")
    if model.config and not isinstance(model.config.get("model_type"), str):
        raise ConfigError("model.config.model_type is missing", remedy='for instance model_type = "llama"')
    if (tokenizer.kind == "bytes") == bool(tokenizer.source):
        raise ConfigError(f"tokenizer.source does not fit tokenizer.kind = {tokenizer.kind!r}")
    pinned = [("model", bool(model.hub), model.revision)]
    pinned.append(("tokenizer", tokenizer.kind == "hub", tokenizer.revision))
    for where, is_hub, revision in pinned:
        if is_hub != bool(re.fullmatch(r"[0-9a-f]{40}", revision)):
            raise ConfigError(f"{where}.revision must be a full commit exactly where {where} comes from the hub")
