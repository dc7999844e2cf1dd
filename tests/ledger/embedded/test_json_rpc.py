"""One suite for the embedded chain and for anvil: what clients rely on must be the same on both."""

from __future__ import annotations

import pytest
import rlp
from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from ledger.chain.errors import RefusedError
from ledger.embedded.blocks import leaf_root
from tests.ledger.chains import (
    ALICE,
    BOB,
    CAROL,
    CHAIN_ID,
    COUNTER,
    ERROR,
    ETHER,
    FUNDED,
    GWEI,
    START,
    TOPIC,
    count,
    deploy_counter,
    init_code,
    legacy,
    mined_receipt,
    node,
    receipt,
    send,
    signed,
)

WORD = f"0x{TOPIC:064x}"


@pytest.fixture(params=["embedded", "anvil"])
async def rpc(request, tmp_path):
    async with node(request.param, tmp_path) as found:
        yield found


async def refusal(rpc, raw: bytes) -> str:
    with pytest.raises(RefusedError) as refused:
        await send(rpc, raw)
    return refused.value.text.lower()


async def test_who_it_is(rpc):
    assert await rpc.call("eth_chainId") == hex(CHAIN_ID)
    assert await rpc.call("net_version") == str(CHAIN_ID)
    assert await rpc.call("eth_syncing") is False
    assert isinstance(await rpc.call("eth_accounts"), list)
    assert await rpc.call("eth_blockNumber") == "0x0"
    assert await rpc.call("web3_clientVersion")


async def test_a_transfer_is_mined_at_once_and_paid_for(rpc):
    raw = signed(ALICE, 0, BOB.address, value=ETHER)
    mined = await receipt(rpc, raw)
    price = int(mined["effectiveGasPrice"], 16)
    block = await rpc.call("eth_getBlockByNumber", ["latest", False])
    assert (mined["status"], mined["gasUsed"], mined["blockHash"]) == ("0x1", hex(21_000), block["hash"])
    assert price == int(block["baseFeePerGas"], 16) + GWEI
    assert int(await rpc.call("eth_getBalance", [BOB.address, "latest"]), 16) == FUNDED + ETHER
    assert int(await rpc.call("eth_getBalance", [ALICE.address, "latest"]), 16) == FUNDED - ETHER - 21_000 * price
    assert await rpc.call("eth_getTransactionCount", [ALICE.address, "latest"]) == "0x1"
    assert int(await rpc.call("eth_getBalance", [ALICE.address, "0x0"]), 16) == FUNDED
    found = await rpc.call("eth_getTransactionByHash", [mined["transactionHash"]])
    assert (found["from"], found["to"]) == (ALICE.address.lower(), BOB.address.lower())
    assert (found["value"], found["blockNumber"]) == (hex(ETHER), "0x1")


async def test_a_contract_is_created_called_and_logs(rpc):
    counter = await deploy_counter(rpc)
    assert await rpc.call("eth_getCode", [counter, "latest"]) == "0x" + COUNTER.hex()
    mined = await receipt(rpc, signed(ALICE, 0, counter))
    assert [(log["address"], log["topics"], int(log["data"], 16)) for log in mined["logs"]] == [(counter, [WORD], 1)]
    assert await count(rpc, counter) == 1
    assert int(await rpc.call("eth_getStorageAt", [counter, "0x0", "latest"]), 16) == 1
    assert int(await rpc.call("eth_getStorageAt", [counter, "0x0", "0x1"]), 16) == 0


async def test_a_revert_brings_its_data(rpc):
    counter = await deploy_counter(rpc)
    for method in ("eth_call", "eth_estimateGas"):
        with pytest.raises(RefusedError) as refused:
            await rpc.call(method, [{"from": ALICE.address, "to": counter, "data": "0x01"}, "latest"])
        assert (refused.value.rpc_code, refused.value.data) == (3, "0x" + ERROR.hex())
    mined = await receipt(rpc, signed(ALICE, 0, counter, data=b"\x01"))
    assert (mined["status"], mined["logs"]) == ("0x0", [])
    assert await rpc.call("eth_getTransactionCount", [ALICE.address, "latest"]) == "0x1"


