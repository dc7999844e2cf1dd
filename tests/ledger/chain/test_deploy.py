"""The five contracts on a chain: wired to each other, found again, the same on both kinds of chain."""

from __future__ import annotations

import pytest

from dht.errors import ChainError, ConfigError, IncompatibleRunError
from ledger.chain.artifacts import CONTRACTS, explain, load, selector
from ledger.chain.deploy import ORDER, UNIT, Terms, created_address, deploy
from ledger.chain.deployments import Deployment
from ledger.chain.errors import RevertedError
from ledger.chain.journal import Intent
from ledger.chain.rpc import RpcPool
from tests.ledger.chains import ALICE, BOB, CAROL, CHAIN_ID, deploy_counter

RUN = bytes(range(32))
TERMS = Terms(RUN, {BOB.address: 1, CAROL.address: 2}, CAROL.address, CAROL.address, genesis={BOB.address: 5 * UNIT})


class Crash(BaseException):
    """The process ends here."""


async def read(rpc, deployment: Deployment, contract: str, signature: str) -> bytes:
    call = {"to": deployment.contracts[contract], "data": "0x" + selector_of(signature).hex()}
    return bytes.fromhex((await rpc.call("eth_call", [call, "latest"]))[2:])


def selector_of(signature: str) -> bytes:
    name, inputs = signature.removesuffix(")").split("(")
    return selector({"name": name, "inputs": [{"type": kind} for kind in inputs.split(",") if kind]})


async def test_all_five_are_there_and_know_each_other(rpc, open_sender):
    pool = rpc._rpc
    deployment = await deploy(pool, open_sender(pool), TERMS)
    assert (deployment.chain_id, deployment.run_id, set(deployment.contracts)) == (CHAIN_ID, RUN, set(CONTRACTS))
    at = {name: bytes(12) + bytes.fromhex(address[2:]) for name, address in deployment.contracts.items()}
    assert await read(pool, deployment, "Token", "pool()") == at["RewardPool"]
    assert await read(pool, deployment, "CheckpointHub", "pool()") == at["RewardPool"]
    assert await read(pool, deployment, "PeerRegistry", "slashing()") == at["Slashing"]
    assert await read(pool, deployment, "PeerRegistry", "token()") == at["Token"]
    assert await read(pool, deployment, "CheckpointHub", "runId()") == RUN
    assert int.from_bytes(await read(pool, deployment, "Token", "totalSupply()"), "big") == 5 * UNIT
    contracts = {address: load(name) for name, address in deployment.contracts.items()}
    async with RpcPool(pool.urls, CHAIN_ID, contracts) as strict:
        assert await strict.check() == CHAIN_ID
    swapped = {deployment.contracts["Token"]: load("CheckpointHub")}
    async with RpcPool(pool.urls, CHAIN_ID, swapped) as wrong:
        with pytest.raises(IncompatibleRunError, match="CheckpointHub"):
            await wrong.check()


async def test_deploying_again_finds_what_is_there(embedded, open_sender):
    sender = open_sender(embedded._rpc)
    first = await deploy(embedded._rpc, sender, TERMS)
    assert await deploy(embedded._rpc, sender, TERMS) == first
    assert await embedded.call("eth_getTransactionCount", [ALICE.address, "latest"]) == hex(len(ORDER))


@pytest.mark.parametrize("sent", range(len(ORDER)))
async def test_a_crash_in_the_middle_goes_on_where_it_was(embedded, open_sender, sent):
    embedded.urls = embedded._rpc.urls
    left = [sent]

    def crash(method, params):
        if method == "eth_sendRawTransaction":
            if not left[0]:
                raise Crash
            left[0] -= 1

    embedded.before = crash
    with pytest.raises(Crash):
        await deploy(embedded, open_sender(embedded), TERMS)
    embedded.before = None
    open_sender.journals.pop().close()
    deployment = await deploy(embedded, open_sender(embedded), TERMS)
    assert deployment.contracts["Token"] == created_address(ALICE.address, 0)
    assert await embedded.call("eth_getTransactionCount", [ALICE.address, "latest"]) == hex(len(ORDER))


