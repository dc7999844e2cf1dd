"""Peers that lie: our own protocol code with its checks taken out, in the simulator's network, with an oracle.

Every peer of an `Arena` is an `EvilPeer`: the honest participant, whose actions go through a `Plot`. Without one it is
honest. A plot sees each action before the driver does, and may drop it, change it, sign anything in its own name, and
add to it; the liar's guard forgets everything, and what it uploads and sums up can be anything. The arena records
every refusal with who refused whom, and watches that no pair of seeds of one member can be put together.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgpack

from averaging.actions import Note, Send
from averaging.bulk import Chunk, parse
from averaging.cohort import Cohort
from averaging.encoding import signed
from averaging.guard import MemoryGuard
from averaging.messages import Unmask
from averaging.params import threshold
from averaging.participant import Participant
from averaging.plausible import ImplausibleSumError, check_range
from averaging.roster import cohort_order
from averaging.scales import levels
from averaging.survivors import bits
from averaging.work import ParticipantAction
from dht.envelope import Envelope, seal, signed_digest
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId
from dht.wire import decode_as, encode, message_type
from tests.sim.swarm import Peer, Swarm

_REFUSED = re.compile(r"refused \((\d+) [A-Z_]+\)")

M = TypeVar("M")


def forge(identity: Identity, run: bytes, round_: int, cls: type, **fields: Any) -> Envelope:
    """A signed message of class `cls` with any fields whatever: the codec without its checks."""
    body = bytes([message_type(cls).tag]) + msgpack.packb(fields)
    signature = identity.sign(signed_digest(run, round_, identity.peer_id, body))
    return Envelope(run, round_, bytes(identity.peer_id), body, signature)


class ForgetfulGuard(MemoryGuard):
    """A guard that keeps no promise."""

    def vote(self, sid: bytes, digest: bytes) -> None: ...
    def open_round(self, run: bytes, round_: int, sid: bytes) -> None: ...
    def release(self, sid: bytes, choices: Any) -> None: ...
    def ballot(self, run: bytes, round_: int, view: int, kind: str, value: bytes) -> None: ...
    def has_opened(self, run: bytes, round_: int) -> None: ...


class Plot:
    """What a liar does. Every hook is honest unless overridden; `told` counts the lies by name."""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()

    def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
        """Instead of an action."""
        return (action,)

    def hear(self, evil: EvilPeer, sender: PeerId, envelope: Envelope) -> Iterable[ParticipantAction]:
        """Besides what follows from a message that was taken."""
        return ()

    def ship(self, evil: EvilPeer, to: PeerId, chunk: Chunk) -> Chunk | None:
        """Instead of a bulk frame."""
        return chunk

    def encode(self, evil: EvilPeer, chunk: int, ring: Any) -> None:
        """Change an encoded chunk in place before it is masked."""

    def summed(self, evil: EvilPeer, chunk: int, ring: Any) -> None:
        """Change a sum in place before it is signed."""


@dataclass(frozen=True)
class Refused:
    """Somebody refused a message."""

    by: PeerId
    sender: PeerId
    refusal: Refusal
    text: str


class _Work:
    """A cohort as the liar's driver sees it: masking and summing go through its plot."""

    def __init__(self, evil: EvilPeer, cohort: Cohort) -> None:
        self._evil, self._cohort = evil, cohort

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cohort, name)

    def mask(self, chunk: int, ring: Any) -> Any:
        self._evil.plot.encode(self._evil, chunk, ring)
        return self._cohort.mask(chunk, ring)

    def reduce(self, chunk: int) -> None:
        self._cohort.reduce(chunk)
        ring = self._cohort.sums.ring(chunk).copy()
        before = ring.tobytes()
        self._evil.plot.summed(self._evil, chunk, ring)
        if ring.tobytes() != before:
            self._cohort.sums._unpublished.remove(chunk)
            self._cohort.sums.computed(chunk, self._cohort.me, ring)


