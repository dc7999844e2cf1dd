"""Evidence on disk: one file per piece in `<data folder>/evidence/`, named by its digest, which anybody can verify."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from averaging.docket import MAX_HELD
from averaging.evidence import EVIDENCE_CAP, Proof, name_of, verify
from dht.errors import EvidenceError, ProtocolError
from peer.durable import storage_errors, sync_folder, write_file

log = logging.getLogger(__name__)
SUFFIX = ".evidence"


class EvidenceFiles:
    """The evidence that one peer keeps, of all its runs. Whole files only; never more than 256."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir / "evidence"

    def paths(self) -> list[Path]:
        """All files, in the order of their names."""
        return sorted(self.folder.glob(f"*{SUFFIX}"))

    def frames(self) -> Iterator[bytes]:
        """What the files hold. One that cannot be read is skipped with a warning."""
        for path in self.paths():
            try:
                yield read(path)
            except EvidenceError as error:
                log.warning("%s", error.message)

    def save(self, frame: bytes) -> Path | None:
        """Write and fsync, once; None when the folder is full. Raises StorageError."""
        path = self.folder / f"{name_of(frame).hex()}{SUFFIX}"
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                return path
            if len(self.paths()) >= MAX_HELD:
                return None
            partial = path.with_suffix(".partial")
            write_file(partial, [frame])
            partial.replace(path)
            sync_folder(self.folder)
        return path


def read(path: Path) -> bytes:
    """The frame in a file. Raises EvidenceError when there is none, or far too much."""
    try:
        if path.stat().st_size > EVIDENCE_CAP:
            raise EvidenceError(f"{path} has more bytes than any evidence")
        return path.read_bytes()
    except OSError as error:
        raise EvidenceError(f"cannot read {path}: {error.strerror or error}") from None


def prove(path: Path, ring_bits: int | None = None, run: bytes | None = None, pack: int = 1) -> Proof:
    """What a file proves. Raises EvidenceError, saying what does not hold."""
    try:
        return verify(read(path), run, ring_bits, pack)
    except ProtocolError as error:
        remedy = "it may be damaged or forged; ask whoever gave it to you for it again"
        raise EvidenceError(f"{path.name} proves nothing: {error.message}", remedy=remedy) from None
