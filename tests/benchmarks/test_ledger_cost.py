"""The fees of rollups, by the numbers of their own tests."""

from __future__ import annotations

import zlib
from dataclasses import replace
from hashlib import shake_128

import pytest

from benchmarks.ledger_cost import CHECKPOINTS_PER_YEAR, Prices, brotli_sizes, costs, fastlz_size, fjord_fee, poster_fee

# A contract call on OP Mainnet, 0x8eb9dd4eb6d33f4dc25fb015919e4b1e9f7542f9b0322bf6622e268cd116b594.
CALL = bytes.fromhex(
    "02f901550a758302df1483be21b88304743f94f80e51afb613d764fa61751affd3313c190a86bb870151bd62fd12adb8e41e"
    "f24f3f000000000000000000000000000000000000000000000000000000000000006e000000000000000000000000af88d0"
    "65e77c8cc2239327c5edb3a432268e5831000000000000000000000000000000000000000000000000000000000003c1e500"
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000a000000000000000000000000000000000000000000000000000000000000000148c89ed219d"
    "02f1a5be012c689b4f5b731827bebe000000000000000000000000c001a033fd89cb37c31b2cba46b6466e040c61fc9b2a36"
    "75a7f5f493ebd5ad77c497f8a07cdf65680e238392693019b4092f610222e71b7cec06449cb922b93b6a12744e"
)
# The prices of the same tests: 1 gwei, 0.01 gwei, scalars 2 and 3.
OP_TEST = Prices(l1_base_gwei=1.0, l1_blob_gwei=0.01, op_base_fee_scalar=2, op_blob_fee_scalar=3)


# Sizes by FastLZ's own C code, fastlz_compress of https://github.com/ariya/FastLZ at b1342da.
BY_FASTLZ = {
    (64, 2): 47,
    (333, 2): 169,
    (237, 3): 149,
    (419, 4): 294,
    (600, 16): 598,
    (12000, 4): 7307,
    (9000, 200, 2): 18556,
    (7000, 200, 2): 7307,
    (700, 250, 3): 746,
    (40, 250, 30): 63,
    (9, 250, 9): 19,
    (272, 256, 2): 292,
    (273, 256, 2): 293,
    (274, 256, 2): 294,
}


def text(size: int, letters: int, times: int = 1) -> bytes:
    """Noise of so many letters, repeated."""
    return bytes(byte % letters for byte in shake_128(b"%d" % letters).digest(size)) * times


@pytest.mark.parametrize(("data", "size"), [(b"", 0), (bytes(1000), 21), (b"\1" * 1000, 21), (CALL, 202)])
def test_fastlz_is_that_of_op_geth(data: bytes, size: int) -> None:
    assert fastlz_size(data) == size


@pytest.mark.parametrize("shape", BY_FASTLZ, ids=str)
def test_fastlz_is_that_of_its_authors(shape: tuple[int, ...]) -> None:
    assert fastlz_size(text(*shape)) == BY_FASTLZ[shape]


def test_the_data_fee_of_the_op_stack_is_that_of_its_own_tests() -> None:
    assert fjord_fee(31, OP_TEST) == 3_203_000  # 100,000,000 * (2 * 1e9 * 16 + 3 * 1e7) / 1e12
    assert fjord_fee(202, OP_TEST) == 4_048_188  # 126,387,400 * the same


def test_brotli_shrinks_what_repeats_and_nothing_else() -> None:
    noise = zlib.compress(bytes(range(256)) * 40, 9)
    sizes = brotli_sizes([bytes(1000), noise, b""])
    assert sizes[0] < 30 and len(noise) <= sizes[1] <= len(noise) + 16 and sizes[2] <= 2


def test_a_byte_on_arbitrum_is_sixteen_units() -> None:
    assert poster_fee(100, 2.0) == 100 * 16 * 2 * 10**9
    # A blob of 4,096 times 31 bytes costs 131,072 of its gas.
    assert poster_fee(4096 * 31, Prices(l1_blob_gwei=3.1).unit_in_blobs) == pytest.approx(131_072 * 3.1e9)
    assert poster_fee(1, Prices(l1_base_gwei=2.0).unit_in_calldata) == 16 * 2 * 10**9


def test_costs_add_up_per_checkpoint_and_year() -> None:
    prices = Prices(eth_usd=2000.0)
    rows = {row["rollup"]: row for row in costs({"checkpoint_3": 90_000}, {"checkpoint_3": CALL}, prices)}
    op, blobs, calldata = rows.values()
    assert (op["compressed"], op["bytes"]) == (202, len(CALL))
    assert op["execution_usd"] == pytest.approx(90_000 * 0.001e9 / 1e18 * 2000)
    assert op["data_usd"] == pytest.approx(fjord_fee(202, prices) / 1e18 * 2000)
    for row, unit in ((blobs, prices.unit_in_blobs), (calldata, prices.unit_in_calldata)):
        assert row["compressed"] == brotli_sizes([CALL])[0]
        assert row["data_usd"] == pytest.approx(poster_fee(row["compressed"], unit) / 1e18 * 2000)
    for row in rows.values():
        assert row["usd"] == pytest.approx(row["execution_usd"] + row["data_usd"])
        assert row["usd_per_year"] == pytest.approx(row["usd"] * CHECKPOINTS_PER_YEAR)
    dearer = costs({"checkpoint_3": 90_000}, {"checkpoint_3": CALL}, replace(prices, eth_usd=4000.0))
    assert dearer[0]["usd"] == pytest.approx(2 * op["usd"])
