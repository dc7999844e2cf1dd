"""`--peer`: the explorer, in a process without hivemind, dials peers on real libp2p daemons."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from averaging.ballots import Decision
from averaging.chain import ChainRequest, ChainSegment
from averaging.record import Record
from averaging.state_chunks import ChunkRequest, Leaves, StateChunk
from dht.frames import HEADER_BYTES, Kind
from dht.identity import Identity
from dht.wire import decode_as, encode
from ledger.chain.errors import RefusedError
from ledger.indexer.abi import Interface
from tests.ledger.fake_chain import ADDRESSES, CHAIN_ID, RUN
from tests.ledger.serving_peer import ServingPeer, address_as, serving_peer
from tests.ledger.world import CONSTANTS, IDENTITIES, PEERS, SCHEMA, World, small_run

ROOT = Path(__file__).parent.parent.parent
FOUNDER = str(PEERS[0])
Explore = Callable[..., Awaitable[tuple[int, Any, str]]]
Serve = Callable[[int], Awaitable[ServingPeer]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, interface: Interface) -> World:
    return small_run(tmp_path_factory.mktemp("peer"), interface)


@pytest.fixture
async def serve(world: World, tmp_path: Path) -> AsyncIterator[Serve]:
    """`await serve(place)`: that attestor, listening."""
    async with AsyncExitStack() as stack:
        yield lambda place: stack.enter_async_context(serving_peer(world, tmp_path, place))


@pytest.fixture
async def node(world: World) -> AsyncIterator[str]:
    """URL of a node of the world's chain."""

    async def answer(request: web.Request) -> web.Response:
        asked = await request.json()
        try:
            said = {"result": await world.chain.call(asked["method"], asked["params"])}
        except RefusedError as error:
            said = {"error": {"code": -32000, "message": error.text}}
        return web.json_response({"jsonrpc": "2.0", "id": asked["id"]} | said)

    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
def explore(node: str, tmp_path: Path) -> Explore:
    """Run a command in a process of its own: exit code, JSON on stdout, stderr."""
    constants = {name: getattr(CONSTANTS, name) for name in CONSTANTS.__dataclass_fields__}
    deployment = {"chain_id": CHAIN_ID, "contracts": ADDRESSES, "block": 1, "rpc": [node], "run_id": RUN.hex()}
    (tmp_path / "devnet.json").write_text(json.dumps(deployment | {"constants": constants}))
    environment = dict(os.environ, XDG_DATA_HOME=str(tmp_path / "data"), XDG_CACHE_HOME=str(tmp_path / "cache"))
    environment |= {"PYTHONPATH": str(ROOT)}

    async def run(*arguments: str, founder: str | None = FOUNDER) -> tuple[int, Any, str]:
        named = ("--founder", founder) if founder else ()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ledger.explorer.cli", *arguments, *named, "--json",
            cwd=tmp_path, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        return process.returncode or 0, json.loads(out) if out else None, err.decode()

    return run


def served(report: Any) -> list[tuple[str, str, str]]:
    return [(row["address"], row["what"], row["verdict"]) for row in report["served"]]


def finding(report: Any, what: str) -> tuple[str, str]:
    return next((row["verdict"], row["text"]) for row in report["findings"] if row["what"] == what)


async def test_a_checkpoint_is_verified_from_a_peer_alone(serve: Serve, explore: Explore):
    peer = await serve(1)
    code, report, err = await explore("verify", "2", "--strict", "--peer", peer.address)
    assert (code, err) == (0, "")
    assert report["good"] and report["complete"]
    assert served(report) == [(peer.address, "records", "ok"), (peer.address, "model", "ok")]
    assert [signature["valid"] for signature in report["signatures"]] == [True] * 4
    assert {signature["peer"] for signature in report["signatures"]} <= {str(each) for each in PEERS}
    assert peer.asked[0] == ChainRequest(0)
    assert sum(isinstance(asked, ChunkRequest) for asked in peer.asked) == len(SCHEMA.chunks)


