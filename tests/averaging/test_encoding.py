import math
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from averaging.encoding import Decoder, Encoder, NonFiniteUpdateError, levels, quantise, squared_norm
from averaging.keys import MemberSecrets, check_mask_seed, check_self_seed, mask_private_from_seed, pair_key, self_key
from averaging.layout import BLOCK, RING_DTYPES, Layout
from averaging.masking import Masker, unmask
from averaging.shamir import combine, split
from dht.errors import RoundError

SEED = bytes(range(32))
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32}


def key(label):
    return sha256(repr(label).encode()).digest()[:16]


def updates(members, parameters, size=1e-3):
    rng = np.random.default_rng(members)
    common = rng.standard_normal(parameters)
    return [(size * (common + rng.standard_normal(parameters))).astype(np.float32) for _ in range(members)]


def clips(layout, clip=1e-2):
    return np.full(layout.blocks, clip, np.float32)


def encode(encoder, chunk, update, weight=1.0, label=0):
    ring = encoder.layout.zeros(chunk)
    encoder.encode_chunk(chunk, update, weight, key(label), ring)
    return ring


class Cohort:
    """Members with real keys, and the masked sum of any survivors by the protocol's own steps."""

    def __init__(self, layout, members):
        self.layout, self.members, self.sid = layout, members, sha256(b"sid").digest()
        self.secrets = [MemberSecrets.generate() for _ in range(members)]
        self.public = [secrets.public() for secrets in self.secrets]
        self.delta = 0 if members == 3 else max(1, members // 8)
        self.threshold = members - self.delta
        self.shares_a = [split(secrets.a, self.threshold, members) for secrets in self.secrets]
        self.shares_b = [split(secrets.b, self.threshold, members) for secrets in self.secrets]

    def masker(self, i):
        pairs = {
            j: pair_key(self.secrets[i].mask_private, self.public[j].mask_key, self.sid, i, j)
            for j in range(self.members)
            if j != i
        }
        return Masker(self.sid, i, self_key(self.secrets[i].b, self.sid), pairs)

    def unmasking(self, alive):
        """Keys to strip, from seeds that the survivors' shares reconstruct."""
        helpers = alive[: self.threshold]
        own, dead = [], []
        for i in range(self.members):
            if i in alive:
                b = combine({h: self.shares_b[i][h] for h in helpers}, self.threshold)
                assert check_self_seed(b, self.public[i].self_commitment)
                own.append(self_key(b, self.sid))
            else:
                a = combine({h: self.shares_a[i][h] for h in helpers}, self.threshold)
                assert check_mask_seed(a, self.public[i].mask_key)
                private = mask_private_from_seed(a)
                dead += [(s, i, pair_key(private, self.public[s].mask_key, self.sid, i, s)) for s in alive]
        return own, dead


@pytest.mark.parametrize("ring_bits", [8, 16, 32])
@pytest.mark.parametrize("members", range(3, 17))
def test_masked_sum_minus_masks_is_the_integer_sum(members, ring_bits):
    """The oracle: exactly the sum of what the survivors encoded, for every number of deaths up to delta."""
    layout = Layout(2 * BLOCK - 100, ring_bits, BLOCK)
    cohort = Cohort(layout, members)
    encoder = Encoder(layout, members, clips(layout, 4e-3), SEED)
    vectors = updates(members, layout.parameters)
    encoded = [[encode(encoder, c, u, 0.7, (i, c)) for c in range(layout.chunks)] for i, u in enumerate(vectors)]
    for i in range(members):
        encoded[i].append(np.arange(8, dtype="<u4") * (i + 1) * 1_000_003)
    masked = [[ring.copy() for ring in rings] for rings in encoded]
    for i in range(members):
        masker = cohort.masker(i)
        for c, ring in enumerate(masked[i]):
            masker.apply(c, ring)
            assert not np.array_equal(ring, encoded[i][c])
    for deaths in range(cohort.delta + 1):
        gone = [(5 * k + 1) % members for k in range(deaths)]
        alive = [i for i in range(members) if i not in gone]
        own, dead = cohort.unmasking(alive)
        for c in range(layout.total_chunks):
            total = layout.zeros(c)
            for i in alive:
                total += masked[i][c]
            unmask(c, total, own, dead)
            signed = np.int32 if c == layout.trailer else SIGNED[ring_bits]
            exact = sum(encoded[i][c].view(signed).astype(np.int64) for i in alive)
            if c != layout.trailer:
                np.testing.assert_array_equal(total.view(signed).astype(np.int64), exact)
            else:
                np.testing.assert_array_equal(total.astype(np.int64), exact % 2**32)


@pytest.mark.parametrize("ring_bits", [8, 16, 32])
@pytest.mark.parametrize("members", range(1, 65))
def test_members_times_levels_fit_the_ring(ring_bits, members):
    top = levels(Layout(BLOCK, ring_bits), members)
    bits = ring_bits - math.ceil(math.log2(members))
    assert 1 <= top <= 2 ** (bits - 1) - 1 < 2 ** (bits - 1)
    assert members * top < 2 ** (ring_bits - 1)
    assert int(np.float32(top)) == top
    assert top > 0.999 * (2 ** (bits - 1) - 1)


@pytest.mark.parametrize("members", [0, 65])
def test_no_levels_outside_a_cohort(members):
    with pytest.raises(ValueError):
        levels(Layout(BLOCK, 16), members)


@pytest.mark.parametrize("ring_bits", [8, 16, 32])
@pytest.mark.parametrize("sign", [1, -1])
def test_sixty_four_members_at_the_clip_do_not_wrap(ring_bits, sign):
    layout = Layout(BLOCK, ring_bits)
    encoder, decoder = (made(layout, 64, clips(layout), SEED) for made in (Encoder, Decoder))
    spike = np.zeros(BLOCK, np.float32)
    spike[0] = sign * 1e6  # one coordinate rotates to the same magnitude everywhere, far beyond the clip
    total, first = layout.zeros(0), None
    for member in range(64):
        ring = encode(encoder, 0, spike, label=member)
        np.testing.assert_array_equal(np.abs(ring.view(SIGNED[ring_bits]).astype(np.int64)), encoder.levels)
        first = ring if first is None else first
        total += ring
    np.testing.assert_array_equal(
        total.view(SIGNED[ring_bits]).astype(np.int64), 64 * first.view(SIGNED[ring_bits]).astype(np.int64)
    )
    decoded = decoder.decode_chunk(0, total, 64.0)
    assert decoded[0] == pytest.approx(sign * 1e-2 * 64, rel=1e-6)
    assert not decoded[1:].any()


@pytest.mark.parametrize("ring_bits", [8, 16, 32])
def test_encoded_values_stay_within_the_levels(ring_bits):
    layout = Layout(3 * BLOCK, ring_bits)
    for members, clip in ((3, 1e-5), (16, 1e-3), (64, 1e-1)):
        encoder = Encoder(layout, members, clips(layout, clip), SEED)
        ring = encode(encoder, 0, updates(1, layout.parameters)[0])
        assert np.abs(ring.view(SIGNED[ring_bits]).astype(np.int64)).max() <= encoder.levels


@pytest.mark.parametrize(("ring_bits", "tolerance"), [(8, 0.2), (16, 2e-3), (32, 1e-6)])
def test_the_mean_comes_back(ring_bits, tolerance):
    layout = Layout(70_000, ring_bits, 4 * BLOCK)
    members, weights = 6, [0.1, 1.0, 0.5, 0.25, 0.8, 0.6]
    vectors = updates(members, layout.parameters)
    encoder, decoder = (made(layout, members, clips(layout), SEED) for made in (Encoder, Decoder))
    parts = []
    for chunk in range(layout.chunks):
        total = layout.zeros(chunk)
        for i in range(members):
            total += encode(encoder, chunk, vectors[i], weights[i], (i, chunk))
        parts.append(decoder.decode_chunk(chunk, total, sum(weights)))
    decoded = np.concatenate(parts)
    expected = sum(w * v.astype(np.float64) for w, v in zip(weights, vectors, strict=True)) / sum(weights)
    error = np.linalg.norm(decoded[: layout.parameters] - expected) / np.linalg.norm(expected)
    assert error < tolerance


def test_decoding_is_one_float64_product_of_exact_integers():
    layout = Layout(3 * BLOCK, 16)
    scales = np.array([0.1, 0.2, 0.3], np.float32)
    decoder = Decoder(layout, 8, scales, SEED)
    summed = np.random.default_rng(3).integers(0, 2**16, 3 * BLOCK, np.uint16)
    integers = decoder._rotation.unrotate_integers(summed.view(np.int16), 0)
    for place in (0, 1, BLOCK, 2 * BLOCK + 77, 3 * BLOCK - 1):
        factor = float(scales[place // BLOCK]) / (64.0 * decoder.levels * 5.5)
        assert decoder.decode_chunk(0, summed, 5.5)[place] == np.float32(int(integers[place]) * factor)


@pytest.mark.parametrize("ring_bits", [8, 16, 32])
def test_rounding_is_unbiased(ring_bits):
    """Means over many dithers; 16-bit dither and float32 leave at most 2^-15 of a level."""
    layout = Layout(BLOCK, ring_bits)
    top = levels(layout, 64)
    values = np.linspace(-0.99, 0.99, BLOCK) * min(top, 200)
    mean, rounds = np.zeros(BLOCK), 400
    for k in range(rounds):
        out = layout.zeros(0)
        quantise(values.astype(np.float32), np.ones(1), top, key(k), 0, out)
        rounded = out.view(SIGNED[ring_bits]).astype(np.float64)
        assert np.abs(rounded - values).max() < 1 + 1e-3
        mean += rounded / rounds
    assert abs((mean - values).mean()) < 5 * 0.41 / math.sqrt(rounds * BLOCK) + 2**-15
    assert np.abs(mean - values).max() < 6 * 0.5 / math.sqrt(rounds)


def test_dither_differs_by_key_and_chunk():
    layout = Layout(2 * BLOCK, 16, BLOCK)
    half = np.full(BLOCK, 0.5, np.float32)
    made = []
    for label, chunk in ((1, 0), (2, 0), (1, 1)):
        out = layout.zeros(0)
        quantise(half.copy(), np.ones(1), 100, key(label), chunk, out)
        made.append(out.tobytes())
        assert 0.4 < out.mean() < 0.6
    assert len(set(made)) == 3


@pytest.mark.parametrize("ring_bits", [8, 16, 32])
def test_dequantise_says_what_the_others_will_decode(ring_bits):
    layout, weight = Layout(3 * BLOCK - 5, ring_bits, 2 * BLOCK), 0.3
    update = updates(1, layout.parameters)[0]
    encoder, decoder = (made(layout, 4, clips(layout, 2e-3), SEED) for made in (Encoder, Decoder))
    for chunk in range(layout.chunks):
        ring = encode(encoder, chunk, update, weight)
        kept = ring.copy()
        np.testing.assert_allclose(
            encoder.dequantise_chunk(chunk, ring, weight),
            decoder.decode_chunk(chunk, ring, weight),
            atol=1e-8,
            rtol=1e-4,
        )
        np.testing.assert_array_equal(ring, kept)


def test_error_feedback_recovers_what_the_clip_took():
    """Clipped to a third of the rms at 8 bits, the sum of what was sent still follows the sum of the updates."""
    layout = Layout(BLOCK, 8)
    encoder = Encoder(layout, 16, clips(layout, 3e-3), SEED)
    update, residual, sent = updates(1, BLOCK, 1e-4)[0], np.zeros(BLOCK, np.float32), np.zeros(BLOCK)
    for k in range(100):
        target = update + residual
        arrived = encoder.dequantise_chunk(0, encode(encoder, 0, target, 0.5, k), 0.5)
        residual = target - arrived
        sent += arrived
    assert np.linalg.norm(sent - 100 * update) / np.linalg.norm(100 * update) < 0.1


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([8, 16, 32]), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_chunk_size_changes_neither_rotation_nor_decoding(ring_bits, blocks_per_chunk, seed):
    one, many = Layout(6 * BLOCK, ring_bits, 6 * BLOCK), Layout(6 * BLOCK, ring_bits, blocks_per_chunk * BLOCK)
    rng = np.random.default_rng(seed)
    summed = rng.integers(0, 2**ring_bits, 6 * BLOCK).astype(RING_DTYPES[ring_bits])
    scales = rng.uniform(1e-4, 1e-2, 6).astype(np.float32)
    whole = Decoder(one, 5, scales, SEED).decode_chunk(0, summed, 3.25)
    decoder = Decoder(many, 5, scales, SEED)
    parts = [decoder.decode_chunk(c, summed[many.slice(c)], 3.25) for c in range(many.chunks)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("ring_bits", [8, 16, 32])
def test_block_energies_are_exact(ring_bits):
    layout = Layout(2 * BLOCK, ring_bits)
    info = np.iinfo(SIGNED[ring_bits])
    summed = np.concatenate([np.full(BLOCK, info.min), np.random.default_rng(0).integers(info.min, info.max, BLOCK)])
    summed = summed.astype(SIGNED[ring_bits])
    shift = 12 if ring_bits == 32 else 0
    expected = [sum((int(v) >> shift) ** 2 for v in block) << 2 * shift for block in summed.reshape(2, BLOCK)]
    energies = Decoder(layout, 4, clips(layout), SEED).block_energies(0, summed.view(RING_DTYPES[ring_bits]))
    assert energies.tolist() == expected


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("place", [0, 5000, 9999])
def test_an_update_that_is_not_finite_goes_nowhere(poison, place):
    layout = Layout(10_000, 16, BLOCK)
    update = updates(1, 10_000)[0]
    assert squared_norm(update) == pytest.approx(float((update.astype(np.float64) ** 2).sum()), rel=1e-5)
    update[place] = poison
    with pytest.raises(NonFiniteUpdateError) as error:
        squared_norm(update)
    assert isinstance(error.value, RoundError) and error.value.remedy
    ring = layout.zeros(0)
    with pytest.raises(NonFiniteUpdateError):
        Encoder(layout, 5, clips(layout), SEED).encode_chunk(place // BLOCK, update, 1.0, key(0), ring)
    assert not ring.any()


def test_malformed_arguments_are_refused():
    layout = Layout(BLOCK, 16)
    update = np.zeros(BLOCK, np.float32)
    for weight in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError):
            encode(Encoder(layout, 5, clips(layout), SEED), 0, update, weight)
    for wrong in (update[:-1], update.astype(np.float64)):
        with pytest.raises(ValueError):
            encode(Encoder(layout, 5, clips(layout), SEED), 0, wrong)
    for scales in (np.zeros(1), np.full(1, np.nan), np.full(1, np.inf), -np.ones(1), np.ones(2)):
        with pytest.raises(ValueError):
            Encoder(layout, 5, scales.astype(np.float32), SEED)
    for weight_sum in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError):
            Decoder(layout, 5, clips(layout), SEED).decode_chunk(0, layout.zeros(0), weight_sum)


def test_threads_do_not_share_buffers():
    layout = Layout(300_000, 16)
    encoder, update = Encoder(layout, 8, clips(layout), SEED), updates(1, 300_000)[0]
    alone = [encode(encoder, c, update).tobytes() for c in range(layout.chunks)]
    with ThreadPoolExecutor(8) as pool:
        chunks = list(range(layout.chunks)) * 10
        assert list(pool.map(lambda c: encode(encoder, c, update).tobytes(), chunks)) == alone * 10


def test_pairs_of_the_oracle_are_all_distinct():
    cohort = Cohort(Layout(BLOCK, 16), 5)
    made = {
        pair_key(cohort.secrets[i].mask_private, cohort.public[j].mask_key, cohort.sid, i, j)
        for i, j in combinations(range(5), 2)
    }
    assert len(made) == 10
