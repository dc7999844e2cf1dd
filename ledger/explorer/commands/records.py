"""What follows from records: one round, a proof of a reward, and the check of a whole checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dht.errors import DataError, EvidenceError
from dht.identity import PeerId
from ledger.explorer import show
from ledger.explorer.options import Common, CommonOptions, FromPeers, FromPeersOptions
from ledger.explorer.session import Session, with_session
from ledger.indexer.node import address_of

if TYPE_CHECKING:
    from ledger.explorer.facts import Epoch
    from ledger.explorer.light import LightClient
    from ledger.explorer.verify import Report

EpochNumber = Annotated[int, Parameter(name="E", help="Number of the epoch.")]


def round_(
    number: Annotated[int, Parameter(name="R", help="Number of the round.")],
    /,
    *,
    peers: FromPeersOptions = None,
    common: CommonOptions = None,
) -> int:
    """Show one round's record: survivors, weights, and who signed it. Needs records, no chain."""
    common = common or Common()

    async def work(session: Session) -> dict[str, Any]:
        await fetch_records(session, peers, number)
        return describe_round(session, number)

    found = with_session(common, work, sync=False)
    show.emit(found, as_json=common.json, human=lambda: _round_tables(found))
    return 0


def describe_round(session: Session, number: int) -> dict[str, Any]:
    """A record with everything that it says, the committee, and which of it signed. Raises DataError."""
    from averaging.forks import committee_of
    from averaging.record import LOSS_SCALE

    chain = session.records.chain
    (record,) = session.records.records(number, number) if number >= 0 else (None,)
    if record is None:
        raise DataError(f"there is no round {number}", remedy="rounds count from 0, the founding")
    kind = "founding" if number == 0 else "recovery" if record.recovery else "void" if record.void else "round"
    committee: tuple[PeerId, ...] = ()
    view, signed = None, set[int]()
    if number:
        _, certificate = chain.link(number)
        committee, view, signed = committee_of(chain, number), certificate.view, set(certificate.signers)
    tokens = sum(survivor.tokens for survivor in record.survivors)
    return {
        "round": number,
        "kind": kind,
        "hash": record.hash().hex(),
        "parent": record.parent.hex(),
        "state_root": record.state_root.hex(),
        "tally_root": record.tally_root.hex(),
        "loss": record.loss / LOSS_SCALE if kind == "round" else None,
        "attempt": record.attempt,
        "left_out": list(record.left_out),
        "lost_chunks": list(record.lost_chunks),
        "tokens": tokens,
        "view": view,
        "survivors": [
            {
                "peer": str(PeerId(s.peer)),
                "tokens": s.tokens,
                "chunks": s.chunks,
                "share": s.tokens / tokens if tokens else 0.0,
            }
            for s in record.survivors
        ],
        "committee": [{"peer": str(peer), "signed": place in signed} for place, peer in enumerate(committee)],
    }


def _round_tables(found: dict[str, Any]) -> list[Any]:
    rows: list[tuple[str, object]] = [("round", f"{found['round']} ({found['kind']})")]
    rows += [(name.replace("_", " "), found[name]) for name in ("hash", "parent", "state_root", "tally_root")]
    if found["loss"] is not None:
        rows.append(("loss", f"{found['loss']:.4f}, mean while training"))
        rows.append(("tokens", show.count(found["tokens"])))
    if found["lost_chunks"] or found["left_out"]:
        rows.append(("left out", f"cohorts {found['left_out']}, chunks counted as zero {found['lost_chunks']}"))
    survivors = [
        (row["peer"], show.count(row["tokens"]), f"{100 * row['share']:.2f}%", row["chunks"])
        for row in found["survivors"]
    ]
    parts: list[Any] = [show.facts(rows), "", show.table(("SURVIVOR", "TOKENS", "WEIGHT", "CHUNKS"), survivors)]
    if found["committee"]:
        signed = sum(row["signed"] for row in found["committee"])
        of = f"{signed} of {len(found['committee'])}"
        title = f"certificate: {of} signed in view {found['view']}; every signature verifies"
        cells = [(row["peer"], "signed" if row["signed"] else "–") for row in found["committee"]]
        parts += [f"\n{title}", show.table(("COMMITTEE", ""), cells)]
    return parts


