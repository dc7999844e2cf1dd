"""`run-peer evidence`: what this peer can prove against others, and whether a file that somebody shows proves anything.

Exit codes: 0 the file proves a lie, or the list is complete; 1 a file proves nothing or cannot be read.
"""

from __future__ import annotations

from json import dumps as encode_json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from peer.config import DEFAULT_DATA_DIR, ConfigPath, DataDir, Json

if TYPE_CHECKING:
    from averaging.evidence import Proof

evidence = App(name="evidence", help="Verify evidence against a peer that lied, or list what this peer holds.")


@evidence.command
def verify(file: Path, *, run: Path | None = None, config: ConfigPath = None, json: Json = False) -> int:
    """Check an evidence file offline: what is proven, and against whom. Exit code 1 when it proves nothing.

    Parameters
    ----------
    file
        The evidence. It holds all that is needed; no network, no peer and no data folder is asked.
    run
        The run's manifest, if you have it: then evidence of any other run is refused, and sums are recomputed in the
        run's own ring only. Without it a sum counts as wrong if it is wrong in every ring that exists.
    """
    from peer.evidence_files import prove

    ring_bits, run_id, pack = None, None, 1
    if run is not None:
        from peer.manifest import Manifest

        manifest = Manifest.load(run)
        ring_bits, pack, run_id = manifest.codec.ring_bits, manifest.codec.pack, manifest.run_id
    proof = prove(file, ring_bits, run_id, pack)
    print(encode_json(facts(proof, file), indent=2) if json else describe(proof))
    return 0


@evidence.command(name="list")
def list_(*, data_dir: DataDir = DEFAULT_DATA_DIR, config: ConfigPath = None, json: Json = False) -> int:
    """List the evidence in a data folder, each file verified anew. Exit code 1 when one of them proves nothing."""
    from dht.errors import EvidenceError
    from peer.evidence_files import EvidenceFiles, prove

    rows: list[dict[str, Any]] = []
    lines = []
    bad = False
    for path in EvidenceFiles(data_dir).paths():
        try:
            proof = prove(path)
        except EvidenceError as error:
            bad = True
            rows.append({"file": str(path), "error": error.message})
            lines.append(f"{path.name}: {error.message}")
        else:
            rows.append(facts(proof, path))
            lines.append(f"{path.name}: {proof.kind} by {proof.accused} in round {proof.round}")
    print(encode_json(rows, indent=2) if json else "\n".join(lines) or "no evidence against anybody")
    return EvidenceError.exit_code if bad else 0


def describe(proof: Proof) -> str:
    """A proof in words."""
    where = f"run {proof.run.hex()}, round {proof.round}"
    return f"proven: {proof.kind}\nby:     {proof.accused}\nin:     {where}\n{proof.text}"


def facts(proof: Proof, path: Path) -> dict[str, Any]:
    """A proof as JSON."""
    return {
        "file": str(path),
        "proven": proof.kind,
        "accused": str(proof.accused),
        "run": proof.run.hex(),
        "round": proof.round,
        "sid": proof.sid.hex(),
        "text": proof.text,
    }
