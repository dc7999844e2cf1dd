"""The run manifest, `run.toml`: everything that all peers of a run must agree on, fixed at genesis.

`run_id` is the hash of its values, whatever the comments, key order or spelling of numbers. Peers with another
hash cannot meet. Choices of one peer (device, micro-batch, data, addresses) are never in it.
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

from averaging.packing import top_digit
from averaging.roster import largest_cohort
from dht.errors import ConfigError, ProtocolError
from dht.identity import PeerId
from dht.wire import digest
from peer.noise import noise_clip
from peer.sections import (
    Adapter,
    Admission,
    Codec,
    Cohort,
    Data,
    Deadlines,
    LedgerChoice,
    Model,
    Outer,
    Personal,
    Privacy,
    Run,
    TokenizerChoice,
    Train,
    Weights,
)
from peer.strict_toml import annotated, check, parse, plain, section

__all__ = [
    "Adapter",
    "Admission",
    "Codec",
    "Cohort",
    "Data",
    "Deadlines",
    "LedgerChoice",
    "Manifest",
    "Model",
    "Outer",
    "Personal",
    "Privacy",
    "Run",
    "TokenizerChoice",
    "Train",
    "Weights",
]

_TITLE = """The manifest of a training run. Its values are hashed into the run id, so a peer with any other value
is in another run; comments and the order of keys do not count. Share this file with everyone who joins."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A whole `run.toml`. Built by `load`, `loads` or `demo`; every instance has passed all checks."""

    run: Run = section("Which run this is.", Run)
    model: Model = section("The model: exactly one of `config`, `path` and `hub`.", Model)
    tokenizer: TokenizerChoice = section("How text becomes tokens.", TokenizerChoice)
    data: Data = section("How tokens become sequences.", Data)
    adapter: Adapter = section("What is trained instead of the whole model.", Adapter)
    personal: Personal = section("What every peer trains for itself alone.", Personal)
    train: Train = section("The inner optimizer, which each peer runs alone.", Train)
    weights: Weights = section("How much each peer's update counts in the mean.", Weights)
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
        _check_adapter(self)
        _check_ledger(self.ledger)
        _check_step(self.train.tokens_per_step, self.data.sequence_length)
        fine = (self.codec.ring_bits, self.codec.pack, self.codec.fragments) == (32, 1, 1)
        if self.privacy.noise_multiplier and not fine:
            raise ConfigError(
                f"privacy.noise_multiplier = {self.privacy.noise_multiplier:g} needs the 32-bit ring, unpacked, whole",
                remedy="set codec.ring_bits = 32, pack = 1 and fragments = 1, or privacy.noise_multiplier = 0",
            )
        if self.cohort.minimum > self.cohort.target:
            raise ConfigError(f"cohort.minimum = {self.cohort.minimum} is over cohort.target = {self.cohort.target}")
        if self.run.genesis_peers < self.cohort.minimum:
            raise ConfigError(
                f"run.genesis_peers = {self.run.genesis_peers} is under cohort.minimum = {self.cohort.minimum}"
            )
        _check_pack(self)

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

    def domain(self, name: str) -> int:
        """The number of a data domain, from 1, or 0 for "". Raises ConfigError if the run does not have it."""
        if name and name not in self.weights.domains:
            known = ", ".join(self.weights.domains) or "the run has none: leave --domain out"
            raise ConfigError(f"this run has no data domain {name!r}", remedy=known)
        return self.weights.domains.index(name) + 1 if name else 0

    @property
    def first_clip(self) -> float:
        """Clip of every Hadamard block in round 0, when no aggregate tells the size of updates yet.

        AdamW moves an element by about the learning rate per step, so local steps move it by at most their sum;
        four times that keeps the tails of the rotated, roughly normal block. Muon's matrices move by a fifth of it.
        Under noise it is the clip of every round.
        """
        if self.privacy.noise_multiplier:
            return noise_clip(self)
        steps, warmup = self.train.local_steps, max(1, self.train.warmup)
        risen = sum(min(1.0, (step + 1) / warmup) for step in range(min(steps, warmup))) + max(0, steps - warmup)
        moved = self.train.learning_rate * risen
        if self.codec.pack == 1:
            return 4.0 * moved
        # Few digits bear no clip that is far too wide; what a narrow one cuts off comes a round later.
        return moved * (0.2 if self.train.optimizer == "muon" else 0.5)

    def replace(self, **sections: Any) -> Manifest:
        """A copy with whole sections replaced, checked again."""
        return dataclasses.replace(self, **sections)


def _check_pack(manifest: Manifest) -> None:
    """The largest cohort that a roster may be cut into must fit into the packed words."""
    members, pack = largest_cohort(manifest.cohort.target, manifest.cohort.minimum), manifest.codec.pack
    if pack > 1 and top_digit(pack, members) < 1:
        raise ConfigError(
            f"codec.pack = {pack} has no room for cohorts of {members} members, which cohort.target ="
            f" {manifest.cohort.target} and cohort.minimum = {manifest.cohort.minimum} allow",
            remedy="lower codec.pack or the cohort's target and minimum",
        )


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


def _check_step(tokens: int, length: int) -> None:
    if tokens % length:
        raise ConfigError(
            f"train.tokens_per_step = {tokens} is not a multiple of data.sequence_length = {length}",
            remedy=f"for instance {max(1, tokens // length) * length}",
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
    for name in ("gguf", "sha256"):
        if getattr(model, name) and not model.path:
            raise ConfigError(f"model.{name} belongs to model.path", remedy="give model.path, or leave it out")
    if "/" in model.gguf:
        raise ConfigError(f"model.gguf = {model.gguf!r} is not the name of a file in model.path")
    if model.sha256 and not re.fullmatch(r"[0-9a-f]{64}", model.sha256):
        raise ConfigError(
            f"model.sha256 = {model.sha256!r} is not a SHA-256", remedy="64 digits of 0-9 and a-f, as sha256sum prints"
        )


def _check_adapter(manifest: Manifest) -> None:
    model, adapter, personal = manifest.model, manifest.adapter, manifest.personal
    if adapter.kind == "none":
        for path, given in (("adapter.freeze_a", adapter.freeze_a), ("personal.adapter", personal.adapter)):
            if given:
                raise ConfigError(f"{path} needs an adapter", remedy='set adapter.kind = "lora"')
    if adapter.kind == "lora" and not adapter.targets:
        raise ConfigError("adapter.targets is empty", remedy='for instance targets = ["q_proj", "v_proj"]')
    if model.quantized == "none":
        return
    if adapter.kind == "none" or personal.adapter:
        raise ConfigError(
            "weights in 4 bits cannot be trained: model.quantized needs an adapter that is trained instead",
            remedy='set adapter.kind = "lora" and personal.adapter = false',
        )
    if model.config or model.gguf:
        raise ConfigError(
            "model.quantized needs saved weights",
            remedy="convert a GGUF file once (python -m peer.from_gguf FILE FOLDER) and name the folder in model.path",
        )
