from __future__ import annotations

import ast
import logging
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from dht.errors import DataError
from dht.identity import Identity
from peer.corpus import KINDS, Corpus
from peer.data import open_data
from peer.manifest import Manifest
from peer.tokenizer import byte_tokenizer

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.build()


def test_it_is_real_text_of_every_kind(corpus):
    sizes = {kind: sum(file.size for file in corpus.files if file.kind == kind) for kind in KINDS}
    assert sum(sizes.values()) > 4_000_000
    assert min(sizes.values()) > 200_000
    paths = [file.path for file in corpus.files]
    assert len(set(paths)) == len(paths)
    assert "core-code/argparse.py" in paths
    assert "net-code/asyncio/tasks.py" in paths
    assert not [path for path in paths if "site-packages" in path or "/test/" in path]


def test_code_has_no_docstrings_and_prose_has_them(corpus):
    texts = {file.path: file.text for file in corpus.files}
    code, prose = texts["core-code/textwrap.py"], texts["prose/docstrings/textwrap.txt"]
    sentence = "Wrap a single paragraph of text, returning a list of wrapped lines."
    assert sentence in prose
    assert sentence not in code
    assert "class TextWrapper" in code
    assert "class TextWrapper" not in prose


def test_code_without_docstrings_still_parses(corpus):
    files = [file for file in corpus.files if file.kind in ("core-code", "net-code")]
    for file in files[::5]:
        tree = ast.parse(file.text, file.path)
        assert ast.get_docstring(tree) is None


def test_one_file_in_ten_is_held_out(corpus):
    assert 0.05 < len(corpus.heldout) / len(corpus.files) < 0.15
    assert {file.kind for file in corpus.heldout} == set(KINDS)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 16, 64])
def test_shards_share_nothing_and_leave_nothing_out(corpus, count):
    shards = [corpus.shard(index, count) for index in range(count)]
    assert all(shards)
    assert list(chain(*shards)) == [file for file in corpus.files if not file.is_heldout]
    sizes = [sum(file.size for file in shard) for shard in shards]
    if count <= 6:
        assert max(sizes) < 1.2 * min(sizes)


def test_shards_differ_in_kind(corpus):
    kinds = [{file.kind for file in corpus.shard(index, 6)} for index in range(6)]
    assert {"core-code"} in kinds
    assert {"prose"} in kinds
    assert any("tables" in shard for shard in kinds)


def test_there_is_no_shard_beyond_the_last(corpus):
    for index, count in [(6, 6), (-1, 6), (0, 10**6)]:
        with pytest.raises(DataError, match="no shard"):
            corpus.shard(index, count)


def test_hash_is_that_of_the_text(corpus):
    assert Corpus(corpus.files[1:]).sha256 != corpus.sha256


def test_written_shards_are_data(corpus, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        shards = corpus.write(tmp_path, 6)
    assert corpus.sha256 in caplog.text
    manifest = Manifest.demo(str(Identity(b"\x01" * 32).peer_id))
    tokenizer = byte_tokenizer()
    # The manifest's rule must agree with the corpus about what is held out: all of it there, nothing of it here.
    data = open_data(shards[2], manifest, tokenizer)
    assert len(data.tokens) == sum(file.size + 1 for file in corpus.shard(2, 6))
    held = open_data(tmp_path / "heldout", manifest, tokenizer, "heldout")
    assert len(held.tokens) == sum(file.size + 1 for file in corpus.heldout)
    with pytest.raises(DataError, match="no held-out text"):
        open_data(shards[2], manifest, tokenizer, "heldout")
    with pytest.raises(DataError, match="no training text"):
        open_data(tmp_path / "heldout", manifest, tokenizer)


def test_no_sources_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr("peer.corpus.sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match="does not hold Python's sources"):
        Corpus.build()


def test_command_makes_the_same_text_in_another_process(corpus, tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "peer.corpus", str(tmp_path / "out"), "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [str(tmp_path / "out" / "shard-0"), str(tmp_path / "out" / "shard-1")]
    assert corpus.sha256 in run.stderr
