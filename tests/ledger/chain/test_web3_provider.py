"""web3.py over the pool: reads, events, sending and refusals on both chains, and the pool's checks behind all of it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from eth_abi import encode
from hexbytes import HexBytes
from web3.datastructures import AttributeDict
from web3.exceptions import ContractCustomError, MethodUnavailable, OffchainLookup, Web3RPCError

from benchmarks.ledger_run import ledger
from dht.errors import ConfigError, IncompatibleRunError, UnreachableError
from ledger.chain.errors import RefusedError
from ledger.chain.wallet import Wallet
from ledger.chain.web3_provider import connected, over, reverted

ROOT = Path(__file__).parents[3]
NOBODY = "http://127.0.0.1:1"
STRANGER = "0x" + "11" * 20


@pytest.fixture(params=["embedded", "anvil"])
async def run(request, tmp_path):
    """A run with one checkpoint."""
    async with ledger(request.param, tmp_path) as made:
        await made.sender.land(made.checkpoint())
        yield made


@pytest.fixture(params=["one node", "the first one down"])
async def urls(request, run, caplog):
    """Nodes to ask. When the first is down, the test ends only if it was tried."""
    alive = list(run.deployment.rpc)
    yield alive if request.param == "one node" else [NOBODY, *alive]
    said = [record.getMessage() for record in caplog.get_records("call") if record.name == "ledger.chain.rpc"]
    assert any(NOBODY in line for line in said) == (request.param == "the first one down")


async def test_views_and_events_are_read(run, urls):
    async with connected(run.deployment, urls) as connection:
        hub, token = connection.contracts["CheckpointHub"], connection.contracts["Token"]
        assert set(connection.contracts) == set(run.deployment.contracts)
        epoch, digest, last_round, fork_nonce = await hub.functions.head().call()
        assert (epoch, digest, fork_nonce) == (1, run.attestors.parent, 0)
        addresses, weights = await hub.functions.attestors().call()
        assert len(addresses) == 3 and weights == [1, 1, 1]
        (event,) = await hub.events.CheckpointProposed.get_logs(from_block=run.deployment.block)
        assert (event["args"]["epoch"], event["args"]["hash"]) == (1, digest)
        assert event["args"]["header"]["lastRound"] == last_round
        async with connection.web3.batch_requests() as batch:
            batch.add(token.functions.symbol())
            batch.add(token.functions.balanceOf(run.wallet.address))
            symbol, balance = await batch.async_execute()
        assert symbol == "MURM" and balance > 0
        assert await connection.web3.is_connected()


async def test_a_keystores_wallet_signs_and_sends(run, urls, tmp_path):
    run.wallet.save(tmp_path / "wallet.json", "secret", iterations=2)
    wallet = Wallet.load(tmp_path / "wallet.json", "secret")
    async with connected(run.deployment, urls, wallet) as connection:
        token = connection.contracts["Token"]
        tx_hash = await token.functions.transfer(STRANGER, 5).transact()
        receipt = await connection.web3.eth.wait_for_transaction_receipt(tx_hash, timeout=10, poll_latency=0.01)
        assert (receipt["status"], receipt["from"]) == (1, wallet.address)
        assert await token.functions.balanceOf(STRANGER).call() == 5
        assert await connection.web3.eth.get_transaction_count(wallet.address) == await run.nonce()


async def test_a_refusal_is_told_in_the_contracts_words(run):
    async with connected(run.deployment, wallet=run.wallet) as connection:
        pool, token = connection.contracts["RewardPool"], connection.contracts["Token"]
        with pytest.raises(ContractCustomError) as refused:
            await pool.functions.claim(99, STRANGER, 1, []).call()
        assert reverted(refused.value, "the claim").reason == "NotActive(99)"
        before = await run.nonce()
        too_much = await token.functions.balanceOf(run.wallet.address).call() + 1
        with pytest.raises(ContractCustomError) as unsent:
            await token.functions.transfer(STRANGER, too_much).transact()
        assert reverted(unsent.value, "the transfer").reason.startswith("ERC20InsufficientBalance(")
        assert await run.nonce() == before


async def test_another_chain_and_foreign_code_are_told_before_anything_is_believed(run):
    at = run.deployment.contracts
    swapped = {**at, "Token": at["CheckpointHub"], "CheckpointHub": at["Token"]}
    for wrong, words in (
        (replace(run.deployment, chain_id=1), "not 1"),
        (replace(run.deployment, contracts=swapped), "at 0x.* has other code"),
    ):
        async with connected(wrong, wallet=run.wallet) as connection:
            for ask in (
                lambda web3=connection.web3: web3.eth.block_number,
                lambda contracts=connection.contracts: contracts["CheckpointHub"].functions.head().call(),
                lambda contracts=connection.contracts: contracts["RewardPool"].functions.payAttestors().transact(),
                connection.web3.is_connected,
            ):
                with pytest.raises(IncompatibleRunError, match=words) as error:
                    await ask()
                assert error.value.exit_code == 65


class Stub:
    """A pool that answers as told, but for its chain id."""

    def __init__(self, answer) -> None:
        self.answer, self.asked = answer, []

    async def call(self, method, params=()):
        if method == "eth_chainId" and not isinstance(self.answer, UnreachableError):
            return "0x1"
        self.asked.append((method, params))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_no_node_answering_passes_through_as_it_is():
    web3 = over(Stub(UnreachableError("no node answers")))
    with pytest.raises(UnreachableError):
        await web3.eth.block_number
    assert not await web3.is_connected()
    with pytest.raises(UnreachableError):
        await web3.is_connected(show_traceback=True)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": -32601, "message": "no such method"}, MethodUnavailable),
        ({"code": -32602, "message": "bad"}, Web3RPCError),
        ({"message": "without a number"}, Web3RPCError),
        ({"code": "text", "message": "with none"}, Web3RPCError),
    ],
)
async def test_what_a_node_refuses_is_web3s_to_tell(error, kind):
    with pytest.raises(kind, match=error["message"]):
        await over(Stub(RefusedError(error))).eth.block_number


async def test_a_contract_does_not_make_us_fetch_what_it_names(monkeypatch):
    async def fetch(*arguments, **options):
        raise AssertionError("it was fetched")

    monkeypatch.setattr("web3.eth.async_eth.async_handle_offchain_lookup", fetch)
    lookup = (STRANGER, ["https://example.org/{data}"], b"", bytes(4), b"")
    data = "0x556f1830" + encode(["address", "string[]", "bytes", "bytes4", "bytes"], lookup).hex()
    web3 = over(Stub(RefusedError({"code": 3, "message": "execution reverted", "data": data})))
    with pytest.raises(OffchainLookup):
        await web3.eth.call({"to": STRANGER})


async def test_parameters_travel_as_json():
    stub = Stub("0x")
    call = AttributeDict({"to": STRANGER, "data": HexBytes("0x0102")})
    answer = await over(stub).provider.make_request("eth_call", [call, "latest"])
    assert stub.asked == [("eth_call", [{"to": STRANGER, "data": "0x0102"}, "latest"])]
    assert answer["result"] == "0x"


async def test_urls_are_checked(run):
    with pytest.raises(ConfigError):
        async with connected(run.deployment, ["localhost"]):
            pass


def test_opening_it_leaves_the_interpreters_limits_alone():
    probe = (
        "import sys; before = sys.getrecursionlimit()\n"
        "from ledger.chain.web3_provider import over; over(None)\n"
        "assert 'web3' in sys.modules and sys.getrecursionlimit() == before"
    )
    assert subprocess.run([sys.executable, "-c", probe], check=False, cwd=ROOT).returncode == 0


def test_nothing_of_ours_imports_web3_unasked():
    probe = (
        "import importlib, pkgutil, sys, ledger\n"
        "names = [module.name for module in pkgutil.walk_packages(ledger.__path__, 'ledger.')]\n"
        "assert 'ledger.chain.web3_provider' in names\n"
        "for name in names: importlib.import_module(name)\n"
        "assert 'web3' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", probe], check=False, cwd=ROOT).returncode == 0


@pytest.mark.parametrize("module", ["peer.cli", "ledger.explorer.cli"])
def test_help_does_not_import_web3(module):
    probe = (
        f"import sys, {module} as cli\n"
        "try:\n cli.main(['--help'])\nexcept SystemExit as end:\n assert not end.code\n"
        "assert 'web3' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, b"")
