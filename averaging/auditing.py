"""The audit of sums: its seed, which nobody knew before all sums were signed, whom it picks, and what they say.

The seed opens from secrets shared in R1. It picks, for every signed sum, with probability `audit_share` one live
reducer that is not the sum's author: the auditor. The author, who knows the seed as soon as anybody, shows it the
survivors' masked inputs without being asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from averaging.dealing import Dealing, Seed
from averaging.messages import AuditShares
from dht.errors import ProtocolError, Refusal
from dht.transport import Part
from dht.wire import U32, Bytes32, Count, digest, message

Entries = Annotated[tuple[U32, ...], Count(0, 16384)]
"""Signed sums, ascending: the author's index * 65536 + the chunk's."""


@message(tag=0x28, cap=200_000)
@dataclass(frozen=True, slots=True)
class Audited:
    """What I audited so far: sums that are right, and sums that are wrong or whose inputs nobody showed me.

    `hashes` is the digest over all signed hashes of sums that I hold, so that two stories of one author meet.
    """

    sid: Bytes32
    right: Entries
    doubtful: Entries
    hashes: Bytes32


@message(tag=0x2F, cap=100_000)
@dataclass(frozen=True, slots=True)
class Unshown:
    """The author of these chunks' sums does not show me its inputs: send me those that you hold."""

    sid: Bytes32
    chunks: Annotated[tuple[U32, ...], Count(1, 16384)]


def entry(author: int, chunk: int) -> int:
    """A signed sum as a number."""
    return author << 16 | chunk


def auditor(seed: bytes, share: float, reducers: tuple[int, ...], author: int, chunk: int) -> int | None:
    """Who audits an author's sum of a chunk: with probability `share` one of the other live reducers, else nobody."""
    value = digest("audit-pick", seed, author.to_bytes(2, "big"), chunk.to_bytes(4, "big"))
    others = [i for i in reducers if i != author]
    if not others or int.from_bytes(value[:4], "big") >= share * 2**32:
        return None
    return others[int.from_bytes(value[4:12], "big") % len(others)]


class Audit:
    """Collects the members' shares of the survivors' audit seeds. `seed` is there once t members sent theirs."""

    def __init__(self, sid: bytes, dealing: Dealing, threshold: int) -> None:
        self._sid, self._dealing, self._threshold = sid, dealing, threshold
        self._survivors: tuple[int, ...] | None = None
        self._early: dict[int, AuditShares] = {}
        self._shares: dict[int, dict[int, bytes]] = {}
        self.seed: bytes | None = None

    def begin(self, survivors: tuple[int, ...]) -> None:
        """The survivors are certified: faster members' shares, kept so far, can be checked. Bad ones are dropped."""
        self._survivors = survivors
        for sender, shares in self._early.items():
            try:
                self.add(sender, shares)
            except ProtocolError:
                continue
        self._early.clear()

    def add(self, sender: int, message: AuditShares) -> None:
        """Keep a member's shares. Raises ProtocolError (BAD_SHARE)."""
        if self._survivors is None:
            self._early.setdefault(sender, message)
            return
        if len(message.shares) != len(self._survivors):
            raise ProtocolError(Refusal.BAD_SHARE, "as many audit shares as survivors are due")
        shares = dict(zip(self._survivors, message.shares, strict=True))
        for dealer, share in shares.items():
            if not self._dealing.is_share(Seed.AUDIT, dealer, sender, share):
                raise ProtocolError(Refusal.BAD_SHARE, f"not the audit share that member {dealer} dealt")
        self._shares[sender] = shares

    def try_open(self) -> None:
        """Reconstruct the seed once t members answered. Raises ProtocolError naming a dealer at fault."""
        if self.seed is not None or self._survivors is None or len(self._shares) < self._threshold:
            return
        seeds = [
            self._dealing.open(Seed.AUDIT, dealer, {holder: held[dealer] for holder, held in self._shares.items()})
            for dealer in self._survivors
        ]
        self.seed = digest("audit", self._sid, *seeds)


class Checks:
    """One member's view of a sid's audits: who was picked for what, what I must check, what everybody found."""

    def __init__(self, me: int, share: float) -> None:
        self._me, self.share = me, share
        self._auditors: dict[tuple[int, int], int | None] = {}
        self.to_show: list[tuple[int, int]] = []
        """(chunk, auditor) of my own sums that I have not shown yet."""
        self.mine: dict[int, set[int]] = {}
        """Chunks that I check, with the authors whose sums of it I judge."""
        self.shown: dict[tuple[int, int], Part] = {}
        """Masked inputs that others showed me, by (uploader, chunk); each equals its manifest."""
        self.working: set[int] = set()
        self.truth: dict[int, bytes] = {}
        self._right: dict[int, set[int]] = {}
        self.doubtful: set[int] = set()
        self.said: tuple[set[int], set[int]] | None = None
        self.early: dict[int, int] = {}
        """Inputs that each member showed me before I knew the seed."""
        self.asked: dict[int, int] = {}
        """How often each member asked me for inputs."""
        self.too_early: dict[int, Unshown] = {}
        """The last such question of each member from before I knew the seed."""
        self.compared: set[int] = set()
        """Members that got the signed hashes that I hold."""
        self.receipts: set[int] = set()
        """Members whose receipt was compared with the manifests that I hold."""
        self._considered: object = None

    def is_new(self, state: object) -> bool:
        """Whether this is another state of what is signed than the one before."""
        before, self._considered = self._considered, state
        return before != state

    def plan(self, seed: bytes, reducers: tuple[int, ...], signed: list[tuple[int, int]]) -> None:
        """Pick auditors for (author, chunk) pairs whose hashes became known."""
        for author, chunk in signed:
            if (author, chunk) in self._auditors:
                continue
            chosen = self._auditors[author, chunk] = auditor(seed, self.share, reducers, author, chunk)
            if chosen is not None and author == self._me:
                self.to_show.append((chunk, chosen))
            if chosen == self._me:
                self.mine.setdefault(chunk, set()).add(author)

    def auditor(self, author: int, chunk: int) -> int | None:
        """Who audits this sum; None for nobody, or while it is not known."""
        return self._auditors.get((author, chunk))

    def heard(self, member: int, message: Audited) -> None:
        """Keep what an auditor found; only what it was picked for counts."""
        self._right.setdefault(member, set()).update(message.right)
        for number in message.doubtful:
            if self.auditor(number >> 16, number & 0xFFFF) == member:
                self.doubtful.add(number)

    def settled(self, author: int, chunk: int) -> bool:
        """Whether nobody was picked for this sum, or its auditor found it right."""
        chosen = self._auditors.get((author, chunk))
        return chosen is None or entry(author, chunk) in self._right.get(chosen, ())
