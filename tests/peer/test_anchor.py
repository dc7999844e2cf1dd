"""Whole peers anchor what they did: real learners, attestors, contracts and a chain."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dht.errors import ConfigError, IncompatibleRunError
from ledger.chain.artifacts import CONTRACTS
from ledger.chain.deployments import Deployment
from ledger.chain_view import Head
from ledger.devnet import PASSWORD, Devnet, devnet
from ledger.electorate import Electorate
from ledger.signatures import key_address
from peer.anchor import FRAMES, Anchor, _Reporting
from peer.config import PeerConfig
from peer.manifest import LedgerChoice, Manifest
from tests.ledger.headers import header
from tests.peer.swarm_in_process import Events, Network, Peer, identity, tiny_manifest, until

PEERS = 4


def anchored_manifest() -> Manifest:
    return dataclasses.replace(tiny_manifest(PEERS), ledger=LedgerChoice(rounds_per_checkpoint=2))


@asynccontextmanager
async def running(folder: Path, net: Devnet, manifest: Manifest, payers: int) -> AsyncIterator[list[Peer]]:
    """Peers that have met, with anchors; the first `payers` have wallets."""
    (folder / "password").write_text(PASSWORD)
    keystores = list(net.keystores.values())
    network = Network()
    peers = [Peer(network, manifest, index, folder / str(index)) for index in range(PEERS)]
    tasks = []
    for index, peer in enumerate(peers):
        wallet = keystores[index + 1] if index < payers else None
        config = PeerConfig(
            data_dir=folder / str(index), ledger=net.file, wallet=wallet, wallet_password_file=folder / "password"
        )
        chain = peer.participant
        peer.node._anchor = Anchor(config, manifest, peer.identity, peer.port, lambda who=chain: who.chain, peer.events)
        peer.port.serve(peer.node._on_frame, peer.node._donor.answer)
        tasks.append(asyncio.create_task(peer.node._anchor.run()))
    for peer in peers:
        peer.start(peers)
    try:
        yield peers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for peer in peers:
            assert peer.node._anchor is not None
            await peer.node._anchor.close()
            await peer.kill()


def checkpoints(peer: Peer) -> dict[int, dict[str, object]]:
    return {fields["epoch"]: fields for fields in peer.events.named("checkpoint")}


async def test_every_second_round_is_anchored_once_and_says_what_all_peers_hold(tmp_path: Path):
    manifest = anchored_manifest()
    attestors = {"0x" + key_address(identity(index).peer_id).hex(): 1 for index in range(PEERS)}
    async with (
        devnet(tmp_path / "net", "embedded", run_id=manifest.run_id, attestors=attestors) as net,
        running(tmp_path, net, manifest, PEERS) as peers,
    ):
        failed = [peer.driver.failed for peer in peers]
        await until(lambda: all(max(checkpoints(peer), default=0) >= 2 for peer in peers), failed)
        chain = peers[0].participant.chain
        assert chain is not None
        for peer in peers:
            for epoch, seen in checkpoints(peer).items():
                assert seen["last_round"] == 2 * epoch
                assert seen["root"] == chain.record(2 * epoch).state_root.hex()
        assert all(peer.learner.round >= 4 for peer in peers)
        assert peers[0].network.refused == []


async def test_training_goes_on_while_no_node_answers(tmp_path: Path):
    manifest = anchored_manifest()
    gone = Deployment(77, {}, 0, ("http://127.0.0.1:1",), manifest.run_id)
    contracts = {name: f"0x{index:040x}" for index, name in enumerate(CONTRACTS, 1)}
    file = tmp_path / "gone.json"
    dataclasses.replace(gone, contracts=contracts).save(file)
    net = Devnet("rpc", gone, {}, file)
    async with running(tmp_path, net, manifest, payers=0) as peers:
        await until(lambda: all(peer.learner.round >= 3 for peer in peers), [peer.driver.failed for peer in peers])
        assert all(checkpoints(peer) == {} for peer in peers)


async def test_who_anchors_nothing_ignores_the_ledgers_frames(tmp_path: Path):
    network = Network()
    peer = Peer(network, tiny_manifest(PEERS), 0, tmp_path)
    other = network.port(identity(1).peer_id)
    peer.port.serve(peer.node._on_frame, peer.node._donor.answer)
    for tag in FRAMES:
        await other.send(peer.id, [bytes([tag]) + b"whatever"])
    assert network.refused == []
    await peer.kill()


async def test_a_rollback_is_reported_once_and_the_epoch_again():
    headers = [header(1), header(1, fork_nonce=4)]
    electorate = Electorate((b"a" * 20,), (1,))
    heads = [Head(headers[0], 3, 0, electorate, (0, 0), rolled_back=2)] * 2
    heads += [Head(None, 4, 0, electorate, (0,), rolled_back=1), Head(headers[1], 4, 0, electorate, (0, 0))]

    class View:
        async def head(self) -> Head:
            return heads.pop(0)

    events = Events()
    reporting = _Reporting(View(), events)  # type: ignore[arg-type]
    for _ in range(4):
        await reporting.head()
    assert [name for name, _ in events.all] == ["checkpoint", "checkpoint_rolled_back", "checkpoint"]
    assert events.named("checkpoint_rolled_back") == [{"epoch": 1, "fork_nonce": 4}]  # not the one before the start


def test_the_deployment_of_another_run_is_refused(tmp_path: Path):
    manifest = anchored_manifest()
    Deployment(77, {}, 0, ("http://127.0.0.1:1",), bytes(32)).save(tmp_path / "other.json")
    config = PeerConfig(data_dir=tmp_path, ledger=tmp_path / "other.json")
    with pytest.raises(IncompatibleRunError, match="of this run"):
        Anchor(config, manifest, identity(0), None, lambda: None, None)  # type: ignore[arg-type]
    missing = dataclasses.replace(config, ledger=tmp_path / "none.json")
    with pytest.raises(ConfigError, match="cannot read"):
        Anchor(missing, manifest, identity(0), None, lambda: None, None)  # type: ignore[arg-type]


def test_the_deployment_of_another_hub_than_the_manifests_is_refused(tmp_path: Path):
    hub = f"0x{'ab' * 20}"
    manifest = dataclasses.replace(anchored_manifest(), ledger=LedgerChoice(chain_id=77, hub=hub))
    config = PeerConfig(data_dir=tmp_path, ledger=tmp_path / "devnet.json")

    def anchor(chain_id: int, at: str) -> Anchor:
        found = Deployment(chain_id, {"CheckpointHub": at}, 0, ("http://127.0.0.1:1",), manifest.run_id)
        found.save(tmp_path / "devnet.json")
        return Anchor(config, manifest, identity(0), None, lambda: None, None)  # type: ignore[arg-type]

    assert anchor(77, hub)
    for chain_id, at in ((78, hub), (77, f"0x{'cd' * 20}")):
        with pytest.raises(IncompatibleRunError, match="the manifest names hub"):
            anchor(chain_id, at)
