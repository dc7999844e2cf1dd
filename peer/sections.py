"""The sections of a run manifest: one dataclass each, with the meaning, unit and bounds of every key."""

# ruff: noqa: RUF009  (key and section are dataclasses.field with facts about the key)
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from averaging.packing import LEAST_PACK, MOST_PACK
from dht.errors import ConfigError
from peer.strict_toml import key, section

HADAMARD_BLOCK = 4096
_MOST_DOMAINS = 16


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
    seed: int = key("Seed of a new model's first weights, and of an adapter's.", default=0, low=0, high=2**63 - 1)
    path: str = key("Or a folder that AutoModelForCausalLM.from_pretrained loads, on every peer.", default="")
    gguf: str = key(
        "Name of a GGUF file in `path` to load the weights from, and the tokenizer if its source is `path` too.",
        default="",
    )
    sha256: str = key(
        "SHA-256 of the weights in `path`, which every peer's must have: 64 hexadecimal digits, as sha256sum prints "
        "for one file; for several, that of sha256sum's own lines.",
        default="",
    )
    hub: str = key("Or the id of a model on the Hugging Face hub.", default="")
    revision: str = key("Commit of the hub model: 40 hexadecimal digits, since a branch name can move.", default="")
    dtype: str = key(
        "Arithmetic of forward and backward passes. Weights, momentum and updates are float32 in either case.",
        default="fp32",
        choices=("fp32", "bf16"),
    )
    quantized: str = key(
        "'nf4': matrices of the frozen base are held in 4 bits (bitsandbytes), under an adapter that is not.",
        default="none",
        choices=("none", "nf4"),
    )


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """[adapter]: train low-rank additions to a frozen model (LoRA, arXiv 2106.09685) instead of the model itself."""

    kind: str = key("'lora': only adapters are trained and travel.", default="none", choices=("none", "lora"))
    rank: int = key("Rank of the additions.", default=8, low=1, high=4096)
    alpha: float = key("Their scale: additions count alpha / rank.", default=16.0, low=1e-3, high=1e6)
    targets: tuple[str, ...] = key(
        "Names of the modules that get one: the last part of their dotted name, or all of it.",
        default=("q_proj", "v_proj"),
    )
    freeze_a: bool = key(
        "Train and send only B; A stays as the seed drew it. Means of updates are exact then (FFA-LoRA, arXiv "
        "2403.12313), and a good learning rate is higher.",
        default=False,
    )


@dataclass(frozen=True, kw_only=True)
class Personal:
    """[personal]: trained parameters that never leave a peer (FedPer, arXiv 1912.00818)."""

    patterns: tuple[str, ...] = key(
        "Names of such parameters, with the wildcards of file names: 'lm_head.*', '*.layers.29.*'.", default=()
    )
    adapter: bool = key("The adapter is each peer's own, on top of a model that is trained together.", default=False)


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
        "Inner optimizer; adamw8bit is bitsandbytes' (falls back to adamw where it does not run), muon takes "
        "orthogonal steps in the hidden layers' matrices and AdamW's elsewhere.",
        default="adamw",
        choices=("adamw", "adamw8bit", "muon"),
    )
    learning_rate: float = key("Inner learning rate, after the warm-up.", default=3e-3, low=1e-9, high=10.0)
    betas: tuple[float, float] = key("AdamW's decay rates.", default=(0.9, 0.99), low=0.0, high=0.999999)
    momentum: float = key("Muon's momentum.", default=0.9, low=0.0, high=0.999)
    weight_decay: float = key("Decoupled weight decay of matrices.", default=0.1, low=0.0, high=10.0)
    clip_norm: float = key("Global norm that gradients are clipped to.", default=1.0, low=1e-6, high=1e6)
    warmup: int = key("Inner steps over which the rate rises.", default=20, low=0, high=10**9, unit="steps")
    decay_rounds: int = key(
        "Rounds over which the rate falls along a cosine; 0: it stays.", default=0, low=0, high=10**9, unit="rounds"
    )
    final_rate: float = key("What is left of the rate then, and from then on.", default=0.1, low=0.0, high=1.0)
    tokens_per_step: int = key(
        "Tokens of one inner step, the same for all peers, whatever their memory; a multiple of data.sequence_length. "
        "0: each peer's own --batch-size.",
        default=0,
        low=0,
        high=2**31,
        unit="tokens",
    )
    max_bad_steps: int = key(
        "After so many steps in a row whose loss or gradient is not finite a peer adds nothing to the round, and "
        "starts over from the certified model.",
        default=8,
        low=1,
        high=10**6,
        unit="steps",
    )
    local_steps: int = key("Inner steps per round (fewer at a deadline).", default=10, low=1, high=10**6, unit="steps")
    overlap: bool = key(
        "Train on while a round is aggregated: an update lands one round late, and no accelerator waits for the line.",
        default=False,
    )
    tokens_per_round: int = key(
        "Tokens of one peer and round that count in full, in the tally and in the mean; more count no more.",
        default=10_240,
        low=1,
        high=2**31,
        unit="tokens",
    )


