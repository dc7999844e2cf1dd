"""`run-peer export`: a certified state as a folder that `from_pretrained` loads, with tokenizer and model card.

Of a run that trains an adapter on a frozen model the folder is the adapter's, as peft reads it, unless it is merged.
An adapter that is each peer's own sits on a model that was trained too, so it is always merged, or left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from dht.errors import IncompatibleRunError, StorageError
from peer.adapter import merged, without_adapter
from peer.durable import new_folder, write_file
from peer.manifest import Manifest
from peer.model import ParameterVector, build_model, quiet_without_terminal
from peer.modelcard import RunFacts, model_card
from peer.personal import PersonalParameters, personal_names
from peer.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from peer.state import CanonicalState


def export(
    folder: Path,
    state: CanonicalState,
    manifest: Manifest,
    facts: RunFacts,
    *,
    merge: bool = False,
    personal: Mapping[str, NDArray[Any]] | None = None,
) -> Path:
    """Write model, tokenizer, `README.md` and `run.toml` into `folder`, which must be new or empty; returns it.

    `merge`: the whole model with the adapter added in. `personal`: this peer's own parameters (`peer.personal.stored`);
    None leaves them as the run began with.
    Raises StorageError when the folder is not empty, when the disk is full, or when the state does not have the root
    that `facts` names, and IncompatibleRunError when the state is not of the manifest's model.
    """
    folder = folder.resolve()
    if state.root() != facts.root:
        raise StorageError("the state to export does not have the certified root", remedy="start the peer once more")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{folder} is not empty", remedy="export into a new folder")
    is_adapter = manifest.adapter.kind == "lora" and not merge and not manifest.personal.adapter
    model, trained = _filled(state, manifest, personal)
    if not is_adapter:
        common_only = manifest.personal.adapter and personal is None
        model = without_adapter(model) if common_only else merged(model)
    quiet_without_terminal()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Under another name until it is whole, so that nobody loads half a model.
        with new_folder(folder.parent, folder.name) as partial:
            model.save_pretrained(partial)
            load_tokenizer(manifest).save_pretrained(partial)
            rows = _rows(manifest, is_adapter, personal)
            model_card(manifest, facts, trained, rows, is_adapter).save(partial / "README.md")
            write_file(partial / "run.toml", [manifest.dumps().encode()])
    except OSError as error:
        raise StorageError(f"cannot export to {folder}: {error}", remedy="free disk space or choose another") from error
    return folder


def _filled(state: CanonicalState, manifest: Manifest, personal: Mapping[str, NDArray[Any]] | None) -> tuple[Any, int]:
    """The manifest's model with the state's parameters in it, and how many those are."""
    model = build_model(manifest, quantized=False)
    own = personal_names(model, manifest)
    vector = ParameterVector(model, own)
    expected = vector.schema(manifest.run_id, len(manifest.weights.domains))
    if dataclasses.astuple(expected) != dataclasses.astuple(state.schema):
        raise IncompatibleRunError("the state is not one of this manifest's model", remedy="use the run's own run.toml")
    vector.copy_in(state.parameters)
    if personal is not None:
        PersonalParameters(model, own).restore(personal)
    return model, vector.elements


def _rows(manifest: Manifest, is_adapter: bool, personal: Mapping[str, NDArray[Any]] | None) -> dict[str, str]:
    """What the model card says of adapter and personal parameters."""
    rows: dict[str, str] = {}
    adapter = manifest.adapter
    if adapter.kind == "lora":
        kind = f"LoRA, rank {adapter.rank}, alpha {adapter.alpha:g}, on {', '.join(adapter.targets)}"
        here = "this folder is the adapter alone: load it with peft" if is_adapter else "merged or left out here"
        rows["Adapter"] = f"{kind}{'; A frozen' if adapter.freeze_a else ''}; {here}"
    if manifest.model.quantized != "none":
        rows["Trained over"] = "a base in 4 bits (NF4); the base to use it with, or merged here, is the one in float32"
    if manifest.personal.patterns or manifest.personal.adapter:
        if personal is None:
            rows["Personal parameters"] = "left out: they are as the run began, or absent where they were the adapter"
        else:
            count = sum(array.size for array in personal.values())
            rows["Personal parameters"] = (
                f"{count:,}, trained by the peer that exported this alone; no root covers them"
            )
    return rows
