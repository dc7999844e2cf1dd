"""From text to batches: tokenize once into a memory-mapped file, pack to the sequence length, shuffle by seed.

Tokens take the smallest unsigned integer that holds the vocabulary, on disk, whatever the size of the text. The order
of an epoch follows from (seed, epoch), so a position is two numbers and training goes on in the middle of an epoch.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dht.errors import DataError, StorageError
from peer.documents import Piece, Source, Split
from peer.manifest import Manifest
from peer.tokenizer import fingerprint, is_byte_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenData:
    """Tokens of one split, cut into sequences one after the other; what is left at the end is unused."""

    tokens: NDArray[Any]  # uint8, uint16 or uint32, memory-mapped
    sequence_length: int
    fingerprint: str

    @property
    def sequences(self) -> int:
        """Number of whole sequences."""
        return len(self.tokens) // self.sequence_length

    def shortage(self, batch_size: int) -> str:
        """What to tell whose text has fewer sequences than one local step takes; empty where it has enough."""
        if self.sequences >= batch_size:
            return ""
        length = self.sequence_length
        return (
            f"the training text has {self.sequences} sequences of {length} tokens, fewer than the {batch_size} of one "
            f"local step, so each step repeats some: give {batch_size * length} tokens or more, or take smaller batches"
        )

    def gather(self, indices: Iterable[int]) -> NDArray[np.int64]:
        """Sequences by index, int64[len(indices), sequence_length]."""
        length = self.sequence_length
        return np.stack([self.tokens[index * length : (index + 1) * length] for index in indices]).astype(np.int64)

    def evaluation(self, batch_size: int, limit: int | None = None) -> Iterator[NDArray[np.int64]]:
        """At most `limit` sequences, evenly spread and the same on every call, in batches for `Trainer.evaluate`."""
        count = min(self.sequences, limit or self.sequences)
        chosen = [position * self.sequences // count for position in range(count)]
        for start in range(0, count, batch_size):
            yield self.gather(chosen[start : start + batch_size])


class TokenBatches:
    """Endless batches int64[batch_size, sequence_length]: every sequence once per epoch, in an order from the seed."""

    def __init__(self, data: TokenData, batch_size: int, seed: int) -> None:
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self._epoch = 0
        self._position = 0
        self._order = self._shuffled()

    def next(self) -> NDArray[np.int64]:
        """The next batch. One that reaches the end of an epoch goes on with the start of the next."""
        chosen: list[int] = []
        while len(chosen) < self.batch_size:
            taken = self._order[self._position : self._position + self.batch_size - len(chosen)]
            chosen += taken.tolist()
            self._position += len(taken)
            if self._position == len(self._order):
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._shuffled()
        return self.data.gather(chosen)

    def state(self) -> dict[str, Any]:
        """Epoch and position, bound to the data and the seed."""
        bound = {"data": self.data.fingerprint, "seed": self.seed}
        return bound | {"epoch": self._epoch, "position": self._position}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a position from `state()`. With other data or another seed it says so and stays where it is."""
        if state.get("data") != self.data.fingerprint or state.get("seed") != self.seed:
            log.warning("the training data has changed: its first epoch starts over")
            return
        self._epoch, self._position = int(state["epoch"]), int(state["position"])
        self._order = self._shuffled()

    def _shuffled(self) -> NDArray[np.uint32]:
        generator = np.random.Generator(np.random.PCG64([self.seed, self._epoch]))
        return generator.permutation(np.arange(self.data.sequences, dtype=np.uint32))


def open_data(
    location: str | Path,
    manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    split: Split = "train",
    *,
    cache: Path | None = None,
    text_field: str = "text",
) -> TokenData:
    """Tokenized data of one split of a file, folder or dataset name.

    `cache`: folder for the tokens, used again while files, manifest rule and tokenizer stay the same; by default
    they go to a temporary file. Raises DataError for what is empty, unreadable, binary or shorter than one
    sequence, StorageError when the tokens cannot be written.
    """
    source = Source(str(location), split, manifest.data.heldout, text_field)
    name = sha256(f"{source.fingerprint()}\n{fingerprint(tokenizer)}".encode()).hexdigest()[:32]
    dtype = np.dtype(np.min_scalar_type(max(len(tokenizer) - 1, tokenizer.eos_token_id)))
    try:
        tokens = _tokens(source, tokenizer, dtype, cache / f"tokens-{name}.bin" if cache else None)
    except OSError as error:
        raise StorageError(f"cannot store tokens: {error}", remedy="free disk space or set another folder") from error
    length = manifest.data.sequence_length
    if len(tokens) < length:
        raise _too_short(source, len(tokens), length)
    return TokenData(tokens, length, name)


def _too_short(source: Source, tokens: int, length: int) -> DataError:
    kind = "held-out text" if source.split == "heldout" else "training text"
    remedy = f"give at least one sequence of {length} tokens"
    if source.split == "heldout":
        remedy += f", or more files so that the rule {source.heldout} catches some"
    if tokens == 0:
        return DataError(f"{source.location} has no {kind}", remedy=remedy)
    return DataError(f"{source.location} is too short: {tokens} tokens of {kind}", remedy=remedy)


def _tokens(
    source: Source, tokenizer: PreTrainedTokenizerBase, dtype: np.dtype[Any], path: Path | None
) -> NDArray[Any]:
    if path is None:
        with tempfile.TemporaryFile(prefix="murmuration-") as file:
            _write(file, source.pieces(), tokenizer, dtype)
            return _mapped(file, dtype)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when whole: a tokenizer run that was cut off must not pass for the data.
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                _write(file, source.pieces(), tokenizer, dtype)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    with path.open("rb") as file:
        return _mapped(file, dtype)


def _mapped(file: IO[bytes], dtype: np.dtype[Any]) -> NDArray[Any]:
    size = os.fstat(file.fileno()).st_size
    return np.memmap(file, dtype=dtype, mode="r") if size else np.empty(0, dtype)


def _write(file: IO[bytes], pieces: Iterator[Piece], tokenizer: PreTrainedTokenizerBase, dtype: np.dtype[Any]) -> None:
    """Append the tokens of all pieces, an end-of-text token after each document that is not empty."""
    is_bytes = is_byte_tokenizer(tokenizer)
    end = np.array([tokenizer.eos_token_id], dtype)
    open_document = False
    for text, ends in pieces:
        if text:
            ids = np.frombuffer(text.encode("utf-8", "replace"), np.uint8) if is_bytes else _encode(tokenizer, text)
            file.write(ids.astype(dtype).data)
            open_document = True
        if ends and open_document:
            file.write(end.data)
            open_document = False
    file.flush()


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> NDArray[np.uint32]:
    # Text that spells a control token stays text, else data could end documents or open chat turns.
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return np.asarray(ids, np.uint32)
