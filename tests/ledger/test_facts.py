"""What the events add up to: rollbacks, rotations, stakes; and what is printed of numbers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.errors import ConfigError, UnreachableError
from ledger.explorer import facts, live, show
from ledger.explorer.options import checksummed, parse_address
from ledger.explorer.people import text_address
from ledger.explorer.session import Session
from ledger.explorer.spend import parse_amount
from ledger.indexer.abi import Interface, snake
from tests.ledger.test_verify import session_of
from tests.ledger.world import PEERS, UNIT, WALLETS, World, small_run


@pytest.fixture
def world(tmp_path: Path, interface: Interface) -> World:
    return small_run(tmp_path / "peer", interface)


@pytest.fixture
def session(world: World, tmp_path: Path) -> Any:
    made = session_of(world, tmp_path)
    asyncio.run(made.sync())
    yield made
    made.index.close()


def again(session: Session) -> list[facts.Epoch]:
    asyncio.run(session.sync())
    session.refresh()
    return facts.epochs(session.index)


def test_a_rollback_takes_its_epoch_and_later_ones(world: World, session: Session):
    world.chain.mine(("CheckpointRolledBack", {"epoch": 2, "forkNonce": 1}))
    found = again(session)
    assert [(epoch.number, epoch.rolled_back) for epoch in found] == [(1, False), (2, True)]
    assert [epoch.number for epoch in session.epochs] == [1]
    assert found[1].state(1e12) == "rolled back"
    world.checkpoints.pop()
    world.propose(world.books.contents(world.records, 2, ()).checkpoint(1, world.checkpoints[0].hash()), (0, 1, 2, 3))
    found = again(session)
    assert [(epoch.number, epoch.rolled_back) for epoch in found] == [(1, False), (2, True), (2, False)]
    assert session.epochs[1].header.fork_nonce == 1


def test_epochs_wait_for_their_window(session: Session):
    epoch = session.epochs[0]
    assert [epoch.state(epoch.active_at + late) for late in (-1, 0, 1)] == ["pending", "active", "active"]


def test_attestors_are_those_of_the_time(world: World, session: Session):
    now = [("0x" + "01" * 20, 1)]
    first = session.epochs[0]
    assert facts.attestors_at(session.index, first, now) == now  # no rotation ever: the present set holds
    assert facts.attestors_at(session.index, first, None) is None
    world.chain.reorganise(2)
    world.chain.mine(("AttestorsRotated", {"nonce": 1, "attestors": ["0x" + "02" * 20], "weights": [7]}))
    world.propose(world.checkpoints.pop(), (0, 1, 2, 3))
    again(session)
    assert facts.attestors_at(session.index, session.epochs[1], now) == [("0x" + "02" * 20, 7)]
    assert facts.attestors_at(session.index, session.epochs[0], now) is None  # rotated since: nobody says


def test_stake_is_followed_through_everything(world: World, session: Session):
    wallet, other = WALLETS[PEERS[0]], PEERS[4]
    key = {"x": other.public_key[1:], "prefix": other.public_key[0]}
    rotated = {"wallet": wallet, "oldKey": text_address(PEERS[0]), "newKey": text_address(other)}
    world.chain.mine(
        ("StakeAdded", {"wallet": wallet, "amount": 20 * UNIT, "stake": 120 * UNIT}),
        ("UnbondRequested", {"wallet": wallet, "amount": 40 * UNIT, "unlockAt": 5}),
        ("KeyRotated", rotated | key),
        ("MetadataSet", {"wallet": wallet, "metadata": b"m" * 32}),
    )
    slash = {"wallet": wallet, "key": text_address(other), "reporter": wallet, "reward": 0}
    world.chain.mine(("Slashed", slash | {"amount": 60 * UNIT}))  # half of 80 staked and 40 unbonding
    world.chain.mine(("Withdrawn", {"wallet": wallet, "amount": 20 * UNIT}))
    again(session)
    entry = facts.enrolments(session.index)[wallet]
    assert (entry.stake, entry.unbonding, entry.slashed) == (40 * UNIT, 0, 60 * UNIT)
    assert (entry.peer, entry.key, entry.former_keys) == (other, text_address(other), [text_address(PEERS[0])])
    assert entry.metadata == "0x" + (b"m" * 32).hex()


async def test_the_tail_prints_each_change_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    session = session_of(world, tmp_path)
    await session.sync()
    looks, stop = 0, asyncio.Event()

    async def until_stopped(work: Any) -> int:
        await work(stop)
        return 0

    def mine(method: str) -> None:
        nonlocal looks
        if method == "eth_chainId":
            looks += 1
            if looks == 3:
                world.checkpoint()
            if looks == 5:
                world.chain.mine(("CheckpointRolledBack", {"epoch": 3, "forkNonce": 1}))
            if looks == 7:
                stop.set()

    monkeypatch.setattr("dht.exits.until_stopped", until_stopped)
    monkeypatch.setattr(live, "POLL", 0.001)
    world.chain.before_call = mine
    await live.follow_epochs(session, facts.epochs(session.index), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()[2:5]) for line in lines] == ["epoch 3 active", "epoch 3 rolled"]
    session.index.close()


@given(st.integers(0, 2**128))
def test_amounts_read_back(units: int):
    whole, part = divmod(units, UNIT)
    text = f"{whole}.{part:018d}"
    if units and whole < 10**20:
        assert parse_amount(text) == units
    shown = show.amount(units)
    if part % 10**12 == 0:
        assert parse_amount(shown.replace(",", "") + ("" if units else ".1")) == units + (0 if units else UNIT // 10)
    else:
        assert shown


def test_addresses_keep_their_checksum():
    # EIP-55's own examples
    for address in ("0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"):
        assert checksummed(address.lower()) == address
        assert parse_address(address) == address.lower() == parse_address(address.lower())
        swapped = address[:-1] + address[-1].swapcase() if address[-1].isalpha() else address[:3] + "b" + address[4:]
        with pytest.raises(ConfigError):
            parse_address(swapped)


@pytest.mark.parametrize(
    ("units", "text"),
    [(0, "0"), (1, "<0.000001"), (UNIT, "1"), (1250 * UNIT + UNIT // 2, "1,250.5"), (10**12, "0.000001")],
)
def test_amounts_are_shown_short_and_never_as_nothing(units: int, text: str):
    assert show.amount(units) == text


def test_names_of_tables():
    assert [snake(name) for name in ("CheckpointProposed", "oldKey", "x", "runId")] == [
        "checkpoint_proposed",
        "old_key",
        "x",
        "run_id",
    ]


async def test_what_stays_open_outlives_a_node_that_is_away(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    session = session_of(world, tmp_path)
    stop, seen, calls = asyncio.Event(), [], 0

    def flaky(method: str) -> None:
        nonlocal calls
        if method == "eth_chainId":
            calls += 1
            if calls in (2, 3):
                raise UnreachableError("no node answers", remedy="wait")

    async def look() -> None:
        seen.append(calls)
        if calls >= 4:
            stop.set()

    monkeypatch.setattr(live, "POLL", 0.001)
    world.chain.before_call = flaky
    await live.poll(session, look, stop)
    assert seen == [1, 4]
    assert capsys.readouterr().err.count("no node answers") == 1
    session.index.close()