async def test_a_round_and_a_proof_need_no_folder_either(serve: Serve, explore: Explore, world: World):
    peer = await serve(1)
    code, found, _ = await explore("round", "4", "--peer", peer.address)
    assert (code, found["hash"]) == (0, world.records.record(4).hash().hex())
    code, found, _ = await explore("proof", FOUNDER, "--peer", peer.address)
    assert code == 0 and found["tally_root"] == f"0x{world.checkpoints[1].tally_root.hex()}"


async def test_another_peer_at_that_address_is_refused(serve: Serve, explore: Explore):
    peer = await serve(1)
    code, report, err = await explore("verify", "1", "--peer", address_as(peer.address, Identity.generate()))
    assert (code, report) == (69, None)
    assert "wrong peer id" in json.loads(err)["error"]
    assert peer.asked == []


async def test_who_takes_plaintext_only_is_refused(serve: Serve, explore: Explore):
    listener = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.ledger.plaintext_listener",
        cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert listener.stdin is not None and listener.stdout is not None
    try:
        address = (await listener.stdout.readline()).decode().strip()
        assert address.endswith(str(IDENTITIES[0].peer_id))
        code, report, err = await explore("verify", "1", "--peer", address)
        assert (code, report) == (69, None)
        assert "does not speak Noise" in json.loads(err)["error"]
        listener.stdin.write(b"?\n")
        assert int(await listener.stdout.readline()) == 0  # nobody was taken for anybody
    finally:
        listener.stdin.close()
        await listener.wait()


def richer(message: Any) -> Any:
    """A segment in which somebody trained more, under the certificate of the true record."""
    if not isinstance(message, ChainSegment):
        return message
    record = decode_as(Record, message.links[2].record)
    survivors = (replace(record.survivors[0], tokens=10**9), *record.survivors[1:])
    forged = replace(message.links[2], record=encode(replace(record, survivors=survivors)))
    return replace(message, links=(*message.links[:2], forged, *message.links[3:]))


def unsigned(message: Any) -> Any:
    """A segment whose last certificate is of another round."""
    if not isinstance(message, ChainSegment):
        return message
    last = Decision(message.links[-1].record, message.links[0].certificate)
    return replace(message, links=(*message.links[:-1], last))


def oversized(message: Any) -> Any:
    """The header of a frame that nobody has memory for."""
    if not isinstance(message, ChainSegment):
        return message
    header = (0xFFFFFFF0).to_bytes(4, "big") + bytes([Kind.FRAME, 0, 0x01, 0]) + (1).to_bytes(8, "big")
    assert len(header) == HEADER_BYTES
    return header


LIES = {"a record": (richer, "16"), "a certificate": (unsigned, "18"), "a frame that is too long": (oversized, "3 ")}


@pytest.mark.parametrize("lie", LIES)
async def test_who_sends_wrong_records_is_named_and_the_next_is_asked(lie: str, serve: Serve, explore: Explore):
    change, number = LIES[lie]
    liar, honest = await serve(1), await serve(2)
    liar.change = change
    code, report, err = await explore("verify", "2", "--strict", "--peer", liar.address, "--peer", honest.address)
    assert (code, err) == (0, "")
    assert liar.told
    assert served(report) == [
        (liar.address, "records", "bad"),
        (honest.address, "records", "ok"),
        (honest.address, "model", "ok"),
    ]
    assert f"refused ({number}" in report["served"][0]["text"]


def flipped(message: Any) -> Any:
    if isinstance(message, StateChunk) and message.index == 2:
        return replace(message, data=bytes([message.data[0] ^ 1]) + message.data[1:])
    return message


def shuffled(message: Any) -> Any:
    return replace(message, hashes=message.hashes[::-1]) if isinstance(message, Leaves) else message


@pytest.mark.parametrize("lie", [flipped, shuffled])
async def test_who_sends_a_wrong_piece_of_the_model_is_named_and_the_next_is_asked(
    lie: Callable[[Any], Any], serve: Serve, explore: Explore
):
    liar, honest = await serve(1), await serve(2)
    liar.change = lie
    code, report, err = await explore("verify", "2", "--strict", "--peer", liar.address, "--peer", honest.address)
    assert (code, err) == (0, "")
    assert liar.told
    assert served(report) == [
        (liar.address, "records", "ok"),
        (liar.address, "model", "bad"),
        (honest.address, "model", "ok"),
    ]
    assert "16 BAD_HASH" in report["served"][1]["text"]


