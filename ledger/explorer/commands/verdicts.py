"""Verdicts of the attestors: draft one, sign it with a peer's key, propose, veto, execute.

A verdict travels as JSON from one attestor to the next; `draft`, `fetch` and `sign` print it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from dht.errors import ConfigError, DataError, IdentityError, StorageError
from ledger.explorer import show, spend
from ledger.explorer.commands.registry import IdentityFile, load_identity
from ledger.explorer.options import Common, CommonOptions
from ledger.explorer.session import Session, with_session
from ledger.explorer.spend import Step, WalletChoice, WalletOptions
from ledger.indexer.node import address_of

if TYPE_CHECKING:
    from ledger.eip712 import Domain
    from ledger.verdicts import VerdictFile

verdict = App(name="verdict", help="Slash by quorum of the attestors what two signatures cannot prove.")

Files = Annotated[tuple[Path, ...], Parameter(name="FILE", help="The verdict as signed; several files are merged.")]
Id = Annotated[str, Parameter(name="ID", help="The verdict's id, 0x hex.")]
_MOST_BYTES = 1 << 20


@verdict.command(name="list")
def list_(*, common: CommonOptions = None) -> int:
    """List all verdicts that were proposed, and what became of them."""
    from ledger.explorer import facts

    common = common or Common()

    async def work(session: Session) -> list[dict[str, Any]]:
        return facts.verdicts(session.index, session.now)

    rows = with_session(common, work)
    cells = [
        (
            show.fit(row["id"]),
            show.fit(row["key"]),
            f"{row['bps'] / 100:.2f}%",
            row["state"],
            show.when(row["executable_at"]),
            show.amount(row["amount"]) if row["amount"] else "–",
            show.fit(row["evidence"]),
        )
        for row in rows
    ]
    columns = ("ID", "KEY", "OF ITS STAKE", "STATE", "DUE FROM (UTC)", "SLASHED", "EVIDENCE")
    show.emit(rows, as_json=common.json, human=lambda: [show.table(columns, cells) if rows else "there is none"])
    return 0


@verdict.command
def draft(
    who: Annotated[str, Parameter(name="WHO", help="The accused: peer id, wallet, or key address.")],
    /,
    *,
    bps: Annotated[int, Parameter(help="How much of the stake, in ten-thousandths.")],
    evidence: Annotated[str, Parameter(help="File of what the attestors published, or its 32-byte name as 0x hex.")],
    epoch: Annotated[int, Parameter(help="Epoch of the offence.", show_default=lambda _: "the newest one")] = 0,
    common: CommonOptions = None,
) -> int:
    """Print a verdict that nobody has signed yet. It costs nothing until a quorum signs and somebody proposes it."""
    named = _name_of(evidence)

    async def work(session: Session) -> VerdictFile:
        from ledger.explorer import people
        from ledger.verdicts import Verdict, VerdictFile

        most = await session.view_or_none("Slashing", "mostBps") or 10_000
        if not 0 < bps <= most:
            raise ConfigError(f"--bps {bps} is not 1 to {most}", remedy="500 is 5% of the stake")
        if not 0 <= epoch < 1 << 64:
            raise ConfigError(f"--epoch {epoch} is no epoch", remedy="epochs count from 1")
        newest = session.epochs[-1].number if session.epochs else 0
        key = bytes.fromhex(people.key_of(session, who)[2:])
        made = Verdict(session.deployment.run_id, epoch or newest, key, bps, named)
        return VerdictFile(_domain(session), made)

    return _print(with_session(common, work))


@verdict.command
def fetch(id_: Id, /, *, common: CommonOptions = None) -> int:
    """Print a verdict that was proposed, as the chain has it: to sign its veto."""
    found = with_session(common, lambda session: _proposed(session, id_))
    return _print(found)


@verdict.command
def sign(
    path: Annotated[Path, Parameter(name="FILE", help="The verdict.")],
    /,
    *,
    veto: Annotated[bool, Parameter(help="Sign against it.", negative=())] = False,
    identity: IdentityFile = None,
    common: CommonOptions = None,
) -> int:
    """Print the verdict with an attestor's signature added. The key signs here; it goes nowhere."""
    from ledger.verdicts import APPROVAL, VETO

    kind = VETO if veto else APPROVAL
    given = read(path)

    async def work(session: Session) -> VerdictFile:
        from ledger.explorer.people import text_address

        _check_place(session, given)
        key = load_identity(identity)
        attestors = await session.attestors()
        address = text_address(key.peer_id)
        if attestors is not None and address not in {each for each, _ in attestors}:
            raise IdentityError(f"{address} is no attestor of this run", remedy="sign with an attestor's identity.key")
        made = given.signed_by(key, kind)
        signers, weights = made.by_signer(kind), {bytes.fromhex(a[2:]): w for a, w in attestors or ()}
        total = f" of {sum(weights.values())}" if weights else ""
        signed = sum(weights.get(each, 0) for each in signers) if weights else len(signers)
        show.remark(f"signed {'against ' if veto else ''}{_words(made)} as {address}: weight {signed}{total} so far")
        return made

    return _print(with_session(common, work, sync=False))


