"""Peers as rows: what the registry, the pool and the records say of each, joined by key address."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dht.errors import ConfigError, DataError, ProtocolError
from dht.identity import PeerId
from ledger.explorer import facts
from ledger.explorer.options import parse_address
from ledger.signatures import key_address

if TYPE_CHECKING:
    from ledger.explorer.session import Session
    from ledger.tally import EpochTally


@dataclass
class Peer:
    """One peer. Amounts in units of 1e-18 tokens; points and `earned` are None where they cannot be recomputed."""

    key: str
    peer: str | None = None
    wallet: str | None = None
    former_of: str | None = None
    """The wallet that had this key before it rotated to another one: it is still paid what the key earned."""
    stake: int = 0
    unbonding: int = 0
    unlock_at: int = 0
    slashed: int = 0
    since: int | None = None
    metadata: str | None = None
    claimed: int = 0
    tokens: int | None = None
    rounds: int | None = None
    chunks: int | None = None
    earned: int | None = None
    last_round: int | None = None

    @property
    def claimable(self) -> int | None:
        """Earned, and not claimed yet; None where earnings are unknown."""
        return None if self.earned is None else max(0, self.earned - self.claimed)

    def as_json(self) -> dict[str, Any]:
        """Amounts as decimal text."""
        row = asdict(self) | {"claimable": self.claimable}
        for name in ("stake", "unbonding", "slashed", "claimed", "earned", "claimable"):
            row[name] = None if row[name] is None else str(row[name])
        return row


def peers(session: Session) -> list[Peer]:
    """Everybody who enrolled, trained, or claimed, by key address; rewards as of the newest checkpoint."""
    found: dict[str, Peer] = {}
    for entry in facts.enrolments(session.index).values():
        found[entry.key] = Peer(
            entry.key,
            str(entry.peer) if entry.peer else None,
            entry.wallet,
            stake=entry.stake,
            unbonding=entry.unbonding,
            unlock_at=entry.unlock_at,
            slashed=entry.slashed,
            since=entry.since,
            metadata=entry.metadata,
        )
        found |= {key: Peer(key, former_of=entry.wallet) for key in entry.former_keys}
    for account, units in facts.claims(session.index).items():
        found.setdefault(account, Peer(account)).claimed = units
    newest = session.epochs[-1].number if session.epochs else 0
    _add_points(session, found, session.tally(newest))
    return sorted(found.values(), key=lambda peer: peer.key)


def _add_points(session: Session, found: dict[str, Peer], tally: EpochTally | None) -> None:
    if session.history is None:
        return
    chain = session.history.chain
    for raw, share in chain.tally.shares.items():
        peer = PeerId(raw)
        row = found.setdefault(text_address(peer), Peer(text_address(peer)))
        row.peer, row.tokens, row.rounds, row.chunks = str(peer), share.tokens, share.rounds, share.chunks
        if tally is not None:
            row.earned = tally.leaves.get(key_address(peer), 0)
    for round_ in range(1, chain.head.round + 1):
        record = chain.record(round_)
        for survivor in () if record.void else record.survivors:
            found[text_address(PeerId(survivor.peer))].last_round = round_


def text_address(peer: PeerId) -> str:
    """A peer's key address as 0x text."""
    return f"0x{key_address(peer).hex()}"


def find(rows: list[Peer], text: str) -> Peer:
    """The peer of a peer id, the end of one (8 characters or more), a wallet, or a key address.

    Raises ConfigError for what is neither, DataError when nobody or more than one fits.
    """
    if text.startswith("0x"):
        wanted = parse_address(text)
        fitting = [row for row in rows if wanted in (row.key, row.wallet)]
    else:
        if len(text) < 8:
            raise ConfigError(
                f"{text!r} is too short", remedy="give a peer id, 8 or more of its last characters, or 0x…"
            )
        fitting = [row for row in rows if row.peer and row.peer.endswith(text)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(f"{len(fitting)} peers fit {text!r}", remedy="give more of the peer id")
    raise DataError(f"nobody known is {text}", remedy="contribution-explorer peers lists everybody")


def key_of(session: Session, text: str) -> str:
    """The key address that an address or peer id stands for; the address itself if nobody known has it."""
    if not text.startswith("0x"):
        try:
            return text_address(PeerId.parse(text))
        except ProtocolError:
            return find(peers(session), text).key
    wanted = parse_address(text)
    for entry in facts.enrolments(session.index).values():
        if wanted == entry.wallet:
            return entry.key
    return wanted
