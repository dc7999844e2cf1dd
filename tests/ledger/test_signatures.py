import coincurve
import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, verify
from ledger.signatures import key_address, pack, recover, sign, unpack

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
SECRETS = st.integers(1, ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
DIGESTS = st.binary(min_size=32, max_size=32)


@given(SECRETS, DIGESTS)
def test_signed_and_recovered(secret, digest):
    identity = Identity(secret)
    signature = sign(identity, digest)
    assert recover(digest, signature) == key_address(identity.peer_id)
    assert signature == sign(identity, digest)
    # It is the peer's ordinary signature with one bit more.
    s = int.from_bytes(signature[32:], "big") % 2**255
    assert verify(identity.peer_id, digest, signature[:32] + s.to_bytes(32, "big"))


def test_addresses_are_those_of_ethereum():
    for number in range(1, 20):
        secret = bytes(31) + bytes([number])
        assert "0x" + key_address(Identity(secret).peer_id).hex() == Account.from_key(secret).address.lower()


def test_high_s_is_refused():
    identity, digest = Identity(b"\5" * 32), b"d" * 32
    signature = sign(identity, digest)
    vs = int.from_bytes(signature[32:], "big")
    s, parity = vs % 2**255, vs >> 255
    # (r, n - s) with the other parity recovers the same key by mathematics; the contracts and we take one form only.
    high = signature[:32] + (ORDER - s).to_bytes(32, "big") + bytes([1 - parity])
    assert coincurve.PublicKey.from_signature_and_message(high, digest, hasher=None) == identity._key.public_key
    flipped = signature[:32] + ((ORDER - s) % 2**255 | (1 - parity) << 255).to_bytes(32, "big")
    assert recover(digest, flipped) is None or recover(digest, flipped) != key_address(identity.peer_id)


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65), b"\xff" * 64, b"\0" * 63 + b"\1"])
def test_what_is_no_signature_has_no_signer(signature):
    assert recover(b"d" * 32, signature) is None


@given(st.dictionaries(st.integers(0, 63), st.binary(min_size=64, max_size=64)))
def test_bitmaps(signatures):
    bitmap, rvs = pack(signatures)
    assert unpack(bitmap, rvs) == signatures
    assert bitmap.bit_count() == len(signatures) and len(rvs) == 2 * len(signatures)
    assert [rvs[2 * k] + rvs[2 * k + 1] for k in range(len(signatures))] == [signatures[k] for k in sorted(signatures)]


@pytest.mark.parametrize(("bitmap", "rvs"), [(1, []), (0, [bytes(32)]), (3, [bytes(32)] * 2), (1, [bytes(32), b""])])
def test_a_bitmap_with_other_signatures_is_refused(bitmap, rvs):
    with pytest.raises(ProtocolError) as refused:
        unpack(bitmap, rvs)
    assert refused.value.refusal is Refusal.BAD_CERTIFICATE
