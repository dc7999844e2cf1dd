"""A block and a receipt of the embedded chain, byte for byte: their hashes are what other programs see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ledger.embedded.blocks import Header, Receipt
from ledger.embedded.methods import Methods
from tests.ledger.chains import ALICE, COUNTER, START, Time, init_code, open_chain, signed

FILE = Path(__file__).parents[2] / "vectors" / "embedded_chain.json"


def current(folder: Path) -> dict[str, Any]:
    """What the code computes now: a creation, then a call that logs."""
    chain = open_chain(folder / "chain.sqlite", Time(wall=START + 60))
    first = signed(ALICE, 0, data=init_code(COUNTER))
    chain.submit(first)
    created = chain.store.block(1).receipt.created
    second = signed(ALICE, 1, created)
    chain.submit(second)
    methods = Methods(chain)
    blocks = [chain.store.block(number) for number in range(3)]
    found = {
        "genesis": chain.store.genesis.to_json(),
        "transactions": [raw.hex() for raw in (first, second)],
        "headers": [block.header.encode().hex() for block in blocks],
        "hashes": [block.header.hash.hex() for block in blocks],
        "receipts": [block.receipt.encode().hex() for block in blocks[1:]],
        "block": methods.answer("eth_getBlockByNumber", ["0x2", True]),
        "receipt": methods.answer("eth_getTransactionReceipt", ["0x" + blocks[2].transaction.hash.hex()]),
    }
    chain.store.close()
    return found


def test_the_vectors_are_what_the_code_computes(tmp_path):
    assert current(tmp_path) == json.loads(FILE.read_text())


def test_what_is_kept_is_read_back():
    vectors = json.loads(FILE.read_text())
    for header, block_hash in zip(vectors["headers"], vectors["hashes"], strict=True):
        found = Header.decode(bytes.fromhex(header))
        assert (found.encode().hex(), found.hash.hex()) == (header, block_hash)


def test_a_packed_receipt_is_the_same_receipt(chain):
    chain.submit(signed(ALICE, 0, data=init_code(COUNTER)))
    receipt = chain.store.block(1).receipt
    assert Receipt.unpack(receipt.pack()) == receipt


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        FILE.write_text(json.dumps(current(Path(folder)), indent=1) + "\n")
