from __future__ import annotations

import json
import os
import tracemalloc

import datasets
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dht.errors import DataError, StorageError
from dht.identity import Identity
from peer.data import TokenBatches, TokenData, open_data
from peer.documents import is_heldout
from peer.manifest import Data, Manifest
from peer.tokenizer import byte_tokenizer

LENGTH = 16
BYTES = byte_tokenizer()
DEMO = Manifest.demo(str(Identity(b"\x01" * 32).peer_id), data=Data(sequence_length=LENGTH, heldout="hash:3"))
TEXTS = [f"text number {number}, which goes on for a while.\n" for number in range(40)]


def tokens_of(texts: list[str]) -> list[int]:
    return [token for text in texts for token in [*text.encode(), 256]]


def split(names: list[str], texts: list[str]) -> tuple[list[str], list[str]]:
    held = [is_heldout(name, 3) for name in names]
    train = [text for text, out in zip(texts, held, strict=True) if not out]
    return train, [text for text, out in zip(texts, held, strict=True) if out]


def write_folder(path):
    for number, text in enumerate(TEXTS):
        file = path / f"sub{number % 3}" / f"{number:02d}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def write_jsonl(path):
    path.write_text("\n".join(json.dumps({"text": text, "other": 1}) for text in TEXTS) + "\n\n")
    return path


def write_parquet(path):
    parquet.write_table(pyarrow.table({"text": TEXTS, "other": list(range(40))}), path)
    return path


def write_dataset(path):
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(path))
    return path


@pytest.fixture(autouse=True, scope="module")
def no_progress_bars():
    datasets.disable_progress_bars()


@pytest.mark.parametrize(
    ("write", "name"),
    [(write_jsonl, "data.jsonl"), (write_parquet, "data.parquet"), (write_dataset, "saved")],
    ids=["jsonl", "parquet", "dataset"],
)
def test_records_are_split_by_their_text(tmp_path, write, name):
    path = write(tmp_path / name)
    train, held = split(TEXTS, TEXTS)
    assert min(len(train), len(held)) > 5
    assert open_data(path, DEMO, BYTES).tokens.tolist() == tokens_of(train)
    assert open_data(path, DEMO, BYTES, "heldout").tokens.tolist() == tokens_of(held)


def test_a_folder_is_split_by_paths(tmp_path):
    write_folder(tmp_path)
    (tmp_path / ".hidden").write_text("not read")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.pyc").write_bytes(b"\0\1")
    order = sorted(range(40), key=lambda number: (f"sub{number % 3}", f"{number:02d}.txt"))
    train, held = split([f"sub{n % 3}/{n:02d}.txt" for n in order], [TEXTS[n] for n in order])
    assert open_data(tmp_path, DEMO, BYTES).tokens.tolist() == tokens_of(train)
    assert open_data(str(tmp_path), DEMO, BYTES, "heldout").tokens.tolist() == tokens_of(held)


