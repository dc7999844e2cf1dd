"""The index says what the chain says: through reorganisations, torn reads, refusals and kill -9."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.errors import IncompatibleRunError, StorageError, UnreachableError
from ledger.chain.deployments import Deployment
from ledger.chain.errors import RefusedError
from ledger.explorer import wiring
from ledger.indexer import store
from ledger.indexer.node import check_chain
from ledger.indexer.store import Index
from ledger.indexer.sync import Indexer
from tests.ledger.fake_chain import ADDRESSES, DEPLOYMENT, RUN, FakeChain

INTERFACE = wiring.interface(wiring.INDEXED)
WALLET = "0x" + "11" * 20


def added(amount: int) -> tuple[str, dict[str, Any]]:
    return "StakeAdded", {"wallet": WALLET, "amount": amount, "stake": amount}


def amounts(index: Index) -> list[tuple[int, int]]:
    return [(row["block"], int(row["amount"])) for row in index.events("StakeAdded")]


def truth(chain: FakeChain) -> list[tuple[int, int]]:
    """What an index must hold: read straight from the chain's blocks."""
    rows = []
    for block in chain.blocks:
        for log in block.logs:
            _, values = INTERFACE.read_log(log) or (None, {})
            rows.append((block.number, values["amount"]))
    return rows


def opened(path: Path) -> Index:
    return Index(path / "index.db", DEPLOYMENT, INTERFACE)


def check_whole(index: Index, chain: FakeChain) -> None:
    assert amounts(index) == truth(chain)
    for block in index.blocks():
        assert block.hash == chain.blocks[block.number].hash
    last = index.last()
    assert last is not None and last.number == chain.blocks[-1].number


@pytest.fixture
def chain() -> FakeChain:
    made = FakeChain(INTERFACE)
    for number in range(20):
        made.mine(*[added(100 * number + place) for place in range(number % 3)])
    return made


async def test_it_reads_every_event_once(chain: FakeChain, tmp_path: Path):
    index = opened(tmp_path)
    done = await Indexer(chain, index, INTERFACE).sync()
    check_whole(index, chain)
    assert (done.block, done.added, done.events, done.undone) == (20, 20, len(truth(chain)), 0)
    again = await Indexer(chain, index, INTERFACE).sync()
    assert (again.added, again.events, again.undone) == (0, 0, 0)
    check_whole(index, chain)


@pytest.mark.parametrize("depth", range(1, 11))
async def test_it_goes_back_to_the_common_ancestor(chain: FakeChain, tmp_path: Path, depth: int):
    index = opened(tmp_path)
    await Indexer(chain, index, INTERFACE).sync()
    lost = truth(chain)
    chain.reorganise(depth)
    for number in range(depth + 1):
        chain.mine(added(7000 + number))
    done = await Indexer(chain, index, INTERFACE).sync()
    assert done.undone == depth
    assert truth(chain) != lost
    check_whole(index, chain)


async def test_a_chain_that_got_shorter_takes_its_rows_along(chain: FakeChain, tmp_path: Path):
    index = opened(tmp_path)
    await Indexer(chain, index, INTERFACE).sync()
    chain.reorganise(5)
    done = await Indexer(chain, index, INTERFACE).sync()
    assert (done.undone, done.block) == (5, 15)
    check_whole(index, chain)


async def test_a_chain_started_anew_is_read_anew(chain: FakeChain, tmp_path: Path):
    index = opened(tmp_path)
    await Indexer(chain, index, INTERFACE).sync()
    chain.reorganise(20)
    chain.mine(added(1))
    done = await Indexer(chain, index, INTERFACE).sync()
    assert done.undone == 20
    check_whole(index, chain)


@pytest.mark.parametrize("call", range(1, 11))
async def test_a_reorganisation_between_two_calls_tears_nothing(chain: FakeChain, tmp_path: Path, call: int):
    index = opened(tmp_path)
    await Indexer(chain, index, INTERFACE).sync()
    for number in range(4):
        chain.mine(added(500 + number))
    start, moved = len(chain.calls), []

    def move(method: str) -> None:
        if len(chain.calls) - start == call:
            moved.append(method)
            chain.reorganise(6)
            for number in range(7):
                chain.mine(*[added(900 + number)] * (number % 2))

    chain.before_call = move
    indexer = Indexer(chain, index, INTERFACE)
    await indexer.sync()
    chain.before_call = lambda method: None
    await indexer.sync()
    check_whole(index, chain)
    assert moved, "the fault did not fire"


