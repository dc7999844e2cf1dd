"""Step R1: every member deals Shamir shares of its three seeds, sealed to each holder and bound by hashes.

The hashes let a holder refuse a wrong share at once and let a reducer name whoever returns a wrong one. A share
of a random seed is uniform in a 255-bit field, so its hash tells nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum

from averaging import shamir
from averaging.keys import MemberSecrets, check_audit_seed, check_mask_seed, check_self_seed
from averaging.messages import Join, Shares
from averaging.roster import CheckedRoster
from averaging.sealing import open_shares, seal_shares
from dht.errors import ProtocolError, Refusal
from dht.wire import digest

SHARE_BYTES = 32


class Seed(IntEnum):
    """Which of a member's secrets a share belongs to."""

    MASK = 0  # a: opened for members that dropped out
    SELF = 1  # b: opened for survivors
    AUDIT = 2  # r: opened once all sums are signed


class MisdealtError(ProtocolError):
    """Shares that all were as their dealer committed to them open another seed than it published."""

    def __init__(self, message: str, seed: Seed, dealer: int, shares: Mapping[int, bytes]) -> None:
        super().__init__(Refusal.BAD_SHARE, message)
        self.seed, self.dealer, self.shares = seed, dealer, dict(shares)


def fits(seed: Seed, value: bytes, join: Join) -> bool:
    """Whether an opened seed is the one behind a member's published key or commitment."""
    if seed is Seed.MASK:
        return check_mask_seed(value, join.mask_key)
    if seed is Seed.SELF:
        return check_self_seed(value, join.self_commitment)
    return check_audit_seed(value, join.audit_commitment)


def share_digest(sid: bytes, seed: Seed, dealer: int, holder: int, share: bytes) -> bytes:
    """What a dealer's list holds of one share, 32 bytes."""
    return digest("share", sid, bytes([seed, dealer, holder]), share)


class Dealing:
    """What one member deals, holds and can check in one sid."""

    def __init__(
        self, roster: CheckedRoster, me: int, secrets: MemberSecrets, threshold: int, urandom: Callable[[int], bytes]
    ) -> None:
        self._roster, self._me, self._secrets, self._threshold = roster, me, secrets, threshold
        count = len(roster.members)
        self._dealt = [shamir.split(seed, threshold, count, urandom) for seed in (secrets.a, secrets.b, secrets.r)]
        own = tuple(
            share_digest(roster.sid, kind, me, holder, self._dealt[kind][holder])
            for kind in Seed
            for holder in range(count)
        )
        self._commitments: dict[int, tuple[bytes, ...]] = {me: own}
        self._held: dict[int, tuple[bytes, ...]] = {me: tuple(self._dealt[kind][me] for kind in Seed)}

    def deal(self, holder: int) -> Shares:
        """The message for one other member."""
        plain = b"".join(self._dealt[kind][holder] for kind in Seed)
        key = self._roster.members[holder].join.share_key
        sealed = seal_shares(self._secrets.share_private, key, self._roster.sid, self._me, holder, plain)
        return Shares(self._roster.sid, sealed, self._commitments[self._me])

    def receive(self, dealer: int, message: Shares) -> None:
        """Open and check a dealer's shares. Raises ProtocolError (BAD_SHARE, EQUIVOCATION) at the dealer's fault."""
        count = len(self._roster.members)
        if len(message.commitments) != 3 * count:
            raise ProtocolError(Refusal.BAD_SHARE, "a hash list of the wrong length")
        if dealer in self._held:
            if self._commitments[dealer] != message.commitments:
                raise ProtocolError(Refusal.EQUIVOCATION, "shares dealt twice")
            return
        key = self._roster.members[dealer].join.share_key
        plain = open_shares(self._secrets.share_private, key, self._roster.sid, dealer, self._me, message.sealed)
        if len(plain) != 3 * SHARE_BYTES:
            raise ProtocolError(Refusal.BAD_SHARE, "sealed shares of the wrong length")
        shares = tuple(plain[kind * SHARE_BYTES : (kind + 1) * SHARE_BYTES] for kind in Seed)
        for kind in Seed:
            if (
                share_digest(self._roster.sid, kind, dealer, self._me, shares[kind])
                != message.commitments[kind * count + self._me]
            ):
                raise ProtocolError(Refusal.BAD_SHARE, "a share that differs from its hash")
        self._held[dealer] = shares
        self._commitments[dealer] = message.commitments

    @property
    def missing(self) -> tuple[int, ...]:
        """Dealers whose shares I do not hold yet."""
        return tuple(i for i in range(len(self._roster.members)) if i not in self._held)

    def digests(self) -> tuple[bytes, ...]:
        """Digest of each dealer's hash list, 32 bytes each: equal in all members, or somebody told two stories."""
        lists = [b"".join(self._commitments[i]) for i in range(len(self._roster.members))]
        return tuple(digest("commitments", self._roster.sid, bytes([i]), each) for i, each in enumerate(lists))

    def share(self, seed: Seed, dealer: int) -> bytes:
        """My share of a dealer's seed, 32 bytes. Only `Cohort` hands it out, after the guard agreed."""
        return self._held[dealer][seed]

    def is_share(self, seed: Seed, dealer: int, holder: int, share: bytes) -> bool:
        """Whether `share` is what `dealer` dealt to `holder`."""
        expected = self._commitments[dealer][seed * len(self._roster.members) + holder]
        return share_digest(self._roster.sid, seed, dealer, holder, share) == expected

    def open(self, seed: Seed, dealer: int, shares: Mapping[int, bytes]) -> bytes:
        """Reconstruct a 31-byte seed from checked shares (holder index -> share).

        Raises MisdealtError when it does not fit the dealer's public key or commitment: all shares
        were as dealt, so the dealer is at fault.
        """
        join = self._roster.members[dealer].join
        chosen = dict(sorted(shares.items())[: self._threshold])
        try:
            value = shamir.combine(chosen)
        except ValueError as error:
            raise MisdealtError(f"member {dealer} dealt shares of nothing: {error}", seed, dealer, chosen) from None
        if not fits(seed, value, join):
            raise MisdealtError(f"member {dealer} dealt shares of another seed", seed, dealer, chosen)
        return value
