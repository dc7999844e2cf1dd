"""A chain in memory that answers JSON-RPC and can be reorganised, also between two calls of one reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ledger.chain import artifacts
from ledger.chain.deployments import Deployment
from ledger.chain.errors import RefusedError
from ledger.eip712 import keccak
from ledger.indexer.abi import Entry, Interface

CHAIN_ID = 31337
RUN = bytes([7]) * 32
ADDRESSES = {
    name: f"0x{index:040x}"
    for index, name in enumerate(("Token", "PeerRegistry", "CheckpointHub", "RewardPool", "Slashing"), 0xA0)
}
DEPLOYMENT = Deployment(CHAIN_ID, ADDRESSES, 1, ("http://127.0.0.1:1",), RUN)


def refused(text: str) -> RefusedError:
    """What a node answers when it does not want to."""
    return RefusedError({"code": -32000, "message": text})


@dataclass
class FakeBlock:
    number: int
    hash: str
    parent: str
    timestamp: int
    logs: list[dict[str, Any]] = field(default_factory=list)

    def header(self) -> dict[str, str]:
        return {
            "number": hex(self.number),
            "hash": self.hash,
            "parentHash": self.parent,
            "timestamp": hex(self.timestamp),
        }


class FakeChain:
    """`calls` counts what was asked; `before_call` may change the chain before any answer."""

    def __init__(self, interface: Interface, *, most_logs: int = 10_000) -> None:
        self.interface, self.most_logs = interface, most_logs
        self.blocks = [FakeBlock(0, "0x" + "00" * 32, "0x" + "ff" * 32, 1_700_000_000)]
        self.transactions: dict[str, dict[str, Any]] = {}
        self.views: dict[tuple[str, str], Callable[..., Sequence[Any]]] = {}
        self.calls: list[str] = []
        self.before_call: Callable[[str], None] = lambda method: None
        self.chain_id = CHAIN_ID
        self.tags: dict[str, int] = {}
        self.codes: dict[str, str] = {}
        self._made = 0

    # -- making history --------------------------------------------------------------------------------

    def mine(self, *events: tuple[str, Mapping[str, Any]], tx: str = "", calldata: bytes = b"") -> FakeBlock:
        """A block with these events (name, arguments), all of one transaction."""
        self._made += 1
        parent = self.blocks[-1]
        number = parent.number + 1
        digest = keccak(b"block" + self._made.to_bytes(8, "big")).hex()
        block = FakeBlock(number, f"0x{digest}", parent.hash, parent.timestamp + 2)
        tx = tx or f"0x{keccak(b'tx' + self._made.to_bytes(8, 'big')).hex()}"
        to = ""
        for place, (name, values) in enumerate(events):
            entry = next(entry for entry in self.interface.events.values() if entry.name == name)
            to = ADDRESSES[entry.contract]
            block.logs.append(self._log(block, place, tx, entry, values))
        self.blocks.append(block)
        self.transactions[tx] = {
            "hash": tx,
            "to": to,
            "from": "0x" + "ee" * 20,
            "input": f"0x{calldata.hex()}",
            "blockNumber": hex(number),
            "value": "0x0",
        }
        return block

    def reorganise(self, depth: int) -> None:
        """Forget the last `depth` blocks (never the first)."""
        del self.blocks[max(1, len(self.blocks) - depth) :]

    def _log(self, block: FakeBlock, place: int, tx: str, entry: Entry, values: Mapping[str, Any]) -> dict[str, Any]:
        from eth_abi import encode

        topics = [f"0x{entry.digest().hex()}"]
        plain = [parameter for parameter in entry.inputs if not parameter.indexed]
        for parameter in entry.inputs:
            if parameter.indexed:
                topics.append(f"0x{encode([parameter.type], [parameter.strip_names(values[parameter.name])]).hex()}")
        data = encode([p.type for p in plain], [p.strip_names(values[p.name]) for p in plain])
        return {
            "address": ADDRESSES[entry.contract],
            "topics": topics,
            "data": f"0x{data.hex()}",
            "blockNumber": hex(block.number),
            "blockHash": block.hash,
            "transactionHash": tx,
            "logIndex": hex(place),
        }

    async def close(self) -> None:
        """Nothing to close."""

    # -- answering -------------------------------------------------------------------------------------

    async def call(self, method: str, params: Sequence[Any]) -> Any:
        self.calls.append(method)
        self.before_call(method)
        return getattr(self, f"_{method}")(*params)

    def _eth_chainId(self) -> str:
        return hex(self.chain_id)

    def _eth_blockNumber(self) -> str:
        return hex(self.blocks[-1].number)

    def _eth_gasPrice(self) -> str:
        return hex(1_000_000_000)

    def _eth_getCode(self, address: str, tag: str) -> str:
        name = next(name for name, each in ADDRESSES.items() if each == address)
        return self.codes.get(name, f"0x{artifacts.load(name).deployed.hex()}")

    def _eth_getBlockByNumber(self, place: str, full: bool) -> dict[str, str] | None:
        if place in ("safe", "finalized"):
            if place not in self.tags:
                raise refused(f"unknown block tag {place}")
            return self.blocks[min(self.tags[place], len(self.blocks) - 1)].header()
        number = len(self.blocks) - 1 if place == "latest" else int(place, 16)
        return self.blocks[number].header() if number < len(self.blocks) else None

    def _eth_getLogs(self, criteria: Mapping[str, Any]) -> list[dict[str, Any]]:
        first, last = int(criteria["fromBlock"], 16), int(criteria["toBlock"], 16)
        logs = [log for block in self.blocks[first : last + 1] for log in block.logs]
        if len(logs) > self.most_logs:
            raise refused(f"query returned more than {self.most_logs} results")
        return [log for log in logs if log["address"] in criteria["address"]]

    def _eth_getTransactionByHash(self, tx: str) -> dict[str, Any] | None:
        return self.transactions.get(tx)

    def _eth_getTransactionReceipt(self, tx: str) -> dict[str, Any] | None:
        logs = [log for block in self.blocks for log in block.logs if log["transactionHash"] == tx]
        found = self.transactions.get(tx)
        return found and {"status": "0x1", "gasUsed": hex(97_500), "effectiveGasPrice": hex(10**9), "logs": logs} | {
            "blockNumber": found["blockNumber"]
        }

    def _eth_call(self, call: Mapping[str, str], tag: str) -> str:
        from eth_abi import encode

        read = self.interface.read_call(bytes.fromhex(call["data"][2:]))
        assert read is not None
        entry, values = read
        contract = next(name for name, address in ADDRESSES.items() if address == call["to"])
        if (contract, entry.name) not in self.views:
            raise refused("execution reverted")
        answer = self.views[contract, entry.name](*values.values())
        stripped = [output.strip_names(value) for output, value in zip(entry.outputs, answer, strict=True)]
        return f"0x{encode([output.type for output in entry.outputs], stripped).hex()}"
