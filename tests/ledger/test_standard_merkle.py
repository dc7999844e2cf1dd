"""Trees in OpenZeppelin's format, against another implementation of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from murky_tree import StandardMerkleTree as MurkyTree

from ledger.standard_merkle import EMPTY_ROOT, StandardMerkleTree, leaf_hash, verify

LEAVES = st.dictionaries(st.binary(min_size=20, max_size=20), st.integers(0, 2**256 - 1), min_size=1, max_size=40)


@given(LEAVES, st.randoms())
def test_roots_and_proofs_are_those_of_murky_tree(leaves, random):
    values = [("0x" + account.hex(), amount) for account, amount in leaves.items()]
    theirs = MurkyTree.of(values, ["address", "uint256"])
    mine = StandardMerkleTree(random.sample(list(leaves.items()), len(leaves)))
    assert "0x" + mine.root.hex() == theirs.root and len(mine) == len(leaves)
    for (account, amount), value in zip(leaves.items(), values, strict=True):
        proof = mine.proof(account)
        assert ["0x" + node.hex() for node in proof] == theirs.get_proof(value)
        assert verify(mine.root, account, amount, proof)


@given(LEAVES, st.data())
def test_nothing_else_is_proven(leaves, data):
    tree = StandardMerkleTree(leaves.items())
    account = data.draw(st.sampled_from(sorted(leaves)))
    amount, proof = leaves[account], tree.proof(account)
    assert not verify(tree.root, account, amount ^ 1, proof)
    assert not verify(tree.root, bytes(20) if any(account) else b"\1" * 20, amount, proof)
    assert not verify(tree.root, account, amount, (*proof, bytes(32)))
    if proof:
        assert not verify(tree.root, account, amount, proof[1:])


def test_a_thousand_and_more():
    leaves = [(k.to_bytes(20, "big"), k * k) for k in range(3001)]
    tree = StandardMerkleTree(leaves)
    assert tree.root == StandardMerkleTree(reversed(leaves)).root
    assert all(verify(tree.root, *leaf, tree.proof(leaf[0])) for leaf in leaves[::7])
    assert max(len(tree.proof(account)) for account, _ in leaves) == 12


def test_edges():
    assert StandardMerkleTree([]).root == EMPTY_ROOT and len(StandardMerkleTree([])) == 0
    alone = StandardMerkleTree([(b"a" * 20, 5)])
    assert alone.root == leaf_hash(b"a" * 20, 5) and alone.proof(b"a" * 20) == ()
    with pytest.raises(KeyError):
        alone.proof(b"b" * 20)
    with pytest.raises(ValueError):
        StandardMerkleTree([(b"a" * 20, 5), (b"a" * 20, 6)])
    for bad in ((b"a" * 19, 1), (b"a" * 20, -1), (b"a" * 20, 2**256)):
        with pytest.raises((ValueError, OverflowError)):
            leaf_hash(*bad)
