"""Small files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def create(path: Path, data: bytes) -> None:
    """Write and fsync a file, mode 0600, that must not exist. Raises FileExistsError, OSError."""
    # A link appears whole or not at all and never replaces a file, whoever else is creating one; mkstemp gives 0600.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        os.unlink(temporary)
