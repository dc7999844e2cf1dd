"""Asking one peer for records and states: what is believed, what is refused, and where it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from averaging.chain import Chain, ChainRequest, ChainSegment
from averaging.record import Record
from averaging.state_chunks import ChunkRequest, NotHeldError
from dht.envelope import Envelope, frame_of, seal, signed_digest
from dht.errors import ConfigError, DataError, ProtocolError, Refusal, StorageError, UnreachableError
from dht.identity import Identity, PeerId
from dht.transport import FrameHandler, Part, RequestHandler
from dht.wire import decode, decode_as
from ledger.explorer import fetch, light
from ledger.explorer.fetch import RecordsOf, StateFetch
from ledger.explorer.light import LightClient, Served
from ledger.explorer.options import Common, FromPeers
from peer.catch_up import Donor
from peer.state import CanonicalState, StateSchema
from peer.store import StateStore
from tests.ledger.records import KEYS, RUN, add_round, new_chain
from tests.ledger.world import states

ME, PEER = Identity.generate(), KEYS[1]
FOUNDER = KEYS[0].peer_id


class Line:
    """A host with one peer at the other end, which answers by `says` (an envelope, a message, or None) and `donor`."""

    def __init__(self, says: Callable[[ChainRequest], Any] = lambda request: None, donor: Donor | None = None) -> None:
        self.says, self.donor = says, donor
        self.asked: list[Any] = []
        self.on_refused: Callable[[PeerId, ProtocolError], None] = lambda peer, error: None
        self._on_frame: FrameHandler

    def serve(self, on_frame: FrameHandler, on_request: RequestHandler) -> None:
        self._on_frame = on_frame

    async def send(self, to: PeerId, parts: Sequence[Part], *, bulk: bool = False) -> None:
        envelope = decode_as(Envelope, b"".join(parts))
        assert (to, envelope.check(RUN)) == (PEER.peer_id, ME.peer_id)
        self.asked.append(envelope.message())
        said = self.says(envelope.message())
        for each in said if isinstance(said, list) else [said]:
            if each is not None:
                self.hear(each)

    def hear(self, said: Any) -> None:
        envelope = said if isinstance(said, Envelope) else seal(PEER, RUN, 0, said)
        try:
            self._on_frame(PEER.peer_id, memoryview(frame_of(envelope)))
        except ProtocolError as error:
            self.on_refused(PEER.peer_id, error)

    async def request(self, to: PeerId, parts: Sequence[Part], *, timeout: float) -> memoryview:
        assert self.donor is not None
        self.asked.append(decode(b"".join(parts)))
        reply = await self.donor.answer(ME.peer_id, memoryview(b"".join(parts)))
        return memoryview(b"".join(reply))


@pytest.fixture(scope="module")
def chain() -> Chain:
    made = new_chain()
    for number in range(6):
        add_round(made, void=number == 3)
    return made


def records(line: Line, round_: int = 6, founder: PeerId = FOUNDER) -> Chain:
    async def ask() -> Chain:
        return (await RecordsOf(line, ME, PEER.peer_id, RUN).chain(founder, round_))[0]  # type: ignore[arg-type]

    return asyncio.run(asyncio.wait_for(ask(), 30))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not answered at once is not waited for."""
    monkeypatch.setattr(fetch, "REPEAT_SECONDS", (0.01, 0.01))


def piece(chain: Chain, after: int, most: int = 512) -> ChainSegment:
    """What a peer with this chain answers, with fewer links than would fit."""
    segment = chain.segment(after)
    return replace(segment, links=segment.links[:most])


def honest(chain: Chain, most: int = 512) -> Callable[[ChainRequest], ChainSegment]:
    return lambda request: piece(chain, request.after_round, most)


def test_records_come_in_segments_until_the_round_is_there(chain: Chain):
    line = Line(honest(chain, 2))
    assert records(line, 6).tip == chain.tip
    assert line.asked == [ChainRequest(0), ChainRequest(2), ChainRequest(4)]
    assert records(Line(honest(chain, 2)), 3).head == chain.record(4)  # no more than is needed
    assert records(Line(honest(chain, 2)), 0).head.round == 2


def test_a_peer_with_fewer_records_lacks_them(chain: Chain):
    with pytest.raises(DataError, match="up to round 6, not 7"):
        records(Line(honest(chain)), 7)


def test_a_question_without_an_answer_is_asked_again(chain: Chain, hasty: None):
    answers = iter([None, chain.segment(0)])
    line = Line(lambda request: next(answers))
    assert records(line).tip == chain.tip
    assert line.asked == [ChainRequest(0), ChainRequest(0)]
    with pytest.raises(UnreachableError, match="no records"):
        records(Line())


def test_late_answers_and_other_messages_do_no_harm(chain: Chain):
    late, answer = piece(chain, 0, 2), honest(chain, 2)
    line = Line(lambda request: [ChainRequest(9), *([late] if request.after_round else []), answer(request)])
    assert records(line).tip == chain.tip


def test_more_bytes_than_allowed_are_too_many(chain: Chain, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetch, "MOST_RECORD_BYTES", 3000)
    with pytest.raises(ProtocolError) as caught:
        records(Line(honest(chain)))
    assert caught.value.refusal is Refusal.OVERSIZED


def other_founding(segment: ChainSegment) -> ChainSegment:
    if not segment.links or decode_as(Record, segment.links[0].record).round == 1:
        return segment
    return replace(segment, founding=seal(KEYS[0], RUN, 0, replace(segment.founding.message(), nonce=bytes(32))))


def garbled(segment: ChainSegment) -> Envelope:
    """Signed well, and no message."""
    body = b"\x51\x80"
    return Envelope(RUN, 0, PEER.peer_id, body, PEER.sign(signed_digest(RUN, 0, PEER.peer_id, body)))


LIES: dict[str, tuple[Callable[[ChainSegment], Any], Refusal]] = {
    "of another run": (lambda segment: seal(PEER, bytes(32), 0, segment), Refusal.WRONG_RUN),
    "of somebody else": (lambda segment: seal(KEYS[2], RUN, 0, segment), Refusal.WRONG_SENDER),
    "forged": (lambda segment: replace(seal(PEER, RUN, 0, segment), signature=bytes(64)), Refusal.BAD_SIGNATURE),
    "no message": (garbled, Refusal.MALFORMED),
    "another founding later": (other_founding, Refusal.BAD_HASH),
    "half a certificate": (
        lambda segment: replace(
            segment, links=(replace(segment.links[0], certificate=segment.links[0].certificate[:-1]),)
        ),
        Refusal.TRUNCATED,
    ),
    "a gap": (lambda segment: replace(segment, links=(segment.links[0], *segment.links[2:])), Refusal.STALE),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_does_not_hold_is_refused(lie: str, chain: Chain, hasty: None):
    change, refusal = LIES[lie]
    with pytest.raises(ProtocolError) as caught:
        records(Line(lambda request: change(piece(chain, request.after_round, 4))))
    assert caught.value.refusal is refusal


def test_the_founder_must_have_signed_the_founding(chain: Chain):
    with pytest.raises(ProtocolError):
        records(Line(honest(chain)), founder=KEYS[1].peer_id)


# -- states ------------------------------------------------------------------------------------------------------


def donor_of(folder: Path, state: CanonicalState, kept: bool = True) -> Donor:
    store = StateStore(folder, state.schema)
    store.save(3, state.root(), state.leaves(), state.chunks(), [])
    return Donor(store, {state.root(): 3}.get if kept else lambda root: None)


LONG = StateSchema(RUN, tuple(f"{number:05d}" + "x" * 1000 for number in range(300)), ((1,),) * 300)
SHORT = StateSchema(RUN, ("a",), ((70_000,),))
KINDS = StateSchema(RUN, ("a",), ((70_000,),), domains=3)


def state_of(schema: StateSchema) -> CanonicalState:
    return CanonicalState.genesis(schema, states(1).parameters[:1].repeat(schema.elements), 0.25)


@pytest.mark.parametrize("schema", [SHORT, LONG, KINDS])
def test_the_root_is_recomputed_over_all_chunks(schema: StateSchema, tmp_path: Path):
    state = state_of(schema)
    line, fetched = Line(donor=donor_of(tmp_path, state)), StateFetch(RUN, state.root())
    assert asyncio.run(fetched.go_on(line, PEER.peer_id)) == state.root()  # type: ignore[arg-type]
    assert fetched.size == sum(schema.sections)
    assert sum(isinstance(asked, ChunkRequest) for asked in line.asked) == len(schema.chunks)
    assert len(LONG.header) > 256 * 1024  # a header of several chunks is one of the cases


def test_another_peer_goes_on_where_one_stopped(tmp_path: Path):
    state = state_of(SHORT)
    fetched = StateFetch(RUN, state.root())
    first, second = (Line(donor=donor_of(tmp_path / name, state)) for name in "ab")
    request = first.request

    async def dying(to: PeerId, parts: Sequence[Part], *, timeout: float) -> memoryview:
        if len(first.asked) == 4:
            raise UnreachableError("gone")
        return await request(to, parts, timeout=timeout)

    first.request = dying  # type: ignore[method-assign]
    with pytest.raises(UnreachableError):
        asyncio.run(fetched.go_on(first, PEER.peer_id))  # type: ignore[arg-type]
    assert 0 < fetched.size < sum(SHORT.sections)
    assert asyncio.run(fetched.go_on(second, PEER.peer_id)) == state.root()  # type: ignore[arg-type]
    assert second.asked[0] == ChunkRequest(state.root(), 2)


def test_who_does_not_keep_a_state_says_so(tmp_path: Path):
    state = state_of(SHORT)
    line = Line(donor=donor_of(tmp_path, state, kept=False))
    with pytest.raises(NotHeldError):
        asyncio.run(StateFetch(RUN, state.root()).go_on(line, PEER.peer_id))  # type: ignore[arg-type]


def test_chunks_under_a_root_that_are_no_state_of_the_run_are_named(tmp_path: Path):
    state = state_of(SHORT)
    line = Line(donor=donor_of(tmp_path, state))
    with pytest.raises(StorageError, match="no state of this run"):
        asyncio.run(StateFetch(bytes(32), state.root()).go_on(line, PEER.peer_id))  # type: ignore[arg-type]


# -- several peers -----------------------------------------------------------------------------------------------


def address(place: int) -> str:
    return f"/ip4/192.0.2.{place}/tcp/1/p2p/{KEYS[place].peer_id}"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], LightClient]:
    """A client of peers that are reached as told: by an error, or a line; None hangs for ever."""

    def make(lines: dict[str, Any], seconds: float = 60.0) -> LightClient:
        @asynccontextmanager
        async def dialled(where: str) -> Any:
            if lines[where] is None:
                await asyncio.Event().wait()
            if isinstance(lines[where], Exception):
                raise lines[where]
            yield lines[where], ME, PEER.peer_id

        monkeypatch.setattr(light, "_dialled", dialled)
        return LightClient(tuple(lines), RUN, FOUNDER, seconds)

    return make


