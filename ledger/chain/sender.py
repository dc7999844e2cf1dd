"""Transactions that land exactly once: through crashes, stuck fees, nonce clashes, outages and reorganisations.

The rule that carries it: for one intent there is one nonce at a time. A signed transaction is on disk before it is
sent; whatever is sent again is the same bytes, or a replacement with the same nonce, of which the chain takes one. A
new nonce is taken only when the old one was used by a transaction that is none of ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from dht.clock import Clock, SystemClock
from dht.errors import UnreachableError
from ledger.chain.artifacts import reverted
from ledger.chain.errors import RefusedError, RevertedError, UnfundedError
from ledger.chain.fees import GWEI, Bid, market
from ledger.chain.journal import Attempt, Intent, Journal
from ledger.chain.rpc import RpcPool
from ledger.chain.wallet import Wallet

Fulfilled: TypeAlias = Callable[[], Awaitable[bool]]
Receipt: TypeAlias = dict[str, Any]
_BENIGN = ("already known", "already imported", "known transaction", "nonce too low", "underpriced")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient and how generous. Seconds; `most_fee` in wei per gas; `confirmations` counts the block itself."""

    poll: float = 1.0
    replace_after: float = 30.0
    most_fee: int = 500 * GWEI
    gas_margin: float = 1.25
    confirmations: int = 1
    clash_seen: int = 3
    """Polls in a row that must show our nonce used and no receipt of ours: nodes of a pool lag behind each other."""


