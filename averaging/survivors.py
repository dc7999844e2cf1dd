"""Step R3: one survivor set for all chunks. Receipts, a leader's proposal, and t votes that certify it.

If every reducer decided for itself who survived, one lost packet would make one reducer ask for a member's
self-mask and another for its pair masks, and both together strip it bare. So all of them act on one set U, which
t members signed; each member signs one per sid (the guard remembers), and any two sets of t share an honest one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from averaging.messages import Manifest, Receipt, Survivors, Vote
from averaging.roster import CheckedRoster
from dht.envelope import Envelope
from dht.errors import ProtocolError, Refusal
from dht.wire import decode_as, digest, encode


def bits(bitmap: int) -> tuple[int, ...]:
    """Indices whose bit is set, ascending."""
    return tuple(i for i in range(bitmap.bit_length()) if bitmap >> i & 1)


def bitmap(indices: set[int] | tuple[int, ...]) -> int:
    """The bitmap with these bits set."""
    return sum(1 << i for i in set(indices))


def name_of(manifest: Manifest) -> bytes:
    """16 bytes by which a receipt says which manifest it confirms."""
    return digest("manifest", encode(manifest))[:16]


def claims(receipt: Receipt) -> dict[int, bytes]:
    """Whose chunks a receipt confirms (index), and by which manifest. Raises ProtocolError (OUT_OF_BOUNDS)."""
    members = bits(receipt.complete)
    if len(members) != len(receipt.manifests):
        raise ProtocolError(Refusal.OUT_OF_BOUNDS, "a receipt must name the manifest of each member that it confirms")
    return dict(zip(members, receipt.manifests, strict=True))


@dataclass(frozen=True, slots=True)
class Certified:
    """The certified outcome of R3: survivors U, live reducers L, and who signed."""

    survivors: tuple[int, ...]
    reducers: tuple[int, ...]
    voters: tuple[int, ...]


class SurvivorCertificate:
    """Collects receipts, checks proposals and counts votes of one sid."""

    def __init__(self, run: bytes, roster: CheckedRoster, threshold: int) -> None:
        self._run, self._roster, self._threshold = run, roster, threshold
        self._index = {peer: i for i, peer in enumerate(roster.peers)}
        self.manifests: dict[int, tuple[Manifest, bytes]] = {}
        self._names: dict[int, bytes] = {}
        self.receipts: dict[int, tuple[Receipt, bytes]] = {}
        self._proposals: dict[int, tuple[Survivors, dict[int, bytes]]] = {}
        self._backed: Survivors | None = None
        self._votes: dict[int, Vote] = {}

    def add_manifest(self, sender: int, manifest: Manifest, frame: bytes) -> None:
        """Keep a member's one manifest. Raises ProtocolError (EQUIVOCATION) for a second, different one."""
        if self.manifests.setdefault(sender, (manifest, frame))[0] != manifest:
            raise ProtocolError(Refusal.EQUIVOCATION, "two manifests in one sid")

    def name(self, member: int) -> bytes:
        """`name_of` the manifest that I hold of a member. Raises KeyError."""
        if member not in self._names:
            self._names[member] = name_of(self.manifests[member][0])
        return self._names[member]

    def add_receipt(self, sender: int, receipt: Receipt, frame: bytes) -> None:
        """Keep a reducer's one receipt. Raises ProtocolError (EQUIVOCATION)."""
        if receipt.complete >> len(self._roster.members):
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, "a receipt for members that do not exist")
        if sender in self.receipts and self.receipts[sender][0] != receipt:
            raise ProtocolError(Refusal.EQUIVOCATION, "two receipts in one sid")
        claims(receipt)
        self.receipts[sender] = (receipt, frame)

    def view_of(self, member: int) -> int:
        """Which view a member leads. Each attempt begins with the next one: a leader that splits the votes of one
        attempt does not lead the next."""
        return (member - self._roster.attempt) % len(self._roster.members)

    def receipt(self, complete: set[int]) -> Receipt:
        """My receipt for members whose chunks are here as their manifests say."""
        names = tuple(self.name(i) for i in sorted(complete))
        return Receipt(self._roster.sid, bitmap(complete), names)

    def propose(self, view: int) -> Survivors | None:
        """What I would propose as leader now: U = what all live reducers hold; None below the threshold.

        A receipt that would push U below the threshold is left out, or one liar who confirms nothing voids the round.
        Who showed different manifests to different members is in no U: those members could not vote for one.

        Who voted already proposes that again: a set that differs in one late receipt would only split the votes.
        """
        if self._backed is not None:
            return replace(self._backed, view=view)
        claimed = {i: claims(receipt) for i, (receipt, _) in self.receipts.items()}
        common = _most_named(claimed.values())
        held_by = {i: {m for m, name in names.items() if name == common[m]} for i, names in claimed.items()}
        live: set[int] = set()
        chosen = set(range(len(self._roster.members)))
        for i in sorted(held_by, key=lambda i: (-len(held_by[i]), i)):
            held = chosen & held_by[i]
            if len(held) >= self._threshold:
                live.add(i)
                chosen = held
        if len(live) < self._threshold or not chosen <= set(self.manifests):
            return None
        frames = tuple(self.receipts[i][1] for i in sorted(live))
        return Survivors(self._roster.sid, view, bitmap(chosen), bitmap(live), frames)

    def add_proposal(self, sender: int, proposal: Survivors) -> None:
        """Keep a leader's one proposal; see `view_of`. Raises ProtocolError.

        It is refused when U is not exactly what the signed receipts say, or too small.
        """
        if proposal.view >= len(self._roster.members) or self.view_of(sender) != proposal.view:
            raise ProtocolError(Refusal.WRONG_SENDER, f"member {sender} does not lead view {proposal.view}")
        if sender in self._proposals:
            if self._proposals[sender][0] != proposal:
                raise ProtocolError(Refusal.EQUIVOCATION, "two survivor sets in one view")
            return
        claimed = self._check_receipts(proposal)
        chosen = dict.fromkeys(range(len(self._roster.members)), b"")
        for k, receipt in enumerate(claimed.values()):
            names = claims(receipt)
            chosen = {m: names[m] for m, name in chosen.items() if m in names and (k == 0 or names[m] == name)}
        if set(bits(proposal.survivors)) != set(chosen):
            raise ProtocolError(Refusal.UNEXPECTED, "the survivors are not those whose chunks all reducers hold")
        if len(chosen) < self._threshold or len(claimed) < self._threshold:
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, "fewer survivors or reducers than the threshold")
        self._proposals[sender] = (proposal, chosen)

    def vote(self) -> Vote | None:
        """My vote: for the first leader's proposal all of whose survivors' manifests are here."""
        for _, (proposal, names) in sorted(self._proposals.items(), key=lambda item: item[0]):
            if all(i in self.manifests and self.name(i) == name for i, name in names.items()):
                self._backed = proposal
                return Vote(proposal.sid, proposal.survivors, proposal.reducers, self._manifests(set(names)))
        return None

    def _check_receipts(self, proposal: Survivors) -> dict[int, Receipt]:
        claimed: dict[int, Receipt] = {}
        for frame in proposal.receipts:
            envelope = decode_as(Envelope, frame)
            reducer = self._index.get(envelope.check(self._run))
            receipt = decode_as(Receipt, envelope.body)
            if reducer is None or receipt.sid != self._roster.sid or envelope.round != self._roster.round:
                raise ProtocolError(Refusal.NOT_A_MEMBER, "a receipt of another cohort")
            claimed[reducer] = receipt
        if bitmap(tuple(claimed)) != proposal.reducers:
            raise ProtocolError(Refusal.UNEXPECTED, "the reducers are not those whose receipts are shown")
        return claimed

    def _manifests(self, survivors: set[int]) -> bytes:
        bodies = [encode(self.manifests[i][0]) for i in sorted(survivors)]
        return digest("manifests", self._roster.sid, *bodies)

    def add_vote(self, voter: int, vote: Vote) -> None:
        """Count a member's one vote. Raises ProtocolError (EQUIVOCATION)."""
        if self._votes.setdefault(voter, vote) != vote:
            raise ProtocolError(Refusal.EQUIVOCATION, "two votes in one sid")

    def certified(self) -> Certified | None:
        """The outcome once t members voted for the same thing and I hold the survivors' manifests as they voted."""
        for vote in set(self._votes.values()) if len(self._votes) >= self._threshold else ():
            voters = tuple(sorted(i for i, other in self._votes.items() if other == vote))
            survivors = set(bits(vote.survivors))
            if len(voters) < self._threshold or len(survivors) < self._threshold:
                continue
            if survivors <= set(self.manifests) and self._manifests(survivors) == vote.manifests:
                return Certified(tuple(sorted(survivors)), bits(vote.reducers), voters)
        return None


def _most_named(all_claims: Iterable[dict[int, bytes]]) -> dict[int, bytes]:
    """The manifest of each member that most receipts confirm; the smallest one if several are."""
    counts: dict[int, Counter[bytes]] = defaultdict(Counter)
    for names in all_claims:
        for member, name in names.items():
            counts[member][name] += 1
    return {member: min(count, key=lambda name: (-count[name], name)) for member, count in counts.items()}


def vote_digest(vote: Vote) -> bytes:
    """What the guard remembers of a vote."""
    return digest("vote", encode(vote))