async def test_bad_transactions_are_refused_in_the_usual_words(rpc):
    raw = signed(ALICE, 0, BOB.address)
    await receipt(rpc, raw)
    assert "already" in await refusal(rpc, raw) or "nonce too low" in await refusal(rpc, raw)
    assert "nonce too low" in await refusal(rpc, signed(ALICE, 0, BOB.address, value=1))
    assert "insufficient funds" in await refusal(rpc, signed(ALICE, 1, BOB.address, value=2 * FUNDED))
    assert "chain" in await refusal(rpc, signed(ALICE, 1, BOB.address, chainId=CHAIN_ID + 1))
    assert "intrinsic gas" in await refusal(rpc, signed(ALICE, 1, BOB.address, gas=20_999))
    assert await refusal(rpc, b"\x02nothing")
    assert await rpc.call("eth_getTransactionCount", [ALICE.address, "latest"]) == "0x1"


async def test_a_later_nonce_waits_for_the_one_before(rpc):
    early, late = (signed(ALICE, nonce, BOB.address, value=1) for nonce in (0, 1))
    waiting = await send(rpc, late)
    assert int(await rpc.call("eth_blockNumber"), 16) == 0
    assert await rpc.call("eth_getTransactionReceipt", [waiting]) is None
    assert (await rpc.call("eth_getTransactionByHash", [waiting]))["blockNumber"] is None
    await send(rpc, early)
    assert (await mined_receipt(rpc, waiting))["status"] == "0x1"


async def test_a_replacement_must_bid_more(rpc):
    await rpc.call("evm_setAutomine", [False])
    await send(rpc, signed(ALICE, 0, BOB.address, value=1))
    assert "underpriced" in await refusal(rpc, signed(ALICE, 0, BOB.address, value=2))
    better = {"maxFeePerGas": 4 * GWEI, "maxPriorityFeePerGas": 2 * GWEI}
    replaced = await send(rpc, signed(ALICE, 0, BOB.address, value=3, **better))
    await rpc.call("evm_mine")
    assert (await mined_receipt(rpc, replaced))["status"] == "0x1"
    assert int(await rpc.call("eth_getBalance", [BOB.address, "latest"]), 16) == FUNDED + 3


@pytest.mark.parametrize("kind", [0, 1])
async def test_older_types_of_transactions(rpc, kind):
    counter = await deploy_counter(rpc)
    content = {
        "nonce": 0,
        "gas": 100_000,
        "gasPrice": 3 * GWEI,
        "to": bytes.fromhex(counter[2:]),
        "value": 0,
        "chainId": CHAIN_ID,
    }
    if kind == 1:
        content |= {"type": 1, "accessList": [{"address": counter, "storageKeys": ["0x" + "00" * 32]}]}
    mined = await receipt(rpc, legacy(ALICE, content))
    assert (mined["status"], mined["type"]) == ("0x1", hex(kind))
    assert await count(rpc, counter) == 1


async def test_logs_by_range_address_and_topic(rpc):
    first = await deploy_counter(rpc)
    second = await deploy_counter(rpc, nonce=1)
    for nonce, counter in enumerate((first, second, first)):
        await receipt(rpc, signed(ALICE, nonce, counter))

    async def found(**wanted):
        logs = await rpc.call("eth_getLogs", [{"fromBlock": "0x0", "toBlock": "latest", **wanted}])
        return [(log["address"], int(log["blockNumber"], 16), int(log["data"], 16)) for log in logs]

    everything = [(first, 3, 1), (second, 4, 1), (first, 5, 2)]
    assert await found() == everything
    assert await found(address=first) == [everything[0], everything[2]]
    assert await found(address=[first, second]) == everything
    assert await found(fromBlock="0x4") == everything[1:]
    assert await found(toBlock="0x3") == everything[:1]
    assert await found(topics=[WORD]) == everything
    assert await found(topics=[[WORD, "0x" + "11" * 32]]) == everything
    assert await found(topics=[None]) == everything
    assert await found(topics=["0x" + "11" * 32]) == []
    assert await found(topics=[WORD, WORD]) == await found(topics=[None, WORD]) == []
    block = await rpc.call("eth_getBlockByNumber", ["0x4", False])
    by_hash = await rpc.call("eth_getLogs", [{"blockHash": block["hash"]}])
    assert [log["transactionHash"] for log in by_hash] == block["transactions"]


