"""The evidence that a peer holds, and how it travels: announced to members, fetched in pieces, verified, passed on.

One proof per accused and kind is enough, and bounds what liars can make others keep. Nothing is believed: each piece
of evidence is verified before it counts, is written down or is announced to anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated

from averaging.actions import Action, CancelTimer, Note, Send, SetTimer, TimerKey
from averaging.evidence import EVIDENCE_CAP, Proof, name_of, verify
from averaging.layout import Layout
from averaging.work import Blame
from dht.envelope import Envelope
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from dht.wire import U16, U32, Bytes32, Length, PeerIdBytes, Range, message

PIECE_BYTES = 256 << 10
MAX_PIECES = -(-EVIDENCE_CAP // PIECE_BYTES)
MAX_HELD = 256
"""Proofs kept, so that a swarm of fresh identities that contradict themselves fills no disk."""
_MAX_FETCHED = 4
_PATIENCE = 5.0
EVIDENCE_TIMER: TimerKey = ("evidence", 0, 0)


@message(tag=0x29, cap=256)
@dataclass(frozen=True, slots=True)
class Accusation:
    """I hold evidence of this name, so many bytes, against this peer."""

    name: Bytes32
    accused: PeerIdBytes
    kind: Annotated[str, Length(1, 32)]
    size: Annotated[U32, Range(2, EVIDENCE_CAP)]


@message(tag=0x2A, cap=128)
@dataclass(frozen=True, slots=True)
class EvidenceRequest:
    """Send me this piece of that evidence."""

    name: Bytes32
    index: U16


@message(tag=0x2B, cap=PIECE_BYTES + 256)
@dataclass(frozen=True, slots=True)
class EvidencePiece:
    """A piece of a frame of evidence: 256 KiB from `index` * 256 KiB on, the last one what is left."""

    name: Bytes32
    index: U16
    data: Annotated[bytes, Length(1, PIECE_BYTES)]


@dataclass
class _Fetch:
    """Evidence on its way from one of those who announced it."""

    size: int
    sources: list[PeerId]
    data: bytearray = field(default_factory=bytearray)
    progress: bool = True


class Docket:
    """Proofs by accused and kind. `seal` signs a message of round 0."""

    def __init__(
        self, me: PeerId, run: bytes, layout: Layout, seal: Callable[[object], Envelope], held: Iterable[bytes] = ()
    ) -> None:
        """`held`: frames kept from an earlier life; those that prove nothing here are ignored."""
        self._me, self._run, self._layout, self._seal = me, run, layout, seal
        self._proofs: dict[tuple[PeerId, str], bytes] = {}
        self._frames: dict[bytes, bytes] = {}
        self._told: dict[bytes, set[PeerId]] = {}
        self._fetching: dict[bytes, _Fetch] = {}
        self._refused: set[PeerId] = set()
        for frame in held:
            with suppress(ProtocolError):
                self.add(frame)

    @property
    def accused(self) -> frozenset[PeerId]:
        """Peers that are proven liars."""
        return frozenset(peer for peer, _ in self._proofs)

    def add(self, frame: bytes) -> Proof | None:
        """Verify and keep evidence; None if I hold as good or have no room. Raises ProtocolError when it proves
        nothing."""
        if name_of(frame) in self._frames or len(self._proofs) >= MAX_HELD:
            return None
        proof = verify(frame, self._run, self._layout.ring_bits, self._layout.pack)
        if (proof.accused, proof.kind) in self._proofs:
            return None
        self._proofs[proof.accused, proof.kind] = name_of(frame)
        self._frames[name_of(frame)] = frame
        return proof

    def tell(self, peers: Collection[PeerId]) -> list[Action]:
        """Announce what I hold against any of these peers to the others, each once."""
        actions: list[Action] = []
        for (accused, kind), name in self._proofs.items():
            if accused not in peers:
                continue
            told = self._told.setdefault(name, {self._me, accused})
            notice = Accusation(name, bytes(accused), kind, len(self._frames[name]))
            fresh = sorted(set(peers) - told)
            told.update(fresh)
            actions += [Send(peer, envelope) for envelope in [self._seal(notice)] for peer in fresh]
        return actions

    def keep(self, frame: bytes, concerned: Collection[PeerId]) -> tuple[list[Action | Blame], Proof | None]:
        """`add`, and what to do if it was news: write it down, and announce it to those whom it concerns."""
        proof = self.add(frame)
        return ([], None) if proof is None else ([Blame(proof, frame), *self.tell(concerned)], proof)

    def receive(
        self, sender: PeerId, body: object, concerned: Collection[PeerId]
    ) -> tuple[list[Action | Blame], Proof | None]:
        """Take a message about evidence; what to do, and what is proven when the last piece of a proof came.

        Raises ProtocolError for a piece that nobody asked for, and for evidence that proves nothing.
        """
        if isinstance(body, Accusation):
            return [*self._heard_of(sender, body)], None
        if isinstance(body, EvidenceRequest):
            data = self._frames.get(body.name, b"")[body.index * PIECE_BYTES :][:PIECE_BYTES]
            return ([Send(sender, self._seal(EvidencePiece(body.name, body.index, data)))] if data else []), None
        assert isinstance(body, EvidencePiece)
        actions, frame = self._take(sender, body)
        if frame is None:
            return [*actions], None
        try:
            kept, proof = self.keep(frame, concerned)
        except ProtocolError:
            self._refused.add(sender)  # fetch no more from it
            raise
        return [*actions, *kept], proof

    def timeout(self) -> list[Action]:
        """What did not get on is asked of the next peer that announced it; without one it is forgotten."""
        for name, fetch in list(self._fetching.items()):
            if not fetch.progress:
                fetch.sources.pop(0)
                if not fetch.sources:
                    del self._fetching[name]
                    continue
            fetch.progress = False
        asks = [ask for name, fetch in self._fetching.items() for ask in self._ask(name, fetch)]
        return [*asks, SetTimer(EVIDENCE_TIMER, _PATIENCE)] if self._fetching else []

    def _heard_of(self, sender: PeerId, notice: Accusation) -> list[Action]:
        known = self._proofs.get((PeerId(notice.accused), notice.kind))
        if known is not None:
            self._told.setdefault(known, {self._me, PeerId(notice.accused)}).add(sender)
        if known is not None or sender in self._refused or len(self._proofs) >= MAX_HELD:
            return []
        if fetch := self._fetching.get(notice.name):
            if sender not in fetch.sources:
                fetch.sources.append(sender)
            return []
        if len(self._fetching) >= _MAX_FETCHED or any(sender in fetch.sources[:1] for fetch in self._fetching.values()):
            return []
        fetch = self._fetching[notice.name] = _Fetch(notice.size, [sender])
        timer = [SetTimer(EVIDENCE_TIMER, _PATIENCE)] if len(self._fetching) == 1 else []
        return [*timer, *self._ask(notice.name, fetch)]

    def _ask(self, name: bytes, fetch: _Fetch) -> list[Action]:
        request = EvidenceRequest(name, len(fetch.data) // PIECE_BYTES)
        return [Send(fetch.sources[0], self._seal(request))]

    def _take(self, sender: PeerId, piece: EvidencePiece) -> tuple[list[Action], bytes | None]:
        fetch = self._fetching.get(piece.name)
        if fetch is None or sender not in fetch.sources:
            raise ProtocolError(Refusal.UNEXPECTED, "a piece of evidence that was not asked for")
        start = len(fetch.data)
        if piece.index * PIECE_BYTES != start:
            return [], None  # repeated after a slow answer
        if len(piece.data) != min(PIECE_BYTES, fetch.size - start):
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"piece {piece.index} of evidence with {len(piece.data)} bytes")
        fetch.data += piece.data
        fetch.progress = True
        if len(fetch.data) < fetch.size:
            return self._ask(piece.name, fetch), None
        del self._fetching[piece.name]
        frame = bytes(fetch.data)
        done: list[Action] = [] if self._fetching else [CancelTimer(EVIDENCE_TIMER)]
        if name_of(frame) != piece.name:
            # Somebody lied on the way; whoever else has it can still announce it.
            self._refused.update(fetch.sources[:1])
            return [*done, Note("evidence that is not what was announced", sender)], None
        return done, frame
