"""`run-peer export`: a certified state as a folder that `from_pretrained` loads, with tokenizer and model card."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from dht.errors import IncompatibleRunError, StorageError
from peer.durable import new_folder, write_file
from peer.manifest import Manifest
from peer.model import ParameterVector, build_model, quiet_without_terminal
from peer.modelcard import RunFacts, model_card
from peer.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from peer.state import CanonicalState


def export(folder: Path, state: CanonicalState, manifest: Manifest, facts: RunFacts) -> Path:
    """Write model, tokenizer, `README.md` and `run.toml` into `folder`, which must be new or empty; returns it.

    Raises StorageError when it is not, when the disk is full, or when the state does not have the root that
    `facts` names, and IncompatibleRunError when the state is not of the manifest's model.
    """
    folder = folder.resolve()
    if state.root() != facts.root:
        raise StorageError("the state to export does not have the certified root", remedy="start the peer once more")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{folder} is not empty", remedy="export into a new folder")
    model = build_model(manifest)
    vector = ParameterVector(model)
    expected = vector.schema(manifest.run_id, len(manifest.weights.domains))
    if dataclasses.astuple(expected) != dataclasses.astuple(state.schema):
        raise IncompatibleRunError("the state is not one of this manifest's model", remedy="use the run's own run.toml")
    vector.copy_in(state.parameters)
    quiet_without_terminal()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Under another name until it is whole, so that nobody loads half a model.
        with new_folder(folder.parent, folder.name) as partial:
            model.save_pretrained(partial)
            load_tokenizer(manifest).save_pretrained(partial)
            model_card(manifest, facts, vector.elements).save(partial / "README.md")
            write_file(partial / "run.toml", [manifest.dumps().encode()])
    except OSError as error:
        raise StorageError(f"cannot export to {folder}: {error}", remedy="free disk space or choose another") from error
    return folder
