"""PeerRegistry: keys, wallets and stakes."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.ledger.model.refused import BPS, ZERO, Refused, Signature
from tests.ledger.model.token import Token


@dataclass
class Peer:
    """What a wallet has at the registry."""

    key: str
    stake: int
    jailed: bool = False
    unbonding: int = 0
    unlock_at: int = 0


@dataclass
class Registry:
    """PeerRegistry. `owners`: (wallet, liable until or 0) by key, for ever."""

    at: str
    token: Token
    unbond_delay: int
    peers: dict[str, Peer] = field(default_factory=dict)
    owners: dict[str, tuple[str, int]] = field(default_factory=dict)
    burnable: int = 0

    def enrol(self, sender: str, key: str, proof: Signature, stake: int) -> None:
        """Bind a key, and stake."""
        if sender in self.peers:
            raise Refused("AlreadyEnrolled", sender)
        self._check_binding(key, proof)
        self._check_stake(stake)
        if stake:
            self.token.take(sender, self.at, stake, self.at)
        self.peers[sender], self.owners[key] = Peer(key, stake), (sender, 0)

    def add_stake(self, sender: str, amount: int) -> None:
        """More stake."""
        peer = self._enrolled(sender)
        if peer.jailed:
            raise Refused("IsJailed", sender)
        if amount == 0:
            raise Refused("NothingToDo")
        self._check_stake(peer.stake + amount)
        self.token.take(sender, self.at, amount, self.at)
        peer.stake += amount

    def request_unbond(self, sender: str, amount: int, now: int) -> None:
        """Less stake, after a delay."""
        peer = self._enrolled(sender)
        if amount == 0:
            raise Refused("NothingToDo")
        if amount > peer.stake:
            raise Refused("TooMuch", amount, peer.stake)
        peer.stake, peer.unbonding, peer.unlock_at = (
            peer.stake - amount,
            peer.unbonding + amount,
            now + self.unbond_delay,
        )

    def withdraw(self, sender: str, now: int) -> None:
        """What is unbonded."""
        peer = self.peers.get(sender)
        if peer is None or peer.unbonding == 0:
            raise Refused("NothingToDo")
        if now < peer.unlock_at:
            raise Refused("Locked", peer.unlock_at)
        self.token.move(self.at, sender, peer.unbonding)
        peer.unbonding = peer.unlock_at = 0

    def rotate_key(self, sender: str, key: str, proof: Signature, now: int) -> None:
        """Another key; the old one stays liable for a while."""
        peer = self._enrolled(sender)
        if peer.jailed:
            raise Refused("IsJailed", sender)
        self._check_binding(key, proof)
        self.owners[peer.key] = (sender, now + self.unbond_delay)
        self.owners[key] = (sender, 0)
        peer.key = key

    def set_metadata(self, sender: str) -> None:
        """Only an event."""
        self._enrolled(sender)

    def slash(self, wallet: str, bps: int, reporter: str) -> None:
        """Take a part of all that is there; a tenth for who reported."""
        peer = self.peers[wallet]
        parts = peer.stake * bps // BPS, peer.unbonding * bps // BPS
        peer.stake, peer.unbonding = peer.stake - parts[0], peer.unbonding - parts[1]
        peer.jailed = peer.jailed or bps >= BPS // 2
        reward = 0 if reporter == ZERO else sum(parts) // 10
        self.token.move(self.at, reporter, reward)
        self.burnable += sum(parts) - reward

    def burn(self) -> None:
        """What was slashed."""
        if self.burnable == 0:
            raise Refused("NothingToDo")
        self.token.move(self.at, None, self.burnable)
        self.burnable = 0

    def wallet_of(self, key: str) -> str:
        """Whom to pay."""
        return self.owners.get(key, (ZERO, 0))[0]

    def liable(self, key: str, now: int) -> str:
        """Whose stake answers."""
        wallet, until = self.owners.get(key, (ZERO, 0))
        return wallet if until == 0 or now <= until else ZERO

    def _enrolled(self, sender: str) -> Peer:
        if sender not in self.peers:
            raise Refused("NotEnrolled", sender)
        return self.peers[sender]

    def _check_binding(self, key: str, proof: Signature) -> None:
        signer = proof.recovered()
        if signer in (ZERO, "") or signer != key:
            raise Refused("BadBinding", key, signer)
        if key in self.owners:
            raise Refused("KeyTaken", key)

    @staticmethod
    def _check_stake(stake: int) -> None:
        if stake >= 2**88:
            raise Refused("SafeCastOverflowedUintDowncast", 88, stake)