def test_peers_are_asked_in_turn_until_one_serves_what_holds(client: Any, chain: Chain, tmp_path: Path):
    state = state_of(SHORT)
    behind, liar = new_chain(), Line(lambda request: LIES["forged"][0](chain.segment(0)))
    lines = {
        address(1): TimeoutError(),
        address(2): UnreachableError(f"{address(2)}: refused"),
        address(3): Line(honest(behind), donor_of(tmp_path / "poor", state, kept=False)),
        address(4): liar,
        address(5): Line(honest(chain), donor_of(tmp_path / "rich", state)),
        address(6): Line(),
    }
    asking = client(lines)

    async def both() -> tuple[Any, Any]:
        return await asking.records(6), await asking.model(state.root())

    history, root = asyncio.run(both())
    assert history.chain.tip == chain.tip and history.founder_known and history.refreshed() is history
    assert history.model(6) is None
    assert root == state.root()
    words = [(served.address, served.what, served.verdict) for served in asking.served[:5]]
    verdicts = ("unreachable", "unreachable", "lacks", "bad", "ok")
    assert words == [(address(place), "records", verdict) for place, verdict in enumerate(verdicts, 1)]
    assert asking.served[0].text == "not done in 60 s" and asking.served[1].text == "refused"
    assert address(4) not in [served.address for served in asking.served if served.what == "model"]
    assert asking.served[-1] == Served(address(5), "model", "ok", f"{sum(SHORT.sections):,} bytes")
    assert lines[address(6)].asked == []


def test_when_nobody_answers_nobody_is_reachable_and_else_there_are_no_records(client: Any):
    with pytest.raises(UnreachableError, match="refused"):
        asyncio.run(client({address(1): UnreachableError(f"{address(1)}: refused")}).records(6))
    with pytest.raises(UnreachableError, match=r"not done in 0\.01 s"):
        asyncio.run(client({address(1): None}, 0.01).records(6))
    with pytest.raises(DataError, match="up to round 0"):
        asyncio.run(client({address(1): TimeoutError(), address(2): Line(honest(new_chain()))}).records(6))


def test_what_the_client_is_told_is_bounded():
    for addresses, seconds in [([address(1)] * 33, 1.0), ([address(1)], 0.0), ([address(1)], 1e6)]:
        with pytest.raises(ConfigError):
            LightClient(addresses, RUN, FOUNDER, seconds)
    with pytest.raises(ConfigError):
        light.light_client(Common(run=Path("run.toml")), FromPeers(peer=(address(1),), founder=str(FOUNDER)), RUN)
    assert light.light_client(Common(), FromPeers(), RUN) is None
