"""The embedded chain against a model: whatever is sent, in whatever order, across restarts."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ledger.embedded.blocks import COINBASE
from ledger.embedded.chain import replay
from ledger.embedded.jsonrpc import RpcError
from ledger.embedded.store import Genesis, Store
from tests.ledger.chains import (
    ALICE,
    ALLOC,
    BOB,
    CAROL,
    CHAIN_ID,
    COUNTER,
    GWEI,
    START,
    Time,
    init_code,
    legacy,
    open_chain,
    signed,
)

WALLETS = (ALICE, BOB, CAROL)
wallets = st.sampled_from(WALLETS)
tips = st.sampled_from([0, 1, GWEI])


def raw_address(wallet) -> bytes:
    return bytes.fromhex(wallet.address[2:])


class ChainMachine(RuleBasedStateMachine):
    """The model: balances, nonces, counts, and every block's hash."""

    @initialize()
    def found(self):
        self.folder = Path(tempfile.mkdtemp())
        self.clock = Time(wall=START)
        self.chain = open_chain(self.folder / "chain.sqlite", self.clock)
        self.balances = dict(ALLOC)
        self.nonces = dict.fromkeys(ALLOC, 0)
        self.counts: dict[bytes, int] = {}
        self.supply = sum(ALLOC.values())
        self.hashes = [self.chain.head.hash]
        self.undo: list[tuple] = []

    def teardown(self):
        if hasattr(self, "chain"):
            self.check_replay()
            self.chain.store.close()
            shutil.rmtree(self.folder)

    def remember(self):
        self.undo.append((dict(self.balances), dict(self.nonces), dict(self.counts), self.supply))

    def mine(self, wallet, tip: int, *, success=True, **fields):
        """Send what must be mined at once; books its fee and returns the block."""
        sender = raw_address(wallet)
        self.remember()
        base_fee = self.chain.base_fee()
        fees = {"maxPriorityFeePerGas": tip, "maxFeePerGas": base_fee + tip}
        raw = signed(wallet, self.nonces[sender], **{**fees, **fields})
        tx_hash = self.chain.submit(raw)
        block = self.chain.store.block(self.chain.head.number)
        assert block.transaction.hash == tx_hash
        assert block.receipt.success == success
        gas = block.receipt.gas_used
        self.balances[sender] -= gas * (base_fee + tip)
        self.balances[COINBASE] = self.balances.get(COINBASE, 0) + gas * tip
        self.supply -= gas * base_fee
        self.nonces[sender] += 1
        self.hashes.append(block.header.hash)
        return block

    @rule(wallet=wallets, to=wallets, value=st.integers(0, 10**18), tip=tips)
    def transfer(self, wallet, to, value, tip):
        self.mine(wallet, tip, to=to.address, value=value)
        self.balances[raw_address(wallet)] -= value
        self.balances[raw_address(to)] += value

    @rule(wallet=wallets, tip=tips)
    def create(self, wallet, tip):
        created = self.mine(wallet, tip, data=init_code(COUNTER)).receipt.created
        self.counts[created] = 0

    @rule(wallet=wallets, tip=tips)
    def create_in_vain(self, wallet, tip):
        block = self.mine(wallet, tip, success=False, data=bytes.fromhex("60006000fd"))
        assert block.receipt.created is None

    @precondition(lambda self: self.counts)
    @rule(wallet=wallets, tip=tips, pick=st.integers(0), value=st.integers(0, 10))
    def count_up(self, wallet, tip, pick, value):
        counter = sorted(self.counts)[pick % len(self.counts)]
        block = self.mine(wallet, tip, to=counter, value=value)
        self.counts[counter] += 1
        self.balances[raw_address(wallet)] -= value
        self.balances[counter] = self.balances.get(counter, 0) + value
        assert [int.from_bytes(log.data, "big") for log in block.receipt.logs] == [self.counts[counter]]

    @precondition(lambda self: any(self.counts.values()))
    @rule(wallet=wallets, tip=tips, pick=st.integers(0))
    def count_down(self, wallet, tip, pick):
        candidates = sorted(counter for counter, count in self.counts.items() if count)
        counter = candidates[pick % len(candidates)]
        self.mine(wallet, tip, to=counter, data=b"\x03")
        self.counts[counter] -= 1

    @precondition(lambda self: self.counts)
    @rule(wallet=wallets, tip=tips, pick=st.integers(0))
    def revert(self, wallet, tip, pick):
        self.mine(wallet, tip, success=False, to=sorted(self.counts)[pick % len(self.counts)], data=b"\x01", value=1)

    @rule(wallet=wallets, off=st.integers(1, 3))
    def old_nonce(self, wallet, off):
        nonce = self.nonces[raw_address(wallet)] - off
        if nonce >= 0:
            with pytest.raises(RpcError, match="nonce too low"):
                self.chain.submit(signed(wallet, nonce, ALICE.address, value=987_654_321))

    @rule(wallet=wallets)
    def too_dear(self, wallet):
        sender = raw_address(wallet)
        with pytest.raises(RpcError, match="insufficient funds"):
            self.chain.submit(signed(wallet, self.nonces[sender], ALICE.address, value=self.balances[sender]))

    @rule(seconds=st.integers(0, 10_000))
    def time_passes(self, seconds):
        self.clock.advance_to(self.clock.now() + seconds)

    @rule()
    def mine_empty(self):
        self.remember()
        self.chain.mine()
        self.hashes.append(self.chain.head.hash)

    @rule()
    def call_and_estimate(self):
        """Neither leaves a trace."""
        from ledger.embedded.engine import Message

        for counter, count in self.counts.items():
            assert int.from_bytes(self.chain.call(Message(bytes(20), counter, b"\x04")).output, "big") == count
            self.chain.estimate(Message(raw_address(ALICE), counter))
        self.chain.estimate(Message(raw_address(ALICE), None, init_code(COUNTER)))

    @precondition(lambda self: len(self.hashes) > 1)
    @rule(depth=st.integers(1, 4))
    def take_back(self, depth):
        for _ in range(min(depth, len(self.hashes) - 1)):
            self.hashes.pop()
            self.balances, self.nonces, self.counts, self.supply = self.undo.pop()
        self.chain.take_back(len(self.hashes) - 1)

    @rule()
    def restart(self):
        self.chain.store.close()
        self.chain = open_chain(self.folder / "chain.sqlite", self.clock)

    def check_replay(self):
        """Whoever executes the blocks again comes to the same hashes and the same state."""
        copy = Store(self.folder / "copy.sqlite", self.chain.store.genesis)
        assert replay(self.chain.store, copy) == len(self.hashes) - 1
        assert copy.block(copy.height()).header.state_root == self.chain.head.state_root
        again, state = copy.load_state(), self.chain.state
        assert (again.accounts, sorted(again.slots())) == (state.accounts, sorted(state.slots()))
        copy.close()

    @invariant()
    def the_model_holds(self):
        if not hasattr(self, "chain"):
            return
        state = self.chain.state
        for address, balance in self.balances.items():
            assert state.account(address).balance == balance
        assert {address: state.account(address).nonce for address in self.nonces} == self.nonces
        assert {counter: state.slot(counter, 0) for counter in self.counts} == self.counts
        assert sum(account.balance for account in state.accounts.values()) == self.supply
        assert self.chain.head.number == len(self.hashes) - 1
        assert self.chain.head.hash == self.hashes[-1]

    @invariant()
    def time_does_not_go_back(self):
        if hasattr(self, "chain") and self.chain.head.number:
            before = self.chain.store.block(self.chain.head.number - 1)
            assert before.header.timestamp <= self.chain.head.timestamp <= self.clock.wall()
            assert before.header.hash == self.chain.head.parent


ChainMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestChain = ChainMachine.TestCase


def test_earlier_states_are_seen_as_they_were(chain):
    created = None
    for nonce in range(5):
        chain.submit(signed(ALICE, nonce, created, data=b"" if created else init_code(COUNTER)))
        created = created or chain.store.block(1).receipt.created
    for number in range(1, 6):
        with chain.at(number) as state:
            assert state.slot(created, 0) == number - 1
    assert chain.state.slot(created, 0) == 4


def test_an_access_list_warms_and_is_paid_for(chain):
    chain.submit(signed(ALICE, 0, data=init_code(COUNTER)))
    counter = chain.store.block(1).receipt.created
    for nonce in range(2):
        chain.submit(signed(BOB, nonce, counter))
    plain = chain.store.block(3).receipt.gas_used
    content = {"nonce": 2, "gas": 100_000, "gasPrice": 3 * GWEI, "to": counter, "value": 0, "chainId": CHAIN_ID}
    listed = {
        **content,
        "type": 1,
        "accessList": [{"address": "0x" + counter.hex(), "storageKeys": ["0x" + "00" * 32]}],
    }
    chain.submit(legacy(BOB, listed))
    # The address costs 2,400 for nothing, the slot 1,900 instead of the 2,000 by which a cold one is dearer.
    assert chain.store.block(4).receipt.gas_used == plain + 2400 + 1900 - 2000
    chain.submit(signed(BOB, 3, counter))
    assert chain.store.block(5).receipt.gas_used == plain