async def test_logs_of_another_block_than_the_header_are_never_kept(chain: FakeChain, tmp_path: Path):
    def renew(method: str) -> None:
        if method == "eth_getLogs":
            chain.reorganise(3)
            for number in range(3):
                chain.mine(added(number))

    chain.before_call = renew  # at every attempt: nothing that is read fits together
    index = opened(tmp_path)
    with pytest.raises(UnreachableError, match="changes faster"):
        await Indexer(chain, index, INTERFACE).sync()
    assert index.last() is None


@pytest.mark.parametrize("lie", [{"blockHash": "0x" + "ab" * 32}, {"removed": True}, {"blockNumber": hex(99)}])
async def test_logs_of_another_node_behind_a_balancer_are_never_kept(
    chain: FakeChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: dict[str, Any]
):
    honest = chain._eth_getLogs
    monkeypatch.setattr(chain, "_eth_getLogs", lambda criteria: [log | lie for log in honest(criteria)])
    index = opened(tmp_path)
    with pytest.raises(UnreachableError, match="changes faster"):
        await Indexer(chain, index, INTERFACE).sync()
    assert index.last() is None
    monkeypatch.undo()
    await Indexer(chain, index, INTERFACE).sync()
    check_whole(index, chain)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_history_ends_in_the_same_rows(data: st.DataObject):
    chain = FakeChain(INTERFACE, most_logs=data.draw(st.integers(2, 6)))
    chain.mine()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(data.draw(st.integers(1, 6))):
            for events in data.draw(st.lists(st.integers(0, 2), max_size=15)):
                chain.mine(*[added(data.draw(st.integers(0, 2**127))) for _ in range(events)])
            index = opened(Path(folder))  # as after a restart
            span = data.draw(st.integers(1, 9))
            indexer = Indexer(chain, index, INTERFACE, span=span)
            for _ in range(data.draw(st.integers(0, 4))):
                asyncio.run(indexer.step())
                chain.reorganise(data.draw(st.integers(0, 12)))
                chain.mine(added(data.draw(st.integers(0, 9))))
            asyncio.run(indexer.sync())
            check_whole(index, chain)
            index.close()


async def test_a_range_with_too_many_results_is_halved(chain: FakeChain, tmp_path: Path):
    chain.most_logs = 3
    index = opened(tmp_path)
    await Indexer(chain, index, INTERFACE).sync()
    check_whole(index, chain)


async def test_one_block_with_too_many_results_says_so(tmp_path: Path):
    chain = FakeChain(INTERFACE, most_logs=2)
    chain.mine(*[added(number) for number in range(3)])
    with pytest.raises(RefusedError, match="more than 2"):
        await Indexer(chain, opened(tmp_path), INTERFACE).sync()


async def test_headers_are_pruned_and_anchors_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store, "KEPT_BLOCKS", 10)
    monkeypatch.setattr("ledger.indexer.sync.KEPT_BLOCKS", 10)
    chain = FakeChain(INTERFACE)
    for number in range(60):
        chain.mine(*[added(number)] * (number % 20 == 0))
    index = opened(tmp_path)
    await Indexer(chain, index, INTERFACE, span=7).sync()
    kept = [block.number for block in index.blocks()]
    assert kept == [1, 21, 41, *range(50, 61)]
    check_whole(index, chain)
    chain.reorganise(25)  # deeper than the headers that are kept
    for number in range(30):
        chain.mine(added(number))
    await Indexer(chain, index, INTERFACE, span=7).sync()
    check_whole(index, chain)