async def test_every_block_is_linked_and_its_hash_covers_its_header(rpc):
    await deploy_counter(rpc)
    raw = signed(ALICE, 0, BOB.address)
    await receipt(rpc, raw)
    await rpc.call("evm_mine")
    parent = None
    for number in range(4):
        block = await rpc.call("eth_getBlockByNumber", [hex(number), True])
        assert keccak(rlp.encode(header_fields(block))).hex() == block["hash"][2:]
        assert parent is None or block["parentHash"] == parent
        assert await rpc.call("eth_getBlockByHash", [block["hash"], True]) == block
        summary = block | {"transactions": [transaction["hash"] for transaction in block["transactions"]]}
        assert await rpc.call("eth_getBlockByHash", [block["hash"], False]) == summary
        assert await rpc.call("eth_getBlockByNumber", [hex(number), False]) == summary
        parent = block["hash"]
        if number == 2:
            assert block["transactionsRoot"] == "0x" + leaf_root(raw).hex()


def header_fields(block):
    quantities = {"difficulty", "number", "gasLimit", "gasUsed", "timestamp", "baseFeePerGas", "blobGasUsed"}
    names = [
        "parentHash",
        "sha3Uncles",
        "miner",
        "stateRoot",
        "transactionsRoot",
        "receiptsRoot",
        "logsBloom",
        "difficulty",
        "number",
        "gasLimit",
        "gasUsed",
        "timestamp",
        "extraData",
        "mixHash",
        "nonce",
        "baseFeePerGas",
        "withdrawalsRoot",
        "blobGasUsed",
        "excessBlobGas",
        "parentBeaconBlockRoot",
    ]
    return [
        rlp.sedes.big_endian_int.serialize(int(block[name], 16))
        if name in quantities | {"excessBlobGas"}
        else bytes.fromhex(block[name][2:])
        for name in names
    ]


async def test_time_moves_forward_only(rpc):
    counter = await deploy_counter(rpc)

    async def now():
        return int(await rpc.call("eth_call", [{"to": counter, "data": "0x02"}, "pending"]), 16)

    before = await now()
    assert before >= START
    await rpc.call("evm_increaseTime", [3600])
    await rpc.call("evm_mine")
    assert await now() >= before + 3600
    await rpc.call("evm_setNextBlockTimestamp", [START + 10_000])
    await receipt(rpc, signed(ALICE, 0, counter))
    latest = await rpc.call("eth_getBlockByNumber", ["latest", False])
    assert int(latest["timestamp"], 16) == START + 10_000
    with pytest.raises(RefusedError):
        await rpc.call("evm_setNextBlockTimestamp", [START + 9_000])


async def test_history_can_be_taken_back(rpc):
    counter = await deploy_counter(rpc)
    kept = await rpc.call("evm_snapshot")
    gone = await receipt(rpc, signed(ALICE, 0, counter))
    assert await count(rpc, counter) == 1
    assert await rpc.call("evm_revert", [kept]) is True
    assert await rpc.call("evm_revert", [kept]) is False
    assert await count(rpc, counter) == 0
    assert await rpc.call("eth_getTransactionReceipt", [gone["transactionHash"]]) is None
    assert await rpc.call("eth_getTransactionCount", [ALICE.address, "latest"]) == "0x0"


