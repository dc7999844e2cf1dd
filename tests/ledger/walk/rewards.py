"""Calls of RewardPool."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from benchmarks.contracts import UNIT, Key
from ledger.standard_merkle import StandardMerkleTree
from tests.ledger.contract_driver import PEER_KEYS
from tests.ledger.walk.base import EVM, accounts, amounts
from tests.ledger.walk.checkpoints import Checkpoints


class Rewards(Checkpoints):
    """Claims and fees."""

    @precondition(lambda self: self.trees)
    @rule(
        data=st.data(),
        key=st.sampled_from(PEER_KEYS[:4]),
        more=st.sampled_from([0, 0, 0, 1, -1]),
        pause=st.sampled_from([0, 600]),
        account=accounts,
    )
    def claim(self, data: st.DataObject, key: Key, more: int, pause: int, account: int) -> None:
        hub = self.both.hub
        EVM.wait(pause)
        epoch = data.draw(st.sampled_from([hub.epoch, max(0, hub.epoch - 1), min(self.trees), hub.epoch + 1]))
        stale = data.draw(st.sampled_from([False, False, False, True]))
        leaves, tree = self.trees[min(self.trees) if stale or epoch not in self.trees else epoch]
        self.claim_with(epoch, key, more, leaves, tree, account)

    @rule(key=st.sampled_from(PEER_KEYS[:2]), lies=st.booleans())
    def an_epoch_is_claimed(self, key: Key, lies: bool) -> None:
        """By somebody whose leaf may say more than the checkpoint promises."""
        self.next_checkpoint(60, "", [100 * UNIT] * 4, 0, lies, "all", "")
        EVM.wait(600)
        epoch = self.both.hub.epoch
        if epoch in self.trees:
            self.claim_with(epoch, key, 0, *self.trees[epoch], 0)

    def claim_with(
        self, epoch: int, key: Key, more: int, leaves: dict[str, int], tree: StandardMerkleTree, account: int
    ) -> None:
        hub = self.both.hub
        cumulative = max(0, leaves[key.address] + more)
        slot = hub.kept.get(epoch)
        proven = slot is not None and slot.leaves == leaves and leaves[key.address] == cumulative
        proof = tree.proof(bytes.fromhex(key.address[2:]))
        values = (epoch, key.address, cumulative, proof)
        model = self.both.pool.claim
        self.both.do(
            account, "RewardPool", "claim", values, lambda: model(epoch, key.address, cumulative, proven, self.now)
        )

    @rule(account=accounts, amount=amounts, allowed=st.sampled_from([None, None, -1, 0, UNIT]))
    def pay_usage(self, account: int, amount: int, allowed: int | None) -> None:
        """`allowed`: by how much the allowance is more than the fee, if it is set before."""
        payer, spender, token = EVM.accounts[account], EVM.at["RewardPool"], self.both.token
        if allowed is not None:
            most = max(0, amount + allowed)
            self.both.do(account, "Token", "approve", (spender, most), lambda: token.approve(payer, spender, most))
        values = (b"m" * 32, amount)
        self.both.do(account, "RewardPool", "payUsage", values, lambda: self.both.pool.pay_usage(payer, amount))

    @rule(account=accounts)
    def pay_attestors(self, account: int) -> None:
        self.both.do(account, "RewardPool", "payAttestors", (), self.both.pool.pay_attestors)