def test_a_folder_may_hold_records(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    write_parquet(tmp_path / "b.parquet")
    both = [open_data(tmp_path, DEMO, BYTES, split).tokens for split in ("train", "heldout")]
    assert sorted(np.concatenate(both).tolist()) == sorted(tokens_of(TEXTS + TEXTS))


def test_a_text_file_is_cut_into_records(tmp_path):
    path = tmp_path / "book.txt"
    text = "".join(f"line {number}: the quick brown fox\n" for number in range(4000))
    path.write_text(text)
    parts = [open_data(path, DEMO, BYTES, split).tokens for split in ("train", "heldout")]
    assert min(map(len, parts)) > len(text) // 6
    pieces = [piece for part in parts for piece in bytes(part[part < 256].astype(np.uint8)).decode().split("\n")]
    assert sorted(pieces) == sorted([*text.split("\n"), ""])  # nothing lost, nothing twice, cut at line ends


def test_a_line_without_end_is_cut_all_the_same(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("".join(chr(0x4E00 + number % 20_000) for number in range(50_000)))
    parts = [open_data(path, DEMO, BYTES, split).tokens for split in ("train", "heldout")]
    assert sum(int((part < 256).sum()) for part in parts) == 150_000
    assert min(int((part == 256).sum()) for part in parts) >= 1  # several records, on both sides


def test_a_dataset_with_named_splits(tmp_path):
    both = {
        "train": datasets.Dataset.from_dict({"text": TEXTS[:30]}),
        "test": datasets.Dataset.from_dict({"text": TEXTS[30:]}),
    }
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "saved"))
    manifest = DEMO.replace(data=Data(sequence_length=LENGTH, heldout="split:test"))
    assert open_data(tmp_path / "saved", manifest, BYTES).tokens.tolist() == tokens_of(TEXTS[:30])
    assert open_data(tmp_path / "saved", manifest, BYTES, "heldout").tokens.tolist() == tokens_of(TEXTS[30:])
    missing = DEMO.replace(data=Data(sequence_length=LENGTH, heldout="split:nope"))
    with pytest.raises(DataError, match="nope"):
        open_data(tmp_path / "saved", missing, BYTES, "heldout")
    with pytest.raises(DataError, match="no column 'body'"):
        open_data(tmp_path / "saved", manifest, BYTES, text_field="body")
    with pytest.raises(DataError, match="no split 'test'"):
        open_data(write_folder(tmp_path / "folder"), manifest, BYTES, "heldout")


def test_a_dataset_by_name(monkeypatch):
    asked = []

    def load_dataset(name, configuration, split):
        asked.append((name, configuration, split))
        return datasets.Dataset.from_dict({"text": TEXTS})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert open_data("org/name:english", DEMO, BYTES).tokens.tolist() == tokens_of(split(TEXTS, TEXTS)[0])
    assert asked == [("org/name", "english", "train")]


def test_a_configuration_and_a_split_by_name(monkeypatch):
    asked = []

    def load_dataset(*named, split):
        asked.append((*named, split))
        return datasets.Dataset.from_dict({"other": [1], "body": TEXTS[:1]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("org/name@validation", "org/name:en@train[:10%]", "org/name:en", "org/name"):
        with pytest.raises(DataError, match="no column 'text'") as caught:
            open_data(name, DEMO, BYTES)
        assert "name one of body with --text-field" in caught.value.remedy
    wanted = [(None, "validation"), ("en", "train[:10%]"), ("en", "train"), (None, "train")]
    assert asked == [("org/name", *choice) for choice in wanted]
    with pytest.raises(DataError, match="'other' is not text"):
        open_data("org/name", DEMO, BYTES, text_field="other")


def test_splits_of_a_saved_dataset(tmp_path):
    parts = {"validation": TEXTS[:30], "test": TEXTS[30:]}
    both = {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in parts.items()}
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "saved"))
    manifest = DEMO.replace(data=Data(sequence_length=LENGTH, heldout="split:test"))
    with pytest.raises(DataError, match="no split 'train'") as caught:
        open_data(tmp_path / "saved", manifest, BYTES)
    assert f"{tmp_path}/saved@validation" in caught.value.remedy
    named = f"{tmp_path}/saved@validation"
    assert open_data(named, manifest, BYTES).tokens.tolist() == tokens_of(TEXTS[:30])
    assert open_data(named, manifest, BYTES, "heldout").tokens.tolist() == tokens_of(TEXTS[30:])
    for held_out in ("test", "test[:50%]", "validation+test"):
        with pytest.raises(DataError, match="holds out"):
            open_data(f"{tmp_path}/saved@{held_out}", manifest, BYTES)
    with pytest.raises(DataError, match="part of a split"):
        open_data(f"{named}[:50%]", manifest, BYTES)
    before = open_data(named, manifest, BYTES).fingerprint
    assert before != open_data(f"{tmp_path}/saved@test", DEMO, BYTES).fingerprint
    (tmp_path / "saved" / "validation" / "state.json").touch()
    assert open_data(named, manifest, BYTES).fingerprint != before


