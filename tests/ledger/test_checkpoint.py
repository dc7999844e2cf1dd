"""Headers in bytes: one encoding, the contract's."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from eth_abi import encode as abi_encode
from hypothesis import given
from hypothesis import strategies as st

from dht.errors import ProtocolError, Refusal
from ledger.checkpoint import Checkpoint, Rollback, Rotation, attestors_hash
from ledger.eip712 import Domain, keccak
from ledger.messages import HEADER_BYTES
from tests.ledger.headers import header

MEMBERS = Checkpoint.TYPE.partition("(")[2].rstrip(")").split(",")
KINDS = [member.split(" ")[0] for member in MEMBERS]
BYTES32 = st.binary(min_size=32, max_size=32)
HEADERS = st.tuples(*(BYTES32 if kind == "bytes32" else st.integers(0, 2 ** int(kind[4:]) - 1) for kind in KINDS)).map(
    lambda values: Checkpoint(*values)
)


@given(HEADERS)
def test_the_encoding_is_the_abi(checkpoint):
    data = checkpoint.encode()
    assert data == abi_encode(KINDS, checkpoint.abi()) and len(data) == HEADER_BYTES == Checkpoint.size()
    assert Checkpoint.decode(data) == checkpoint
    assert checkpoint.hash() == keccak(keccak(Checkpoint.TYPE.encode()) + data)


def test_the_type_is_the_documented_struct():
    text = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text()
    body = re.search(r"struct Checkpoint \{(.*?)\}", text, re.DOTALL)[1]
    assert re.findall(r"^\s+(\w+)\s+(\w+);", body, re.MULTILINE) == [tuple(member.split(" ")) for member in MEMBERS]
    assert f"`{Rollback.TYPE}`" in text and f"`{Rotation.TYPE}`" in text


@pytest.mark.parametrize(("kind", "at"), [(kind, at) for at, kind in enumerate(KINDS) if kind != "bytes32"])
def test_numbers_that_do_not_fit_are_refused(kind, at):
    data = bytearray(header().encode())
    data[32 * at + 31 - int(kind[4:]) // 8] = 1
    with pytest.raises(ProtocolError) as refused:
        Checkpoint.decode(bytes(data))
    assert refused.value.refusal is Refusal.OUT_OF_BOUNDS


def test_other_lengths_are_refused():
    for data in (b"", header().encode()[:-1], header().encode() + b"\0"):
        with pytest.raises(ProtocolError) as refused:
            Checkpoint.decode(data)
        assert refused.value.refusal is Refusal.MALFORMED


@pytest.mark.parametrize("change", [{"epoch": -1}, {"epoch": 2**64}, {"tokens": 2**128}, {"run": b"short"}])
def test_values_that_do_not_fit_are_not_encoded(change):
    with pytest.raises(ValueError):
        replace(header(), **change).encode()


def test_the_domain_is_part_of_the_digest():
    domains = [Domain(1, b"\1" * 20), Domain(2, b"\1" * 20), Domain(1, b"\2" * 20)]
    assert len({header().digest(domain) for domain in domains}) == 3
    with pytest.raises(ValueError):
        Domain(1, b"\1" * 19).separator()


@pytest.mark.parametrize("count", [0, 1, 5, 64])
def test_the_hash_of_an_attestor_set_is_over_its_abi(count):
    addresses = [bytes([k + 1]) * 20 for k in range(count)]
    weights = list(range(1, count + 1))
    texts = ["0x" + address.hex() for address in addresses]
    assert attestors_hash(addresses, weights) == keccak(abi_encode(["address[]", "uint16[]"], [texts, weights]))
    with pytest.raises(ValueError):
        attestors_hash(addresses, [*weights, 1])
