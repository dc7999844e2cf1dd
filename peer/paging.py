"""Float32 vectors in unlinked files: memory that the system may take back, and that a peer hands back while it trains.

The canonical state is read and written once per round, in order; in between it would sit in memory beside the model,
its gradients and its moments. In a shared file mapping its pages can be dropped at once and come back when touched.
"""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path

import numpy as np

from dht.errors import StorageError
from peer.outer import Vector


class PagedVector:
    """A writable float32 array over an unlinked temporary file in `folder`. Nothing of it outlives the process."""

    def __init__(self, values: Vector, folder: Path) -> None:
        """Copy `values`. Raises StorageError when the file cannot be made that long."""
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                # Written, not just truncated: a hole that the disk has no room for would kill the process later.
                file.write(values.data)
                file.flush()
                self._map = mmap.mmap(file.fileno(), values.nbytes)
        except OSError as error:
            raise StorageError(f"no room for the state in {folder}: {error}", remedy="free disk space") from error
        self.array: Vector = np.frombuffer(self._map, np.float32)

    def release(self) -> None:
        """Give the pages back. Their content stays, in the system's cache or on disk."""
        # On a shared mapping this drops no data: dirty pages belong to the file.
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
