"""What a member has received in one sid. Messages are kept whenever they arrive, each checked by itself.

What follows from them is `averaging.cohort`'s. A message that contradicts an earlier one of its sender, or that nobody
could send in good faith, is refused here and leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakMethod

from averaging.auditing import Audit, Audited, Checks, Unshown
from averaging.bulk import BulkKind, Chunk
from averaging.dealing import Dealing
from averaging.guard import Guard
from averaging.keys import MemberSecrets, pair_key, self_key
from averaging.masking import Masker
from averaging.messages import (
    AuditShares,
    Manifest,
    Missing,
    Ping,
    Ready,
    Receipt,
    Seating,
    Shares,
    SumHashes,
    Survivors,
    Unmask,
    Vote,
)
from averaging.params import RunParams, threshold, tolerated
from averaging.reducing import Duties, Inputs, Opening
from averaging.roster import CheckedRoster
from averaging.statements import Statements
from averaging.sums import Sums
from averaging.survivors import Certified, SurvivorCertificate
from dht.errors import ProtocolError, Refusal
from dht.identity import Identity, PeerId
from dht.transport import Part
from dht.wire import digest, encode


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt cannot give a sum. `opened`: shares were released, so this round gets no other attempt from me."""

    reason: str
    opened: bool
    laggards: tuple[PeerId, ...]


