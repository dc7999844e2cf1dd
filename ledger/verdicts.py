"""Verdicts: what attestors find against a peer that two signatures cannot prove, and the file their signatures go in.

The contract is `ledger/contracts/Verdicts.sol`. A file is JSON that attestors hand on, each adding its signature; it
says for which contract on which chain it is, and nothing in it has to be believed: signatures are recovered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from dht.errors import DataError
from dht.identity import Identity
from ledger import bounded_json, signatures
from ledger.eip712 import ADDRESS_BYTES, WORD, Domain, Struct

KINDS = APPROVAL, VETO = "signatures", "vetoes"
"""The two kinds of signatures, by their name in a file."""
MOST_SIGNATURES = 1024


@dataclass(frozen=True, slots=True)
class Verdict(Struct):
    """`bps` ten-thousandths of the stake that answers for `key` (20 bytes); `evidence` names what was published."""

    TYPE: ClassVar[str] = "Verdict(bytes32 runId,uint64 epoch,address key,uint16 bps,bytes32 evidence)"

    run: bytes
    epoch: int
    key: bytes
    bps: int
    evidence: bytes


@dataclass(frozen=True, slots=True)
class Veto(Struct):
    """What closes a verdict before it is executed; `verdict` is its id, the hashStruct."""

    TYPE: ClassVar[str] = "Veto(bytes32 verdict)"

    verdict: bytes


@dataclass(frozen=True)
class VerdictFile:
    """A verdict, the contract that it is for, and compact signatures by their kind."""

    domain: Domain
    verdict: Verdict
    signed: Mapping[str, frozenset[bytes]] = field(default_factory=dict)

    @property
    def id(self) -> bytes:
        """The verdict's name in the contract, 32 bytes."""
        return self.verdict.hash()

    def digest(self, kind: str) -> bytes:
        """What signatures of a kind are over, 32 bytes."""
        signed = self.verdict if kind == APPROVAL else Veto(self.id)
        return signed.digest(self.domain)

    def of_kind(self, kind: str) -> frozenset[bytes]:
        """All signatures of a kind, whoever made them."""
        return self.signed.get(kind, frozenset())

    def signed_by(self, identity: Identity, kind: str) -> VerdictFile:
        """The same with one signature more."""
        made = signatures.sign(identity, self.digest(kind))
        return replace(self, signed={**self.signed, kind: self.of_kind(kind) | {made}})

    def by_signer(self, kind: str) -> dict[bytes, bytes]:
        """Signatures of a kind by the address (20 bytes) that made them; what is no signature is left out."""
        digest = self.digest(kind)
        recovered = ((signatures.recover(digest, each), each) for each in sorted(self.of_kind(kind)))
        return {signer: each for signer, each in recovered if signer is not None}

    def packed(self, kind: str, attestors: Sequence[bytes]) -> tuple[int, tuple[bytes, ...]]:
        """(bitmap, rvs) of a kind as the contract takes them; signatures of others than attestors are left out."""
        found = self.by_signer(kind)
        return signatures.pack({place: found[each] for place, each in enumerate(attestors) if each in found})

    def as_json(self) -> dict[str, Any]:
        """The file's content."""
        verdict = self.verdict
        return {
            "id": _hex(self.id),
            "chain_id": self.domain.chain_id,
            "contract": _hex(self.domain.contract),
            "run": _hex(verdict.run),
            "epoch": verdict.epoch,
            "key": _hex(verdict.key),
            "bps": verdict.bps,
            "evidence": _hex(verdict.evidence),
        } | {kind: sorted(map(_hex, self.of_kind(kind))) for kind in KINDS}


def parse(data: bytes) -> VerdictFile:
    """The verdict of a file's bytes. Raises DataError for what is none."""
    try:
        row = bounded_json.loads(data)
        domain = Domain(_number(row["chain_id"], 64), _bytes(row["contract"], ADDRESS_BYTES))
        key, evidence = _bytes(row["key"], ADDRESS_BYTES), _bytes(row["evidence"], WORD)
        numbers = _number(row["epoch"], 64), _number(row["bps"], 16)
        verdict = Verdict(_bytes(row["run"], WORD), numbers[0], key, numbers[1], evidence)
        if verdict.hash() != _bytes(row["id"], WORD):
            raise ValueError("its id is of another verdict")
        return VerdictFile(domain, verdict, {kind: _signatures(row, kind) for kind in KINDS})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"this is no verdict: {error}", remedy="contribution-explorer verdict draft makes one"
        ) from None


def merge(files: Iterable[VerdictFile]) -> VerdictFile:
    """All signatures of files of one verdict. Raises DataError when they are of more than one."""
    first, *rest = files
    for each in rest:
        if (each.domain, each.verdict) != (first.domain, first.verdict):
            raise DataError(
                f"the files are of two verdicts, {_hex(first.id)} and {_hex(each.id)}",
                remedy="give files that began as one draft",
            )
    together = {kind: first.of_kind(kind).union(*(each.of_kind(kind) for each in rest)) for kind in KINDS}
    return replace(first, signed=together)


def _signatures(row: Mapping[str, Any], kind: str) -> frozenset[bytes]:
    found = row[kind]
    if not isinstance(found, list) or len(found) > MOST_SIGNATURES:
        raise ValueError(f"{kind} is no list of at most {MOST_SIGNATURES}")
    return frozenset(_bytes(each, signatures.COMPACT_BYTES) for each in found)


def _hex(data: bytes) -> str:
    return f"0x{data.hex()}"


def _bytes(text: str, size: int) -> bytes:
    data = bytes.fromhex(text.removeprefix("0x"))
    if len(data) != size:
        raise ValueError(f"{text[:80]!r} is not {size} bytes")
    return data


def _number(value: object, bits: int) -> int:
    if type(value) is not int or not 0 <= value < 1 << bits:
        raise ValueError(f"{str(value)[:80]!r} is no number of {bits} bits")
    return value
