"""Blocks, transactions, receipts and logs as JSON-RPC shows them."""

from __future__ import annotations

from typing import Any

from ledger.embedded.blocks import COINBASE, EMPTY_LIST_HASH, EMPTY_TRIE_ROOT, ZERO_HASH, Block, Header, bloom
from ledger.embedded.engine import MOST_BLOCK_GAS
from ledger.embedded.jsonrpc import data_hex, number_hex
from ledger.embedded.store import FoundLog, Summary
from ledger.embedded.transactions import DYNAMIC_FEE, LEGACY, Transaction


def block_view(block: Block) -> dict[str, Any]:
    """A block with its transaction."""
    header, transaction = block.header, block.transaction
    size = len(header.encode()) + (len(transaction.raw) if transaction else 0)
    return _view(header, header.hash, size, [transaction_view(transaction, block)] if transaction else [])


def summary_view(found: Summary) -> dict[str, Any]:
    """A block with its transaction's hash. Readers of the chain ask for one after another: nothing else is decoded."""
    transactions = [data_hex(found.tx_hash)] if found.tx_hash else []
    return _view(Header.decode(found.header), found.hash, found.size, transactions)


def _view(header: Header, block_hash: bytes, size: int, transactions: list[Any]) -> dict[str, Any]:
    return {
        "number": number_hex(header.number),
        "hash": data_hex(block_hash),
        "parentHash": data_hex(header.parent),
        "sha3Uncles": data_hex(EMPTY_LIST_HASH),
        "miner": data_hex(COINBASE),
        "stateRoot": data_hex(header.state_root),
        "transactionsRoot": data_hex(header.transactions_root),
        "receiptsRoot": data_hex(header.receipts_root),
        "logsBloom": data_hex(header.bloom),
        "difficulty": "0x0",
        "totalDifficulty": "0x0",
        "gasLimit": number_hex(MOST_BLOCK_GAS),
        "gasUsed": number_hex(header.gas_used),
        "timestamp": number_hex(header.timestamp),
        "extraData": data_hex(header.extra),
        "mixHash": data_hex(header.randomness),
        "nonce": data_hex(bytes(8)),
        "baseFeePerGas": number_hex(header.base_fee),
        "withdrawalsRoot": data_hex(EMPTY_TRIE_ROOT),
        "withdrawals": [],
        "blobGasUsed": "0x0",
        "excessBlobGas": "0x0",
        "parentBeaconBlockRoot": data_hex(ZERO_HASH),
        "size": number_hex(size),
        "uncles": [],
        "transactions": transactions,
    }


def transaction_view(transaction: Transaction, block: Block | None) -> dict[str, Any]:
    """A transaction, mined in `block` or still waiting."""
    price = transaction.price(block.header.base_fee) if block else transaction.fee_cap
    view: dict[str, Any] = {
        "hash": data_hex(transaction.hash),
        "type": number_hex(transaction.kind),
        "nonce": number_hex(transaction.nonce),
        "from": data_hex(transaction.sender),
        "to": data_hex(transaction.to) if transaction.to else None,
        "value": number_hex(transaction.value),
        "gas": number_hex(transaction.gas),
        "gasPrice": number_hex(price),
        "input": data_hex(transaction.data),
        "v": number_hex(transaction.v),
        "r": number_hex(transaction.r),
        "s": number_hex(transaction.s),
        "blockHash": data_hex(block.header.hash) if block else None,
        "blockNumber": number_hex(block.header.number) if block else None,
        "transactionIndex": "0x0" if block else None,
    }
    if transaction.chain_id is not None:
        view["chainId"] = number_hex(transaction.chain_id)
    if transaction.kind != LEGACY:
        view["yParity"] = number_hex(transaction.v)
        view["accessList"] = [
            {"address": data_hex(address), "storageKeys": [data_hex(key.to_bytes(32, "big")) for key in keys]}
            for address, keys in transaction.access_list
        ]
    if transaction.kind == DYNAMIC_FEE:
        view["maxFeePerGas"] = number_hex(transaction.fee_cap)
        view["maxPriorityFeePerGas"] = number_hex(transaction.tip_cap)
    return view


def receipt_view(block: Block) -> dict[str, Any]:
    """The receipt of the block's transaction."""
    transaction, receipt = block.transaction, block.receipt
    assert transaction is not None
    assert receipt is not None
    return {
        "transactionHash": data_hex(transaction.hash),
        "transactionIndex": "0x0",
        "blockHash": data_hex(block.header.hash),
        "blockNumber": number_hex(block.header.number),
        "from": data_hex(transaction.sender),
        "to": data_hex(transaction.to) if transaction.to else None,
        "contractAddress": data_hex(receipt.created) if receipt.created else None,
        "status": number_hex(int(receipt.success)),
        "type": number_hex(receipt.kind),
        "gasUsed": number_hex(receipt.gas_used),
        "cumulativeGasUsed": number_hex(receipt.gas_used),
        "effectiveGasPrice": number_hex(receipt.price),
        "logsBloom": data_hex(bloom(receipt.logs)),
        "logs": [
            log_view(
                FoundLog(
                    block.header.number, block.header.hash, block.header.timestamp, transaction.hash, position, log
                )
            )
            for position, log in enumerate(receipt.logs)
        ],
    }


def log_view(found: FoundLog) -> dict[str, Any]:
    """A log with where it is."""
    log = found.log
    return {
        "address": data_hex(log.address),
        "topics": [data_hex(topic) for topic in log.topics],
        "data": data_hex(log.data),
        "blockHash": data_hex(found.block_hash),
        "blockNumber": number_hex(found.block),
        "blockTimestamp": number_hex(found.timestamp),
        "transactionHash": data_hex(found.tx_hash),
        "transactionIndex": "0x0",
        "logIndex": number_hex(found.position),
        "removed": False,
    }