class Collecting:
    """One member's knowledge of one sid: who is in it, whose duty is what, and all that came in."""

    def __init__(
        self,
        params: RunParams,
        identity: Identity,
        roster: CheckedRoster,
        secrets: MemberSecrets,
        guard: Guard,
        urandom: Callable[[int], bytes],
    ) -> None:
        self.params, self.roster, self.sid = params, roster, roster.sid
        self._identity, self._guard = identity, guard
        self.peers = roster.peers
        self.me = self.peers.index(identity.peer_id)
        count = len(self.peers)
        self.threshold = threshold(count)
        self.layout = params.layout
        copies = min(params.reducer_copies, tolerated(count))
        self.duties = Duties(roster.reducers(self.layout, roster.index), count, copies)
        self._dealing = Dealing(roster, self.me, secrets, self.threshold, urandom)
        self._masker = self._make_masker(secrets)
        self.r3 = SurvivorCertificate(params.run, roster, self.threshold)
        self.inputs = Inputs(self.layout, self.duties, self.me)
        # Weak, lest a cycle keep a whole round's chunks in memory until the collector finds it.
        counts = WeakMethod(self._counts)
        self.sums = Sums(
            self.layout, self.duties, lambda author, chunk: (ask := counts()) is not None and ask(author, chunk)
        )
        self._audit = Audit(self.sid, self._dealing, self.threshold)
        self.checks = Checks(self.me, params.audit_share)
        self.said = Statements()
        self.seating: Seating | None = None
        """The roster as its convener signed it: evidence needs it."""
        self.proofs: list[bytes] = []
        """Evidence found here that nobody took yet."""
        self._ready: dict[int, tuple[bytes, ...]] = {}
        self._unmasks: dict[int, Unmask] = {}
        self._masked: dict[int, tuple[Part, bytes]] = {}
        self._suspects: set[int] = set()
        self._left: set[int] = set()
        self._done: set[str] = set()
        self._stood_in: set[int] = set()
        self._late: list[tuple[int, Chunk]] = []
        self._asked: dict[int, int] = {}
        self._turn = 0
        self.opening: Opening | None = None
        self.certified: Certified | None = None
        self.tokens: int | None = None
        self.failed: Failed | None = None
        self._implausible: str | None = None

    @property
    def uploads(self) -> bool:
        """Whether masked chunks of my update may have left."""
        return "upload" in self._done

    def _promise_upload(self) -> None:
        """Of several cohorts one may open its sum and the attempt fail all the same: then none of its members may
        upload again in this round, restarted or not. A single cohort that opened keeps the next attempt from its
        quorum. Raises GuardRefusedError.
        """
        value = digest("alone") if self.roster.alone else self.sid
        self._guard.ballot(self.params.run, self.roster.round, 0, "upload", value)

    def _once(self, name: str, condition: bool) -> bool:
        if name in self._done or not condition:
            return False
        self._done.add(name)
        return True

    def _collect_chunk(self, member: int, chunk: Chunk) -> None:
        """Keep a bulk chunk that a member sent. Raises ProtocolError."""
        if chunk.kind is BulkKind.SUM:
            self.sums.add(chunk.index, chunk.member, chunk.data, from_author=chunk.member == member)
        elif chunk.kind is BulkKind.AUDIT:
            self._collect_shown(member, chunk)
        elif chunk.member != member:
            raise ProtocolError(Refusal.WRONG_SENDER, f"a masked chunk of member {chunk.member}")
        elif "receipt" not in self._done:
            if not self.inputs.expected(member, chunk.index):
                raise ProtocolError(Refusal.UNEXPECTED, f"chunk {chunk.index} is not mine to reduce")
            self.inputs.add(member, chunk.index, chunk.data)
        else:
            self._take_late(member, chunk)

    def _collect_shown(self, sender: int, chunk: Chunk) -> None:
        raise ProtocolError(Refusal.UNEXPECTED, "nothing is audited here")

    def _collect(self, sender: int, message: object, frame: bytes) -> None:
        """Keep a message that a member signed in the envelope `frame`. Raises ProtocolError."""
        try:
            self._keep(sender, message, frame)
        except ProtocolError as error:
            found = self.said.contradicted(self.peers[sender], message, frame)
            if error.refusal is Refusal.EQUIVOCATION and found is not None:
                self.proofs.append(encode(found))
            raise
        self.said.keep(self.peers[sender], message, frame)

    def _keep(self, sender: int, message: object, frame: bytes) -> None:
        if isinstance(message, Shares):
            self._dealing.receive(sender, message)
        elif isinstance(message, Ready):
            if len(message.commitments) != len(self.peers):
                raise ProtocolError(Refusal.OUT_OF_BOUNDS, "one digest for each dealer is due")
            if self._ready.setdefault(sender, message.commitments) != message.commitments:
                raise ProtocolError(Refusal.EQUIVOCATION, "ready for two sets of shares")
        elif isinstance(message, Manifest):
            if len(message.hashes) != self.layout.total_chunks or not 1 <= message.tokens <= self.params.weight_cap:
                raise ProtocolError(Refusal.OUT_OF_BOUNDS, "a manifest of another size or weight")
            self.r3.add_manifest(sender, message, frame)
        elif isinstance(message, Receipt):
            self.r3.add_receipt(sender, message, frame)
        elif isinstance(message, Survivors):
            self.r3.add_proposal(sender, message)
        elif isinstance(message, Vote):
            self.r3.add_vote(sender, message)
        elif isinstance(message, Unmask):
            if self._unmasks.setdefault(sender, message) != message:
                raise ProtocolError(Refusal.EQUIVOCATION, "two sets of shares")
        elif isinstance(message, SumHashes):
            self.sums.add_hashes(sender, message, frame)
        elif isinstance(message, AuditShares):
            self._audit.add(sender, message)
        elif isinstance(message, Audited):
            self.checks.heard(sender, message)
        elif not isinstance(message, Missing | Unshown | Ping):
            raise ProtocolError(Refusal.UNEXPECTED, f"{type(message).__name__} in a cohort")

    def _take_late(self, member: int, chunk: Chunk) -> None:
        """After my receipt only a survivor's resend to the stand-in of a dead reducer is taken, if it is the same."""
        waiting = sum(other == member for other, _ in self._late)
        if self.certified is None and waiting < len(self.duties.of(member)) + len(self.duties.of(self.me)) + 1:
            self._late.append((member, chunk))  # the sender has the certificate already; mine is on its way
            return
        if self.certified is None or member not in self.certified.survivors:
            raise ProtocolError(Refusal.STALE, f"chunk {chunk.index} came after my receipt")
        manifest = self.r3.manifests[member][0]
        if not 0 <= chunk.index < len(manifest.hashes) or self.sums.hash(chunk.data) != manifest.hashes[chunk.index]:
            raise ProtocolError(Refusal.BAD_HASH, f"chunk {chunk.index} differs from its manifest")
        self.inputs.add(member, chunk.index, chunk.data)

    def _counts(self, author: int, chunk: int) -> bool:
        """Its reducer's sum of a chunk counts; another certified reducer's only when that one is gone or late."""
        live = self.certified.reducers if self.certified else ()
        reducer = self.duties.reducers[chunk]
        gone = reducer not in live or reducer in self._suspects or "sums-late" in self._done
        return author in live and (author == reducer or gone)

    def _make_masker(self, secrets: MemberSecrets) -> Masker:
        keys = {
            j: pair_key(secrets.mask_private, member.join.mask_key, self.sid, self.me, j)
            for j, member in enumerate(self.roster.members)
            if j != self.me
        }
        return Masker(self.sid, self.me, self_key(secrets.b, self.sid), keys)
