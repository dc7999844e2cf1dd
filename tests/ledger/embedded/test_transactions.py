"""Raw transactions: what eth-account signs is read back; nothing else gets through."""

from __future__ import annotations

import pytest
import rlp
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from ledger.embedded.jsonrpc import RpcError
from ledger.embedded.transactions import MOST_BYTES, decode
from tests.ledger.chains import ALICE, BOB, CHAIN_ID, GWEI, SECRETS, signed

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
words = st.integers(0, 2**256 - 1)
fees = st.fixed_dictionaries({"maxPriorityFeePerGas": st.integers(0, GWEI), "maxFeePerGas": st.integers(GWEI, 2**128)})
accesses = st.lists(
    st.fixed_dictionaries(
        {
            "address": st.binary(min_size=20, max_size=20).map(lambda found: "0x" + found.hex()),
            "storageKeys": st.lists(words.map(lambda found: f"0x{found:064x}"), max_size=3),
        }
    ),
    max_size=3,
)
common = {
    "chainId": st.just(CHAIN_ID),
    "nonce": st.integers(0, 2**63),
    "gas": st.integers(0, 2**63),
    "value": words,
    "data": st.binary(max_size=100),
    "to": st.binary(min_size=20, max_size=20) | st.just(b""),
}
old_price = st.fixed_dictionaries({"gasPrice": st.integers(0, 2**128)})


def build(*parts):
    return st.tuples(*parts).map(lambda found: {key: value for part in found for key, value in part.items()})


contents = st.one_of(
    build(st.fixed_dictionaries(common), old_price),
    build(st.fixed_dictionaries({**common, "type": st.just(1), "accessList": accesses}), old_price),
    build(st.fixed_dictionaries({**common, "type": st.just(2), "accessList": accesses}), fees),
)


@given(content=contents, secret=st.sampled_from(SECRETS))
def test_what_others_sign_is_read(content, secret):
    account = Account.from_key(secret)
    made = account.sign_transaction(content)
    found = decode(bytes(made.raw_transaction), CHAIN_ID)
    assert (found.hash, found.sender) == (bytes(made.hash), bytes.fromhex(account.address[2:]))
    assert (found.nonce, found.gas, found.value, found.data) == tuple(
        content[name] for name in ("nonce", "gas", "value", "data")
    )
    assert (found.to or b"") == content["to"]
    assert found.fee_cap == content.get("maxFeePerGas", content.get("gasPrice"))
    assert found.tip_cap == content.get("maxPriorityFeePerGas", content.get("gasPrice"))
    assert [list(keys) for _, keys in found.access_list] == [
        [int(key, 16) for key in entry["storageKeys"]] for entry in content.get("accessList", ())
    ]


@given(st.binary(max_size=300))
def test_noise_is_refused(noise):
    for raw in (noise, b"\x01" + noise, b"\x02" + noise, rlp.encode([noise] * 9), b"\x02" + rlp.encode([noise] * 12)):
        with pytest.raises(RpcError):
            decode(raw, CHAIN_ID)


@given(st.data())
def test_one_changed_byte_never_keeps_the_signer(data):
    raw = bytearray(signed(ALICE, 5, BOB.address, value=7))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        found = decode(bytes(raw), CHAIN_ID)
    except RpcError:
        return
    assert found.sender != bytes.fromhex(ALICE.address[2:])


def resigned(**changes):
    """Alice's transaction with other signature fields."""
    raw = signed(ALICE, 0, BOB.address)
    fields = rlp.decode(raw[1:])
    numbers = {"v": 9, "r": 10, "s": 11}
    for name, change in changes.items():
        fields[numbers[name]] = rlp.sedes.big_endian_int.serialize(change(int.from_bytes(fields[numbers[name]], "big")))
    return raw[:1] + rlp.encode(fields)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"s": lambda s: ORDER - s, "v": lambda v: 1 - v}, "invalid transaction v, r, s"),
        ({"s": lambda s: 0}, "invalid transaction v, r, s"),
        ({"r": lambda r: 0}, "invalid sender"),
        ({"r": lambda r: ORDER}, "invalid sender"),
        ({"v": lambda v: 27}, "invalid transaction v, r, s"),
    ],
    ids=["high s", "no s", "no r", "r too large", "odd v"],
)
def test_signatures_have_one_form(changes, words):
    assert decode(resigned(), CHAIN_ID)
    with pytest.raises(RpcError, match=words):
        decode(resigned(**changes), CHAIN_ID)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\x02" + bytes(MOST_BYTES), "oversized"),
        (b"\x03" + rlp.encode([b""] * 14), "type not supported"),
        (b"\x04" + rlp.encode([b""] * 13), "type not supported"),
        (b"\x00" + rlp.encode([b""] * 9), "type not supported"),
        (b"", "failed to decode"),
        (signed(ALICE, 0, BOB.address, chainId=1), "invalid chain id"),
        (signed(ALICE, 0, BOB.address, maxPriorityFeePerGas=4 * GWEI), "higher than max fee"),
        (signed(ALICE, 0, BOB.address) + b"\0", "failed to decode"),
    ],
)
def test_each_refusal_has_its_words(raw, words):
    with pytest.raises(RpcError, match=words):
        decode(raw, CHAIN_ID)
