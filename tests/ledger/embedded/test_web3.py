"""web3.py against the embedded chain: contracts, events and custom errors as any client sees them."""

from __future__ import annotations

import pytest
from eth_account import Account
from web3 import AsyncHTTPProvider, AsyncWeb3
from web3.exceptions import ContractCustomError, ContractLogicError, Web3RPCError

from ledger.chain.artifacts import load, selector
from ledger.embedded.node import serving
from tests.ledger.chains import ALLOC, CHAIN_ID, COUNTER, SECRETS, START, Time, init_code


@pytest.fixture
async def web3(tmp_path):
    async with serving(tmp_path, chain_id=CHAIN_ID, alloc=ALLOC, clock=Time(wall=START)) as node:
        web3 = AsyncWeb3(AsyncHTTPProvider(node.url))
        account = Account.from_key(SECRETS[0])
        web3.eth.default_account = account.address
        yield web3, account
        await web3.provider.disconnect()


async def transact(web3, account, call) -> dict:
    """Everything left to web3: nonce, gas and fees."""
    content = await call.build_transaction(
        {"from": account.address, "nonce": await web3.eth.get_transaction_count(account.address)}
    )
    raw = account.sign_transaction(content).raw_transaction
    return await web3.eth.wait_for_transaction_receipt(await web3.eth.send_raw_transaction(raw), poll_latency=0)


async def test_a_token_is_deployed_used_and_refuses_in_its_own_words(web3):
    web3, account = web3
    artifact = load("Token")
    contract = web3.eth.contract(abi=list(artifact.abi), bytecode=artifact.bytecode)
    made = await transact(web3, account, contract.constructor("Name", "SYM", 10**24, account.address))
    token = web3.eth.contract(address=made["contractAddress"], abi=list(artifact.abi))
    mined = await transact(web3, account, token.functions.mint(account.address, 5))
    assert await token.functions.balanceOf(account.address).call() == 5
    events = await token.events.Transfer.get_logs(from_block=0)
    assert [(event["args"]["to"], event["args"]["value"], event["blockHash"]) for event in events] == [
        (account.address, 5, mined["blockHash"])
    ]
    with pytest.raises(ContractCustomError) as refused:
        await token.functions.transfer("0x" + "11" * 20, 6).call()
    error = next(entry for entry in artifact.abi if entry.get("name") == "ERC20InsufficientBalance")
    assert refused.value.data.startswith("0x" + selector(error).hex())
    with pytest.raises(ContractLogicError):
        await token.functions.transfer("0x" + "11" * 20, 6).estimate_gas()


async def test_blocks_and_errors_pass_web3s_formatters(web3):
    web3, account = web3
    call = {"from": account.address, "data": init_code(COUNTER), "nonce": 0, "gas": 10**6, "chainId": CHAIN_ID}
    signed = account.sign_transaction({**call, "gasPrice": await web3.eth.gas_price, "value": 0, "to": b""})
    await web3.eth.send_raw_transaction(signed.raw_transaction)
    block = await web3.eth.get_block("latest", full_transactions=True)
    assert (block["number"], block["transactions"][0]["from"]) == (1, account.address)
    assert (await web3.eth.fee_history(1, "latest", [10]))["oldestBlock"] == 1
    assert await web3.eth.get_logs({"fromBlock": 0, "toBlock": "latest"}) == []
    assert (await web3.client_version).startswith("Murmuration embedded chain, one process, no consensus")
    with pytest.raises(Web3RPCError, match=r"nonce too low|already known"):
        await web3.eth.send_raw_transaction(signed.raw_transaction)
