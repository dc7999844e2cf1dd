"""Verdicts in bytes: the contract's digests, and files that strangers hand on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dht.errors import DataError, ProtocolError, Refusal
from ledger import verdicts
from ledger.eip712 import Domain, Struct
from ledger.signatures import key_address, recover, unpack
from ledger.verdicts import APPROVAL, KINDS, VETO, Verdict, VerdictFile, Veto
from tests.ledger.world import IDENTITIES

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "contracts.json").read_text())
MADE = VerdictFile(Domain(31337, b"\x0c" * 20), Verdict(b"r" * 32, 4, b"\xee" * 20, 500, b"e" * 32))
ADDRESSES = [key_address(each.peer_id) for each in IDENTITIES]


@pytest.mark.parametrize("kind", [Verdict, Veto])
def test_digests_are_the_contracts(kind: type[Struct]):
    row = next(row for row in VECTORS["structs"] if row["type"] == kind.TYPE)
    values = [bytes.fromhex(v.removeprefix("0x")) if isinstance(v, str) else v for v in row["values"].values()]
    made = kind(*values)
    domain = Domain(VECTORS["chain_id"], bytes.fromhex(row["contract"][2:]))
    assert made.digest(domain).hex() == row["digest"]
    assert recover(made.digest(domain), bytes.fromhex(row["signature"])) == bytes.fromhex(VECTORS["key"][2:])
    assert kind.decode(made.encode()) == made


def test_an_address_of_more_than_20_bytes_is_refused():
    data = bytearray(MADE.verdict.encode())
    data[2 * 32 + 11] = 1
    with pytest.raises(ProtocolError) as refused:
        Verdict.decode(bytes(data))
    assert refused.value.refusal is Refusal.OUT_OF_BOUNDS
    with pytest.raises(ValueError, match="20 bytes"):
        replace(MADE.verdict, key=b"k" * 32).hash()


def test_a_file_comes_back_whole_and_signatures_are_kept_apart():
    signed = MADE.signed_by(IDENTITIES[0], APPROVAL).signed_by(IDENTITIES[2], APPROVAL).signed_by(IDENTITIES[1], VETO)
    again = verdicts.parse(json.dumps(signed.as_json()).encode())
    assert again.as_json() == signed.as_json() and again.id == MADE.verdict.hash()
    assert set(again.by_signer(APPROVAL)) == {ADDRESSES[0], ADDRESSES[2]}
    assert set(again.by_signer(VETO)) == {ADDRESSES[1]}


def test_merged_files_pack_into_the_attestors_order():
    files = [MADE.signed_by(IDENTITIES[place], APPROVAL) for place in (3, 0, 3)]
    bitmap, rvs = verdicts.merge(files).packed(APPROVAL, ADDRESSES)
    assert bitmap == 0b1001
    for place, signature in unpack(bitmap, rvs).items():
        assert recover(MADE.digest(APPROVAL), signature) == ADDRESSES[place]
    # Who is no attestor does not count, nor does a signature over something else.
    assert verdicts.merge(files).packed(APPROVAL, ADDRESSES[1:3]) == (0, ())
    assert verdicts.merge(files).packed(VETO, ADDRESSES) == (0, ())


def test_two_verdicts_are_not_merged():
    other = replace(MADE, verdict=replace(MADE.verdict, bps=501))
    with pytest.raises(DataError, match="two verdicts"):
        verdicts.merge([MADE, other])
    with pytest.raises(DataError, match="two verdicts"):
        verdicts.merge([MADE, replace(MADE, domain=Domain(1, MADE.domain.contract))])


CHANGES: dict[str, Any] = {
    "another part of the stake": {"bps": 501},
    "another key": {"key": "0x" + "ef" * 20},
    "a part that is text": {"bps": "500"},
    "a part that is no number of its type": {"bps": 1 << 16},
    "a negative epoch": {"epoch": -1},
    "a true epoch": {"epoch": True},
    "a short key": {"key": "0xee"},
    "no hex": {"evidence": "0x" + "zz" * 32},
    "a number for a hash": {"evidence": 5},
    "signatures that are none": {"signatures": ["0x00"]},
    "signatures that are no list": {"vetoes": {"0x": 1}},
    "too many signatures": {"signatures": [f"0x{n:0128x}" for n in range(verdicts.MOST_SIGNATURES + 1)]},
    "an unknown chain": {"chain_id": None},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_no_verdict_is_said(name: str):
    row = MADE.as_json() | CHANGES[name]
    with pytest.raises(DataError, match="no verdict"):
        verdicts.parse(json.dumps(row).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'"text"'])
def test_other_bytes_are_said(data: bytes):
    with pytest.raises(DataError, match="no verdict"):
        verdicts.parse(data)


def test_kinds_are_signed_differently():
    assert len({MADE.digest(kind) for kind in KINDS}) == len(KINDS)