class Sender:
    """One wallet on one chain, one intent at a time. `sleep` is passed in by tests."""

    def __init__(
        self,
        rpc: RpcPool,
        wallet: Wallet,
        journal: Journal,
        policy: Policy | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rpc, self._wallet, self._journal = rpc, wallet, journal
        self._policy, self._clock, self._sleep = policy or Policy(), clock or SystemClock(), sleep
        self._turn = asyncio.Lock()

    @property
    def address(self) -> str:
        """The wallet's address."""
        return self._wallet.address

    def begun_with(self, prefix: str) -> int | None:
        """The lowest nonce that intents with such keys have taken so far."""
        return self._journal.first_nonce(prefix)

    async def land(self, intent: Intent, fulfilled: Fulfilled | None = None) -> Receipt | None:
        """Make it happen once; returns our receipt, or None when `fulfilled` says that somebody else did it.

        Goes on with what an earlier process began. Waits for as long as no node answers. Raises RevertedError when the
        contract refuses it, UnfundedError when the wallet cannot pay; what was signed stays in the journal.
        """
        self._journal.open(intent)
        landing = _Landing(self, intent, fulfilled)
        while True:
            try:
                async with self._turn:
                    return await landing.run()
            except _NotInTurnError as error:
                _log.warning("%s", error)
                await self._sleep(self._policy.poll)

    async def taken_back(self) -> list[Intent]:
        """Intents that had landed and, after a reorganisation, have not: to be landed again, in this order.

        To be called now and then: an intent is looked after until its block is finalized.
        """
        final = await self._rpc.call("eth_getBlockByNumber", ["finalized", False])
        horizon = int(final["number"], 16) if final else -1
        gone = []
        for intent, tx_hash in self._journal.unsettled():
            if tx_hash is None:
                continue
            receipt = await self._rpc.call("eth_getTransactionReceipt", ["0x" + tx_hash.hex()])
            # In another block than before it may have been refused.
            if receipt is None or receipt.get("blockNumber") is None or int(receipt["status"], 16) != 1:
                gone.append(intent)
            elif int(receipt["blockNumber"], 16) <= horizon:
                self._journal.settle(intent.key)
        return gone


class _NotInTurnError(Exception):
    """A reorganisation took back what this wallet had sent before; no later nonce is mined until that one is."""


class _Landing:
    """One intent on its way."""

    def __init__(self, sender: Sender, intent: Intent, fulfilled: Fulfilled | None) -> None:
        self._rpc, self._wallet, self._journal = sender._rpc, sender._wallet, sender._journal
        self._policy, self._clock, self._sleep = sender._policy, sender._clock, sender._sleep
        self._intent, self._fulfilled = intent, fulfilled
        self._sent_at = self._clock.now()
        self._clashes = 0

    async def run(self) -> Receipt | None:
        """Step until it is done."""
        while True:
            try:
                done, receipt = await self._step()
                if done:
                    return receipt
            except RevertedError:
                # Somebody else may have done it between our looking and our asking for the gas.
                if self._fulfilled is None or not await self._fulfilled():
                    raise
                self._journal.settle(self._intent.key)
                return None
            except UnreachableError as error:
                _log.warning("%s waits: %s", self._intent.key, error)
            await self._sleep(self._policy.poll)

    async def _step(self) -> tuple[bool, Receipt | None]:
        """One look at the chain, and what follows from it."""
        attempts = self._journal.attempts(self._intent.key)
        receipt = await self._receipt(attempts)
        if receipt is not None:
            return await self._mined(receipt)
        if self._fulfilled is not None and await self._fulfilled():
            self._journal.settle(self._intent.key)
            return True, None
        nonce = int(await self._rpc.call("eth_getTransactionCount", [self._wallet.address, "latest"]), 16)
        if attempts and nonce > attempts[0].nonce:
            await self._clashed(attempts)
            return False, None
        self._clashes = 0
        if attempts and nonce < attempts[0].nonce:
            raise _NotInTurnError(f"{self._intent.key} waits for nonce {nonce}; its own is {attempts[0].nonce}")
        if not attempts:
            attempt = await self._first(nonce)
            self._sent_at = self._clock.now()
        else:
            if not await self._waiting(attempts):
                await self._gas()  # by now it may be refused, and that shall cost nothing
            attempt = await self._maybe_outbid(attempts[0])
        await self._send(attempt)
        receipt = await self._receipt(self._journal.attempts(self._intent.key))
        return await self._mined(receipt) if receipt is not None else (False, None)

    async def _receipt(self, attempts: list[Attempt]) -> Receipt | None:
        for attempt in attempts:
            receipt: Receipt | None = await self._rpc.call("eth_getTransactionReceipt", ["0x" + attempt.tx_hash.hex()])
            if receipt is not None and receipt.get("blockNumber") is not None:
                return receipt
        return None

    async def _waiting(self, attempts: list[Attempt]) -> bool:
        """Whether a node holds one of them: not so if it never got there, or was dropped, or taken back."""
        for attempt in attempts:
            if await self._rpc.call("eth_getTransactionByHash", ["0x" + attempt.tx_hash.hex()]) is not None:
                return True
        return False

    async def _mined(self, receipt: Receipt) -> tuple[bool, Receipt | None]:
        """A transaction of ours is in a block: is it deep enough, and did it do what it should?"""
        block = int(receipt["blockNumber"], 16)
        head = int(await self._rpc.call("eth_blockNumber"), 16)
        if head - block + 1 < self._policy.confirmations:
            return False, None
        if int(receipt["status"], 16) == 1:
            self._journal.landed(self._intent.key, bytes.fromhex(receipt["transactionHash"][2:]), block)
            return True, receipt
        # It used up its nonce for nothing; whoever tries again does so with a new one.
        self._journal.bury(self._intent.key)
        raise await self._reason(receipt)

    async def _reason(self, receipt: Receipt) -> RevertedError:
        try:
            await self._rpc.call("eth_call", [self._as_call(), receipt["blockNumber"]])
        except RefusedError as error:
            return reverted(self._intent.key, error.text, error.data)
        return RevertedError(self._intent.key, "it ran out of gas, or the state has changed since")

    async def _clashed(self, attempts: list[Attempt]) -> None:
        """Our nonce is used and no transaction of ours is mined: another program sends from this wallet, too."""
        self._clashes += 1
        if self._clashes >= self._policy.clash_seen:
            _log.warning("%s: nonce %d was used by another transaction", self._intent.key, attempts[0].nonce)
            self._journal.bury(self._intent.key)
            self._clashes = 0

    async def _first(self, nonce: int) -> Attempt:
        """A transaction that no other intent can have.

        Signing is deterministic: two intents with the same content and nonce would be the same bytes, mined once, and
        each would take the receipt for its own. A few wei of tip and units of gas keep them apart.
        """
        salt = self._journal.salt(self._intent.key)
        bid, extra = (await market(self._rpc))[0], int.from_bytes(salt[:2], "big")
        return await self._sign(nonce, Bid(bid.tip + extra, bid.most + extra), await self._gas() + salt[2])

    async def _maybe_outbid(self, newest: Attempt) -> Attempt:
        """The attempt to send now: the same bytes again, or a replacement when it has waited long."""
        if self._clock.now() - self._sent_at < self._policy.replace_after:
            return newest
        bid = newest.bid.outbid((await market(self._rpc))[0])
        if bid.most > self._policy.most_fee:
            _log.warning("%s is stuck, and a replacement would be over the cap on fees", self._intent.key)
            return newest
        attempt = await self._sign(newest.nonce, bid, newest.gas)
        self._sent_at = self._clock.now()
        return attempt

    async def _sign(self, nonce: int, bid: Bid, gas: int) -> Attempt:
        """Sign and write down; not sent yet."""
        most = min(bid.most, self._policy.most_fee)
        bid = Bid(min(bid.tip, most), most)
        transaction = {
            "type": 2,
            "chainId": await self._chain(),
            "nonce": nonce,
            "maxPriorityFeePerGas": bid.tip,
            "maxFeePerGas": bid.most,
            "gas": gas,
            "value": self._intent.value,
            "data": self._intent.data,
        }
        if self._intent.receiver is not None:
            transaction["to"] = self._intent.receiver
        raw, tx_hash = self._wallet.sign(transaction)
        attempt = Attempt(tx_hash, nonce, gas, bid, raw)
        self._journal.add(self._intent.key, attempt)
        return attempt

    async def _chain(self) -> int:
        if self._rpc.chain_id is not None:
            return self._rpc.chain_id
        return int(await self._rpc.call("eth_chainId"), 16)

    async def _gas(self) -> int:
        """Gas limit: the estimate with a margin, for the state may change until it is mined."""
        try:
            estimate = int(await self._rpc.call("eth_estimateGas", [self._as_call()]), 16)
        except RefusedError as error:
            if "insufficient funds" in error.text.lower():
                raise self._unfunded(error) from None
            raise reverted(self._intent.key, error.text, error.data) from None
        return int(estimate * self._policy.gas_margin)

    def _as_call(self) -> dict[str, str]:
        call = {
            "from": self._wallet.address,
            "data": "0x" + self._intent.data.hex(),
            "value": hex(self._intent.value),
        }
        if self._intent.receiver is not None:
            call["to"] = "0x" + self._intent.receiver.hex()
        return call

    async def _send(self, attempt: Attempt) -> None:
        try:
            await self._rpc.call("eth_sendRawTransaction", ["0x" + attempt.raw.hex()])
        except RefusedError as error:
            text = error.text.lower()
            if "insufficient funds" in text:
                raise self._unfunded(error) from None
            if "fee" in text and ("less than block base fee" in text or "lower than" in text or "too low" in text):
                return  # it waits for a lower base fee, or for its replacement
            if not any(words in text for words in _BENIGN):
                raise

    def _unfunded(self, error: RefusedError) -> UnfundedError:
        return UnfundedError(
            f"the wallet {self._wallet.address} cannot pay for the transaction: {error.text}",
            remedy="send it some of the chain's currency",
        )