def proof(
    who: Annotated[str, Parameter(name="WHO", help="Key address, wallet, or peer id.")],
    /,
    *,
    epoch: Annotated[int, Parameter(help="Epoch of the checkpoint.", show_default=lambda _: "the newest")] = 0,
    peers: FromPeersOptions = None,
    common: CommonOptions = None,
) -> int:
    """Prove what a peer had earned by an epoch: the leaf and its path, as RewardPool.claim takes them."""
    common = common or Common()

    async def work(session: Session) -> dict[str, Any]:
        if not session.epochs:
            raise DataError("there is no checkpoint yet", remedy="wait for the first one")
        which = session.epoch(epoch) if epoch else session.epochs[-1]
        await fetch_records(session, peers, which.header.last_round)
        return prove(session, who, which)

    found = with_session(common, work)
    rows = [("epoch", found["epoch"]), ("account", found["account"]), ("cumulative", f"{found['cumulative']} units")]
    rows += [("tally", found["tally_root"]), ("proof", "\n".join(found["proof"]) or "none: it is the only leaf")]
    show.emit(found, as_json=common.json, human=lambda: [show.facts(rows)])
    return 0


def prove(session: Session, who: str, epoch: Epoch) -> dict[str, Any]:
    """Leaf and path for `RewardPool.claim`.

    Raises DataError without records or a reward, EvidenceError if the roots differ.
    """
    from ledger.explorer.people import key_of

    account = bytes.fromhex(key_of(session, who)[2:])
    session.records.records(epoch.header.first_round, epoch.header.last_round)
    tally = session.tally(epoch.number)
    if tally is None:
        raise DataError("the run's constants are not known", remedy="give --run run.toml")
    if tally.tree.root != epoch.header.tally_root:
        raise EvidenceError(
            f"the tally of these records is not the one of epoch {epoch.number}",
            remedy=f"contribution-explorer verify {epoch.number} says what differs",
        )
    if account not in tally.leaves:
        raise DataError(f"0x{account.hex()} had earned nothing by epoch {epoch.number}", remedy="is it the right peer?")
    return {
        "epoch": epoch.number,
        "account": f"0x{account.hex()}",
        "cumulative": str(tally.leaves[account]),
        "tally_root": f"0x{tally.tree.root.hex()}",
        "proof": [f"0x{step.hex()}" for step in tally.tree.proof(account)],
    }


def verify(
    number: EpochNumber,
    /,
    *,
    model: Annotated[
        Path | None, Parameter(help="The model's state.bin.", show_default=lambda _: "that of the records, if kept")
    ] = None,
    strict: Annotated[bool, Parameter(negative=(), help="What could not be checked counts as wrong.")] = False,
    peers: FromPeersOptions = None,
    common: CommonOptions = None,
) -> int:
    """Recompute everything that a checkpoint says.

    Exit code 1 if a number is wrong, 66 if there are no records, 69 if no peer answers.
    """
    common = common or Common()
    report = with_session(common, lambda session: check(session, number, model, peers))
    show.emit(report.as_json(), as_json=common.json, human=lambda: _report_tables(report))
    if not report.good or (strict and not report.complete):
        return EvidenceError.exit_code
    unread = any(finding.what == "records" and finding.verdict == "unchecked" for finding in report.findings)
    return DataError.exit_code if unread else 0


async def fetch_records(session: Session, peers: FromPeers | None, round_: int) -> LightClient | None:
    """Let the session have the records up to a round from peers, if that is wanted; then who can be asked for more.

    Raises ConfigError, UnreachableError when no peer answered, and DataError when none gave records that hold.
    """
    from ledger.explorer.light import light_client

    client = light_client(session.common, peers or FromPeers(), session.deployment.run_id)
    if client is not None:
        session.__dict__["history"] = None  # not that of this machine's peer
        session.__dict__["history"] = await client.records(round_)
    return client


