"""`python -m peer.demo.liar`: signs two checkpoints for one place with a peer's key, and writes the evidence of it.

What an attestor that would have it both ways leaves in everybody's hands. No peer does this: its guard on disk would
refuse the second signature.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dht.errors import EvidenceError
from dht.identity import Identity
from ledger import signatures
from ledger.chain.deployments import Deployment
from ledger.checkpoint import NOTHING, Checkpoint
from ledger.eip712 import Domain
from ledger.evidence import SignedCheckpoint, equivocation
from ledger.files import write_once

EPOCH = 1


def lie(identity: Identity, deployment: Deployment) -> bytes:
    """Evidence (a frame of `ledger.evidence`) that this key signed two models for one epoch."""
    domain = Domain(deployment.chain_id, bytes.fromhex(deployment.contracts["CheckpointHub"][2:]))

    def signed(model: bytes) -> SignedCheckpoint:
        header = Checkpoint(deployment.run_id, 0, EPOCH, NOTHING, 1, 1, model, NOTHING, NOTHING, 0, 0, 0)
        return SignedCheckpoint(header, signatures.sign(identity, header.digest(domain)))

    frame = equivocation(domain, signed(b"\x01" * 32), signed(b"\x02" * 32))
    if frame is None:
        raise EvidenceError("two signatures of one key prove nothing", remedy="this is a bug")
    return frame


def main(arguments: Sequence[str]) -> None:
    """IDENTITY DEPLOYMENT OUT: key file, deployment file, where to write the evidence."""
    identity, deployment, out = map(Path, arguments)
    write_once(out, lie(Identity.load(identity), Deployment.load(deployment)))


if __name__ == "__main__":
    main(sys.argv[1:])
