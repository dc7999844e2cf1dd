"""Files of evidence: what they prove, checked offline, and the slash that follows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dht.errors import EvidenceError, ProtocolError, StorageError
from ledger.explorer import show, spend
from ledger.explorer.options import Common, CommonOptions
from ledger.explorer.session import Session, with_session
from ledger.explorer.spend import Step, WalletChoice, WalletOptions

if TYPE_CHECKING:
    from averaging.evidence import Contradiction


def report(
    path: Annotated[Path, Parameter(name="FILE", help="A file of evidence, as a peer keeps it.")],
    /,
    *,
    wallet: WalletChoice = None,
    common: CommonOptions = None,
) -> int:
    """Check a file of evidence offline; with a wallet, report it to the contract, which slashes the liar's stake.

    Exit code 1 when the file proves nothing, or nothing that the contract can judge.
    """
    wallet, common = wallet or WalletOptions(), common or Common()
    proven, step = examine(path)
    if not wallet.given:
        show.emit(proven, as_json=common.json, human=lambda: _words(proven))
        return 0
    if step is None:
        raise EvidenceError(
            f"the contract cannot judge {proven['proven']}: it judges two signatures of one key, and no sums",
            remedy="show the file to the attestors: contribution-explorer verdict draft",
        )

    async def work(session: Session) -> list[dict[str, Any]]:
        run = session.deployment.run_id.hex()
        if proven["run"] != run:
            raise EvidenceError(f"the evidence is of run {proven['run'][:16]}", remedy="give that run's --deployment")
        return await spend.carry_out(session, [step], wallet)

    rows = with_session(common, work, sync=False)
    value = {"evidence": proven, "transactions": rows}
    show.emit(value, as_json=common.json, human=lambda: [*_words(proven), *spend.outcome(rows, wallet)])
    return 0


def _words(proven: dict[str, Any]) -> list[Any]:
    reportable = "a slash on the chain" if proven["reportable"] else "no slash on the chain by itself"
    rows = [(name, proven[name]) for name in ("proven", "accused", "key", "run", "place") if proven[name]]
    return [show.facts([*rows, ("worth", reportable)])]


def examine(path: Path) -> tuple[dict[str, Any], Step | None]:
    """What a file proves, and the call that reports it. Raises EvidenceError when it proves nothing."""
    try:
        frame = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", remedy="check the name") from None
    from dht.wire import decode
    from ledger.messages import TwoCheckpoints  # registers its tag

    try:
        evidence = decode(frame)
        if isinstance(evidence, TwoCheckpoints):
            return _checkpoints(frame)
        return _messages(frame, evidence)
    except ProtocolError as error:
        raise EvidenceError(f"{path} proves nothing: {error.message}", remedy="get the file again") from None


def _checkpoints(frame: bytes) -> tuple[dict[str, Any], Step]:
    from ledger.evidence import verify

    found = verify(frame)
    header = found.first.header
    proven = {
        "proven": "two checkpoints",
        "accused": None,
        "key": f"0x{found.accused.hex()}",
        "run": header.run.hex(),
        "place": f"epoch {header.epoch}, fork nonce {header.fork_nonce}",
        "reportable": True,
    }
    arguments = (found.first.header.abi(), found.second.header.abi(), list(found.rvs))
    return proven, Step(f"report two checkpoints of {proven['key']}", "Slashing", "reportCheckpoints", arguments)


def _messages(frame: bytes, evidence: Any) -> tuple[dict[str, Any], Step | None]:
    from averaging.evidence import Contradiction, verify
    from averaging.messages import Roster, SumHashes, Vote
    from ledger.explorer.people import text_address

    found = verify(frame)
    judged = isinstance(evidence, Contradiction) and isinstance(evidence.first.message(), Roster | SumHashes | Vote)
    proven = {
        "proven": found.kind,
        "accused": str(found.accused),
        "key": text_address(found.accused),
        "run": found.run.hex(),
        "place": f"round {found.round}",
        "reportable": judged,
    }
    return proven, _step(evidence) if judged else None


def _step(evidence: Contradiction) -> Step:
    """The contract takes the words of both signatures and recomputes what they sign."""
    import coincurve

    from dht.identity import PeerId

    first, second = evidence.first, evidence.second
    accused = PeerId(first.sender)
    point = coincurve.PublicKey(accused.public_key).format(compressed=False)[1:]
    words = [half for each in (first, second) for half in (each.signature[:32], each.signature[32:])]
    arguments = (point[:32], point[32:], first.round, first.body, second.body, words)
    return Step(f"report two messages of {accused}", "Slashing", "reportMessages", arguments)