async def check(session: Session, number: int, model: Path | None = None, peers: FromPeers | None = None) -> Report:
    """All checks of one epoch with what is at hand, or with what peers serve."""
    from ledger.eip712 import Domain
    from ledger.explorer import facts
    from ledger.explorer import verify as checks
    from ledger.explorer.recompute import fees_of

    epoch = session.epoch(number)
    before = next((each for each in session.epochs if each.number == number - 1), None)
    client = await fetch_records(session, peers, epoch.header.last_round)
    history, run = session.history, session.deployment.run_id
    attestors = facts.attestors_at(session.index, epoch, await session.attestors())
    domain = Domain(session.deployment.chain_id, bytes.fromhex(address_of(session.deployment, "CheckpointHub")[2:]))
    rvs = await _signatures_of(session, epoch)
    signed, by, missing = checks.check_signatures(epoch, rvs, attestors, domain, _names(session))
    path = model or (history.model(epoch.header.last_round) if history else None)
    slot = await session.view_or_none("CheckpointHub", "slot", number)
    if client is not None and history is not None and path is None:
        kept = await checks.check_fetched_model(epoch, history, client)
    else:
        kept = checks.check_model(epoch, path, run)
    findings = [
        *checks.check_header(epoch, before, run),
        *signed,
        *checks.check_records(epoch, history, session.books.constants if session.books else None, fees_of(session)),
        kept,
        checks.check_hub(epoch, list(slot.values()) if slot else None),
    ]
    served = tuple(client.served) if client else ()
    return checks.Report(number, tuple(findings), tuple(by), tuple(missing), served)


async def _signatures_of(session: Session, epoch: Epoch) -> list[bytes] | None:
    """The words of the transaction that proposed an epoch; None when it cannot be had, or called something else."""
    if session.node is None:
        return None
    sent = await session.node.call("eth_getTransactionByHash", [epoch.tx])
    read = session.interface.read_call(bytes.fromhex(sent["input"][2:])) if sent else None
    if read is None or read[0].name != "propose":
        return None
    return list(read[1]["rvs"])


def _names(session: Session) -> dict[str, Any]:
    from ledger.explorer import facts
    from ledger.explorer.people import text_address

    names = {entry.key: entry.peer for entry in facts.enrolments(session.index).values() if entry.peer}
    if session.history is not None:
        chain = session.history.chain
        known = {*chain.tally.shares, *(bytes(peer) for peer in chain.record(0).members())}
        names |= {text_address(PeerId(raw)): PeerId(raw) for raw in known}
    return names


def _report_tables(report: Report) -> list[Any]:
    cells = [(show.state(finding.verdict), finding.what, finding.text) for finding in report.findings]
    verdict = "everything fits" if report.good else "SOMETHING IS WRONG"
    if report.good and not report.complete:
        verdict = "nothing is wrong, but not everything could be checked"
    parts: list[Any] = [f"epoch {report.epoch}: {verdict}", "", show.table(("", "WHAT", ""), cells)]
    if report.signatures:
        rows = [
            (
                each.index,
                show.fit(each.attestor),
                show.fit(each.peer or "–"),
                each.weight,
                show.state("ok" if each.valid else "bad"),
            )
            for each in report.signatures
        ]
        parts += ["", show.table(("#", "SIGNED BY", "PEER", "WEIGHT", "SIGNATURE"), rows)]
    if report.served:
        asked = [(show.state(each.verdict), each.what, each.address, each.text) for each in report.served]
        parts += ["", show.table(("", "ASKED FOR", "PEER", ""), asked)]
    if report.missing:
        parts += ["", "not signed by " + ", ".join(report.missing)]
    return parts
