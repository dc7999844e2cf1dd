"""Identities: the bytes that p2pd reads, a key file that nobody else can read or replace, signatures in one form."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import coincurve
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.errors import IdentityError, ProtocolError, Refusal
from dht.identity import Identity, PeerId, verify

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "identity.json").read_text())
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
ALICE, BOB = Identity(b"\x01" * 32), Identity(b"\x02" * 32)


@pytest.mark.parametrize("case", VECTORS["identities"], ids=lambda case: case["about"])
def test_key_file_and_peer_id_vectors(case: dict[str, str], tmp_path: Path):
    identity = Identity(bytes.fromhex(case["secret"]))
    assert identity.protobuf().hex() == case["private_key_file"]
    assert identity.peer_id.hex() == case["peer_id"]
    assert identity.peer_id.public_key.hex() == case["public_key"]
    assert str(identity.peer_id) == case["peer_id_text"]
    assert PeerId.parse(case["peer_id_text"]) == identity.peer_id
    file = tmp_path / "identity.key"
    file.write_bytes(bytes.fromhex(case["private_key_file"]))
    file.chmod(0o600)
    assert Identity.load(file).peer_id == identity.peer_id


@pytest.mark.parametrize("case", VECTORS["signatures"], ids=lambda case: case["signature"][:8])
def test_signature_vectors(case: dict[str, str]):
    identity, signature = Identity(bytes.fromhex(case["secret"])), bytes.fromhex(case["signature"])
    assert identity.sign(bytes.fromhex(case["digest"])) == signature
    assert verify(identity.peer_id, bytes.fromhex(case["digest"]), signature)


# --- the file


def test_created_once_private_and_never_overwritten(tmp_path: Path):
    path = tmp_path / "made" / "on the way" / "identity.key"
    umask = os.umask(0)  # the mode may not depend on it
    try:
        identity = Identity.load_or_create(path)
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    before = path.read_bytes()
    assert before == identity.protobuf()
    assert Identity.load_or_create(path).peer_id == Identity.load(path).peer_id == identity.peer_id
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_damaged_file_is_reported_and_kept(tmp_path: Path):
    path = tmp_path / "identity.key"
    good = ALICE.protobuf()
    damaged = [b"", good[:-1], good + b"\0", b"\x08\x00" + good[2:], good[:4] + bytes(32), good[:4] + b"\xff" * 32]
    for data in damaged:
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(IdentityError, match="does not hold a secp256k1") as caught:
            Identity.load_or_create(path)
        assert caught.value.remedy
        assert path.read_bytes() == data


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o777])
def test_a_file_open_to_others_is_refused(mode: int, tmp_path: Path):
    path = tmp_path / "identity.key"
    path.write_bytes(ALICE.protobuf())
    path.chmod(mode)
    with pytest.raises(IdentityError, match="readable by others") as caught:
        Identity.load_or_create(path)
    assert caught.value.remedy == f"chmod 600 {path}"
    path.chmod(0o400)
    assert Identity.load_or_create(path).peer_id == ALICE.peer_id


def test_missing_or_impossible_paths(tmp_path: Path):
    with pytest.raises(IdentityError, match="cannot read"):
        Identity.load(tmp_path / "none")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(IdentityError, match="Not a directory"):
        Identity.load_or_create(tmp_path / "file" / "identity.key")
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "unmounted" / "identity.key")
    with pytest.raises(IdentityError, match="cannot read"):
        Identity.load_or_create(dangling)
    assert dangling.is_symlink()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fired = 0

    def full(descriptor: int) -> None:
        nonlocal fired
        fired += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IdentityError, match="No space left"):
        Identity.load_or_create(tmp_path / "identity.key")
    assert fired == 1
    assert list(tmp_path.iterdir()) == []


def test_everyone_who_creates_at_once_gets_the_same_key(tmp_path: Path):
    path, count = tmp_path / "identity.key", 8
    barrier, found = threading.Barrier(count), []

    def create() -> None:
        barrier.wait(timeout=30)
        found.append(Identity.load_or_create(path).peer_id)

    threads = [threading.Thread(target=create) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(found) == count
    assert len(set(found)) == 1
    assert list(tmp_path.iterdir()) == [path]


# --- peer ids


def test_peer_ids_are_bytes_with_a_text():
    peer = ALICE.peer_id
    assert peer == bytes(peer)
    assert len(peer) == 39
    assert peer.short == str(peer)[-8:]
    assert repr(peer) == f"PeerId({peer})"
    assert {bytes(peer): 1}[peer] == 1
    assert Identity.generate().peer_id != Identity.generate().peer_id


@given(st.binary(max_size=60) | st.binary(min_size=39, max_size=39))
def test_other_bytes_are_no_peer_id(data: bytes):
    with pytest.raises(ProtocolError) as caught:
        PeerId(data)
    assert caught.value.refusal == Refusal.OUT_OF_BOUNDS


@given(st.text(max_size=60) | st.sampled_from(["QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "0OIl"]))
def test_other_text_is_no_peer_id(text: str):
    with pytest.raises(ProtocolError) as caught:
        PeerId.parse(text)
    assert caught.value.refusal == Refusal.OUT_OF_BOUNDS


# --- signatures


@settings(max_examples=50)
@given(secret=st.integers(1, ORDER - 1), digest=st.binary(min_size=32, max_size=32))
def test_signatures_are_repeatable_low_s_and_recover_the_signer(secret: int, digest: bytes):
    identity = Identity(secret.to_bytes(32, "big"))
    signature = identity.sign(digest)
    assert signature == identity.sign(digest)
    assert len(signature) == 64
    assert int.from_bytes(signature[32:], "big") <= ORDER // 2
    assert verify(identity.peer_id, digest, signature)
    recovered = {
        coincurve.PublicKey.from_signature_and_message(signature + bytes([bit]), digest, hasher=None).format()
        for bit in (0, 1)
    }
    assert identity.peer_id.public_key in recovered  # what ecrecover does in a contract


@given(digest=st.binary(min_size=32, max_size=32), bit=st.integers(0, 511), other=st.integers(0, 255))
def test_anything_changed_does_not_verify(digest: bytes, bit: int, other: int):
    signature = ALICE.sign(digest)
    flipped = (int.from_bytes(signature, "big") ^ (1 << bit)).to_bytes(64, "big")
    changed = (int.from_bytes(digest, "big") ^ (1 << other)).to_bytes(32, "big")
    assert not verify(ALICE.peer_id, digest, flipped)
    assert not verify(ALICE.peer_id, changed, signature)
    assert not verify(BOB.peer_id, digest, signature)


@given(digest=st.binary(min_size=32, max_size=32))
def test_the_high_s_twin_is_refused(digest: bytes):
    signature = ALICE.sign(digest)
    twin = signature[:32] + (ORDER - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")
    assert not verify(ALICE.peer_id, digest, twin)


def test_wrong_sizes_and_numbers_are_refused_quietly():
    digest = bytes(range(32))
    signature = ALICE.sign(digest)
    for bad in (b"", signature[:-1], signature + b"\0", bytes(64), b"\xff" * 64, signature[:32] + bytes(32)):
        assert not verify(ALICE.peer_id, digest, bad)
    for bad in (b"", digest[:-1], digest + b"\0"):
        assert not verify(ALICE.peer_id, bad, signature)
    no_point = PeerId(bytes(ALICE.peer_id[:6]) + b"\x07" + bytes(32))
    assert not verify(no_point, digest, signature)


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(32), b"\xff" * 32, ORDER.to_bytes(32, "big")])
def test_no_key_from_a_bad_secret(secret: bytes):
    with pytest.raises(ValueError, match=r"."):
        Identity(secret)