async def test_a_model_that_nobody_has_any_more_is_said_to_be_gone(serve: Serve, explore: Explore):
    peer = await serve(1)
    peer.change = lambda message: Leaves(message.root, 0, ()) if isinstance(message, Leaves) else message
    code, report, _ = await explore("verify", "2", "--peer", peer.address)
    verdict, text = finding(report, "model file")
    assert (code, report["good"], verdict) == (0, True, "unchecked")
    assert "no peer that was asked has it any more; 4 of 5 of its committee signed" in text
    assert finding(report, "model root")[0] == "ok"
    assert served(report)[1] == (peer.address, "model", "lacks")
    assert (await explore("verify", "2", "--strict", "--peer", peer.address))[0] == 1


async def test_what_another_founder_signed_is_not_taken(serve: Serve, explore: Explore):
    peer = await serve(1)
    code, report, err = await explore("verify", "1", "--peer", peer.address, founder=str(PEERS[1]))
    assert (code, report) == (66, None)
    assert "12 NOT_A_MEMBER" in err


async def test_when_nobody_can_be_reached_the_command_says_who_was_tried(explore: Explore, unused_port: int):
    address = f"/ip4/127.0.0.1/tcp/{unused_port}/p2p/{PEERS[1]}"
    code, report, err = await explore("verify", "1", "--peer", address)
    assert (code, report) == (69, None)
    assert f"{address}: refused" in json.loads(err)["error"]


async def test_without_py_libp2p_the_command_says_what_to_install(explore: Explore, tmp_path: Path):
    (tmp_path / "libp2p.py").write_text("raise ImportError('not here')")
    code, report, err = await explore("verify", "1", "--peer", f"/ip4/127.0.0.1/tcp/1/p2p/{PEERS[1]}")
    assert (code, report) == (2, None)
    assert "pip install 'murmuration[libp2p]'" in json.loads(err)["remedy"]


async def test_nothing_else_imports_py_libp2p_and_the_light_client_no_hivemind():
    watched = "print([name for name in ('libp2p', 'trio', 'hivemind') if name in sys.modules])"
    code = f"import sys, ledger.explorer.cli, ledger.explorer.light\n{watched}\n"
    code += "import asyncio\nfrom dht.identity import Identity\nfrom ledger.explorer.dialler import Dialler\n"
    code += "async def main():\n    await (await Dialler.launch(Identity.generate())).shutdown()\n"
    code += f"asyncio.run(main())\n{watched}\n"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert out.decode().splitlines() == ["[]", "['libp2p', 'trio']"]


@pytest.mark.parametrize(
    ("arguments", "founder"),
    [
        (("--peer", f"/ip4/127.0.0.1/tcp/1/p2p/{PEERS[1]}"), None),
        (("--peer", f"/ip4/127.0.0.1/tcp/1/p2p/{PEERS[1]}"), "nobody"),
        (("--peer", f"/ip4/127.0.0.1/tcp/1/p2p/{PEERS[1]}", "--records", "."), FOUNDER),
        (("--peer", f"/ip4/127.0.0.1/tcp/1/p2p/{PEERS[1]}", "--peer-timeout", "-1"), FOUNDER),
        (("--peer", "/ip4/127.0.0.1/tcp/1"), FOUNDER),
        (("--peer", f"/ip4/127.0.0.1/udp/1/quic-v1/p2p/{PEERS[1]}"), FOUNDER),
        (("--peer", f"/ip4/127.0.0.1/tcp/1/ws/p2p/{PEERS[1]}"), FOUNDER),
        ((), FOUNDER),
    ],
)
async def test_options_that_cannot_be_meant(explore: Explore, arguments: tuple[str, ...], founder: str | None):
    code, report, err = await explore("verify", "1", *arguments, founder=founder)
    assert (code, report) == (2, None)
    assert json.loads(err)["remedy"]


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
