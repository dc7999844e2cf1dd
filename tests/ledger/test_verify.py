"""`verify` finds what was changed: a record, a leaf, a signature, a model's byte, a header. And only that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from averaging.record import Record
from dht.errors import DataError, MurmurationError, StorageError
from dht.wire import decode_as, encode
from ledger import signatures
from ledger.explorer import facts, history, recompute, states, verify, wiring
from ledger.explorer.commands.records import check
from ledger.explorer.options import Common
from ledger.explorer.session import Session
from ledger.explorer.verify import Report
from ledger.indexer.abi import Interface
from ledger.indexer.store import Index
from peer.history import chain_frames
from tests.ledger.fake_chain import DEPLOYMENT, RUN
from tests.ledger.world import CONSTANTS, DOMAIN, IDENTITIES, PEERS, UNIT, World, small_run

Change = Callable[[World], None]


@pytest.fixture
def world(tmp_path: Path, interface: Interface) -> World:
    return small_run(tmp_path / "peer", interface)


def session_of(world: World, tmp_path: Path, **common: Any) -> Session:
    events = wiring.interface(wiring.INDEXED)
    found = wiring.Found(tmp_path, DEPLOYMENT, asdict(CONSTANTS))
    given = Common(records=world.folder, **common)
    return Session(given, found, world.interface, events, world.chain, Index(tmp_path / "i.db", DEPLOYMENT, events))


def verified(world: World, tmp_path: Path, epoch: int, model: Path | None = None) -> Report:
    session = session_of(world, tmp_path)

    async def work() -> Report:
        await session.sync()
        await session.learn()
        return await check(session, epoch, model)

    try:
        return asyncio.run(work())
    finally:
        session.index.close()


def wrong(report: Report) -> set[str]:
    return {finding.what for finding in report.findings if finding.verdict == "bad"}


def test_an_honest_run_fits(world: World, tmp_path: Path):
    for epoch in (1, 2):
        report = verified(world, tmp_path, epoch)
        assert report.good and report.complete, report
        assert [signature.valid for signature in report.signatures] == [True] * 4
        assert {signature.peer for signature in report.signatures} <= {str(peer) for peer in PEERS}
        assert len(report.missing) == 1


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"model_root": b"m" * 32}, {"model root", "model file"}),
        ({"data_root": b"d" * 32}, {"data root"}),
        ({"tally_root": b"t" * 32}, {"tally root"}),
        ({"cumulative_reward": 2001 * UNIT}, {"reward"}),
        ({"cumulative_reward": 999 * UNIT}, {"reward", "epoch's reward"}),
        ({"peers": 4}, {"peers"}),
        ({"tokens": 1}, {"tokens"}),
        ({"parent": b"p" * 32}, {"parent"}),
        ({"first_round": 3}, {"parent", "data root"}),
        ({"last_round": 5}, {"data root", "tally root", "model root"}),
        ({"run": b"r" * 32}, {"run"}),
    ],
)
def test_a_quorum_that_signs_something_else_is_found_out(
    world: World, tmp_path: Path, change: dict[str, Any], found: set[str]
):
    honest = world.checkpoints.pop()
    world.chain.reorganise(2)
    world.propose(replace(honest, **change), (0, 1, 2, 4))
    report = verified(world, tmp_path, 2)
    assert wrong(report) == found, report
    assert not wrong(verified(world, tmp_path, 1))


def test_a_changed_leaf_changes_the_tally_root(world: World, tmp_path: Path):
    from ledger.standard_merkle import StandardMerkleTree

    leaves = dict(world.books.tally(world.records, 2, ()).leaves)
    account = signatures.key_address(PEERS[0])
    leaves[account] += 1
    honest = world.checkpoints.pop()
    world.chain.reorganise(2)
    world.propose(replace(honest, tally_root=StandardMerkleTree(leaves.items()).root), (0, 1, 2, 4))
    assert wrong(verified(world, tmp_path, 2)) == {"tally root"}


def test_a_forged_signature_is_named_and_does_not_count(world: World, tmp_path: Path):
    honest = world.checkpoints.pop()
    world.chain.reorganise(2)
    forged = signatures.sign(IDENTITIES[0], honest.digest(DOMAIN))  # by another attestor than the bitmap says
    world.propose(honest, (0, 1, 2), {4: forged})
    report = verified(world, tmp_path, 2)
    assert wrong(report) == {"signatures", "quorum"}
    assert [signature.index for signature in report.signatures if not signature.valid] == [4]


@pytest.mark.parametrize("rvs", [[], [bytes(32)] * 8, [b"\xff" * 32] * 8, [bytes(32)] * 7])
def test_words_that_are_no_signatures_never_count(world: World, rvs: list[bytes]):
    honest = world.checkpoints[0]
    epoch = facts.Epoch(1, honest.hash(), honest, 0b11011, 0, 0, 1, 0, "0x", "latest")
    attestors = [(f"0x{signatures.key_address(peer).hex()}", 1) for peer in PEERS]
    findings, found, _ = verify.check_signatures(epoch, rvs, attestors, DOMAIN, {})
    assert any(finding.verdict == "bad" for finding in findings)
    assert not any(signature.valid for signature in found)


def test_a_hash_that_is_not_the_headers(world: World):
    honest = world.checkpoints[0]
    epoch = facts.Epoch(1, b"h" * 32, honest, 0, 0, 0, 1, 0, "0x", "latest")
    assert [f.what for f in verify.check_header(epoch, None, RUN) if f.verdict == "bad"] == ["hash"]


def test_a_hub_that_holds_something_else(world: World, tmp_path: Path):
    world.chain.views["CheckpointHub", "slot"] = lambda epoch: (b"x" * 32, b"y" * 32, epoch, 0, 0)
    assert wrong(verified(world, tmp_path, 1)) == {"hub"}


@pytest.mark.parametrize("place", [0, 40, -5])
def test_a_changed_byte_of_the_model_is_found(world: World, tmp_path: Path, place: int):
    path = next((world.folder / "state" / RUN.hex()[:16] / "rounds").glob("*6")) / "state.bin"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    (tmp_path / "state.bin").write_bytes(data)
    assert wrong(verified(world, tmp_path, 2, tmp_path / "state.bin")) == {"model file"}
    assert not wrong(verified(world, tmp_path, 2, path))


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xc1" * 100, msgpack.packb({"magic": "murmuration/state"})])
def test_a_file_that_is_no_model_says_so(tmp_path: Path, data: bytes):
    (tmp_path / "state.bin").write_bytes(data)
    with pytest.raises(StorageError, match=r"state\.bin"):
        states.model_root(tmp_path / "state.bin", RUN)


def test_a_changed_record_is_not_certified(world: World, tmp_path: Path):
    frames = chain_frames(world.records, 6)
    from averaging.ballots import Decision

    decision = decode_as(Decision, frames[2])
    record = decode_as(Record, decision.record)
    richer = replace(record.survivors[0], tokens=10**9)
    changed = replace(record, survivors=(richer, *record.survivors[1:]))
    frames[2] = encode(replace(decision, record=encode(changed)))
    (tmp_path / "records").write_bytes(msgpack.packb(frames))
    with pytest.raises(MurmurationError):
        history.open_history(tmp_path / "records", RUN)


def test_a_file_of_records_is_as_good_as_a_folder(world: World, tmp_path: Path):
    frames = chain_frames(world.records, 6)
    (tmp_path / "records").write_bytes(b"".join(msgpack.packb(frames[i : i + 3]) for i in range(0, 7, 3)))
    found = history.open_history(tmp_path / "records", RUN, IDENTITIES[0].peer_id)
    assert found.chain.tip == world.records.tip and found.founder_known
    with pytest.raises(MurmurationError):
        history.open_history(tmp_path / "records", RUN, IDENTITIES[1].peer_id)
    with pytest.raises(DataError):
        history.open_history(tmp_path / "records", b"x" * 32)


@pytest.mark.parametrize("data", [b"", b"\x93\x01\x02\x03", b"\xc4\x05abc", b"\x91\xc4\x03abc"])
def test_a_file_that_holds_no_records_says_so(tmp_path: Path, data: bytes):
    (tmp_path / "records").write_bytes(data)
    with pytest.raises(MurmurationError):
        history.open_history(tmp_path / "records", RUN)


def test_records_are_followed_as_the_peer_writes_them(world: World):
    found = history.open_history(world.folder, RUN)
    world.train()
    world.save(7)
    found = found.refreshed()
    assert found.chain.head.round == 7
    world.save(6)  # the peer went back
    assert found.refreshed().chain.head.round == 6


def test_the_newest_whole_round_is_read(world: World):
    rounds = world.folder / "state" / RUN.hex()[:16] / "rounds"
    (rounds / "00000006" / "index.json").write_text("{")
    assert history.open_history(world.folder, RUN).chain.head.round == 3


def test_a_damaged_segment_is_not_believed(world: World):
    for path in (world.folder / "state" / RUN.hex()[:16] / "chain").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match="hash"):
        history.open_history(world.folder, RUN)


def test_without_records_nothing_is_called_good_or_bad(world: World, tmp_path: Path):
    session = session_of(world, tmp_path)
    session.__dict__["history"] = None

    async def work() -> Report:
        await session.sync()
        await session.learn()
        return await check(session, 1)

    report = asyncio.run(work())
    assert report.good and not report.complete
    unchecked = {finding.what for finding in report.findings if finding.verdict == "unchecked"}
    assert unchecked == {"records", "data root", "tally root", "model file"}
    session.index.close()


def test_fees_count_three_epochs_after_the_checkpoint_that_was_newest(world: World, tmp_path: Path):
    def fee(amount: int) -> tuple[str, dict[str, Any]]:
        rest = {"dataProviders": 0, "attestors": 0, "treasury": 0}
        paid = {"payer": "0x" + "55" * 20, "model": bytes(32), "amount": amount, "contributors": amount}
        return "UsagePaid", paid | rest

    early = World(tmp_path / "early", world.interface)
    early.chain.mine(fee(1))
    early.checkpoint()
    early.chain.mine(fee(10))
    early.chain.mine(fee(100))
    early.checkpoint()
    early.chain.mine(fee(1000))
    session = session_of(early, tmp_path)
    asyncio.run(session.sync())
    # Paid before checkpoint 1: in epoch 3; between 1 and 2: in epoch 4; after 2: in epoch 5.
    assert recompute.fees_of(session) == (0, 0, 1)
    for _ in range(2):
        early.checkpoint()
    asyncio.run(session.sync())
    session.refresh()
    assert recompute.fees_of(session) == (0, 0, 1, 110, 1000)
    session.index.close()


def test_the_constants_come_from_the_manifest_or_the_deployment(world: World, tmp_path: Path):
    lines = [f"{name} = {getattr(CONSTANTS, name)}" for name in CONSTANTS.__dataclass_fields__]
    manifest = tmp_path / "run.toml"
    manifest.write_text("\n".join(["[run]", f'founder = "{PEERS[0]}"', "[ledger]", *lines]))
    session = session_of(world, tmp_path, run=manifest)
    assert asyncio.run(recompute.constants_of(session)) == CONSTANTS
    assert session.history is not None and session.history.founder_known
    manifest.write_text(f'[run]\nfounder = "{PEERS[0]}"\n')
    assert asyncio.run(recompute.constants_of(session)) == CONSTANTS
    session.index.close()
