"""Merkle trees against RFC 6962's recursive definition, its published vectors, and forged proofs."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.merkle import EMPTY_ROOT, leaf_hash, node_hash, proof, root, root_from_proof

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "merkle.json").read_text())


def recursive_root(data: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, as written there."""
    if not data:
        return sha256(b"").digest()
    if len(data) == 1:
        return sha256(b"\x00" + data[0]).digest()
    split = 1 << ((len(data) - 1).bit_length() - 1)
    return sha256(b"\x01" + recursive_root(data[:split]) + recursive_root(data[split:])).digest()


def recursive_path(index: int, data: list[bytes]) -> list[bytes]:
    """RFC 6962 section 2.1.1, as written there."""
    if len(data) == 1:
        return []
    split = 1 << ((len(data) - 1).bit_length() - 1)
    if index < split:
        return [*recursive_path(index, data[:split]), recursive_root(data[split:])]
    return [*recursive_path(index - split, data[split:]), recursive_root(data[:split])]


def some_leaves(count: int) -> list[bytes]:
    return [leaf_hash(index.to_bytes(2, "big")) for index in range(count)]


def test_published_vectors():
    data = [bytes.fromhex(leaf) for leaf in VECTORS["leaves"]]
    assert len(VECTORS["roots"]) == len(data) + 1
    for count, expected in enumerate(VECTORS["roots"]):
        assert root([leaf_hash(leaf) for leaf in data[:count]]).hex() == expected
    for case in VECTORS["proofs"]:
        leaves = [leaf_hash(leaf) for leaf in data[: case["count"]]]
        assert [node.hex() for node in proof(leaves, case["index"])] == case["path"]


@pytest.mark.parametrize("count", range(71))
def test_same_root_and_proofs_as_the_recursive_definition(count: int):
    data = [index.to_bytes(2, "big") for index in range(count)]
    leaves = some_leaves(count)
    expected = recursive_root(data)
    assert root(leaves) == expected
    for index in range(count):
        path = proof(leaves, index)
        assert list(path) == recursive_path(index, data)
        assert root_from_proof(leaves[index], index, count, path) == expected


@given(st.lists(st.binary(max_size=40), max_size=40))
def test_root_depends_on_bytes_and_order_only(data: list[bytes]):
    assert root([leaf_hash(memoryview(leaf)) for leaf in data]) == recursive_root(data)


@given(count=st.integers(1, 70), data=st.data())
def test_forged_proofs_lead_elsewhere(count: int, data: st.DataObject):
    leaves = some_leaves(count)
    index = data.draw(st.integers(0, count - 1))
    path, honest = proof(leaves, index), root(leaves)
    forged_leaf = data.draw(st.binary(min_size=32, max_size=32))
    assert root_from_proof(forged_leaf, index, count, path) != honest
    assert root_from_proof(leaves[index], index, count, (*path, honest)) is None
    for other in range(count):
        if other != index:
            assert root_from_proof(leaves[index], other, count, path) != honest
    for place in range(len(path)):
        flipped = bytes([path[place][0] ^ 1]) + path[place][1:]
        assert root_from_proof(leaves[index], index, count, (*path[:place], flipped, *path[place + 1 :])) != honest
        assert root_from_proof(leaves[index], index, count, (*path[:place], *path[place + 1 :])) is None


def test_an_inner_node_is_no_leaf():
    leaves = some_leaves(4)
    left, right = node_hash(*leaves[:2]), node_hash(*leaves[2:])
    assert root([left, right]) == root(leaves)  # equal by construction, over hashes already made ...
    assert root([leaf_hash(leaves[0] + leaves[1]), right]) != root(leaves)  # ... but no data hashes to a node


def test_the_empty_tree_and_indexes_outside():
    assert root([]) == EMPTY_ROOT == sha256(b"").digest()
    leaves = some_leaves(3)
    for index in (-1, 3):
        with pytest.raises(IndexError):
            proof(leaves, index)
        assert root_from_proof(leaves[0], index, 3, ()) is None
    assert root_from_proof(leaves[0], 0, 0, ()) is None
