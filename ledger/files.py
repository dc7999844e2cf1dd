"""Small files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dht.errors import StorageError


def write_once(path: Path, data: bytes) -> None:
    """Write and fsync a file; one that exists stays as it is. Raises StorageError."""
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", remedy="check disk space and owner") from error