def test_creations_without_a_tip_pay_nobody(chain):
    """pyrevm credits the coinbase behind its journal's back; the next block must not see that."""
    for nonce in range(3):
        fees = {"maxPriorityFeePerGas": 0, "maxFeePerGas": chain.base_fee()}
        chain.submit(signed(ALICE, nonce, data=init_code(COUNTER), **fees))
        assert chain.state.account(COINBASE).balance == 0
    chain.submit(signed(ALICE, 3, BOB.address, maxPriorityFeePerGas=1))
    assert chain.state.account(COINBASE).balance == 21_000


def test_a_base_fee_follows_the_gas_of_the_block_before(chain):
    before = chain.base_fee()
    chain.submit(signed(ALICE, 0, BOB.address))
    assert chain.head.base_fee == before
    assert before * 7 // 8 <= chain.base_fee() < before


def test_what_cannot_pay_the_base_fee_waits_until_it_can(chain):
    chain.forced_base_fee = 5 * GWEI
    chain.submit(signed(ALICE, 0, BOB.address))
    assert (chain.head.number, len(chain.pool)) == (0, 1)
    chain.forced_base_fee = GWEI
    chain.mine()
    assert (chain.store.block(1).transaction.nonce, len(chain.pool)) == (0, 0)


def test_a_sender_cannot_fill_the_pool(chain):
    for nonce in range(1, 65):
        chain.submit(signed(ALICE, nonce, BOB.address))
    with pytest.raises(RpcError, match="full"):
        chain.submit(signed(ALICE, 65, BOB.address))
    chain.submit(signed(BOB, 0, ALICE.address))
    assert chain.head.number == 1


def test_another_chain_id_is_refused(tmp_path, chain):
    from dht.errors import IncompatibleRunError

    with pytest.raises(IncompatibleRunError, match="holds a chain"):
        Store(tmp_path / "chain.sqlite", Genesis(CHAIN_ID + 1, START))


def test_replay_names_the_block_that_is_forged(tmp_path, chain):
    from dht.errors import StorageError

    for nonce in range(3):
        chain.submit(signed(ALICE, nonce, BOB.address, value=1))
    forged = chain.store.block(3)
    chain.store._db.execute("update block set raw = ? where number = 2", (forged.transaction.raw,))
    copy = Store(tmp_path / "copy.sqlite", chain.store.genesis)
    with pytest.raises(StorageError, match="block 2"):
        replay(chain.store, copy)
    copy.close()
