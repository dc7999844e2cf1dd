"""One checkpoint checked against everything it follows from. Every number is recomputed; none is believed.

Each finding is `ok`, `bad`, or `unchecked` with the reason why: records that are not here prove nothing either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from averaging.forks import committee_of
from averaging.record import Record
from dht import merkle
from dht.errors import MurmurationError, ProtocolError, StorageError
from dht.identity import PeerId
from ledger import signatures
from ledger.books import Books
from ledger.checkpoint import NOTHING, Checkpoint
from ledger.eip712 import Domain
from ledger.explorer.facts import Epoch
from ledger.explorer.history import History
from ledger.explorer.states import model_root
from ledger.rewards import Constants

if TYPE_CHECKING:
    from ledger.explorer.light import LightClient, Served

Verdict = Literal["ok", "bad", "unchecked"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    verdict: Verdict
    text: str


@dataclass(frozen=True, slots=True)
class Signature:
    """One attestor's signature on a checkpoint; `peer` is the peer id of the key, where it is known."""

    index: int
    attestor: str
    weight: int
    peer: str | None
    valid: bool


@dataclass(frozen=True)
class Report:
    """All findings on one epoch."""

    epoch: int
    findings: tuple[Finding, ...]
    signatures: tuple[Signature, ...]
    missing: tuple[str, ...]
    """Attestors whose signature is not on it."""
    served: tuple[Served, ...] = ()
    """Which peers were asked, for what, and what came of it."""

    @property
    def good(self) -> bool:
        """Whether nothing is wrong. What could not be checked is not wrong."""
        return all(finding.verdict != "bad" for finding in self.findings)

    @property
    def complete(self) -> bool:
        """Whether everything could be checked."""
        return all(finding.verdict != "unchecked" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"epoch": self.epoch, "good": self.good, "complete": self.complete} | {
            "findings": [asdict(finding) for finding in self.findings],
            "signatures": [asdict(signature) for signature in self.signatures],
            "missing": list(self.missing),
            "served": [asdict(served) for served in self.served],
        }


def check_header(epoch: Epoch, before: Epoch | None, run: bytes) -> list[Finding]:
    """The checkpoint's hash, its run, and how it follows from the one before."""
    header = epoch.header
    parent = before.hash if before else NOTHING
    first = before.header.last_round + 1 if before else 1
    follows = header.parent == parent and header.first_round == first
    reward = header.cumulative_reward - (before.header.cumulative_reward if before else 0)
    return [
        _same("hash", header.hash(), epoch.hash, "is EIP-712's hashStruct of the header"),
        _same("run", header.run, run, "is this run's"),
        _finding(
            "parent", follows, f"follows epoch {epoch.number - 1}, rounds adjoin", "does not follow from the one before"
        ),
        _finding("epoch's reward", reward >= 0, f"rises by {reward} units", f"falls by {-reward} units"),
    ]


def check_signatures(
    epoch: Epoch,
    rvs: Sequence[bytes] | None,
    attestors: Sequence[tuple[str, int]] | None,
    domain: Domain,
    names: dict[str, PeerId],
) -> tuple[list[Finding], list[Signature], list[str]]:
    """Who signed: each signature is recovered from the transaction's words, whatever the bitmap claims.

    `attestors` are (address, weight) as of then; `names` the peer ids by key address.
    """
    if attestors is None or rvs is None:
        lack = "the attestors of that time" if attestors is None else "the transaction that carried the signatures"
        return [Finding("signatures", "unchecked", f"{lack} cannot be read")], [], []
    try:
        given = signatures.unpack(epoch.bitmap, rvs)
    except ProtocolError as error:
        return [Finding("signatures", "bad", error.message)], [], []
    digest = epoch.header.digest(domain)
    found = []
    for place, words in given.items():
        address, weight = attestors[place] if place < len(attestors) else ("0x", 0)
        signer = signatures.recover(digest, words)
        valid = signer is not None and f"0x{signer.hex()}" == address.lower()
        peer = names.get(address.lower())
        found.append(Signature(place, address, weight, str(peer) if peer else None, valid))
    total = sum(weight for _, weight in attestors)
    have = sum(signature.weight for signature in found if signature.valid)
    forged = [signature.attestor for signature in found if not signature.valid]
    missing = [address for place, (address, _) in enumerate(attestors) if place not in given]
    text = f"{have} of {total} weight signed, by {len(found) - len(forged)} of {len(attestors)} attestors"
    findings = [_finding("quorum", 3 * have > 2 * total, text, f"{text}: more than 2/3 is needed")]
    if forged:
        findings.append(Finding("signatures", "bad", f"not by whom the bitmap names: {', '.join(forged)}"))
    return findings, found, missing