async def test_a_wallet_that_sends_something_else_meanwhile_is_told(embedded, open_sender):
    embedded.urls = embedded._rpc.urls
    landed = []

    class Busy:
        """Another program sends from this wallet after the second contract."""

        address = ALICE.address

        def __init__(self, sender) -> None:
            self._sender = sender

        def begun_with(self, prefix):
            return self._sender.begun_with(prefix)

        async def land(self, intent):
            receipt = await self._sender.land(intent)
            landed.append(intent.key)
            if len(landed) == 2:
                await self._sender.land(Intent("else", bytes.fromhex(BOB.address[2:]), b""))
            return receipt

    with pytest.raises(ChainError, match="something else meanwhile"):
        await deploy(embedded, Busy(open_sender(embedded)), TERMS)


async def test_a_contracts_own_error_is_named(embedded, open_sender):
    pool = embedded._rpc
    sender = open_sender(pool)
    deployment = await deploy(pool, sender, TERMS)
    mint = selector_of("mint(address,uint256)") + bytes(64)
    with pytest.raises(RevertedError, match=r"NotThePool\(0x[0-9a-f]{40}\)"):
        await sender.land(Intent("mint", bytes.fromhex(deployment.contracts["Token"][2:]), mint))


def test_reverts_are_explained():
    text = bytes.fromhex("08c379a0") + (32).to_bytes(32, "big") + (2).to_bytes(32, "big") + b"no".ljust(32, b"\0")
    assert explain(text) == "no"
    assert explain(bytes.fromhex("4e487b71") + (17).to_bytes(32, "big")) == "panic 0x11"
    assert explain(b"") == "no reason given"
    assert explain(b"\x01\x02\x03\x04") == "0x01020304"
    assert explain(text[:40]).startswith("0x08c379a0")


def test_terms_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="Token cannot be constructed"):
        load("Token").creation("a", "b", -1, BOB.address)
    with pytest.raises(ConfigError, match="artifact of Nothing"):
        load("Nothing")


async def test_a_run_id_has_32_bytes(embedded, open_sender):
    with pytest.raises(ConfigError, match="32 bytes"):
        await deploy(embedded._rpc, open_sender(embedded), Terms(b"short", {}, BOB.address, BOB.address))


def test_a_deployment_is_kept_whole(tmp_path):
    path = tmp_path / "deep" / "devnet.json"
    deployment = Deployment(CHAIN_ID, {"Token": "0x" + "12" * 20}, 7, ("http://127.0.0.1:1",), RUN)
    deployment.save(path)
    assert Deployment.load(path) == deployment
    assert [file.name for file in path.parent.iterdir()] == ["devnet.json"]
    text = path.read_text()
    twice = text.replace('"Token"', f'"Hub": "0x{"12" * 20}", "Token"')
    for content in ("", "{}", '{"contracts": 5}', text.replace("12" * 20, "12"), twice):
        path.write_text(content)
        with pytest.raises(ConfigError, match="no deployment"):
            Deployment.load(path)


@pytest.mark.parametrize(
    ("nonce", "address"),
    [
        # The worked example of EIP-161-era documentation: creations of 0x6ac7ea33f8831ea9dcc53393aaa88b25a785dbf0.
        (0, "0xcd234a471b72ba2f1ccf0a70fcaba648a5eecd8d"),
        (1, "0x343c43a37d37dff08ae8c4a11544c718abb4fcf8"),
        (2, "0xf778b86fa74e846c4f0a1fbd1335fe81c00a0c91"),
    ],
)
def test_addresses_of_creations(nonce, address):
    assert created_address("0x6ac7ea33f8831ea9dcc53393aaa88b25a785dbf0", nonce) == address


async def test_addresses_are_what_the_chain_says(rpc):
    for nonce in range(3):
        assert await deploy_counter(rpc, BOB, nonce) == created_address(BOB.address, nonce)
