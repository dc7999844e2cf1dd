"""What the convergence benchmark trains on: the interpreter's own library, dealt to four peers, and a byte Llama.

The corpus is the same for everybody with the same Python (its hash goes into the results). A sequence has 128 bytes.
`iid`: the sequences of all kinds of text are dealt out at random. `kinds`: each peer has a kind of text of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from peer.corpus import KINDS, Corpus
from peer.data import TokenData
from peer.manifest import Data, Manifest, Model

SEQUENCE = 128
PEERS = len(KINDS)
_PER_KIND = 9500  # sequences: the smallest kind, tables, has as many
_HELDOUT_PER_KIND = 40
_FOUNDER = "16Uiu2HAmFTB5JyjVKpx7rPuK8scafyTArQfhRDGDSu3saLuH95CW"
SIZES = {
    "0.12M": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4},
    "0.36M": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4},
    "1.1M": {"hidden_size": 160, "intermediate_size": 432, "num_hidden_layers": 3, "num_attention_heads": 4},
}


@dataclass(frozen=True)
class Task:
    """Training data of each peer, int16[sequences, 128] each, and held-out text of all kinds in equal parts."""

    shards: tuple[npt.NDArray[np.uint16], ...]
    heldout: npt.NDArray[np.uint16]
    corpus: str

    def data(self, peer: int | None) -> TokenData:
        """The data of one peer; of all together for None."""
        rows = np.concatenate(self.shards) if peer is None else self.shards[peer]
        return TokenData(rows.reshape(-1), SEQUENCE, f"{self.corpus}/{peer}")

    def evaluation(self) -> TokenData:
        """The held-out text."""
        return TokenData(self.heldout.reshape(-1), SEQUENCE, f"{self.corpus}/heldout")


@cache
def task(split: str) -> Task:
    """`split`: iid or kinds."""
    corpus = Corpus.build()
    train = [_sequences(corpus, kind, heldout=False)[:_PER_KIND] for kind in KINDS]
    heldout = [_spread(_sequences(corpus, kind, heldout=True), _HELDOUT_PER_KIND) for kind in KINDS]
    if split == "iid":
        rows = np.concatenate(train)
        rows = rows[np.random.Generator(np.random.PCG64(0)).permutation(len(rows))]
        train = [rows[peer::PEERS] for peer in range(PEERS)]
    return Task(tuple(train), np.concatenate(heldout), corpus.sha256)


def _sequences(corpus: Corpus, kind: str, *, heldout: bool) -> npt.NDArray[np.uint16]:
    end = np.array([256], np.uint16)
    texts = (file.text for file in corpus.files if file.kind == kind and file.is_heldout == heldout)
    parts = [part for text in texts for part in (np.frombuffer(text.encode(), np.uint8).astype(np.uint16), end)]
    tokens = np.concatenate(parts)
    return tokens[: len(tokens) // SEQUENCE * SEQUENCE].reshape(-1, SEQUENCE)


def _spread(rows: npt.NDArray[np.uint16], count: int) -> npt.NDArray[np.uint16]:
    return rows[np.arange(count) * len(rows) // count]


def base_manifest(size: str, seed: int) -> Manifest:
    """A run of four peers; `seed` draws the first weights."""
    config = {"model_type": "llama", "vocab_size": 257, "max_position_embeddings": SEQUENCE}
    config |= {"tie_word_embeddings": True, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
    return Manifest.demo(
        _FOUNDER,
        name="convergence",
        genesis_peers=PEERS,
        model=Model(config=config | SIZES[size], seed=seed),
        data=Data(sequence_length=SEQUENCE),
    )
