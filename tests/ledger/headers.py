"""Headers and keys for small tests."""

from __future__ import annotations

from ledger.checkpoint import Checkpoint
from ledger.eip712 import Domain

DOMAIN = Domain(31337, b"\x11" * 20)
OTHER_DOMAIN = Domain(31338, b"\x11" * 20)
RUN = b"r" * 32


def header(epoch: int = 1, fork_nonce: int = 0, root: bytes = b"m" * 32, run: bytes = RUN) -> Checkpoint:
    """A header; `root` makes different ones for one place."""
    zero = bytes(32)
    return Checkpoint(run, fork_nonce, epoch, zero, epoch, epoch, root, zero, zero, 0, 0, 0)
