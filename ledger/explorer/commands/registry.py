"""Which key and which description a wallet stands for in the registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from platformdirs import user_data_path

from ledger.explorer import spend
from ledger.explorer.options import CommonOptions
from ledger.explorer.session import Session
from ledger.explorer.spend import Amount, Step, WalletChoice, WalletOptions
from ledger.indexer.node import address_of

if TYPE_CHECKING:
    from dht.identity import Identity

IdentityFile = Annotated[
    Path | None,
    Parameter(help="The peer's key file.", show_default=lambda _: "identity.key in this machine's data folder"),
]


def enrol(
    amount: Amount,
    /,
    *,
    identity: IdentityFile = None,
    metadata: Annotated[str, Parameter(help="32 bytes as 0x hex: a hash of what the peer says of itself.")] = "",
    wallet: WalletChoice = None,
    common: CommonOptions = None,
) -> int:
    """Bind a peer's key to a wallet, with stake. The key signs here; it goes nowhere."""
    units = spend.parse_amount(amount)
    described = spend.parse_bytes32(metadata, "--metadata") if metadata else bytes(32)

    async def plan(session: Session, wallet: WalletOptions) -> list[Step]:
        x, y, r, vs, key = bind(session, identity, wallet.address())
        approval = await spend.allowance(session, wallet, "PeerRegistry", units)
        title = f"enrol {key} with {amount} tokens"
        return [*approval, Step(title, "PeerRegistry", "enrol", (x, y, r, vs, units, described))]

    return spend.send(plan, wallet, common)


def rotate_key(*, identity: IdentityFile = None, wallet: WalletChoice = None, common: CommonOptions = None) -> int:
    """Bind another key to an enrolled wallet. The old one stays slashable until the unbonding delay is over."""

    async def plan(session: Session, wallet: WalletOptions) -> list[Step]:
        x, y, r, vs, key = bind(session, identity, wallet.address())
        return [Step(f"make {key} the wallet's key", "PeerRegistry", "rotateKey", (x, y, r, vs))]

    return spend.send(plan, wallet, common)


def set_metadata(
    metadata: Annotated[
        str, Parameter(name="METADATA", help="32 bytes as 0x hex: a hash of what the peer says of itself.")
    ],
    /,
    *,
    wallet: WalletChoice = None,
    common: CommonOptions = None,
) -> int:
    """Say by its hash what an enrolled peer is: its capacity, what data it has."""
    described = spend.parse_bytes32(metadata, "METADATA")

    async def plan(session: Session, wallet: WalletOptions) -> list[Step]:
        title = f"set the metadata to 0x{described.hex()[:16]}…"
        return [Step(title, "PeerRegistry", "setMetadata", (described,))]

    return spend.send(plan, wallet, common)


def load_identity(path: Path | None) -> Identity:
    """The key of a file, else of this machine's peer. Raises IdentityError."""
    from dht.identity import Identity

    return Identity.load(path or user_data_path("murmuration", appauthor=False) / "identity.key")


def bind(session: Session, path: Path | None, wallet: str) -> tuple[bytes, bytes, bytes, bytes, str]:
    """The peer's key (x, y), its signature (r, vs) over the binding to a wallet, its address. Raises IdentityError."""
    from hashlib import sha256

    import coincurve

    from ledger import signatures
    from ledger.explorer.people import text_address

    identity = load_identity(path)
    registry = bytes.fromhex(address_of(session.deployment, "PeerRegistry")[2:])
    parts = (
        b"murmuration/enrol/1",
        session.deployment.chain_id.to_bytes(32, "big"),
        registry,
        bytes.fromhex(wallet[2:]),
    )
    signature = signatures.sign(identity, sha256(b"".join(parts)).digest())
    point = coincurve.PublicKey(identity.peer_id.public_key).format(compressed=False)[1:]
    return point[:32], point[32:], signature[:32], signature[32:], text_address(identity.peer_id)
