import hmac
import json
from pathlib import Path

import pytest

from averaging import keys
from dht.errors import ProtocolError, Refusal

SID = bytes(range(32))


def members(count):
    return [keys.MemberSecrets.generate() for _ in range(count)]


def hkdf_rfc5869(secret, salt, info, length):
    """Extract and expand, straight from the RFC."""
    extracted = hmac.digest(salt or bytes(32), secret, "sha256")
    block, output = b"", b""
    while len(output) < length:
        block = hmac.digest(extracted, block + info + bytes([len(output) // 32 + 1]), "sha256")
        output += block
    return output[:length]


def test_hkdf_follows_the_rfc():
    # RFC 5869, appendix A.1
    okm = keys.hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert okm.hex().startswith("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf")
    assert keys.hkdf(b"k", b"", b"i", 64) == hkdf_rfc5869(b"k", b"", b"i", 64)


def test_x25519_follows_the_rfc():
    # RFC 7748, section 6.1
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob_public = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert keys.shared_secret(alice, bob_public).hex() == shared


def test_both_sides_of_a_pair_derive_one_key():
    one, two = members(2)
    ours = keys.pair_key(one.mask_private, two.public().mask_key, SID, 3, 1)
    theirs = keys.pair_key(two.mask_private, one.public().mask_key, SID, 1, 3)
    assert ours == theirs
    assert len(ours) == 16


def test_a_pair_key_belongs_to_one_sid_and_one_pair_of_indices():
    one, two = members(2)
    public = two.public().mask_key
    made = {
        keys.pair_key(one.mask_private, public, sid, i, j)
        for sid in (SID, bytes(32))
        for i, j in ((0, 1), (0, 2), (1, 2), (1, 256))
    }
    assert len(made) == 8


def test_vectors_from_raw_primitives():
    vector = json.loads((Path(__file__).parents[1] / "vectors" / "keys.json").read_text())
    sid, (one, two) = bytes.fromhex(vector["sid"]), vector["members"]
    private = hkdf_rfc5869(bytes.fromhex(one["seeds"]["a"]), b"", b"murmuration/1/mask-key", 32)
    shared = keys.shared_secret(private, bytes.fromhex(two["mask_key"]))
    assert hkdf_rfc5869(shared, sid, b"murmuration/1/pair\x00\x00\x00\x01", 16).hex() == vector["pair_key_0_1"]
    assert hkdf_rfc5869(bytes.fromhex(one["seeds"]["b"]), sid, b"murmuration/1/self", 16).hex() == one["self_key"]


# Points of small order on Curve25519: the shared secret would be zero whatever the private key.
LOW_ORDER = [
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
]


@pytest.mark.parametrize("public", [*LOW_ORDER, b"", bytes(31)], ids=lambda p: p.hex()[:8])
def test_degenerate_public_keys_are_refused(public):
    (member,) = members(1)
    with pytest.raises(ProtocolError) as refused:
        keys.pair_key(member.mask_private, public, SID, 0, 1)
    assert refused.value.refusal is Refusal.BAD_SHARE


def test_no_pair_key_with_oneself():
    (member,) = members(1)
    with pytest.raises(ValueError):
        keys.pair_key(member.mask_private, member.public().mask_key, SID, 2, 2)


def test_seeds_are_checked_against_what_was_published():
    one, two = members(2)
    public = one.public()
    assert keys.check_mask_seed(one.a, public.mask_key)
    assert keys.check_self_seed(one.b, public.self_commitment)
    assert keys.check_audit_seed(one.r, public.audit_commitment)
    for wrong in (two.a, two.b, bytes(31), b"", one.a + b"\0"):
        assert not keys.check_mask_seed(wrong, public.mask_key)
        assert not keys.check_self_seed(wrong, public.self_commitment)
        assert not keys.check_audit_seed(wrong, public.audit_commitment)
    # One seed under two roles opens neither by accident.
    assert keys.self_commitment(one.b) != keys.audit_commitment(one.b)


def test_all_seeds_are_fresh_and_never_shown():
    asked = []

    def urandom(size):
        asked.append(size)
        return bytes([len(asked)]) * size

    secrets = keys.MemberSecrets.generate(urandom)
    assert asked == [31, 31, 31, 32]
    assert len({secrets.a, secrets.b, secrets.r, secrets.e[:31]}) == 4
    assert secrets.a.hex() not in repr(secrets)
    assert "\\x" not in repr(secrets)
