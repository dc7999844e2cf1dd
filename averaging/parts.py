"""What goes between cohorts on the bulk lane: PART, a cohort's sum with its proof, and TOTAL, words that a head signed.

PART:  ring words | Merkle proof under the root in the cohort's Result (32 bytes a hash)
TOTAL: length of what follows (2 bytes) | envelope with a TotalHash | wide words (`averaging.wide`)
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from averaging.messages import Result
from dht import merkle
from dht.envelope import Envelope
from dht.errors import ProtocolError, Refusal
from dht.transport import Part
from dht.wire import decode_as, encode

_HASH = 32


def make_part(data: Part, leaves: Sequence[bytes], chunk: int) -> bytes:
    """The payload of a PART frame. `leaves`: of all sums of the cohort."""
    return b"".join((data, *merkle.proof(leaves, chunk)))


def open_part(result: Result, chunk: int, payload: Part) -> Part:
    """The sum in a PART frame. Raises ProtocolError unless it is under the root that the cohort's members signed."""
    size = merkle.proof_length(chunk, result.chunks) * _HASH if chunk < result.chunks else len(payload)
    view = memoryview(payload)
    if len(view) <= size:
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"a part of chunk {chunk} with {len(view)} bytes")
    data, rest = view[: len(view) - size], view[len(view) - size :]
    path = [bytes(rest[i : i + _HASH]) for i in range(0, size, _HASH)]
    leaf = merkle.leaf_hash(sha256(data).digest())
    if merkle.root_from_proof(leaf, chunk, result.chunks, path) != result.root:
        raise ProtocolError(Refusal.BAD_HASH, f"the sum of chunk {chunk} is not what cohort {result.cohort} signed")
    return data


def make_total(signed: Envelope, words: Part) -> bytes:
    """The payload of a TOTAL frame; `signed` is an envelope with a TotalHash."""
    frame = encode(signed)
    return b"".join((len(frame).to_bytes(2, "big"), frame, words))


def open_total(payload: Part) -> tuple[Envelope, memoryview]:
    """(the envelope with the TotalHash, the words) in a TOTAL frame. Raises ProtocolError for what is no envelope."""
    view = memoryview(payload)
    size = int.from_bytes(view[:2], "big")
    return decode_as(Envelope, bytes(view[2 : 2 + size])), view[2 + size :]