@verdict.command
def propose(files: Files, /, *, wallet: WalletChoice = None, common: CommonOptions = None) -> int:
    """Put a verdict on the chain, by anybody, once more than two thirds of the attestors' weight have signed it."""
    from ledger.verdicts import APPROVAL

    given = _merged(files)

    async def plan(session: Session, wallet: WalletOptions) -> list[Step]:
        bitmap, rvs = await _quorum(session, given, APPROVAL)
        arguments = (given.verdict.abi(), bitmap, list(rvs))
        return [Step(f"propose the verdict {_words(given)}", "Slashing", "proposeVerdict", arguments)]

    return spend.send(plan, wallet, common)


@verdict.command
def veto(files: Files, /, *, wallet: WalletChoice = None, common: CommonOptions = None) -> int:
    """Close a verdict before it is executed, by anybody, once a third of the weight has signed against it."""
    from ledger.verdicts import VETO

    given = _merged(files)

    async def plan(session: Session, wallet: WalletOptions) -> list[Step]:
        bitmap, rvs = await _quorum(session, given, VETO)
        return [Step(f"veto the verdict {_words(given)}", "Slashing", "vetoVerdict", (given.id, bitmap, list(rvs)))]

    return spend.send(plan, wallet, common)


@verdict.command
def execute(id_: Id, /, *, wallet: WalletChoice = None, common: CommonOptions = None) -> int:
    """Carry a verdict out, by anybody, once its delay is over."""

    async def plan(session: Session, wallet: WalletOptions) -> list[Step]:
        from ledger.explorer import facts

        found = await _proposed(session, id_)
        states = {row["id"]: row for row in facts.verdicts(session.index, session.now)}
        row = states[f"0x{found.id.hex()}"]
        if row["state"] in ("vetoed", "executed"):
            raise DataError(f"the verdict was {row['state']}", remedy="contribution-explorer verdict list shows all")
        if row["state"] == "open":
            due = show.when(row["executable_at"])
            raise DataError(f"the verdict can be executed from {due} UTC", remedy="wait; until then it can be vetoed")
        return [Step(f"execute the verdict {_words(found)}", "Slashing", "executeVerdict", (found.verdict.abi(),))]

    return spend.send(plan, wallet, common)


def read(path: Path) -> VerdictFile:
    """The verdict of a file. Raises StorageError, DataError."""
    from ledger.verdicts import parse

    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", remedy="check the name") from None
    return parse(data)


def _merged(files: tuple[Path, ...]) -> VerdictFile:
    from ledger.verdicts import merge

    if not files:
        raise ConfigError("no file is given", remedy="give what verdict sign printed")
    return merge(map(read, files))


def _print(made: VerdictFile) -> int:
    show.emit(made.as_json(), as_json=True, human=())
    return 0


def _domain(session: Session) -> Domain:
    from ledger.eip712 import Domain

    contract = address_of(session.deployment, "Slashing")
    return Domain(session.deployment.chain_id, bytes.fromhex(contract[2:]))


def _check_place(session: Session, given: VerdictFile) -> None:
    if (given.domain, given.verdict.run) != (_domain(session), session.deployment.run_id):
        raise DataError("the verdict is of another run, chain or contract", remedy="give that run's --deployment")


async def _quorum(session: Session, given: VerdictFile, kind: str) -> tuple[int, tuple[bytes, ...]]:
    """(bitmap, rvs) when there are enough signatures of present attestors. Raises DataError, UnreachableError."""
    from ledger.verdicts import VETO

    _check_place(session, given)
    found = await session.view("CheckpointHub", "attestors")
    addresses, weights = found.values()
    bitmap, rvs = given.packed(kind, [bytes.fromhex(each[2:]) for each in addresses])
    signed = sum(weight for place, weight in enumerate(weights) if bitmap >> place & 1)
    total = sum(weights)
    if not (signed * 3 >= total if kind == VETO else signed * 3 > total * 2):
        needed = "a third" if kind == VETO else "more than two thirds"
        raise DataError(
            f"{signed} of {total} weight signed, {needed} is needed", remedy="let more attestors run verdict sign"
        )
    return bitmap, rvs


async def _proposed(session: Session, text: str) -> VerdictFile:
    """A verdict as its event has it. Raises DataError when there is none of this id."""
    from ledger.explorer import facts
    from ledger.verdicts import Verdict, VerdictFile

    wanted = f"0x{spend.parse_bytes32(text, 'ID').hex()}"
    for row in facts.verdicts(session.index, session.now):
        if row["id"] == wanted:
            key, evidence = (bytes.fromhex(row[name][2:]) for name in ("key", "evidence"))
            made = Verdict(session.deployment.run_id, row["epoch"], key, row["bps"], evidence)
            return VerdictFile(_domain(session), made)
    raise DataError(f"no verdict {text} was proposed", remedy="contribution-explorer verdict list shows all")


def _words(given: VerdictFile) -> str:
    made = given.verdict
    return f"0x{given.id.hex()[:16]}… ({made.bps / 100:.2f}% of 0x{made.key.hex()}, epoch {made.epoch})"


def _name_of(text: str) -> bytes:
    """The name of a file of evidence (docs/protocol.md), or the given one. Raises StorageError, ConfigError."""
    from dht.wire import digest

    if text.startswith("0x"):
        return spend.parse_bytes32(text, "--evidence")
    try:
        return digest("evidence", Path(text).read_bytes())
    except OSError as error:
        raise StorageError(f"cannot read {text}: {error.strerror}", remedy="check --evidence") from None
