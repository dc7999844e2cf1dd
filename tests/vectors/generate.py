"""Golden vectors of the kernels: `python tests/vectors/generate.py` rewrites the JSON files beside it.

Inputs are SHAKE-256 streams of a label, so another implementation can rebuild them. The tests compare what the code
computes now with the files: a difference is a change of protocol.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256, shake_256
from pathlib import Path
from typing import Any

import numpy as np

from averaging import encoding, keys, masking, packing, scales, sealing, shamir, wide
from averaging.ballots import PRECOMMIT, Ballot, Certificate
from averaging.certificate import proposers
from averaging.layout import BLOCK, RING_DTYPES, Layout
from averaging.record import Record, Survivor, check_founding, found, void_record
from averaging.rotation import Rotation
from averaging.tally import Tally
from dht.envelope import seal
from dht.identity import Identity
from dht.wire import encode

HERE = Path(__file__).parent


def stream(label: str, size: int) -> bytes:
    """`size` reproducible bytes."""
    return shake_256(label.encode()).digest(size)


def _array(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    little = array.astype(array.dtype.newbyteorder("<"))
    return {"head": little[:8].tobytes().hex(), "sha256": sha256(little.tobytes()).hexdigest()}


def shamir_vectors() -> list[dict[str, Any]]:
    """Shares of a seed for several thresholds."""
    rows = []
    for threshold, count in ((1, 1), (2, 3), (7, 8), (14, 16), (56, 64)):
        secret = stream(f"secret {threshold}/{count}", 31)
        shares = shamir.split(secret, threshold, count, partial(stream, f"noise {threshold}"))
        rows.append({"secret": secret.hex(), "threshold": threshold, "shares": [share.hex() for share in shares]})
    return rows


def keys_vectors() -> dict[str, Any]:
    """Two members' keys, what they share, and a sealed share."""
    sid = stream("sid", 32)
    one, two = (
        keys.MemberSecrets(*(stream(f"{who} {part}", 32 if part == "e" else 31) for part in "abre")) for who in "12"
    )
    pair = keys.pair_key(one.mask_private, two.public().mask_key, sid, 0, 1)
    plaintext = stream("plaintext", 96)
    return {
        "sid": sid.hex(),
        "members": [
            {
                "seeds": {part: getattr(member, part).hex() for part in "abre"},
                "mask_key": member.public().mask_key.hex(),
                "share_key": member.public().share_key.hex(),
                "self_commitment": member.public().self_commitment.hex(),
                "audit_commitment": member.public().audit_commitment.hex(),
                "self_key": keys.self_key(member.b, sid).hex(),
            }
            for member in (one, two)
        ],
        "pair_key_0_1": pair.hex(),
        "plaintext": plaintext.hex(),
        "sealed_0_1": sealing.seal_shares(one.share_private, two.public().share_key, sid, 0, 1, plaintext).hex(),
    }


def masking_vectors() -> list[dict[str, Any]]:
    """A zero chunk after one mask, for each ring."""
    rows = []
    for ring_bits in (8, 16, 32):
        for chunk, sign, words in ((0, 1, 4096), (3, -1, 70_000), (2**32 + 5, 1, 8)):
            ring = np.zeros(words, RING_DTYPES[ring_bits])
            key = stream(f"mask {ring_bits}", 16)
            masking.add_stream(key, chunk, ring, sign)
            row = {"key": key.hex(), "ring_bits": ring_bits, "chunk": chunk, "sign": sign, "words": words}
            rows.append({**row, **_array(ring)})
    return rows


def rotation_vectors() -> list[dict[str, Any]]:
    """`D H a` of integer blocks, for each width and at several block numbers."""
    rows = []
    seed = stream("sign seed", 32)
    for dtype in ("i1", "<i2", "<i4"):
        for first_block, blocks in ((0, 1), (7, 3), (2**20, 9)):
            size = blocks * BLOCK * np.dtype(dtype).itemsize
            integers = np.frombuffer(stream(f"integers {dtype} {first_block}", size), dtype)
            rotated = Rotation(seed).unrotate_integers(integers, first_block)
            row = {"seed": seed.hex(), "input": dtype, "first_block": first_block, "blocks": blocks}
            rows.append({**row, "output": rotated.dtype.str, **_array(rotated)})
    return rows