class EvilPeer(Participant):
    """A participant whose actions go through a plot."""

    def __init__(self, arena: Arena, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.arena = arena

    @property
    def identity(self) -> Identity:
        """The liar's own key; it has nobody else's."""
        return self._identity

    @property
    def plot(self) -> Plot:
        """What it is up to."""
        return self.arena.plots.get(self.peer_id, HONEST)

    @property
    def in_cohort(self) -> Cohort | None:
        """The real cohort that it is in."""
        return self.current.cohort if self.current else None

    def say(self, to: PeerId, message: object, round_: int | None = None, run: bytes | None = None) -> Send:
        """Anything, signed by the liar."""
        return Send(to, seal(self._identity, run or self.params.run, self.round if round_ is None else round_, message))

    def tell(self, peers: Iterable[PeerId], message: object) -> list[Send]:
        """The same to several."""
        return [self.say(peer, message) for peer in peers if peer != self.peer_id]

    def cohort(self, sid: bytes) -> Any:
        found = super().cohort(sid)
        return found if found is None or self.plot is HONEST else _Work(self, found)

    def uploaded(self, sid: bytes) -> list[ParticipantAction]:
        return self._scheme(self._unwrapped(Participant.uploaded, sid))

    def reduced(self, sid: bytes, chunks: tuple[int, ...]) -> list[ParticipantAction]:
        return self._scheme(self._unwrapped(Participant.reduced, sid, chunks))

    def checked(self, sid: bytes, chunks: tuple[int, ...]) -> list[ParticipantAction]:
        return self._scheme(self._unwrapped(Participant.checked, sid, chunks))

    def _unwrapped(self, call: Callable[..., list[ParticipantAction]], sid: bytes, *rest: Any) -> Any:
        """`_after_cohort` compares cohorts by identity: it must see the real one."""
        plot = self.arena.plots.pop(self.peer_id, None)
        try:
            return call(self, sid, *rest)
        finally:
            if plot is not None:
                self.arena.plots[self.peer_id] = plot

    def receive_chunk(self, sender: PeerId, chunk: Chunk) -> list[ParticipantAction]:
        with_refusal = partial(self._unwrapped, lambda me, sid: Participant.receive_chunk(me, sender, chunk), chunk.sid)
        return self._scheme(self._noting(sender, with_refusal))

    def receive(self, sender: PeerId, frame: bytes | memoryview) -> list[ParticipantAction]:
        actions = list(self._scheme(self._noting(sender, lambda: Participant.receive(self, sender, frame))))
        if self.plot is not HONEST:
            actions += self.plot.hear(self, sender, decode_as(Envelope, frame))
        return actions

    def _noting(self, sender: PeerId, call: Callable[[], list[ParticipantAction]]) -> list[ParticipantAction]:
        try:
            return call()
        except ProtocolError as error:
            self.arena.refused.append(Refused(self.peer_id, sender, error.refusal, error.message))
            raise

    def _scheme(self, actions: Iterable[ParticipantAction]) -> list[ParticipantAction]:
        changed = [other for action in actions for other in self.plot.act(self, action)]
        self.arena.saw(self, changed)
        return changed


def _through_the_plot(name: str) -> Callable[..., list[ParticipantAction]]:
    honest = getattr(Participant, name)

    def method(self: EvilPeer, *arguments: Any, **named: Any) -> list[ParticipantAction]:
        try:
            return self._scheme(honest(self, *arguments, **named))
        except ProtocolError:
            if self.plot is HONEST:
                raise
            return []  # a liar's own code may refuse what it lied about

    return method


for _name in ("start", "learned", "timeout", "trained", "applied", "holds", "fetch_failed", "suspect"):
    setattr(EvilPeer, _name, _through_the_plot(_name))

HONEST = Plot()


class Arena(Swarm):
    """A swarm in which some peers have a plot."""

    def __init__(self, peers: int, seed: int, **changes: Any) -> None:
        super().__init__(peers, seed, **changes)
        self.plots: dict[PeerId, Plot] = {}
        self.refused: list[Refused] = []
        self.kinds = dict.fromkeys(self.order, partial(EvilPeer, self))  # type: ignore[arg-type]
        self.answers: dict[PeerId, list[bytes]] = defaultdict(list)
        self._kept: dict[tuple[bytes, int], dict[str, set[int]]] = defaultdict(lambda: {"a": set(), "b": set()})
        self._sizes: dict[bytes, int] = {}
        self._liars_in: dict[bytes, set[int]] = {}

    def corrupt(self, plot: Plot, *liars: PeerId) -> Plot:
        """These peers follow the plot from now on, and their guards forget."""
        for liar in liars:
            self.plots[liar] = plot
            self.watch.liars.add(liar)
            self.peers[liar].guard = ForgetfulGuard()
            participant = self.peers[liar].participant
            if participant is not None:
                participant._guard = self.peers[liar].guard
        return plot

    @property
    def honest(self) -> list[PeerId]:
        """Peers that never lied."""
        return [peer for peer in self.order if peer not in self.watch.liars]

    def peer(self, peer: PeerId) -> EvilPeer:
        """A living peer's participant."""
        participant = self.peers[peer].participant
        assert isinstance(participant, EvilPeer)
        return participant

    def deliver(self, sender: PeerId, to: PeerId, frame: bytes, *, bulk: bool = False) -> None:
        if to not in self.peers:  # a stranger
            self.answers[to].append(frame)
            return
        plot = self.plots.get(sender)
        if bulk and plot is not None:
            chunk = plot.ship(self.peer(sender), to, parse(memoryview(frame)))
            if chunk is None:
                return
            frame = b"".join(bytes(part) for part in chunk.parts())
        super().deliver(sender, to, frame, bulk=bulk)

    def stranger(self, stranger: Identity, to: PeerId, message: object, round_: int | None = None) -> None:
        """A peer that is none of the swarm's sends something signed; the answers are in `answers`."""
        envelope = seal(stranger, self.run_id, self.peer(to).round if round_ is None else round_, message)
        with suppress(ProtocolError):  # noted in `refused`
            self._act(self.peers[to], self.peer(to).receive(stranger.peer_id, encode(envelope)))

    def _apply(self, peer: Any, sid: bytes) -> None:
        """As the learner does: sums beyond what honest members can have made are nobody's to apply."""
        aggregate, layout = peer.participant.aggregate(sid), self.params.layout
        if aggregate is None:
            return
        try:
            top = levels(layout, aggregate.members)
            survivors, data = len(aggregate.survivors), enumerate(aggregate.sums[: layout.chunks])
            check_range((signed(layout, chunk, ring, survivors, top) for chunk, ring in data), top, survivors)
        except ImplausibleSumError as error:
            self.notes.append(f"{self.now:.2f} {peer.id.short} {error.message}")
            self._call(peer, lambda p: p.rejected(sid))
        else:
            super()._apply(peer, sid)

    def saw(self, peer: EvilPeer, actions: Iterable[ParticipantAction]) -> None:
        """Note which shares an honest peer releases."""
        tag = message_type(Unmask).tag
        for action in actions:
            if isinstance(action, Send) and isinstance(action.message, Envelope) and action.message.body[0] == tag:
                cohort = peer.in_cohort
                message = action.message.message()
                if cohort is None or cohort.sid != message.sid or peer.peer_id in self.watch.liars:
                    continue
                self._sizes[message.sid] = len(cohort.peers)
                self._liars_in[message.sid] = {i for i, p in enumerate(cohort.peers) if p in self.watch.liars}
                for victim in range(len(cohort.peers)):
                    kind = "b" if victim in bits(message.survivors) else "a"
                    self._kept[message.sid, victim][kind].add(cohort.me)

    def check(self) -> None:
        """The swarm's oracle, and that of seeds."""
        super().check()
        self.check_seeds()

    def check_seeds(self) -> None:
        """Whatever liars add of their own shares, nobody's two seeds can both be put together."""
        for (sid, victim), kinds in self._kept.items():
            liars, needed = self._liars_in[sid], threshold(self._sizes[sid])
            if victim not in liars:
                assert min(len(held | liars) for held in kinds.values()) < needed, "a pair of seeds is out"

    def _do(self, peer: Peer, action: object) -> None:
        # What came before its time is refused when its time has come, and a bad link after those before it: by a note.
        if isinstance(action, Note) and action.peer is not None and (found := _REFUSED.search(action.text)):
            self.refused.append(Refused(peer.id, action.peer, Refusal(int(found[1])), action.text))
        super()._do(peer, action)

    def refusals_of(self, liar: PeerId) -> Counter[Refusal]:
        """How honest peers refused a liar."""
        return Counter(r.refusal for r in self.refused if r.sender == liar and r.by not in self.watch.liars)

    def order_in(self, round_: int) -> tuple[PeerId, ...]:
        """All peers in the order that numbers the members of a round's cohort, if they all join it."""
        chain = self.peer(self.honest[0]).chain
        assert chain is not None and chain.head.round == round_ - 1
        return cohort_order(chain.beacon, round_, self.order)

    def goes_on(self, rounds: int = 2, limit: float = 400.0) -> None:
        """The honest peers decide `rounds` more rounds, one of them not void, and hold one state: the oracle agrees."""
        height = self.height()
        assert self.run(lambda: self.reached(height + rounds, self.honest), limit), f"stuck at {self.height()}"
        later = [record for r, found in self.records.items() if r > height for record in found.values()]
        assert any(not record.void for record in later), "every round was void"
        self.check()


def said(action: ParticipantAction, cls: type[M]) -> M | None:
    """The message, if this action sends one of this class."""
    if not isinstance(action, Send) or not isinstance(action.message, Envelope):
        return None
    if action.message.body[0] != message_type(cls).tag:
        return None
    body: M = action.message.message()
    return body


def started(peers: int = 8, seed: int = 1, **changes: Any) -> Arena:
    """An arena that has gone through its first round, in which nobody lies."""
    arena = Arena(peers, seed, **changes)
    arena.start()
    assert arena.run(lambda: arena.reached(1), 60)
    return arena


def others(evil: EvilPeer) -> Iterator[PeerId]:
    """The other members of the liar's cohort."""
    cohort = evil.in_cohort
    return (peer for peer in (cohort.peers if cohort else ()) if peer != evil.peer_id)