async def test_rows_become_safe_and_final(chain: FakeChain, tmp_path: Path):
    index = opened(tmp_path)
    indexer = Indexer(chain, index, INTERFACE)
    await indexer.sync()
    assert {row["status"] for row in index.events("StakeAdded")} == {"latest"}
    chain.tags = {"safe": 14, "finalized": 8}
    await indexer.sync()
    expected = {number: "finalized" if number <= 8 else "safe" if number <= 14 else "latest" for number in range(21)}
    assert all(row["status"] == expected[row["block"]] for row in index.events("StakeAdded"))
    chain.tags = {}  # a node that does not say now: what was said stays
    await indexer.sync()
    assert all(row["status"] == expected[row["block"]] for row in index.events("StakeAdded"))


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.ledger.test_indexer import INTERFACE, added, opened
from tests.ledger.fake_chain import FakeChain
from ledger.indexer.sync import Indexer
chain = FakeChain(INTERFACE)
for number in range(30):
    chain.mine(*[added(number)] * (number % 2))
index = opened(Path(sys.argv[1]))
left = int(sys.argv[2])
def trace(statement):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
index.connection.set_trace_callback(trace)
asyncio.run(Indexer(chain, index, INTERFACE, span=6).sync())
"""


@pytest.mark.parametrize("statements", [3, 7, 15, 24, 40, 61])
def test_killed_at_any_statement_it_goes_on(tmp_path: Path, statements: int):
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(statements)],
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        check=False,
    )
    assert run.returncode == -9, run.stderr.decode()
    chain = FakeChain(INTERFACE)
    for number in range(30):
        chain.mine(*[added(number)] * (number % 2))
    index = opened(tmp_path)
    last = index.last()
    scanned = last.number if last else 0
    assert amounts(index) == [row for row in truth(chain) if row[0] <= scanned]  # whole ranges or nothing
    asyncio.run(Indexer(chain, index, INTERFACE, span=6).sync())
    check_whole(index, chain)


def test_large_integers_are_exact(tmp_path: Path):
    chain = FakeChain(INTERFACE)
    chain.mine(added(2**128 - 1), ("UnbondRequested", {"wallet": WALLET, "amount": 1, "unlockAt": 2**64 - 1}))
    index = opened(tmp_path)
    asyncio.run(Indexer(chain, index, INTERFACE).sync())
    assert int(index.events("StakeAdded")[0]["amount"]) == 2**128 - 1
    assert int(index.events("UnbondRequested")[0]["unlock_at"]) == 2**64 - 1


def test_structs_and_lists_have_columns(tmp_path: Path):
    chain = FakeChain(INTERFACE)
    chain.mine(("AttestorsRotated", {"nonce": 1, "attestors": [WALLET], "weights": [3]}))
    index = opened(tmp_path)
    asyncio.run(Indexer(chain, index, INTERFACE).sync())
    (row,) = index.events("AttestorsRotated")
    assert (json.loads(row["attestors"]), json.loads(row["weights"]), row["nonce"]) == ([WALLET], [3], 1)
    columns = [name for name, _ in index.tables["CheckpointProposed"]]
    assert {"epoch", "hash", "header_run_id", "header_cumulative_reward", "bitmap", "active_at"} <= set(columns)


def test_the_index_of_another_deployment_is_refused(tmp_path: Path):
    opened(tmp_path).close()
    other = Deployment(1, ADDRESSES, 1, (), RUN)
    with pytest.raises(StorageError, match="another deployment"):
        Index(tmp_path / "index.db", other, INTERFACE)


def test_another_layout_is_built_anew(chain: FakeChain, tmp_path: Path):
    index = opened(tmp_path)
    asyncio.run(Indexer(chain, index, INTERFACE).sync())
    index.close()
    smaller = Index(tmp_path / "index.db", DEPLOYMENT, wiring.interface(["PeerRegistry"]))
    assert smaller.last() is None
    assert "CheckpointProposed" not in smaller.tables


def test_a_file_that_is_no_database_is_named(tmp_path: Path):
    (tmp_path / "index.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match=r"index\.db"):
        opened(tmp_path)


async def test_another_chain_or_no_contract_of_ours_is_an_error(chain: FakeChain):
    await check_chain(chain, DEPLOYMENT, wiring.is_ours)
    for code, said in (("0x", "no contract at"), ("0x6001", "not this version's RewardPool")):
        chain.codes = {"RewardPool": code}
        with pytest.raises(IncompatibleRunError, match=said):
            await check_chain(chain, DEPLOYMENT, wiring.is_ours)
    chain.chain_id = 1
    with pytest.raises(IncompatibleRunError, match="chain 1"):
        await check_chain(chain, DEPLOYMENT, wiring.is_ours)
