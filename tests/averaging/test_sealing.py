import pytest
from hypothesis import given
from hypothesis import strategies as st

from averaging.keys import MemberSecrets
from averaging.sealing import OVERHEAD_BYTES, open_shares, seal_shares
from dht.errors import ProtocolError, Refusal

SID = bytes(range(32))
ONE, TWO, OTHER = (MemberSecrets(bytes([k]) * 31, bytes([k]) * 31, bytes([k]) * 31, bytes([k]) * 32) for k in (1, 2, 3))
PLAIN = bytes(range(96))


def seal(plaintext=PLAIN, sid=SID, i=4, j=7):
    return seal_shares(ONE.share_private, TWO.public().share_key, sid, i, j, plaintext)


def refused(*arguments):
    with pytest.raises(ProtocolError) as error:
        open_shares(*arguments)
    return error.value.refusal


@given(st.binary(max_size=300))
def test_what_is_sealed_opens(plaintext):
    sealed = seal(plaintext)
    assert len(sealed) == len(plaintext) + OVERHEAD_BYTES
    assert open_shares(TWO.share_private, ONE.public().share_key, SID, 4, 7, sealed) == plaintext


@given(st.integers(0, (96 + OVERHEAD_BYTES) * 8 - 1))
def test_any_flipped_bit_is_noticed(bit):
    sealed = bytearray(seal())
    sealed[bit // 8] ^= 1 << (bit % 8)
    assert refused(TWO.share_private, ONE.public().share_key, SID, 4, 7, bytes(sealed)) is Refusal.BAD_SHARE


@given(st.integers(0, 96 + OVERHEAD_BYTES - 1))
def test_any_truncation_is_noticed(size):
    assert refused(TWO.share_private, ONE.public().share_key, SID, 4, 7, seal()[:size]) is Refusal.BAD_SHARE


@pytest.mark.parametrize(("sid", "i", "j"), [(bytes(32), 4, 7), (SID, 5, 7), (SID, 4, 8), (SID, 7, 4)])
def test_a_sealed_share_opens_in_its_own_context_only(sid, i, j):
    assert refused(TWO.share_private, ONE.public().share_key, sid, i, j, seal()) is Refusal.BAD_SHARE


def test_only_the_receiver_opens_and_only_the_sender_seals():
    assert refused(OTHER.share_private, ONE.public().share_key, SID, 4, 7, seal()) is Refusal.BAD_SHARE
    assert refused(TWO.share_private, OTHER.public().share_key, SID, 4, 7, seal()) is Refusal.BAD_SHARE
    assert refused(TWO.share_private, bytes(32), SID, 4, 7, seal()) is Refusal.BAD_SHARE


def test_another_plaintext_takes_another_nonce():
    nonces = {seal(bytes([k]) * 96)[:12] for k in range(50)}
    assert len(nonces) == 50
    assert seal() == seal()
    # The two directions of a pair have different keys although the shared secret is one.
    back = seal_shares(TWO.share_private, ONE.public().share_key, SID, 7, 4, PLAIN)
    assert back[12:] != seal()[12:]