def encoding_vectors() -> list[dict[str, Any]]:
    """Quantised values, decoded sums, block energies and the next clips."""
    rows = []
    for ring_bits, members in ((8, 5), (16, 8), (32, 64)):
        layout = Layout(4 * BLOCK - 77, ring_bits, 3 * BLOCK)
        clips = np.array([0.5, 0.25, 1.0, 0.125], np.float32)
        decoder = encoding.Decoder(layout, members, clips, stream("sign seed", 32))
        summed = np.frombuffer(stream(f"sum {ring_bits}", 3 * BLOCK * ring_bits // 8), RING_DTYPES[ring_bits])
        energies = np.append(decoder.block_energies(0, summed), scales.UNKNOWN)
        following = scales.next_scales(layout, members, clips, energies, members - 1, 0.01)
        x = np.frombuffer(stream("x", 3 * BLOCK * 2), "<i2").astype(np.float32) / np.float32(2**15)
        quantised = layout.zeros(0)
        factors = decoder.levels / clips[:3].astype(np.float64)
        encoding.quantise(x, factors, decoder.levels, stream("dither", 16), 0, quantised)
        rows.append(
            {
                "ring_bits": ring_bits,
                "members": members,
                "levels": decoder.levels,
                "quantised": _array(quantised),
                "decoded": _array(decoder.decode_chunk(0, summed, 2.75)),
                "energies": energies.tolist(),
                "next_scales": following.tobytes().hex(),
            }
        )
    return rows


def packing_vectors() -> list[dict[str, Any]]:
    """Digits and their ring words, a masked word, the total across cohorts, and what a packed sum decodes to."""
    rows = []
    for pack, members in ((7, 8), (8, 5), (10, 4), (13, 4), (20, 2)):
        layout = Layout(BLOCK - 5, 32, BLOCK, pack)
        top = packing.top_digit(pack, members)
        digits = np.frombuffer(stream(f"digits {pack}", BLOCK), np.uint8) % np.uint8(top * members + 1)
        words = layout.empty(0)
        packing.pack_digits(digits, pack, words)
        decoder = encoding.Decoder(layout, members, np.array([0.5], np.float32), stream("sign seed", 32), members)
        x = np.frombuffer(stream("x", BLOCK * 2), "<i2").astype(np.float32) / np.float32(2**15)
        rounded = np.empty(BLOCK, np.uint8)
        encoding.quantise_digits(x, np.array([top / 0.5]), top, rounded)
        rows.append(
            {
                "pack": pack,
                "base": packing.base(pack),
                "members": members,
                "top": top,
                "words": _array(words),
                "total_of_two": _array(np.frombuffer(wide.add_up_packed([words.data, words.data], pack), np.uint8)),
                "rounded": _array(rounded),
                "decoded": _array(decoder.decode_chunk(0, words, 2.75)),
                "energies": decoder.block_energies(0, words).tolist(),
            }
        )
    return rows


def record_vectors() -> dict[str, Any]:
    """A founding, a record, its void successor, and the certificate of the record."""
    members = sorted((Identity(sha256(b"vector %d" % i).digest()) for i in range(4)), key=lambda key: key.peer_id)
    founder = Identity(sha256(b"vector 0").digest())
    run = sha256(b"vector run").digest()
    founding = found(founder, run, tuple(key.peer_id for key in members), b"\x01" * 32, b"\x02" * 32)
    start = check_founding(founding, run, founder.peer_id).record()
    survivors = tuple(Survivor(bytes(key.peer_id), 1000 * (i + 1), 3 + i) for i, key in enumerate(members))
    bound = [bytes([k]) * 32 for k in (3, 4, 5)]
    record = Record(run, 1, start.hash(), False, 2, *bound, survivors, (1, 4), (7, 9), 14000, b"\x06" * 32, bytes(32))
    tally = Tally().apply(record)
    record = replace(record, tally_root=tally.root())
    ballot = Ballot(1, 2, PRECOMMIT, record.hash())
    signers = (0, 2, 3)
    ballots = [seal(members[i], run, 1, ballot) for i in signers]
    certificate = Certificate(1, 2, record.hash(), signers, tuple(envelope.signature for envelope in ballots))
    return {
        "about": "Frames and hashes of the round record, in hex. Keys: secret i is SHA-256 of 'vector i'; "
        "run is SHA-256 of 'vector run'.",
        "founding_envelope": encode(founding).hex(),
        "founding_record": encode(start).hex(),
        "founding_hash": start.hash().hex(),
        "record": encode(record).hex(),
        "record_hash": record.hash().hex(),
        "void_record": encode(void_record(record)).hex(),
        "void_hash": void_record(record).hash().hex(),
        "tally_leaves": [tally.shares[peer].leaf(peer).hex() for peer in tally.peers()],
        "tally_root": tally.root().hex(),
        "ballot": encode(ballot).hex(),
        "ballot_envelope": encode(ballots[0]).hex(),
        "certificate": encode(certificate).hex(),
        "proposers": [peer.hex() for peer in proposers(record.members(), record.parent)],
    }


def evidence_vectors() -> list[dict[str, Any]]:
    """One piece of evidence of each kind, small ones, with what it proves."""
    from averaging.evidence import name_of, verify
    from averaging.messages import Manifest
    from dht.wire import encode
    from tests.averaging.lies import two, wrong_seed, wrong_sum_net

    sid = stream("sid", 32)
    manifests = (Manifest(sid, 5, (stream("one", 32),)), Manifest(sid, 5, (stream("other", 32),)))
    net = wrong_sum_net(3, 2, place=-1)  # of the trailer, whose chunk has 32 bytes
    wrong_sum = next(frame for node in net.nodes for frame in node.cohort.proofs)
    rows = []
    for frame in (encode(two(*manifests)), wrong_sum, encode(wrong_seed(3, 1))):
        proof = verify(frame)
        row = {"kind": proof.kind, "accused": str(proof.accused), "round": proof.round}
        row |= {"run": proof.run.hex(), "sid": proof.sid.hex()}
        rows.append(row | {"name": name_of(frame).hex(), "frame": frame.hex()})
    return rows


VECTORS: dict[str, Callable[[], Any]] = {
    "shamir": shamir_vectors,
    "keys": keys_vectors,
    "masking": masking_vectors,
    "rotation": rotation_vectors,
    "encoding": encoding_vectors,
    "packing": packing_vectors,
    "record": record_vectors,
    "evidence": evidence_vectors,
}


def main() -> None:
    """Rewrite the files."""
    for name, make in VECTORS.items():
        (HERE / f"{name}.json").write_text(json.dumps(make(), indent=1) + "\n")


if __name__ == "__main__":
    main()
