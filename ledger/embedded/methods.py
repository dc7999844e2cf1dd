"""The JSON-RPC methods of the embedded chain (https://ethereum.github.io/execution-apis/)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from eth_hash.auto import keccak

from ledger.embedded.blocks import Block
from ledger.embedded.chain import Chain
from ledger.embedded.engine import MOST_BLOCK_GAS, Message
from ledger.embedded.fees import SUGGESTED_TIP, next_base_fee
from ledger.embedded.filters import find_logs
from ledger.embedded.jsonrpc import (
    METHOD_NOT_FOUND,
    RpcError,
    data,
    data_hex,
    invalid,
    number_hex,
    quantity,
    rejected,
    reverted,
)
from ledger.embedded.state import Account
from ledger.embedded.transactions import parse_access_list
from ledger.embedded.views import block_view, receipt_view, summary_view, transaction_view

Method: TypeAlias = Callable[..., Any]
CLIENT = "Murmuration embedded chain, one process, no consensus"
SAFE_DEPTH, FINAL_DEPTH = 32, 64
MOST_FEE_HISTORY = 1024


class Methods:
    """What clients may ask. With `dev`, time and history are the callers': for tests and throw-away networks only."""

    def __init__(self, chain: Chain, *, dev: bool = False) -> None:
        self._chain = chain
        self._dev = dev
        self._table: dict[str, Method] = {
            "web3_clientVersion": lambda: CLIENT,
            "web3_sha3": lambda value: data_hex(keccak(data(value))),
            "net_version": lambda: str(chain.chain_id),
            "net_listening": lambda: True,
            "net_peerCount": lambda: "0x0",
            "eth_chainId": lambda: number_hex(chain.chain_id),
            "eth_syncing": lambda: False,
            "eth_accounts": list,
            "eth_blockNumber": lambda: number_hex(chain.head.number),
            "eth_gasPrice": lambda: number_hex(chain.base_fee() + SUGGESTED_TIP),
            "eth_maxPriorityFeePerGas": lambda: number_hex(SUGGESTED_TIP),
            "eth_feeHistory": self.fee_history,
            "eth_getBlockByNumber": self.block_by_number,
            "eth_getBlockByHash": self.block_by_hash,
            "eth_getTransactionByHash": self.transaction,
            "eth_getTransactionReceipt": self.receipt,
            "eth_getBlockReceipts": self.block_receipts,
            "eth_getBalance": self.balance,
            "eth_getTransactionCount": self.transaction_count,
            "eth_getCode": self.code,
            "eth_getStorageAt": self.storage,
            "eth_call": self.call,
            "eth_estimateGas": self.estimate,
            "eth_sendRawTransaction": lambda raw: data_hex(chain.submit(data(raw))),
            "eth_getLogs": lambda wanted: find_logs(chain.store, wanted, self._number, chain.head.number),
        }
        if dev:
            from ledger.embedded.dev import dev_methods

            self._table |= dev_methods(chain)

    def answer(self, name: str, params: list[Any]) -> Any:
        """The result. Raises RpcError."""
        method = self._table.get(name)
        if method is None:
            raise RpcError(METHOD_NOT_FOUND, f"the method {name[:80]} does not exist or is not available")
        try:
            return method(*params)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:
                raise invalid(f"wrong number of parameters for {name}") from None
            raise

    def block_by_number(self, place: Any, full: Any = False) -> dict[str, Any] | None:
        """eth_getBlockByNumber."""
        number = self._number(place)
        return self._view(number, bool(full)) if number <= self._chain.head.number else None

    def block_by_hash(self, block_hash: Any, full: Any = False) -> dict[str, Any] | None:
        """eth_getBlockByHash."""
        number = self._chain.store.number_of(data(block_hash, "block hash", 32))
        return None if number is None else self._view(number, bool(full))

    def block_receipts(self, place: Any) -> list[dict[str, Any]] | None:
        """eth_getBlockReceipts."""
        block = self._chain.store.block(self._number(place))
        return None if block is None else [receipt_view(block)] if block.transaction else []

    def transaction(self, tx_hash: Any) -> dict[str, Any] | None:
        """eth_getTransactionByHash."""
        wanted = data(tx_hash, "transaction hash", 32)
        number = self._chain.store.containing(wanted)
        if number is not None:
            block = self._block(number)
            assert block.transaction is not None
            return transaction_view(block.transaction, block)
        waiting = self._chain.pool.get(wanted)
        return None if waiting is None else transaction_view(waiting, None)

    def receipt(self, tx_hash: Any) -> dict[str, Any] | None:
        """eth_getTransactionReceipt."""
        number = self._chain.store.containing(data(tx_hash, "transaction hash", 32))
        return None if number is None else receipt_view(self._block(number))

    def balance(self, address: Any, place: Any = "latest") -> str:
        """eth_getBalance."""
        return number_hex(self._account(address, place).balance)

    def code(self, address: Any, place: Any = "latest") -> str:
        """eth_getCode."""
        return data_hex(self._account(address, place).code)

    def transaction_count(self, address: Any, place: Any = "latest") -> str:
        """eth_getTransactionCount; "pending" counts waiting transactions, too."""
        if place == "pending":
            return number_hex(self._chain.pool.next_nonce(data(address, "address", 20), self._chain.state))
        return number_hex(self._account(address, place).nonce)

    def storage(self, address: Any, key: Any, place: Any = "latest") -> str:
        """eth_getStorageAt."""
        slot = quantity(key, "storage key")
        with self._chain.at(self._known(place)) as state:
            return data_hex(state.slot(data(address, "address", 20), slot).to_bytes(32, "big"))

    def call(self, call: Any, place: Any = "latest", *_overrides: Any) -> str:
        """eth_call; "latest" runs as if in a block mined now, for no block comes by itself when time passes."""
        if any(_overrides):
            raise invalid("state overrides are not supported")
        outcome = self._chain.call(_message(call), None if place in ("latest", "pending") else self._known(place))
        if outcome.halt:
            raise rejected(f"EVM error: {outcome.halt}")
        if not outcome.success:
            raise reverted(outcome.output)
        return data_hex(outcome.output)

    def estimate(self, call: Any, place: Any = "latest") -> str:
        """eth_estimateGas, on the newest state."""
        return number_hex(self._chain.estimate(_message(call)))

    def fee_history(self, count: Any, newest: Any, percentiles: Any = None) -> dict[str, Any]:
        """eth_feeHistory."""
        last = self._known(newest)
        first = max(0, last - min(quantity(count, "block count"), MOST_FEE_HISTORY) + 1)
        blocks = [self._block(number) for number in range(first, last + 1)]
        history: dict[str, Any] = {
            "oldestBlock": number_hex(first),
            "baseFeePerGas": [number_hex(block.header.base_fee) for block in blocks],
            "gasUsedRatio": [block.header.gas_used / MOST_BLOCK_GAS for block in blocks],
        }
        if blocks:
            header = blocks[-1].header
            following = next_base_fee(header.base_fee, header.gas_used, MOST_BLOCK_GAS)
            newest_fee = self._chain.base_fee() if last == self._chain.head.number else following
            history["baseFeePerGas"].append(number_hex(newest_fee))
        if percentiles:
            history["reward"] = [[number_hex(_tip(block))] * len(percentiles) for block in blocks]
        return history

    def _account(self, address: Any, place: Any) -> Account:
        found = data(address, "address", 20)
        with self._chain.at(self._known(place)) as state:
            return state.account(found)

    def _number(self, place: Any) -> int:
        """The block that a number, a tag or an EIP-1898 object names; it may not exist yet."""
        head = self._chain.head.number
        if isinstance(place, dict):
            if "blockHash" not in place:
                return quantity(place.get("blockNumber"), "block number")
            number = self._chain.store.number_of(data(place["blockHash"], "block hash", 32))
            if number is None:
                raise rejected("header for hash not found")
            return number
        tags = {
            "latest": head,
            "pending": head,
            "earliest": 0,
            "safe": max(0, head - SAFE_DEPTH) if self._dev else head,
            # Nobody can take a block back, unless callers may move history.
            "finalized": max(0, head - FINAL_DEPTH) if self._dev else head,
        }
        if isinstance(place, str) and place in tags:
            return tags[place]
        return quantity(place, "block number")

    def _known(self, place: Any) -> int:
        number = self._number(place)
        if number > self._chain.head.number:
            raise rejected("header not found")
        return number

    def _view(self, number: int, full: bool) -> dict[str, Any] | None:
        if full:
            return block_view(self._block(number))
        found = self._chain.store.summary(number)
        return None if found is None else summary_view(found)

    def _block(self, number: int) -> Block:
        block = self._chain.store.block(number)
        assert block is not None
        return block


def _message(call: Any) -> Message:
    if not isinstance(call, dict):
        raise invalid("the call must be an object")
    given = call.get("input", call.get("data"))
    gas = quantity(call["gas"], "gas") if call.get("gas") is not None else MOST_BLOCK_GAS
    return Message(
        sender=data(call["from"], "from", 20) if call.get("from") else bytes(20),
        to=data(call["to"], "to", 20) if call.get("to") else None,
        data=data(given) if given is not None else b"",
        value=quantity(call.get("value") or 0, "value"),
        gas=min(gas, MOST_BLOCK_GAS),
        access_list=parse_access_list(call.get("accessList")),
    )


def _tip(block: Block) -> int:
    return block.receipt.price - block.header.base_fee if block.receipt else 0
