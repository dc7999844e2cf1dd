"""Writing so that kill -9, a power cut or a full disk leaves the old or the new, never something between."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dht.errors import StorageError
from dht.exits import FILES_REMEDY

DISK_REMEDY = "free disk space or check the folder's permissions; the older state is intact"
_REPLACED = ".replaced"


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> int:
    """Write parts to a new file and fsync it; bytes written."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    total = 0
    try:
        for part in parts:
            view = memoryview(part)
            while len(view):
                written = os.write(descriptor, view)
                total, view = total + written, view[written:]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return total


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Write `index.json` after all other files of a folder: under its own name only when it is whole and on disk."""
    sync_folder(folder)
    partial = folder / ".index.json"
    write_file(partial, [json.dumps(index).encode()])
    partial.replace(folder / "index.json")


@contextmanager
def new_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder to fill, which appears under its name only if the block succeeds, replacing one of that name."""
    partial, target, older = parent / f".{name}", parent / name, parent / f".{name}{_REPLACED}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        sync_folder(partial)
        if target.exists():
            target.rename(older)
        partial.rename(target)
        sync_folder(parent)
        shutil.rmtree(older, ignore_errors=True)
    except BaseException:
        if older.exists() and not target.exists():
            older.rename(target)
        shutil.rmtree(partial, ignore_errors=True)
        raise


def discard(folder: Path) -> None:
    """Remove a folder; interrupted, it is gone under its name all the same."""
    condemned = folder.with_name(f".{folder.name}.discarded")
    folder.rename(condemned)
    shutil.rmtree(condemned)


def clean(parent: Path) -> None:
    """Remove what interrupted writes left in `parent`; a folder that was about to be replaced gets its name back."""
    for path in parent.glob(".*"):
        target = parent / path.name.removeprefix(".").removesuffix(_REPLACED)
        if path.name.endswith(_REPLACED) and not target.exists():
            path.rename(target)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames and new names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError in the block into a StorageError that names the folder."""
    try:
        yield
    except OSError as error:
        remedy = FILES_REMEDY if error.errno in (errno.EMFILE, errno.ENFILE) else DISK_REMEDY
        raise StorageError(f"cannot write to {folder}: {error.strerror or error}", remedy=remedy) from error
