"""The contracts against the formats that Python and other libraries fix: hashes, trees, bindings."""

from __future__ import annotations

import json
import re

import pytest
from eth_account import Account
from eth_utils.crypto import keccak
from murky_tree import StandardMerkleTree

from benchmarks.contracts import DAY, STRUCTS, UNIT, Key, RevertedError, Settings, signed
from dht.identity import Identity
from ledger.build import CONTRACTS
from tests.ledger.contract_vectors import FILE, vectors
from tests.ledger.evm import CHAIN_ID, Pyrevm

ATTESTORS = [Key(f"attestor {i}") for i in range(4)]


@pytest.fixture(scope="module")
def founded():
    evm = Pyrevm()
    evm.found(ATTESTORS, Settings(window=600, min_interval=60))
    return evm


@pytest.fixture
def evm(founded):
    with founded.undone():
        yield founded


def test_all_stand_where_the_others_were_told(evm):
    wiring = {
        ("Token", "pool"): "RewardPool",
        ("PeerRegistry", "token"): "Token",
        ("PeerRegistry", "slashing"): "Slashing",
        ("CheckpointHub", "pool"): "RewardPool",
        ("RewardPool", "token"): "Token",
        ("RewardPool", "hub"): "CheckpointHub",
        ("RewardPool", "registry"): "PeerRegistry",
        ("Slashing", "registry"): "PeerRegistry",
        ("Slashing", "hub"): "CheckpointHub",
    }
    assert {where: evm.call(*where) for where in wiring} == {where: evm.at[name] for where, name in wiring.items()}


def test_the_hub_names_a_checkpoint_as_eip712_does(evm):
    # The digests that were signed are eth-account's: a proposal that passes shows that the contract has the same ones.
    header = evm.next_header(tokens=2**128 - 1, peers=2**64 - 1)
    event = evm.propose(ATTESTORS[:3], **header).events[0][2]
    type_ = f"Checkpoint({STRUCTS['Checkpoint']})".encode()
    words = [value if isinstance(value, bytes) else value.to_bytes(32, "big") for value in header.values()]
    assert event["hash"] == keccak(keccak(type_) + b"".join(words)) == evm.call("CheckpointHub", "head")[1]
    assert event["header"] == tuple(header.values())
    assert (event["epoch"], event["bitmap"], event["activeAt"]) == (1, 7, evm.time + 600)


@pytest.mark.parametrize("kind", STRUCTS)
def test_the_types_that_are_hashed_are_the_documented_ones(kind):
    text = " ".join(path.read_text() for path in CONTRACTS.glob("*.sol"))
    assert f"{kind}({STRUCTS[kind]})" in re.sub(r"\s+", " ", text)


def test_another_chain_id_makes_other_digests(evm):
    header = evm.next_header()
    evm.chain_id = CHAIN_ID + 1
    try:
        foreign = signed(ATTESTORS[:3], evm.digest("Checkpoint", header))
    finally:
        evm.chain_id = CHAIN_ID
    with pytest.raises(RevertedError, match="BadSigner"):
        evm.send("CheckpointHub", "propose", tuple(header.values()), *foreign)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
def test_every_leaf_of_a_standard_tree_is_claimed_once(evm, count):
    leaves = [(Key(f"peer {i}").address, (i + 1) * UNIT // 100) for i in range(count)]
    tree = StandardMerkleTree.of(leaves, ["address", "uint256"])
    evm.propose(ATTESTORS[:3], tallyRoot=bytes.fromhex(tree.root[2:]))
    evm.wait(600)
    for account, amount in leaves[:7]:
        proof = [bytes.fromhex(node[2:]) for node in tree.get_proof((account, amount))]
        events = {name: fields for _, name, fields in evm.send("RewardPool", "claim", 1, account, amount, proof).events}
        assert (events["Claimed"]["recipient"], events["Claimed"]["amount"]) == (account, amount)
        assert evm.call("Token", "balanceOf", account) == amount == evm.call("RewardPool", "claimed", account)
        for wrong in (amount, amount + 1):
            with pytest.raises(RevertedError, match=r"NothingToClaim|BadProof"):
                evm.send("RewardPool", "claim", 1, account, wrong, proof)


def test_a_peers_own_key_enrols_its_wallet(evm):
    identity = Identity(Key("a peer").secret)
    key = Key("a peer")
    evm.send("Token", "transfer", evm.accounts[1], 5 * UNIT)
    evm.send("Token", "approve", evm.at["PeerRegistry"], 5 * UNIT, sender=1)
    binding = evm.binding(key, 1)
    # What libp2p's key signs is this 64-byte form; the contract's adds the parity.
    digest = evm.call("PeerRegistry", "bindingDigest", evm.accounts[1])
    r, vs = binding[2:]
    assert identity.sign(digest) == r + bytes([vs[0] & 0x7F]) + vs[1:]
    events = evm.send("PeerRegistry", "enrol", *binding, 5 * UNIT, b"m" * 32, sender=1).events
    (enrolled,) = [fields for _, name, fields in events if name == "Enrolled"]
    # The event names the peer id: header, prefix, x.
    assert identity.peer_id == bytes.fromhex("002508021221") + bytes([enrolled["prefix"]]) + enrolled["x"]
    assert (enrolled["key"], enrolled["stake"], enrolled["metadata"]) == (key.address, 5 * UNIT, b"m" * 32)
    assert evm.call("PeerRegistry", "walletOf", key.address) == evm.accounts[1]
    assert evm.call("PeerRegistry", "peer", evm.accounts[1]) == (key.address, 5 * UNIT, 0, 0, False)


def test_stake_returns_after_the_delay(evm):
    evm.send("Token", "approve", evm.at["PeerRegistry"], UNIT)
    evm.send("PeerRegistry", "enrol", *evm.binding(Key("mine"), 0), UNIT, bytes(32))
    evm.send("PeerRegistry", "requestUnbond", UNIT)
    evm.wait(14 * DAY - 1)
    with pytest.raises(RevertedError, match="Locked"):
        evm.send("PeerRegistry", "withdraw")
    evm.wait(1)
    before = evm.call("Token", "balanceOf", evm.accounts[0])
    evm.send("PeerRegistry", "withdraw")
    assert evm.call("Token", "balanceOf", evm.accounts[0]) == before + UNIT


def test_a_permit_spends_once(evm):
    owner, spender = Key("owner"), evm.accounts[2]
    domain = {
        "name": "Murmuration",
        "version": "1",
        "chainId": CHAIN_ID,
        "verifyingContract": evm.at["Token"],
    }
    values = {"owner": owner.address, "spender": spender, "value": 9, "nonce": 0, "deadline": evm.time}
    types = {
        "Permit": [{"name": name, "type": "address" if name in ("owner", "spender") else "uint256"} for name in values]
    }
    permit = Account.sign_typed_data(owner.secret, domain, types, values)
    words = permit.v, permit.r.to_bytes(32, "big"), permit.s.to_bytes(32, "big")
    evm.send("Token", "permit", owner.address, spender, 9, evm.time, *words)
    assert evm.call("Token", "allowance", owner.address, spender) == 9
    with pytest.raises(RevertedError, match="ERC2612InvalidSigner"):
        evm.send("Token", "permit", owner.address, spender, 9, evm.time, *words)


def test_what_is_signed_has_its_golden_bytes():
    assert vectors() == json.loads(FILE.read_text())
