"""The audit seed: randomness that nobody knew before all sums were signed (opened from shares dealt in R1)."""

from __future__ import annotations

from averaging.dealing import Dealing, Seed
from averaging.messages import AuditShares
from dht.errors import ProtocolError, Refusal
from dht.wire import digest


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
        for sender, message in self._early.items():
            try:
                self.add(sender, message)
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