def test_offline_mode_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError) as caught:
        open_data("no/such-thing", DEMO, BYTES)
    assert "HF_HUB_OFFLINE" in caught.value.remedy


def test_what_is_neither_here_nor_on_the_hub():
    with pytest.raises(DataError, match="cannot load no/such-thing") as caught:
        open_data("no/such-thing", DEMO, BYTES)
    assert "check the spelling" in str(caught.value)
    with pytest.raises(DataError, match="cannot load"):
        open_data("x" * 5000, DEMO, BYTES)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.txt", b"", "has no training text"),
        ("short.txt", b"hi", "too short: 3 tokens"),
        ("binary.txt", b"text\0more" * 100, "is binary"),
        ("latin.txt", "é".encode("latin-1") * 100, "not UTF-8"),
        ("bad.jsonl", b'{"text": "a"}\n{oops\n', "line 2 is not JSON"),
        ("keys.jsonl", b'{"body": "a"}\n', "line 1 has no string 'text'"),
        ("list.jsonl", b"[1]\n", "line 1 has no string 'text'"),
        ("bad.parquet", b"not parquet at all", "as parquet"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    manifest = DEMO.replace(data=Data(sequence_length=LENGTH, heldout="hash:999983"))  # holds out next to nothing
    with pytest.raises(DataError) as caught:
        open_data(path, manifest, BYTES)
    assert says in caught.value.message
    assert name in caught.value.message
    assert caught.value.remedy


def test_folders_without_text_are_named(tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="no training text"):
        open_data(tmp_path, DEMO, BYTES)
    (tmp_path / "one.txt").write_text("x" * 100)
    held = "heldout" if not is_heldout("one.txt", 3) else "train"
    with pytest.raises(DataError, match=r"no .* text"):
        open_data(tmp_path, DEMO, BYTES, held)


def test_unreadable_file(tmp_path):
    path = tmp_path / "loop.txt"
    path.symlink_to(path)
    with pytest.raises(DataError, match="loop"):
        open_data(path, DEMO, BYTES)


def test_wrong_column(tmp_path):
    with pytest.raises(DataError, match="no column 'body'") as caught:
        open_data(write_parquet(tmp_path / "d.parquet"), DEMO, BYTES, text_field="body")
    assert "text, other" in caught.value.remedy


def test_tokens_are_cached_until_something_changes(tmp_path):
    path, cache = write_folder(tmp_path / "data"), tmp_path / "cache"
    first = open_data(path, DEMO, BYTES, cache=cache)
    (file,) = cache.iterdir()
    made = file.stat().st_mtime_ns
    again = open_data(path, DEMO, BYTES, cache=cache)
    assert file.stat().st_mtime_ns == made
    assert again.tokens.tolist() == first.tokens.tolist()
    assert again.fingerprint == first.fingerprint
    changed = path / "sub0" / "00.txt"
    changed.write_text("other text that is longer than it was before")
    assert open_data(path, DEMO, BYTES, cache=cache).fingerprint != first.fingerprint
    assert len(list(cache.iterdir())) == 2


def test_a_cut_off_tokenization_is_not_taken_for_the_data(tmp_path):
    path, cache = write_folder(tmp_path / "data"), tmp_path / "cache"
    (path / "sub2" / "zz.txt").write_bytes(b"\0")
    manifest = DEMO.replace(data=Data(sequence_length=LENGTH, heldout="hash:999983"))
    with pytest.raises(DataError, match=r"zz\.txt"):
        open_data(path, manifest, BYTES, cache=cache)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot store tokens"):
        open_data(write_folder(tmp_path / "data"), DEMO, BYTES, cache=tmp_path / "file" / "cache")


def test_other_tokenizers_and_the_smallest_integers(tmp_path):
    core = Tokenizer(models.BPE(unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=120, special_tokens=["<eos>", "?"], show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", unk_token="?")
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": text + "<eos>"}) + "\n" for text in TEXTS))
    data = open_data(path, DEMO, tokenizer)
    assert data.tokens.dtype == np.uint8
    train, _ = split([text + "<eos>" for text in TEXTS], TEXTS)
    # Text that spells the end-of-text token must not end a document: one real end for each.
    assert int((data.tokens == tokenizer.eos_token_id).sum()) == len(train)
    assert open_data(path, DEMO, BYTES).tokens.dtype == np.uint16


# -- batches ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Ten sequences whose first token tells which one it is."""
    path = tmp_path_factory.mktemp("data") / "x.jsonl"
    path.write_text("".join(json.dumps({"text": chr(65 + n) * (LENGTH - 1)}) + "\n" for n in range(10)))
    return open_data(path, DEMO.replace(data=Data(sequence_length=LENGTH, heldout="hash:999983")), BYTES)


def firsts(batches: TokenBatches, count: int) -> list[int]:
    return [int(row[0]) - 65 for _ in range(count) for row in batches.next()]


def test_every_sequence_once_per_epoch(numbered):
    assert numbered.sequences == 10
    seen = firsts(TokenBatches(numbered, 4, seed=1), 10)
    epochs = [seen[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_batches_are_whole_sequences(numbered):
    batch = TokenBatches(numbered, 4, seed=1).next()
    assert (batch.shape, batch.dtype) == ((4, LENGTH), np.int64)
    assert all((row[:-1] == row[0]).all() and row[-1] == 256 for row in batch)


def test_order_follows_from_the_seed(numbered):
    assert firsts(TokenBatches(numbered, 4, seed=1), 9) == firsts(TokenBatches(numbered, 4, seed=1), 9)
    assert firsts(TokenBatches(numbered, 4, seed=1), 9) != firsts(TokenBatches(numbered, 4, seed=2), 9)


@pytest.mark.parametrize("done", [0, 1, 2, 5, 13])
def test_goes_on_in_the_middle_of_an_epoch(numbered, done):
    whole = TokenBatches(numbered, 3, seed=4)
    firsts(whole, done)
    state = json.loads(json.dumps(whole.state()))
    resumed = TokenBatches(numbered, 3, seed=4)
    resumed.restore(state)
    assert firsts(resumed, 12) == firsts(whole, 12)


def test_position_of_other_data_is_not_used(numbered, caplog):
    batches = TokenBatches(numbered, 4, seed=1)
    batches.restore(TokenBatches(numbered, 4, seed=2).state() | {"epoch": 3})
    assert "starts over" in caplog.text
    assert batches.state()["epoch"] == 0


def test_a_batch_larger_than_the_data(numbered):
    assert sorted(firsts(TokenBatches(numbered, 25, seed=1), 2)) == sorted(list(range(10)) * 5)


def test_evaluation_is_spread_and_repeatable(numbered):
    def rows(limit=None):
        return [int(row[0]) - 65 for batch in numbered.evaluation(3, limit) for row in batch]

    assert rows() == list(range(10))
    assert rows(5) == rows(5) == [0, 2, 4, 6, 8]
    assert rows(99) == list(range(10))


def test_memory_does_not_grow_with_the_data(tmp_path):
    path = tmp_path / "big.txt"
    with path.open("w") as file:
        for number in range(200_000):
            file.write(f"line {number} of a rather large file that would not fit\n")
    size = os.path.getsize(path)
    tracemalloc.start()
    data = open_data(path, DEMO, BYTES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(data.tokens) > size // 2
    assert peak < size // 4


def test_text_shorter_than_a_step_is_said_in_numbers():
    short = TokenData(np.zeros(5 * 16 + 3, np.uint8), 16, "short")
    said = short.shortage(8)
    assert "5 sequences of 16 tokens, fewer than the 8 of one local step" in said and "128 tokens or more" in said
    assert short.shortage(5) == ""
    # It is still trained on: a step takes each sequence at least once.
    batch = TokenBatches(TokenData(np.arange(80, dtype=np.uint8), 16, "few"), 8, 0).next()
    assert sorted(set(batch[:, 0].tolist())) == [0, 16, 32, 48, 64] and len(batch) == 8
