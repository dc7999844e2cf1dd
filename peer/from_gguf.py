"""`python -m peer.from_gguf FILE FOLDER`: a GGUF file as a plain model folder, once, instead of at every start.

Reading GGUF takes several times as long and as much memory as safetensors does. The same file becomes the same bytes
wherever the same version of transformers converts it, so `model.sha256` can bind what each peer converts for itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dht.errors import ConfigError, MurmurationError, StorageError
from peer.durable import new_folder
from peer.pretrained import forget_gguf, weights_sha256


def convert(source: Path, folder: Path) -> str:
    """Write model and tokenizer of a GGUF file into a new `folder`, in float32; returns `weights_sha256` of it.

    Raises ConfigError when it is no GGUF file of a model that transformers knows, StorageError when it cannot be
    written or `folder` exists.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if folder.exists():
        raise StorageError(f"{folder} exists", remedy="name a new folder")
    try:
        with source.open("rb") as file:
            magic = int.from_bytes(file.read(4), "little")
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {error.strerror}") from error
    if magic != _magic():
        raise ConfigError(f"{source} is not a GGUF file")
    where = {"gguf_file": source.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
        model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **where)
    except Exception as error:  # transformers and gguf raise ValueError, KeyError, ImportError and their own
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"cannot convert {source}: {first}", remedy="is it a causal language model?") from error
    forget_gguf(model)
    folder = folder.resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder.parent, folder.name) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error}", remedy="free disk space or choose another") from error
    return weights_sha256(folder)


def _magic() -> int:
    try:
        from gguf.constants import GGUF_MAGIC
    except ImportError as error:
        raise ConfigError("reading GGUF needs the package gguf", remedy="pip install murmuration[finetune]") from error
    return int(GGUF_MAGIC)


def main() -> None:
    """Convert, and print what goes into the manifest."""
    parser = argparse.ArgumentParser(description="Convert a GGUF file into a folder with safetensors and tokenizer.")
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    try:
        found = convert(given.file, given.folder)
    except MurmurationError as error:
        sys.exit(str(error))
    print(f'path = "{given.folder}"\nsha256 = "{found}"')


if __name__ == "__main__":
    main()
