"""The newest certified state in a peer's folder, with the facts of the run that its chain proves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from dht.errors import MurmurationError, StorageError
from dht.identity import PeerId
from peer.dp import CLAIM_DELTA, Account
from peer.history import certify, open_chain
from peer.manifest import Manifest
from peer.modelcard import RunFacts
from peer.status import read
from peer.store import StateStore

if TYPE_CHECKING:
    from peer.state import CanonicalState, StateSchema


def newest(data_dir: Path, manifest: Manifest) -> tuple[CanonicalState, RunFacts]:
    """The newest state that its chain of records certifies, checked to the last hash. Raises StorageError."""
    store = open_store(data_dir, manifest)
    stored = store.load_newest(lambda found: certify(found, manifest.run_id, manifest.founder))
    if stored is None:
        remedy = "let the peer finish a round, and use the run.toml that it ran with"
        raise StorageError(f"{store.folder} holds no certified state of run {manifest.run.name}", remedy=remedy)
    chain = open_chain(stored.frames, manifest.run_id, manifest.founder)
    tokens = {str(PeerId(peer)): share.tokens for peer, share in chain.tally.shares.items()}
    loss = _measured(data_dir / "status.json", stored.root)
    return store.load_state(stored), RunFacts(stored.round, stored.root, tokens, loss, _epsilon(data_dir))


def own_parameters(data_dir: Path, manifest: Manifest) -> Mapping[str, NDArray[Any]] | None:
    """The peer's personal parameters as last saved; None in a run without any. Raises StorageError."""
    if not (manifest.personal.patterns or manifest.personal.adapter):
        return None
    from peer.personal import stored

    found = stored(open_store(data_dir, manifest))
    if not found:
        remedy = "let the peer finish a round, or leave its personal parameters out: run-peer export --common"
        raise StorageError(f"{data_dir} holds no personal parameters of run {manifest.run.name}", remedy=remedy)
    return found


def open_store(data_dir: Path, manifest: Manifest) -> StateStore:
    """The store of the peer's states in this run. Raises StorageError when there is none."""
    from peer.node import state_folder

    folder = state_folder(data_dir, manifest)
    if not folder.is_dir():
        remedy = "name the peer's folder with --data-dir, and the run.toml that it ran with"
        raise StorageError(f"no peer has trained in {data_dir} for run {manifest.run.name}", remedy=remedy)
    return StateStore(folder, schema_of(manifest))


def _epsilon(data_dir: Path) -> float | None:
    account = Account.load(data_dir)
    epsilon = None if account.empty else account.epsilon(CLAIM_DELTA)
    return epsilon if epsilon is not None and math.isfinite(epsilon) else None


def _measured(path: Path, root: bytes) -> float | None:
    """The held-out loss of the state with this root, if the peer's last words were of it."""
    try:
        last = read(path)
    except MurmurationError:
        return None
    return last.heldout_loss if last.root == root.hex() else None


def schema_of(manifest: Manifest) -> StateSchema:
    """What the states of a run look like; builds the model to know. Raises ConfigError."""
    from peer.model import ParameterVector, build_model
    from peer.personal import personal_names

    model = build_model(manifest)
    vector = ParameterVector(model, personal_names(model, manifest))
    return vector.schema(manifest.run_id, len(manifest.weights.domains))