async def test_a_reorganisation_replaces_blocks(rpc):
    counter = await deploy_counter(rpc)
    for nonce in range(3):
        await receipt(rpc, signed(ALICE, nonce, counter))
    before = [await rpc.call("eth_getBlockByNumber", [hex(number), False]) for number in range(5)]
    await rpc.call("anvil_reorg", [2, []])
    after = [await rpc.call("eth_getBlockByNumber", [hex(number), False]) for number in range(5)]
    assert [one["hash"] == other["hash"] for one, other in zip(before, after, strict=True)] == [True] * 3 + [False] * 2
    assert await count(rpc, counter) == 1


async def test_an_estimate_is_enough_and_little_more(rpc):
    counter = await deploy_counter(rpc)
    estimate = int(await rpc.call("eth_estimateGas", [{"from": ALICE.address, "to": counter}]), 16)
    mined = await receipt(rpc, signed(ALICE, 0, counter, gas=estimate))
    assert mined["status"] == "0x1"
    assert int(mined["gasUsed"], 16) <= estimate <= int(mined["gasUsed"], 16) * 1.1


async def test_fees_are_told(rpc):
    await receipt(rpc, signed(ALICE, 0, BOB.address))
    history = await rpc.call("eth_feeHistory", ["0x2", "latest", [50.0]])
    blocks = [await rpc.call("eth_getBlockByNumber", [number, False]) for number in ("0x0", "0x1")]
    assert history["baseFeePerGas"][:2] == [block["baseFeePerGas"] for block in blocks]
    assert len(history["baseFeePerGas"]) == 3
    assert int(history["reward"][1][0], 16) == GWEI
    assert int(await rpc.call("eth_gasPrice"), 16) > 0


async def test_what_is_not_there_is_null_and_what_is_wrong_is_an_error(rpc):
    nothing = "0x" + "77" * 32
    assert await rpc.call("eth_getTransactionReceipt", [nothing]) is None
    assert await rpc.call("eth_getTransactionByHash", [nothing]) is None
    assert await rpc.call("eth_getBlockByHash", [nothing, False]) is None
    assert await rpc.call("eth_getBlockByNumber", ["0xffff", False]) is None
    for method, params in (
        ("eth_launchMissiles", []),
        ("eth_getBalance", ["0x12", "latest"]),
        ("eth_getBlockByNumber", ["soon", False]),
        ("eth_call", [{"to": "nobody"}, "latest"]),
        ("eth_getLogs", [{"topics": "all"}]),
    ):
        with pytest.raises(RefusedError) as refused:
            await rpc.call(method, params)
        assert refused.value.rpc_code in (-32601, -32602, -32600)


async def test_gas_is_the_same_on_both(tmp_path):
    """Warm and cold slots, refunds, creations: the whole schedule, block after block."""
    counter_is_first = signed(CAROL, 0, data=init_code(COUNTER))
    used = {}
    for kind in ("embedded", "anvil"):
        async with node(kind, tmp_path / kind) as rpc:
            counter = (await receipt(rpc, counter_is_first))["contractAddress"]
            calls = [b"", b"", b"\x03", b"\x03", b"", b"\x01", b"\x03"]
            mined = [await receipt(rpc, signed(ALICE, nonce, counter, data=data)) for nonce, data in enumerate(calls)]
            mined.append(await receipt(rpc, signed(BOB, 0, data=bytes.fromhex("60006000fd"))))
            mined.append(await receipt(rpc, signed(BOB, 1, data=init_code(b"\xfe" * 90))))
            used[kind] = [(entry["status"], int(entry["gasUsed"], 16)) for entry in mined]
    assert used["embedded"] == used["anvil"]


@given(method=st.text(max_size=20), params=st.lists(st.none() | st.text() | st.integers() | st.booleans(), max_size=3))
def test_no_request_breaks_the_embedded_server(embedded_server, method, params):
    names = st_methods(embedded_server)
    for name in (method, names[hash(method) % len(names)]):
        answer = embedded_server.reply({"id": 1, "method": name, "params": params})
        assert answer["id"] == 1
        if "error" in answer:
            assert answer["error"]["message"] != "internal error"


def st_methods(server) -> list[str]:
    return sorted(server._methods._table)
