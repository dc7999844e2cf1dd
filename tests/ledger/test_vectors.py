"""The golden files are what the ledger computes, and what other programs compute: a change is a change of protocol."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.messages import _hash_eip191_message, encode_typed_data
from murky_tree import StandardMerkleTree as MurkyTree

from dht.wire import decode
from ledger.checkpoint import Checkpoint, Rollback, Rotation
from ledger.evidence import verify
from ledger.messages import TwoCheckpoints
from ledger.signatures import recover, unpack

VECTORS = Path(__file__).parents[1] / "vectors"


def _generator():
    spec = importlib.util.spec_from_file_location("ledger_vectors_generate", VECTORS / "generate_ledger.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = _generator()


def load(name):
    return json.loads((VECTORS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", GENERATOR.VECTORS)
def test_golden_file_matches(name):
    assert json.loads(json.dumps(GENERATOR.plain(GENERATOR.VECTORS[name]()))) == load(name)


def solidity_members(type_text):
    inside = type_text.partition("(")[2].rstrip(")")
    return [dict(zip(("type", "name"), member.split(" "), strict=True)) for member in inside.split(",")]


def typed_data(row, cls):
    """The same struct as any Ethereum wallet would be asked to sign it."""
    members = solidity_members(cls.TYPE)
    values = row["struct"].values()
    message = {
        member["name"]: bytes.fromhex(value) if member["type"] == "bytes32" else int(value)
        for member, value in zip(members, values, strict=True)
    }
    domain = {
        "name": "Murmuration",
        "version": "1",
        "chainId": int(row["chain_id"]),
        "verifyingContract": "0x" + row["contract"],
    }
    return encode_typed_data(domain_data=domain, message_types={cls.__name__: members}, message_data=message)


ROWS = [
    pytest.param(row, cls, id=f"{cls.__name__}-{k}")
    for cls, name in ((Checkpoint, "checkpoints"), (Rollback, "rollbacks"), (Rotation, "rotations"))
    for k, row in enumerate(load("checkpoint")[name])
]


@pytest.mark.parametrize(("row", "cls"), ROWS)
def test_digests_are_those_of_eth_account(row, cls):
    signable = typed_data(row, cls)
    assert signable.header.hex() == row["domain_separator"]
    assert signable.body.hex() == row["hash"]
    assert _hash_eip191_message(signable).hex() == row["digest"]


@pytest.mark.parametrize(("row", "cls"), ROWS)
def test_signatures_are_recovered_by_eth_account(row, cls):
    keys = load("checkpoint")["keys"]
    signable = typed_data(row, cls)
    signatures = unpack(int(row["bitmap"]), [bytes.fromhex(word) for word in row["rvs"]])
    assert list(signatures) == [0, 1, 2]
    for index, signature in signatures.items():
        s = int.from_bytes(signature[32:], "big")
        full = signature[:32] + (s % 2**255).to_bytes(32, "big") + bytes([27 + (s >> 255)])
        address = Account.recover_message(signable, signature=full)
        assert address.lower() == "0x" + keys[index]["address"]
        assert recover(bytes.fromhex(row["digest"]), signature).hex() == keys[index]["address"]


@pytest.mark.parametrize("row", load("standard_merkle"), ids=lambda row: str(len(row["leaves"])))
def test_trees_are_those_of_murky_tree(row):
    leaves = [("0x" + account, int(value)) for account, value in row["leaves"]]
    tree = MurkyTree.of(leaves, ["address", "uint256"])
    assert tree.root == "0x" + row["root"]
    for proof in row["proofs"]:
        assert tree.get_proof(leaves[int(proof["leaf"])]) == ["0x" + node for node in proof["proof"]]


def test_the_frames_say_what_they_should():
    frames = load("attestations")
    assert len(decode(bytes.fromhex(frames["attestations"])).signatures) == 3
    assert decode(bytes.fromhex(frames["status"])).have == 0b1011
    status, signed = (decode(bytes.fromhex(frames[f"rollback_{name}"])) for name in ("status", "signatures"))
    assert (status.epoch, status.chosen, status.have) == (3, 2, 0b0111)
    digest = Rollback(GENERATOR.RUN, signed.fork_nonce, signed.epoch).digest(GENERATOR.DOMAINS[0])
    signers = [recover(digest, each).hex() for each in signed.signatures]
    assert signers == [key["address"] for key in load("checkpoint")["keys"][:3]]
    assert isinstance(decode(bytes.fromhex(frames["evidence"])), TwoCheckpoints)
    assert verify(bytes.fromhex(frames["evidence"])).accused.hex() == frames["accused"]
