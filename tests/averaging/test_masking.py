import json
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from averaging import masking
from averaging.layout import RING_DTYPES, Layout
from averaging.masking import Masker, add_stream, unmask

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "masking.json").read_text())
SID = bytes(32)


def keystream(key, chunk, size):
    """Counter mode spelled out with the block cipher alone."""
    blocks = b"".join(chunk.to_bytes(8, "big") + k.to_bytes(8, "big") for k in range(-(-size // 16)))
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(blocks)[:size]


def pair_keys(members):
    return {pair: sha256(b"pair%d-%d" % pair).digest()[:16] for pair in combinations(range(members), 2)}


def self_keys(members):
    return [sha256(b"self%d" % k).digest()[:16] for k in range(members)]


def maskers(members):
    pairs, own = pair_keys(members), self_keys(members)
    return [
        Masker(SID, i, own[i], {j: pairs[min(i, j), max(i, j)] for j in range(members) if j != i})
        for i in range(members)
    ]


@pytest.mark.parametrize("row", VECTORS, ids=lambda row: f"{row['ring_bits']}-{row['chunk']}")
def test_vectors_agree_with_counter_mode_spelled_out(row):
    dtype = RING_DTYPES[row["ring_bits"]]
    stream = np.frombuffer(keystream(bytes.fromhex(row["key"]), row["chunk"], row["words"] * dtype.itemsize), dtype)
    ring = np.zeros(row["words"], dtype)
    ring = ring + stream if row["sign"] > 0 else ring - stream
    assert sha256(ring.tobytes()).hexdigest() == row["sha256"]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([8, 16, 32]), st.integers(1, 140_000), st.integers(0, 2**40), st.sampled_from([1, -1]))
def test_a_stream_added_and_taken_is_gone(ring_bits, words, chunk, sign):
    before = (np.arange(words) * 2654435761 % 2**32).astype(RING_DTYPES[ring_bits])
    ring = before.copy()
    add_stream(bytes(16), chunk, ring, sign)
    assert words < 8 or not np.array_equal(ring, before)
    add_stream(bytes(16), chunk, ring, -sign)
    np.testing.assert_array_equal(ring, before)


@pytest.mark.parametrize("ring_bits", [8, 16, 32])
@pytest.mark.parametrize("members", [2, 3, 7])
def test_pair_masks_cancel_in_the_sum_of_all(ring_bits, members):
    layout = Layout(5000, ring_bits, 4096)
    for chunk in range(layout.total_chunks):
        total = layout.zeros(chunk)
        for masker in maskers(members):
            ring = layout.zeros(chunk)
            masker.apply(chunk, ring)
            total += ring
        assert total.any()
        unmask(chunk, total, self_keys(members), [])
        assert not total.any()


@pytest.mark.parametrize("dead", [{0}, {2}, {4}, {0, 3}, {1, 4}, {0, 1, 2, 3}])
def test_masks_towards_the_dead_are_stripped(dead):
    members, chunk = 5, 1
    pairs, own = pair_keys(members), self_keys(members)
    total = np.zeros(4096, "<u2")
    alive = [i for i in range(members) if i not in dead]
    for i in alive:
        ring = np.full(4096, i, "<u2")
        maskers(members)[i].apply(chunk, ring)
        total += ring
    unmask(chunk, total, [own[i] for i in alive], [(i, j, pairs[min(i, j), max(i, j)]) for i in alive for j in dead])
    np.testing.assert_array_equal(total, sum(alive))


def test_no_counter_is_used_twice(monkeypatch):
    """A log of every (key, counter block) of a cohort of six over all chunks and the trailer."""
    used: dict[int, list[tuple[bytes, int]]] = {}
    members, layout = 6, Layout(70_000, 16, 8192)

    class LoggingCipher:
        def __init__(self, algorithm, mode):
            self.start, self.key, self.real = int.from_bytes(mode.nonce, "big"), algorithm.key, Cipher(algorithm, mode)

        def encryptor(self):
            real = self.real.encryptor()

            def update_into(data, buffer):
                blocks = -(-len(data) // 16)
                used[me].extend((self.key, self.start + k) for k in range(blocks))
                self.start += blocks
                return real.update_into(data, buffer)

            return type("Context", (), {"update_into": staticmethod(update_into)})

    monkeypatch.setattr(masking, "Cipher", LoggingCipher)
    for me, masker in enumerate(maskers(members)):
        used[me] = []
        for chunk in range(layout.total_chunks):
            masker.apply(chunk, layout.zeros(chunk))
    blocks_each = sum(-(-layout.chunk_bytes(c) // 16) for c in range(layout.total_chunks))
    for log in used.values():
        assert len(log) == len(set(log)) == blocks_each * members
    # Over the cohort a counter of a pair key is used by exactly the two of that pair, one of a self key by its owner.
    everything = [entry for log in used.values() for entry in log]
    distinct_keys = members + members * (members - 1) // 2
    assert len(set(everything)) == blocks_each * distinct_keys


@pytest.mark.parametrize("ring_bits", [8, 16, 32])
def test_threads_do_not_share_buffers(ring_bits):
    layout = Layout(400_000, ring_bits)
    masker = maskers(4)[1]

    def masked(chunk):
        ring = layout.zeros(chunk)
        masker.apply(chunk, ring)
        return ring.tobytes()

    chunks = list(range(layout.total_chunks))
    alone = [masked(chunk) for chunk in chunks]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(masked, chunks * 10)) == alone * 10


def test_a_masked_chunk_looks_uniform():
    ring = np.zeros(1 << 16, "<u2")
    maskers(5)[2].apply(0, ring)
    counts = np.bincount(ring.view(np.uint8), minlength=256)
    expected = ring.nbytes / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 150 < chi_square < 400  # 255 degrees of freedom; the keys are fixed, so this cannot flake


def test_no_pair_key_with_oneself():
    with pytest.raises(ValueError):
        Masker(SID, 1, bytes(16), {0: bytes(16), 1: bytes(16)})
