"""Small files that are whole or not there."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from dht.errors import StorageError
from dht.files import create


def write_once(path: Path, data: bytes) -> None:
    """Write and fsync a file; one that exists stays as it is. Raises StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            create(path, data)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", remedy="check disk space and owner") from error