@dataclass(frozen=True, kw_only=True)
class Weights:
    """[weights]: how much each peer's update counts in the mean. The reward tally counts tokens, whatever is here."""

    by: str = key(
        "With x = tokens / train.tokens_per_round, at most 1: 'tokens' weighs by x, 'root' by its square root, 'equal' "
        "alike. By tokens, slow peers with data of their own are drowned.",
        default="root",
        choices=("tokens", "root", "equal"),
    )
    floor: float = key("Least weight of a peer that did one local step.", default=0.25, low=0.0, high=1.0)
    domains: tuple[str, ...] = key(
        "Kinds of data that peers may declare with --domain, so that losses are known for each; at most 16.", default=()
    )
    importance: float = key(
        "Weights are multiplied by (loss of the domain / mean loss)^this, that ratio held within 1/2 and 2: what the "
        "model knows badly counts for more. In eighths; 0: off.",
        default=0.0,
        low=0.0,
        high=1.0,
    )
    least: int = key(
        "A domain's losses are summed over at least so many peers of a cohort, even if some drop out, or are not told.",
        default=2,
        low=2,
        high=64,
        unit="peers",
    )

    def __post_init__(self) -> None:
        """Check what bounds alone cannot say. Raises ConfigError."""
        if len(self.domains) > _MOST_DOMAINS or len(set(self.domains)) < len(self.domains):
            raise ConfigError(f"weights.domains must be at most {_MOST_DOMAINS} different names")
        for name in self.domains:
            if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,31}", name):
                raise ConfigError(f"weights.domains has {name!r}", remedy='plain names, for instance ["code", "prose"]')
        if self.importance * 8 % 1:
            raise ConfigError(
                f"weights.importance = {self.importance} is no multiple of 1/8", remedy="for instance 0.25, 0.5 or 1"
            )
        if self.importance and not self.domains:
            raise ConfigError("weights.importance needs weights.domains", remedy="name the domains, or set it to 0")


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
    momentum_rounds: int = key(
        "Rounds over which the momentum rises from 0, for a new model's first rounds; 0: it is there at once.",
        default=0,
        low=0,
        high=10**6,
        unit="rounds",
    )


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

    fragments: int = key(
        "Parts of the model, of which each round sums one, in turn: a round sends so many times less.",
        default=1,
        low=1,
        high=64,
    )
    pack: int = key(
        "Elements that share one word of the 32-bit ring, each with 32 / pack bits: 7 serves cohorts of up to 22, 8 of "
        "up to 15, 10 of up to 8, 13 of up to 4 members; the fewer members, the finer the rounding. 1: one element "
        "per word.",
        default=1,
        low=1,
        high=MOST_PACK,
    )

    def __post_init__(self) -> None:
        """Check what bounds alone cannot say. Raises ConfigError."""
        if self.chunk_elements % HADAMARD_BLOCK:
            raise ConfigError(f"codec.chunk_elements = {self.chunk_elements} is not a multiple of {HADAMARD_BLOCK}")
        if self.pack > 1 and (self.ring_bits != 32 or self.pack < LEAST_PACK):
            raise ConfigError(
                f"codec.pack = {self.pack} with codec.ring_bits = {self.ring_bits}",
                remedy=f"packed elements need ring_bits = 32 and pack from {LEAST_PACK} to {MOST_PACK}",
            )


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """[privacy]: what protects an update."""

    aggregation: str = key(
        "'masked': updates leave a peer only under pairwise masks that cancel in the sum.",
        default="masked",
        choices=("masked",),
    )
    noise_multiplier: float = key(
        "EXPERIMENT. z > 0: discrete Gaussian noise of deviation z * clip_norm is in every cohort's sum, each member "
        "adding its share; needs codec.ring_bits = 32. 0: none. docs/privacy.md says what that costs.",
        default=0.0,
        low=0.0,
        high=1e3,
    )
    clip_norm: float = key(
        "Norm that each peer's whole update is clipped to where there is such noise.", default=1.0, low=1e-6, high=1e6
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
