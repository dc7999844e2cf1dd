"""The sums of an undecided round on disk: whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging.layout import Layout
from averaging.wide import wide_dtype
from dht.errors import StorageError
from peer.prepared import Prepared

LAYOUTS = {bits: Layout(9000, bits, 4096) for bits in (8, 16, 32)}


def make(layout: Layout, seed: int = 0) -> Prepared:
    source = np.random.default_rng(seed)
    sums = []
    for chunk in range(layout.total_chunks):
        dtype = layout.dtype(chunk)
        sums.append(source.integers(0, 256, layout.chunk_bytes(chunk), np.uint8).view(dtype))
    return Prepared(7, b"b" * 32, b"a" * 32, b"s" * 32, 6, (9, 8, 12_345), (0, 2, 1), (1,), tuple(sums))


def same(one: Prepared, two: Prepared | None) -> bool:
    names = ("round", "before", "after", "sid", "members", "survivors", "tokens", "domains", "lost")
    return (
        two is not None
        and all(getattr(one, name) == getattr(two, name) for name in names)
        and len(one.sums) == len(two.sums)
        and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one.sums, two.sums, strict=True))
    )


@pytest.mark.parametrize("bits", LAYOUTS)
def test_round_trip(bits: int, tmp_path: Path):
    path, prepared = tmp_path / "prepared.bin", make(LAYOUTS[bits])
    prepared.save(path)
    assert same(prepared, Prepared.load(path, LAYOUTS[bits]))
    later = make(LAYOUTS[bits], 1).leading_to(b"z" * 32)
    later.save(path)
    assert same(later, Prepared.load(path, LAYOUTS[bits]))
    assert later.after == b"z" * 32
    assert os.listdir(tmp_path) == ["prepared.bin"]


@pytest.mark.parametrize("bits", LAYOUTS)
def test_sums_across_cohorts_come_back_as_wide_as_they_were(bits: int, tmp_path: Path):
    layout, source = LAYOUTS[bits], np.random.default_rng(5)
    dtypes = [wide_dtype(layout, chunk) for chunk in range(layout.total_chunks)]
    sums = [source.integers(-(2**20), 2**20, layout.words(c)).astype(dtype) for c, dtype in enumerate(dtypes)]
    prepared = Prepared(7, b"b" * 32, b"a" * 32, b"s" * 32, 6, tuple(range(1, 41)), (), (), tuple(sums))
    prepared.save(tmp_path / "prepared.bin")
    loaded = Prepared.load(tmp_path / "prepared.bin", layout)
    assert same(prepared, loaded)
    assert prepared.wide
    assert not make(layout).wide


def test_nothing_there(tmp_path: Path):
    assert Prepared.load(tmp_path / "prepared.bin", LAYOUTS[16]) is None
    (tmp_path / "prepared.bin").mkdir()
    assert Prepared.load(tmp_path / "prepared.bin", LAYOUTS[16]) is None


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prepared") / "prepared.bin"
    make(LAYOUTS[16]).save(path)
    return path


def load_bytes(data: bytes, folder: Path) -> Prepared | None:
    path = folder / "other.bin"
    path.write_bytes(data)
    return Prepared.load(path, LAYOUTS[16])


@given(st.data())
def test_damaged_is_as_good_as_nothing(saved: Path, data: st.DataObject):
    good = saved.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1) | st.integers(0, 300))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    assert load_bytes(bytes(bad), saved.parent) is None
    assert load_bytes(good[:at], saved.parent) is None
    assert load_bytes(good + good[:at] + b"x", saved.parent) is None
    assert load_bytes(good, saved.parent) is not None


@given(st.binary(max_size=200))
def test_anything_else_is_nothing(saved: Path, data: bytes):
    assert load_bytes(data, saved.parent) is None


def test_sums_of_another_model_are_nothing(saved: Path):
    assert Prepared.load(saved, Layout(20_000, 16, 4096)) is None
    assert Prepared.load(saved, LAYOUTS[32]) is None


def test_a_full_disk_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, older = tmp_path / "prepared.bin", make(LAYOUTS[16])
    older.save(path)
    fired = []

    def full(descriptor: int) -> None:
        fired.append(descriptor)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            make(LAYOUTS[16], 1).save(path)
    assert fired
    assert same(older, Prepared.load(path, LAYOUTS[16]))