def check_records(
    epoch: Epoch, history: History | None, constants: Constants | None, fees: Sequence[int]
) -> list[Finding]:
    """Data root, model root, and the whole tally since the founding, recomputed from certified records."""
    if history is None:
        return [
            _unchecked(what, "no records: give --records, or --peer") for what in ("records", "data root", "tally root")
        ]
    header = epoch.header
    try:
        records = history.records(header.first_round, header.last_round)
    except MurmurationError as error:
        return [_unchecked(what, error.message) for what in ("records", "data root", "tally root")]
    text = f"{len(records)} certified by their committees, rounds {header.first_round} to {header.last_round}"
    by = "" if history.founder_known else "; the founder is whoever signed the founding: --run run.toml would tell"
    return [
        Finding("records", "ok", text + by),
        _same("data root", data_root(records), header.data_root, "is that of these records"),
        _same(
            "model root", records[-1].state_root, header.model_root, f"is that certified in round {header.last_round}"
        ),
        *_check_tally(header, history, constants, fees),
    ]


def data_root(records: Sequence[Record]) -> bytes:
    """Merkle root over the hashes of records, in order."""
    return merkle.root([merkle.leaf_hash(record.hash()) for record in records])


def _check_tally(
    header: Checkpoint, history: History, constants: Constants | None, fees: Sequence[int]
) -> list[Finding]:
    if constants is None:
        return [_unchecked("tally root", "the run's constants are not known: give --run run.toml")]
    if constants.last_round(header.epoch) != header.last_round:
        per_epoch = constants.rounds_per_checkpoint
        return [Finding("tally root", "bad", f"epoch {header.epoch} does not end there with {per_epoch} rounds each")]
    tally = Books(constants).tally(history.chain, header.epoch, fees)
    return [
        _same("tally root", tally.tree.root, header.tally_root, f"is that of {len(tally.tree)} peers' rewards"),
        _equal("reward", tally.cumulative_reward, header.cumulative_reward, "units in all leaves"),
        _equal("peers", len(tally.tree), header.peers, "leaves"),
        _equal("tokens", tally.tokens, header.tokens, "training tokens since the founding"),
    ]


def check_model(epoch: Epoch, path: Path | None, run: bytes) -> Finding:
    """The model's file hashed anew, chunk by chunk."""
    if path is None:
        reason = f"the model of round {epoch.header.last_round} is not kept here: give --model state.bin"
        return _unchecked("model file", reason)
    try:
        found = model_root(path, run)
    except StorageError as error:
        return Finding("model file", "bad", error.message)
    return _same(
        "model file", found, epoch.header.model_root, f"{path.stat().st_size:,} bytes of {path.name} have this root"
    )


async def check_fetched_model(epoch: Epoch, history: History, client: LightClient) -> Finding:
    """The model's chunks as peers serve them, hashed anew."""
    claimed, last = epoch.header.model_root, epoch.header.last_round
    try:
        found = await client.model(claimed)
    except StorageError as error:
        return Finding("model file", "bad", f"what has the root 0x{claimed.hex()} is no state: {error.message}")
    if found is not None:
        return _same("model file", found, claimed, "is that of all chunks, as peers served them")
    committee, certificate = committee_of(history.chain, last), history.chain.link(last)[1]
    signed = f"{len(certificate.signers)} of {len(committee)} of its committee signed the record with its root"
    lacking = all(served.verdict == "lacks" for served in client.served if served.what == "model")
    why = "no peer that was asked has it any more" if lacking else "no peer that was asked gave all of it"
    return _unchecked("model file", f"the model of round {last}: {why}; {signed}")


def check_hub(epoch: Epoch, slot: Sequence[Any] | None) -> Finding:
    """What the hub itself holds now, while the epoch is still in its ring."""
    if slot is None or slot[2] != epoch.number:
        return _unchecked("hub", "the hub does not hold this epoch any more, or could not be asked")
    same = tuple(slot[:2]) == (epoch.hash, epoch.header.tally_root)
    return _finding("hub", same, "the contract holds this hash and tally root", "the contract holds another checkpoint")


def _same(what: str, found: bytes, claimed: bytes, text: str) -> Finding:
    good = f"0x{claimed.hex()[:16]}… {text}"
    return _finding(
        what, found == claimed, good, f"0x{claimed.hex()} on the chain, but recomputed it is 0x{found.hex()}"
    )


def _equal(what: str, found: int, claimed: int, unit: str) -> Finding:
    return _finding(
        what, found == claimed, f"{found:,} {unit}", f"{claimed:,} on the chain, but recomputed {found:,} {unit}"
    )


def _finding(what: str, good: bool, text: str, bad: str) -> Finding:
    return Finding(what, "ok" if good else "bad", text if good else bad)


def _unchecked(what: str, why: str) -> Finding:
    return Finding(what, "unchecked", why)
